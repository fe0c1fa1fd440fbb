"""Balanced margin bins: each query's margins cut into equal widths between its own minimum and maximum."""
from __future__ import annotations

import numpy as np

_CHUNK = 4_000_000   # pairs binned at a time: 40M pairs stay flat in memory


def bins_of(margin: np.ndarray, low: np.ndarray, high: np.ndarray, n_bins: int = 10) -> np.ndarray:
    """The bin of each margin: min(⌊(x − low)/(high − low)·n⌋, n − 1); one bin where all are equal.

    Pairs keep margins as float32, whose rounding can bring one on an edge into the bin below, .7 between 0 and 1 for
    example.

    Args:
        margin: float[N].
        low: float[N], the minimum of the margin's query.
        high: float[N], the maximum of the margin's query.
        n_bins: Bins of a query; the paper has 10.

    Returns:
        int64[N].

    >>> margins = np.array([0., 1., 2., 3., 10.])
    >>> bins_of(margins, np.zeros(5), np.full(5, 10.)).tolist()
    [0, 1, 2, 3, 9]
    """
    margin, low, high = (np.asarray(values, dtype=np.float64) for values in (margin, low, high))
    width = np.where(high > low, high - low, 1.0)
    return np.minimum(np.floor((margin - low) / width * n_bins), n_bins - 1).astype(np.int64)


def bin_offsets(indptr: np.ndarray, margin: np.ndarray, n_bins: int = 10) -> np.ndarray:
    """Where each query's bins begin and end, its margins ascending.

    Args:
        indptr: int64[Q + 1]; query q has the margins `margin[indptr[q]:indptr[q + 1]]`.
        margin: float[N], ascending within a query, so that a bin is a run.
        n_bins: h.

    Returns:
        int64[Q, n_bins + 1], relative to `indptr[q]`: bin b is `[offsets[q, b], offsets[q, b + 1])`.

    Raises:
        ValueError: `n_bins` is below 1, or a query has no margins.
    """
    if n_bins < 1:
        raise ValueError(f'n_bins={n_bins}: must be at least 1')
    indptr = np.asarray(indptr, dtype=np.int64)
    sizes = np.diff(indptr)
    if len(sizes) and sizes.min() < 1:
        raise ValueError(f'{int((sizes < 1).sum())} queries have no pairs')
    offsets = np.zeros((len(sizes), n_bins + 1), dtype=np.int64)
    start = 0
    while start < len(sizes):
        stop = max(start + 1, int(np.searchsorted(indptr, indptr[start] + _CHUNK, side='right')) - 1)
        some = np.asarray(margin[indptr[start]:indptr[stop]], dtype=np.float64)
        first = indptr[start:stop] - indptr[start]
        last = indptr[start + 1:stop + 1] - indptr[start] - 1
        query = np.repeat(np.arange(stop - start), sizes[start:stop])
        bins = bins_of(some, some[first][query], some[last][query], n_bins)
        counts = np.bincount(query * n_bins + bins, minlength=(stop - start) * n_bins).reshape(-1, n_bins)
        np.cumsum(counts, axis=1, out=offsets[start:stop, 1:])
        start = stop
    return offsets


def filled_bins(offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bins that have pairs: each begins where the offsets step up.

    Args:
        offsets: int64[Q, n_bins + 1], of :func:`bin_offsets`.

    Returns:
        Edges int64[Q, n_bins + 1] and counts int64[Q]: filled bin b of query q, of counts[q], is
        `[edges[q, b], edges[q, b + 1])`; what follows in a row is 0.

    >>> edges, counts = filled_bins(np.array([[0, 2, 2, 5]]))
    >>> edges.tolist(), counts.tolist()
    ([[0, 2, 5, 0]], [2])
    """
    edge = np.ones(offsets.shape, dtype=bool)
    np.greater(offsets[:, 1:], offsets[:, :-1], out=edge[:, 1:])
    counts = edge.sum(1)
    edges = np.zeros_like(offsets)
    edges[np.arange(offsets.shape[1]) < counts[:, None]] = offsets[edge]   # row by row, both ways
    return edges, counts - 1
