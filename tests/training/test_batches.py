"""A plan's rows with tokens and teachers' scores."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyterrier_tasb.encoding import Tokens
from pyterrier_tasb.pairs import ScoredPairs
from pyterrier_tasb.sampling import BatchPlan
from pyterrier_tasb.training.batches import JudgedPositives, TeacherTransform, TrainingBatches

N_QUERIES, N_DOCS, B = 10, 6, 4   # so few passages that a batch has some more than once


@pytest.fixture
def pairs():
    query = np.repeat(np.arange(N_QUERIES), 4)
    rng = np.random.default_rng(1)
    pos = np.repeat(rng.integers(0, 3, N_QUERIES), 4)   # positives are 0 to 2, negatives 3 to 5
    return ScoredPairs.from_arrays(None, [f'q{i}' for i in range(N_QUERIES)], [f'd{j}' for j in range(N_DOCS)],
                                   query, pos, rng.integers(3, 6, len(query)), rng.normal(size=len(query)))


@pytest.fixture
def plan(pairs):
    return BatchPlan(pairs, sampling='random', batch_size=B, seed=5)


class Table:
    """A teacher with a table of scores, which notes what it is asked."""

    def __init__(self):
        self.scores = torch.arange(N_QUERIES * N_DOCS, dtype=torch.float32).reshape(N_QUERIES, N_DOCS)
        self.asked = []

    def __call__(self, queries, docs):
        self.asked.append(docs.tolist())
        return self.scores[torch.from_numpy(queries)][:, torch.from_numpy(docs)]


def batches(plan, pairs, **options):
    """Text i of the queries is the tokens 1, i, of the passages 2, i, i."""
    queries = Tokens.from_lists([[1, 10 + i] for i in range(N_QUERIES)])
    docs = Tokens.from_lists([[2, 50 + j, 50 + j] for j in range(N_DOCS)])
    return TrainingBatches(plan, queries, docs, pairs.qids, **options)


def texts(tokens, rows):
    return [tokens.ids[tokens.offsets[row]:tokens.offsets[row + 1]].tolist() for row in rows.tolist()]


@pytest.mark.parametrize('step', range(5))
def test_rows_name_the_tokens_of_the_plans_texts(plan, pairs, step):
    drawn, batch = plan[step], batches(plan, pairs)[step]
    assert texts(batch.tokens, batch.query) == [[1, 10 + i] for i in drawn.query]
    assert texts(batch.tokens, batch.pos) == [[2, 50 + j, 50 + j] for j in drawn.pos]
    assert texts(batch.tokens, batch.neg) == [[2, 50 + j, 50 + j] for j in drawn.neg]
    assert batch.qids == tuple(f'q{i}' for i in drawn.query)
    assert batch.describe().startswith(f'queries q{drawn.query[0]}, q{drawn.query[1]}, ')


def test_a_passage_that_comes_twice_is_encoded_and_scored_once(plan, pairs):
    teacher = Table()
    made = [batches(plan, pairs, teacher=teacher)[step] for step in range(5)]
    distinct = [len({*plan[step].pos, *plan[step].neg}) for step in range(5)]
    assert [len(batch.tokens) for batch in made] == [B + n for n in distinct]
    assert [len(docs) == len(set(docs)) for docs in teacher.asked] == [True] * 5
    assert [len(docs) for docs in teacher.asked] == distinct and min(distinct) < 2 * B


def test_a_step_is_the_same_whenever_it_is_asked(plan, pairs):
    ours = batches(plan, pairs, teacher=Table())
    first, again = ours[3], [ours[step] for step in (7, 0, 3)][-1]
    assert np.array_equal(first.tokens.ids, again.tokens.ids)
    assert all(torch.equal(getattr(first, name), getattr(again, name)) for name in ('pos', 'neg', 'margin', 'in_batch'))


@pytest.mark.parametrize('transform', [
    TeacherTransform(), TeacherTransform(pairwise=.5, in_batch=3), TeacherTransform(pairwise=2, positive_bonus=4)])
def test_factors_come_first_and_the_bonus_is_for_judged_positives(plan, pairs, transform):
    judged, teacher = JudgedPositives(pairs.indptr, pairs.pos, N_DOCS), Table()
    batch, drawn = batches(plan, pairs, teacher=teacher, transform=transform, judged=judged)[2], plan[2]
    positives = {(i, int(pairs.pos[row])) for i in range(N_QUERIES) for row in range(*pairs.indptr[i:i + 2])}
    expected = [[transform.in_batch * float(teacher.scores[i, j]) + transform.positive_bonus * ((i, j) in positives)
                 for j in (*drawn.pos.tolist(), *drawn.neg.tolist())] for i in drawn.query.tolist()]
    assert batch.in_batch.tolist() == expected
    np.testing.assert_allclose(batch.margin, drawn.margin * transform.pairwise + transform.positive_bonus, rtol=1e-6)


def test_the_bonus_reaches_another_querys_positive_that_is_also_ones_own(plan, pairs):
    judged = JudgedPositives(pairs.indptr, pairs.pos, N_DOCS)
    none = lambda queries, docs: torch.zeros(len(queries), len(docs))  # noqa: E731
    options = dict(teacher=none, transform=TeacherTransform(positive_bonus=1.0), judged=judged)
    bonus = sum(batches(plan, pairs, **options)[step].in_batch.sum().item() for step in range(5))
    assert bonus > 5 * B


def test_stored_scores_of_the_plan_are_used_like_live_ones(plan, pairs):
    table = Table()

    class Stored:
        def __getitem__(self, step):
            drawn = plan[step]
            return table.scores[drawn.query][:, np.concatenate([drawn.pos, drawn.neg])].numpy().astype(np.float32)
    options = dict(transform=TeacherTransform(1.0, .5, 2.0), judged=JudgedPositives(pairs.indptr, pairs.pos, N_DOCS))
    live, stored = (batches(plan, pairs, teacher=teacher, **options) for teacher in (table, Stored()))
    assert all(torch.equal(live[step].in_batch, stored[step].in_batch) for step in range(5))


def test_without_an_in_batch_teacher_there_are_no_scores(plan, pairs):
    assert batches(plan, pairs)[0].in_batch is None


@settings(max_examples=40)
@given(seed=st.integers(0, 9999), n_queries=st.integers(1, 5), n_docs=st.integers(1, 6))
def test_judged_positives_are_those_of_the_pairs(seed, n_queries, n_docs):
    rng = np.random.default_rng(seed)
    indptr = np.concatenate([[0], np.cumsum(rng.integers(1, 4, n_queries))])
    pos = rng.integers(0, n_docs, indptr[-1]).astype(np.uint32)
    positives = {(i, int(j)) for i in range(n_queries) for j in pos[indptr[i]:indptr[i + 1]]}
    query, docs = rng.integers(0, n_queries, 4), rng.integers(0, n_docs, 7)
    found = JudgedPositives(indptr, pos, n_docs)(query, docs)
    assert found.tolist() == [[(i, j) in positives for j in docs.tolist()] for i in query.tolist()]
