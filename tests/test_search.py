"""Search over vectors in half precision against plain float32 products; a GPU does what the CPU does here."""
import pickle
import unittest

import numpy as np
import pandas as pd
import pyterrier as pt
import pyterrier_dr
import pytest
import torch

from pyterrier_tasb import retrieval
from pyterrier_tasb import search as search_module
from pyterrier_tasb.search import HalfPrecisionRetriever, fits, search


@pytest.fixture
def vectors():
    """Scores around 100, where half precision knows steps of 0.06: what DistilBERT gives."""
    return np.random.default_rng(0).normal(1, .3, size=(700, 96)).astype(np.float32)


@pytest.fixture
def index(vectors, tmp_path):
    index = pyterrier_dr.FlexIndex(str(tmp_path / 'index'), verbose=False)
    index.index({'docno': f'd{i}', 'doc_vec': vector} for i, vector in enumerate(vectors))
    return pyterrier_dr.FlexIndex(str(tmp_path / 'index'), verbose=False)


def queries(n):
    drawn = np.random.default_rng(1).normal(1, .3, size=(n, 96)).astype(np.float32)
    return pd.DataFrame({'qid': [f'q{i}' for i in range(n)], 'query': 'x', 'query_vec': list(drawn)})


@pytest.mark.parametrize('n, k', [(1, 1), (3, 10), (130, 200), (2, 700), (2, 1000)])
def test_scores_are_those_of_float32_over_the_stored_vectors(vectors, n, k):
    stored, asked = torch.from_numpy(vectors).half(), torch.from_numpy(np.stack(queries(n)['query_vec']))
    scores, rows = search(stored, asked, k)
    plain = asked @ stored.float().T
    expected, best = plain.sort(dim=1, descending=True, stable=True)
    torch.testing.assert_close(scores, expected[:, :k])
    torch.testing.assert_close(plain.gather(1, rows), expected[:, :k])   # rows, but for ties of the last bit
    assert scores.dtype == torch.float32 and scores.shape == (n, min(k, 700))
    assert (rows == best[:, :k]).float().mean() > .99


def test_half_precision_alone_would_rank_wrongly(vectors):
    stored, asked = torch.from_numpy(vectors).half(), torch.from_numpy(np.stack(queries(20)['query_vec']))
    coarse = (asked.half() @ stored.T).sort(dim=1, descending=True, stable=True).indices[:, :50]
    assert (coarse != search(stored, asked, 50)[1]).any()


def test_equal_scores_are_in_the_order_of_their_rows():
    _, rows = search(torch.ones(200, 4).half(), torch.ones(2, 4), 150)
    assert rows.tolist() == [list(range(150))] * 2


@pytest.mark.parametrize('n', [0, 1, 5])
def test_results_are_those_of_numpy(index, n):
    found = HalfPrecisionRetriever(index, 'cpu', 20)(queries(n))
    expected = index.np_retriever(num_results=20, drop_query_vec=True)(queries(n))
    assert set(found) == {'qid', 'query', 'docno', 'score', 'rank'} and len(found) == len(expected) == 20 * n
    np.testing.assert_allclose(found['score'].astype(float), expected['score'].astype(float), rtol=1e-3)
    assert found['rank'].tolist() == expected['rank'].tolist()


def test_one_result_is_values(index):
    many, one = HalfPrecisionRetriever(index, 'cpu', 5), HalfPrecisionRetriever(index, 'cpu', 1)
    pd.testing.assert_frame_equal(one(queries(3)), (many % 1)(queries(3)).reset_index(drop=True), check_dtype=False)
    assert isinstance(one(queries(1))['docno'][0], str)


def test_a_pickle_holds_no_vectors(index):
    one = HalfPrecisionRetriever(index, 'cpu', 5)
    expected = one(queries(2))
    other = pickle.loads(pickle.dumps(one))
    assert other._held.vectors is None
    pd.testing.assert_frame_equal(other(queries(2)), expected)


def test_a_cut_reaches_the_search(index):
    retriever = HalfPrecisionRetriever(index, 'cpu')
    assert (retriever % 7).compile() == HalfPrecisionRetriever(index, 'cpu', 7)
    assert retriever.fuse_rank_cutoff(5000) is None
    pd.testing.assert_frame_equal((retriever % 7)(queries(3)), (retriever % 7).compile()(queries(3)))


def test_in_good_standing(index):
    outcome = unittest.TestResult()
    case = pt.testing.transformer_test_class(lambda: HalfPrecisionRetriever(index, 'cpu'))
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(outcome)
    assert outcome.testsRun and outcome.wasSuccessful(), outcome.failures + outcome.errors
    ours = HalfPrecisionRetriever(index, 'cpu')
    assert ours == HalfPrecisionRetriever(index, 'cpu') != HalfPrecisionRetriever(index, 'cpu', 5)
    assert hash(ours) == hash(HalfPrecisionRetriever(index, 'cpu'))
    assert HalfPrecisionRetriever(index, 'cuda') == HalfPrecisionRetriever(index, 'cuda:0')   # not copied there yet
    with pytest.raises(pt.validate.InputValidationError, match='HalfPrecisionRetriever'):
        ours(queries(2).drop(columns='query_vec'))
    index.sim_fn = pyterrier_dr.SimFn.cos
    with pytest.raises(ValueError, match='dot product'):
        HalfPrecisionRetriever(index, 'cpu')


@pytest.mark.parametrize('room', [True, False])
def test_a_gpu_searches_where_it_has_room(index, room, monkeypatch):
    assert not fits(index, torch.device('cpu'))
    monkeypatch.setattr(retrieval, 'fits', lambda index, device: room)
    pipeline = retrieval.build_retriever(pt.Transformer.identity(), index, device='cpu')
    found = pipeline(queries(2))
    assert any(isinstance(stage, HalfPrecisionRetriever) for stage in pipeline) == room
    assert set(found) == {'qid', 'query', 'docno', 'score', 'rank'} and len(found) == 1400


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
def test_on_a_gpu(index, vectors):
    pipeline = retrieval.build_retriever(pt.Transformer.identity(), index, device='cuda')
    assert any(isinstance(stage, HalfPrecisionRetriever) for stage in pipeline)
    np.testing.assert_allclose(pipeline(queries(5))['score'].astype(float),
                               HalfPrecisionRetriever(index, 'cpu')(queries(5))['score'].astype(float), rtol=1e-5)


def test_retrievers_over_an_index_share_its_vectors_and_follow_their_attributes(index, vectors, tmp_path):
    one, other = HalfPrecisionRetriever(index, 'cpu', 5), HalfPrecisionRetriever(index, 'cpu', 7)
    one(queries(1))
    assert other._held is one._held and other._held.vectors is not None
    assert pt.inspect.transformer_apply_attributes(one, num_results=3)._held is one._held
    backwards = pyterrier_dr.FlexIndex(str(tmp_path / 'backwards'), verbose=False)
    backwards.index({'docno': f'd{i}', 'doc_vec': vectors[i]} for i in reversed(range(len(vectors))))
    expected = one(queries(3))
    one.set_parameter('index', backwards)
    pd.testing.assert_frame_equal(one(queries(3)), expected)
    del one, other
    assert all(held.index is not index for held in search_module._Held.there.values())   # nobody holds them
