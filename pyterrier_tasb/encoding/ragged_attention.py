"""Attention within short texts that lie one after the other, for GPUs: what the kernels do, as PyTorch's operators.

So `torch.compile` goes past them. An operator gives, besides its output, what its gradients need.
"""
from __future__ import annotations

from typing import Any

import torch
import triton

from . import ragged_kernels as kernels

_LOG2_E = 1.4426950408889634
_FAR = 2**30   # a reach that no text is longer than
BLOCK = 32   # tokens
WARPS = 4


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
    kernels.forward[grid](query, key, value, out, norms, bounds, _drawn(share, seed), len(bounds) - 1, tokens, heads,
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
    kernels.backward[grid](query, key, value, out, grad.contiguous(), norms, *found, bounds, seed, len(bounds) - 1,
                           tokens, heads, scale * _LOG2_E, reach, *_drops(share), scale, **_sizes(dim, share))
    return found


@torch.library.custom_op('pyterrier_tasb::first_attention', mutates_args=())
def _first_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: torch.Tensor, share: float,
                     scale: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    texts, heads, dim = query.shape
    out, norms, seed = _results(query)
    kernels.first_forward[texts, heads](query, key, value, out, norms, bounds, _drawn(share, seed), heads,
                                        scale * _LOG2_E, *_drops(share), **_sizes(dim, share))
    return out, norms, seed


@torch.library.custom_op('pyterrier_tasb::first_attention_backward', mutates_args=())
def _first_attention_backward(
        grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, out: torch.Tensor,
        norms: torch.Tensor, seed: torch.Tensor, bounds: torch.Tensor, share: float,
        scale: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    texts, heads, dim = query.shape
    found = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    kernels.first_backward[texts + 1, heads](query, key, value, out, grad.contiguous(), norms, *found, bounds, seed,
                                             texts, len(key), heads, scale * _LOG2_E, *_drops(share), scale,
                                             **_sizes(dim, share))
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
