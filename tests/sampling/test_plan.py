"""The plan of batches: a pure function of (seed, step) with the method's distributions."""
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, chisquare

from pyterrier_tasb.pairs import ScoredPairs
from pyterrier_tasb.sampling import BatchPlan, QueryClusters, bin_offsets

SIZES = [3, 12, 5, 20, 8]          # queries in each cluster
PER_QUERY = 15


def make_pairs(margins):
    """Pairs in memory; `margins[q]` are those of query q."""
    query = np.repeat(np.arange(len(margins)), [len(some) for some in margins])
    pair = np.arange(len(query))
    qids, docnos = [f'q{q}' for q in range(len(margins))], [f'd{i}' for i in range(2 * len(pair))]
    return ScoredPairs.from_arrays(None, qids, docnos, query, 2 * pair, 2 * pair + 1, np.concatenate(margins))


def make_clusters(sizes, seed=0):
    assignment = np.repeat(np.arange(len(sizes)), sizes)
    return QueryClusters.from_assignment(np.random.default_rng(seed).permutation(assignment), n_clusters=len(sizes))


@pytest.fixture(scope='module')
def clusters():
    return make_clusters(SIZES)


@pytest.fixture(scope='module')
def pairs():
    rng = np.random.default_rng(5)
    return make_pairs([np.exp(rng.normal(size=PER_QUERY)) for _ in range(sum(SIZES))])


def arrays(batch):
    return [getattr(batch, name).tolist() for name in ('query', 'pair', 'pos', 'neg', 'margin', 'cluster')]


OPTIONS = [dict(), dict(sampling='tas'), dict(sampling='random'), dict(clusters_per_batch=3), dict(size_power=1.0),
           dict(n_bins=3, batch_size=16)]


@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_a_batch_depends_on_seed_and_step_only(pairs, clusters, options):
    def plan(seed=3):
        return BatchPlan(pairs, clusters, **{'batch_size': 4, 'seed': seed, **options})

    steps = [0, 1, 2, 7, 500_000]
    alone = {step: arrays(plan()[step]) for step in steps}
    one = plan()
    assert {step: arrays(one[step]) for step in reversed(steps)} == alone
    assert [arrays(one[step]) for step in range(3)] == [alone[step] for step in range(3)]
    assert alone[0] != alone[1] != alone[500_000]
    assert [arrays(plan(4)[step]) for step in steps] != list(alone.values())
    assert arrays(plan()[np.int64(7)]) == alone[7]


def plain_batch(plan, step):
    """The oracle: a generator made for the step, bins counted again at each draw."""
    rng = np.random.Generator(np.random.Philox(key=[plan.seed, step]))
    sizes = plan.clusters.sizes
    chances = np.cumsum(np.full((sizes > 0).sum(), 1 / (sizes > 0).sum()))
    queries, seen, n = [], [], plan.clusters_per_batch
    shares = [len(part) for part in np.array_split(np.arange(plan.batch_size), n)]
    while len(queries) < plan.batch_size:
        cluster = np.flatnonzero(sizes)[min((chances <= rng.random()).sum(), len(chances) - 1)]
        if cluster not in seen:
            share = shares[len(seen)] if len(seen) < n else shares[-1]
            seen.append(cluster)
            members = np.flatnonzero(plan.clusters.assignment == cluster)
            size = min(plan.batch_size - len(queries), len(members), share)
            queries += members[rng.choice(len(members), size, replace=False, shuffle=False)].tolist()
    offsets = bin_offsets(plan.pairs.indptr, plan.pairs.margin, plan.n_bins)
    filled = [np.flatnonzero(np.diff(offsets[query])) for query in queries]
    bins = [some[int(draw * len(some))] for some, draw in zip(filled, rng.random(len(filled)))]
    pairs = []
    for query, bin_, draw in zip(queries, bins, rng.random(len(bins))):
        low, high = offsets[query, bin_], offsets[query, bin_ + 1]
        pairs.append(int(plan.pairs.indptr[query] + low + int(draw * (high - low))))
    return queries, pairs


@pytest.mark.parametrize('n_bins, per_batch', [(1, 1), (4, 1), (10, 1), (10, 3)])
def test_batches_are_those_of_the_plain_way(pairs, clusters, n_bins, per_batch):
    plan = BatchPlan(pairs, clusters, batch_size=10, clusters_per_batch=per_batch, n_bins=n_bins, seed=2**62)
    for step in [*range(200), 500_000]:
        batch = plan[step]
        assert (batch.query.tolist(), batch.pair.tolist()) == plain_batch(plan, step)


def test_threads_do_not_disturb_one_another(pairs, clusters):
    from concurrent.futures import ThreadPoolExecutor
    plans = [BatchPlan(pairs, clusters, batch_size=4, seed=seed) for seed in range(4)]
    expected = [[arrays(plan[step]) for step in range(300)] for plan in plans]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda plan: [arrays(plan[step]) for step in range(300)], plans))
    assert found == expected


def test_there_is_no_step_before_the_first(pairs, clusters):
    with pytest.raises(IndexError, match='step -1: the first is 0'):
        BatchPlan(pairs, clusters, batch_size=4)[-1]


def test_seeds_up_to_the_largest_differ(pairs, clusters):
    seeds = [0, 1, 2**32, 2**53, 2**53 + 1, 2**63 - 1]
    drawn = [str(arrays(BatchPlan(pairs, clusters, batch_size=16, seed=seed)[0])) for seed in seeds]
    assert len(set(drawn)) == len(seeds)


def test_the_global_random_state_is_left_alone_and_unused(pairs, clusters, no_global_rng_change):
    plan = BatchPlan(pairs, clusters, batch_size=4)
    with no_global_rng_change():
        first = arrays(plan[0])
    np.random.seed(1)
    assert arrays(plan[0]) == first


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(1, 40), st.integers(1, 6),
       st.integers(0, 10**6), st.sampled_from(['tas-balanced', 'tas', 'random']),
       st.sampled_from([0.0, .5, 1.0, 500.0]))
def test_every_batch_is_whole_and_has_no_query_twice(sizes, batch_size, per_batch, step, sampling, size_power):
    sizes = [*sizes, 1]
    batch_size = min(batch_size, sum(sizes))
    pairs, clusters = make_pairs([[1.0, 2.0, 5.0]] * sum(sizes)), make_clusters(sizes)
    batch = BatchPlan(pairs, clusters, batch_size=batch_size, clusters_per_batch=min(per_batch, batch_size),
                      sampling=sampling, size_power=size_power)[step]
    assert len(set(batch.query.tolist())) == batch_size == len(batch.pair)
    assert ((pairs.indptr[batch.query] <= batch.pair) & (batch.pair < pairs.indptr[batch.query + 1])).all()
    for name in ('pos', 'neg', 'margin'):
        np.testing.assert_array_equal(getattr(batch, name), getattr(pairs, name)[batch.pair])
    expected = np.full(batch_size, -1) if sampling == 'random' else clusters.assignment[batch.query]
    np.testing.assert_array_equal(batch.cluster, expected)
    assert batch.step == step


@pytest.mark.parametrize('sizes, batch_size, per_batch, shares', [
    ([20] * 6, 12, 1, [12]), ([20] * 6, 12, 3, [4, 4, 4]), ([20] * 6, 11, 3, [3, 4, 4]), ([20] * 6, 3, 3, [1, 1, 1]),
    ([5] * 6, 12, 1, [2, 5, 5]), ([2] * 6, 12, 3, [2] * 6), ([1] * 6, 4, 4, [1] * 4), ([4] * 6, 12, 2, [4, 4, 4]),
    ([9, 1], 6, 2, [1, 5]), ([30, 2, 0], 32, 4, [2, 30])])
def test_clusters_give_equal_shares_and_small_ones_are_topped_up(sizes, batch_size, per_batch, shares):
    plan = BatchPlan(make_pairs([[1.0]] * sum(sizes)), make_clusters(sizes), batch_size=batch_size,
                     clusters_per_batch=per_batch)
    for step in range(30):
        counts = Counter(plan[step].cluster.tolist())
        # where all clusters are drawn and a batch still lacks queries, any that are left may come
        assert sorted(counts.values()) == shares


def test_what_small_clusters_lack_comes_from_further_ones_whenever_they_are_drawn():
    sizes = [1, 1, 20, 20, 20, 20, 20]
    plan = BatchPlan(make_pairs([[1.0]] * sum(sizes)), make_clusters(sizes), batch_size=12, clusters_per_batch=3)
    shares = {tuple(sorted(Counter(plan[step].cluster.tolist()).values())) for step in range(500)}
    # no cluster gives more than a third; both small ones may be among the first three, or the second among those after
    assert shares == {(4, 4, 4), (1, 3, 4, 4), (1, 1, 2, 4, 4)}


def test_queries_without_a_cluster_are_never_drawn():
    assignment = np.array([0, -1, 0, 1, -1, 1])
    plan = BatchPlan(make_pairs([[1.0]] * 6), QueryClusters.from_assignment(assignment), batch_size=4)
    assert {query for step in range(20) for query in plan[step].query.tolist()} == {0, 2, 3, 5}


@pytest.mark.parametrize('tries', [0, 100], ids=['among those left', 'again until new'])
@pytest.mark.parametrize('size_power', [0.0, .5, 1.0])
def test_clusters_are_drawn_by_size_to_the_power(pairs, clusters, size_power, tries, monkeypatch):
    monkeypatch.setattr('pyterrier_tasb.sampling.plan._TRIES', tries)
    plan = BatchPlan(pairs, clusters, batch_size=3, size_power=size_power, seed=11)
    counts = np.bincount([plan[step].cluster[0] for step in range(3000)], minlength=len(SIZES))
    weight = np.array(SIZES) ** size_power
    assert chisquare(counts, weight / weight.sum() * 3000).pvalue > 1e-3


@pytest.mark.parametrize('options, cluster', [(dict(), 1), (dict(), 3), (dict(sampling='random'), None)], ids=str)
def test_queries_of_a_cluster_are_equally_likely(pairs, clusters, options, cluster):
    plan = BatchPlan(pairs, clusters, batch_size=3, seed=2, **options)
    members = np.arange(sum(SIZES)) if cluster is None else clusters.members(cluster)
    batches = [batch.query for batch in map(plan.__getitem__, range(4000)) if cluster in (None, batch.cluster[0])]
    counts = np.bincount(np.concatenate(batches), minlength=sum(SIZES))
    assert counts.sum() == counts[members].sum()
    n, share = len(members), 3 / len(members)
    # queries of one batch differ, so the counts vary less than independent ones: by (1 − share)·n/(n − 1)
    statistic = chisquare(counts[members]).statistic / (1 - share) * (n - 1) / n
    assert chi2.sf(statistic, n - 1) > 1e-3 and chi2.cdf(statistic, n - 1) > 1e-3


SKEWED = [0, 1, 2, 3, 10], [0, .1, .2, .3, .4, .5, .6, 5, 5.1, 10], [-4.0, -4.0, -4.0, 7.0], [2.0, 2.0, 2.0]


@pytest.mark.parametrize('margins', SKEWED, ids=str)
@pytest.mark.parametrize('n_bins', [10, 3])
def test_bins_are_equally_likely_and_so_are_pairs_of_a_bin(margins, n_bins):
    plan = BatchPlan(make_pairs([margins]), make_clusters([1]), batch_size=1, n_bins=n_bins, seed=6)
    drawn = np.bincount([plan[step].pair[0] for step in range(3000)], minlength=len(margins))
    low, high = min(margins), max(margins)
    bins = [min(int((x - low) / ((high - low) or 1) * n_bins), n_bins - 1) for x in margins]
    chance = np.array([1 / (len(set(bins)) * bins.count(b)) for b in bins])
    assert chisquare(drawn, chance * 3000).pvalue > 1e-3
    by_bin = [sum(count for count, b in zip(drawn, bins) if b == which) for which in sorted(set(bins))]
    assert len(by_bin) == 1 or chisquare(by_bin).pvalue > 1e-3


@pytest.mark.parametrize('sampling', ['tas', 'random'])
def test_pairs_are_equally_likely_without_balancing(sampling):
    plan = BatchPlan(make_pairs([SKEWED[1]]), make_clusters([1]), batch_size=1, sampling=sampling, seed=1)
    drawn = np.bincount([plan[step].pair[0] for step in range(3000)], minlength=len(SKEWED[1]))
    assert chisquare(drawn).pvalue > 1e-3


def test_every_cluster_query_and_filled_bin_is_reached(pairs, clusters):
    plan = BatchPlan(pairs, clusters, batch_size=8, clusters_per_batch=2)
    offsets = bin_offsets(pairs.indptr, pairs.margin)
    filled = {(q, b) for q in range(pairs.n_queries) for b in range(10) if offsets[q, b + 1] > offsets[q, b]}
    reached, drawn = set(), set()
    for step in range(2500):
        batch = plan[step]
        drawn.update(batch.cluster.tolist())
        for query, pair in zip(batch.query.tolist(), (batch.pair - pairs.indptr[batch.query]).tolist()):
            reached.add((query, int(np.searchsorted(offsets[query], pair, side='right')) - 1))
    assert drawn == set(range(len(SIZES))) and reached == filled


def test_random_batches_need_no_clusters(pairs):
    assert BatchPlan(pairs, sampling='random')[0].cluster.tolist() == [-1] * 32


def test_the_fingerprint_tells_plans_apart(pairs, clusters):
    def print_of(pairs=pairs, clusters=clusters, **options):
        return BatchPlan(pairs, clusters, **{'batch_size': 8, **options}).fingerprint

    other = make_pairs([[1.0, 3.0]] * sum(SIZES))
    different = [print_of(), print_of(batch_size=9), print_of(clusters_per_batch=2), print_of(n_bins=9),
                 print_of(seed=1), print_of(size_power=1.0), print_of(sampling='tas'), print_of(sampling='random'),
                 print_of(clusters=make_clusters(SIZES, seed=1)), print_of(pairs=other)]
    assert len(set(different)) == len(different) and print_of() == different[0]


@pytest.mark.parametrize('options, message', [
    (dict(sampling='topics'), "sampling='topics'.*tas-balanced, tas, random"), (dict(batch_size=0), 'batch_size=0'),
    (dict(clusters_per_batch=0), 'clusters_per_batch=0'), (dict(clusters_per_batch=5), 'clusters_per_batch=5'),
    (dict(n_bins=0), 'n_bins=0'), (dict(seed=-1), 'seed=-1'), (dict(seed=2**63), f'seed={2**63}'),
    (dict(size_power=-1.0), 'size_power=-1'), (dict(size_power=float('nan')), 'size_power=nan'),
    (dict(clusters=None), 'needs clusters='), (dict(clusters=make_clusters([3, 3])), 'of 6 queries, the pairs of 48'),
    (dict(batch_size=49), '48 queries can be drawn, fewer than a batch of 49'),
    (dict(batch_size=49, sampling='random'), '48 queries can be drawn'),
    (dict(clusters=QueryClusters.from_assignment(np.array([0] * 3 + [-1] * 45))), '3 queries can be drawn')], ids=str)
def test_errors(pairs, clusters, options, message):
    with pytest.raises(ValueError, match=message):
        BatchPlan(pairs, **{'clusters': clusters, 'batch_size': 4, **options})
