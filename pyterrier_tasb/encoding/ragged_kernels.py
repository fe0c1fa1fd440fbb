"""Triton kernels of attention within short texts that lie one after the other.

Libraries' kernels work in tiles of 128 tokens, more than twice the mean text of a training step; these take smaller
ones. A program has a block of one text's tokens and one head. The backward pass computes softmaxes again from their
sums (Dao 2023, "FlashAttention-2", has the formulas), once for the gradients of its queries and once for those of its
keys and values, so that nothing is added up in an order that varies. Dropout is a hash of seed, query token, key token
and head.

Where only the texts' first tokens attend, a program has one text and one head, and there is nothing to multiply by
tensor cores: keys and values are read once.
"""
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _mixed(x):  # noqa: ANN001
    """uint32 → uint32, each bit of which depends on all: the end of MurmurHash3 (Appleby)."""
    x ^= x >> 16
    x *= 0x85EBCA6B
    x ^= x >> 13
    x *= 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit
def _kept(seed, query, key, head, heads, dropped):  # noqa: ANN001
    """bool, in the common shape of the rows `query` and `key`: which weights dropout leaves."""
    of_query = _mixed((query * heads + head).to(tl.uint32) ^ seed.to(tl.uint32))
    bits = _mixed(of_query + key.to(tl.uint32) * 0x9E3779B9)
    return (bits >> 1).to(tl.int32) >= dropped


@triton.jit
def _similarity(query, key, rows, cols, last, scale, reach):  # noqa: ANN001
    """[rows, cols], in the unit of exp2; very low where there is no such key, or it is out of reach."""
    seen = (cols < last) & (tl.abs(rows - cols) < reach)
    return tl.where(seen, tl.dot(query, key) * scale, -1e30)


@triton.jit
def _within(first, last, begin, reach, BLOCK: tl.constexpr):  # noqa: ANN001, N803
    """Where the blocks of a text that a block reaches begin and end."""
    low = first + tl.maximum(begin - first - reach, 0) // BLOCK * BLOCK
    return low, tl.minimum(last, begin + BLOCK + reach)


@triton.jit
def _tile(tensor, rows, last, head, stride, DIM: tl.constexpr):  # noqa: ANN001, N803
    """[rows, DIM] of one head, rows `stride` apart; zeros where the text has ended."""
    at = rows.to(tl.int64)[:, None] * stride + head * DIM + tl.arange(0, DIM)[None, :]
    return tl.load(tensor + at, mask=rows[:, None] < last, other=0.0)


@triton.jit
def _store(tensor, values, rows, last, head, stride, DIM: tl.constexpr):  # noqa: ANN001, N803
    at = rows.to(tl.int64)[:, None] * stride + head * DIM + tl.arange(0, DIM)[None, :]
    tl.store(tensor + at, values.to(tensor.dtype.element_ty), mask=rows[:, None] < last)


@triton.jit
def _clear(tensor, begin, step, tokens, head, stride, DIM: tl.constexpr, BLOCK: tl.constexpr):  # noqa: ANN001, N803
    """Zeros behind the last text, from `begin` on: what is in none attends to nothing."""
    for start in range(begin, tokens, step):
        _store(tensor, tl.zeros([BLOCK, DIM], tl.float32), start + tl.arange(0, BLOCK), tokens, head, stride, DIM)


@triton.jit
def _delta(out, grad, rows, last, head, stride, DIM: tl.constexpr):  # noqa: ANN001, N803
    """[rows], the sums of outputs times gradients."""
    o, g = _tile(out, rows, last, head, stride, DIM), _tile(grad, rows, last, head, stride, DIM)
    return tl.sum(o.to(tl.float32) * g.to(tl.float32), 1)


@triton.jit
def forward(query, key, value, out, norms, bounds, seeds, texts, tokens, heads, stride, scale, reach,  # noqa: ANN001, ANN201
            dropped, undropped,  # noqa: ANN001
            DIM: tl.constexpr, BLOCK: tl.constexpr, DROP: tl.constexpr):  # noqa: N803
    """Outputs of all tokens, and the logarithms of their softmaxes' sums; a program for (text, block, head)."""
    text, block, head = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first, steps = tl.load(bounds + text), tl.arange(0, BLOCK)
    begin = first + block * BLOCK
    if text == texts:
        _clear(out, begin, tl.num_programs(1) * BLOCK, tokens, head, heads * DIM, DIM, BLOCK)
    else:
        last = tl.load(bounds + text + 1)
        if begin < last:
            seed, rows = tl.load(seeds), begin + steps
            q = _tile(query, rows, last, head, stride, DIM)
            highest = tl.full([BLOCK], -1e30, tl.float32)
            total = tl.zeros([BLOCK], tl.float32)
            found = tl.zeros([BLOCK, DIM], tl.float32)
            low, high = _within(first, last, begin, reach, BLOCK)
            for start in range(low, high, BLOCK):
                cols = start + steps
                k = _tile(key, cols, last, head, stride, DIM)
                v = _tile(value, cols, last, head, stride, DIM)
                s = _similarity(q, tl.trans(k), rows[:, None], cols[None, :], last, scale, reach)
                now = tl.maximum(highest, tl.max(s, 1))
                p, before = tl.exp2(s - now[:, None]), tl.exp2(highest - now)
                total = total * before + tl.sum(p, 1)
                if DROP:
                    p = tl.where(_kept(seed, rows[:, None], cols[None, :], head, heads, dropped), p, 0.0)
                found = found * before[:, None] + tl.dot(p.to(v.dtype), v)
                highest = now
            _store(out, found * (undropped / total)[:, None], rows, last, head, heads * DIM, DIM)
            tl.store(norms + rows * heads + head, highest + tl.log2(total), mask=rows < last)


@triton.jit
def backward(query, key, value, out, grad, norms, of_query, of_key, of_value, bounds, seeds,  # noqa: ANN001, ANN201
             texts, tokens, heads, stride, stride_found, scale, reach, dropped, undropped, factor,  # noqa: ANN001
             DIM: tl.constexpr, BLOCK: tl.constexpr, DROP: tl.constexpr):  # noqa: N803
    """Gradients of all tokens' queries, keys and values; a program for (text, block, head)."""
    text, block, head = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first, steps = tl.load(bounds + text), tl.arange(0, BLOCK)
    begin = first + block * BLOCK
    if text == texts:
        step = tl.num_programs(1) * BLOCK
        _clear(of_query, begin, step, tokens, head, stride_found, DIM, BLOCK)
        _clear(of_key, begin, step, tokens, head, stride_found, DIM, BLOCK)
        _clear(of_value, begin, step, tokens, head, stride_found, DIM, BLOCK)
    else:
        last = tl.load(bounds + text + 1)
        if begin < last:
            seed, mine = tl.load(seeds), begin + steps
            q = _tile(query, mine, last, head, stride, DIM)
            k = _tile(key, mine, last, head, stride, DIM)
            v = _tile(value, mine, last, head, stride, DIM)
            g = _tile(grad, mine, last, head, heads * DIM, DIM)
            delta = _delta(out, grad, mine, last, head, heads * DIM, DIM)
            norm = tl.load(norms + mine * heads + head, mask=mine < last, other=0.0)
            found_query = tl.zeros([BLOCK, DIM], tl.float32)
            found_key = tl.zeros([BLOCK, DIM], tl.float32)
            found_value = tl.zeros([BLOCK, DIM], tl.float32)
            low, high = _within(first, last, begin, reach, BLOCK)
            for start in range(low, high, BLOCK):
                others = start + steps
                # my queries, the other tokens' keys
                k2 = _tile(key, others, last, head, stride, DIM)
                v2 = _tile(value, others, last, head, stride, DIM)
                s = _similarity(q, tl.trans(k2), mine[:, None], others[None, :], last, scale, reach)
                p, of_p = tl.exp2(s - norm[:, None]), tl.dot(g, tl.trans(v2))
                if DROP:
                    kept = _kept(seed, mine[:, None], others[None, :], head, heads, dropped)
                    of_p = tl.where(kept, of_p * undropped, 0.0)
                found_query += tl.dot((p * (of_p - delta[:, None])).to(k2.dtype), k2)
                # my keys, the other tokens' queries: one that is not there has no gradient, and so gives none
                q2 = _tile(query, others, last, head, stride, DIM)
                g2 = _tile(grad, others, last, head, heads * DIM, DIM)
                delta2 = _delta(out, grad, others, last, head, heads * DIM, DIM)
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
            _store(of_query, found_query * factor, mine, last, head, stride_found, DIM)
            _store(of_key, found_key * factor, mine, last, head, stride_found, DIM)
            _store(of_value, found_value, mine, last, head, stride_found, DIM)


@triton.jit
def first_forward(query, key, value, out, norms, bounds, seeds, heads, stride, scale,  # noqa: ANN001, ANN201
                  dropped, undropped,  # noqa: ANN001
                  DIM: tl.constexpr, BLOCK: tl.constexpr, DROP: tl.constexpr):  # noqa: N803
    """Outputs of first tokens, and the logarithms of their softmaxes' sums; a program for (text, head)."""
    text, head = tl.program_id(0), tl.program_id(1)
    first, last, seed = tl.load(bounds + text), tl.load(bounds + text + 1), tl.load(seeds)
    steps, at = tl.arange(0, BLOCK), (text.to(tl.int64) * heads + head) * DIM + tl.arange(0, DIM)
    q = tl.load(query + at).to(tl.float32) * scale
    highest, total = -1e30, 0.0
    found = tl.zeros([DIM], tl.float32)
    for start in range(first, last, BLOCK):
        rows = start + steps
        s = tl.sum(_tile(key, rows, last, head, stride, DIM).to(tl.float32) * q[None, :], 1)
        s = tl.where(rows < last, s, -1e30)
        now = tl.maximum(highest, tl.max(s, 0))
        p, before = tl.exp2(s - now), tl.exp2(highest - now)
        total = total * before + tl.sum(p, 0)
        if DROP:
            p = tl.where(_kept(seed, text, rows, head, heads, dropped), p, 0.0)
        found = found * before + tl.sum(_tile(value, rows, last, head, stride, DIM).to(tl.float32) * p[:, None], 0)
        highest = now
    total = tl.where(first < last, total, 1.0)   # an empty text
    tl.store(out + at, (found * (undropped / total)).to(out.dtype.element_ty))
    tl.store(norms + text * heads + head, highest + tl.log2(total))


@triton.jit
def first_backward(query, key, value, out, grad, norms, of_query, of_key, of_value, bounds, seeds,  # noqa: ANN001, ANN201
                   texts, tokens, heads, stride, scale, dropped, undropped, factor,  # noqa: ANN001
                   DIM: tl.constexpr, BLOCK: tl.constexpr, DROP: tl.constexpr):  # noqa: N803
    """Gradients of first tokens' queries and of all keys and values; a program for (text, head)."""
    text, head = tl.program_id(0), tl.program_id(1)
    first, steps = tl.load(bounds + text), tl.arange(0, BLOCK)
    if text == texts:
        _clear(of_key, first, BLOCK, tokens, head, heads * DIM, DIM, BLOCK)
        _clear(of_value, first, BLOCK, tokens, head, heads * DIM, DIM, BLOCK)
    else:
        last, seed = tl.load(bounds + text + 1), tl.load(seeds)
        at = (text.to(tl.int64) * heads + head) * DIM + tl.arange(0, DIM)
        q, g = tl.load(query + at).to(tl.float32), tl.load(grad + at).to(tl.float32)
        delta = tl.sum(tl.load(out + at).to(tl.float32) * g, 0)
        norm = tl.load(norms + text * heads + head)
        found = tl.zeros([DIM], tl.float32)
        for start in range(first, last, BLOCK):
            rows = start + steps
            k = _tile(key, rows, last, head, stride, DIM).to(tl.float32)
            p = tl.exp2(tl.sum(k * q[None, :], 1) * scale - norm)
            of_p = tl.sum(_tile(value, rows, last, head, stride, DIM).to(tl.float32) * g[None, :], 1)
            kept_p = p
            if DROP:
                kept = _kept(seed, text, rows, head, heads, dropped)
                kept_p = tl.where(kept, p * undropped, 0.0)
                of_p = tl.where(kept, of_p * undropped, 0.0)
            of_s = tl.where(rows < last, p * (of_p - delta) * factor, 0.0)
            found += tl.sum(of_s[:, None] * k, 0)
            _store(of_key, of_s[:, None] * q[None, :], rows, last, head, heads * DIM, DIM)
            _store(of_value, kept_p[:, None] * g[None, :], rows, last, head, heads * DIM, DIM)
        tl.store(of_query + at, found.to(of_query.dtype.element_ty))
