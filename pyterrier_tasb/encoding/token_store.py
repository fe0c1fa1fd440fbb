"""Token ids of a whole collection on disk: made once, read by training, validation, teachers and indexing."""
from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyterrier as pt
from transformers import PreTrainedTokenizerBase

from .._files import OnDisk, atomic_dir, differences, fingerprint, read_json, unless_made, write_json
from .._locks import LOCK, locked
from .._threads import in_order
from ..texts import TextRows, TextStore
from .tokens import Tokens, gather, tokenise, tokenizer_fingerprint

_CHUNK = 20_000   # texts tokenised between two saves, what an interruption can lose: some seconds
_META, _IDS, _OFFSETS = 'meta.json', 'ids.bin', 'offsets.bin'


class Texts(Protocol):
    """What a store is made of: a `TextStore`."""
    fingerprint: str

    def __len__(self) -> int: ...

    def take(self, rows: np.ndarray) -> list[str]: ...  # noqa: D102


def _beside(texts: TextStore, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Path:
    """Where a text store's tokens lie."""
    return texts.path / f'tokens-{fingerprint(tokenizer_fingerprint(tokenizer), max_length)[:8]}'


class TokenStore(OnDisk):
    """Tokens by row, memory-mapped.

    A pickle names the directory and holds no tokens; copies share it.

    Args:
        path: A directory that :meth:`build` made.

    Raises:
        ValueError: There is no whole store at `path`, or its files are damaged.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path).absolute()   # also after a change of directory
        meta = _read_meta(self.path)
        if not meta.get('complete'):
            raise ValueError(f'{self.path} holds no whole token store: call TokenStore.build again with this path')
        self.key: dict[str, Any] = meta['key']
        self.fingerprint = fingerprint(self.key)
        self._offsets = _map(self.path / _OFFSETS, 'int64', meta['rows'] + 1)
        self._ids = _map(self.path / _IDS, meta['dtype'], meta['tokens'])
        for (row, stop), checksum in zip(_chunks(0, meta['rows']), meta['checksums']):
            ends = self._offsets[row + 1:stop + 1]
            if _checksum(self._ids[self._offsets[row]:ends[-1]], ends) != checksum:
                raise ValueError(f'{self.path}: tokens of texts {row} to {stop - 1} are damaged; delete the directory '
                                 'and build it again')

    @classmethod
    def build(cls, path: str | os.PathLike, texts: Texts, tokenizer: PreTrainedTokenizerBase, max_length: int, *,
              n_jobs: int = 1) -> TokenStore:
        """Tokenise texts into `path`, go on where an interrupted call stopped, or open what is there.

        Args:
            path: The store's directory.
            texts: What to tokenise.
            tokenizer: Its own threads work on a chunk (unless TOKENIZERS_PARALLELISM forbids).
            max_length: Tokens of a text, special tokens included.
            n_jobs: Chunks that are worked on at a time.

        Raises:
            ValueError: `path` holds tokens of other texts, of another tokenizer or of another length.
        """
        path, key = Path(path), cls.key_of(texts, tokenizer, max_length)
        largest = max(tokenizer.get_vocab().values())
        if not _begun(path, key, 'uint16' if largest < 2 ** 16 else 'uint32')['complete']:
            with locked(path, wait=True):
                meta = _read_meta(path)   # another process may have gone on with it meanwhile
                if not meta['complete']:
                    _write(path, meta, texts, tokenizer, n_jobs)
            (path / LOCK).unlink(missing_ok=True)
        return cls(path)

    @classmethod
    def of(cls, texts: TextStore | TextRows, tokenizer: PreTrainedTokenizerBase, max_length: int, *,
           elsewhere: Path | None = None, n_jobs: int = 1) -> TokenStore | TokenRows:
        """The tokens of a text store, which lie with it: made when first asked for, then read by all who ask.

        Args:
            texts: A text store, or some of its rows.
            tokenizer: See :meth:`build`.
            max_length: See :meth:`build`.
            elsewhere: Where they go when the text store's directory cannot be written.
            n_jobs: See :meth:`build`.

        Raises:
            ValueError: The text store's directory is gone, and there is no `elsewhere`.
        """
        if isinstance(texts, TextRows):
            whole = cls.of(texts.store, tokenizer, max_length, elsewhere=elsewhere, n_jobs=n_jobs)
            return TokenRows(whole, texts.rows)
        path = _beside(texts, tokenizer, max_length)
        if elsewhere is not None and not cls.can_lie_with(texts, tokenizer, max_length):
            path = elsewhere / f'{texts.fingerprint}-{path.name}'
        elif not texts.path.exists():
            raise ValueError(f'{texts!r} is gone from the disk, so its tokens cannot lie with it: open a store that is '
                             'there, or TokenStore.build(path, …) elsewhere')
        tokens = cls.build(path, texts, tokenizer, max_length, n_jobs=n_jobs)
        tokens.temporary = texts.temporary
        return tokens

    @staticmethod
    def can_lie_with(texts: TextStore, tokenizer: PreTrainedTokenizerBase, max_length: int) -> bool:
        """Whether a text store's tokens are in its directory, or can be made there."""
        return _beside(texts, tokenizer, max_length).exists() or os.access(texts.path, os.W_OK)

    @staticmethod
    def key_of(texts: Texts, tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, Any]:
        """What the tokens of these texts depend on."""
        return {'tokenizer': tokenizer_fingerprint(tokenizer), 'max_length': max_length, 'texts': texts.fingerprint,
                'n': len(texts)}

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __repr__(self) -> str:
        return f'TokenStore({str(self.path)!r}, {len(self):,} texts, {len(self._ids):,} tokens)'

    @property
    def lengths(self) -> np.ndarray:
        """int64[N], tokens of each text."""
        return np.diff(self._offsets)

    def take(self, rows: np.ndarray | None) -> Tokens:
        """The texts of these rows, in this order; None takes all."""
        if rows is None:
            return Tokens(self._ids.astype(np.int64), np.array(self._offsets))
        return gather(self._ids, self._offsets, rows)


class TokenRows:
    """Tokens of some of a store's texts, in an order of their own.

    Args:
        store: The tokens.
        rows: int64[N], rows of the store.
    """

    def __init__(self, store: TokenStore, rows: np.ndarray) -> None:
        self.store, self.rows = store, rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> np.ndarray:
        """int64[N], tokens of each text."""
        return self.store.lengths[self.rows]

    def take(self, rows: np.ndarray | None) -> Tokens:
        """The texts of these rows, in this order; None takes all."""
        return self.store.take(self.rows if rows is None else self.rows[rows])


def _chunks(row: int, n: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + _CHUNK, n)) for start in range(row, n, _CHUNK))


def _map(file: Path, dtype: str, count: int) -> np.ndarray:
    size = file.stat().st_size if file.exists() else 0
    if size != count * np.dtype(dtype).itemsize:
        raise ValueError(f'{file} has {size} bytes, not {count * np.dtype(dtype).itemsize}: it is damaged; delete the '
                         'directory and build it again')
    return np.memmap(file, dtype=dtype, mode='r') if count else np.empty(0, dtype=dtype)


def _checksum(ids: np.ndarray, ends: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(ids), zlib.crc32(np.ascontiguousarray(ends)))


def _read_meta(path: Path) -> dict[str, Any]:
    return read_json(path / _META) if (path / _META).exists() else {}


def _begun(path: Path, key: dict[str, Any], dtype: str) -> dict[str, Any]:
    """What is there already, or an empty store."""
    meta = _read_meta(path)
    if not meta:
        if path.exists():
            raise ValueError(f'{path} holds other files and no token store: give another path')
        with unless_made(path), atomic_dir(path) as part:
            (part / _IDS).touch()
            np.zeros(1, dtype=np.int64).tofile(part / _OFFSETS)
            write_json(part / _META, {'key': key, 'dtype': dtype, 'rows': 0, 'tokens': 0, 'checksums': [],
                                      'complete': False})
        meta = _read_meta(path)
    if meta['key'] != key:
        raise ValueError(f'{path} holds the tokens of another call: {differences(meta["key"], key)}. Give another '
                         'path, or delete this one')
    return meta


def _write(path: Path, meta: dict[str, Any], texts: Texts, tokenizer: PreTrainedTokenizerBase, n_jobs: int) -> None:
    """Append chunk by chunk; the files are as long as `meta` says, or longer by what was being written."""
    def work(chunk: tuple[int, int]) -> Tokens:
        return tokenise(tokenizer, texts.take(np.arange(*chunk)), meta['key']['max_length'])

    n, width = len(texts), np.dtype(meta['dtype']).itemsize
    with open(path / _IDS, 'r+b') as ids_file, open(path / _OFFSETS, 'r+b') as offsets_file, \
            ThreadPoolExecutor(n_jobs) as pool, \
            pt.tqdm(total=n, initial=meta['rows'], desc='tokenising', unit='texts', disable=n <= _CHUNK) as bar:
        ids_file.truncate(meta['tokens'] * width)
        offsets_file.truncate((meta['rows'] + 1) * 8)
        ids_file.seek(0, os.SEEK_END)
        offsets_file.seek(0, os.SEEK_END)
        for tokens in in_order(pool, work, _chunks(meta['rows'], n), n_jobs + 1):
            ids, ends = tokens.ids.astype(meta['dtype']), tokens.offsets[1:] + meta['tokens']
            for file, array in ((ids_file, ids), (offsets_file, ends)):
                file.write(array.tobytes())
                file.flush()
                os.fsync(file.fileno())
            meta.update(rows=meta['rows'] + len(tokens), tokens=int(ends[-1]),
                        checksums=[*meta['checksums'], _checksum(ids, ends)])
            write_json(path / _META, meta)
            bar.update(len(tokens))
    write_json(path / _META, {**meta, 'complete': True})
