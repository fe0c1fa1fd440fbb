"""What goes in a batch, as a pure function of (seed, step)."""
from __future__ import annotations

import threading
from bisect import bisect_right
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .._files import fingerprint
from .bins import bin_offsets, filled_bins
from .clusters import QueryClusters

_TRIES = 100   # draws of a cluster before those that a batch has already are left out
SAMPLINGS = ('tas-balanced', 'tas', 'random')


class PairRows(Protocol):
    """What a plan reads of scored pairs."""

    indptr: np.ndarray
    pos: np.ndarray
    neg: np.ndarray
    margin: np.ndarray


@dataclass(frozen=True)
class Batch:
    """Row `step` of a plan.

    Args:
        step: Its number.
        query: int64[B], query rows, none twice.
        pair: int64[B], rows of the pairs.
        pos: int64[B], document rows of the positives.
        neg: int64[B], document rows of the negatives.
        margin: float32[B], the pairwise teacher's margins.
        cluster: int64[B], the cluster that each query was drawn from; −1 for random batches.
    """
    step: int
    query: np.ndarray
    pair: np.ndarray
    pos: np.ndarray
    neg: np.ndarray
    margin: np.ndarray
    cluster: np.ndarray


class BatchPlan:
    """`plan[step]` draws batch `step` with a generator of its own: no epochs, no state, any order.

    TAS-Balanced (Hofstätter et al. 2021, section 3): clusters uniformly, queries of a cluster without replacement,
    then a non-empty margin bin of the query uniformly, then a pair of the bin uniformly.

    Args:
        pairs: Scored pairs, margins ascending within a query.
        clusters: The queries' clusters; needed unless `sampling='random'`.
        sampling: 'tas-balanced', 'tas' (pairs uniform) or 'random' (queries and pairs uniform).
        batch_size: B.
        clusters_per_batch: n, clusters that share a batch: B // n queries of each, one more of the first B mod n. What
            small clusters lack comes from further ones, B // n of each at most, and from any once all are drawn.
        n_bins: h.
        size_power: Clusters are drawn with probability proportional to size**size_power; 0 is the paper's.
        seed: The plan's seed.

    Raises:
        ValueError: A value is out of range, fewer queries than a batch, or clusters of other queries.
    """

    def __init__(self, pairs: PairRows, clusters: QueryClusters | None = None, *, sampling: str = 'tas-balanced',
                 batch_size: int = 32, clusters_per_batch: int = 1, n_bins: int = 10, size_power: float = 0.0,
                 seed: int = 0) -> None:
        if sampling not in SAMPLINGS:
            raise ValueError(f'sampling={sampling!r}: must be one of {", ".join(SAMPLINGS)}')
        if batch_size < 1:
            raise ValueError(f'batch_size={batch_size}: must be at least 1')
        if not 1 <= clusters_per_batch <= batch_size:
            raise ValueError(f'clusters_per_batch={clusters_per_batch}: must be between 1 and the batch size')
        if not 0 <= size_power < float('inf'):
            raise ValueError(f'size_power={size_power}: must be 0 or above')
        if not 0 <= seed < 2**63:
            raise ValueError(f'seed={seed}: must be a whole number from 0 to below 2**63')
        self.pairs, self.sampling, self.batch_size = pairs, sampling, batch_size
        self.clusters_per_batch, self.n_bins, self.seed = clusters_per_batch, n_bins, seed
        self.size_power = size_power
        self.n_queries = len(pairs.indptr) - 1
        # plain views: reading a few rows of a memory map costs more in its class than in the disk
        self._indptr, self._pos, self._neg, self._margin = (
            np.asarray(getattr(pairs, name)) for name in ('indptr', 'pos', 'neg', 'margin'))
        self.clusters = None if sampling == 'random' else clusters
        available = self._members()
        if available < batch_size:
            raise ValueError(f'{available} queries can be drawn, fewer than a batch of {batch_size}')
        if sampling == 'tas-balanced':
            edges, self._filled = filled_bins(bin_offsets(pairs.indptr, pairs.margin, n_bins))
            self._edges = edges.ravel()

    def _members(self) -> int:
        if self.sampling == 'random':
            return self.n_queries
        if self.clusters is None:
            raise ValueError(f'sampling={self.sampling!r} needs clusters=')
        if len(self.clusters.assignment) != self.n_queries:
            raise ValueError(f'the clusters are of {len(self.clusters.assignment)} queries, the pairs of '
                             f'{self.n_queries}')
        sizes = self.clusters.sizes
        self._drawable = np.flatnonzero(sizes)
        self._weight = self.size_power * np.log(sizes[self._drawable])   # a logarithm: no power of a size overflows
        self._cumulative = _cumulative(self._weight)
        return int(sizes.sum())

    def __getitem__(self, step: int) -> Batch:
        """Batch `step`, from 0 on, as far as one likes.

        Raises:
            IndexError: `step` is negative.
        """
        if step < 0:
            raise IndexError(f'step {step}: the first is 0')
        rng = _generators.of(self.seed, step)
        query, cluster = self._random_queries(rng) if self.sampling == 'random' else self._topic_queries(rng)
        start = self._indptr[query]
        pair = start + (self._balanced_pairs(rng, query) if self.sampling == 'tas-balanced'
                        else self._uniform_pairs(rng, query))
        return Batch(step, query, pair, self._pos[pair].astype(np.int64), self._neg[pair].astype(np.int64),
                     self._margin[pair].astype(np.float32), cluster)

    def _random_queries(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        query = rng.choice(self.n_queries, self.batch_size, replace=False, shuffle=False)
        return query.astype(np.int64), np.full(self.batch_size, -1, dtype=np.int64)

    def _topic_queries(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        share, more = divmod(self.batch_size, self.clusters_per_batch)
        queries, drawn, missing = [], [], self.batch_size
        while missing:
            cluster = self._unseen_cluster(rng, drawn)
            members = self.clusters.members(cluster)
            # a share for each, also for those that make up for small ones: none fills what several lack
            wanted = min(missing, len(members), share + (len(drawn) < more))
            drawn.append(cluster)
            queries.append(members[rng.choice(len(members), wanted, replace=False, shuffle=False)])
            missing -= wanted
            if missing and len(drawn) == len(self._drawable):
                queries.append(self._rest(rng, np.concatenate(queries), missing))
                break
        query = np.concatenate(queries)
        return query, self.clusters.assignment[query].astype(np.int64)

    def _unseen_cluster(self, rng: np.random.Generator, seen: list[int]) -> int:
        for _ in range(_TRIES):
            cluster = int(self._drawable[_drawn(rng, self._cumulative)])
            if cluster not in seen:
                return cluster
        # those seen have nearly all of the weight: draw among the others, which is the same distribution
        left = np.flatnonzero(~np.isin(self._drawable, seen))
        return int(self._drawable[left[_drawn(rng, _cumulative(self._weight[left]))]])

    def _rest(self, rng: np.random.Generator, drawn: np.ndarray, missing: int) -> np.ndarray:
        left = np.setdiff1d(np.flatnonzero(self.clusters.assignment >= 0), drawn)
        return left[rng.choice(len(left), missing, replace=False, shuffle=False)]

    def _uniform_pairs(self, rng: np.random.Generator, query: np.ndarray) -> np.ndarray:
        return _below(rng, self._indptr[query + 1] - self._indptr[query])

    def _balanced_pairs(self, rng: np.random.Generator, query: np.ndarray) -> np.ndarray:
        at = query * (self.n_bins + 1) + _below(rng, self._filled[query])
        low = self._edges[at]
        return low + _below(rng, self._edges[at + 1] - low)

    @property
    def fingerprint(self) -> str:
        """A hash of everything that the plan's rows depend on."""
        return fingerprint(getattr(self.pairs, 'fingerprint', None),
                           None if self.clusters is None else self.clusters.fingerprint, self.sampling,
                           self.batch_size, self.clusters_per_batch, self.n_bins, self.size_power, self.seed)

    def __repr__(self) -> str:
        return f'BatchPlan({self.sampling!r}, batch_size={self.batch_size}, seed={self.seed})'


def _cumulative(log_weight: np.ndarray) -> list[float]:
    """N numbers, ascending to 1: sums of the weights' shares. A list, where one look-up costs less than in an array."""
    weight = np.exp(log_weight - log_weight.max())
    return np.cumsum(weight / weight.sum()).tolist()


def _drawn(rng: np.random.Generator, cumulative: list[float]) -> int:
    return min(bisect_right(cumulative, rng.random()), len(cumulative) - 1)


def _below(rng: np.random.Generator, sizes: np.ndarray) -> np.ndarray:
    """int64[B], uniform in [0, sizes[i])."""
    # the largest number below 1 times a whole number below 2**53 is never rounded up to that number
    return (rng.random(len(sizes)) * sizes).astype(np.int64)


class _Generators(threading.local):
    """A generator for each thread, set to where `Philox(key=[seed, step])` begins; making one takes longer."""

    def __init__(self) -> None:
        self.rng = np.random.Generator(np.random.Philox(key=[0, 0]))
        self.state = self.rng.bit_generator.state

    def of(self, seed: int, step: int) -> np.random.Generator:
        """The generator of a step, until the thread asks for another."""
        self.state['state']['key'][:] = seed, step
        self.rng.bit_generator.state = self.state
        return self.rng


_generators = _Generators()
