"""`ScoredPairs`: (query, p⁺, p⁻, margin) as numpy memory maps in compressed rows."""
from __future__ import annotations

import copyreg
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt

from .._files import (
    OnDisk,
    artifact_meta,
    atomic_dir,
    check_new,
    check_unharmed,
    disk_named,
    file_fingerprint,
    write_json,
)
from ..texts import StringArray, TextStore

_ARRAYS = {'indptr': np.int64, 'pos': np.uint32, 'neg': np.uint32, 'margin': np.float32}
_FILES = (*(f'{name}.npy' for name in _ARRAYS), 'qids.bin', 'qids.offsets.npy', 'docnos.bin', 'docnos.offsets.npy',
          'queries/meta.json', 'docs/meta.json')   # the last two where texts are kept with the pairs


class ScoredPairs(OnDisk, pt.Artifact):
    """Training pairs by query, sorted by (query row, margin, positive, negative), so that margin bins are runs.

    Query i has the pairs `indptr[i]` to `indptr[i + 1]`.

    Args:
        path: A directory that one of the `from_…` methods made.

    Attributes:
        qids: Q query ids, by query row.
        docnos: D document ids, by document row.
        indptr: int64[Q + 1].
        pos: uint32[N], document rows of the positives.
        neg: uint32[N], document rows of the negatives.
        margin: float32[N], the teacher's t⁺ − t⁻, ascending within a query.
        queries: Texts by query row, where they came with the pairs (`from_text_file`); else None.
        docs: Texts by document row, where they came with the pairs; else None.
        fingerprint: A hash of ids and arrays.

    Raises:
        ValueError: There are no pairs at `path`, or a file is damaged.
    """

    ARTIFACT_TYPE, ARTIFACT_FORMAT, ARTIFACT_PACKAGE_HINT = 'scored_pairs', 'csr', 'pyterrier-tasb'
    path: Any = pt.Artifact.NO_PATH   # in memory

    def __init__(self, path: str | os.PathLike) -> None:
        super().__init__(os.path.abspath(path))   # also after a change of directory
        folder = Path(path)
        if not (folder / 'pt_meta.json').exists():
            raise ValueError(f'{folder} holds no scored pairs: ScoredPairs.from_results(…), from_pipeline(…), '
                             'from_teacher_file(…) or from_docpairs(…) makes them')
        self.fingerprint: str = artifact_meta(folder, ScoredPairs, ['fingerprint'])['fingerprint']
        check_unharmed(folder, _fingerprint(folder), self.fingerprint)
        self.qids: Sequence[str] = StringArray(folder / 'qids')
        self.docnos: Sequence[str] = StringArray(folder / 'docnos')
        for name in _ARRAYS:
            setattr(self, name, np.load(folder / f'{name}.npy', mmap_mode='r', allow_pickle=False))
        self.queries = TextStore(folder / 'queries') if (folder / 'queries').exists() else None
        self.docs = TextStore(folder / 'docs') if (folder / 'docs').exists() else None

    def __reduce__(self) -> tuple:
        if 'path' in self.__dict__:
            return super().__reduce__()
        return copyreg.__newobj__, (type(self),), self.__dict__   # in memory only

    @classmethod
    def from_arrays(cls, path: str | os.PathLike | None, qids: Sequence[str], docnos: Sequence[str],
                    query: np.ndarray, pos: np.ndarray, neg: np.ndarray, margin: np.ndarray,
                    run: dict[str, Any] | None = None) -> ScoredPairs:
        """Sort and write pairs given by rows.

        Args:
            path: Where they go; None keeps them in memory.
            qids: Id of query row i.
            docnos: Id of document row j.
            query: int[N].
            pos: int[N], document rows.
            neg: int[N], document rows.
            margin: float[N], t⁺ − t⁻.
            run: JSON values that say what the pairs were made of, kept beside them.

        Raises:
            ValueError: `path` exists, arrays are not equally long, a row is that of no id, an id comes twice, a margin
                is no finite number, or a query has no pair.
        """
        if path is not None:
            check_new(path, 'ScoredPairs')
        arrays = _sorted_arrays(qids, docnos, query, pos, neg, margin)
        if path is None:
            pairs = cls.__new__(cls)
            pairs.qids, pairs.docnos = list(map(str, qids)), list(map(str, docnos))
            pairs.queries, pairs.docs = None, None
            pairs.__dict__.update(arrays)
            # the same pairs have one fingerprint, in memory and on disk
            with tempfile.TemporaryDirectory() as folder, disk_named(Path(folder), 'path= may have more'):
                _write_arrays(Path(folder), qids, docnos, arrays)
                pairs.fingerprint = _fingerprint(Path(folder))
            return pairs
        with atomic_dir(path) as part:
            _write_arrays(part, qids, docnos, arrays)
            if run is not None:
                write_json(part / 'run.json', run)
            write_meta(part)
        return cls(path)

    @classmethod
    def from_results(cls, results: pd.DataFrame, qrels: pd.DataFrame, path: str | os.PathLike | None = None,
                     **options: Any) -> ScoredPairs:
        """Pairs of a scored results frame; see :func:`pyterrier_tasb.pairs.results.from_results`."""
        from .results import from_results
        return from_results(results, qrels, path, **options)

    @classmethod
    def from_pipeline(cls, pipeline: pt.Transformer, topics: pd.DataFrame, qrels: pd.DataFrame,
                      path: str | os.PathLike, **options: Any) -> ScoredPairs:
        """Pairs of a pipeline's results, chunk by chunk; see :func:`pyterrier_tasb.pairs.pipeline.from_pipeline`."""
        from .pipeline import from_pipeline
        return from_pipeline(pipeline, topics, qrels, path, **options)

    @classmethod
    def from_teacher_file(cls, file: str | os.PathLike, path: str | os.PathLike, **options: Any,
                          ) -> ScoredPairs:
        """Pairs of a published score file; see :func:`pyterrier_tasb.pairs.teacher_file.from_teacher_file`."""
        from .teacher_file import from_teacher_file
        return from_teacher_file(file, path, **options)

    @classmethod
    def from_text_file(cls, file: str | os.PathLike, path: str | os.PathLike) -> ScoredPairs:
        """Pairs and texts of a score file's text form; see :func:`pyterrier_tasb.pairs.teacher_file.from_text_file`."""
        from .teacher_file import from_text_file
        return from_text_file(file, path)

    @classmethod
    def from_docpairs(cls, docpairs: Iterable[Any], path: str | os.PathLike | None = None,
                      **options: Any) -> ScoredPairs:
        """Pairs as ir_datasets has them; see :func:`pyterrier_tasb.pairs.docpairs.from_docpairs`."""
        from .docpairs import from_docpairs
        return from_docpairs(docpairs, path, **options)

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.margin)

    @property
    def n_queries(self) -> int:
        """Number of queries, each with at least one pair."""
        return len(self.indptr) - 1

    def describe(self) -> dict[str, float]:
        """Counts, and quantiles of the margins."""
        some = np.asarray(self.margin[::max(1, len(self) // 1_000_000)], dtype=np.float64)
        quantiles = {f'margin p{p}': float(np.percentile(some, p)) for p in (5, 50, 95)}
        return {'pairs': len(self), 'queries': self.n_queries, 'documents': len(self.docnos), **quantiles}

    def __repr__(self) -> str:
        return f'ScoredPairs({len(self):,} pairs of {self.n_queries:,} queries)'


def _sorted_arrays(qids: Sequence[str], docnos: Sequence[str], query: np.ndarray, pos: np.ndarray, neg: np.ndarray,
                   margin: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays of pairs given by rows; see :meth:`ScoredPairs.from_arrays`."""
    query, pos, neg, margin = np.asarray(query), np.asarray(pos), np.asarray(neg), np.asarray(margin, dtype=np.float32)
    if len({array.shape for array in (query, pos, neg, margin)}) > 1 or margin.ndim != 1:
        raise ValueError(f'query, pos, neg and margin have shapes {query.shape}, {pos.shape}, {neg.shape} and '
                         f'{margin.shape}: give one value each for every pair')
    for name, rows, ids in (('query', query, qids), ('pos', pos, docnos), ('neg', neg, docnos)):
        if rows.dtype.kind not in 'iu' or len(rows) and not 0 <= rows.min() <= rows.max() < len(ids):
            raise ValueError(f'{name} is {rows!r:.100}: expected whole numbers, each the row of one of {len(ids)} ids')
    for name, ids in (('qids', qids), ('docnos', docnos)):
        distinct = pd.Index(ids, dtype=object)
        if not distinct.is_unique:
            raise ValueError(f'{name} has {distinct[distinct.duplicated()][0]!r} more than once')
    bad = ~np.isfinite(margin)
    if bad.any():
        ids = [qids[int(row)] for row in np.unique(query[bad])[:5]]
        raise ValueError(f'{int(bad.sum())} margins are NaN or infinite (qids {ids}): the teacher must give every '
                         'candidate a finite score')
    sizes = np.bincount(query, minlength=len(qids))
    if not len(qids) or sizes.min() < 1:
        raise ValueError(f'{int((sizes < 1).sum())} queries have no pair: leave them out')
    order = np.lexsort((neg, pos, margin, query))
    arrays = {'indptr': np.concatenate([[0], np.cumsum(sizes)]), 'pos': pos[order], 'neg': neg[order],
              'margin': margin[order]}
    return {name: values.astype(_ARRAYS[name]) for name, values in arrays.items()}


def _write_arrays(part: Path, qids: Sequence[str], docnos: Sequence[str], arrays: dict[str, np.ndarray]) -> None:
    """Ids and arrays into a directory that :func:`write_meta` completes."""
    StringArray.write(part / 'qids', map(str, qids))
    StringArray.write(part / 'docnos', map(str, docnos))
    for name, values in arrays.items():
        np.save(part / f'{name}.npy', values, allow_pickle=False)


def write_meta(part: Path) -> None:
    """Complete a directory of arrays and ids with what makes it an artifact."""
    write_json(part / 'pt_meta.json', {
        'type': ScoredPairs.ARTIFACT_TYPE, 'format': ScoredPairs.ARTIFACT_FORMAT,
        'package_hint': ScoredPairs.ARTIFACT_PACKAGE_HINT, 'fingerprint': _fingerprint(part)})


def _fingerprint(folder: Path) -> str:
    return file_fingerprint(*(folder / name for name in _FILES))
