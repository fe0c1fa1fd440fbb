"""Token vectors of a text store's rows, on disk in half precision, computed when first asked for."""
from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from .._files import atomic_dir, read_json, write_json


class TokenVectors:
    """float16[T, D] in a memory map, a run of rows for each text, and a checksum for each text that is there.

    Processes may share one: a text's vectors are written before its checksum, and all would write the same.

    Args:
        path: The directory; made when it is not there.
        lengths: int64[N], token vectors of each text.
        dim: D.
        encode: Rows → their token vectors, one float16[L, D] each.
        key: What the vectors depend on, teacher and texts; a directory with another key is refused.

    Raises:
        ValueError: The directory belongs to another teacher or to other texts.
    """

    def __init__(self, path: str | os.PathLike, lengths: np.ndarray, dim: int,
                 encode: Callable[[np.ndarray], list[torch.Tensor]], key: str) -> None:
        self.path, self.lengths, self.encode = Path(path), np.asarray(lengths, dtype=np.int64), encode
        self.offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        shape = (int(self.offsets[-1]), dim)
        if not self.path.exists():
            try:
                with atomic_dir(self.path) as part:
                    np.memmap(part / 'vectors.f2', dtype=np.float16, mode='w+', shape=shape)
                    np.memmap(part / 'checks.u4', dtype=np.uint32, mode='w+', shape=(len(self.lengths),))
                    write_json(part / 'meta.json', {'key': key, 'shape': list(shape)})
            except OSError:
                if not self.path.exists():   # another process may have made it meanwhile
                    raise
        meta = read_json(self.path / 'meta.json')
        if meta != {'key': key, 'shape': list(shape)}:
            raise ValueError(f'{self.path} holds vectors of another teacher or other texts ({meta}, now {key}, '
                             f'{list(shape)}): use another cache_dir, or delete it')
        self._vectors = self._map('vectors.f2', np.float16, shape)
        self._checks = self._map('checks.u4', np.uint32, (len(self.lengths),))   # 0 where there is nothing yet

    def _map(self, name: str, dtype: type, shape: tuple[int, ...]) -> np.memmap:
        file, wanted = self.path / name, int(np.prod(shape)) * np.dtype(dtype).itemsize
        if not file.exists() or file.stat().st_size != wanted:
            raise ValueError(f'{file} is missing or has not the {wanted} bytes that it should: it is damaged, delete '
                             f'{self.path}')
        return np.memmap(file, dtype=dtype, mode='r+', shape=shape)

    def take(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """float16[T', D] token vectors of the rows, one after the other, and long[n] their lengths."""
        rows = np.asarray(rows, dtype=np.int64)
        self.fill(rows)
        return torch.from_numpy(np.concatenate([self._of(row) for row in rows])), torch.from_numpy(self.lengths[rows])

    def fill(self, rows: np.ndarray) -> None:
        """Compute what is not there yet, or not as it was written."""
        missing = [row for row in np.unique(rows) if self._checks[row] != _check(self._of(row))]
        missing = np.array(missing, dtype=np.int64)
        if not len(missing):
            return
        for row, vectors in zip(missing, self.encode(missing), strict=True):
            self._of(row)[:] = vectors.numpy()
        self._vectors.flush()
        self._checks[missing] = [_check(self._of(row)) for row in missing]

    def _of(self, row: int) -> np.ndarray:
        return self._vectors[self.offsets[row]:self.offsets[row + 1]]


def _check(vectors: np.ndarray) -> int:
    return zlib.crc32(vectors) | 1
