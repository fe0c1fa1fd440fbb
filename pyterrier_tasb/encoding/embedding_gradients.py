"""Gradients of embeddings whose ids were sorted beforehand, for GPUs: each row is added up once, in the order given.

PyTorch sorts ids on the device, in a dozen launches, and that for every embedding.
"""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
import triton
import triton.language as tl

ROWS, COLUMNS = 32, 128   # of a program's tile


@triton.jit
def _sums(grad, ids, order, bounds, found, width, padding,  # noqa: ANN001
          ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # noqa: N803
    """The sum of the gradients of one id's places; a program for (segment, block of columns)."""
    segment, columns = tl.program_id(0), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    first, last = tl.load(bounds + segment), tl.load(bounds + segment + 1)
    if first < last:
        row = tl.load(ids + tl.load(order + first))
        if row != padding:
            total = tl.zeros([COLUMNS], tl.float32)
            for start in range(first, last, ROWS):
                at = start + tl.arange(0, ROWS)
                places = tl.load(order + at, mask=at < last, other=0).to(tl.int64)
                total += tl.sum(tl.load(grad + places[:, None] * width + columns[None, :],
                                        mask=(at < last)[:, None] & (columns < width)[None, :], other=0.0), 0)
            tl.store(found + row.to(tl.int64) * width + columns, total, mask=columns < width)


class _Lookup(torch.autograd.Function):
    """`F.embedding`, with its gradient left where it is wanted."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, ids: torch.Tensor, order: torch.Tensor, bounds: torch.Tensor,
                found: torch.Tensor, padding: int) -> torch.Tensor:
        ctx.save_for_backward(ids, order, bounds)
        ctx.found, ctx.padding = found, padding
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (ids, order, bounds), found = ctx.saved_tensors, ctx.found.zero_()
        width = grad.shape[-1]
        with torch.cuda.device_of(grad):   # Triton launches on the thread's device, wherever the tensors are
            _sums[len(bounds) - 1, triton.cdiv(width, COLUMNS)](
                grad.contiguous(), ids, order, bounds, found, width, ctx.padding, ROWS=ROWS, COLUMNS=COLUMNS)
        return found, None, None, None, None, None


def can(module: torch.nn.Module | None) -> bool:
    """Whether a module's gradients can be found so: a plain embedding that is trained."""
    return (type(module) is torch.nn.Embedding and module.weight.requires_grad and module.weight.dtype == torch.float32
            and module.max_norm is None and not module.scale_grad_by_freq and not module.sparse)


@contextmanager
def used(module: torch.nn.Embedding, order: torch.Tensor, bounds: torch.Tensor, found: torch.Tensor) -> Iterator[None]:
    """The module's gradient is written into `found`, and that is what autograd gives.

    Args:
        module: One that :func:`can`.
        order: int32[T], the places of its ids, sorted by id.
        bounds: int32[T + 1], where each id begins in `order`, and the end; empty segments are none.
        found: float32, of the weights' shape.
    """
    padding = -1 if module.padding_idx is None else module.padding_idx
    module.forward = lambda ids: _Lookup.apply(module.weight, ids, order, bounds, found, padding)
    try:
        yield
    finally:
        del module.forward
