"""Which texts go through the model together."""
from __future__ import annotations

import numpy as np


def by_budget(lengths: np.ndarray, budget: int, *, padded: bool = False) -> list[slice]:
    """Cut consecutive texts into groups of at most `budget` tokens; a longer text is a group by itself.

    Args:
        lengths: int64[N], ascending.
        budget: Most tokens in a group.
        padded: Count each text as long as the longest of its group.

    Returns:
        Slices that cover 0..N in order.
    """
    ends = np.concatenate([[0], np.cumsum(lengths)])
    groups, start, n = [], 0, len(lengths)
    while start < n:
        if padded:
            cost = lengths[start:] * np.arange(1, n - start + 1)
            stop = start + int(np.searchsorted(cost, budget, side='right'))
        else:
            stop = int(np.searchsorted(ends, ends[start] + budget, side='right')) - 1
        stop = max(stop, start + 1)
        groups.append(slice(start, stop))
        start = stop
    return groups


def equal(lengths: np.ndarray) -> list[slice]:
    """Cut texts of ascending lengths int64[N], N > 0, into those of one length."""
    bounds = [0, *(np.flatnonzero(np.diff(lengths)) + 1).tolist(), len(lengths)]
    return [slice(start, stop) for start, stop in zip(bounds, bounds[1:])]


def near_equal(lengths: np.ndarray, most: int = 8) -> list[slice]:
    """Cut texts of ascending lengths into at most `most` groups so that padding within groups is least.

    Args:
        lengths: int64[N], ascending, N > 0.
        most: Most groups; each is one more forward pass.

    Returns:
        Slices that cover 0..N in order.
    """
    values, first = np.unique(lengths, return_index=True)
    ends = np.append(first[1:], len(lengths))                     # texts with at most values[j] tokens
    # cost[j]: padded tokens of the texts up to values[j], in the groups so far; cut[g][j]: where the last one began
    cost, cuts = values * ends, []
    for _ in range(min(most, len(values)) - 1):
        # a last group of values i+1..j costs values[j] a text
        options = cost[:, None] + values[None, :] * (ends[None, :] - ends[:, None])
        options[np.tril_indices(len(values))] = np.iinfo(np.int64).max
        best = options.argmin(0)
        better = options[best, np.arange(len(values))]
        cuts.append(np.where(better < cost, best, -1))
        cost = np.minimum(better, cost)
    stops, j = [len(lengths)], len(values) - 1
    for cut in reversed(cuts):
        if cut[j] >= 0:
            j = int(cut[j])
            stops.append(int(ends[j]))
    return [slice(start, stop) for start, stop in zip([0, *stops[:0:-1]], stops[::-1])]
