"""Token ids of many texts in two flat arrays."""
from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from .._files import fingerprint
from .._warn import warn
from ..documents import utf8

if TYPE_CHECKING:
    import tokenizers
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Tokens:
    """Token ids of N texts, special tokens included, without padding.

    Args:
        ids: int64[T], the texts one after the other.
        offsets: int64[N + 1]; text i is `ids[offsets[i]:offsets[i + 1]]`.
    """
    ids: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """int64[N], tokens in each text."""
        return np.diff(self.offsets)

    def positions(self, first: int) -> np.ndarray:
        """int64[T], each token's position in its text, counted from `first`.

        Where that is not 0 it follows the padding token's id, and a text's own padding tokens are not counted: they all
        have that id for a position, as in RoBERTa.
        """
        if not first:
            return np.arange(len(self.ids)) - np.repeat(self.offsets[:-1], self.lengths)
        counted = self.ids != first - 1
        before = np.concatenate([[0], np.cumsum(counted)])
        return first - 1 + counted * (before[1:] - np.repeat(before[self.offsets[:-1]], self.lengths))

    def take(self, rows: np.ndarray | None) -> Tokens:
        """The texts of these rows, in this order; None takes all."""
        return self if rows is None else gather(self.ids, self.offsets, rows)

    def followed_by(self, ids: Sequence[int]) -> Tokens:
        """Each text with the same further tokens at its end."""
        if not len(ids) or not len(self):
            return self
        more = np.tile(np.asarray(ids, dtype=np.int64), len(self))
        ends = np.repeat(self.offsets[1:], len(ids))
        return Tokens(np.insert(self.ids, ends, more), self.offsets + len(ids) * np.arange(len(self) + 1))

    def with_second(self, id: int) -> Tokens:
        """Each text with a further token behind its first one."""
        return Tokens(np.insert(self.ids, self.offsets[:-1] + 1, id), self.offsets + np.arange(len(self) + 1))

    @classmethod
    def from_lists(cls, lists: Sequence[Sequence[int]]) -> Tokens:
        """One list of ids a text."""
        offsets = np.zeros(len(lists) + 1, dtype=np.int64)
        np.cumsum([len(ids) for ids in lists], out=offsets[1:])
        ids = np.fromiter(chain.from_iterable(lists), dtype=np.int64, count=offsets[-1])
        return cls(ids, offsets)

    @staticmethod
    def concat(parts: Sequence[Tokens]) -> Tokens:
        """The texts of all parts, one part after the other."""
        offsets = np.zeros(sum(map(len, parts)) + 1, dtype=np.int64)
        if parts:
            np.cumsum(np.concatenate([part.lengths for part in parts]), out=offsets[1:])
        ids = [part.ids for part in parts] or [np.empty(0, dtype=np.int64)]
        return Tokens(np.concatenate(ids), offsets)


def gather(ids: np.ndarray, offsets: np.ndarray, rows: np.ndarray) -> Tokens:
    """The texts of `rows` out of flat arrays, which may be memory maps."""
    rows = np.asarray(rows, dtype=np.int64)
    starts = np.asarray(offsets[rows], dtype=np.int64)
    lengths = np.asarray(offsets[rows + 1], dtype=np.int64) - starts
    taken = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(lengths, out=taken[1:])
    at = np.arange(taken[-1], dtype=np.int64) + np.repeat(starts - taken[:-1], lengths)
    return Tokens(np.asarray(ids[at], dtype=np.int64), taken)


# what slow tokenizers are told apart by: cases, accents, scripts, punctuation, numbers, white space
_SAMPLES = ('The quick Brown fox JUMPS', 'Ünïcödé naïve façade', '日本語の文章 東京', 'Москва Αθήνα',
            '[MASK] <pad> </s>', "don't; well-known, e.g. 3.14!", '  two\tspaces\n1234567890', 'ﬁ ½ ①')
_ENGINES: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
_CHECKED: weakref.WeakSet = weakref.WeakSet()


def _engine(tokenizer: PreTrainedTokenizerBase, max_length: int) -> tokenizers.Tokenizer:
    """A copy of a fast tokenizer's engine with its truncation set: calls share no state, so threads may call."""
    engines = _ENGINES.setdefault(tokenizer, {})
    key = max_length, len(tokenizer), tokenizer.truncation_side
    if key not in engines:
        engine = _plain_engine(tokenizer)
        engine.enable_truncation(max_length, direction=tokenizer.truncation_side)
        engines[key] = engine
    return engines[key]


def _plain_engine(tokenizer: PreTrainedTokenizerBase) -> tokenizers.Tokenizer:
    engine = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    engine.no_padding()
    engine.no_truncation()
    return engine


def tokenise(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> Tokens:
    """Tokenise texts, with special tokens, cut at `max_length` tokens.

    Warns, once for a tokenizer, when more than half of a sample of tokens is unknown to it.

    Raises:
        ValueError: Something among the texts is no string, or a text has no tokens at all.
    """
    texts = list(texts)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f'text {i} of {len(texts)} is no string but {type(text).__name__} ({text!r:.60}): drop '
                             'it, or put an empty string in its place')
    if not texts:
        return Tokens.from_lists([])
    tokens = Tokens.from_lists(_ids(tokenizer, texts, max_length))
    shortest = int(np.argmin(tokens.lengths))
    if tokens.lengths[shortest] == 0:
        raise ValueError(f'text {shortest} ({texts[shortest]!r:.60}) has no tokens, not even special ones: this '
                         'tokenizer is not one of an encoder')
    _check_known(tokenizer, tokens)
    return tokens


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], max_length: int) -> list[list[int]]:
    if not tokenizer.is_fast:
        return tokenizer(texts, truncation=True, max_length=max_length)['input_ids']
    engine = _engine(tokenizer, max_length)
    try:
        return [encoding.ids for encoding in engine.encode_batch_fast(texts)]
    except (TypeError, UnicodeEncodeError):   # half of a surrogate pair, which utf-8 cannot write
        texts = [utf8(text) for text in texts]
        return [encoding.ids for encoding in engine.encode_batch_fast(texts)]


def _check_known(tokenizer: PreTrainedTokenizerBase, tokens: Tokens) -> None:
    """Say so when the texts are not in the tokenizer's vocabulary; a vocabulary that failed to load looks like this."""
    if tokenizer in _CHECKED or tokenizer.unk_token_id is None:
        return
    sample = tokens.ids[:10_000]
    sample = sample[~np.isin(sample, [tokenizer.cls_token_id, tokenizer.sep_token_id])]
    if len(sample) < 20:
        return
    _CHECKED.add(tokenizer)
    unknown = float((sample == tokenizer.unk_token_id).mean())
    if unknown > .5:
        warn(f'{unknown:.0%} of {len(sample):,} tokens are {tokenizer.unk_token} to this tokenizer, whose '
             f'vocabulary has {len(tokenizer):,} entries: texts become alike. Is it the right tokenizer, and '
             'was its vocabulary read?')


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of what the tokenizer makes of a text: equal for equal tokenizers, wherever they were loaded from."""
    if not tokenizer.is_fast:
        # its options are no help: they say as well how it was loaded
        vocabulary = tokenizer.get_vocab()
        own = ' '.join(sorted(vocabulary)[::max(1, len(vocabulary) // 100)])
        made = [tokenizer(text)['input_ids'] for text in (*_SAMPLES, own, own.swapcase())]
        return fingerprint(type(tokenizer).__name__, vocabulary, tokenizer.special_tokens_map,
                           tokenizer.truncation_side, made)
    return fingerprint(_plain_engine(tokenizer).to_str(), tokenizer.truncation_side)
