"""Published teacher scores → pairs: five columns a line, millions of lines, in flat memory."""
from __future__ import annotations

import gzip
import io
import os
import tempfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import pyterrier as pt
from more_itertools import peekable

from .._files import atomic_dir, check_new
from .._threads import in_order
from ..numbering import NumberedStrings
from ..texts import StringArray, TextStore
from .external_sort import ROW, write_sorted
from .store import ScoredPairs, write_meta

_BLOCK = 16 << 20          # bytes of text parsed at a time
_MOST_ID = 1 << 28         # numbers below this are kept as numbers; other ids as strings
_MOST_MARGIN = float(np.finfo(np.float32).max)
_COLUMNS = ('pos_score', 'neg_score', 'query_id', 'pos_pid', 'neg_pid')
_TEXT_COLUMNS = ('pos_score', 'neg_score', 'query', 'pos_text', 'neg_text')


class _NotNumbersError(Exception):
    """Ids that numbers would not give back."""


def from_teacher_file(file: str | os.PathLike, path: str | os.PathLike, *, n_threads: int = 2) -> ScoredPairs:
    """Pairs of a published teacher file: pos_score, neg_score, query_id, pos_pid, neg_pid.

    Columns are separated by spaces and tabs, or other white space of ASCII; a no-break space is part of an id. The file
    is utf-8 and may be gzip. 40 million lines take less than 1 GB of memory; ids that are numbers are read faster than
    others.

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
    `queries` and `docs`. A distinct text costs 20 bytes of memory meanwhile.

    Args:
        file: The teacher file, plain or gzip.
        path: Where the pairs go.

    Raises:
        ValueError: `path` exists, or a line is malformed or not utf-8; the message names file and line.
    """
    check_new(path, 'ScoredPairs')
    with atomic_dir(path) as part, tempfile.TemporaryDirectory(dir=part) as folder:
        queries, docs, order = _write_strings(part, Path(folder), file, b'\t', _TEXT_COLUMNS)
        StringArray.write(part / 'qids', (f'q{i}' for i in order))
        StringArray.write(part / 'docnos', (f'd{i}' for i, _ in enumerate(StringArray.read(docs))))
        TextStore.build(part / 'queries', ((f'q{i}', queries[i]) for i in order))
        TextStore.build(part / 'docs', ((f'd{i}', text) for i, text in enumerate(StringArray.read(docs))))
        write_meta(part)
    return ScoredPairs(path)


def _from_numbers(file: str | os.PathLike, path: str | os.PathLike, n_threads: int) -> ScoredPairs:
    with atomic_dir(path) as part:
        queries, docs = write_sorted(part, _some(file, _parsed(file, n_threads)))
        StringArray.write(part / 'qids', map(str, queries.tolist()))
        StringArray.write(part / 'docnos', _as_strings(docs))
        write_meta(part)
    return ScoredPairs(path)


def _from_strings(file: str | os.PathLike, path: str | os.PathLike) -> ScoredPairs:
    with atomic_dir(path) as part, tempfile.TemporaryDirectory(dir=part) as folder:
        queries, docs, order = _write_strings(part, Path(folder), file)
        StringArray.write(part / 'qids', (queries[i] for i in order))
        StringArray.write(part / 'docnos', StringArray.read(docs))
        write_meta(part)
    return ScoredPairs(path)


def _write_strings(part: Path, folder: Path, file: str | os.PathLike, *format_: Any,
                   ) -> tuple[StringArray, Path, list[int]]:
    """Write the arrays; give queries and documents (their files) as they came, and the queries' numbers by row."""
    with NumberedStrings(folder / 'queries') as queries, NumberedStrings(folder / 'docs') as docs:
        order, _ = write_sorted(part, _some(file, _numbered(file, queries, docs, *format_)))
    return StringArray(folder / 'queries'), folder / 'docs', order.tolist()


def _some(file: str | os.PathLike, blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The blocks, of which there must be one."""
    blocks = peekable(blocks)
    if not blocks:
        raise ValueError(f'{file} has no lines: expected {", ".join(_COLUMNS)}')
    return blocks


def _as_strings(numbers: np.ndarray) -> Iterator[str]:
    """A few at a time: a list of 8.8 million integers takes 350 MB."""
    for start in range(0, len(numbers), 1 << 16):
        yield from map(str, numbers[start:start + (1 << 16)].tolist())


def _parsed(file: str | os.PathLike, n_threads: int) -> Iterator[np.ndarray]:
    """Rows of the file, a block at a time, in order."""
    def parse(block: tuple[int, bytes]) -> np.ndarray:
        return _parse(file, *block)

    blocks = _blocks(file)
    yield from map(parse, islice(blocks, 1))   # ids that are no numbers show here, before several blocks are read
    with ThreadPoolExecutor(n_threads) as pool:
        yield from in_order(pool, parse, blocks, n_threads + 1)


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
    read = _read(block)
    if read is None:
        _find_bad_line(file, number, block)
        raise _NotNumbersError
    margin, ids = read
    if not np.isfinite(margin).all():
        _find_bad_line(file, number, block)
    if any(i.dtype.kind != 'i' or i.min() < 0 or i.max() >= _MOST_ID for i in ids) or _is_spelt_oddly(block):
        _find_bad_line(file, number, block)
        raise _NotNumbersError
    rows = np.empty(len(margin), dtype=ROW)
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


def _numbered(file: str | os.PathLike, queries: NumberedStrings, docs: NumberedStrings,
              separator: bytes | None = None, columns: tuple[str, ...] = _COLUMNS) -> Iterator[np.ndarray]:
    """Rows of the file, a block at a time, whose strings are numbered as they come."""
    for number, block in _blocks(file):
        parsed = None if separator else _strings(block)
        if parsed is None:
            parsed = zip(*(_fields(file, at, line.rstrip(b'\r'), separator, columns)
                           for at, line in _lines(number, block)))
        margin, query, pos, neg = parsed
        rows = np.empty(len(margin), dtype=ROW)
        rows['query'], rows['margin'] = queries.add(list(query)), margin
        rows['pos'], rows['neg'] = docs.add([doc for pair in zip(pos, neg) for doc in pair]).reshape(-1, 2).T
        yield rows


def _strings(block: bytes) -> list[np.ndarray] | None:
    """Margin, query, positive and negative of whole lines; None where it takes :func:`_fields` to say what they are."""
    if any(sign in block for sign in (b'\0', b'\x0b', b'\x0c')) or block.count(b'\r') > block.count(b'\r\n'):
        return None   # white space, or the end of a string, to one of the two and not to the other
    read = _read(block, dtype=dict.fromkeys((2, 3, 4), object))
    if read is None or not np.isfinite(read[0]).all() or not all(read[1][2]):   # a short line's last field is empty
        return None
    return [read[0], *read[1]]


def _read(block: bytes, dtype: dict[int, type] | None = None) -> tuple[np.ndarray, list[np.ndarray]] | None:
    """Margins and columns of ids, as pandas reads whole lines; None where they are no two numbers and three ids."""
    try:
        frame = pd.read_csv(io.BytesIO(block), sep=r'\s+', header=None, engine='c', quoting=3, na_filter=False,
                            dtype=dtype)
    except ValueError:   # a ParserError and a UnicodeDecodeError as well
        return None
    if frame.shape[1] != 5 or any(frame[i].dtype.kind not in 'fi' for i in (0, 1)):
        return None
    with np.errstate(invalid='ignore', over='ignore'):   # such lines are found and named by who asks
        margin = (frame[0].to_numpy(np.float64) - frame[1].to_numpy(np.float64)).astype(np.float32)
    return margin, [frame[i].to_numpy() for i in (2, 3, 4)]


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
