"""A Hugging Face encoder, its tokenizer and its pooling: texts to vectors, with gradients or without."""
from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyterrier as pt
import torch
import torch.nn.functional as F  # noqa: N812
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from . import attention
from .attention import Packing
from .batching import by_budget, near_equal
from .precision import autocast_dtype
from .token_store import TokenStore
from .tokens import Tokens, tokenise, tokenizer_fingerprint

_log = logging.getLogger('pyterrier_tasb')

POOLINGS = ('cls', 'mean')
STRATEGIES = ('auto', 'packed', 'sorted', 'padded')
_BATCH_TOKENS = {'cpu': 8192, 'cuda': 131072}


class Encoder(torch.nn.Module):
    """Texts to vectors.

    Texts go through the model without padding where the architecture is known to allow it and a check on this very
    model confirms it; else in groups of about equal length. Vectors are float32 and the same on every path.

    Args:
        model: The encoder.
        tokenizer: Its tokenizer.
        pooling: 'cls' takes the first token's last hidden state, 'mean' the mean over tokens.
        normalize: Whether vectors get unit length.
        query_max_length: Tokens of a query, special tokens included.
        doc_max_length: Tokens of a passage.
        strategy: 'packed' (no padding), 'sorted' (at most 8 groups of near equal length), 'padded' (all together), or
            'auto', the first of these that works.
        amp: 'bf16' or 'fp16' autocast, 'off', or 'auto': bf16 where the hardware computes with it.
        settings: Further numbers that belong to the vectors (`scale`), written and read with the directory.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, pooling: str = 'cls',
                 normalize: bool = False, query_max_length: int = 30, doc_max_length: int = 200,
                 strategy: str = 'auto', amp: str = 'auto', settings: dict[str, Any] | None = None) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f'pooling={pooling!r} is unknown: one of {", ".join(POOLINGS)}')
        if strategy not in STRATEGIES:
            raise ValueError(f'strategy={strategy!r} is unknown: one of {", ".join(STRATEGIES)}')
        self.model, self.tokenizer = model, tokenizer
        self.pooling, self.normalize, self.amp = pooling, normalize, amp
        self.settings = dict(settings or {})
        self.query_max_length = self._clamped(query_max_length, 'query_max_length')
        self.doc_max_length = self._clamped(doc_max_length, 'doc_max_length')
        self._wanted, self._strategy = strategy, None
        autocast_dtype(amp, self.device)
        if attention.is_packable(model.config):
            model.set_attn_implementation(attention.NAME)
        elif strategy == 'packed':
            raise ValueError(f'strategy="packed" is not known to be right for {model.config.model_type!r} models: '
                             'leave it at "auto"')

    @classmethod
    def load(cls, name_or_path: str | os.PathLike, *, pooling: str | None = None, normalize: bool | None = None,
             query_max_length: int | None = None, doc_max_length: int | None = None,
             device: str | torch.device | None = None, strategy: str = 'auto', amp: str = 'auto',
             trust_remote_code: bool = False) -> Encoder:
        """Load a Hugging Face or sentence-transformers model.

        Args:
            name_or_path: A directory, or a name on the model hub.
            pooling: 'cls' or 'mean'; None takes what the directory says, else 'cls'.
            normalize: Whether vectors get unit length; None takes what the directory says, else False.
            query_max_length: Tokens of a query; None takes what the directory says, else 30 (the paper).
            doc_max_length: Tokens of a passage; None takes what the directory says, else 200 (the paper).
            device: None takes a GPU if there is one.
            strategy: See the class.
            amp: See the class.
            trust_remote_code: Whether code that lies with the model may run.

        Raises:
            ValueError: It is no model that can be used; the message says what was looked for.
        """
        from .model_directory import load
        if device is None:
            device = 'cuda' if torch.cuda.is_available() else 'cpu'
        parts = load(name_or_path, trust_remote_code=trust_remote_code)
        given = {'pooling': pooling, 'normalize': normalize, 'query_max_length': query_max_length,
                 'doc_max_length': doc_max_length}
        given = {**parts.options, **{name: value for name, value in given.items() if value is not None}}
        encoder = cls(parts.model, parts.tokenizer, strategy=strategy, amp=amp, settings=parts.settings, **given)
        return encoder.to(device).eval()

    # what it is

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def dim(self) -> int:
        """Dimensions of a vector."""
        return self.model.config.hidden_size

    @property
    def tokenizer_fingerprint(self) -> str:
        """A hash of the tokenizer, equal for equal tokenizers."""
        return tokenizer_fingerprint(self.tokenizer)

    @property
    def strategy(self) -> str:
        """How texts go through the model: 'packed', 'sorted' or 'padded'."""
        if self._strategy is None:
            self._strategy = self._choose()
            _log.info('%s: %s forward passes on %s', type(self.model).__name__, self._strategy, self.device.type)
        return self._strategy

    def _choose(self) -> str:
        if self._wanted != 'auto':
            return self._wanted
        return 'packed' if attention.is_packable(self.model.config) else 'sorted'

    def _clamped(self, length: int, name: str) -> int:
        most = self.max_positions
        if length > most:
            warnings.warn(f'{name}={length}: the model has {most} positions, longer texts are cut there', stacklevel=3)
        return min(length, most)

    @property
    def max_positions(self) -> int:
        """Most tokens that the model can take."""
        config = self.model.config
        return getattr(config, 'max_position_embeddings', 10**9) - attention.first_position(config)

    def with_lengths(self, query_max_length: int, doc_max_length: int) -> Encoder:
        """The same weights, shared, with other lengths."""
        return Encoder(self.model, self.tokenizer, pooling=self.pooling, normalize=self.normalize,
                       query_max_length=query_max_length, doc_max_length=doc_max_length, strategy=self._wanted,
                       amp=self.amp, settings=self.settings).train(self.training)

    # texts to vectors

    def tokenise(self, texts: Sequence[str], side: str = 'doc') -> Tokens:
        """Tokens of texts, cut at the length of their side.

        Args:
            texts: N strings.
            side: 'query' or 'doc'.
        """
        if side not in ('query', 'doc'):
            raise ValueError(f"side={side!r} is neither 'query' nor 'doc'")
        return tokenise(self.tokenizer, texts, self.query_max_length if side == 'query' else self.doc_max_length)

    def forward(self, tokens: Tokens) -> torch.Tensor:
        """float32[N, D], the vectors of N texts in the order given."""
        if not len(tokens):
            return torch.zeros((0, self.dim), device=self.device)
        order, states = self._states(tokens)
        pooled = torch.cat([self._pool(part, lengths) for part, lengths in states])
        vectors = pooled[torch.from_numpy(np.argsort(order)).to(pooled.device)]
        return F.normalize(vectors, dim=1) if self.normalize else vectors

    def token_states(self, tokens: Tokens) -> tuple[torch.Tensor, np.ndarray]:
        """The last hidden states of all tokens, not pooled and without padding, in the order given.

        Returns:
            float32[T, D], and the offsets of the texts: int64[N + 1].
        """
        if not len(tokens):
            return torch.zeros((0, self.dim), device=self.device), tokens.offsets
        order, states = self._states(tokens)
        flat = torch.cat([part for part, _ in states]).float()
        # the sorted texts' tokens, found again in the given order
        lengths = tokens.lengths[order]
        start = np.empty(len(order), dtype=np.int64)
        start[order] = np.cumsum(lengths) - lengths
        at = np.arange(len(flat)) + np.repeat(start - tokens.offsets[:-1], tokens.lengths)
        return flat[torch.from_numpy(at).to(flat.device)], tokens.offsets

    def encode(self, tokens: Tokens | TokenStore, batch_tokens: int | None = None, *, out: np.ndarray | None = None,
               progress: str | None = None) -> np.ndarray:
        """Vectors without gradients, in batches of about equally long texts.

        Args:
            tokens: N texts, in memory or in a store.
            batch_tokens: Most tokens, padding included, in a forward pass; None takes 8,192, or 131,072 on a GPU.
            out: Where the vectors go, [N, D] (a memory map, for a corpus); None makes an array.
            progress: Label of a progress bar; None shows none.

        Returns:
            float32[N, D] in the order given, or `out`.
        """
        lengths = np.asarray(tokens.lengths)
        out = np.empty((len(lengths), self.dim), dtype=np.float32) if out is None else out
        if out.shape != (len(lengths), self.dim):
            raise ValueError(f'out= has shape {out.shape}, not {(len(lengths), self.dim)}')
        order = np.argsort(lengths, kind='stable')
        budget = batch_tokens or _BATCH_TOKENS.get(self.device.type, 8192)
        groups = by_budget(lengths[order], budget, padded=self.strategy == 'padded')
        training = self.training
        self.eval()
        try:
            with torch.inference_mode(), pt.tqdm(total=len(lengths), desc=progress, disable=progress is None) as bar:
                for group in reversed(groups):   # longest first: memory that does not suffice fails at once
                    rows = order[group]
                    out[rows] = self(tokens.take(rows)).cpu().numpy()
                    bar.update(len(rows))
        finally:
            self.train(training)
        return out

    def _states(self, tokens: Tokens) -> tuple[np.ndarray, list[tuple[torch.Tensor, np.ndarray]]]:
        """Texts in the order of their lengths: that order, and parts of (states[T', D], lengths)."""
        order = np.argsort(tokens.lengths, kind='stable')
        tokens = tokens.take(order)
        dtype = autocast_dtype(self.amp, self.device)
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            if self.strategy == 'packed':
                return order, [(self._packed(tokens), tokens.lengths)]
            groups = near_equal(tokens.lengths) if self.strategy == 'sorted' else [slice(0, len(tokens))]
            parts = [tokens.take(np.arange(len(tokens))[group]) for group in groups]
            return order, [(self._padded(part), part.lengths) for part in parts]

    def _packed(self, tokens: Tokens) -> torch.Tensor:
        packing = Packing(tokens.lengths)
        positions = packing.positions(attention.first_position(self.model.config))
        return self.model(input_ids=torch.from_numpy(tokens.ids)[None].to(self.device),
                          position_ids=positions[None].to(self.device), packing=packing).last_hidden_state[0]

    def _padded(self, tokens: Tokens) -> torch.Tensor:
        lengths = torch.from_numpy(tokens.lengths)
        mask = torch.arange(int(lengths.max()))[None, :] < lengths[:, None]
        ids = torch.full(mask.shape, self.tokenizer.pad_token_id)
        ids[mask] = torch.from_numpy(tokens.ids)
        mask = mask.to(self.device)
        states = self.model(input_ids=ids.to(self.device), attention_mask=mask.long()).last_hidden_state
        return states[mask]

    def _pool(self, states: torch.Tensor, lengths: np.ndarray) -> torch.Tensor:
        """[T, D] → float32[N, D]."""
        lengths = torch.from_numpy(lengths).to(states.device)
        if self.pooling == 'cls':
            return states[lengths.cumsum(0) - lengths].float()
        return torch.segment_reduce(states.float(), 'mean', lengths=lengths)
