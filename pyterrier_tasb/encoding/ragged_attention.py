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
    return round(share * 2**31), 1 / (1 - share) if share < 1 else 0.0


def _results(query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Room for outputs [N, H, d], the sums of their softmaxes [N, H], and the seed of what is dropped."""
    return (query.new_empty(query.shape), query.new_empty(query.shape[:2], dtype=torch.float32),
            query.new_empty((1,), dtype=torch.int32))


def _empty(*like: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Room of the same shapes, contiguous."""
    return tuple(x.new_empty(x.shape) for x in like)


def _drawn(share: float, seed: torch.Tensor) -> torch.Tensor:
    """Drawn on the device, so that a captured graph draws anew each time."""
    return seed.random_(2**31 - 1) if share else seed.zero_()


def _alike(*of_tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Themselves where heads lie one after the other and tokens equally far apart; else copies for which that is so."""
    heads, dim = of_tokens[0].shape[1:]
    if all(x.stride() == (of_tokens[0].stride(0), dim, 1) for x in of_tokens) and of_tokens[0].stride(0) >= heads * dim:
        return of_tokens
    return tuple(x.contiguous() for x in of_tokens)


def _forward(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: torch.Tensor, longest: int,
             share: float, scale: float, reach: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    query, key, value = _alike(query, key, value)
    tokens, heads, dim = query.shape
    out, norms, seed = _results(query)
    grid = len(bounds), triton.cdiv(longest, BLOCK), heads
    with torch.cuda.device_of(query):   # Triton launches on the thread's device, wherever the tensors are
        kernels.forward[grid](query, key, value, out, norms, bounds, _drawn(share, seed), len(bounds) - 1, tokens,
                              heads, query.stride(0), scale * _LOG2_E, reach, *_drops(share), **_sizes(dim, share))
    return out, norms, seed


def _backward(found: tuple[torch.Tensor, ...], grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor,
              value: torch.Tensor, out: torch.Tensor, norms: torch.Tensor, seed: torch.Tensor, bounds: torch.Tensor,
              longest: int, share: float, scale: float, reach: int) -> None:
    """Fills `found`, which are alike."""
    query, key, value = _alike(query, key, value)
    tokens, heads, dim = query.shape
    grid = len(bounds), triton.cdiv(longest, BLOCK), heads
    with torch.cuda.device_of(query):
        kernels.backward[grid](query, key, value, out, grad.contiguous(), norms, *found, bounds, seed, len(bounds) - 1,
                               tokens, heads, query.stride(0), found[0].stride(0), scale * _LOG2_E, reach,
                               *_drops(share), scale, **_sizes(dim, share))


@torch.library.custom_op('pyterrier_tasb::attention', mutates_args=())
def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: torch.Tensor, longest: int,
               share: float, scale: float, reach: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _forward(query, key, value, bounds, longest, share, scale, reach)


@torch.library.custom_op('pyterrier_tasb::attention_backward', mutates_args=())
def _attention_backward(grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
                        out: torch.Tensor, norms: torch.Tensor, seed: torch.Tensor, bounds: torch.Tensor, longest: int,
                        share: float, scale: float, reach: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    found = _empty(query, key, value)
    _backward(found, grad, query, key, value, out, norms, seed, bounds, longest, share, scale, reach)
    return found


@torch.library.custom_op('pyterrier_tasb::joint_attention', mutates_args=())
def _joint_attention(joint: torch.Tensor, bounds: torch.Tensor, longest: int, share: float, scale: float,
                     reach: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _forward(*joint.unbind(1), bounds, longest, share, scale, reach)


@torch.library.custom_op('pyterrier_tasb::joint_attention_backward', mutates_args=())
def _joint_attention_backward(grad: torch.Tensor, joint: torch.Tensor, out: torch.Tensor, norms: torch.Tensor,
                              seed: torch.Tensor, bounds: torch.Tensor, longest: int, share: float, scale: float,
                              reach: int) -> torch.Tensor:
    found, = _empty(joint)
    _backward(found.unbind(1), grad, *joint.unbind(1), out, norms, seed, bounds, longest, share, scale, reach)
    return found


@torch.library.custom_op('pyterrier_tasb::first_attention', mutates_args=())
def _first_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: torch.Tensor, share: float,
                     scale: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    query, (key, value) = query.contiguous(), _alike(key, value)
    texts, heads, dim = query.shape
    out, norms, seed = _results(query)
    with torch.cuda.device_of(query):
        kernels.first_forward[texts, heads](query, key, value, out, norms, bounds, _drawn(share, seed), heads,
                                            key.stride(0), scale * _LOG2_E, *_drops(share), **_sizes(dim, share))
    return out, norms, seed


@torch.library.custom_op('pyterrier_tasb::first_attention_backward', mutates_args=())
def _first_attention_backward(
        grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, out: torch.Tensor,
        norms: torch.Tensor, seed: torch.Tensor, bounds: torch.Tensor, share: float,
        scale: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    query, (key, value) = query.contiguous(), _alike(key, value)
    texts, heads, dim = query.shape
    found = _empty(query, key, value)
    with torch.cuda.device_of(query):
        kernels.first_backward[texts + 1, heads](query, key, value, out, grad.contiguous(), norms, *found, bounds, seed,
                                                 texts, len(key), heads, key.stride(0), scale * _LOG2_E,
                                                 *_drops(share), scale, **_sizes(dim, share))
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
    return _empty(query, key, value)


@_joint_attention.register_fake
def _(joint: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:
    return _results(joint[:, 0])


@_joint_attention_backward.register_fake
def _(grad: torch.Tensor, joint: torch.Tensor, *rest: Any) -> torch.Tensor:
    return _empty(joint)[0]


def _keep(ctx: Any, inputs: tuple, output: tuple[torch.Tensor, ...]) -> None:
    tensors = [x for x in inputs if isinstance(x, torch.Tensor)]
    *attended, bounds = tensors
    ctx.save_for_backward(*attended, *output, bounds)
    ctx.options = inputs[len(tensors):]


def _gradients(backward: Any) -> Any:
    def gradients(ctx: Any, grad: torch.Tensor, *unused: Any) -> tuple[torch.Tensor | None, ...]:
        found = backward(grad, *ctx.saved_tensors, *ctx.options)
        return (*([found] if isinstance(found, torch.Tensor) else found), None, *(None for _ in ctx.options))
    return gradients


_attention.register_autograd(_gradients(_attention_backward), setup_context=_keep)
_joint_attention.register_autograd(_gradients(_joint_attention_backward), setup_context=_keep)
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


def joint_attention(joint: torch.Tensor, bounds: torch.Tensor, longest: int, *, share: float = 0.0,
                    scale: float | None = None, reach: int | None = None) -> torch.Tensor:
    """:func:`attention` of queries, keys and values that lie side by side, and so do their gradients.

    Args:
        joint: [T, 3, H, d], queries, keys and values, in half precision.
        bounds: As for :func:`attention`.
        longest: As for :func:`attention`.
        share: As for :func:`attention`.
        scale: As for :func:`attention`.
        reach: As for :func:`attention`.

    Returns:
        [T, H, d], zero for tokens in no text.
    """
    return _joint_attention(joint, bounds, longest, float(share), _scale(joint, scale),
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
