"""What ColBERT does to texts: marker tokens, queries filled up with [MASK], passages scored without punctuation."""
from __future__ import annotations

import string
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ..encoding import Encoder, TokenRows, Tokens, TokenStore
from ..encoding.transfer import moved

# colbert-ai's names, and what it takes where a checkpoint does not say
_SETTINGS = {'query_token_id': '[unused0]', 'doc_token_id': '[unused1]', 'mask_punctuation': True,
             'attend_to_mask_tokens': False, 'interaction': 'colbert'}
_CHUNK = 20_000   # texts whose tokens are looked at together


class Marking:
    """How a checkpoint of colbert-ai reads texts, token for token.

    A query is [CLS], its marker, words and [SEP], filled up to its most tokens with [MASK]; all of these are scored. A
    passage is [CLS], its marker, words and [SEP]; punctuation is attended to, and not scored.

    Args:
        tokenizer: The checkpoint's.
        metadata: Its settings, under colbert-ai's names.

    Raises:
        ValueError: The tokenizer lacks one of these tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, metadata: dict[str, Any]) -> None:
        self.settings = {name: metadata.get(name, default) for name, default in _SETTINGS.items()}
        self._ids = {side: tokenizer.convert_tokens_to_ids(self.settings[f'{side}_token_id'])
                     for side in ('query', 'doc')}
        self._mask, self._pad = tokenizer.mask_token_id, tokenizer.pad_token_id
        if None in (*self._ids.values(), self._mask) or tokenizer.unk_token_id in self._ids.values():
            raise ValueError(f'the checkpoint\'s tokenizer lacks [MASK] or a marker token of its {self}')
        symbols = string.punctuation if self.settings['mask_punctuation'] else ''
        # of a symbol that is several tokens the first one; a symbol that is unknown leaves out all that is unknown
        first = [tokenizer.encode(symbol, add_special_tokens=False)[:1] for symbol in symbols]
        self._unscored = np.unique([id for ids in first for id in ids] + [-1 if self._pad is None else self._pad])

    def __repr__(self) -> str:
        return f'ColBERT({", ".join(f"{name}={value!r}" for name, value in self.settings.items())})'

    def marked(self, tokens: Tokens, side: str) -> Tokens:
        """Texts of a side, each with its marker behind the first token."""
        tokens = tokens.with_second(self._ids[side])
        if side == 'query':   # a padding token that a query spells out is one more [MASK]
            tokens = Tokens(np.where(tokens.ids == self._pad, self._mask, tokens.ids), tokens.offsets)
        return tokens

    def states(self, encoder: Encoder, tokens: Tokens, n_queries: int) -> tuple[torch.Tensor, np.ndarray]:
        """States of the tokens that are scored, and how many each text has.

        Args:
            encoder: The encoder.
            tokens: Marked texts, queries first.
            n_queries: How many of them are queries.
        """
        queries, docs = (tokens.take(rows) for rows in np.split(np.arange(len(tokens)), [n_queries]))
        states, _ = encoder.token_states(docs)
        states = states[moved(np.flatnonzero(self._scored(docs)), states.device)]
        length = encoder.query_max_length
        if n_queries:
            attended = self.settings['attend_to_mask_tokens']
            states = torch.cat([encoder.filled_states(queries, length, self._mask, attended=attended), states])
        return states, np.concatenate([np.full(n_queries, length), self.lengths(docs)])

    def lengths(self, docs: Tokens) -> np.ndarray:
        """int64[N], how many tokens of each passage are scored."""
        before = np.concatenate([[0], np.cumsum(self._scored(docs))])
        return np.diff(before[docs.offsets])

    def _scored(self, docs: Tokens) -> np.ndarray:
        return ~np.isin(docs.ids, self._unscored)


class MarkedTokens:
    """Tokens by row, marked as they are taken: what is kept on disk serves encoders without markers as well.

    Args:
        tokens: Tokens without markers.
        marking: Marks them.
        side: 'query' or 'doc'.
        query_max_length: Tokens of a query.
    """

    def __init__(self, tokens: TokenStore | TokenRows, marking: Marking, side: str, query_max_length: int) -> None:
        self.tokens, self.marking, self.side, self.query_max_length = tokens, marking, side, query_max_length

    @property
    def lengths(self) -> np.ndarray:
        """int64[N], how many tokens of each text are scored."""
        if self.side == 'query':
            return np.full(len(self.tokens), self.query_max_length)
        rows = np.arange(len(self.tokens))
        return np.concatenate([self.marking.lengths(self.take(some))
                               for some in np.split(rows, range(_CHUNK, len(rows), _CHUNK))])

    def take(self, rows: np.ndarray) -> Tokens:
        """The texts of these rows, in this order."""
        return self.marking.marked(self.tokens.take(rows), self.side)
