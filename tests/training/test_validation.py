"""Validation by re-ranking: what plain evaluation gives, wherever the texts are."""
import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from ir_measures import nDCG

from pyterrier_tasb import TasBalanced, TextStore
from pyterrier_tasb.training import validation
from pyterrier_tasb.training.validation import RerankingPool, by_reciprocal_rank


@pytest.fixture
def tasb(tiny_bert_dir):
    return TasBalanced(tiny_bert_dir, amp='off')


@pytest.fixture
def corpus(toy_corpus, tmp_path):
    return TextStore.build(tmp_path / 'texts', ((doc['docno'], doc['text']) for doc in reversed(toy_corpus)))


@pytest.fixture
def expected(tasb, toy_results, toy_qrels):
    return pt.Evaluate(tasb(toy_results), toy_qrels, metrics=[nDCG @ 10])['nDCG@10']


def test_the_measure_is_that_of_plain_re_ranking(tasb, toy_results, toy_qrels, expected):
    pool = RerankingPool(toy_results, toy_qrels)
    assert len(pool) == len(toy_results)
    assert pool(tasb.encoder) == {'nDCG@10': pytest.approx(expected, abs=1e-6)}
    assert 0 < expected < 1


def test_scores_in_parts_are_those_of_the_whole(tasb, toy_results, toy_qrels, expected, monkeypatch):
    monkeypatch.setattr(validation, '_CANDIDATES', 7)
    assert RerankingPool(toy_results, toy_qrels)(tasb.encoder)['nDCG@10'] == pytest.approx(expected, abs=1e-6)


def test_texts_and_tokens_may_lie_on_disk(tasb, toy_results, toy_qrels, expected, tmp_path):
    for _ in range(2):   # made, then found
        pool = RerankingPool(toy_results, toy_qrels, folder=tmp_path / 'pool')
        assert pool(tasb.encoder)['nDCG@10'] == pytest.approx(expected, abs=1e-6)
    assert sorted(path.name for path in (tmp_path / 'pool').iterdir()) == ['docs', 'queries']


def test_texts_may_be_those_of_the_corpus(tasb, toy_results, toy_qrels, expected, corpus, tmp_path):
    without = toy_results.drop(columns='text').sample(frac=1, random_state=3)
    pool = RerankingPool(without, toy_qrels, corpus=corpus)
    assert pool(tasb.encoder)['nDCG@10'] == pytest.approx(expected, abs=1e-6)
    assert [path.name for path in corpus.path.iterdir() if path.is_dir()] == [
        tasb.tokenise_corpus(corpus).path.name]


def test_candidates_that_the_corpus_lacks_are_named(toy_results, toy_qrels, corpus):
    odd = toy_results.drop(columns='text').assign(docno=lambda frame: frame['docno'].replace('d0a', 'x'))
    with pytest.raises(ValueError, match=r"validation candidates are not in TextStore.*'x'"):
        RerankingPool(odd, toy_qrels, corpus=corpus)


def test_queries_without_judgements_take_no_part(tasb, toy_results, toy_qrels):
    some = toy_qrels[toy_qrels['qid'].isin(['q3', 'q8'])]
    assert len(RerankingPool(toy_results, some)) == 24
    with pytest.raises(ValueError, match='has a judgement'):
        RerankingPool(toy_results, toy_qrels.assign(qid='x'))


def test_easy_and_hard_queries_have_equal_shares():
    """First relevant ranks: 30 queries at 1, 3 at 2, 2 at 12 (one bin: lower than 10) and 1 with none."""
    first = {f'q{i}': rank for i, rank in enumerate([1] * 30 + [2] * 3 + [12] * 2 + [None])}
    results = pd.DataFrame([{'qid': qid, 'docno': f'd{rank}'} for qid in first for rank in range(1, 16)])
    qrels = pd.DataFrame([{'qid': qid, 'docno': f'd{rank or 99}', 'label': 1} for qid, rank in first.items()])

    def drawn(n, seed=0):
        kept = by_reciprocal_rank(results, qrels, n, seed=seed)
        assert (kept.groupby('qid').size() == 15).all()
        ranks = pd.Series(first, dtype=float)[kept['qid'].unique()].fillna(99)
        return kept['qid'].unique().tolist(), dict(ranks.value_counts())
    assert drawn(4)[1] == {1: 1, 2: 1, 12: 1, 99: 1}
    assert drawn(9)[1] == {1: 3, 2: 3, 12: 2, 99: 1}
    assert drawn(16)[1] == {1: 10, 2: 3, 12: 2, 99: 1}
    assert len(drawn(1000)[0]) == 36
    assert drawn(9)[0] == drawn(9)[0] and any(drawn(4, seed)[0] != drawn(4)[0] for seed in range(1, 9))
    assert np.array_equal(by_reciprocal_rank(results, qrels, 1000), results)
