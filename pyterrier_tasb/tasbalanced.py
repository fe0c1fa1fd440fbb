"""`TasBalanced`: a dense encoder that is trained with TAS-Balanced and used like any PyTerrier bi-encoder."""
from __future__ import annotations

import copy
import os
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
import pyterrier_dr
import torch

from . import retrieval
from ._files import differences
from ._locks import work_directory
from .biencoder import Bare, DocEncoder, IndexQueryEncoder, QueryEncoder, TextScorer, itself
from .checks import check_count, check_model_name, check_path, listed
from .documents import Corpus
from .encoding import Encoder, Tokens, TokenStore, model_directory
from .encoding.encoder import weights_fingerprint
from .encoding.precision import check_trains, device_of, has_bf16, in_own_precision
from .encoding.settings import copied, owned, settings_of, shallow, sharing, under_settings, with_settings
from .pairs import ScoredPairs
from .sampling import BatchPlan, QueryClusters
from .texts import TextStore
from .training.checkpoints import Run
from .training.config import Training

_FOR_FIT = 'pairwise_teacher', 'in_batch_teacher', 'negatives', 'corpus', 'clusters', 'cluster_encoder'
_ENCODING = {'query': 'Encoding queries', 'doc': 'Encoding passages'}


class TasBalanced(pyterrier_dr.BiEncoder, pt.Estimator):
    """A dense encoder that can be trained with TAS-Balanced.

    It is a :class:`pyterrier_dr.BiEncoder`: alone it encodes queries (adds ``query_vec``), encodes passages (adds
    ``doc_vec``) or re-ranks (adds ``score`` and ``rank``), by the columns it is given. It is a ``pt.Estimator``:
    :meth:`fit` trains it.

    .. code-block:: python
        :caption: Any pipeline mines the negatives, any pipeline is the teacher.

        tasb = TasBalanced('distilbert-base-uncased', training=Training(steps=20_000))
        (bm25 % 100 >> text >> monoT5 >> tasb).fit(train_topics, train_qrels, dev_topics, dev_qrels)
        index = tasb.index(dataset.get_corpus_iter(), 'corpus.flex')
        dense = tasb.retriever(index, text=dataset)

    .. cite.dblp:: conf/sigir/HofstatterLYLH21
    """

    schematic = {'label': 'TAS-Balanced'}

    def __init__(self, model_name: str | os.PathLike, *, pairwise_teacher: pt.Transformer | None = None,
                 in_batch_teacher: Any = None, negatives: pt.Transformer | None = None,
                 corpus: Any = None, clusters: QueryClusters | str | None = None,
                 cluster_encoder: pyterrier_dr.BiEncoder | None = None, training: Training = Training(),
                 query_max_length: int | None = None, doc_max_length: int | None = None, batch_size: int = 32,
                 text_field: str = 'text', verbose: bool = False, device: str | torch.device | None = None,
                 amp: str = 'auto', trust_remote_code: bool = False) -> None:
        """Load an encoder.

        Args:
            model_name: A model directory or hub name: a plain encoder ([CLS] and dot product) or a
                sentence-transformers directory (its own pooling and length).
            pairwise_teacher: Any transformer that scores (query, text); None takes the score that arrives.
            in_batch_teacher: Who scores every query of a batch against all its passages: a
                :class:`LateInteraction`, the name of a ColBERT checkpoint, a :class:`WeightedSum`, any transformer
                that scores (query, text), or stored :class:`TeacherScores`, or their path; None leaves the in-batch
                term out.
            negatives: The pipeline that mines candidates when :meth:`fit` is given topics.
            corpus: A text store or anything with a text loader, for the text of candidates and of positives that they
                lack. A text store's texts are not copied, and its tokens serve training, validation, a teacher with the
                same tokenizer and length, and :meth:`index`.
            clusters: Query clusters with ids (:class:`QueryClusters`, or the directory of saved ones), or a cluster
                file in the published text format; None clusters the training queries.
            cluster_encoder: Encodes the training queries for clustering; None takes this encoder, untrained.
            training: Hyper-parameters.
            query_max_length: Tokens of a query; None takes what the directory says, else 30 (the paper).
            doc_max_length: Tokens of a passage; None takes what the directory says, else 200 (the paper).
            batch_size: Texts that `encode_queries_torch` and `encode_docs_torch` encode at a time; all else is encoded
                by numbers of tokens.
            text_field: Column of the passages' text.
            verbose: Show progress when encoding.
            device: Where to compute; None takes a GPU if there is one.
            amp: Precision of matrix products. 'auto' takes bf16 for training, its validation and :meth:`index`, where
                the hardware computes with it, and float32 for all else, so that vectors are those of other loaders;
                'off' is float32, 'bf16' and 'fp16' are for everything. Weights, vectors, scores and losses are float32.
            trust_remote_code: Whether code that lies with the model may run.

        Raises:
            ValueError: The directory is no model that can be used; the message says what was looked for. Or a setting
                cannot be.
        """
        check_model_name(model_name)
        check_count('batch_size', batch_size)
        if not isinstance(training, Training):
            raise ValueError(f'training={training!r:.80}: give Training(…)')
        super().__init__(batch_size=batch_size, text_field=text_field, verbose=verbose)
        self.model_name = str(model_name)
        self.pairwise_teacher = pairwise_teacher
        self.in_batch_teacher = in_batch_teacher
        self.negatives = negatives
        self.corpus = corpus
        self.clusters = clusters
        self.cluster_encoder = cluster_encoder
        self.training = training
        self._encoder = Encoder.load(self.model_name, query_max_length=query_max_length, doc_max_length=doc_max_length,
                                     device=device_of(device), amp=amp, trust_remote_code=trust_remote_code)
        self.trust_remote_code = trust_remote_code
        self._encoder.check_pooling()
        self.device = self._encoder.device
        self.amp, self.query_max_length, self.doc_max_length = settings_of(self._encoder)
        self._learning_in: int | None = None   # the thread that is training the weights
        self._encoding_of: tuple[Encoder, Encoder] | None = None
        self._bare: Bare | None = None
        self._weights: str | None = None   # a fingerprint, once it was asked for
        self._shared = False   # the weights, with another transformer
        # how the weights were trained: by `fit`, or before they were saved
        self.record: dict[str, Any] | None = model_directory.training_record(self._encoder.directory)
        self._run: Run | None = None   # the last fit

    @property
    def encoder(self) -> Encoder:
        """What computes, with the lengths, precision and device that this object has now; never another in training."""
        if self._learning_in is None:
            self._encoder = under_settings(self, self._encoder)
        return self._encoder

    @property
    def _encoding(self) -> Encoder:
        """The encoder as users encode with it."""
        encoder = self.encoder
        if self._encoding_of is None or self._encoding_of[0] is not encoder:
            in_float32 = self.amp == 'auto' and has_bf16(self.device)
            self._encoding_of = encoder, encoder.view(amp='off') if in_float32 else encoder
        return self._encoding_of[1]

    # ---- a BiEncoder -------------------------------------------------------------------------------------------

    @property
    def model(self) -> torch.nn.Module:
        """The Hugging Face model."""
        return self.encoder.model

    @property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer."""
        return self.encoder.tokenizer

    @property
    def max_length(self) -> tuple[int, int]:
        """Tokens of a query and of a passage; part of what makes two encoders equal."""
        return self.query_max_length, self.doc_max_length

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Encode queries, encode passages, or score, by the columns of `inp`."""
        with pt.validate.any(inp, context=self) as v:
            v.query_frame(extra_columns=['query'], mode='query_encoder')
            v.document_frame(extra_columns=[self.text_field], mode='doc_encoder')
            for text in (['query', self.text_field], ['query_vec', self.text_field], ['query', 'doc_vec'],
                         ['query_vec', 'doc_vec']):
                v.columns(includes=text, mode='text_scorer')
            # results whose text was forgotten are no queries: their old scores would pass for this encoder's
            v.columns(includes=['query'], excludes=['docno'], mode='query_encoder')
            v.columns(includes=[self.text_field], excludes=['qid'], mode='doc_encoder')
        return getattr(self, v.mode)()(inp)

    def query_encoder(self, verbose: bool | None = None, batch_size: int | None = None) -> pt.Transformer:
        """Adds `query_vec`.

        Args:
            verbose: Show progress; None takes this encoder's.
            batch_size: Taken and not needed: texts are encoded without padding, by numbers of tokens.
        """
        return QueryEncoder(self, verbose=verbose, batch_size=batch_size)

    def doc_encoder(self, verbose: bool | None = None, batch_size: int | None = None) -> pt.Transformer:
        """Adds `doc_vec`.

        Args:
            verbose: Show progress; None takes this encoder's.
            batch_size: Taken and not needed: texts are encoded without padding, by numbers of tokens.
        """
        return DocEncoder(self, verbose=verbose, batch_size=batch_size)

    def text_scorer(self, verbose: bool | None = None, batch_size: int | None = None,
                    sim_fn: pyterrier_dr.SimFn | None = None) -> pt.Transformer:
        """Re-ranks by the dot product of query and passage vectors; each distinct text is encoded once.

        Args:
            verbose: Show progress; None takes this encoder's.
            batch_size: Taken and not needed: texts are encoded without padding, by numbers of tokens.
            sim_fn: The dot product, or None.

        Raises:
            ValueError: `sim_fn` is another.
        """
        if sim_fn not in (None, pyterrier_dr.SimFn.dot):
            raise ValueError(f'text_scorer(sim_fn={sim_fn!r}): scores are dot products, as in training')
        return TextScorer(self, verbose=verbose, batch_size=batch_size, sim_fn=sim_fn)

    def encode_queries_torch(self, texts: Iterable[str], batch_size: int | None = None) -> torch.Tensor:
        """float32[N, D] vectors of queries, with gradients."""
        return self._encode(texts, 'query', batch_size or self.batch_size)

    def encode_docs_torch(self, texts: Iterable[str], batch_size: int | None = None) -> torch.Tensor:
        """float32[N, D] vectors of passages, with gradients."""
        return self._encode(texts, 'doc', batch_size or self.batch_size)

    def encode_queries(self, texts: Iterable[str], batch_size: int | None = None, *,
                       verbose: bool | None = None) -> np.ndarray:
        """float32[N, D] vectors of queries; a text that occurs twice is encoded once."""
        return self._encode_distinct(texts, 'query', verbose)

    def encode_docs(self, texts: Iterable[str], batch_size: int | None = None, *,
                    verbose: bool | None = None) -> np.ndarray:
        """float32[N, D] vectors of passages; a text that occurs twice is encoded once."""
        return self._encode_distinct(texts, 'doc', verbose)

    def _check_at_rest(self, *, also_here: bool = False) -> None:
        """That no other thread trains the weights; `also_here`, nor this one."""
        if self._learning_in not in (None, None if also_here else threading.get_ident()):
            raise RuntimeError(f'{self!r} is being trained{"" if also_here else " in another thread"}: wait for it, or '
                               'take a copy() that was made before')

    def _encode(self, texts: Iterable[str], side: str, batch_size: int) -> torch.Tensor:
        self._check_at_rest()
        tokens = self.encoder.tokenise(listed(texts), side)
        chunks = [tokens.take(np.arange(i, min(i + batch_size, len(tokens))))
                  for i in range(0, max(len(tokens), 1), batch_size)]
        return torch.cat([self._encoding(chunk) for chunk in chunks])

    def _encode_distinct(self, texts: Iterable[str], side: str, verbose: bool | None) -> np.ndarray:
        self._check_at_rest()
        # what is no text is no row -1 either: the tokenizer complains of it
        rows, distinct = pd.factorize(np.asarray(listed(texts), dtype=object), use_na_sentinel=False)
        shown = self.verbose if verbose is None else verbose
        return self._encoding.encode(self._encoding.tokenise(list(distinct), side),
                                     progress=_ENCODING[side] if shown else None)[rows]

    # ---- an Estimator ------------------------------------------------------------------------------------------

    def fit(self, topics_or_res_tr: pd.DataFrame | None = None, qrels_tr: pd.DataFrame | None = None,
            topics_or_res_va: pd.DataFrame | None = None, qrels_va: pd.DataFrame | None = None, *,
            pairs: ScoredPairs | Iterable | None = None, work_dir: str | os.PathLike | None = None,
            resume: bool = False) -> TasBalanced:
        """Train with TAS-Balanced.

        What to learn from is one of:

        - a results frame (qid, query, docno, text, and score unless there is a `pairwise_teacher`) with qrels: what
          arrives when this is the last stage of a pipeline. Documents judged above 0 are positives, all others are
          negatives;
        - a topics frame (qid, query) with qrels, where `negatives=` and `corpus=` were given at construction;
        - `pairs=`, with topics for the queries' texts and `corpus=` for the passages'; qrels then name what else is
          judged positive, which `Training(positive_bonus=…)` reads.

        Args:
            topics_or_res_tr: Training topics or results.
            qrels_tr: Training qrels (qid, docno, label).
            topics_or_res_va: Validation results, which are re-ranked as they are; or topics, for what `negatives=`
                finds and all that is relevant (the paper's pool).
            qrels_va: Validation qrels.
            pairs: Scored pairs, or an iterable in the vocabulary of ir_datasets' docpairs.
            work_dir: Keeps pairs, tokens, clusters, teacher scores and checkpoints, so that the same call with
                `resume=True` goes on, or ends at once where it was done; :meth:`save` writes the model. None keeps
                nothing.
            resume: Continue what an interrupted call with the same `work_dir` began.

        Returns:
            This object, trained, in evaluation mode, under a new `model_name`.

        Raises:
            pt.validate.InputValidationError: A frame lacks a column.
            ValueError: Before any training, when there is nothing to learn from or something contradicts; the
                message names the column, the ids and the remedy.
        """
        from .fitting import Fit
        from .training.state import main_process_first
        self._check_at_rest()
        check_trains(self.amp, self.encoder.device)
        self._encoder, self._shared, self._encoding_of = owned(self, self.encoder), False, None
        with in_own_precision(self.device), work_directory(work_dir, resume=resume) as folder:
            fit = Fit(self, folder, resume=resume, kept=work_dir is not None)
            with fit.timed():
                with main_process_first(self.device):
                    fit.check()
                    fit.take_validation(topics_or_res_va, qrels_va)                # when to stop
                    examples = fit.examples(topics_or_res_tr, qrels_tr, pairs)     # what to learn from
                    clusters = fit.clusters(examples)                              # topics, once
                    batches = fit.batches(examples, clusters)                      # what is in a batch, whom to imitate
                self._check_at_rest()   # another thread may have come first
                self._learning_in = threading.get_ident()
                try:
                    self.record = fit.train(batches)                               # how weights move
                finally:
                    self._learning_in = self._weights = None
                    self.model_name = fit.identity()
        return self

    def batch_plan(self, topics_or_res: pd.DataFrame | None = None, qrels: pd.DataFrame | None = None, *,
                   pairs: ScoredPairs | Iterable | None = None, work_dir: str | os.PathLike,
                   processes: int | None = None) -> tuple[BatchPlan, TextStore, TextStore]:
        """The batches that :meth:`fit` with the same arguments takes, and the texts that their rows name.

        For :meth:`TeacherScores.build`, on this machine or on several.

        Args:
            topics_or_res: As for :meth:`fit`.
            qrels: As for :meth:`fit`.
            pairs: As for :meth:`fit`.
            work_dir: As for :meth:`fit`, which finds there what this makes.
            processes: Of the distributed run that will take the plan; None takes those of this one. They draw more
                batches, and the number of query clusters depends on that where `Training(clusters=…)` does not say it.

        Returns:
            The plan, the texts of its query rows and the texts of its document rows.

        Raises:
            ValueError: As :meth:`fit`; or `processes` is no whole number of at least 1.
        """
        from .fitting import Fit
        from .training.state import main_process_first
        if processes is not None and (not isinstance(processes, int) or processes < 1):
            raise ValueError(f'processes={processes!r}: must be a whole number of at least 1')
        with work_directory(work_dir) as folder:
            fit = Fit(self, folder, resume=True, processes=processes)
            with main_process_first(self.device):
                examples = fit.examples(topics_or_res, qrels, pairs)
                return fit.plan(examples, fit.clusters(examples)), examples.queries, examples.docs

    # ---- persistence -------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike, *, overwrite: bool = False) -> Path:
        """Write a model directory with a model card and the training record.

        `TasBalanced(path)`, `SentenceTransformer(path)` and `pyterrier_dr.SBertBiEncoder(path)` load it with equal
        vectors; so do `pyterrier_dr.TasB(path)` and `HgfBiEncoder.from_pretrained(path)` where the encoder takes
        [CLS] and the dot product. The others have one length for both sides, the larger one, and so read more of a
        query that is longer than `query_max_length`.

        Raises:
            ValueError: `path` exists and `overwrite` is False.
        """
        from .modelcard import model_card
        self._check_at_rest()
        model_directory.save(self.encoder, path, overwrite=overwrite, settings={'scale': self.training.scale},
                             extra_files={'README.md': model_card(self), **self._record_file()})
        return Path(path)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Upload what :meth:`save` writes to a model repository.

        Args:
            repo_id: The repository, 'owner/name'.
            **kwargs: Passed to `huggingface_hub.HfApi.upload_folder` (`token`, `commit_message`, `revision`, …).

        Returns:
            The address of the commit.
        """
        from huggingface_hub import HfApi
        with tempfile.TemporaryDirectory() as folder:
            path = self.save(Path(folder) / 'model')
            api = HfApi(token=kwargs.pop('token', None))
            api.create_repo(repo_id, repo_type='model', private=kwargs.pop('private', None), exist_ok=True)
            return str(api.upload_folder(repo_id=repo_id, folder_path=path, repo_type='model', **kwargs))

    def _record_file(self) -> dict[str, str]:
        import json
        return {model_directory.RECORD: json.dumps(self.record, indent=1)} if self.record else {}

    # ---- retrieval ---------------------------------------------------------------------------------------------

    def index(self, corpus: Corpus, path: str | os.PathLike, *, tokens: TokenStore | None = None,
              batch_size: int | None = None, overwrite: bool = False) -> pyterrier_dr.FlexIndex:
        """Encode a corpus into a new FlexIndex, which appears at `path` only when it is whole.

        The same call after an interruption goes on where it stopped. Passages are encoded without padding, a batch
        sorted by length, in bf16 where the hardware computes with it (see `amp`).

        Args:
            corpus: Dictionaries with docno and the text field, or a data set (anything with `get_corpus_iter`),
                streamed; or a text store, whose tokens are kept with it and are those that :meth:`fit` reads where the
                store is its `corpus=`.
            path: Where the index goes; `path.part` beside it keeps what is done.
            tokens: The tokens of the text store, where they are kept elsewhere (:meth:`tokenise_corpus`).
            batch_size: Passages encoded and kept at a time; None takes 4,096, or 65,536 on a GPU.
            overwrite: Replace the index at `path`.

        Returns:
            A fresh index object.

        Raises:
            ValueError: `path` exists and `overwrite` is False or it is no index, the corpus is empty, a passage has no
                text, a docno comes twice, or `tokens` are of other texts.
        """
        from .indexing import build_index
        check_path('path', path, 'give the corpus first and then where the index goes, index(corpus, path)')
        self._check_at_rest()
        encoder = self.encoder
        if batch_size is not None:
            check_count('batch_size', batch_size)
        if tokens is not None:
            self._check_tokens(tokens, corpus)
        elif isinstance(corpus, TextStore):
            if TokenStore.can_lie_with(corpus, self.tokenizer, self.doc_max_length):   # else made as texts come
                tokens = self.tokenise_corpus(corpus)

        def tokenise(row: int, texts: list[str]) -> Tokens:
            if tokens is None:
                return encoder.tokenise(texts, 'doc')
            return tokens.take(np.arange(row, row + len(texts)))
        return build_index(corpus, path, tokenise, encoder.encode, key=encoder.fingerprint,
                           weights=self.weights_fingerprint, text_field=self.text_field,
                           batch_size=batch_size or (65_536 if self.device.type == 'cuda' else 4096),
                           overwrite=overwrite, verbose=self.verbose)

    def tokenise_corpus(self, texts: TextStore, path: str | os.PathLike | None = None, *,
                        n_jobs: int = 1) -> TokenStore:
        """Tokenise a corpus once, for every fit and index that reads it with this tokenizer and length.

        Args:
            texts: The corpus.
            path: A directory; None keeps the tokens with the texts, where all who need them look. What is there
                already is used, an interrupted call is gone on with.
            n_jobs: Chunks worked on at a time; the tokenizer's own threads work on each.

        Raises:
            ValueError: `path` holds tokens of other texts, of another tokenizer or of another length.
        """
        if path is None:
            return TokenStore.of(texts, self.tokenizer, self.doc_max_length, n_jobs=n_jobs)
        return TokenStore.build(path, texts, self.tokenizer, self.doc_max_length, n_jobs=n_jobs)

    def _check_tokens(self, tokens: TokenStore, corpus: Any) -> None:
        if not isinstance(corpus, TextStore):
            raise ValueError(f'tokens= go with the text store that they were made of; corpus is a '
                             f'{type(corpus).__name__}')
        wanted = TokenStore.key_of(corpus, self.tokenizer, self.doc_max_length)
        if tokens.key != wanted:
            raise ValueError(f'{tokens!r} are not the tokens of this corpus for this encoder: '
                             f'{differences(tokens.key, wanted)}')

    def retriever(self, index: pyterrier_dr.FlexIndex | str | os.PathLike, *, text: Any = None,
                  num_results: int = 1000, device: torch.device | str | None = None) -> pt.Transformer:
        """Queries → results with text; see :func:`pyterrier_tasb.retrieval.build_retriever`.

        Args:
            index: What to search, or its path.
            text: A data set, index or transformer that adds the text by docno; None leaves it out.
            num_results: Results for each query.
            device: Where to search; None takes the encoder's. A GPU that has room for it holds the whole index.

        Raises:
            ValueError: `index` is no dense index or has vectors of another length, `num_results` is below 1, or `text`
                cannot load text. An index that says that other weights made it is warned of, here and when
                it is searched.
        """
        index = retrieval.opened(index)
        retrieval.check_made_by(index, self)
        return retrieval.build_retriever(IndexQueryEncoder(self, index), index, text=text, num_results=num_results,
                                         text_field=self.text_field, device=device or self.device)

    # ---- identity ----------------------------------------------------------------------------------------------

    def copy(self) -> TasBalanced:
        """An encoder with weights of its own: keep one to compare before and after a fit."""
        self._check_at_rest(also_here=True)
        other = shallow(self)
        other._encoder, other._encoding_of, other._shared = copied(self.encoder), None, False
        return other

    def __copy__(self) -> TasBalanced:
        """One that shares weights, until either is trained."""
        return sharing(self)

    def __deepcopy__(self, memo: dict) -> TasBalanced:
        """One with weights and teachers of its own, and the same miner and corpus, which may have no copies."""
        other = memo[id(self)] = shallow(self)
        vars(other).update({name: copy.deepcopy(value, memo) for name, value in vars(self).items()
                            if name not in ('negatives', 'corpus', '_bare')})
        return other

    def __reduce__(self) -> tuple:
        return itself, (self._in_pickles,), {name: getattr(self, name) for name in _FOR_FIT}

    @property
    def _in_pickles(self) -> Bare:
        """This encoder in pickles of its stages: without miner and teachers, some of which cannot be pickled."""
        if self._bare is None or self._bare.encoder() is not self:   # but that of who this is a copy of
            self._bare = Bare(self, (*_FOR_FIT, '_bare'))
        return self._bare

    def apply_attributes(self, **attributes: Any) -> TasBalanced:
        """The same weights with other settings; called by `pt.inspect.transformer_apply_attributes`.

        Whichever of the two is trained first takes weights of its own.

        Raises:
            ValueError: There is no such setting, or `model_name` is that of other weights.
        """
        self._check_at_rest(also_here=True)
        return with_settings(self, attributes)

    def subtransformers(self) -> dict[str, pt.Transformer]:
        """None: teachers and miners take no part in `transform`."""
        return {}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TasBalanced):
            return NotImplemented
        # a directory may have been saved over between two loads
        return self._identity() == other._identity() and (
            self.model is other.model or self.weights_fingerprint == other.weights_fingerprint)

    def __hash__(self) -> int:
        return hash(self._identity())

    @property
    def weights_fingerprint(self) -> str:
        """A hash of the weights, as they were loaded or as :meth:`fit` left them."""
        if self._weights is None:
            self._weights = weights_fingerprint(self.encoder)
        return self._weights

    def _identity(self) -> tuple:
        return (self.model_name, self.max_length, self.batch_size, self.text_field, self.verbose, str(self.device),
                self.amp)

    def __repr__(self) -> str:
        return f'TasBalanced({self.model_name!r})'
