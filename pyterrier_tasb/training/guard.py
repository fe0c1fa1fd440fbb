"""A run's losses and gradients are looked at before its weights move by them."""
from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import torch

from . import checkpoints

_LATE = {'cuda'}   # where losses are read a step later than they are computed
_EXPLODED = 1000.0   # times the largest loss that was logged


class NotFiniteError(ValueError):
    """The loss or the weights became NaN or infinite, or the loss exploded."""


@dataclass
class _Look:
    """A step's losses and gradient norm, and what they must not be.

    Args:
        step: Its number, from 1.
        values: float32[n + 1], the losses of its n batches and the norm; 0 for a norm that is not looked at.
        batches: What each batch was.
        largest: Loss that was logged; 0 before there is one.
        copied: When `values` is read from a GPU, when that is done.
    """
    step: int
    values: torch.Tensor
    batches: list[str]
    largest: float
    copied: torch.cuda.Event | None = None

    @property
    def limit(self) -> float:
        """A larger loss has exploded."""
        return _EXPLODED * max(1.0, self.largest) if self.largest else math.inf

    def bad(self) -> torch.Tensor:
        """bool, on the values' device."""
        return ~(self.values.isfinite().all() & (self.values[:-1] <= self.limit).all())

    def copy(self) -> None:
        """Have the values read when the GPU is there."""
        if self.values.is_cuda:
            self.values, self.copied = self.values.to('cpu', non_blocking=True), torch.cuda.Event()
            self.copied.record()

    def problem(self) -> str | None:
        """What is wrong; None where all is well."""
        if self.copied is not None:
            self.copied.synchronize()
        *losses, norm = self.values.tolist()
        for loss, batch in zip(losses, self.batches):
            if not math.isfinite(loss):
                return f'the loss is {loss} at step {self.step}{batch}'
            if loss > self.limit:
                return (f'the loss exploded to {loss:.3g} at step {self.step}{batch}; until then at most '
                        f'{self.largest:.3g} was logged')
        if not math.isfinite(norm):
            return f'the gradients of step {self.step}{self.batches[-1]} are NaN or infinite, though its loss is not'
        return None


class LossGuard:
    """Stops a run where a step would make nothing good, and says what it can go back to.

    Reading a loss empties a GPU's queue. There the optimiser itself leaves a bad step out, by the flag that loss
    scaling has for that, and the losses are read one step later.

    Args:
        output_dir: Where the run's checkpoints are.
    """

    def __init__(self, output_dir: Path) -> None:
        self.output_dir = output_dir
        self.norm: torch.Tensor | None = None   # of this step's gradients
        self._pending: list[tuple[torch.Tensor, str]] = []   # losses of this step, and their batches
        self._looks: deque[_Look] = deque()   # steps whose losses have not been read
        self._largest, self._seen = 0.0, 0   # loss in the log, and its entries seen

    def add(self, loss: torch.Tensor, batch: str) -> None:
        """A loss of this step, and what its batch was."""
        self._pending.append((loss.detach(), batch))

    def begin_again(self) -> None:
        """This step's losses so far do not count."""
        self._pending.clear()

    def check(self, step: int, history: list[dict[str, float]], optimizer: torch.optim.Optimizer, *,
              scaled: bool) -> None:
        """Look at a step before the weights move.

        Args:
            step: Its number, from 1.
            history: The log so far.
            optimizer: PyTorch's own, which can leave the step out.
            scaled: Whether losses are scaled (fp16): a step without finite gradients is then left out anyway, and the
                next one's losses are scaled less.

        Raises:
            NotFiniteError: This step or one before it was bad.
        """
        self._largest = max([self._largest, *(entry.get('loss', 0.0) for entry in history[self._seen:])])
        self._seen = len(history)
        losses = torch.stack([loss for loss, _ in self._pending]).float()
        norm = losses.new_zeros(()) if self.norm is None or scaled else self.norm.to(losses)
        self._looks.append(_Look(step, torch.cat([losses, norm[None]]), [batch for _, batch in self._pending],
                                 self._largest))
        self._pending.clear()
        if losses.device.type in _LATE and not scaled:
            optimizer.found_inf = self._looks[-1].bad().float()
            self._looks[-1].copy()
            self.read(but=1)
        else:
            self.read()

    def read(self, but: int = 0) -> None:
        """Stop where one of the steps so far was bad, `but` the last ones."""
        while len(self._looks) > but:
            problem = self._looks.popleft().problem()
            if problem:
                self.stop(problem)

    def stop(self, what: str) -> None:
        """Raise it, with the checkpoint to go back to."""
        newest = checkpoints.newest_checkpoint(self.output_dir) or 'none yet'
        raise NotFiniteError(f'{what}; the last checkpoint is {newest}. Lower the learning rate, or look at the '
                             'teacher\'s scores of these queries')
