"""Attention over texts that lie one after the other without padding, inside unmodified Hugging Face encoders.

`transformers.AttentionInterface` lets a model's attention be looked up by name. The one registered here does what
'sdpa' does, unless the call brings a `packing=`: then the single row of T tokens is N texts, which attend to
themselves only.
"""
from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = 'pyterrier_tasb'

# Encoders whose only look across tokens is attention and whose positions can be given, with the first position.
_FIRST_POSITION = {'bert': 0, 'distilbert': 0, 'electra': 0, 'modernbert': 0,
                   'roberta': 'pad', 'xlm-roberta': 'pad', 'camembert': 'pad'}


def is_packable(config: PretrainedConfig) -> bool:
    """Whether the architecture is known to give the same states packed and padded."""
    return config.model_type in _FIRST_POSITION and not getattr(config, 'is_decoder', False)


def first_position(config: PretrainedConfig) -> int:
    """The position id of a text's first token: RoBERTa counts from behind its padding id."""
    first = _FIRST_POSITION.get(config.model_type, 0)
    return config.pad_token_id + 1 if first == 'pad' else first


@dataclass(frozen=True)
class Packing:
    """Where texts of ascending lengths lie in a row of T tokens.

    Args:
        lengths: int64[N], ascending.
    """
    lengths: np.ndarray

    @cached_property
    def runs(self) -> list[tuple[int, int]]:
        """(texts, tokens of each) of every run of equally long texts."""
        values, counts = np.unique(self.lengths, return_counts=True)
        return list(zip(counts.tolist(), values.tolist()))

    def positions(self, first: int) -> torch.Tensor:
        """int64[T], each token's position in its text."""
        ends = np.cumsum(self.lengths)
        return torch.from_numpy(np.arange(ends[-1]) - np.repeat(ends - self.lengths, self.lengths) + first)


def _window(length: int, reach: int | None, device: torch.device) -> torch.Tensor | None:
    """bool[L, L] of the tokens within reach of one another; None where all are."""
    if reach is None or length <= reach:
        return None
    at = torch.arange(length, device=device)
    return (at[:, None] - at[None, :]).abs() < reach


def _by_runs(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packing: Packing, *, dropout: float,
             scaling: float | None, reach: int | None) -> torch.Tensor:
    """Dense attention for each run of equally long texts: [1, H, T, d] → [1, T, H, d]."""
    sizes = [count * length for count, length in packing.runs]
    heads, dim = query.shape[1], query.shape[3]
    outputs = []
    # split, and not slices, so that backward joins the pieces once instead of adding T-sized zeros for each
    parts = zip(*(x.transpose(1, 2)[0].split(sizes) for x in (query, key, value)))
    for (count, length), qkv in zip(packing.runs, parts):
        q, k, v = (x.reshape(count, length, heads, dim).transpose(1, 2) for x in qkv)   # [n, H, L, d]
        out = F.scaled_dot_product_attention(q, k, v, _window(length, reach, q.device), dropout, scale=scaling)
        outputs.append(out.transpose(1, 2).reshape(count * length, heads, dim))
    return torch.cat(outputs)[None]


def _attention(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
               attention_mask: torch.Tensor | None, dropout: float = 0.0, scaling: float | None = None,
               packing: Packing | None = None, sliding_window: int | None = None,
               **kwargs: Any) -> tuple[torch.Tensor, None]:
    if packing is None:
        if attention_mask is None:
            attention_mask = _window(query.shape[2], sliding_window, query.device)
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    return _by_runs(query, key, value, packing, dropout=dropout, scaling=scaling, reach=sliding_window), None


def _mask(*args: Any, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor | None:
    """No [T, T] mask is made where nothing is padded."""
    return None if attention_mask is None else sdpa_mask(*args, attention_mask=attention_mask, **kwargs)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)
