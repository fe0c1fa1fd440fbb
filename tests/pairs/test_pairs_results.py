"""Pairs of a results frame, against plain loops."""
from collections import Counter

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from pair_rows import rows

from pyterrier_tasb import ScoredPairs


def by_loops(results, qrels):
    label = {(row.qid, row.docno): row.label for row in qrels.itertuples()}
    pairs = []
    for one in results.itertuples():
        for other in results.itertuples():
            if one.qid == other.qid and label.get((one.qid, one.docno), 0) > 0 >= label.get((one.qid, other.docno), 0):
                pairs.append((one.qid, one.docno, other.docno, float(np.float32(one.score - other.score))))
    return sorted(pairs)


@pytest.fixture
def some(toy_results):
    return toy_results[toy_results['qid'].isin([f'q{n}' for n in range(0, 60, 6)])]


def test_every_positive_is_paired_with_every_negative(some, toy_qrels):
    expected = by_loops(some, toy_qrels)
    assert len({row[0] for row in expected}) == 10
    assert rows(ScoredPairs.from_results(some, toy_qrels)) == expected


def test_judged_as_0_or_below_is_a_negative():
    results = pd.DataFrame([('q', 'x', d, s) for d, s in zip('abcd', [4.0, 3.0, 2.0, 1.0])],
                           columns=['qid', 'query', 'docno', 'score'])
    qrels = pd.DataFrame([('q', 'a', 1), ('q', 'b', 0), ('q', 'c', -2)], columns=['qid', 'docno', 'label'])
    assert rows(ScoredPairs.from_results(results, qrels)) == [('q', 'a', n, m) for n, m in zip('bcd', [1.0, 2.0, 3.0])]


@pytest.mark.parametrize('dtype', [int, str])
def test_ids_that_are_numbers_or_strings_are_one(dtype):
    results = pd.DataFrame([(7, 'x', 1, .5), (7, 'x', 2, '.25')], columns=['qid', 'query', 'docno', 'score'])
    results = results.astype({'qid': dtype, 'docno': dtype})
    qrels = pd.DataFrame([('7', '1', 1)], columns=['qid', 'docno', 'label'])
    assert rows(ScoredPairs.from_results(results, qrels)) == [('7', '1', '2', .25)]


def test_the_order_of_rows_does_not_matter(some, toy_qrels, tmp_path):
    one = ScoredPairs.from_results(some, toy_qrels, tmp_path / 'one', max_pairs_per_query=5)
    shuffled = ScoredPairs.from_results(some.sample(frac=1, random_state=1), toy_qrels.iloc[::-1], tmp_path / 'two',
                                        max_pairs_per_query=5)
    assert shuffled.fingerprint == one.fingerprint


def test_a_cap_keeps_a_draw_of_its_own(some, toy_qrels):
    def drawn(frame=some, **options):
        return set(rows(ScoredPairs.from_results(frame, toy_qrels, max_pairs_per_query=7, **options)))

    whole = Counter(row[0] for row in by_loops(some, toy_qrels))
    assert max(whole.values()) > 7
    capped = drawn()
    assert capped <= set(by_loops(some, toy_qrels)) and capped == drawn()
    assert Counter(row[0] for row in capped) == {qid: min(7, n) for qid, n in whole.items()}
    assert capped != drawn(seed=1)
    one = some[some['qid'] == 'q12']
    assert drawn(one) == {row for row in capped if row[0] == 'q12'}


def test_none_keeps_all_pairs():
    docnos = [f'd{i}' for i in range(1500)]
    results = pd.DataFrame({'qid': 'q', 'query': 'x', 'docno': docnos, 'score': np.arange(1500)})
    qrels = pd.DataFrame([('q', 'd0', 1)], columns=['qid', 'docno', 'label'])
    assert len(ScoredPairs.from_results(results, qrels, max_pairs_per_query=None)) == 1499
    assert len(ScoredPairs.from_results(results, qrels)) == 1000


@pytest.mark.parametrize('load', [ScoredPairs, pt.Artifact.load])
def test_pairs_on_disk_equal_those_in_memory(some, toy_qrels, tmp_path, load):
    ScoredPairs.from_results(some, toy_qrels, tmp_path / 'pairs')
    assert rows(load(str(tmp_path / 'pairs'))) == rows(ScoredPairs.from_results(some, toy_qrels))


def test_queries_that_give_no_pair_are_counted(some, toy_qrels):
    qrels = toy_qrels[~toy_qrels['qid'].isin(['q0', 'q6'])]
    with pytest.warns(UserWarning, match='2 of 10 queries have no positive or no negative'):
        pairs = ScoredPairs.from_results(some, qrels)
    assert pairs.n_queries == 8 and rows(pairs) == by_loops(some, qrels)


@pytest.mark.parametrize('change, message', [
    (lambda r, q: (r.assign(score=r['score'].where(r['qid'] != 'q6')), q), 'scores.*NaN or infinite.*q6'),
    (lambda r, q: (r.assign(score=np.inf), q), '120 scores.*NaN or infinite'),
    (lambda r, q: (r.assign(score='high'), q), '120 scores.*NaN or infinite'),
    (lambda r, q: (r.drop(columns='score'), q), 'no column score'),
    (lambda r, q: (r[['qid', 'query', 'score']], q), 'no column docno'),
    (lambda r, q: (pd.concat([r, r.head(1)]), q), r'repeat a \(qid, docno\)'),
    (lambda r, q: (r.iloc[:0], q), 'frame is empty'), (lambda r, q: (r, q.assign(label=0)), 'no positive passage'),
    (lambda r, q: (r, q.assign(label='yes')), 'labels.*are no numbers'),
    (lambda r, q: (r, q.assign(qid='x' + q['qid'])), 'none of the 10 queries has both'),
    (lambda r, q: (r.assign(qid=1.0), q), 'qid.*holds decimals')],
    ids=['NaN', 'infinite', 'no number', 'no score', 'topics', 'repeated', 'empty', 'no positive', 'labels',
         'other ids', 'decimals'])
def test_frames_that_cannot_be_used(some, toy_qrels, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        ScoredPairs.from_results(*change(some, toy_qrels), tmp_path / 'pairs')
    assert not list(tmp_path.iterdir())


def test_passages_of_judged_documents_are_named(toy_results, toy_qrels):
    passages = toy_results.assign(docno=toy_results['docno'] + '%p0')
    with pytest.raises(ValueError, match=r'are passages of judged documents \(docnos d0b%p0.*max_passage'):
        ScoredPairs.from_results(passages, toy_qrels)
