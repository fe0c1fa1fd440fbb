"""Whether a model gives the same states without padding as with it: asked of the very model, once."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from transformers import PretrainedConfig

from .tokens import Tokens

_LENGTHS = (7, 2, 12, 5, 7, 3, 9, 4, 14, 6, 10)   # more than there are groups in attention: some are padded there
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


def probe(config: PretrainedConfig, most: int) -> Tokens:
    """A few random texts of various lengths, of at most `most` tokens; one is longer than a local attention's reach."""
    reach = getattr(config, 'sliding_window', None)
    lengths = sorted(min(length, most) for length in (*_LENGTHS, *([reach + 9] if reach else [])))
    words = np.setdiff1d(np.arange(config.vocab_size), [config.pad_token_id or 0])   # padding counts for positions
    rng = np.random.Generator(np.random.Philox(key=[0, 0]))
    return Tokens.from_lists([rng.choice(words, length).tolist() for length in lengths])


@torch.no_grad()
def difference(packed: Callable[[], torch.Tensor], padded: Callable[[], torch.Tensor]) -> float:
    """The largest difference of states as a share of the largest state; infinite where one cannot be computed."""
    try:
        ours, theirs = packed().float(), padded().float()
    except Exception:   # a kernel may find that a compiler, a driver or a library is too old in many ways
        return float('inf')
    found = ((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-6)).item()
    return found if np.isfinite(found) else float('inf')


def tolerance(dtype: torch.dtype | None) -> float:
    """The difference that rounding explains."""
    return _TOLERANCE[dtype]
