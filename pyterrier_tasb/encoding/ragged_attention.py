"""Attention within short texts that lie one after the other, for GPUs: Triton kernels.

Libraries' kernels work in tiles of 128 tokens, more than twice the mean text of a training step; these take smaller
ones. A program has a block of one text's tokens and one head. The backward pass computes softmaxes again from their
sums (Dao 2023, "FlashAttention-2", has the formulas), once for the gradients of its queries and once for those of its
keys and values, so that nothing is added up in an order that varies. Dropout is a hash of seed, query token, key token
and head.
"""
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

_LOG2_E = 1.4426950408889634
_FAR = 2**30   # a reach that no text is longer than
BLOCK = 32   # tokens
WARPS = 4


@triton.jit
def _mixed(x):  # noqa: ANN001, ANN202
    """uint32 → uint32, each bit of which depends on all: the end of MurmurHash3 (Appleby)."""
    x ^= x >> 16
    x *= 0x85EBCA6B
    x ^= x >> 13
    x *= 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit
def _kept(seed, query, key, head, heads, dropped):  # noqa: ANN001, ANN202
    """bool, in the common shape of the rows `query` and `key`: which weights dropout leaves."""
    of_query = _mixed((query * heads + head).to(tl.uint32) ^ seed.to(tl.uint32))
    bits = _mixed(of_query + key.to(tl.uint32) * 0x9E3779B9)
    return (bits >> 1).to(tl.int32) >= dropped


@triton.jit
def _similarity(query, key, rows, cols, last, scale, reach):  # noqa: ANN001, ANN202
    """[rows, cols], in the unit of exp2; very low where there is no such key, or it is out of reach."""
    seen = (cols < last) & (tl.abs(rows - cols) < reach)
    return tl.where(seen, tl.dot(query, key) * scale, -1e30)


@triton.jit
def _within(first, last, begin, reach, BLOCK: tl.constexpr):  # noqa: ANN001, ANN202, N803
    """Where the blocks of a text that a block reaches begin and end."""
    low = first + tl.maximum(begin - first - reach, 0) // BLOCK * BLOCK
    return low, tl.minimum(last, begin + BLOCK + reach)


@triton.jit
def _tile(tensor, rows, last, head, heads, DIM: tl.constexpr):  # noqa: ANN001, ANN202, N803
    """[rows, DIM] of one head; zeros where the text has ended."""
    at = (rows.to(tl.int64)[:, None] * heads + head) * DIM + tl.arange(0, DIM)[None, :]
    return tl.load(tensor + at, mask=rows[:, None] < last, other=0.0)


@triton.jit
def _store(tensor, values, rows, last, head, heads, DIM: tl.constexpr):  # noqa: ANN001, ANN202, N803
    at = (rows.to(tl.int64)[:, None] * heads + head) * DIM + tl.arange(0, DIM)[None, :]
    tl.store(tensor + at, values.to(tensor.dtype.element_ty), mask=rows[:, None] < last)


@triton.jit
def _forward(query, key, value, out, norms, bounds, seeds, texts, tokens, heads, scale, reach,  # noqa: ANN001, ANN202
             dropped, undropped,  # noqa: ANN001
             DIM: tl.constexpr, BLOCK: tl.constexpr, DROP: tl.constexpr):  # noqa: N803
    text, block, head = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first, steps = tl.load(bounds + text), tl.arange(0, BLOCK)
    begin = first + block * BLOCK
    if text == texts:   # behind the last text: what is in none attends to nothing
        for start in range(begin, tokens, tl.num_programs(1) * BLOCK):
            _store(out, tl.zeros([BLOCK, DIM], tl.float32), start + steps, tokens, head, heads, DIM)
    else:
        last = tl.load(bounds + text + 1)
        if begin < last:
            seed, rows = tl.load(seeds), begin + steps
            q = _tile(query, rows, last, head, heads, DIM)
            highest = tl.full([BLOCK], -1e30, tl.float32)
            total = tl.zeros([BLOCK], tl.float32)
            found = tl.zeros([BLOCK, DIM], tl.float32)
            low, high = _within(first, last, begin, reach, BLOCK)
            for start in range(low, high, BLOCK):
                cols = start + steps
                k = _tile(key, cols, last, head, heads, DIM)
                v = _tile(value, cols, last, head, heads, DIM)
                s = _similarity(q, tl.trans(k), rows[:, None], cols[None, :], last, scale, reach)
                now = tl.maximum(highest, tl.max(s, 1))
                p, before = tl.exp2(s - now[:, None]), tl.exp2(highest - now)
                total = total * before + tl.sum(p, 1)
                if DROP:
                    p = tl.where(_kept(seed, rows[:, None], cols[None, :], head, heads, dropped), p, 0.0)
                found = found * before[:, None] + tl.dot(p.to(v.dtype), v)
                highest = now
            _store(out, found * (undropped / total)[:, None], rows, last, head, heads, DIM)
            tl.store(norms + rows * heads + head, highest + tl.log2(total), mask=rows < last)


@triton.jit
def _backward(query, key, value, out, grad, norms, of_query, of_key, of_value, bounds, seeds,  # noqa: ANN001, ANN202
              texts, tokens, heads, scale, reach, dropped, undropped, factor,  # noqa: ANN001
              DIM: tl.constexpr, BLOCK: tl.constexpr, DROP: tl.constexpr):  # noqa: N803
    text, block, head = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first, steps = tl.load(bounds + text), tl.arange(0, BLOCK)
    begin = first + block * BLOCK
    if text == texts:
        for start in range(begin, tokens, tl.num_programs(1) * BLOCK):
            zeros = tl.zeros([BLOCK, DIM], tl.float32)
            _store(of_query, zeros, start + steps, tokens, head, heads, DIM)
            _store(of_key, zeros, start + steps, tokens, head, heads, DIM)
            _store(of_value, zeros, start + steps, tokens, head, heads, DIM)
    else:
        last = tl.load(bounds + text + 1)
        if begin < last:
            seed, mine = tl.load(seeds), begin + steps
            q = _tile(query, mine, last, head, heads, DIM)
            k = _tile(key, mine, last, head, heads, DIM)
            v = _tile(value, mine, last, head, heads, DIM)
            g = _tile(grad, mine, last, head, heads, DIM)
            delta = tl.sum(_tile(out, mine, last, head, heads, DIM).to(tl.float32) * g.to(tl.float32), 1)
            norm = tl.load(norms + mine * heads + head, mask=mine < last, other=0.0)
            found_query = tl.zeros([BLOCK, DIM], tl.float32)
            found_key = tl.zeros([BLOCK, DIM], tl.float32)
            found_value = tl.zeros([BLOCK, DIM], tl.float32)
            low, high = _within(first, last, begin, reach, BLOCK)
            for start in range(low, high, BLOCK):
                others = start + steps
                # my queries, the other tokens' keys
                k2 = _tile(key, others, last, head, heads, DIM)
                v2 = _tile(value, others, last, head, heads, DIM)
                s = _similarity(q, tl.trans(k2), mine[:, None], others[None, :], last, scale, reach)
                p, of_p = tl.exp2(s - norm[:, None]), tl.dot(g, tl.trans(v2))
                if DROP:
                    kept = _kept(seed, mine[:, None], others[None, :], head, heads, dropped)
                    of_p = tl.where(kept, of_p * undropped, 0.0)
                found_query += tl.dot((p * (of_p - delta[:, None])).to(k2.dtype), k2)
                # my keys, the other tokens' queries: one that is not there has no gradient, and so gives none
                q2 = _tile(query, others, last, head, heads, DIM)
                g2 = _tile(grad, others, last, head, heads, DIM)
                o2 = _tile(out, others, last, head, heads, DIM)
                delta2 = tl.sum(o2.to(tl.float32) * g2.to(tl.float32), 1)
                norm2 = tl.load(norms + others * heads + head, mask=others < last, other=0.0)
                s = _similarity(k, tl.trans(q2), mine[:, None], others[None, :], last, scale, reach)
                p, of_p = tl.exp2(s - norm2[None, :]), tl.dot(v, tl.trans(g2))
                kept_p = p
                if DROP:
                    kept = _kept(seed, others[None, :], mine[:, None], head, heads, dropped)
                    kept_p = tl.where(kept, p * undropped, 0.0)
                    of_p = tl.where(kept, of_p * undropped, 0.0)
                found_value += tl.dot(kept_p.to(g2.dtype), g2)
                found_key += tl.dot((p * (of_p - delta2[None, :])).to(q2.dtype), q2)
            _store(of_query, found_query * factor, mine, last, head, heads, DIM)
            _store(of_key, found_key * factor, mine, last, head, heads, DIM)
            _store(of_value, found_value, mine, last, head, heads, DIM)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,  # noqa: ANN401
                bounds: torch.Tensor, longest: int, share: float, scale: float, reach: int) -> torch.Tensor:
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        tokens, heads, dim = query.shape
        texts = len(bounds) - 1
        ctx.grid = texts + 1, triton.cdiv(longest, BLOCK), heads
        # drawn on the device, so that a captured graph draws anew each time
        seeds = torch.randint(2**31 - 1, (1,), dtype=torch.int32, device=query.device) if share else bounds
        ctx.values = texts, tokens, heads, scale * _LOG2_E, reach, round(share * 2**31), 1 / (1 - share)
        ctx.scale, ctx.sizes = scale, {'DIM': dim, 'BLOCK': BLOCK, 'DROP': share > 0, 'num_warps': WARPS,
                                        'num_stages': 3 if dim <= 64 else 2}   # what fits in older GPUs' shared memory
        out, norms = torch.empty_like(query), torch.empty((tokens, heads), dtype=torch.float32, device=query.device)
        _forward[ctx.grid](query, key, value, out, norms, bounds, seeds, *ctx.values, **ctx.sizes)
        ctx.save_for_backward(query, key, value, out, norms, bounds, seeds)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        query, key, value, out, norms, bounds, seeds = ctx.saved_tensors
        found = [torch.empty_like(x) for x in (query, key, value)]
        _backward[ctx.grid](query, key, value, out, grad.contiguous(), norms, *found, bounds, seeds, *ctx.values,
                            ctx.scale, **ctx.sizes)
        return (*found, None, None, None, None, None)


def can(x: torch.Tensor) -> bool:
    """Whether the kernels take such queries, [T, H, d]: tensor cores multiply sides of 16 and more."""
    return x.shape[-1] in (16, 32, 64, 128)


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: torch.Tensor, longest: int, *,
              share: float = 0.0, scale: float | None = None, reach: int | None = None) -> torch.Tensor:
    """Each text's tokens attend to one another.

    Args:
        query: [T, H, d], in half precision.
        key: [T, H, d].
        value: [T, H, d].
        bounds: int32[N + 1], where each text begins, and the end of the last; what lies behind it is in no text.
        longest: Most tokens of a text.
        share: Of the attention weights that dropout sets to 0; drawn from the device's generator.
        scale: Factor on the dot products; None takes 1/√d.
        reach: Tokens at least this far apart do not see each other; None has no limit.

    Returns:
        [T, H, d], zero for tokens in no text; gradients flow, and are the same each time.
    """
    return _Attention.apply(query, key, value, bounds, longest, share,
                            query.shape[-1] ** -0.5 if scale is None else scale, _FAR if reach is None else reach)
