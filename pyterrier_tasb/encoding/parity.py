"""Whether a model gives the same states and gradients without padding as with it: asked of the very model, once."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from transformers import PreTrainedModel

from .tokens import Tokens

# more than there are groups in attention, so that some are padded there, and more tokens than there are in a block
_LENGTHS = (7, 2, 12, 5, 7, 3, 9, 4, 14, 6, 10, 75)
_OF_GRADIENTS = {None: 1e-2, torch.float16: .2, torch.bfloat16: .2}   # of the norm
_TOLERANCE = {None: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}   # of the largest state; by autocast's dtype


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards each part is in the mode it was in."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def probe(model: PreTrainedModel, most: int) -> Tokens:
    """A few random texts of various lengths, of at most `most` tokens; one is longer than a local attention's reach."""
    reach = getattr(model.config, 'sliding_window', None)
    lengths = sorted(min(length, most) for length in (*_LENGTHS, *([reach + 9] if reach else [])))
    rng, padding = np.random.Generator(np.random.Philox(key=[0, 0])), getattr(model.config, 'pad_token_id', None) or 0
    words = np.setdiff1d(np.arange(model.get_input_embeddings().weight.shape[0]), [padding])
    texts = [rng.choice(words, length).tolist() for length in lengths]
    texts[-1][1] = padding   # a text may say it, and it counts for positions
    return Tokens.from_lists(texts)


States = Callable[[], torch.Tensor]


@torch.no_grad()
def difference(packed: States, padded: States) -> float:
    """The largest difference of states as a share of the largest state; infinite where one cannot be computed."""
    try:
        ours, theirs = packed().float(), padded().float()
    except torch.OutOfMemoryError:   # says nothing of the model
        raise
    except Exception:   # a kernel may find that a compiler, a driver or a library is too old in many ways
        return float('inf')
    found = ((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-6)).item()
    return found if np.isfinite(found) else float('inf')


def first_vector(model: torch.nn.Module) -> torch.nn.Parameter:
    """Weights that all layers follow, and few of them: those of the embeddings' LayerNorm."""
    return next(weights for weights in model.parameters() if weights.ndim == 1)


def gradient_difference(packed: States, padded: States, weights: torch.nn.Parameter) -> float:
    """The norm of the difference of these weights' gradients as a share of the norm; 0 where they have none."""
    if not weights.requires_grad or weights.is_inference():
        return 0.0

    def gradient(states: States) -> torch.Tensor:
        found = states().float()
        # not a plain sum: behind a LayerNorm that has no gradient
        return torch.autograd.grad((found * torch.arange(found.shape[-1], device=found.device).sin()).sum(), weights)[0]
    try:
        with torch.enable_grad():
            ours, theirs = gradient(packed), gradient(padded)
    except Exception:   # as above
        return float('inf')
    found = ((ours - theirs).norm() / theirs.norm().clamp_min(1e-6)).item()
    return found if np.isfinite(found) else float('inf')


def same_states(ours: States, theirs: States) -> bool:
    """Whether states, in float32, differ by no more than rounding explains."""
    return difference(ours, theirs) <= _TOLERANCE[None]


def agree(packed: States, padded: States, weights: torch.nn.Parameter, dtype: torch.dtype | None) -> bool:
    """Whether states and gradients differ by no more than rounding explains."""
    return (difference(packed, padded) <= _TOLERANCE[dtype]
            and gradient_difference(packed, padded, weights) <= _OF_GRADIENTS[dtype])
