"""The batches of a run in the order of its steps, made ahead of their use."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch.utils.data import Dataset, Sampler

SaveMemory = Callable[[int, Any], bool]   # (a step's first batch, the batch, or None where it could not be made)


class Batches(Protocol):
    """Every batch, as a pure function of its number."""

    def __getitem__(self, number: int) -> Any: ...


class BatchStream(Dataset):
    """Batch number → (number, batch), made in a thread ahead of their use: a GPU need not wait for the next.

    Args:
        batches: Makes them.
        n_batches: How many the run has, on all processes.
        ahead: How many are made before they are asked for.
        stride: From one of this process's batches to its next.
        save_memory: Called where the GPU's memory was too small to make one; True where it can be tried again.
    """

    def __init__(self, batches: Batches, n_batches: int, ahead: int = 0, stride: int = 1,
                 save_memory: SaveMemory | None = None) -> None:
        self.batches, self.n_batches, self.ahead, self.stride = batches, n_batches, ahead, stride
        self.save_memory = save_memory
        self._pool, self._made = ThreadPoolExecutor(1), {}

    def __len__(self) -> int:
        return self.n_batches

    def __getitem__(self, number: int) -> tuple[int, Any]:
        try:
            return number, self._made_ahead(number) if self.ahead else self.batches[number]
        except torch.OutOfMemoryError as error:   # of a live teacher, on the same GPU
            if self.save_memory is None or not self.save_memory(number, None):
                raise torch.OutOfMemoryError(
                    f'{error} (in the in-batch teacher, which shares the GPU with the student: store its scores first, '
                    'TeacherScores.build, or give it another device=)') from error
        self._made.clear()   # those after it may have failed as well
        return self[number]

    def _made_ahead(self, number: int) -> Any:
        for later in range(number, min(number + 1 + self.ahead * self.stride, self.n_batches), self.stride):
            if later not in self._made:
                self._made[later] = self._pool.submit(self.batches.__getitem__, later)
        return self._made.pop(number).result()

    def again(self, number: int) -> Any:
        """A batch that was there before, made where all are: a teacher is asked by one thread."""
        return self._pool.submit(self.batches.__getitem__, number).result() if self.ahead else self.batches[number]

    def close(self) -> None:
        """Make no more of them."""
        self._pool.shutdown(cancel_futures=True)


class NumbersFrom(Sampler):
    """The batch numbers from `start` on: resuming at step 500,000 costs what step 0 costs."""

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop = start, stop

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.stop))

    def __len__(self) -> int:
        return self.stop  # the schedule counts the whole run, whatever part of it is left
