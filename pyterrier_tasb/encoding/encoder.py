"""A Hugging Face encoder, its tokenizer and its pooling: texts to vectors, with gradients or without."""
from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyterrier as pt
import torch
import torch.nn.functional as F  # noqa: N812
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .._files import fingerprint
from .._warn import warn
from . import attention, dropout, parity
from .batching import by_budget, equal, near_equal
from .kernels import KERNELS, Packing, StaticBounds
from .precision import autocast, autocast_dtype, in_own_precision, warn_of_emulation
from .tokens import Tokens, tokenise, tokenizer_fingerprint
from .transfer import moved

if TYPE_CHECKING:
    from .token_store import TokenStore

_log = logging.getLogger('pyterrier_tasb')

POOLINGS = ('cls', 'mean')
STRATEGIES = ('auto', 'packed', 'sorted', 'equal', 'padded')
_GROUPS = {'sorted': near_equal, 'equal': equal, 'padded': lambda lengths: [slice(0, len(lengths))]}
_BATCH_TOKENS = {'cpu': 8192, 'cuda': 131072}
_LONGEST_CAPTURED = 512   # tokens of a text; the kernel for it is made for short ones


def weights_fingerprint(module: torch.nn.Module) -> str:
    """A short hash of the names and values of a module's weights."""
    digest = hashlib.sha256()
    for name, weights in sorted(module.state_dict().items()):
        digest.update(name.encode() + weights.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class _Choice:
    """How texts go through a model on a device.

    Args:
        strategy: 'packed', 'sorted', 'equal' (texts of one length together) or 'padded'.
        kernels: Of attention, for 'packed'.
        firsts: Whether the last layer can be computed for first tokens only.
    """
    strategy: str
    kernels: tuple[str, ...] = ()
    firsts: bool = False


class Encoder(torch.nn.Module):
    """Texts to vectors.

    Texts go through the model without padding where the architecture is known to allow it and a check on this very
    model confirms it; else in groups of about equal length. Vectors are float32, and the same on every path.

    Args:
        model: The encoder.
        tokenizer: Its tokenizer.
        pooling: 'cls' takes the first token's last hidden state, 'mean' the mean over tokens.
        normalize: Whether vectors get unit length.
        query_max_length: Tokens of a query, special tokens included.
        doc_max_length: Tokens of a passage.
        strategy: 'packed' (no padding), 'sorted' (at most 8 groups of near equal length), 'equal' (a group for each
            length), 'padded' (all together), or 'auto', the first of these that is right for the model.
        amp: 'bf16' or 'fp16' autocast, 'off', or 'auto': bf16 where the hardware computes with it.
        settings: Further values that belong to the vectors (`scale`), written and read with the directory.

    Raises:
        ValueError: An option is unknown, or 'packed' is asked of an architecture that is not known to allow it.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, pooling: str = 'cls',
                 normalize: bool = False, query_max_length: int = 30, doc_max_length: int = 200,
                 strategy: str = 'auto', amp: str = 'auto', settings: dict[str, Any] | None = None) -> None:
        super().__init__()
        for name, value, known in (('pooling', pooling, POOLINGS), ('strategy', strategy, STRATEGIES)):
            if value not in known:
                raise ValueError(f'{name}={value!r} is unknown: one of {", ".join(known)}')
        self.model, self.tokenizer = model, tokenizer
        self.pooling, self.normalize, self.amp = pooling, bool(normalize), amp
        self.settings = dict(settings or {})
        self.directory: Path | None = None   # what it was loaded from
        self.query_max_length = self._length('query_max_length', query_max_length)
        self.doc_max_length = self._length('doc_max_length', doc_max_length)
        autocast_dtype(amp, self.device)
        self._wanted_strategy = strategy
        self._chosen: dict[tuple[str, str], _Choice] = {}   # by device and attention
        if attention.is_packable(model.config):
            model.set_attn_implementation(attention.NAME)
        elif strategy == 'packed':
            raise ValueError(f"strategy='packed' is not known to be right for {model.config.model_type!r} models: "
                             "leave it at 'auto'")
        dropout.use_in(model)
        if getattr(model, 'pooler', None) is not None:
            model.pooler.requires_grad_(False)   # not used here, and several processes wait for every gradient

    @classmethod
    @torch.inference_mode(False)   # what is made inside it can never be trained
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

        Returns:
            The encoder, in evaluation mode.

        Raises:
            ValueError: It is no model that can be used; the message says what was looked for.
        """
        from .model_directory import load
        parts = load(name_or_path, trust_remote_code=trust_remote_code)
        given = {'pooling': pooling, 'normalize': normalize, 'query_max_length': query_max_length,
                 'doc_max_length': doc_max_length}
        options = {**parts.options, **{name: value for name, value in given.items() if value is not None}}
        encoder = cls(parts.model, parts.tokenizer, strategy=strategy, amp=amp, settings=parts.settings, **options)
        encoder.directory = parts.path
        return encoder.to(device or ('cuda' if torch.cuda.is_available() else 'cpu')).eval()

    def view(self, *, query_max_length: int | None = None, doc_max_length: int | None = None,
             amp: str | None = None) -> Encoder:
        """The same weights, shared, with other lengths or another precision; None keeps what is."""
        options = dict(query_max_length=query_max_length, doc_max_length=doc_max_length, amp=amp)
        options = {name: getattr(self, name) if value is None else value for name, value in options.items()}
        chosen = self.model.config._attn_implementation   # which may be the user's choice
        other = Encoder(self.model, self.tokenizer, pooling=self.pooling, normalize=self.normalize,
                        strategy=self._wanted_strategy, settings=self.settings, **options)
        if self.model.config._attn_implementation != chosen:
            self.model.set_attn_implementation(chosen)
        other.training, other.directory = self.training, self.directory
        if other.amp == self.amp:
            other._chosen = self._chosen   # what was found right for the model need not be checked again
        return other

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
    def max_positions(self) -> int:
        """Most tokens that the model can take."""
        most = getattr(self.model.config, 'max_position_embeddings', 0)
        if most < 1:   # XLNet's -1, too, is no limit
            return 10**9
        padding = getattr(attention.position_embeddings(self.model), 'padding_idx', None)
        return most - max(self.first_position, 0 if padding is None else padding + 1)

    @property
    def tokenizer_fingerprint(self) -> str:
        """A hash of the tokenizer, equal for equal tokenizers."""
        return tokenizer_fingerprint(self.tokenizer)

    @property
    def fingerprint(self) -> str:
        """A hash of all that a passage's vector depends on beside its text."""
        return fingerprint(weights_fingerprint(self.model), self.tokenizer_fingerprint, self.pooling, self.normalize,
                           self.doc_max_length, autocast_dtype(self.amp, self.device))

    @property
    def strategy(self) -> str:
        """How texts go through the model on this device: 'packed', 'sorted', 'equal' or 'padded'."""
        return self._choice().strategy

    @property
    def captures(self) -> bool:
        """Whether :meth:`vectors_in` can be used here, and be captured in a CUDA graph: its kernel is there."""
        return 'ragged' in self._choice().kernels and self.longest <= _LONGEST_CAPTURED

    @property
    def longest(self) -> int:
        """Most tokens of a text of either side."""
        return max(self.query_max_length, self.doc_max_length)

    @property
    def first_position(self) -> int:
        """The position of a text's first token."""
        return attention.first_position(self.model.config)

    def _length(self, name: str, length: int) -> int:
        if isinstance(length, bool) or not isinstance(length, (int, np.integer)) or length < 3:
            raise ValueError(f'{name}={length!r}: give a whole number of tokens, at least 3 ([CLS], one word, [SEP])')
        if length > self.max_positions:
            warn(f'{name}={length} is more than the {self.max_positions} positions of the model: longer texts '
                 f'are cut at {self.max_positions} tokens')
        return min(int(length), self.max_positions)

    def _choice(self) -> _Choice:
        device = self.device.type
        key = device, self.model.config._attn_implementation   # which anyone may set, to look at attention weights
        if key not in self._chosen:
            warn_of_emulation(self.amp, self.device)
            choice = self._checked() if self._wanted_strategy in ('auto', 'packed') else _Choice(self._wanted_strategy)
            if self._wanted_strategy == 'packed' and not choice.kernels:
                raise ValueError("strategy='packed' gives this model other states than padding does: leave it at "
                                 "'auto'")
            _log.info('%s on %s: %s forward passes%s%s', type(self.model).__name__, device, choice.strategy,
                      f' ({", ".join(choice.kernels)})' if choice.kernels else '',
                      ', the last layer for first tokens only' if choice.firsts else '')
            self._chosen[key] = choice
        return self._chosen[key]

    @torch.inference_mode(False)   # gradients are compared as well, whoever asks first
    def _checked(self) -> _Choice:
        """Packed, with the kernels for this device whose states agree with the padded ones; sorted without any.

        In groups of equal length where padding changes states, as convolutions over tokens let it.
        """
        tokens = parity.probe(self.model, self.max_positions)
        if self.model.config._attn_implementation != attention.NAME:
            with parity.evaluating(self.model), in_own_precision(self.device):
                by_itself = parity.same_states(lambda: self._padded(tokens), lambda: torch.cat([
                    self._padded(tokens.take(row)) for row in np.arange(len(tokens))[:, None]]))
            return _Choice('sorted' if by_itself else 'equal')
        starts = moved(tokens.offsets[:-1], self.device)
        dtype = autocast_dtype(self.amp, self.device)
        heads = self.model.config.num_attention_heads
        example = torch.empty((0, heads, self.dim // heads), device=self.device, dtype=dtype or self.model.dtype)
        weights = parity.first_vector(self.model)

        def agrees(name: str) -> bool:
            return parity.agree(lambda: self._packed(tokens, (name,)), lambda: self._padded(tokens), weights, dtype)

        def agrees_on_firsts(name: str) -> bool:
            return parity.agree(lambda: self._packed(tokens, (name,), firsts=True),
                                lambda: self._padded(tokens)[starts], weights, dtype)
        with parity.evaluating(self.model), torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None,
                                                           cache_enabled=False):   # would lose gradients
            there = [name for name, kernel in KERNELS.items() if kernel.can(example, 0.0)]
            agreeing = tuple(name for name in there if agrees(name))
            for name in set(there) - set(agreeing):
                _log.info('attention kernel %r does not agree with padding: not used', name)
            if list(KERNELS)[-1] not in agreeing:   # it alone does every call
                return _Choice('sorted')
            return _Choice('packed', agreeing, firsts=self.pooling == 'cls' and attention.give_firsts(self.model)
                           and all(map(agrees_on_firsts, agreeing)))

    @torch.no_grad()
    def check_precision(self) -> None:
        """Whether the model computes in this precision: some mix numbers of two.

        Raises:
            ValueError: It does not.
        """
        dtype = autocast_dtype(self.amp, self.device)
        if dtype is None:
            return
        try:
            with parity.evaluating(self.model):
                self.token_states(parity.probe(self.model, self.max_positions))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ValueError(f"{type(self.model).__name__} does not compute in {dtype} ({error}): give amp='off', "
                             'which is float32') from error

    @torch.no_grad()
    def check_pooling(self) -> None:
        """Whether the token that is taken for a vector has seen the text: the first one of a causal model has not.

        Raises:
            ValueError: All vectors would be equal.
        """
        if self.pooling != 'cls':
            return
        first, *rest = parity.probe(self.model, self.max_positions).ids[-9:].tolist()
        with parity.evaluating(self.model):
            one, other = self._padded(Tokens.from_lists([[first, *rest[:4]], [first, *rest[4:]]]))[[0, 5]]
        if torch.allclose(one, other, rtol=1e-6, atol=1e-6):
            raise ValueError(f'the first token of {type(self.model).__name__} sees nothing of the text, so that all '
                             'vectors would be equal (is the model causal, a decoder?): give an encoder, or a '
                             'sentence-transformers directory with mean pooling')

    @property
    def _firsts(self) -> bool:
        """Whether the last layer is computed for first tokens only, which are the vectors."""
        return self.pooling == 'cls' and self._choice().firsts

    # texts to vectors

    def tokenise(self, texts: Sequence[str], side: str = 'doc') -> Tokens:
        """Tokens of texts, cut at the length of their side.

        Args:
            texts: N strings.
            side: 'query' or 'doc'.

        Raises:
            ValueError: Another side, or something among the texts is no string.
        """
        return tokenise(self.tokenizer, texts, self.max_length(side))

    def max_length(self, side: str) -> int:
        """Tokens of a text of a side, 'query' or 'doc'.

        Raises:
            ValueError: Another side.
        """
        if side not in ('query', 'doc'):
            raise ValueError(f"side={side!r} is neither 'query' nor 'doc'")
        return self.query_max_length if side == 'query' else self.doc_max_length

    def forward(self, tokens: Tokens) -> torch.Tensor:
        """float32[N, D], the vectors of N texts in the order given, with gradients."""
        if not len(tokens):
            return torch.zeros((0, self.dim), device=self.device)
        firsts = self._firsts
        order, parts = self._states(tokens, firsts=firsts)
        vectors = torch.cat([states.float() if firsts else self._pool(states, lengths) for states, lengths in parts])
        if self.normalize:
            vectors = F.normalize(vectors, dim=1)
        return vectors[moved(np.argsort(order), vectors.device)]

    def token_states(self, tokens: Tokens) -> tuple[torch.Tensor, np.ndarray]:
        """The last hidden states of all tokens, not pooled and without padding, in the order given.

        Returns:
            float32[T, D], with gradients, and the offsets of the texts: int64[N + 1].
        """
        if not len(tokens):
            return torch.zeros((0, self.dim), device=self.device), tokens.offsets
        order, parts = self._states(tokens)
        states = torch.cat([part for part, _ in parts]).float()
        lengths = tokens.lengths[order]
        starts = np.empty_like(order)
        starts[order] = np.cumsum(lengths) - lengths   # where each given text lies among the sorted ones
        at = np.arange(len(states)) + np.repeat(starts - tokens.offsets[:-1], tokens.lengths)
        return states[moved(at, states.device)], tokens.offsets

    def filled_states(self, tokens: Tokens, length: int, filler: int, *, attended: bool) -> torch.Tensor:
        """The last hidden states of texts that are filled up to one length with a token.

        Args:
            tokens: N texts, of at most `length` tokens.
            length: Tokens of each text, with what fills it.
            filler: The token that fills it.
            attended: Whether tokens attend to what fills their text. Where they do not, a text's own states are those
                of the text alone.

        Returns:
            float32[N * length, D], with gradients.
        """
        ids, own = self._side_by_side(tokens, length, filler)
        mask = torch.ones_like(own) if attended else own
        with autocast(self.amp, self.device):
            return self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state.flatten(0, 1).float()

    def vectors_in(self, ids: torch.Tensor, positions: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
        """Vectors of texts that are on the device already: nothing on the CPU depends on what they are.

        Args:
            ids: int64[T]. Tokens behind the last text are in none.
            positions: int64[T], counted from :attr:`first_position`.
            bounds: int32[N + 1], where each text begins, and the end of the last; a text may be empty, and has at most
                :attr:`longest` tokens, which is not looked at.

        Returns:
            float32[N, D], with gradients; an empty text's vector means nothing.
        """
        dtype = autocast_dtype(self.amp, self.device)
        packing = StaticBounds(bounds, self.longest)
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None, cache_enabled=False):
            states = self._row(ids, positions, packing, firsts=self._firsts)
        if self._firsts:
            vectors = states.float()
        elif self.pooling == 'cls':
            vectors = states[packing.starts(len(ids))].float()
        else:
            sums = torch.segment_reduce(states.float(), 'sum', offsets=bounds.long(), unsafe=True)
            vectors = sums / bounds.diff()[:, None].clamp(min=1)
        return F.normalize(vectors, dim=1) if self.normalize else vectors

    def encode(self, tokens: Tokens | TokenStore, batch_tokens: int | None = None, *, out: np.ndarray | None = None,
               progress: str | None = None) -> np.ndarray:
        """Vectors without gradients, in batches of about equally long texts.

        Args:
            tokens: N texts, in memory or in a store.
            batch_tokens: Most tokens in a forward pass; None takes 8,192, or 131,072 on a GPU.
            out: Where the vectors go, [N, D] (a memory map, for a corpus); None makes an array.
            progress: Label of a progress bar; None shows none.

        Returns:
            float32[N, D] in the order given, or `out`.

        Raises:
            ValueError: `out` has another shape.
        """
        lengths = np.asarray(tokens.lengths)
        shape = len(lengths), self.dim
        out = np.empty(shape, dtype=np.float32) if out is None else out
        if out.shape != shape:
            raise ValueError(f'out= has shape {out.shape}, the vectors have {shape}')
        if not len(lengths):
            return out
        order = np.argsort(lengths, kind='stable')
        budget = batch_tokens or _BATCH_TOKENS.get(self.device.type, 8192)
        groups = by_budget(lengths[order], budget, padded=self.strategy == 'padded')
        with parity.evaluating(self), torch.inference_mode(), \
                pt.tqdm(total=len(lengths), desc=progress, disable=progress is None) as bar:
            for group in reversed(groups):   # longest first: too little memory shows at once
                rows = np.sort(order[group])   # in the order of the disk
                out[rows] = self(tokens.take(rows)).cpu().numpy()
                bar.update(len(rows))
        return out

    def _states(self, tokens: Tokens, *,
                firsts: bool = False) -> tuple[np.ndarray, list[tuple[torch.Tensor, np.ndarray]]]:
        """Last hidden states of texts sorted by length: the order, and (states [T', D], lengths int64[n]) of parts.

        For `firsts`, the states are those of first tokens: [n, D].
        """
        order = np.argsort(tokens.lengths, kind='stable')
        tokens = tokens.take(order)
        choice = self._choice()
        with autocast(self.amp, self.device):
            if choice.strategy == 'packed':
                return order, [(self._packed(tokens, choice.kernels, firsts=firsts), tokens.lengths)]
            groups = _GROUPS[choice.strategy](tokens.lengths)
            parts = [tokens.take(np.arange(group.start, group.stop)) for group in groups]
            return order, [(self._padded(part), part.lengths) for part in parts]

    def _packed(self, tokens: Tokens, kernels: tuple[str, ...], *, firsts: bool = False) -> torch.Tensor:
        """All texts in one row: [T, D], or [N, D] for `firsts`."""
        return self._row(moved(tokens.ids, self.device), moved(tokens.positions(self.first_position), self.device),
                         Packing(tokens.lengths, kernels, self.device), firsts=firsts)

    def _row(self, ids: torch.Tensor, positions: torch.Tensor, packing: Packing | StaticBounds, *,
             firsts: bool) -> torch.Tensor:
        """[T] → [T, D], or [N, D] for `firsts`."""
        return self.model(input_ids=ids[None], position_ids=positions[None], packing=packing,
                          **{'first_only': True} if firsts else {}).last_hidden_state[0]

    def _padded(self, tokens: Tokens) -> torch.Tensor:
        """[T, D], the states of the tokens that are no padding."""
        ids, mask = self._side_by_side(tokens, int(tokens.lengths.max()), self.tokenizer.pad_token_id or 0)
        return self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state[mask]

    def _side_by_side(self, tokens: Tokens, length: int, filler: int) -> tuple[torch.Tensor, torch.Tensor]:
        """int64[N, length], texts filled up with a token, and bool[N, length], what is their own."""
        own = torch.arange(length) < torch.from_numpy(tokens.lengths)[:, None]
        ids = torch.full(own.shape, filler)
        ids[own] = torch.from_numpy(tokens.ids)
        return ids.to(self.device), own.to(self.device)

    def _pool(self, states: torch.Tensor, lengths: np.ndarray) -> torch.Tensor:
        """[T, D] → float32[N, D]."""
        if self.pooling == 'cls':
            return states[moved(np.cumsum(lengths) - lengths, states.device)].float()
        return torch.segment_reduce(states.float(), 'mean', lengths=moved(lengths, states.device))
