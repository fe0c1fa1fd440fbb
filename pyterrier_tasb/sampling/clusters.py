"""Topics: k-means over the vectors of the training queries, once before training."""
from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyterrier as pt

from .._files import artifact_meta, atomic_dir, atomic_file, check_new, fingerprint, write_json
from .._warn import warn
from ..checks import check_count

_QUERIES_PER_CLUSTER = 200   # the paper's 2000 clusters of 400K queries; it saw no sensitivity to the number
_DRAWS_PER_CLUSTER = 10
TRAINED_ON = 256   # queries a cluster: faiss' own limit, named so that no version of it moves anybody's clusters
_ID = re.compile(r'[^ \t\n\r\v\f]+')   # as teacher files have them: a no-break space is part of an id
_ROWS = 100_000   # vectors looked at or assigned at a time, where they are memory-mapped


def default_k(n_queries: int, n_draws: int | None = None) -> int:
    """One cluster for every 200 queries, as in the paper, and no more than a run can come back to ten times.

    A short run that sees each topic once or twice ends with what it saw last.

    Args:
        n_queries: Training queries.
        n_draws: How often a run draws a cluster; None sets no bound.
    """
    by_queries = round(n_queries / _QUERIES_PER_CLUSTER)
    return max(1, by_queries if n_draws is None else min(by_queries, n_draws // _DRAWS_PER_CLUSTER))


class QueryClusters(pt.Artifact):
    """Which cluster each training query belongs to.

    Args:
        path: A directory that :meth:`save` made.

    Attributes:
        assignment: int32[Q], the cluster of query row i; −1 where it has none.
        centroids: float32[k, D], or None where they are not known.
        n_clusters: k.
        qids: str[Q], the query of row i; None where that was not said, and rows are those of a run's pairs.

    Raises:
        ValueError: There are no clusters at `path`, or a file is damaged.
    """

    ARTIFACT_TYPE, ARTIFACT_FORMAT, ARTIFACT_PACKAGE_HINT = 'query_clusters', 'np', 'pyterrier-tasb'
    path: Any = pt.Artifact.NO_PATH   # in memory

    def __init__(self, path: str | os.PathLike) -> None:
        super().__init__(str(path))
        folder = Path(path)
        if not (folder / 'pt_meta.json').exists():
            raise ValueError(f'{folder} holds no query clusters: QueryClusters.fit(vectors, qids=…).save(path), or '
                             'read_text(…).save(path), makes them')
        meta = artifact_meta(folder, QueryClusters, ['fingerprint', 'n_clusters'])
        try:
            assignment, centroids, qids = (np.load(file, allow_pickle=False) if file.exists() else None for file in (
                folder / 'assignment.npy', folder / 'centroids.npy', folder / 'qids.npy'))
        except (EOFError, OSError, ValueError) as error:
            raise ValueError(f'{folder} is damaged ({error}); delete it and cluster again') from error
        if _fingerprint(assignment, qids, centroids) != meta['fingerprint']:   # before ids, which may be no characters
            raise ValueError(f'{folder} is damaged: its arrays are not those that were written; delete it and cluster '
                             'again')
        self._set(assignment, centroids, meta['n_clusters'], qids)

    @classmethod
    def from_assignment(cls, assignment: np.ndarray, centroids: np.ndarray | None = None,
                        n_clusters: int | None = None, qids: Sequence[str] | None = None) -> QueryClusters:
        """Clusters that are known already, in memory; :meth:`save` writes them.

        Args:
            assignment: int[Q], the cluster of query row i; −1 where it has none.
            centroids: float32[k, D], or None where they are not known.
            n_clusters: k; None takes the largest cluster in `assignment`.
            qids: The query of row i; `TasBalanced(clusters=…)` needs them.

        Raises:
            ValueError: A cluster number is no whole number or out of range, no query has a cluster, ids are not as
                many as rows, or come twice, or centroids are not as many as clusters.
        """
        clusters = cls.__new__(cls)
        clusters._set(assignment, centroids, n_clusters, qids)
        return clusters

    def _set(self, assignment: np.ndarray, centroids: np.ndarray | None, n_clusters: int | None,
             qids: Sequence[str] | None) -> None:
        self.assignment = _whole_numbers(np.asarray(assignment))
        self.centroids = centroids
        if self.assignment.ndim != 1 or not (self.assignment >= 0).any():
            raise ValueError('no query has a cluster')
        self.n_clusters = int(self.assignment.max()) + 1 if n_clusters is None else int(n_clusters)
        if self.assignment.min() < -1 or self.assignment.max() >= self.n_clusters:
            raise ValueError(f'clusters are numbered {self.assignment.min()} to {self.assignment.max()}: '
                             f'expected 0 to {self.n_clusters - 1}, or -1 for none')
        self.qids = None if qids is None else np.asarray(list(map(str, qids)), dtype=str)
        different = len(self.assignment) if self.qids is None else len(np.unique(self.qids))
        if self.qids is not None and not different == len(self.qids) == len(self.assignment):
            raise ValueError(f'{len(self.qids)} qids, {different} of them different, for {len(self.assignment)} '
                             'queries: give one for each row')
        if centroids is not None and np.shape(centroids)[:1] != (self.n_clusters,):
            raise ValueError(f'centroids have shape {np.shape(centroids)}: expected one row for each of '
                             f'{self.n_clusters} clusters')
        self._order = np.argsort(self.assignment, kind='stable')
        self._starts = np.searchsorted(self.assignment[self._order], np.arange(self.n_clusters + 1))

    @property
    def sizes(self) -> np.ndarray:
        """int64[k], queries in each cluster."""
        return np.diff(self._starts)

    def members(self, cluster: int) -> np.ndarray:
        """int64[], the query rows of a cluster, ascending."""
        return self._order[self._starts[cluster]:self._starts[cluster + 1]]

    @property
    def fingerprint(self) -> str:
        """A hash of the assignment."""
        return fingerprint(self.assignment)

    @classmethod
    def fit(cls, vectors: np.ndarray, k: int | None = None, *, qids: Sequence[str] | None = None,
            spherical: bool = False, iterations: int | None = None, seed: int = 0) -> QueryClusters:
        """Cluster query vectors with k-means.

        Where there are more than 256·k queries, centroids are trained on a random sample of so many, faiss' habit; then
        every query goes to its nearest centroid. The paper's 200 a cluster are all trained on; a short run has fewer
        and larger clusters (:func:`default_k`).

        Args:
            vectors: float32[Q, D]; a memory map is read in pieces.
            k: Clusters; None takes :func:`default_k`.
            qids: The query of row i; `TasBalanced(clusters=…)` needs them.
            spherical: Unit-length centroids and assignment by inner product, as the reference code does, instead of
                Euclidean distance (the paper).
            iterations: Rounds; None takes 25, or 10 for spherical (the reference code's).
            seed: Decides the sample and the first centroids.

        Raises:
            ValueError: More clusters than queries, no iteration, or vectors that are no finite numbers, or too long.
        """
        import faiss

        n_queries, dim = vectors.shape
        k = default_k(n_queries) if k is None else k
        if not 1 <= k <= n_queries:
            raise ValueError(f'k={k} clusters of {n_queries} queries: must be between 1 and the number of queries')
        if iterations is None:
            iterations = 10 if spherical else 25
        check_count('iterations', iterations)
        vectors, bad = np.ascontiguousarray(vectors, dtype=np.float32), []
        for start in range(0, n_queries, _ROWS):
            some = vectors[start:start + _ROWS]
            with np.errstate(over='ignore', invalid='ignore'):   # faiss ends the process where squares overflow
                bad += (start + np.flatnonzero(~np.isfinite(np.einsum('nd,nd->n', some, some)))).tolist()
        if bad:
            raise ValueError(f'{len(bad)} query vectors are NaN, infinite or too long (first rows: {bad[:5]})')
        kmeans = faiss.Kmeans(dim, k, niter=iterations, spherical=spherical, seed=seed % 2**31,
                              min_points_per_centroid=1, max_points_per_centroid=TRAINED_ON, verbose=False)
        kmeans.train(vectors)
        nearest = [kmeans.index.search(vectors[start:start + _ROWS], 1)[1][:, 0]
                   for start in range(0, n_queries, _ROWS)]
        return cls.from_assignment(np.concatenate(nearest), kmeans.centroids, k, qids)

    def save(self, path: str | os.PathLike) -> QueryClusters:
        """Write a directory that `QueryClusters(path)` and `pt.Artifact.load(path)` read.

        Returns:
            The clusters at `path`.

        Raises:
            ValueError: `path` is there already.
        """
        check_new(path, 'QueryClusters')
        with atomic_dir(path) as part:
            np.save(part / 'assignment.npy', self.assignment, allow_pickle=False)
            if self.centroids is not None:
                np.save(part / 'centroids.npy', self.centroids, allow_pickle=False)
            if self.qids is not None:
                np.save(part / 'qids.npy', self.qids, allow_pickle=False)
            write_json(part / 'pt_meta.json', {
                'type': self.ARTIFACT_TYPE, 'format': self.ARTIFACT_FORMAT, 'package_hint': self.ARTIFACT_PACKAGE_HINT,
                'n_clusters': self.n_clusters, 'fingerprint': _fingerprint(self.assignment, self.qids, self.centroids)})
        return type(self)(path)

    @classmethod
    def read_text(cls, path: str | os.PathLike, qids: Sequence[str]) -> QueryClusters:
        """Read the published format: a cluster a line, query ids separated by white space of ASCII.

        Args:
            path: The file.
            qids: The training queries' ids; ids of the file that are not among them are counted and passed over.

        Raises:
            ValueError: A line is not utf-8, an id is in two clusters, or none is among `qids`.
        """
        of, cluster = {}, 0
        with open(path, encoding='utf-8-sig', errors='surrogateescape') as lines:
            for number, line in enumerate(lines, 1):
                if not _is_utf8(line):
                    raise ValueError(f'{path}, line {number} is not utf-8: convert the file, with iconv for example')
                for qid in _ID.findall(line):
                    if of.setdefault(qid, cluster) != cluster:
                        raise ValueError(f'{path}, line {number}: query {qid} is in more than one cluster')
                cluster += bool(line.strip())
        return cls._of(qids, of, cluster, str(path))

    def check_named(self) -> None:
        """See that these clusters have ids.

        Raises:
            ValueError: They have none.
        """
        if self.qids is None:
            raise ValueError(f'{self!r} does not say which queries these are: QueryClusters.fit(vectors, qids=…), or '
                             'from_assignment(…, qids=…)')

    def of_queries(self, qids: Sequence[str]) -> QueryClusters:
        """The clusters of some queries, in their order; those that are in none are counted and never drawn.

        Raises:
            ValueError: These clusters have no ids, or none of the queries.
        """
        self.check_named()
        return self._of(qids, dict(zip(self.qids.tolist(), self.assignment.tolist())), self.n_clusters, repr(self),
                        self.centroids)

    @classmethod
    def _of(cls, qids: Sequence[str], of: dict[str, int], n_clusters: int, source: str,
            centroids: np.ndarray | None = None) -> QueryClusters:
        """Clusters of `qids` by a look into {qid: cluster}."""
        qids = list(map(str, qids))
        assignment = np.array([of.get(qid, -1) for qid in qids], dtype=np.int32)
        known, without = sum(qid in of for qid in qids), int((assignment < 0).sum())
        if without == len(qids):
            raise ValueError(f'{source}: none of its {len(of)} query ids is a training query (those are {qids[:5]})')
        if known < len(of) or without:
            warn(f'{source}: {len(of) - known} query ids are no training queries, {without} training queries '
                 'are in no cluster and are never drawn')
        return cls.from_assignment(assignment, centroids, n_clusters, qids)

    def write_text(self, path: str | os.PathLike, qids: Sequence[str] | None = None) -> None:
        """Write the published format.

        Args:
            path: The file.
            qids: The query of row i; None takes the clusters' own.

        Raises:
            ValueError: There are none, not as many as rows, or one has white space.
        """
        if qids is None:
            self.check_named()
            qids = self.qids
        qids = list(map(str, qids))
        if len(qids) != len(self.assignment):
            raise ValueError(f'{len(qids)} qids for {len(self.assignment)} queries: give one for each row')
        wrong = [qid for qid in qids if not _ID.fullmatch(qid)]
        if wrong:
            raise ValueError(f'{len(wrong)} qids are empty or have white space, which separates them in the file '
                             f'(first: {wrong[:5]})')
        with atomic_file(path) as part, open(part, 'w', encoding='utf-8') as out:
            for cluster in range(self.n_clusters):
                out.write(' '.join(qids[int(row)] for row in self.members(cluster)) + '\n')

    def __repr__(self) -> str:
        return f'QueryClusters({self.n_clusters} clusters of {int((self.assignment >= 0).sum())} queries)'


def _fingerprint(*arrays: np.ndarray | None) -> str:
    return fingerprint(*(array for array in arrays if array is not None))


def _whole_numbers(given: np.ndarray) -> np.ndarray:
    if given.dtype.kind not in 'iuf':
        raise ValueError(f'clusters are given as {given.dtype}: expected whole numbers')
    with np.errstate(invalid='ignore'):   # what is no number is found below
        assignment = given.astype(np.int32)
    odd = np.flatnonzero(assignment != given)
    if len(odd):
        raise ValueError(f'{len(odd)} clusters are no whole numbers below 2**31, that of query row {odd[0]} is '
                         f'{given.flat[odd[0]]}')
    return assignment


def _is_utf8(line: str) -> bool:
    """Whether a line had no bytes that were escaped when it was read."""
    return line.isascii() or not any('\ud800' <= sign <= '\udfff' for sign in line)
