"""Teachers made of scorers: weighted sums, scorers of whole batches, scorers behind a cache, and what binds them."""
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import torch
from pyterrier_caching import ScorerCache

from pyterrier_tasb import TasBalanced
from pyterrier_tasb.pairs import ScoredPairs
from pyterrier_tasb.sampling import BatchPlan
from pyterrier_tasb.teachers import CachedScorer, LateInteraction, ScorerTeacher, WeightedSum, bind_in_batch_teacher
from pyterrier_tasb.texts import TextRows, TextStore

QUERIES = ['best rose gardening', 'planet star', 'the the']
DOCS = ['rose soil rose', 'star', 'planet comet star', 'the rose']
ROWS = np.array([2, 0]), np.array([3, 0, 0, 1])


@pytest.fixture
def stores(tmp_path):
    return (TextStore.build(tmp_path / 'queries', ((f'q{i}', text) for i, text in enumerate(QUERIES))),
            TextStore.build(tmp_path / 'docs', ((f'd{j}', text) for j, text in enumerate(DOCS))))


@pytest.fixture
def frame():
    return pd.DataFrame([{'qid': f'q{i}', 'query': query, 'docno': f'd{j}', 'text': text}
                         for i, query in enumerate(QUERIES) for j, text in enumerate(DOCS)])


class Scorer(pt.Transformer):
    """Scores a row by a function of query and text, counts rows, and answers in another order."""

    def __init__(self, score, name):
        self.score, self.name, self.rows = score, name, 0

    def transform(self, inp):
        pt.validate.result_frame(inp, extra_columns=['query', 'text'], context=self)
        self.rows += len(inp)
        scores = [self.score(query, text) for query, text in zip(inp['query'], inp['text'])]
        return inp.assign(score=np.array(scores, dtype=float)).sort_values('score', ascending=False)

    def __repr__(self):
        return self.name


def overlap(query, text):
    return float(len(set(query.split()) & set(text.split())))


def length(query, text):
    return float(len(text) - 2 * len(query))


def words():
    return Scorer(overlap, 'words')


def lengths():
    return Scorer(length, 'lengths')


def expected(score, queries=QUERIES, docs=DOCS):
    return np.array([[score(query, text) for text in docs] for query in queries])


# ---- weighted sums ---------------------------------------------------------------------------------------------------

def test_a_sum_scores_in_the_order_given_and_ranks(frame):
    frame = frame.sample(frac=1, random_state=3)
    results = WeightedSum([(2.0, words()), (-.5, lengths())])(frame)
    assert results[['qid', 'docno']].values.tolist() == frame[['qid', 'docno']].values.tolist()
    assert results['score'].tolist() == [2 * overlap(q, t) - .5 * length(q, t)
                                         for q, t in zip(frame['query'], frame['text'])]
    for _, of_query in results.groupby('qid'):
        assert of_query.sort_values('rank')['score'].is_monotonic_decreasing


def test_a_bound_sum_gives_the_matrix_that_the_sum_would_give(stores):
    found = WeightedSum([(2.0, words()), (-.5, ScorerTeacher(lengths()))]).bind(*stores)(*ROWS)
    whole = 2 * expected(overlap) - .5 * expected(length)
    np.testing.assert_allclose(found, whole[np.ix_(*ROWS)], atol=1e-5)


def test_a_sum_may_hold_a_late_interaction_teacher(tiny_bert_dir, stores, frame):
    inner = LateInteraction(tiny_bert_dir, device='cpu')
    total = WeightedSum([(3.0, inner), (1.0, words())])
    bound = total.bind(*stores)(np.arange(3), np.arange(4)).numpy()
    np.testing.assert_allclose(bound, 3 * inner.score_matrix(QUERIES, DOCS).numpy() + expected(overlap), rtol=1e-5)
    np.testing.assert_allclose(total(frame)['score'], bound.reshape(-1), rtol=1e-2)


def test_a_row_that_a_teacher_leaves_out_is_an_error(frame):
    lazy = pt.apply.generic(lambda res: words()(res).iloc[2:], transform_outputs=None)
    with pytest.raises(ValueError, match='2 of 12 rows were not scored by every teacher'):
        WeightedSum([(1.0, words()), (1.0, lazy)])(frame)


def test_an_empty_sum_is_refused_and_an_empty_frame_is_not(frame):
    with pytest.raises(ValueError, match='at least one'):
        WeightedSum([])
    for wrong in [words()], [(words(), 1)], 3:
        with pytest.raises(ValueError, match=r'give \(weight, teacher\) pairs'):
            WeightedSum(wrong)
    for weight in float('nan'), float('inf'):
        with pytest.raises(ValueError, match='weights must be finite'):
            WeightedSum([(weight, words())])
    for other in 'a-checkpoint', ScorerTeacher(words()):
        total = WeightedSum([(1.0, words()), (1.0, other)])
        with pytest.raises(ValueError, match='is no transformer, and can be summed as an in-batch teacher only'):
            total(frame)
    results = WeightedSum([(1.0, words())])(frame.iloc[:0])
    assert not len(results) and {'score', 'rank'} <= set(results.columns)


def test_sums_are_equal_when_weights_and_teachers_are():
    one = words()
    assert WeightedSum([(1, one)]) == WeightedSum([(1.0, one)]) != WeightedSum([(2.0, one)])
    assert hash(WeightedSum([(1, one)])) == hash(WeightedSum([(1.0, one)]))


# ---- scorers of whole batches ----------------------------------------------------------------------------------------

@pytest.mark.parametrize('rows', [ROWS, (np.array([1]), np.array([2])), (np.arange(3), np.arange(4))])
def test_a_scorer_teaches_every_pair_of_a_batch(stores, rows):
    found = ScorerTeacher(lengths()).bind(*stores)(*rows)
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found, expected(length)[np.ix_(*rows)])


def test_a_scorer_may_read_another_column(stores):
    scorer = pt.apply.doc_score(lambda row: length(row['query'], row['passage']))
    found = ScorerTeacher(scorer, 'passage').bind(*stores)(*ROWS)
    np.testing.assert_array_equal(found, expected(length)[np.ix_(*ROWS)])


@pytest.mark.parametrize('spoil, missing', [
    (lambda res: res.iloc[3:], 3), (lambda res: res.assign(score=res['score'].where(res['text'] != 'star')), 2),
    (lambda res: res.assign(score=float('inf')), 6)], ids=['left out', 'NaN', 'infinite'])
def test_a_batch_that_is_not_wholly_scored_is_an_error(stores, spoil, missing):
    scorer = pt.apply.generic(lambda res: spoil(words()(res)), transform_outputs=None)
    with pytest.raises(ValueError, match=f'left {missing} of 6 .*without a finite score'):
        ScorerTeacher(scorer).bind(*stores)(*ROWS)


def test_a_scorer_of_batches_is_given_the_runs_own_ids(stores):
    queries, docs = stores
    some = TextRows(docs, np.array([3, 1, 0]))   # of a shared corpus, in an order of their own
    asked = []
    def score(row):
        asked.append((row['qid'], row['docno']))
        return length(row['query'], row['text'])
    found = ScorerTeacher(pt.apply.doc_score(score)).bind(queries, some)(np.array([2, 0]), np.array([2, 1]))
    assert set(asked) == {('q2', 'd0'), ('q2', 'd1'), ('q0', 'd0'), ('q0', 'd1')}
    np.testing.assert_array_equal(found, expected(length)[np.ix_([2, 0], [0, 1])])


def test_a_cache_by_docno_teaches_batches_rightly(stores, tmp_path):
    with ScorerCache(str(tmp_path / 'cache'), lengths()) as cached:
        teacher = ScorerTeacher(cached).bind(*stores)
        for docs in (np.array([0, 1]), np.array([2, 3])):   # the cache must not take the second for the first
            np.testing.assert_array_equal(teacher(np.arange(3), docs), expected(length)[:, docs])


def test_an_index_that_scores_by_docno_teaches_batches(tiny_bert_dir, stores, tmp_path):
    student = TasBalanced(tiny_bert_dir, device='cpu', amp='off')
    index = student.index([{'docno': f'd{j}', 'text': text} for j, text in enumerate(DOCS)], tmp_path / 'index')
    found = ScorerTeacher(student.query_encoder() >> index.scorer()).bind(*stores)(*ROWS)
    vectors = student.encode_queries(QUERIES) @ student.encode_docs(DOCS).T
    np.testing.assert_allclose(found, vectors[np.ix_(*ROWS)], rtol=1e-5)


# ---- scorers behind a cache ------------------------------------------------------------------------------------------

def test_a_second_run_does_not_ask_the_scorer_again(frame, tmp_path):
    scorer = lengths()
    first = CachedScorer(scorer, tmp_path / 'deep' / 'cache')(frame)
    assert scorer.rows == len(frame)
    again = CachedScorer(scorer, tmp_path / 'deep' / 'cache')(frame.sample(frac=1, random_state=2))
    assert scorer.rows == len(frame) + 4   # a look whether it is the same scorer
    merged = first.merge(again, on=['qid', 'docno'])
    assert len(merged) == len(frame) and (merged['score_x'] == merged['score_y']).all()
    assert (first['score'] == [length(q, t) for q, t in zip(first['query'], first['text'])]).all()


def test_one_cache_serves_threads_and_is_closed_between_calls(frame, tmp_path):
    scorer = CachedScorer(lengths(), tmp_path / 'cache')
    expected = scorer(frame)['score'].tolist()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(scorer, frame).result()['score'].tolist() == expected
    files = {os.path.realpath(f'/proc/self/fd/{name}') for name in os.listdir('/proc/self/fd')}
    assert not [file for file in files if file.startswith(str(tmp_path))]


def test_another_scorer_of_the_same_name_is_noticed(frame, tmp_path):
    CachedScorer(Scorer(lambda query, text: len(text), 'one'), tmp_path / 'cache')(frame)
    with pytest.raises(ValueError, match='holds scores of another teacher than one'):
        CachedScorer(Scorer(lambda query, text: -len(text), 'one'), tmp_path / 'cache')(frame)


def test_a_scorer_that_rewrites_queries_or_leaves_rows_out_is_itself_again(frame, tmp_path):
    class Rewriting(pt.Transformer):
        def __init__(self, factor):
            self.factor = factor

        def transform(self, inp):
            found = lengths()(inp)
            return found.assign(query=found['query'].str.upper(), score=self.factor * found['score']).iloc[1:]

        def __repr__(self):
            return 'Rewriting()'
    first = CachedScorer(Rewriting(1), tmp_path / 'cache')(frame)
    again = CachedScorer(Rewriting(1), tmp_path / 'cache')(frame)
    assert first['score'].tolist() == again['score'].tolist() and len(first) == len(frame) - 1
    with pytest.raises(ValueError, match='holds scores of another teacher'):
        CachedScorer(Rewriting(3), tmp_path / 'cache')(frame)


def test_queries_of_equal_text_are_one_to_the_cache_and_rows_without_a_score_are_left_out(frame, tmp_path):
    twice = pd.concat([frame, frame.assign(qid='x' + frame['qid'])], ignore_index=True)
    scorer = words()
    found = CachedScorer(scorer, tmp_path / 'cache')(twice)
    assert scorer.rows == len(frame.drop_duplicates(['query', 'docno'])) and len(found) == len(twice)
    expected = [len(set(q.split()) & set(t.split())) for q, t in zip(found['query'], found['text'])]
    assert found['score'].tolist() == expected

    class Half(pt.Transformer):
        def transform(self, inp):
            return words()(inp).iloc[::2]
    some = CachedScorer(Half(), tmp_path / 'half')(frame)
    assert 0 < len(some) < len(frame) and some['score'].notna().all()


def test_only_what_is_new_is_asked(frame, tmp_path):
    scorer = words()
    cached = CachedScorer(scorer, tmp_path / 'cache')
    cached(frame.iloc[:5])
    assert scorer.rows == 5
    cached(frame)
    assert scorer.rows == len(frame)


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_a_score_that_is_no_number_is_refused_and_not_cached(frame, tmp_path, bad):
    broken = Scorer(lambda query, text: bad if text == 'star' else 1.0, 'broken')
    with pytest.raises(ValueError, match=r'broken gave 3 candidates a NaN or infinite .*q0, q1, q2, docnos d1\)'):
        CachedScorer(broken, tmp_path / 'cache')(frame)
    mended = Scorer(lambda query, text: 5.0 if text == 'star' else 1.0, 'mended')
    results = CachedScorer(mended, tmp_path / 'cache')(frame)
    assert (results['score'] == np.where(results['text'] == 'star', 5.0, 1.0)).all()


def test_a_cached_scorer_goes_by_its_scorers_name(tmp_path):
    assert repr(CachedScorer(words(), tmp_path / 'cache')) == 'words'
    assert not (tmp_path / 'cache').exists()


# ---- what a user may name --------------------------------------------------------------------------------------------

@pytest.fixture
def plan():
    pairs = ScoredPairs.from_arrays(None, ['q0', 'q1', 'q2'], ['d0', 'd1', 'd2', 'd3'], np.arange(3), np.zeros(3, int),
                                    np.ones(3, int), np.zeros(3))
    return BatchPlan(pairs, sampling='random', batch_size=2)


@pytest.mark.parametrize('make', [lengths, lambda: ScorerTeacher(lengths()), lambda: WeightedSum([(1.0, lengths())])],
                         ids=['transformer', 'bound', 'sum'])
def test_scorers_and_teachers_are_bound(stores, plan, tmp_path, make):
    found = bind_in_batch_teacher(make(), *stores, tmp_path, plan)(*ROWS)
    np.testing.assert_array_equal(found, expected(length)[np.ix_(*ROWS)])


@pytest.mark.parametrize('make', [lambda scorer: scorer, lambda scorer: WeightedSum([(.5, scorer), (.5, scorer)])],
                         ids=['transformer', 'sum'])
def test_scorers_read_the_column_that_the_student_reads(stores, plan, tmp_path, make):
    scorer = pt.apply.doc_score(lambda row: length(row['query'], row['body']))
    found = bind_in_batch_teacher(make(scorer), *stores, tmp_path, plan, text_field='body')(*ROWS)
    np.testing.assert_array_equal(found, expected(length)[np.ix_(*ROWS)])


def test_passages_of_one_docno_have_scores_of_their_own_or_are_named(frame):
    one = frame.assign(docno='d')
    total = WeightedSum([(2.0, pt.apply.doc_score(lambda row: len(row['text'])))])
    assert total(one)['score'].tolist() == [2.0 * len(text) for text in one['text']]
    with pytest.raises(ValueError, match=r"repeat a \(qid, docno\), first \('q.', 'd'\), in another order"):
        WeightedSum([(2.0, words())])(one)   # which answers in the order of its scores


def test_a_checkpoints_name_is_a_late_interaction_teacher(stores, plan, tmp_path, tiny_bert_dir):
    found = bind_in_batch_teacher(tiny_bert_dir, *stores, tmp_path, plan)(*ROWS)
    own = LateInteraction(tiny_bert_dir).bind(*stores)(*ROWS)
    assert torch.equal(found, own)


@pytest.mark.parametrize('teacher', [3, None, overlap, [1.0, 2.0]], ids=lambda teacher: type(teacher).__name__)
def test_what_cannot_teach_is_refused_with_what_can(stores, plan, tmp_path, teacher):
    with pytest.raises(ValueError, match='cannot teach: give a LateInteraction'):
        bind_in_batch_teacher(teacher, *stores, tmp_path, plan)


def test_a_sum_needs_the_columns_that_its_teachers_need(tiny_bert_dir):
    total = WeightedSum([(1.0, LateInteraction(tiny_bert_dir, device='cpu')), (1.0, words())])
    [columns] = pt.inspect.transformer_inputs(total)
    assert {'qid', 'docno', 'query', 'text'} == set(columns)
    assert 'score' in pt.inspect.transformer_outputs(total, columns)
    assert pt.inspect.subtransformers(total) == {'teachers': [teacher for _, teacher in total.teachers]}
    assert 'WeightedSum' in pt.schematic.draw(total)


def test_a_sum_needs_texts_where_vectors_would_do_as_well(tiny_bert_dir):
    dense, late = TasBalanced(tiny_bert_dir).text_scorer(), LateInteraction(tiny_bert_dir)
    for teachers in [dense], [late, dense], [dense, late]:
        [columns] = pt.inspect.transformer_inputs(WeightedSum([(1.0, teacher) for teacher in teachers]))
        assert set(columns) == {'qid', 'docno', 'query', 'text'}


def test_late_interaction_takes_no_name_of_other_weights(tiny_bert_dir):
    teacher = LateInteraction(tiny_bert_dir, device='cpu')
    with pytest.raises(ValueError, match='cannot take the name of other weights'):
        teacher.apply_attributes(model_name='other')
    assert teacher.apply_attributes(model_name=teacher.model_name) == teacher
