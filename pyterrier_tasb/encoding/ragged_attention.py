"""Attention within short texts that lie one after the other, for GPUs: Triton kernels.

Libraries' kernels work in tiles of 128 tokens, more than twice the mean text of a training step; these take smaller
ones. A program has a block of one text's tokens and one head. The backward pass computes softmaxes again from their
sums (Dao 2023, "FlashAttention-2", has the formulas), once for the gradients of its queries and once for those of its
keys and values, so that nothing is added up in an order that varies. Dropout is a hash of seed, query token, key token
and head.

Where only the texts' first tokens attend, a program has one text and one head, and there is nothing to multiply by
tensor cores: keys and values are read once.
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
def _clear(tensor, begin, stride, tokens, head, heads, DIM: tl.constexpr, BLOCK: tl.constexpr):  # noqa: ANN001, ANN202, N803
    """Zeros behind the last text, from `begin` on: what is in none attends to nothing."""
    for start in range(begin, tokens, stride):
        _store(tensor, tl.zeros([BLOCK, DIM], tl.float32), start + tl.arange(0, BLOCK), tokens, head, heads, DIM)


@triton.jit
def _delta(out, grad, rows, last, head, heads, DIM: tl.constexpr):  # noqa: ANN001, ANN202, N803
    """[rows], the sums of outputs times gradients."""
    o, g = _tile(out, rows, last, head, heads, DIM), _tile(grad, rows, last, head, heads, DIM)
    return tl.sum(o.to(tl.float32) * g.to(tl.float32), 1)


@triton.jit
def _forward(query, key, value, out, norms, bounds, seeds, texts, tokens, heads, scale, reach,  # noqa: ANN001, ANN202
             dropped, undropped,  # noqa: ANN001
             DIM: tl.constexpr, BLOCK: tl.constexpr, DROP: tl.constexpr):  # noqa: N803
    text, block, head = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first, steps = tl.load(bounds + text), tl.arange(0, BLOCK)
    begin = first + block * BLOCK
    if text == texts:
        _clear(out, begin, tl.num_programs(1) * BLOCK, tokens, head, heads, DIM, BLOCK)
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
        stride = tl.num_programs(1) * BLOCK
        _clear(of_query, begin, stride, tokens, head, heads, DIM, BLOCK)
        _clear(of_key, begin, stride, tokens, head, heads, DIM, BLOCK)
        _clear(of_value, begin, stride, tokens, head, heads, DIM, BLOCK)
    else:
        last = tl.load(bounds + text + 1)
        if begin < last:
            seed, mine = tl.load(seeds), begin + steps
            q = _tile(query, mine, last, head, heads, DIM)
            k = _tile(key, mine, last, head, heads, DIM)
            v = _tile(value, mine, last, head, heads, DIM)
            g = _tile(grad, mine, last, head, heads, DIM)
            delta = _delta(out, grad, mine, last, head, heads, DIM)
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
                delta2 = _delta(out, grad, others, last, head, heads, DIM)
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


@triton.jit
def _first_forward(query, key, value, out, norms, bounds, seeds, heads, scale, dropped, undropped,  # noqa: ANN001, ANN202
                   DIM: tl.constexpr, BLOCK: tl.constexpr, DROP: tl.constexpr):  # noqa: N803
    text, head = tl.program_id(0), tl.program_id(1)
    first, last, seed = tl.load(bounds + text), tl.load(bounds + text + 1), tl.load(seeds)
    steps, at = tl.arange(0, BLOCK), (text.to(tl.int64) * heads + head) * DIM + tl.arange(0, DIM)
    q = tl.load(query + at).to(tl.float32) * scale
    highest, total = -1e30, 0.0
    found = tl.zeros([DIM], tl.float32)
    for start in range(first, last, BLOCK):
        rows = start + steps
        s = tl.sum(_tile(key, rows, last, head, heads, DIM).to(tl.float32) * q[None, :], 1)
        s = tl.where(rows < last, s, -1e30)
        now = tl.maximum(highest, tl.max(s, 0))
        p, before = tl.exp2(s - now), tl.exp2(highest - now)
        total = total * before + tl.sum(p, 0)
        if DROP:
            p = tl.where(_kept(seed, text, rows, head, heads, dropped), p, 0.0)
        found = found * before + tl.sum(_tile(value, rows, last, head, heads, DIM).to(tl.float32) * p[:, None], 0)
        highest = now
    total = tl.where(first < last, total, 1.0)   # an empty text
    tl.store(out + at, (found * (undropped / total)).to(out.dtype.element_ty))
    tl.store(norms + text * heads + head, highest + tl.log2(total))


@triton.jit
def _first_backward(query, key, value, out, grad, norms, of_query, of_key, of_value, bounds, seeds,  # noqa: ANN001, ANN202
                    texts, tokens, heads, scale, dropped, undropped, factor,  # noqa: ANN001
                    DIM: tl.constexpr, BLOCK: tl.constexpr, DROP: tl.constexpr):  # noqa: N803
    text, head = tl.program_id(0), tl.program_id(1)
    first, steps = tl.load(bounds + text), tl.arange(0, BLOCK)
    if text == texts:
        _clear(of_key, first, BLOCK, tokens, head, heads, DIM, BLOCK)
        _clear(of_value, first, BLOCK, tokens, head, heads, DIM, BLOCK)
    else:
        last, seed = tl.load(bounds + text + 1), tl.load(seeds)
        at = (text.to(tl.int64) * heads + head) * DIM + tl.arange(0, DIM)
        q, g = tl.load(query + at).to(tl.float32), tl.load(grad + at).to(tl.float32)
        delta = tl.sum(tl.load(out + at).to(tl.float32) * g, 0)
        norm = tl.load(norms + text * heads + head)
        found = tl.zeros([DIM], tl.float32)
        for start in range(first, last, BLOCK):
            rows = start + steps
            k = _tile(key, rows, last, head, heads, DIM).to(tl.float32)
            p = tl.exp2(tl.sum(k * q[None, :], 1) * scale - norm)
            of_p = tl.sum(_tile(value, rows, last, head, heads, DIM).to(tl.float32) * g[None, :], 1)
            kept_p = p
            if DROP:
                kept = _kept(seed, text, rows, head, heads, dropped)
                kept_p = tl.where(kept, p * undropped, 0.0)
                of_p = tl.where(kept, of_p * undropped, 0.0)
            of_s = tl.where(rows < last, p * (of_p - delta) * factor, 0.0)
            found += tl.sum(of_s[:, None] * k, 0)
            _store(of_key, of_s[:, None] * q[None, :], rows, last, head, heads, DIM)
            _store(of_value, kept_p[:, None] * g[None, :], rows, last, head, heads, DIM)
        tl.store(of_query + at, found.to(of_query.dtype.element_ty))


# The operators are PyTorch's, so that `torch.compile` goes past them. They give what their gradients need besides.

def _sizes(dim: int, share: float) -> dict[str, Any]:
    return {'DIM': dim, 'BLOCK': BLOCK, 'DROP': share > 0, 'num_warps': WARPS,
            'num_stages': 3 if dim <= 64 else 2}   # what fits in older GPUs' shared memory


def _drops(share: float) -> tuple[int, float]:
    """Of 2**31 hashes those that drop, and the factor on what is left."""
    return round(share * 2**31), 1 / (1 - share)


def _results(query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Room for outputs [N, H, d], the sums of their softmaxes [N, H], and the seed of what is dropped."""
    return (torch.empty_like(query), query.new_empty(query.shape[:2], dtype=torch.float32),
            query.new_empty((1,), dtype=torch.int32))


def _drawn(share: float, seed: torch.Tensor) -> torch.Tensor:
    """Drawn on the device, so that a captured graph draws anew each time."""
    return seed.random_(2**31 - 1) if share else seed.zero_()


@torch.library.custom_op('pyterrier_tasb::attention', mutates_args=())
def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: torch.Tensor, longest: int,
               share: float, scale: float, reach: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    tokens, heads, dim = query.shape
    out, norms, seed = _results(query)
    grid = len(bounds), triton.cdiv(longest, BLOCK), heads
    _forward[grid](query, key, value, out, norms, bounds, _drawn(share, seed), len(bounds) - 1, tokens, heads,
                   scale * _LOG2_E, reach, *_drops(share), **_sizes(dim, share))
    return out, norms, seed


@torch.library.custom_op('pyterrier_tasb::attention_backward', mutates_args=())
def _attention_backward(grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
                        out: torch.Tensor, norms: torch.Tensor, seed: torch.Tensor, bounds: torch.Tensor, longest: int,
                        share: float, scale: float, reach: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    tokens, heads, dim = query.shape
    found = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    grid = len(bounds), triton.cdiv(longest, BLOCK), heads
    _backward[grid](query, key, value, out, grad.contiguous(), norms, *found, bounds, seed, len(bounds) - 1, tokens,
                    heads, scale * _LOG2_E, reach, *_drops(share), scale, **_sizes(dim, share))
    return found


@torch.library.custom_op('pyterrier_tasb::first_attention', mutates_args=())
def _first_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: torch.Tensor, share: float,
                     scale: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    texts, heads, dim = query.shape
    out, norms, seed = _results(query)
    _first_forward[texts, heads](query, key, value, out, norms, bounds, _drawn(share, seed), heads, scale * _LOG2_E,
                                 *_drops(share), **_sizes(dim, share))
    return out, norms, seed


@torch.library.custom_op('pyterrier_tasb::first_attention_backward', mutates_args=())
def _first_attention_backward(
        grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, out: torch.Tensor,
        norms: torch.Tensor, seed: torch.Tensor, bounds: torch.Tensor, share: float,
        scale: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    texts, heads, dim = query.shape
    found = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    _first_backward[texts + 1, heads](query, key, value, out, grad.contiguous(), norms, *found, bounds, seed, texts,
                                      len(key), heads, scale * _LOG2_E, *_drops(share), scale, **_sizes(dim, share))
    return found


@_attention.register_fake
def _(query: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:
    return _results(query)


@_first_attention.register_fake
def _(query: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:
    return _results(query)


@_attention_backward.register_fake
@_first_attention_backward.register_fake
def _(grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
      *rest: Any) -> tuple[torch.Tensor, ...]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _keep(ctx: Any, inputs: tuple, output: tuple[torch.Tensor, ...]) -> None:  # noqa: ANN401
    *qkv, bounds = inputs[:4]
    ctx.save_for_backward(*qkv, *output, bounds)
    ctx.options = inputs[4:]


def _gradients(backward: Any) -> Any:  # noqa: ANN401
    def gradients(ctx: Any, grad: torch.Tensor, *unused: Any) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        return (*backward(grad, *ctx.saved_tensors, *ctx.options), None, *(None for _ in ctx.options))
    return gradients


_attention.register_autograd(_gradients(_attention_backward), setup_context=_keep)
_first_attention.register_autograd(_gradients(_first_attention_backward), setup_context=_keep)


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
    return _attention(query, key, value, bounds, longest, float(share), _scale(query, scale),
                      _FAR if reach is None else reach)[0]


def of_firsts(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: torch.Tensor, *, share: float = 0.0,
              scale: float | None = None) -> torch.Tensor:
    """Each text's first token attends to all of the text.

    Args:
        query: [N, H, d], those of the first tokens.
        key: [T, H, d].
        value: [T, H, d].
        bounds: As for :func:`attention`.
        share: As for :func:`attention`.
        scale: As for :func:`attention`.

    Returns:
        [N, H, d], zero for an empty text.
    """
    return _first_attention(query, key, value, bounds, float(share), _scale(query, scale))[0]


def _scale(query: torch.Tensor, scale: float | None) -> float:
    return query.shape[-1] ** -0.5 if scale is None else scale
