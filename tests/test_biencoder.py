"""Re-ranking by dot products: the scores of all rows at once, in the memory of a few thousand."""
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyterrier_dr
import pytest

from pyterrier_tasb import TasBalanced, biencoder

DIM, TEXTS = 256, 40
GIVEN = [[], ['query_vec'], ['doc_vec'], ['query_vec', 'doc_vec']]


@pytest.mark.parametrize('rows', [1, 7, 720, 4096])
@pytest.mark.parametrize('given', GIVEN, ids=str)
def test_scores_are_those_of_all_rows_at_once(tiny_bert_dir, toy_results, monkeypatch, given, rows):
    tasb = TasBalanced(tiny_bert_dir, amp='off')
    frame = toy_results.drop(columns=['score', 'rank']).sample(frac=1, random_state=1)   # an index in no order
    queries, docs = tasb.encode_queries(frame['query']), tasb.encode_docs(frame['text'])
    vectors = {'query_vec': list(queries), 'doc_vec': list(docs)}
    monkeypatch.setattr(biencoder, '_ROWS', rows)
    found = tasb.text_scorer()(frame.assign(**{name: vectors[name] for name in given}))
    np.testing.assert_array_equal(found['score'], np.einsum('nd,nd->n', queries, docs).astype(np.float64))
    assert found.index.equals(frame.index)
    for _, of_query in found.groupby('qid'):
        assert of_query.sort_values('rank')['score'].is_monotonic_decreasing


def _encoder():
    """Of random vectors, one a text that it is given; `asked` counts these."""
    model = SimpleNamespace(text_field='text', verbose=False, batch_size=32, sim_fn=pyterrier_dr.SimFn.dot, asked=[])

    def encode(texts, verbose=False):
        model.asked.append(len(texts))
        return np.random.default_rng(0).normal(size=(len(texts), DIM)).astype(np.float32)
    model.encode_queries = model.encode_docs = encode
    return model


@pytest.mark.parametrize('given', GIVEN, ids=str)
def test_memory_does_not_hold_a_vector_for_each_row(given):
    n, model = 50_000, _encoder()
    vectors = list(model.encode_docs(range(TEXTS)))
    frame = pd.DataFrame([(f'query {i % 3}', f'text {i % TEXTS}') for i in range(n)], columns=['query', 'text'])
    frame = frame.assign(**{name: [vectors[i % TEXTS] for i in range(n)] for name in given})
    scorer = biencoder.TextScorer(model)
    tracemalloc.start()
    scorer(frame)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    whole = n * DIM * np.dtype(np.float32).itemsize
    assert peak < whole / 2
    assert max(model.asked) == TEXTS


@pytest.mark.parametrize('stage', ['query_encoder', 'doc_encoder', 'text_scorer'])
def test_progress_is_that_of_encoding(tiny_distilbert_dir, stage, capfd):
    frame = pd.DataFrame({'qid': ['1', '1', '2'], 'query': ['rose', 'rose', 'wind'], 'docno': ['a', 'b', 'c'],
                          'text': ['star', 'moon', 'tide']})
    tasb = TasBalanced(tiny_distilbert_dir, device='cpu')
    getattr(tasb, stage)()(frame)
    assert not capfd.readouterr().err
    getattr(tasb, stage)(verbose=True)(frame)
    shown = capfd.readouterr().err
    assert ('Encoding queries: 100%' in shown) == (stage != 'doc_encoder')
    assert ('Encoding passages: 100%' in shown) == (stage != 'query_encoder')
    assert '2/2' in shown or '3/3' in shown   # distinct texts
