"""Texts and their ids on disk, memory-mapped: millions of passages cost no memory."""
from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ._files import atomic_dir, fingerprint, read_json, write_json


class StringArray(Sequence):
    """Strings as one block of utf-8 and their offsets, both memory-mapped.

    Args:
        path: Prefix of the two files, `.bin` and `.offsets.npy`.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.offsets = np.load(f'{path}.offsets.npy', mmap_mode='r', allow_pickle=False)
        size = int(self.offsets[-1])
        if os.path.getsize(f'{path}.bin') != size:
            raise ValueError(f'{path}.bin has {os.path.getsize(f"{path}.bin")} bytes, not the {size} that its offsets '
                             'say: it is damaged, delete the directory and build it again')
        self._bytes = np.memmap(f'{path}.bin', dtype=np.uint8, mode='r') if size else np.empty(0, dtype=np.uint8)

    @staticmethod
    def write(path: str | os.PathLike, strings: Iterable[str]) -> str:
        """Write strings as they come; returns a hash of them."""
        import hashlib
        digest, offsets, at = hashlib.sha256(), [0], 0
        with open(f'{path}.bin', 'wb') as out:
            for string in strings:
                blob = string.encode('utf-8', 'surrogatepass')
                out.write(blob)
                digest.update(len(blob).to_bytes(8, 'little') + blob)
                at += len(blob)
                offsets.append(at)
        np.save(f'{path}.offsets.npy', np.asarray(offsets, dtype=np.int64), allow_pickle=False)
        return digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> str:
        row = int(row)
        if not -len(self) <= row < len(self):
            raise IndexError(f'row {row} of {len(self)}')
        row %= len(self)
        return self._bytes[self.offsets[row]:self.offsets[row + 1]].tobytes().decode('utf-8', 'surrogatepass')

    def __iter__(self) -> Iterator[str]:
        return (self[row] for row in range(len(self)))


class TextStore:
    """Texts by row, and rows by id.

    Args:
        path: A directory that :meth:`build` made.

    Raises:
        ValueError: There is no store at `path`, or it is damaged.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        if not (self.path / 'meta.json').exists():
            raise ValueError(f'{self.path} is no text store: TextStore.build(path, (id, text) pairs) makes one')
        self.fingerprint = read_json(self.path / 'meta.json')['fingerprint']
        self.ids = StringArray(self.path / 'ids')
        self._texts = StringArray(self.path / 'texts')
        self._rows: dict[str, int] | None = None

    @classmethod
    def build(cls, path: str | os.PathLike, items: Iterable[tuple[str, str]]) -> TextStore:
        """Write (id, text) pairs as they come; the store appears when it is whole.

        Raises:
            ValueError: An id comes twice, or a text is no string.
        """
        with atomic_dir(path) as part:
            ids: dict[str, None] = {}

            def texts() -> Iterator[str]:
                for i, text in items:
                    if i in ids:
                        raise ValueError(f'id {i!r} comes twice: ids must be distinct')
                    if not isinstance(text, str):
                        raise ValueError(f'the text of {i!r} is no string but {type(text).__name__}')
                    ids[i] = None
                    yield text
            text_hash = StringArray.write(part / 'texts', texts())
            id_hash = StringArray.write(part / 'ids', ids)
            write_json(part / 'meta.json', {'n': len(ids), 'fingerprint': fingerprint(id_hash, text_hash)})
        return cls(path)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> str:
        return self._texts[row]

    def take(self, rows: np.ndarray) -> list[str]:
        """The texts of these rows."""
        return [self._texts[row] for row in rows]

    def index_of(self, ids: Sequence[str]) -> np.ndarray:
        """int64[n], the row of each id; −1 where it is not in the store."""
        if self._rows is None:
            self._rows = {i: row for row, i in enumerate(self.ids)}
        return np.fromiter((self._rows.get(str(i), -1) for i in ids), dtype=np.int64, count=len(ids))

    def __repr__(self) -> str:
        return f'TextStore({str(self.path)!r}, {len(self):,} texts)'
