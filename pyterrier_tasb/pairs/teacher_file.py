"""Published teacher scores → pairs: five columns a line, millions of lines, in flat memory."""
from __future__ import annotations

import gzip
import io
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd
import pyterrier as pt

from .._files import atomic_dir, check_new
from .._threads import in_order
from ..texts import StringArray, TextStore
from .store import ScoredPairs, sorted_arrays, write_arrays, write_meta

_BLOCK = 16 << 20          # bytes of text parsed at a time
_N_BUCKETS = 64            # temporary files that queries are spread over: one is sorted in memory at a time
_MOST_ID = 1 << 28         # numbers below this are kept as numbers; other ids as strings, in dictionaries
_MOST_MARGIN = float(np.finfo(np.float32).max)
_ROW = np.dtype([('query', '<u4'), ('pos', '<u4'), ('neg', '<u4'), ('margin', '<f4')])
_COLUMNS = ('pos_score', 'neg_score', 'query_id', 'pos_pid', 'neg_pid')
_TEXT_COLUMNS = ('pos_score', 'neg_score', 'query', 'pos_text', 'neg_text')


class _NotNumbersError(Exception):
    """Ids that numbers would not give back."""


def from_teacher_file(file: str | os.PathLike, path: str | os.PathLike, *, n_threads: int = 2) -> ScoredPairs:
    """Pairs of a published teacher file: pos_score, neg_score, query_id, pos_pid, neg_pid.

    Columns are separated by spaces and tabs, or other white space of ASCII; a no-break space is part of an id. The file
    is utf-8 and may be gzip. Ids that are numbers cost four bytes each, and 40 million lines less than 1 GB; other ids
    are kept in dictionaries while the file is read.

    Args:
        file: The teacher file.
        path: Where the pairs go; query rows are in an order of their own, see `ScoredPairs.qids`.
        n_threads: Blocks that are parsed at a time.

    Raises:
        ValueError: A line is malformed or not utf-8, or a score no finite number; the message names file and line.
    """
    check_new(path, 'ScoredPairs')
    try:
        return _from_numbers(file, path, n_threads)
    except _NotNumbersError:
        return _from_strings(file, path)


def from_text_file(file: str | os.PathLike, path: str | os.PathLike) -> ScoredPairs:
    """Pairs of a teacher file in text form: pos_score, neg_score, query, pos_text, neg_text, separated by tabs.

    Equal texts are one query or passage; they get the ids q0, q1, … and d0, d1, …, and are kept with the pairs as
    `queries` and `docs`. All distinct texts are in memory meanwhile.

    Args:
        file: The teacher file, plain or gzip.
        path: Where the pairs go.

    Raises:
        ValueError: `path` exists, or a line is malformed or not utf-8; the message names file and line.
    """
    check_new(path, 'ScoredPairs')
    queries: dict[str, int] = {}
    docs: dict[str, int] = {}
    with atomic_dir(path) as part:
        rows = _table(file, (_fields(file, number, line.rstrip(b'\r'), b'\t', _TEXT_COLUMNS)
                             for block in _blocks(file) for number, line in _lines(*block)), queries, docs)
        qids, docnos = ([f'{letter}{i}' for i in range(len(texts))] for letter, texts in (('q', queries), ('d', docs)))
        write_arrays(part, qids, docnos, sorted_arrays(qids, docnos, *(rows[name] for name in _ROW.names)))
        TextStore.build(part / 'queries', zip(qids, queries))
        TextStore.build(part / 'docs', zip(docnos, docs))
        write_meta(part)
    return ScoredPairs(path)


# ---- ids that are numbers ----------------------------------------------------------------------------------------

def _from_numbers(file: str | os.PathLike, path: str | os.PathLike, n_threads: int) -> ScoredPairs:
    seen_queries, seen_docs, n = np.zeros(0, dtype=bool), np.zeros(0, dtype=bool), 0
    with atomic_dir(path) as part, tempfile.TemporaryDirectory(dir=part) as folder:
        buckets = [open(Path(folder) / str(i), 'wb', buffering=1 << 20) for i in range(_N_BUCKETS)]
        try:
            for rows in _parsed(file, n_threads):
                seen_queries = _mark(seen_queries, rows['query'])
                seen_docs = _mark(_mark(seen_docs, rows['pos']), rows['neg'])
                which = rows['query'] % _N_BUCKETS
                order = np.argsort(which, kind='stable')
                ends = np.cumsum(np.bincount(which, minlength=_N_BUCKETS))
                for bucket, some in zip(buckets, np.split(rows[order], ends[:-1]), strict=True):
                    bucket.write(some.tobytes())
                n += len(rows)
        finally:
            for bucket in buckets:
                bucket.close()
        if not n:
            raise ValueError(f'{file} has no lines: expected {", ".join(_COLUMNS)}')
        doc_row = np.cumsum(seen_docs, dtype=np.uint32) - np.uint32(1)   # row of each number among those seen
        qids = np.flatnonzero(seen_queries)
        qids = qids[np.lexsort((qids, qids % _N_BUCKETS))]
        _write_sorted(part, [Path(folder) / str(i) for i in range(_N_BUCKETS)], doc_row, len(qids), n)
        StringArray.write(part / 'qids', map(str, qids.tolist()))
        StringArray.write(part / 'docnos', _as_strings(np.flatnonzero(seen_docs)))
        write_meta(part)
    return ScoredPairs(path)


def _as_strings(numbers: np.ndarray) -> Iterator[str]:
    """A few at a time: a list of 8.8 million integers takes 350 MB."""
    for start in range(0, len(numbers), 1 << 16):
        yield from map(str, numbers[start:start + (1 << 16)].tolist())


def _mark(seen: np.ndarray, ids: np.ndarray) -> np.ndarray:
    most = int(ids.max()) + 1
    if most > len(seen):
        seen = np.concatenate([seen, np.zeros(max(most, 2 * len(seen)) - len(seen), dtype=bool)])
    seen[ids] = True
    return seen


def _write_sorted(part: Path, buckets: list[Path], doc_row: np.ndarray, n_queries: int, n: int) -> None:
    """A bucket after the other: sort by (query, margin, pos, neg) and append to the arrays."""
    sizes = []
    with _npy(part / 'pos.npy', 'uint32', n) as pos, _npy(part / 'neg.npy', 'uint32', n) as neg, \
            _npy(part / 'margin.npy', 'float32', n) as margin:
        for bucket in buckets:
            rows = np.fromfile(bucket, dtype=_ROW)
            bucket.unlink()
            rows['pos'], rows['neg'] = doc_row[rows['pos']], doc_row[rows['neg']]
            rows = rows[np.lexsort((rows['neg'], rows['pos'], rows['margin'], rows['query']))]
            sizes.append(np.unique(rows['query'], return_counts=True)[1])
            for out, name in ((pos, 'pos'), (neg, 'neg'), (margin, 'margin')):
                out.write(np.ascontiguousarray(rows[name]).tobytes())
    indptr = np.zeros(n_queries + 1, dtype=np.int64)
    np.cumsum(np.concatenate(sizes), out=indptr[1:])
    np.save(part / 'indptr.npy', indptr, allow_pickle=False)


def _npy(path: Path, dtype: str, n: int) -> BinaryIO:
    """A .npy file of `n` values whose bytes are still to be written."""
    out = open(path, 'wb')
    header = {'descr': np.dtype(dtype).str, 'fortran_order': False, 'shape': (n,)}
    np.lib.format.write_array_header_1_0(out, header)
    return out


def _parsed(file: str | os.PathLike, n_threads: int) -> Iterator[np.ndarray]:
    """Rows of the file, a block at a time, in order."""
    def parse(block: tuple[int, bytes]) -> np.ndarray:
        return _parse(file, *block)

    with ThreadPoolExecutor(n_threads) as pool:
        yield from in_order(pool, parse, _blocks(file), n_threads + 1)


def _blocks(file: str | os.PathLike) -> Iterator[tuple[int, bytes]]:
    """(number of the first line, whole lines)."""
    size = os.path.getsize(file)
    with open(file, 'rb') as raw, pt.tqdm(total=size, desc=f'reading {Path(file).name}', unit='B', unit_scale=True,
                                          disable=size < _BLOCK) as bar:
        stream = gzip.GzipFile(fileobj=raw) if _is_gzip(raw) else raw
        number, rest = 1, b''
        while True:
            try:
                data = stream.read(_BLOCK)
            except (EOFError, OSError, zlib.error) as error:
                raise ValueError(f'{file}, in or after line {number}: the gzip file is cut off or damaged ({error}): '
                                 'fetch it again') from error
            bar.update(raw.tell() - bar.n)
            block = rest + data
            if number == 1:
                block = block.removeprefix(b'\xef\xbb\xbf')
            end = block.rfind(b'\n') + 1 if data else len(block)
            block, rest = block[:end], block[end:]
            if block.strip():
                yield number, block
            number += block.count(b'\n')
            if not data:
                return


def _is_gzip(raw: BinaryIO) -> bool:
    start = raw.read(2)
    raw.seek(0)
    return start == b'\x1f\x8b'


def _parse(file: str | os.PathLike, number: int, block: bytes) -> np.ndarray:
    try:
        frame = pd.read_csv(io.BytesIO(block), sep=r'\s+', header=None, engine='c', quoting=3, na_filter=False)
    except (pd.errors.ParserError, UnicodeDecodeError):
        frame = None
    if frame is None or frame.shape[1] != 5 or any(frame[i].dtype.kind not in 'fi' for i in (0, 1)):
        _find_bad_line(file, number, block)
        raise _NotNumbersError
    ids = [frame[i].to_numpy() for i in (2, 3, 4)]
    with np.errstate(invalid='ignore', over='ignore'):   # such lines are found and named below
        margin = (frame[0].to_numpy(np.float64) - frame[1].to_numpy(np.float64)).astype(np.float32)
    if not np.isfinite(margin).all():
        _find_bad_line(file, number, block)
    if any(i.dtype.kind != 'i' or i.min() < 0 or i.max() >= _MOST_ID for i in ids) or _is_spelt_oddly(block):
        _find_bad_line(file, number, block)
        raise _NotNumbersError
    rows = np.empty(len(frame), dtype=_ROW)
    rows['query'], rows['pos'], rows['neg'], rows['margin'] = *ids, margin
    return rows


def _is_spelt_oddly(block: bytes) -> bool:
    """Whether a number may be written otherwise than `str` would: 007, +7, -0, or with a zero byte."""
    text = np.frombuffer(block + b'\n\n\n', dtype=np.uint8)
    begin = np.flatnonzero((text == ord('\t')) | (text == ord(' '))) + 1
    first, second, third = text[begin], text[begin + 1], text[begin + 2]
    zero, minus_zero = first == ord('0'), (first == ord('-')) & (second == ord('0'))
    odd = (first == ord('+')) | zero & _is_digit(second) | minus_zero & (_is_digit(third) | (third <= ord(' ')))
    return bool(odd.any()) or b'\0' in block


def _is_digit(signs: np.ndarray) -> np.ndarray:
    return (ord('0') <= signs) & (signs <= ord('9'))


def _find_bad_line(file: str | os.PathLike, number: int, block: bytes) -> None:
    """Raise for the first line that is no row of five with finite scores, if there is one."""
    for at, line in _lines(number, block):
        _fields(file, at, line)


# ---- ids that are strings ----------------------------------------------------------------------------------------

def _from_strings(file: str | os.PathLike, path: str | os.PathLike) -> ScoredPairs:
    queries: dict[str, int] = {}
    docs: dict[str, int] = {}
    rows = _table(file, (_fields(file, *line) for block in _blocks(file) for line in _lines(*block)), queries, docs)
    return ScoredPairs.from_arrays(path, list(queries), list(docs), *(rows[name] for name in _ROW.names))


def _table(file: str | os.PathLike, lines: Iterable[tuple[float, str, str, str]], queries: dict[str, int],
           docs: dict[str, int]) -> np.ndarray:
    """Rows of (margin, query, positive, negative), numbered as they come."""
    rows = np.fromiter(((queries.setdefault(query, len(queries)), docs.setdefault(pos, len(docs)),
                         docs.setdefault(neg, len(docs)), margin) for margin, query, pos, neg in lines), dtype=_ROW)
    if not len(rows):
        raise ValueError(f'{file} has no lines: expected {", ".join(_COLUMNS)}')
    return rows


def _lines(first: int, block: bytes) -> Iterator[tuple[int, bytes]]:
    """(number, line) of the lines that are not blank."""
    for number, line in enumerate(block.split(b'\n'), first):
        if line.strip():
            yield number, line


def _fields(file: str | os.PathLike, number: int, line: bytes, separator: bytes | None = None,
            columns: tuple[str, ...] = _COLUMNS) -> tuple[float, str, str, str]:
    """(margin, query, positive, negative) of a line."""
    try:
        fields = [field.decode() for field in line.split(separator)]
    except UnicodeDecodeError as error:
        raise ValueError(f'{file}, line {number} is not utf-8 ({line[:40]!r}): convert the file, with iconv for example'
                         ) from error
    if len(fields) != 5:
        raise ValueError(f'{file}, line {number}: {len(fields)} columns, expected 5 separated by '
                         f'{"tabs" if separator else "white space"}: {", ".join(columns)}')
    return _margin(file, number, fields), *fields[2:]


def _margin(file: str | os.PathLike, number: int, fields: list[str]) -> float:
    try:
        margin = _score(fields[0]) - _score(fields[1])
    except ValueError as error:
        raise ValueError(f'{file}, line {number}: the scores are {fields[0]!r} and {fields[1]!r}, expected '
                         'numbers') from error
    if not abs(margin) <= _MOST_MARGIN:
        raise ValueError(f'{file}, line {number}: the scores are {fields[0]} and {fields[1]}, expected finite numbers')
    return margin


def _score(field: str) -> float:
    if '_' in field or not field.isascii():   # float() reads 1_5, and the digits of every script
        raise ValueError(field)
    return float(field)
