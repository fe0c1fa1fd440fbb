"""Token ids of a whole collection on disk."""
from __future__ import annotations

import os

import numpy as np
from transformers import PreTrainedTokenizerBase

from .tokens import Tokens, tokenise


class TokenStore:
    """Tokens by row (in memory for now)."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    @classmethod
    def build(cls, path: str | os.PathLike, texts, tokenizer: PreTrainedTokenizerBase, max_length: int, *,  # noqa
              n_jobs: int = 1) -> TokenStore:
        return cls(tokenise(tokenizer, texts.take(np.arange(len(texts))), max_length))

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def lengths(self) -> np.ndarray:
        return self._tokens.lengths

    def take(self, rows: np.ndarray | None) -> Tokens:
        return self._tokens.take(rows)
