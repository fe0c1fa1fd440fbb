"""Texts and their ids on disk, memory-mapped: millions of passages cost no memory."""
from __future__ import annotations

import hashlib
import numbers
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from more_itertools import chunked

from ._files import OnDisk, atomic_dir, check_new, check_unharmed, file_fingerprint, fingerprint, read_json, write_json

_FILES = ('ids.bin', 'ids.offsets.npy', 'texts.bin', 'texts.offsets.npy', 'hashes.npy', 'rows.npy')


class StringArray(Sequence):
    """Strings as one block of utf-8 and their offsets, both memory-mapped.

    Args:
        path: Prefix of the two files, `.bin` and `.offsets.npy`.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        # plain views: a look into a memory map costs more in its class than in the disk
        self.offsets = np.asarray(np.load(f'{path}.offsets.npy', mmap_mode='r', allow_pickle=False))
        size = int(self.offsets[-1])
        if os.path.getsize(f'{path}.bin') != size:
            raise ValueError(f'{path}.bin has {os.path.getsize(f"{path}.bin")} bytes, not the {size} that its offsets '
                             'say: it is damaged, delete the directory and build it again')
        self._bytes = np.asarray(np.memmap(f'{path}.bin', dtype=np.uint8, mode='r')) if size else np.empty(0, np.uint8)

    @staticmethod
    def write(path: str | os.PathLike, strings: Iterable[str]) -> None:
        """Write strings as they come."""
        with StringWriter(path) as writer:
            for some in chunked(strings, 10_000):
                writer.extend(some)

    @staticmethod
    def read(path: str | os.PathLike) -> Iterator[str]:
        """The strings in order, read and not mapped: no memory is taken up by them."""
        sizes = np.diff(np.load(f'{path}.offsets.npy', mmap_mode='r', allow_pickle=False))
        with open(f'{path}.bin', 'rb') as strings:
            for size in sizes:
                yield strings.read(size).decode('utf-8', 'surrogatepass')

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        row = int(row)
        if not -len(self) <= row < len(self):
            raise IndexError(f'row {row} of {len(self)}')
        row %= len(self)
        return self._bytes[self.offsets[row]:self.offsets[row + 1]].tobytes().decode('utf-8', 'surrogatepass')

    def __iter__(self) -> Iterator[str]:
        return (self[row] for row in range(len(self)))

    def is_at(self, row: int, blob: bytes) -> bool:
        """Whether row `row` is the string of this utf-8."""
        return self._bytes[self.offsets[row]:self.offsets[row + 1]].tobytes() == blob


class StringWriter:
    """Writes the files of a :class:`StringArray`, a string at a time."""

    def __init__(self, path: str | os.PathLike) -> None:
        self.path, self.offsets = path, array('q', [0])

    def __enter__(self) -> StringWriter:
        self._out = open(f'{self.path}.bin', 'wb')
        return self

    def add(self, string: str) -> bytes:
        """Write a string; gives its utf-8."""
        blob = string.encode('utf-8', 'surrogatepass')
        self._out.write(blob)
        self.offsets.append(self.offsets[-1] + len(blob))
        return blob

    def extend(self, strings: Iterable[str]) -> None:
        """Write some strings."""
        blobs = [string.encode('utf-8', 'surrogatepass') for string in strings]
        self._out.write(b''.join(blobs))
        ends = self.offsets[-1] + np.cumsum(list(map(len, blobs)), dtype=np.int64)
        self.offsets.frombytes(ends.tobytes())

    def __exit__(self, *exception: object) -> None:
        self._out.close()
        np.save(f'{self.path}.offsets.npy', np.frombuffer(self.offsets, dtype=np.int64), allow_pickle=False)


class TextStore(OnDisk):
    """Texts by row, and rows by id.

    A pickle names the directory and holds no texts; copies share it.

    Args:
        path: A directory that :meth:`build` made.

    Raises:
        ValueError: There is no store at `path`, or it is damaged.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path).absolute()   # also after a change of directory
        if not (self.path / 'meta.json').exists():
            raise ValueError(f'{self.path} is no text store: TextStore.build(path, (id, text) pairs) makes one')
        self.fingerprint = read_json(self.path / 'meta.json', needs=['fingerprint'])['fingerprint']
        check_unharmed(self.path, _fingerprint(self.path), self.fingerprint)
        self.ids = StringArray(self.path / 'ids')
        self._texts = StringArray(self.path / 'texts')
        self._hashes, self._rows = (np.asarray(np.load(self.path / f'{name}.npy', mmap_mode='r', allow_pickle=False))
                                    for name in ('hashes', 'rows'))

    @classmethod
    def build(cls, path: str | os.PathLike, items: Iterable[tuple[str, str]]) -> TextStore:
        """Write (id, text) pairs as they come; the store appears when it is whole.

        Raises:
            ValueError: `path` exists, an item is no pair, an id comes twice, or a text is no string.
        """
        check_new(path, 'TextStore')
        with atomic_dir(path) as part:
            hashes = array('Q')
            with StringWriter(part / 'texts') as texts, StringWriter(part / 'ids') as ids:
                for number, item in enumerate(items):
                    if isinstance(item, (str, bytes, Mapping)) or len(item) != 2:   # two letters would pass for a pair
                        raise ValueError(f'{item!r:.80} is no (id, text) pair: of documents, give ((doc["docno"], '
                                         'doc["text"]) for doc in corpus)')
                    i, text = item
                    if not is_id(i):
                        raise ValueError(f'the id of text number {number} is {i!r}: give a string or a whole number')
                    if not isinstance(text, str):
                        raise ValueError(f'the text of {i!r} is no string but {type(text).__name__}')
                    texts.add(text)
                    hashes.append(hash_of(ids.add(str(i))))
            hashes = np.frombuffer(hashes, dtype=np.uint64)
            rows = np.argsort(hashes, kind='stable')
            _check_distinct(StringArray(part / 'ids'), hashes[rows], rows)
            np.save(part / 'hashes.npy', hashes[rows], allow_pickle=False)
            np.save(part / 'rows.npy', rows.astype(np.int64), allow_pickle=False)
            write_json(part / 'meta.json', {'n': len(rows), 'fingerprint': _fingerprint(part)})
        return cls(path)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> str:
        return self._texts[row]

    def take(self, rows: np.ndarray) -> list[str]:
        """The texts of these rows."""
        return [self._texts[row] for row in rows]

    def ids_of(self, rows: np.ndarray) -> list[str]:
        """The ids of these rows."""
        return [self.ids[row] for row in rows]

    def index_of(self, ids: Sequence[str]) -> np.ndarray:
        """int64[n], the row of each id; −1 where it is not in the store."""
        blobs = [str(i).encode('utf-8', 'surrogatepass') for i in ids]
        hashes = np.fromiter(map(hash_of, blobs), dtype=np.uint64, count=len(blobs))
        first, last = (np.searchsorted(self._hashes, hashes, side).tolist() for side in ('left', 'right'))
        found = (next((row for row in self._rows[start:stop].tolist() if self.ids.is_at(row, blob)), -1)
                 for blob, start, stop in zip(blobs, first, last))
        return np.fromiter(found, dtype=np.int64, count=len(blobs))

    def __repr__(self) -> str:
        return f'TextStore({str(self.path)!r}, {len(self):,} texts)'


class TextRows:
    """Some of a store's texts, in an order of their own, without a copy.

    Args:
        store: The texts.
        rows: int64[N], rows of the store.
    """

    def __init__(self, store: TextStore, rows: np.ndarray) -> None:
        self.store, self.rows = store, np.asarray(rows, dtype=np.int64)
        self.fingerprint = fingerprint(store.fingerprint, self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> str:
        return self.store[self.rows[row]]

    def take(self, rows: np.ndarray) -> list[str]:
        """The texts of these rows."""
        return self.store.take(self.rows[rows])

    def ids_of(self, rows: np.ndarray) -> list[str]:
        """The ids of these rows."""
        return self.store.ids_of(self.rows[rows])

    def __repr__(self) -> str:
        return f'TextRows({self.store!r}, {len(self):,} of them)'


def _fingerprint(folder: Path) -> str:
    return file_fingerprint(*(folder / name for name in _FILES))


def is_id(value: Any) -> bool:
    """A string or a whole number: a missing value makes decimals of whole numbers."""
    return isinstance(value, (str, numbers.Integral)) and not isinstance(value, bool)


def hash_of(blob: bytes) -> int:
    """64 bits that stand for an id where ids would take too much memory."""
    return int.from_bytes(hashlib.blake2b(blob, digest_size=8).digest(), 'little')


def _check_distinct(ids: StringArray, hashes: np.ndarray, rows: np.ndarray) -> None:
    for at in np.flatnonzero(hashes[1:] == hashes[:-1]):
        first, second = ids[rows[at]], ids[rows[at + 1]]
        if first == second:
            raise ValueError(f'id {first!r} comes twice: ids must be distinct')
