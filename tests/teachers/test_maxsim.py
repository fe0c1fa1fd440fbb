"""MaxSim against loops over tokens."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyterrier_tasb.teachers import maxsim as module
from pyterrier_tasb.teachers.maxsim import maxsim

lengths = st.lists(st.integers(1, 7), min_size=1, max_size=5)


def ragged(sizes, seed, dim=3, offset=0.0):
    rng = np.random.default_rng(seed)
    return torch.tensor(rng.normal(size=(sum(sizes), dim)) + offset, dtype=torch.float32)


def loops(query, query_lengths, docs, doc_lengths):
    return torch.stack([torch.stack([sum(max(q @ d for d in doc) for q in tokens) for doc in docs.split(doc_lengths)])
                        for tokens in query.split(query_lengths)])


@settings(max_examples=40, deadline=None)
@given(query_lengths=lengths, doc_lengths=lengths, seed=st.integers(0, 9999))
def test_it_equals_loops_over_ragged_texts(query_lengths, doc_lengths, seed):
    query, docs = ragged(query_lengths, seed), ragged(doc_lengths, seed + 1)
    found = maxsim(query, torch.tensor(query_lengths), docs, torch.tensor(doc_lengths))
    assert found.shape == (len(query_lengths), len(doc_lengths)) and found.dtype == torch.float32
    torch.testing.assert_close(found, loops(query, query_lengths, docs, doc_lengths), atol=1e-5, rtol=1e-5)


def test_a_maximum_may_be_negative():
    query, docs = ragged([3, 1], 1, offset=5.0), ragged([2, 6, 1], 2, offset=-5.0)
    found = maxsim(query, torch.tensor([3, 1]), docs, torch.tensor([2, 6, 1]))
    assert (found < 0).all()
    torch.testing.assert_close(found, loops(query, [3, 1], docs, [2, 6, 1]))


@pytest.mark.parametrize('products', [1, 20, 45, 1 << 20])
def test_pieces_give_what_the_whole_gives_and_hold_no_more_than_they_may(products, monkeypatch):
    query_lengths, doc_lengths = [4, 1, 2, 7, 1], [3, 6]
    query, docs = ragged(query_lengths, 3), ragged(doc_lengths, 4)
    whole = maxsim(query, torch.tensor(query_lengths), docs, torch.tensor(doc_lengths))
    monkeypatch.setattr(module, '_MOST_PRODUCTS', products)
    runs = module._chunks(query_lengths, len(docs))
    assert [i for start, stop in runs for i in range(start, stop)] == list(range(5))
    assert all(stop - start == 1 or sum(query_lengths[start:stop]) * 9 <= products for start, stop in runs)
    torch.testing.assert_close(maxsim(query, torch.tensor(query_lengths), docs, torch.tensor(doc_lengths)), whole)


@pytest.mark.parametrize('products', [1, 1 << 27])
def test_gradients_are_those_of_the_loops(products, monkeypatch):
    monkeypatch.setattr(module, '_MOST_PRODUCTS', products)
    query_lengths, doc_lengths = [4, 1, 2], [3, 6, 1, 2]
    weight, grads = torch.randn(3, 4, generator=torch.Generator().manual_seed(1)), []
    for score in (lambda q, d: maxsim(q, torch.tensor(query_lengths), d, torch.tensor(doc_lengths)),
                  lambda q, d: loops(q, query_lengths, d, doc_lengths)):
        query, docs = ragged(query_lengths, 5).requires_grad_(), ragged(doc_lengths, 6).requires_grad_()
        (weight * score(query, docs)).sum().backward()
        grads.append((query.grad, docs.grad))
    for ours, theirs in zip(*grads):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        assert ours.any()


def test_half_precision_vectors_are_compared_in_full_precision():
    query, docs = ragged([3, 2], 7).half(), ragged([4, 1], 8).half()
    found = maxsim(query, torch.tensor([3, 2]), docs, torch.tensor([4, 1]))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loops(query.float(), [3, 2], docs.float(), [4, 1]), atol=1e-6, rtol=1e-6)
