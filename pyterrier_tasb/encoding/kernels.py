"""Attention of each text to itself, for N texts that lie one after the other in T tokens: [T, H, d] → [T, H, d].

Each kernel gives the same numbers; which are there depends on the device, the precision and what is installed. Where
only the texts' first tokens are asked for ("firsts"), the queries are theirs alone: [N, H, d] → [N, H, d].
"""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from .batching import near_equal
from .dropout import dropout
from .transfer import moved

_HALF = (torch.bfloat16, torch.float16)
_GROUPS = {'cpu': 8}   # a call costs a CPU little, and a GPU, which takes 2, more than padding does


@dataclass(frozen=True)
class Group:
    """Texts of similar lengths, as a rectangle of n texts of L slots.

    Args:
        shape: (n, L).
        tokens: How many there are.
        slots: int64[tokens], where in the rectangle each token is; None where it is full.
        mask: bool[n, 1, 1, L], which slots have a token; None where all have.
    """
    shape: tuple[int, int]
    tokens: int
    slots: torch.Tensor | None
    mask: torch.Tensor | None

    @classmethod
    def of(cls, lengths: np.ndarray, device: torch.device) -> Group:
        """The group of texts of these ascending lengths."""
        shape, tokens = (len(lengths), int(lengths[-1])), int(lengths.sum())
        if lengths[0] == lengths[-1]:
            return cls(shape, tokens, None, None)
        mask = torch.arange(shape[1]) < torch.from_numpy(lengths)[:, None]
        return cls(shape, tokens, moved(mask.flatten().nonzero()[:, 0], device), moved(mask[:, None, None, :], device))

    @property
    def firsts(self) -> Group:
        """The first tokens of the same texts."""
        return Group((self.shape[0], 1), self.shape[0], None, None)

    def spread(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, H, d] → [n, H, L, d], with zeros for padding."""
        if self.slots is not None:
            x = x.new_zeros(self.shape[0] * self.shape[1], *x.shape[1:]).index_copy(0, self.slots, x)
        return x.unflatten(0, self.shape).transpose(1, 2)

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """[n, H, L, d] → [tokens, H, d], the opposite of :meth:`spread`."""
        x = x.transpose(1, 2).flatten(0, 1)
        return x if self.slots is None else x.index_select(0, self.slots)


@dataclass(frozen=True)
class StaticBounds:
    """Where texts lie that come later, read on the device, as a captured graph needs it.

    Args:
        bounds: int32[N + 1], where each text begins, and the end of the last.
        longest: Tokens that none has more of.
    """
    bounds: torch.Tensor
    longest: int

    def starts(self, tokens: int) -> torch.Tensor:
        """int64[N], the row of each text's first token among `tokens`; an empty text has any."""
        return self.bounds[:-1].long().clamp(max=tokens - 1)

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, share: float,
                 scale: float | None, reach: int | None, firsts: bool = False) -> torch.Tensor:
        """[T, H, d] → [T, H, d]; see :meth:`Packing.__call__`."""
        return _ragged(self, query, key, value, share, scale, reach, firsts)

    def joint(self, joint: torch.Tensor, *, share: float, scale: float | None, reach: int | None) -> torch.Tensor:
        """[T, 3, H, d], queries, keys and values, → [T, H, d]."""
        from . import ragged_attention
        return ragged_attention.joint_attention(joint, self.bounds, self.longest, share=share, scale=scale, reach=reach)


@dataclass(frozen=True)
class Packing:
    """Where the texts lie, and the kernels that may be used.

    Args:
        lengths: int64[N], tokens of each text, ascending.
        kernels: Names in `KERNELS`; the first that can do a call does it.
        device: Where the tokens are.
    """
    lengths: np.ndarray
    kernels: tuple[str, ...] = ('groups',)
    device: torch.device = torch.device('cpu')

    @cached_property
    def runs(self) -> list[Group]:
        """The runs of equally long texts."""
        return [Group.of(run, self.device) for run in np.split(self.lengths, np.flatnonzero(np.diff(self.lengths)) + 1)]

    @cached_property
    def groups(self) -> list[Group]:
        """Few groups of similar lengths."""
        most = _GROUPS.get(self.device.type, 2)
        return [Group.of(self.lengths[group], self.device) for group in near_equal(self.lengths, most)]

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return int(self.lengths[-1])

    @cached_property
    def bounds(self) -> torch.Tensor:
        """int32[N + 1], where each text begins, and the end."""
        return moved(np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int32), self.device)

    def starts(self, tokens: int) -> torch.Tensor:
        """int64[N], the row of each text's first token among `tokens`."""
        return self.bounds[:-1].long()

    @torch.compiler.disable   # which kernel it is depends on the call
    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, share: float,
                 scale: float | None, reach: int | None, firsts: bool = False) -> torch.Tensor:
        """[T, H, d] → [T, H, d].

        Args:
            query: [T, H, d]; [N, H, d] for `firsts`, and so is what comes out.
            key: [T, H, d].
            value: [T, H, d].
            share: Of the attention weights that dropout sets to 0.
            scale: Factor on the dot products; None takes 1/√d.
            reach: Tokens at least this far apart do not see each other; None has no limit.
            firsts: Whether only the texts' first tokens attend; they see all, whatever the reach.
        """
        kernels = (KERNELS[name] for name in self.kernels)
        kernel = next(some for some in kernels if self.longest <= some.longest and some.can(query, share))
        return kernel.run(self, query, key, value, share, scale, reach, firsts)

    def joint(self, joint: torch.Tensor, **options: Any) -> torch.Tensor:
        """[T, 3, H, d], queries, keys and values, → [T, H, d]."""
        return self(*joint.unbind(1), **options)


def window(length: int, reach: int | None, device: torch.device) -> torch.Tensor | None:
    """bool[L, L], which tokens are within reach of one another; None where all are."""
    if reach is None or length <= reach:
        return None
    at = torch.arange(length, device=device)
    return (at[:, None] - at[None, :]).abs() < reach


def dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, share: float,
          scale: float | None) -> torch.Tensor:
    """[n, H, L, d] → [n, H, L, d]."""
    if not share or query.device.type != 'cpu':
        return F.scaled_dot_product_attention(query, key, value, mask, share, scale=scale)
    # on a CPU, SDPA does the same with dropout, and slower
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-1, -2)
    if mask is not None:   # added, not filled in: then the gradient need not be masked
        scores += torch.zeros(mask.shape, dtype=scores.dtype).masked_fill_(~mask, -torch.inf)
    return dropout(scores.softmax(-1), share) @ value


def _dense_in(groups: list[Group], query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, share: float,
              scale: float | None, reach: int | None, firsts: bool = False) -> torch.Tensor:
    asked = [group.firsts for group in groups] if firsts else groups
    # split, not slices: its backward joins the pieces once, theirs would add T-sized zeros for each
    pieces = zip(*(x.split([group.tokens for group in some])
                   for x, some in ((query, asked), (key, groups), (value, groups))))
    outputs = []
    for group, of_group, (q, k, v) in zip(groups, asked, pieces):
        mask, near = group.mask, window(group.shape[1], None if firsts else reach, query.device)
        if mask is None:
            mask = near
        elif near is not None:   # padding far from all tokens sees itself: a softmax over nothing is NaN
            mask = mask & near | torch.eye(group.shape[1], dtype=torch.bool, device=query.device)
        outputs.append(of_group.gather(dense(of_group.spread(q), group.spread(k), group.spread(v), mask, share, scale)))
    return torch.cat(outputs)


def _by_runs(packing: Packing, *call: Any) -> torch.Tensor:
    """Dense attention for each run of equally long texts: no padding at all, many small calls."""
    return _dense_in(packing.runs, *call)


def _by_groups(packing: Packing, *call: Any) -> torch.Tensor:
    """Padding inside attention only, which is a small part of a model's work: few, large calls."""
    return _dense_in(packing.groups, *call)


def _ragged(packing: Packing | StaticBounds, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, share: float,
            scale: float | None, reach: int | None, firsts: bool = False) -> torch.Tensor:
    """Our own, for short texts."""
    from . import ragged_attention
    if firsts:
        return ragged_attention.of_firsts(query, key, value, packing.bounds, share=share, scale=scale)
    return ragged_attention.attention(query, key, value, packing.bounds, packing.longest, share=share, scale=scale,
                                      reach=reach)


def _queries(packing: Packing, firsts: bool) -> tuple[torch.Tensor, int]:
    """The bounds and the greatest length of what attends."""
    bounds = packing.bounds
    return (torch.arange(len(bounds), dtype=bounds.dtype, device=bounds.device), 1) if firsts else (bounds,
                                                                                                    packing.longest)


def _varlen(packing: Packing, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, share: float,
            scale: float | None, reach: int | None, firsts: bool = False) -> torch.Tensor:
    """PyTorch's own for texts of various lengths: what its `varlen_attn` calls, which has no dropout."""
    (bounds, longest), reach = _queries(packing, firsts), -1 if reach is None or firsts else reach - 1
    return torch.ops.aten._flash_attention_forward(
        query, key, value, bounds, packing.bounds, longest, packing.longest, share, False, False,
        scale=scale, window_size_left=reach, window_size_right=reach)[0]


def _flash(packing: Packing, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, share: float,
           scale: float | None, reach: int | None, firsts: bool = False) -> torch.Tensor:
    """The package flash-attn."""
    (bounds, longest), reach = _queries(packing, firsts), -1 if reach is None or firsts else reach - 1
    return _import('flash_attn').flash_attn_varlen_func(
        query, key, value, bounds, packing.bounds, longest, packing.longest, dropout_p=share, softmax_scale=scale,
        window_size=(reach, reach))


@lru_cache
def _import(name: str) -> object | None:
    try:
        return import_module(name)
    except Exception:   # what is installed and broken is not there either
        return None


def _half_on_gpu(x: torch.Tensor) -> bool:
    return x.device.type == 'cuda' and x.dtype in _HALF


def _can_ragged(x: torch.Tensor, share: float) -> bool:
    module = _half_on_gpu(x) and _import('pyterrier_tasb.encoding.ragged_attention')
    return bool(module and module.can(x))


@dataclass(frozen=True)
class Kernel:
    """A way to compute attention.

    Args:
        run: (packing, query, key, value, share dropped, scale, reach, whether of first tokens) → [T, H, d], or
            [N, H, d].
        can: (query, share dropped) → whether it can do this call.
        longest: Tokens of a text up to which it is the better one.
    """
    run: Callable[..., torch.Tensor]
    can: Callable[[torch.Tensor, float], bool]
    longest: float = math.inf


# In order of preference. On a CPU small calls are as good as large ones where PyTorch's fused kernel does them, which
# has no dropout there. Only the last does everything everywhere.
KERNELS = {
    'ragged': Kernel(_ragged, _can_ragged, longest=256),
    'varlen': Kernel(_varlen, lambda x, share: _half_on_gpu(x)),
    'flash': Kernel(_flash, lambda x, share: _half_on_gpu(x) and _import('flash_attn') is not None),
    'runs': Kernel(_by_runs, lambda x, share: x.device.type == 'cpu' and not share),
    'groups': Kernel(_by_groups, lambda x, share: True),
}
