"""Attention of each text to itself, for N texts that lie one after the other in T tokens: [T, H, d] → [T, H, d].

Each kernel gives the same numbers; which are there depends on the device, the precision and what is installed.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import import_module

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from .batching import near_equal

_HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Packing:
    """Where the texts lie, and the kernels that may be used.

    Args:
        lengths: int64[N], tokens of each text, ascending.
        kernels: Names in `KERNELS`; the first that can do a call does it.
    """
    lengths: np.ndarray
    kernels: tuple[str, ...] = ('runs',)

    @cached_property
    def runs(self) -> list[tuple[int, int]]:
        """(texts, tokens of each) of every run of equally long texts."""
        values, counts = np.unique(self.lengths, return_counts=True)
        return list(zip(counts.tolist(), values.tolist()))

    @cached_property
    def groups(self) -> list[tuple[torch.Tensor, int, torch.Tensor]]:
        """Per group of similar lengths: (slots int64[T'], tokens, mask bool[n, 1, 1, L]) of its padded rectangle."""
        made = []
        for group in near_equal(self.lengths, 2):
            lengths = torch.from_numpy(self.lengths[group])
            mask = torch.arange(int(lengths[-1])) < lengths[:, None]
            made.append((mask.flatten().nonzero()[:, 0], int(lengths.sum()), mask[:, None, None, :]))
        return made

    def bounds_on(self, device: torch.device) -> torch.Tensor:
        """`bounds` on a device, moved once for all layers."""
        moved = self.__dict__.setdefault('_bounds_on', {})
        if device not in moved:
            moved[device] = self.bounds.to(device)
        return moved[device]

    def groups_on(self, device: torch.device) -> list[tuple[torch.Tensor, int, torch.Tensor]]:
        """`groups` on a device, moved once for all layers."""
        moved = self.__dict__.setdefault('_groups_on', {})
        if device not in moved:
            moved[device] = [(slots.to(device), tokens, mask.to(device)) for slots, tokens, mask in self.groups]
        return moved[device]

    @cached_property
    def bounds(self) -> torch.Tensor:
        """int32[N + 1], where each text begins, and the end."""
        return torch.from_numpy(np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int32))

    def positions(self, first: int) -> torch.Tensor:
        """int64[T], each token's position in its text, counted from `first`."""
        ends = np.cumsum(self.lengths)
        return torch.from_numpy(np.arange(ends[-1]) - np.repeat(ends - self.lengths, self.lengths) + first)

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, dropout: float,
                 scale: float | None, reach: int | None) -> torch.Tensor:
        """[T, H, d] → [T, H, d].

        Args:
            query: [T, H, d].
            key: [T, H, d].
            value: [T, H, d].
            dropout: Share of attention weights dropped.
            scale: Factor on the dot products; None takes 1/√d.
            reach: Tokens at least this far apart do not see each other; None has no limit.
        """
        kernel = next(KERNELS[name] for name in self.kernels if KERNELS[name].can(query, dropout))
        return kernel.run(self, query, key, value, dropout, scale, reach)


def window(length: int, reach: int | None, device: torch.device) -> torch.Tensor | None:
    """bool[L, L], which tokens are within reach of one another; None where all are."""
    if reach is None or length <= reach:
        return None
    at = torch.arange(length, device=device)
    return (at[:, None] - at[None, :]).abs() < reach


def dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, dropout: float,
          scale: float | None) -> torch.Tensor:
    """[n, H, L, d] → [n, H, L, d]."""
    if not dropout or query.device.type != 'cpu':
        return F.scaled_dot_product_attention(query, key, value, mask, dropout, scale=scale)
    # on CPU, SDPA with dropout takes a slow road: a third more time than these four lines
    weights = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-1, -2)
    if mask is not None:
        weights = weights.masked_fill(~mask, -torch.inf)
    return F.dropout(weights.softmax(-1), dropout) @ value


def _by_runs(packing: Packing, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float,
             scale: float | None, reach: int | None) -> torch.Tensor:
    """Dense attention for each run of equally long texts."""
    sizes = [count * length for count, length in packing.runs]
    # split, not slices: its backward joins the pieces once, theirs would add T-sized zeros for each
    pieces = zip(*(x.split(sizes) for x in (query, key, value)))
    outputs = []
    for (count, length), qkv in zip(packing.runs, pieces):
        q, k, v = (x.unflatten(0, (count, length)).transpose(1, 2) for x in qkv)
        out = dense(q, k, v, window(length, reach, q.device), dropout, scale)
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)


def _by_groups(packing: Packing, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float,
               scale: float | None, reach: int | None) -> torch.Tensor:
    """Padding inside attention only, which is a small part of a model's work: few, large calls."""
    groups = packing.groups_on(query.device)
    sizes = [tokens for _, tokens, _ in groups]
    pieces = zip(*(x.split(sizes) for x in (query, key, value)))
    outputs = []
    for (slots, _, mask), qkv in zip(groups, pieces):
        n, length = mask.shape[0], mask.shape[3]
        near = window(length, reach, query.device)
        q, k, v = (x.new_zeros(n * length, *x.shape[1:]).index_copy(0, slots, x).unflatten(0, (n, length))
                   .transpose(1, 2) for x in qkv)
        if near is not None:   # padding far from all tokens sees itself: a softmax over nothing is NaN
            mask = mask & near | torch.eye(length, dtype=torch.bool, device=query.device)
        out = dense(q, k, v, mask, dropout, scale)
        outputs.append(out.transpose(1, 2).flatten(0, 1).index_select(0, slots))
    return torch.cat(outputs)


def _varlen(packing: Packing, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float,
            scale: float | None, reach: int | None) -> torch.Tensor:
    """PyTorch's own kernel for texts of various lengths; it has no dropout."""
    bounds, longest = packing.bounds_on(query.device), int(packing.lengths[-1])
    reach = -1 if reach is None else reach - 1
    return _import('torch.nn.attention.varlen').varlen_attn(
        query, key, value, bounds, bounds, longest, longest, scale=scale, window_size=(reach, reach))


def _flash(packing: Packing, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float,
           scale: float | None, reach: int | None) -> torch.Tensor:
    """The package flash-attn."""
    bounds, longest = packing.bounds_on(query.device), int(packing.lengths[-1])
    reach = -1 if reach is None else reach - 1
    return _import('flash_attn').flash_attn_varlen_func(
        query, key, value, bounds, bounds, longest, longest, dropout_p=dropout, softmax_scale=scale,
        window_size=(reach, reach))


@lru_cache
def _import(name: str) -> object | None:
    try:
        return import_module(name)
    except ImportError:
        return None


def _half_on_gpu(x: torch.Tensor) -> bool:
    return x.device.type == 'cuda' and x.dtype in _HALF


@dataclass(frozen=True)
class Kernel:
    """A way to compute attention.

    Args:
        run: (packing, query, key, value, dropout, scale, reach) → [T, H, d].
        can: (query, dropout) → whether it can do this call.
    """
    run: Callable[..., torch.Tensor]
    can: Callable[[torch.Tensor, float], bool]


# In order of preference: fused kernels, then few large calls on a GPU, then no padding at all on a CPU.
KERNELS = {
    'varlen': Kernel(_varlen, lambda x, dropout: not dropout and _half_on_gpu(x)
                     and hasattr(_import('torch.nn.attention.varlen'), 'varlen_attn')),
    'flash': Kernel(_flash, lambda x, dropout: _half_on_gpu(x) and _import('flash_attn') is not None),
    'groups': Kernel(_by_groups, lambda x, dropout: x.device.type != 'cpu'),
    'runs': Kernel(_by_runs, lambda x, dropout: True),
}
