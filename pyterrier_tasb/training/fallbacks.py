"""What a training run does without since its GPU's memory was too small, and from which batch on."""
from __future__ import annotations

import math
from pathlib import Path

from .._files import read_json, write_json


class Fallbacks:
    """Kept in a file, so that a call that goes on does without at the same batches.

    Args:
        file: Where.
        going_on: Whether there is a run to go on with; what the file says is of another one otherwise.
    """

    def __init__(self, file: Path, *, going_on: bool) -> None:
        self.file = file
        if not going_on:
            file.unlink(missing_ok=True)
        found = read_json(file, needs=['plain_from', 'halvings']) if file.exists() else {}
        plain_from = found.get('plain_from')
        self.plain_from = math.inf if plain_from is None else plain_from   # from this batch on, no captured steps
        self.halvings: list[list[int]] = found.get('halvings', [])   # [batch, tokens at a time from it on]

    def micro_batch_tokens(self, batch: int, wanted: int | None) -> int | None:
        """Tokens at a time in a batch; None for all at once."""
        return min([tokens for first, tokens in self.halvings if first <= batch], default=wanted)

    def capture_no_more(self, first: int) -> None:
        """From a batch on."""
        self.plain_from = first
        self._write()

    def halve(self, first: int, tokens: int) -> None:
        """From a batch on, this many tokens at a time."""
        self.halvings = [*(some for some in self.halvings if some[0] <= first), [first, tokens]]
        self._write()

    def describe(self) -> str:
        """What a call that goes on finds, for messages; empty where that is nothing."""
        parts = [f'{tokens:,} tokens at a time from batch {first} on' for first, tokens in self.halvings]
        if self.plain_from < math.inf:
            parts = [f'without captured steps from batch {self.plain_from} on', *parts]
        return ', '.join(parts)

    def _write(self) -> None:
        write_json(self.file, {'plain_from': None if self.plain_from == math.inf else self.plain_from,
                               'halvings': self.halvings})
