"""GradCache: a loss over a whole batch whose activations are only ever those of a micro-batch.

Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", RepL4NLP 2021.
"""
from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from .batching import by_budget
from .tokens import Tokens
from .transfer import moved


class _Replay:
    """The state of the random generators and of autocast, to run a forward pass a second time as it ran the first."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state(device) if device.type == 'cuda' else None
        self.autocast = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)

    def __enter__(self) -> None:
        self.fork = torch.random.fork_rng([self.device] if self.cuda is not None else [])
        self.fork.__enter__()
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)
        self.cast = torch.autocast(self.device.type, dtype=self.autocast[1], enabled=self.autocast[0])
        self.cast.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.cast.__exit__(*error)
        self.fork.__exit__(*error)


def _no_sync(module: torch.nn.Module, last: bool) -> AbstractContextManager:
    """Several processes exchange gradients once, after the last micro-batch."""
    return nullcontext() if last or not hasattr(module, 'no_sync') else module.no_sync()


class _CachedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, _: torch.Tensor, module: torch.nn.Module, parts: list[Tokens],
                device: torch.device) -> torch.Tensor:
        ctx.module, ctx.parts, ctx.replays, vectors = module, parts, [], []
        for part in parts:
            ctx.replays.append(_Replay(device))
            vectors.append(module(part))
        return torch.cat(vectors)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, ...]:
        pieces = grad.split([len(part) for part in ctx.parts])
        for i, (part, replay, piece) in enumerate(zip(ctx.parts, ctx.replays, pieces)):
            with torch.enable_grad(), _no_sync(ctx.module, i == len(ctx.parts) - 1):
                with replay:
                    vectors = ctx.module(part)
                vectors.backward(piece)
        return None, None, None, None


def cached_forward(module: torch.nn.Module, tokens: Tokens, micro_batch_tokens: int) -> torch.Tensor:
    """What `module(tokens)` gives, with equal gradients, in the memory of `micro_batch_tokens` tokens.

    The vectors are computed without a graph; when the loss over all of them is differentiated, each micro-batch is
    run again, with the same dropout, and takes its part of the gradient: a third more time.

    Args:
        module: The encoder, perhaps wrapped for several processes.
        tokens: N texts.
        micro_batch_tokens: Most tokens of a micro-batch; a text that is longer is one by itself.

    Returns:
        float32[N, D], in the order given.
    """
    parameter = next(p for p in module.parameters() if p.requires_grad)
    order = np.argsort(tokens.lengths, kind='stable')
    groups = [order[part] for part in by_budget(tokens.lengths[order], micro_batch_tokens)]
    if len(groups) <= 1 or not torch.is_grad_enabled():
        return module(tokens)
    anchor = torch.zeros((), device=parameter.device, requires_grad=True)
    vectors = _CachedForward.apply(anchor, module, [tokens.take(rows) for rows in groups], parameter.device)
    return vectors[moved(np.argsort(np.concatenate(groups)), vectors.device)]
