"""Margin bins against the method's example and brute force."""
from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyterrier_tasb.sampling import bin_offsets, bins_of
from pyterrier_tasb.sampling import bins as bins_module

finite = st.floats(-100, 100, width=32)
queries = st.lists(st.lists(finite | st.sampled_from([-1.0, 0.0, 2.5]), min_size=1, max_size=15),
                   min_size=1, max_size=6)


def one_query(margins, n_bins):
    """The bin of each margin of one query, as section 1 of the method writes it."""
    low, high = min(margins), max(margins)
    if low == high:
        return [0] * len(margins)
    return [min(floor((x - low) / (high - low) * n_bins), n_bins - 1) for x in margins]


def csr(margins):
    margins = [sorted(some) for some in margins]
    return np.cumsum([0, *map(len, margins)]), np.concatenate([np.array(some, dtype=np.float32) for some in margins])


def test_the_methods_example():
    margins = np.array([0, 1, 2, 3, 10], dtype=np.float32)
    assert bins_of(margins, np.zeros(5), np.full(5, 10)).tolist() == [0, 1, 2, 3, 9]
    assert bin_offsets(np.array([0, 5]), margins).tolist() == [[0, 1, 2, 3, 4, 4, 4, 4, 4, 4, 5]]


@pytest.mark.parametrize('margins', [[4.0], [2.5, 2.5, 2.5], [-1.0, -1.0]])
def test_equal_margins_share_the_first_bin(margins):
    assert bin_offsets(np.array([0, len(margins)]), np.array(margins)).tolist() == [[0] + [len(margins)] * 10]


def test_the_maximum_is_in_the_last_bin_whatever_their_number():
    for n_bins in range(1, 40):
        margins = np.linspace(-3, .1, 17, dtype=np.float32)
        bins = bins_of(margins, np.full(17, margins[0]), np.full(17, margins[-1]), n_bins)
        assert bins[0] == 0 and bins[-1] == bins.max() == n_bins - 1


@settings(max_examples=40, deadline=None)
@given(queries, st.integers(1, 12))
def test_bins_equal_brute_force(margins, n_bins):
    indptr, flat = csr(margins)
    per_query = [flat[indptr[q]:indptr[q + 1]].tolist() for q in range(len(margins))]
    query = np.repeat(np.arange(len(margins)), np.diff(indptr))
    low, high = np.array([some[0] for some in per_query]), np.array([some[-1] for some in per_query])
    expected = [one_query(some, n_bins) for some in per_query]
    assert bins_of(flat, low[query], high[query], n_bins).tolist() == sum(expected, [])

    offsets = bin_offsets(indptr, flat, n_bins)
    assert offsets.shape == (len(margins), n_bins + 1)
    for q, bins in enumerate(expected):
        runs = [bins[offsets[q, b]:offsets[q, b + 1]] for b in range(n_bins)]
        assert runs == [[b] * bins.count(b) for b in range(n_bins)]


@settings(max_examples=40, deadline=None)
@given(queries, st.integers(1, 12))
def test_a_pairs_chance_is_one_of_the_filled_bins_then_one_of_its_pairs(margins, n_bins):
    indptr, flat = csr(margins)
    offsets = bin_offsets(indptr, flat, n_bins)
    for q in range(len(margins)):
        bins = one_query(flat[indptr[q]:indptr[q + 1]].tolist(), n_bins)
        expected = [Fraction(1, len(set(bins)) * bins.count(b)) for b in bins]
        sizes = np.diff(offsets[q])
        chances = [Fraction(1, int((sizes > 0).sum()) * int(size)) for size in sizes for _ in range(size)]
        assert chances == expected and sum(chances) == 1


def test_many_pairs_are_binned_in_pieces_with_the_same_result(monkeypatch):
    rng = np.random.default_rng(1)
    indptr, flat = csr([rng.normal(size=size).tolist() for size in rng.integers(1, 30, size=50)])
    whole = bin_offsets(indptr, flat)
    for piece in (1, 7, 40, len(flat)):
        monkeypatch.setattr(bins_module, '_CHUNK', piece)
        np.testing.assert_array_equal(bin_offsets(indptr, flat), whole)


@pytest.mark.parametrize('indptr, n_bins, message', [([0, 2], 0, 'n_bins=0'), ([0, 1, 1, 2], 10, '1 queries have no')])
def test_errors(indptr, n_bins, message):
    with pytest.raises(ValueError, match=message):
        bin_offsets(np.array(indptr), np.array([0.0, 1.0]), n_bins)


@settings(deadline=None)
@given(queries, st.integers(1, 12))
def test_filled_bins_are_the_bins_that_have_pairs(margins, n_bins):
    offsets = bin_offsets(*csr(margins), n_bins)
    for row, edges, count in zip(offsets, *bins_module.filled_bins(offsets)):
        filled = [(low, high) for low, high in zip(row[:-1], row[1:]) if high > low]
        assert list(zip(edges[:count], edges[1:count + 1])) == filled
