"""Token vectors of a text store's rows, on disk in half precision, computed when first asked for."""
from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from .._files import atomic_dir, read_json, unless_made, write_at, write_json

_VECTORS, _CHECKS = 'vectors.f2', 'checks.u4'


class TokenVectors:
    """float16[T, D] in a memory map, a run of rows for each text, and a checksum for each text that is there.

    Processes may share one: a text's vectors are written before its checksum, and all would write the same.

    Args:
        path: The directory; made when it is not there.
        lengths: int64[N], token vectors of each text.
        dim: D.
        encode: Rows → their token vectors, float16[T', D], one text after the other.
        key: What the vectors depend on, teacher and texts; a directory with another key is refused.

    Raises:
        ValueError: The directory belongs to another teacher or to other texts.
    """

    def __init__(self, path: str | os.PathLike, lengths: np.ndarray, dim: int,
                 encode: Callable[[np.ndarray], torch.Tensor], key: str) -> None:
        self.path, self.lengths, self.encode = Path(path), np.asarray(lengths, dtype=np.int64), encode
        self.offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        shape = (int(self.offsets[-1]), dim)
        if not self.path.exists():
            with unless_made(self.path), atomic_dir(self.path) as part:
                _sparse(part / _VECTORS, 2 * shape[0] * dim)   # takes room as it fills
                np.zeros(len(self.lengths), dtype=np.uint32).tofile(part / _CHECKS)
                write_json(part / 'meta.json', {'key': key, 'shape': list(shape)})
        meta = read_json(self.path / 'meta.json')
        if meta != {'key': key, 'shape': list(shape)}:
            raise ValueError(f'{self.path} holds vectors of another teacher or other texts ({meta}, now {key}, '
                             f'{list(shape)}): use another cache_dir, or delete it')
        self._vectors = self._map(_VECTORS, np.float16, shape)
        self._checks = self._map(_CHECKS, np.uint32, (len(self.lengths),))   # 0 where there is nothing yet

    def _map(self, name: str, dtype: type, shape: tuple[int, ...]) -> np.memmap:
        file, wanted = self.path / name, int(np.prod(shape)) * np.dtype(dtype).itemsize
        if not file.exists() or file.stat().st_size != wanted:
            raise ValueError(f'{file} is missing or has not the {wanted} bytes that it should: it is damaged, delete '
                             f'{self.path}')
        return np.asarray(np.memmap(file, dtype=dtype, mode='r', shape=shape))

    def take(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """float16[T', D] token vectors of the rows, one after the other, and long[n] their lengths."""
        rows = np.asarray(rows, dtype=np.int64)
        self.fill(rows)
        return torch.from_numpy(np.concatenate([self._of(row) for row in rows])), torch.from_numpy(self.lengths[rows])

    def fill(self, rows: np.ndarray) -> None:
        """Compute what is not there yet, or not as it was written."""
        missing = np.array([row for row in np.unique(rows) if not self._has(row)], dtype=np.int64)
        if not len(missing):
            return
        found = in_half(self.encode(missing)).numpy()
        # written by calls, which a full disk refuses; a store into the map would end the process
        with open(self.path / _VECTORS, 'r+b', buffering=0) as vectors, \
                open(self.path / _CHECKS, 'r+b', buffering=0) as checks:
            starts = np.cumsum(self.lengths[missing]) - self.lengths[missing]
            for row, start in zip(missing.tolist(), starts.tolist()):
                some = np.ascontiguousarray(found[start:start + self.lengths[row]])
                write_at(vectors, self.offsets[row] * found.shape[1] * 2, some)
                write_at(checks, 4 * row, np.array([_check(some)], dtype=np.uint32))

    def _has(self, row: int) -> bool:
        # a row that is not there is not looked at: on some disks a look into a hole takes room
        return bool(self._checks[row]) and self._checks[row] == _check(self._of(row))

    def _of(self, row: int) -> np.ndarray:
        return self._vectors[self.offsets[row]:self.offsets[row + 1]]


def in_half(vectors: torch.Tensor) -> torch.Tensor:
    """float16 on the CPU.

    Raises:
        ValueError: A number is beyond half precision, or none.
    """
    half = vectors.half().cpu()
    if not torch.isfinite(half).all():
        most = vectors.float().abs().max().item()
        raise ValueError(f'the teacher\'s token vectors have numbers up to {most:.3g}, and half precision holds 65504: '
                         'take normalize=True, or compute them anew each time (cache_bytes=0, no cache_dir)')
    return half


def _sparse(file: Path, size: int) -> None:
    with open(file, 'wb') as out:
        out.truncate(size)


def _check(vectors: np.ndarray) -> int:
    return zlib.crc32(vectors) | 1
