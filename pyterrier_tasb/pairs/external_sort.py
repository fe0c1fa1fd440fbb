"""Pairs in any order, more than memory holds → the arrays of :class:`ScoredPairs`."""
from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np

ROW = np.dtype([('query', '<u4'), ('pos', '<u4'), ('neg', '<u4'), ('margin', '<f4')])
_N_BUCKETS = 64   # temporary files that queries are spread over: one is sorted in memory at a time


def write_sorted(part: Path, blocks: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Write `pos`, `neg`, `margin` and `indptr`, sorted by query row, margin, pos and neg.

    Args:
        part: The directory of the pairs.
        blocks: Arrays of `ROW`, whose queries and documents are any numbers.

    Returns:
        The numbers of the queries and of the documents, by row.
    """
    queries, docs, n = np.zeros(0, dtype=bool), np.zeros(0, dtype=bool), 0   # numbers that were seen
    with tempfile.TemporaryDirectory(dir=part) as folder:
        buckets = [open(Path(folder) / str(i), 'wb', buffering=1 << 20) for i in range(_N_BUCKETS)]
        try:
            for rows in blocks:
                queries = _mark(queries, rows['query'])
                docs = _mark(_mark(docs, rows['pos']), rows['neg'])
                which = rows['query'] % _N_BUCKETS
                order = np.argsort(which, kind='stable')
                ends = np.cumsum(np.bincount(which, minlength=_N_BUCKETS))
                for bucket, some in zip(buckets, np.split(rows[order], ends[:-1]), strict=True):
                    bucket.write(some.tobytes())
                n += len(rows)
        finally:
            for bucket in buckets:
                bucket.close()
        doc_row = np.cumsum(docs, dtype=np.uint32) - np.uint32(1)   # row of each number among those seen
        _write(part, [Path(folder) / str(i) for i in range(_N_BUCKETS)], doc_row, n)
    numbers = np.flatnonzero(queries)
    return numbers[np.lexsort((numbers, numbers % _N_BUCKETS))], np.flatnonzero(docs)


def _mark(seen: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    most = int(numbers.max()) + 1
    if most > len(seen):
        seen = np.concatenate([seen, np.zeros(max(most, 2 * len(seen)) - len(seen), dtype=bool)])
    seen[numbers] = True
    return seen


def _write(part: Path, buckets: list[Path], doc_row: np.ndarray, n: int) -> None:
    """A bucket after the other: sort it and append it to the arrays."""
    sizes = []
    with _npy(part / 'pos.npy', 'uint32', n) as pos, _npy(part / 'neg.npy', 'uint32', n) as neg, \
            _npy(part / 'margin.npy', 'float32', n) as margin:
        for bucket in buckets:
            rows = np.fromfile(bucket, dtype=ROW)
            bucket.unlink()
            rows['pos'], rows['neg'] = doc_row[rows['pos']], doc_row[rows['neg']]
            rows = rows[np.lexsort((rows['neg'], rows['pos'], rows['margin'], rows['query']))]
            sizes.append(np.unique(rows['query'], return_counts=True)[1])
            for out, name in ((pos, 'pos'), (neg, 'neg'), (margin, 'margin')):
                out.write(np.ascontiguousarray(rows[name]).tobytes())
    indptr = np.concatenate([[0], *sizes]).cumsum(dtype=np.int64)
    np.save(part / 'indptr.npy', indptr, allow_pickle=False)


def _npy(path: Path, dtype: str, n: int) -> BinaryIO:
    """A .npy file of `n` values whose bytes are still to be written."""
    out = open(path, 'wb')
    header = {'descr': np.dtype(dtype).str, 'fortran_order': False, 'shape': (n,)}
    np.lib.format.write_array_header_1_0(out, header)
    return out
