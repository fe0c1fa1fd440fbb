"""From vectors to an index that is whole or not there, and to retrievers whose results fit what comes after."""
import unittest
from pathlib import Path

import numpy as np
import pandas as pd
import pyterrier as pt
import pyterrier_alpha as pta
import pyterrier_dr
import pytest

from pyterrier_tasb.indexing import build_index
from pyterrier_tasb.retrieval import WithoutDocid, build_retriever
from pyterrier_tasb.search import HalfPrecisionRetriever

WORDS = ['rose', 'star', 'oven', 'wind']


def vectors(texts):
    """How often each word comes, and a little for the length: an encoder that can be computed by hand."""
    return [np.array([text.split().count(word) for word in WORDS] + [.01 * len(text.split())], dtype=np.float32)
            for text in texts]


def encoder(source, added):
    def encode(frame):
        return frame.assign(**{added: pd.Series(vectors(frame[source]), index=frame.index, dtype=object)})
    return pt.apply.generic(encode, required_columns=[source])


QUERIES = encoder('query', 'query_vec')
TOPICS = pd.DataFrame({'qid': ['1', '2'], 'query': ['rose star', 'wind']})


def corpus(*texts):
    return [{'docno': f'd{i}', 'text': text} for i, text in enumerate(texts)]


SOME = corpus('rose', 'star rose', 'wind wind', 'oven', 'rose rose star')


def built(docs, path, **options):
    return build_index(docs, path, lambda row, texts: texts, lambda texts: np.stack(vectors(texts)), key='words',
                       weights='w', **options)


def results(index):
    return build_retriever(QUERIES, index)(TOPICS)


def test_search_is_exact(tmp_path):
    found = results(built(SOME, tmp_path / 'index.flex'))
    expected = np.stack(vectors(TOPICS['query'])) @ np.stack(vectors([doc['text'] for doc in SOME])).T
    for row, (_, group) in zip(expected, found.groupby('qid'), strict=True):
        order = np.argsort(-row, kind='stable')
        np.testing.assert_allclose(group['score'].astype(float), row[order], rtol=1e-6)
        assert group['docno'].tolist() == [f'd{at}' for at in order]
        assert group['rank'].tolist() == list(range(len(SOME)))


def test_one_result_is_values(tmp_path):
    index = built(SOME, tmp_path / 'index.flex')
    many = build_retriever(QUERIES, index)
    expected = (many % 1)(TOPICS)
    for found in (build_retriever(QUERIES, index, num_results=1)(TOPICS), (many % 1).compile()(TOPICS)):
        pd.testing.assert_frame_equal(found[expected.columns], expected.reset_index(drop=True), check_dtype=False)
        assert all(isinstance(docno, str) for docno in found['docno']) and found['rank'].tolist() == [0, 0]
    one = built(SOME[:1], tmp_path / 'one.flex')
    assert build_retriever(QUERIES, one)(TOPICS)['docno'].tolist() == ['d0', 'd0']


def test_results_leave_out_docid_and_vectors(tmp_path):
    found = results(built(SOME, tmp_path / 'index.flex'))
    assert set(found) == {'qid', 'query', 'docno', 'score', 'rank'}


@pytest.mark.parametrize('columns, left', [
    (['qid', 'docno'], ['qid', 'docno']),
    (['qid', 'docno', 'docid', 'score'], ['qid', 'docno', 'score']),
    (['qid', 'query_vec', 'docno', 'docid', 'text'], ['qid', 'docno', 'text']),
])
@pytest.mark.parametrize('n', [0, 2])
def test_without_docid_drops_these_columns_and_no_other(columns, left, n):
    frame = pd.DataFrame([dict.fromkeys(columns, 'x')] * 2)[:n]
    out = WithoutDocid()(frame)
    assert out.columns.tolist() == left and len(out) == n
    assert frame.columns.tolist() == columns


@pytest.mark.parametrize('search', [
    lambda index: index.np_retriever() >> WithoutDocid(),
    lambda index: HalfPrecisionRetriever(index, 'cpu'),
])
def test_no_results_merge_with_those_of_other_retrievers(tmp_path, search):
    """PyTerrier looks at what an experiment's systems make of no queries."""
    dense = QUERIES >> search(built(SOME, tmp_path / 'index.flex'))
    sparse = pt.Transformer.from_df(pd.DataFrame(columns=['qid', 'query', 'docno', 'score', 'rank'], dtype=object))
    assert 'docno' in pt.inspect.transformer_outputs(pta.RRFusion(dense, sparse), ['qid', 'query'])


def test_without_docid_is_a_transformer_in_good_standing():
    outcome = unittest.TestResult()
    case = pt.testing.transformer_test_class(WithoutDocid)
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(outcome)
    assert outcome.testsRun and outcome.wasSuccessful(), outcome.failures + outcome.errors
    assert WithoutDocid() == WithoutDocid() and hash(WithoutDocid()) == hash(WithoutDocid())
    with pytest.raises(pt.validate.InputValidationError, match='WithoutDocid'):
        WithoutDocid()(TOPICS)


def test_text_comes_by_docno_whatever_the_order_of_the_other_index(tmp_path):
    index = built(SOME, tmp_path / 'index.flex')
    pt.IterDictIndexer(str(tmp_path / 'terrier'), meta={'docno': 20, 'text': 200}).index(SOME[::-1])
    texts = pt.terrier.TerrierIndex(str(tmp_path / 'terrier'))
    found = build_retriever(QUERIES, index, text=texts)(TOPICS)
    assert (found['text'] == found['docno'].map({doc['docno']: doc['text'] for doc in SOME})).all()


def test_a_cut_reaches_the_search(tmp_path):
    index = built(SOME, tmp_path / 'index.flex')
    text = pt.apply.generic(lambda res: res.assign(text='x'), required_columns=['docno'])
    for pipeline in (build_retriever(QUERIES, index) % 3, build_retriever(QUERIES, index, text=text)):
        whole, fused = pipeline, pipeline.compile()
        pd.testing.assert_frame_equal(whole(TOPICS), fused(TOPICS))
    compiled = (build_retriever(QUERIES, index) % 3).compile()
    assert [stage.num_results for stage in compiled if hasattr(stage, 'num_results')] == [3]


def test_what_cannot_load_text_is_refused(tmp_path):
    index = built(SOME, tmp_path / 'index.flex')
    with pytest.raises(ValueError, match=r"text='vaswani' \(str\) cannot load text"):
        build_retriever(QUERIES, index, text='vaswani')


@pytest.mark.parametrize('text', [{f'd{i}': 'rose ' * 1000 for i in range(1000)}, SOME * 100,
                                  pd.DataFrame(SOME * 100)], ids=['dict', 'list', 'frame'])
def test_texts_that_are_refused_are_named_and_not_printed(tmp_path, text):
    with pytest.raises(ValueError, match=fr'(?s)^text=.* \({type(text).__name__}\) cannot load') as raised:
        build_retriever(QUERIES, built(SOME, tmp_path / 'index.flex'), text=text)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize('n', [0, -1, 1.0, True, None, '10'])
def test_a_number_of_results_below_one_is_refused(tmp_path, n):
    with pytest.raises(ValueError, match=f'num_results={n!r}: must be a whole number of at least 1'):
        build_retriever(QUERIES, built(SOME, tmp_path / 'index.flex'), num_results=n)


@pytest.mark.parametrize('kind', [str, Path])
def test_a_path_is_opened(tmp_path, kind, capfd):
    index = built(SOME, tmp_path / 'index.flex')
    found = build_retriever(QUERIES, kind(tmp_path / 'index.flex'), num_results=np.int64(2))(TOPICS)
    pd.testing.assert_frame_equal(found, build_retriever(QUERIES, index, num_results=2)(TOPICS))
    assert 'scoring' not in capfd.readouterr().err


@pytest.mark.parametrize('meta', [None, '{}', '{"type": "sparse_index", "format": "terrier"}'])
def test_a_path_without_a_dense_index_is_refused(tmp_path, meta):
    if meta is not None:
        (tmp_path / 'pt_meta.json').write_text(meta)
    with pytest.raises(ValueError, match=r'no dense index at .*: index\(corpus, path\) makes one'):
        build_retriever(QUERIES, tmp_path)


def test_what_is_no_dense_index_is_refused():
    with pytest.raises(ValueError, match='index=.* is a DataFrame: give the FlexIndex .* or its path'):
        build_retriever(QUERIES, TOPICS)


def test_an_index_that_is_there_is_kept_unless_overwritten(tmp_path):
    built(SOME, tmp_path / 'index.flex')
    with pytest.raises(ValueError, match='overwrite=True'):
        built(SOME[:2], tmp_path / 'index.flex')
    assert len(pyterrier_dr.FlexIndex(str(tmp_path / 'index.flex'))) == len(SOME)


def test_an_overwritten_index_answers_from_the_new_vectors(tmp_path):
    old = built(SOME, tmp_path / 'index.flex')
    assert len(results(old)) == 2 * len(SOME)
    new = built(corpus('wind', 'rose star rose'), tmp_path / 'index.flex', overwrite=True)
    assert new is not old and len(new) == 2
    assert results(new)['docno'].tolist() == ['d1', 'd0', 'd0', 'd1']


@pytest.mark.parametrize('overwrite', [False, True])
def test_nothing_changes_when_the_corpus_raises(tmp_path, overwrite):
    if overwrite:
        built(SOME, tmp_path / 'index.flex')
    before = sorted(path.name for path in tmp_path.iterdir())

    def failing():
        yield from SOME[:3]
        raise RuntimeError('the disk is gone')
    with pytest.raises(RuntimeError, match='the disk is gone'):
        built(failing(), tmp_path / 'index.flex', overwrite=overwrite)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    if overwrite:
        assert len(pyterrier_dr.FlexIndex(str(tmp_path / 'index.flex'))) == len(SOME)
    assert len(built(iter(SOME[:2]), tmp_path / 'index.flex', overwrite=overwrite)) == 2


@pytest.mark.parametrize('empty', [[], iter([])])
def test_an_empty_corpus_is_refused(tmp_path, empty):
    with pytest.raises(ValueError, match='no documents'):
        built(empty, tmp_path / 'index.flex')
    assert not list(tmp_path.iterdir())


def test_no_queries_give_no_results(tmp_path):
    found = build_retriever(QUERIES, built(SOME, tmp_path / 'index.flex'))(TOPICS.iloc[:0])
    assert not len(found) and {'qid', 'query', 'docno', 'score', 'rank'} <= set(found)


def test_an_index_object_without_files_is_refused(tmp_path):
    with pytest.raises(ValueError, match='there is no dense index at .*typo'):
        build_retriever(QUERIES, pyterrier_dr.FlexIndex(str(tmp_path / 'typo')))
