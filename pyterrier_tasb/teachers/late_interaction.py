"""`LateInteraction`: a ColBERT-style scorer that re-ranks, teaches pairs and batches, and can itself be trained."""
from __future__ import annotations

import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
import torch
import torch.nn.functional as F  # noqa: N812

from .._files import fingerprint
from .._locks import work_directory
from ..checks import check_count, check_model_name, check_texts, with_lost_queries
from ..encoding import Encoder, TokenRows, Tokens, TokenStore
from ..encoding.encoder import weights_fingerprint
from ..encoding.precision import device_of, in_own_precision
from ..encoding.settings import copied, is_on, owned, settings_of, sharing, under_settings, with_settings
from ..encoding.tokens import tokenise
from ..texts import TextRows, TextStore
from ..training.checkpoints import Run
from ..training.config import Training
from . import colbert
from .marking import MarkedTokens, Marking
from .maxsim import maxsim
from .vectors import TokenVectors, in_half

_CHUNK = 512   # texts encoded at a time
_Ragged = tuple[torch.Tensor, torch.Tensor]   # token vectors [T, D], lengths [N]


class TokenEncoder(torch.nn.Module):
    """Tokens → token vectors: encoder, optional marking as ColBERT's, optional projection, optional unit length."""

    def __init__(self, encoder: Encoder, projection: torch.nn.Linear | None, normalize: bool,
                 marking: Marking | None = None) -> None:
        super().__init__()
        self.encoder, self.projection, self.normalize, self.marking = encoder, projection, normalize, marking

    def forward(self, tokens: Tokens, n_queries: int) -> tuple[torch.Tensor, np.ndarray]:
        """float32[T, D], the vectors that are scored, and int64[N], how many each text has; queries come first."""
        if self.marking is None:
            states, lengths = self.encoder.token_states(tokens)[0], tokens.lengths
        else:
            states, lengths = self.marking.states(self.encoder, tokens, n_queries)
        states = states if self.projection is None else self.projection(states)
        return F.normalize(states, dim=-1) if self.normalize else states, lengths


class LateInteraction(pt.Estimator):
    """Scores (query, text) by MaxSim over token vectors.

    A re-ranker: qid, query, docno, text → score, rank. A teacher of pairs (`pairwise_teacher=`) and of whole batches
    (`in_batch_teacher=`). An estimator: :meth:`fit` trains it on labels, so that with labels and no published teacher
    the whole method is `teacher.fit(…)`, then `tasb.fit(…)`.

    A checkpoint that colbert-ai trained (ColBERTv2, for example) is read as colbert-ai reads it, and has its scores:
    marker tokens, queries filled up with [MASK] to `query_max_length`, passages scored without their punctuation.
    `marking` holds this; it is None for all other encoders.

    .. cite.dblp:: conf/sigir/KhattabZ20
    """

    schematic = {'label': 'LateInteraction'}

    def __init__(self, model_name: str | os.PathLike, *, query_max_length: int | None = None,
                 doc_max_length: int | None = None, mask_tokens: int | None = None, normalize: bool | None = None,
                 scale: float | None = None, training: Training | None = None, text_field: str = 'text',
                 cache_bytes: int | None = None, cache_dir: str | os.PathLike | None = None, verbose: bool = False,
                 device: str | torch.device | None = None, amp: str = 'auto', trust_remote_code: bool = False) -> None:
        """Load a checkpoint.

        Args:
            model_name: A directory or hub name: a ColBERT checkpoint, or any encoder.
            query_max_length: Tokens of a query, a marker included; None takes what the checkpoint says, else 32.
            doc_max_length: Tokens of a passage, a marker included; None takes what the checkpoint says, else 200.
            mask_tokens: [MASK] tokens added to each query; None takes what the checkpoint says, else 0. The paper's
                released teacher was trained with 8. Not for colbert-ai's checkpoints, which fill queries themselves.
            normalize: Unit-length token vectors; None takes what the checkpoint says, else True.
            scale: Factor on the scores; None takes what the checkpoint says, else 1.
            training: Hyper-parameters of :meth:`fit`; None takes 1,000 random batches of 32 at 3e-5. It reads `steps`,
                `batch_size`, `learning_rate`, `schedule`, `warmup`, `weight_decay`, `max_grad_norm`, `accumulation`,
                `seed`, `max_pairs_per_query`, `eval_every`, `measure`, `patience`, `patience_from`, `save_every`,
                `log_every` and `report_to`, and no others.
            text_field: Column of the passages' text.
            cache_bytes: Most memory for token vectors of texts seen before, kept in half precision; 0 computes all
                anew, None takes 1 GB, or 0 on a GPU, where a batch is sooner encoded than fetched.
            cache_dir: Where the token vectors of training texts are kept, for other runs with this teacher; they take
                2 bytes a dimension and token. None keeps them in memory only.
            verbose: Show progress.
            device: None takes a GPU if there is one.
            amp: Precision of matrix products: 'auto' (bf16 where the hardware computes with it), 'off', 'bf16', 'fp16'.
            trust_remote_code: Whether code that lies with the model may run.

        Raises:
            ValueError: There is no checkpoint that can be used, or a setting cannot be.
        """
        if not isinstance(training, (Training, type(None))):
            raise ValueError(f'training={training!r:.80}: give Training(…), or None')
        super().__init__()
        check_model_name(model_name)
        self.model_name = str(model_name)
        self.text_field, self.cache_dir, self.verbose, self.amp = text_field, cache_dir, verbose, amp
        self.device, self.trust_remote_code = device_of(device), trust_remote_code
        if cache_bytes is None:
            cache_bytes = 0 if self.device.type == 'cuda' else 1 << 30
        self.cache_bytes = cache_bytes
        checkpoint = colbert.load(self.model_name, query_max_length=query_max_length, doc_max_length=doc_max_length,
                                  device=self.device, amp=amp, trust_remote_code=trust_remote_code)
        _, self.query_max_length, self.doc_max_length = settings_of(checkpoint.encoder)
        self.marking = checkpoint.marking
        self.mask_tokens = checkpoint.settings.get('mask_tokens', 0) if mask_tokens is None else mask_tokens
        self._check_masks(checkpoint.encoder)
        said = True if checkpoint.normalize is None else checkpoint.normalize
        self.normalize = said if normalize is None else normalize
        self.scale = float(checkpoint.settings.get('scale', 1.0) if scale is None else scale)
        if not 0 < self.scale < math.inf:
            raise ValueError(f'scale={scale!r}: must be a finite number above 0')
        self.training = training or Training(steps=1000, learning_rate=3e-5, sampling='random', pairwise_loss='ranknet')
        self._module = TokenEncoder(checkpoint.encoder, checkpoint.projection, self.normalize, self.marking).eval()
        self._cached_vectors, self._weights_fingerprint = _VectorCache(cache_bytes), None
        self._settled = self._settings()   # what module and cached vectors were made with
        self._shared = False   # the weights, with another transformer
        self._run: Run | None = None   # the last fit
        self.record: dict[str, Any] | None = None

    def _check_masks(self, encoder: Encoder) -> None:
        masks = self.mask_tokens
        check_count('mask_tokens', masks, least=0)
        if masks and self.marking is not None:
            raise ValueError(f'mask_tokens={masks}: {self.model_name} is colbert-ai\'s and fills its queries up to '
                             'query_max_length with [MASK]: leave mask_tokens out')
        if masks and encoder.tokenizer.mask_token_id is None:
            raise ValueError(f'mask_tokens={masks}: the tokenizer of {self.model_name} has no [MASK]')
        if masks and self.query_max_length + masks > encoder.max_positions:
            raise ValueError(f'query_max_length={self.query_max_length} and mask_tokens={masks} are more than the '
                             f'{encoder.max_positions} positions of the model')

    # ---- settings, which may be set at any time ----------------------------------------------------------------

    @property
    def module(self) -> TokenEncoder:
        """Tokens → token vectors, with the settings that this object has now."""
        self._settle()
        return self._module

    @property
    def _cache(self) -> _VectorCache:
        self._settle()
        return self._cached_vectors

    def _settings(self) -> tuple:
        return (self.device, self.amp, self.query_max_length, self.doc_max_length, self.mask_tokens,
                self.normalize, self.cache_bytes, self.marking)

    def _settle(self) -> None:
        """Make module and cache anew where settings are others: vectors of those before are no use."""
        self.device = device_of(self.device)
        if self._settings() == self._settled:
            return
        self._check_masks(self._module.encoder)
        module = self._module if is_on(self._module.encoder, self.device) else copied(self._module, self.device)
        self._module = TokenEncoder(under_settings(self, module.encoder), module.projection, self.normalize,
                                    self.marking).eval()
        self._cached_vectors, self._settled = _VectorCache(self.cache_bytes), self._settings()

    # ---- scoring -----------------------------------------------------------------------------------------------

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Results with `score` and `rank`."""
        pt.validate.result_frame(inp, extra_columns=['query', self.text_field], context=self)
        inp = with_lost_queries(inp)
        check_texts(inp, 'query', self.text_field, context=self)
        rows, texts = pd.factorize(inp[self.text_field].astype(object))
        query_rows, queries = pd.factorize(inp['query'].astype(object))
        self._fill_cache(texts)
        scores = np.empty(len(inp), dtype=np.float64)
        at = pd.Series(np.arange(len(inp))).groupby(query_rows).indices
        for i, query in enumerate(pt.tqdm(queries, desc='MaxSim', unit='query', disable=not self.verbose)):
            scores[at[i]] = self.score_matrix([query], [texts[j] for j in rows[at[i]]])[0].numpy()
        return pt.model.add_ranks(inp.assign(score=scores))

    def score_matrix(self, queries: list[str], docs: list[str]) -> torch.Tensor:
        """float32[B, P], every query against every passage, without gradients."""
        if not len(queries) or not len(docs):
            return torch.zeros(len(queries), len(docs))
        return self._maxsim(self._of_texts(queries, 'query'), self._of_texts(docs, 'doc'))

    def _maxsim(self, query: _Ragged, docs: _Ragged) -> torch.Tensor:
        with torch.no_grad(), in_own_precision(self.device):
            (query_vectors, query_lengths), (doc_vectors, doc_lengths) = query, docs
            return (self.scale * maxsim(query_vectors.to(self.device), query_lengths, doc_vectors.to(self.device),
                                        doc_lengths)).cpu()

    def bind(self, queries: TextStore | TextRows, docs: TextStore | TextRows, cache_dir: Path | None = None,
             ) -> Callable[[np.ndarray, np.ndarray], torch.Tensor]:
        """The scorer of a run's texts by row: (query rows, document rows) → float32[B, P].

        Args:
            queries: Texts of query rows; their tokens are kept with them.
            docs: Texts of document rows.
            cache_dir: Where tokens go when the texts' own directory cannot be written.
        """
        if not self.cache_bytes and self.cache_dir is None:
            query_tokens, doc_tokens = (self.tokens_of(texts, side, cache_dir)
                                        for texts, side in ((queries, 'query'), (docs, 'doc')))
            return lambda query_rows, doc_rows: self._at_once(query_tokens.take(query_rows), doc_tokens.take(doc_rows))
        of_query, of_doc = self._of_rows(queries, 'query', cache_dir), self._of_rows(docs, 'doc', cache_dir)
        return lambda query_rows, doc_rows: self._maxsim(of_query(query_rows), of_doc(doc_rows))

    def _at_once(self, queries: Tokens, docs: Tokens) -> torch.Tensor:
        """float32[B, P], both sides in one forward pass."""
        vectors, lengths = self._encode(Tokens.concat([queries, docs]), len(queries))
        split = int(lengths[:len(queries)].sum())
        lengths = torch.from_numpy(lengths)
        return self._maxsim((vectors[:split], lengths[:len(queries)]), (vectors[split:], lengths[len(queries):]))

    def _of_texts(self, texts: list[str], side: str) -> _Ragged:
        return self._cached(side, [(side, text) for text in texts],
                            lambda keys: self.tokenise([text for _, text in keys], side))

    def _of_rows(self, texts: TextStore | TextRows, side: str,
                 cache_dir: Path | None) -> Callable[[np.ndarray], _Ragged]:
        """Rows → their token vectors: computed from tokens on disk, found in memory, or kept on disk themselves."""
        tokens = self.tokens_of(texts, side, cache_dir)

        def cached(rows: np.ndarray) -> _Ragged:
            keys = [(side, texts.fingerprint, row) for row in rows.tolist()]
            return self._cached(side, keys, lambda keys: tokens.take(np.array([row for *_, row in keys])))
        if self.cache_dir is None:
            return cached
        dim = self.module.encoder.dim if self.module.projection is None else self.module.projection.out_features
        key = f'{side}-{fingerprint(self.weights_fingerprint, self._key()[1:], texts.fingerprint)}'
        return TokenVectors(Path(self.cache_dir) / key, tokens.lengths, dim,
                            lambda rows: cached(rows)[0], key).take

    def tokens_of(self, texts: TextStore | TextRows, side: str,
                  elsewhere: Path | None = None) -> TokenRows | _Masked | MarkedTokens:
        """Tokens of a side by row, kept with the texts; markers and [MASK] tokens are added when they are taken."""
        tokenizer, length = self.module.encoder.tokenizer, self._length_of_text(side)
        tokens = TokenStore.of(texts, tokenizer, length, elsewhere=elsewhere)
        if self.marking is not None:
            return MarkedTokens(tokens, self.marking, side, self.query_max_length)
        return _Masked(tokens, self._masks) if side == 'query' and self.mask_tokens else tokens

    def tokenise(self, texts: list[str], side: str) -> Tokens:
        """Tokens of texts, with markers; queries get their [MASK] tokens."""
        tokens = tokenise(self.module.encoder.tokenizer, texts, self._length_of_text(side))
        if self.marking is not None:
            return self.marking.marked(tokens, side)
        return tokens.followed_by(self._masks) if side == 'query' else tokens

    def _length_of_text(self, side: str) -> int:
        """Most tokens of a text of a side, without a marker."""
        return self.module.encoder.max_length(side) - (self.marking is not None)

    @property
    def _masks(self) -> list[int]:
        return [self.module.encoder.tokenizer.mask_token_id] * self.mask_tokens

    def _cached(self, side: str, keys: list[tuple], tokens: Callable[[list[tuple]], Tokens]) -> _Ragged:
        """Token vectors of what `keys` name, one after the other; `tokens` of those that the cache lacks."""
        if not self.cache_bytes:
            vectors, lengths = self._encode(tokens(keys), len(keys) if side == 'query' else 0)
            return vectors, torch.from_numpy(lengths)
        found = self._cache.of(keys)
        missing = [key for key in dict.fromkeys(keys) if key not in found]
        for start in range(0, len(missing), _CHUNK):
            some = missing[start:start + _CHUNK]
            vectors, lengths = self._encode(tokens(some), len(some) if side == 'query' else 0)
            parts = in_half(vectors).split(lengths.tolist())
            fresh = {key: part.clone() for key, part in zip(some, parts, strict=True)}
            self._cache.add(fresh)
            found |= fresh
        vectors = [found[key] for key in keys]
        with in_own_precision(self.device):
            return torch.cat(vectors), torch.tensor([len(vector) for vector in vectors], dtype=torch.long)

    def _fill_cache(self, texts: list[str]) -> None:
        """Encode passages many at a time, as far as memory goes: faster than those of one query."""
        missing = list(dict.fromkeys(text for text in texts if ('doc', text) not in self._cache))
        for start in pt.tqdm(range(0, len(missing), _CHUNK), desc='token vectors', unit=f'{_CHUNK} passages',
                             disable=not self.verbose):
            if self._cache.bytes >= self.cache_bytes:
                return
            self._of_texts(missing[start:start + _CHUNK], 'doc')

    def _encode(self, tokens: Tokens, n_queries: int) -> tuple[torch.Tensor, np.ndarray]:
        with torch.inference_mode(), in_own_precision(self.device):
            return self.module(tokens, n_queries)

    # ---- learning ----------------------------------------------------------------------------------------------

    def fit(self, topics_or_res_tr: pd.DataFrame, qrels_tr: pd.DataFrame, topics_or_res_va: pd.DataFrame | None = None,
            qrels_va: pd.DataFrame | None = None, *, negatives: pt.Transformer | None = None,
            corpus: Any = None, work_dir: str | os.PathLike | None = None,
            resume: bool = False) -> LateInteraction:
        """Train on labels: softmax cross entropy of a query's positive against all passages of the batch.

        Other judged positives of the query are left out of its softmax.

        Args:
            topics_or_res_tr: Results with text, or topics where `negatives` and `corpus` are given.
            qrels_tr: Training qrels.
            topics_or_res_va: Validation results with text, or topics, as for training.
            qrels_va: Validation qrels.
            negatives: The pipeline that mines candidates for topics.
            corpus: Anything with a text loader.
            work_dir: Keeps checkpoints; None keeps nothing.
            resume: Continue what an interrupted call with the same `work_dir` began.

        Raises:
            pt.validate.InputValidationError: A frame lacks a column.
            ValueError: There is nothing to learn from; see :meth:`TasBalanced.fit`.
        """
        from .label_training import fit_on_labels
        self._module, self._shared = owned(self, self.module), False
        with in_own_precision(self.device), work_directory(work_dir, resume=resume) as folder:
            self.record = fit_on_labels(self, topics_or_res_tr, qrels_tr, topics_or_res_va, qrels_va, negatives, corpus,
                                        folder, resume, work_dir is not None)
        return self

    def weights_changed(self) -> None:
        """Forget cached vectors and, if the weights are others now, take a name that no other weights have."""
        before, self._weights_fingerprint = self._weights_fingerprint, None
        if self.weights_fingerprint == before:
            return
        self._cached_vectors = _VectorCache(self.cache_bytes)
        self.model_name = f'{self.model_name.partition("#")[0]}#trained-{self.weights_fingerprint[:8]}'

    @property
    def weights_fingerprint(self) -> str:
        """A hash of the weights, as they are or as :meth:`fit` left them."""
        if self._weights_fingerprint is None:
            self._weights_fingerprint = weights_fingerprint(self.module)
        return self._weights_fingerprint

    def save(self, path: str | os.PathLike, *, overwrite: bool = False) -> Path:
        """Write a ColBERT checkpoint that `LateInteraction(path)` reads.

        Raises:
            ValueError: `path` exists and `overwrite` is False.
        """
        colbert.save(colbert.Checkpoint(self.module.encoder, self.module.projection, self.normalize, self.marking,
                                        {'scale': self.scale, 'query_maxlen': self.query_max_length,
                                         'doc_maxlen': self.doc_max_length, 'mask_tokens': self.mask_tokens}),
                     path, overwrite=overwrite)
        return Path(path)

    # ---- identity ----------------------------------------------------------------------------------------------

    def apply_attributes(self, **attributes: Any) -> LateInteraction:
        """The same weights with other settings; whichever of the two is trained first takes weights of its own.

        Raises:
            ValueError: There is no such setting, or `model_name` is that of other weights.
        """
        return with_settings(self, attributes)

    def __copy__(self) -> LateInteraction:
        """One that shares weights, until either is trained."""
        return sharing(self)

    def subtransformers(self) -> dict[str, pt.Transformer]:
        """None."""
        return {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LateInteraction) and self._key() == other._key() and (
            self.module is other.module or self.weights_fingerprint == other.weights_fingerprint)

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple:
        return (self.model_name, self.query_max_length, self.doc_max_length, self.mask_tokens, self.normalize,
                self.scale, self.text_field, self.amp, *self._marks())

    def _marks(self) -> list[str]:
        return [] if self.marking is None else [repr(self.marking)]

    def __repr__(self) -> str:
        """All that the scores depend on: caches and stored scores go by it."""
        return (f'LateInteraction({self.model_name!r}, {self.query_max_length}+{self.mask_tokens}, '
                f'{self.doc_max_length}, normalize={self.normalize}, scale={self.scale:g}, amp={self.amp!r}, '
                f'weights={self.weights_fingerprint[:8]}{"".join(f", {marks}" for marks in self._marks())})')


class _Masked:
    """Tokens by row, each text followed by the same tokens."""

    def __init__(self, tokens: TokenStore | TokenRows, ids: list[int]) -> None:
        self.tokens, self.ids = tokens, ids

    @property
    def lengths(self) -> np.ndarray:
        return self.tokens.lengths + len(self.ids)

    def take(self, rows: np.ndarray) -> Tokens:
        return self.tokens.take(rows).followed_by(self.ids)


class _VectorCache:
    """Token vectors by side and text or row; the least recently added go when memory is full. Threads may share it."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self.bytes = most_bytes, 0
        self._vectors: OrderedDict[tuple, torch.Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple:
        return type(self), (self.most_bytes,)   # a copy starts empty: vectors are computed again, a lock is not copied

    def __contains__(self, key: tuple) -> bool:
        return key in self._vectors

    def of(self, keys: list[tuple]) -> dict[tuple, torch.Tensor]:
        """What is there of these."""
        with self._lock:
            return {key: self._vectors[key] for key in keys if key in self._vectors}

    def add(self, vectors: dict[tuple, torch.Tensor]) -> None:
        with self._lock:
            for key, vector in vectors.items():
                if key not in self._vectors:
                    self._vectors[key] = vector
                    self.bytes += vector.numel() * vector.element_size()
            while self.bytes > self.most_bytes and self._vectors:
                _, dropped = self._vectors.popitem(last=False)
                self.bytes -= dropped.numel() * dropped.element_size()
