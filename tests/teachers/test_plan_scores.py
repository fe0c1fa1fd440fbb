"""`TeacherScores`: a plan's scores on disk equal the live ones, survive interruptions, and are never another plan's."""
from contextlib import nullcontext

import numpy as np
import pyterrier as pt
import pytest
import torch

from pyterrier_tasb.pairs import ScoredPairs
from pyterrier_tasb.sampling import BatchPlan
from pyterrier_tasb.teachers import LateInteraction, TeacherScores, bind_in_batch_teacher, plan_scores
from pyterrier_tasb.texts import TextStore

N_QUERIES, N_DOCS, B, STEPS = 12, 8, 4, 20


@pytest.fixture
def stores(tmp_path, toy_topics, toy_corpus):
    queries = toy_topics[['qid', 'query']].iloc[:N_QUERIES]
    return (TextStore.build(tmp_path / 'queries', queries.itertuples(index=False)),
            TextStore.build(tmp_path / 'docs', ((doc['docno'], doc['text']) for doc in toy_corpus[:N_DOCS])))


@pytest.fixture
def pairs(stores):
    rng, query = np.random.default_rng(1), np.repeat(np.arange(N_QUERIES), 3)
    return ScoredPairs.from_arrays(None, list(stores[0].ids), list(stores[1].ids), query, query % 3,
                                   rng.integers(3, N_DOCS, len(query)), rng.normal(size=len(query)))


@pytest.fixture
def plan(pairs):
    return BatchPlan(pairs, sampling='random', batch_size=B, seed=2)


class Table:
    """A teacher with a table of scores; may be killed at a call."""

    def __init__(self, kill_at=None, scale=1.0, name='Table'):
        self.scores = torch.from_numpy(np.random.default_rng(9).normal(size=(N_QUERIES, N_DOCS)).astype(np.float32))
        self.scores, self.kill_at, self.name, self.calls = self.scores * scale, kill_at, name, 0

    def bind(self, queries, docs, cache_dir=None):
        def scores(query_rows, doc_rows):
            assert len(set(doc_rows.tolist())) == len(doc_rows)
            if self.calls == self.kill_at:
                raise KeyboardInterrupt
            self.calls += 1
            return self.scores[torch.from_numpy(query_rows)][:, torch.from_numpy(doc_rows)]
        return scores

    def __repr__(self):
        return self.name


def live(plan, step, table):
    batch = plan[step]
    return table[batch.query][:, np.concatenate([batch.pos, batch.neg])].numpy()


def assert_equals_live(scores, plan, table=Table().scores, steps=range(STEPS)):
    for step in steps:
        assert scores[step].dtype == np.float32 and scores[step].shape == (B, 2 * B)
        np.testing.assert_allclose(scores[step], live(plan, step, table), rtol=1e-3, atol=1e-4)


def test_stored_scores_equal_live_ones(plan, stores, tmp_path):
    scores = TeacherScores.build(tmp_path / 'scores', Table(), plan, *stores, steps=STEPS)
    assert len(scores) == STEPS and scores.teacher == 'Table'
    assert_equals_live(scores, plan)
    assert (tmp_path / 'scores' / 'scores.f2').stat().st_size == STEPS * B * 2 * B * 2


def test_stored_scores_are_bound_by_their_path(plan, stores, tmp_path):
    scores = TeacherScores.build(tmp_path / 'scores', Table(), plan, *stores, steps=STEPS)
    bound = bind_in_batch_teacher(str(tmp_path / 'scores'), *stores, tmp_path, plan, STEPS)
    assert (bound[3] == scores[3]).all()


def test_a_late_interaction_teachers_stored_scores_equal_its_live_ones(plan, stores, tmp_path, tiny_bert_dir):
    teacher = LateInteraction(tiny_bert_dir, device='cpu')
    scores = TeacherScores.build(tmp_path / 'scores', teacher, plan, *stores, steps=3)
    table = teacher.score_matrix(*(store.take(range(len(store))) for store in stores))
    for step in range(3):
        np.testing.assert_allclose(scores[step], live(plan, step, table), rtol=1e-2)


@pytest.mark.parametrize('killed_at', [0, 3, 10, 19])
def test_a_killed_build_goes_on_where_it_last_saved(plan, stores, tmp_path, monkeypatch, killed_at):
    monkeypatch.setattr(plan_scores, '_SAVE_EVERY', 4)
    with pytest.raises(KeyboardInterrupt):
        TeacherScores.build(tmp_path / 'scores', Table(killed_at), plan, *stores, steps=STEPS)
    with pytest.raises(ValueError, match='holds no whole teacher scores'):
        TeacherScores(tmp_path / 'scores')
    teacher = Table()
    scores = TeacherScores.build(tmp_path / 'scores', teacher, plan, *stores, steps=STEPS)
    assert teacher.calls == STEPS - killed_at // 4 * 4 + (killed_at >= 4)   # what is kept is compared first
    assert_equals_live(scores, plan)


def test_a_build_killed_twice_goes_on_twice(plan, stores, tmp_path, monkeypatch):
    monkeypatch.setattr(plan_scores, '_SAVE_EVERY', 4)
    for kill_at in (6, 6):
        with pytest.raises(KeyboardInterrupt):
            TeacherScores.build(tmp_path / 'scores', Table(kill_at), plan, *stores, steps=STEPS)
    teacher = Table()
    assert_equals_live(TeacherScores.build(tmp_path / 'scores', teacher, plan, *stores, steps=STEPS), plan)
    assert teacher.calls == STEPS - 8 + 1


def test_a_whole_build_is_not_repeated(plan, stores, tmp_path):
    TeacherScores.build(tmp_path / 'scores', Table(), plan, *stores, steps=STEPS)
    assert_equals_live(TeacherScores.build(tmp_path / 'scores', Table(kill_at=1), plan, *stores, steps=STEPS), plan)


@pytest.mark.parametrize('killed_at', [None, 10])
def test_another_teacher_of_the_same_name_and_other_texts_are_noticed(plan, stores, tmp_path, monkeypatch, killed_at):
    monkeypatch.setattr(plan_scores, '_SAVE_EVERY', 4)
    with pytest.raises(KeyboardInterrupt) if killed_at else nullcontext():
        TeacherScores.build(tmp_path / 'scores', Table(killed_at), plan, *stores, steps=STEPS)
    with pytest.raises(ValueError, match='scores of another teacher than Table'):
        TeacherScores.build(tmp_path / 'scores', Table(scale=-1.0), plan, *stores, steps=STEPS)
    others = [TextStore.build(tmp_path / f'other {i}', ((key, f'new {text}') for key, text in zip(
        store.ids, store.take(range(len(store))))))
              for i, store in enumerate(stores)]
    with pytest.raises(ValueError, match='texts .*there'):
        TeacherScores.build(tmp_path / 'scores', Table(), plan, stores[0], others[1], steps=STEPS)
    scores = TeacherScores.build(tmp_path / 'scores', Table(), plan, *stores, steps=STEPS)
    for texts in (others[0], stores[1]), (stores[0], others[1]):
        with pytest.raises(ValueError, match='are of other texts than this run'):
            bind_in_batch_teacher(scores, *texts, tmp_path, plan, STEPS)


@pytest.mark.parametrize('cuts', [(0, 20), (0, 7, 20), (0, 1, 2, 20)])
def test_joined_slices_equal_the_whole(plan, stores, tmp_path, cuts):
    slices = [TeacherScores.build(tmp_path / f'{first}', Table(), plan, *stores, first=first, last=last)
              for first, last in zip(cuts, cuts[1:])]
    assert [len(part) for part in slices] == list(np.diff(cuts))
    joined = TeacherScores.join(slices[::-1], tmp_path / 'joined')
    whole = TeacherScores.build(tmp_path / 'whole', Table(), plan, *stores, steps=STEPS)
    assert len(joined) == STEPS and (joined.plan_fingerprint, joined.teacher) == (whole.plan_fingerprint, whole.teacher)
    assert all(np.array_equal(joined[step], whole[step]) for step in range(STEPS))


def test_slices_that_do_not_fit_are_not_joined(plan, pairs, stores, tmp_path):
    def build(name, first, last, teacher='Table', of=plan):
        return TeacherScores.build(tmp_path / name, Table(name=teacher), of, *stores, first=first, last=last)
    start = build('start', 0, 5)
    other_plan = BatchPlan(pairs, sampling='random', batch_size=B, seed=3)
    for part, message in ((build('gap', 7, 9), 'batches 5 to 7 are missing'),
                          (start, 'batches 0 to 5 are in .* and in .*: give each once'),
                          (build('overlap', 3, 9), 'batches 3 to 5 are in .* and in '),
                          (build('teacher', 5, 9, 'Other'), 'different plans or teachers'),
                          (build('plan', 5, 9, of=other_plan), 'different plans or teachers')):
        with pytest.raises(ValueError, match=message):
            TeacherScores.join([part, start], tmp_path / 'joined')
    with pytest.raises(ValueError, match='no slices'):
        TeacherScores.join([], tmp_path / 'joined')
    assert not (tmp_path / 'joined').exists()


def test_a_build_that_another_process_has_begun_goes_on(plan, stores, tmp_path, monkeypatch):
    def overtaken(path):
        TeacherScores.build(tmp_path / 'theirs', Table(), plan, *stores, steps=STEPS)
        (tmp_path / 'theirs').rename(path)
        raise OSError('Directory not empty')
    make = plan_scores.atomic_dir
    monkeypatch.setattr(plan_scores, 'atomic_dir', lambda path: (make if path.name == 'theirs' else overtaken)(path))
    assert_equals_live(TeacherScores.build(tmp_path / 'ours', Table(), plan, *stores, steps=STEPS), plan)


def test_a_batch_outside_a_slice_is_an_index_error(plan, stores, tmp_path):
    part = TeacherScores.build(tmp_path / 'part', Table(), plan, *stores, first=5, last=9)
    assert_equals_live(part, plan, steps=range(5, 9))
    for step in (4, 9, -1):
        with pytest.raises(IndexError, match=f'batch {step} is not among 5 to 9'):
            part[step]


def test_a_run_takes_the_scores_of_its_own_plan_only(plan, pairs, stores, tmp_path):
    scores = TeacherScores.build(tmp_path / 'scores', Table(), plan, *stores, steps=STEPS)
    again = BatchPlan(pairs, sampling='random', batch_size=B, seed=2)
    assert bind_in_batch_teacher(scores, *stores, tmp_path, again, STEPS) is scores
    for options in ({'seed': 3}, {'seed': 2, 'batch_size': 3}):
        other = BatchPlan(pairs, sampling='random', **{'batch_size': B, **options})
        with pytest.raises(ValueError, match='of another plan'):
            bind_in_batch_teacher(scores, *stores, tmp_path, other, STEPS)


def test_too_few_batches_are_refused(plan, stores, tmp_path):
    scores = TeacherScores.build(tmp_path / 'scores', Table(), plan, *stores, steps=STEPS)
    with pytest.raises(ValueError, match='have batches 0 to 20, the run takes 0 to 21'):
        bind_in_batch_teacher(scores, *stores, tmp_path, plan, STEPS + 1)
    later = TeacherScores.build(tmp_path / 'later', Table(), plan, *stores, first=1, last=STEPS)
    with pytest.raises(ValueError, match='have batches 1 to 20, the run takes 0 to 5'):
        bind_in_batch_teacher(later, *stores, tmp_path, plan, 5)


@pytest.mark.parametrize('killed', [True, False], ids=['half', 'whole'])
@pytest.mark.parametrize('changes, difference', [
    ({'teacher': Table(name='Other')}, r"teacher \('Table' there, 'Other' now\)"), ({'seed': 3}, 'plan'),
    ({'steps': 8}, r'last \(20 there, 8 now\)')], ids=['teacher', 'plan', 'slice'])
def test_other_scores_are_not_continued(pairs, plan, stores, tmp_path, killed, changes, difference):
    try:
        TeacherScores.build(tmp_path / 'scores', Table(kill_at=5 if killed else None), plan, *stores, steps=STEPS)
    except KeyboardInterrupt:
        assert killed
    other = BatchPlan(pairs, sampling='random', batch_size=B, seed=changes.get('seed', 2))
    with pytest.raises(ValueError, match=f'holds other scores: .*{difference}'):
        TeacherScores.build(tmp_path / 'scores', changes.get('teacher', Table()), other, *stores,
                            steps=changes.get('steps', STEPS))


@pytest.mark.parametrize('scale', [1e6, float('nan'), float('inf')])
def test_a_score_beyond_half_precision_is_refused(plan, stores, tmp_path, scale):
    with pytest.raises(ValueError, match='Table gave a score that is not finite, or beyond what half precision holds'):
        TeacherScores.build(tmp_path / 'scores', Table(scale=scale), plan, *stores, steps=STEPS)


@pytest.mark.parametrize('options', [{}, {'steps': 0}, {'first': 3}, {'first': 5, 'last': 5}, {'first': -1, 'last': 3}],
                         ids=str)
def test_the_batches_must_be_named(plan, stores, tmp_path, options):
    with pytest.raises(ValueError, match='name the batches to score'):
        TeacherScores.build(tmp_path / 'scores', Table(), plan, *stores, **options)
    assert not (tmp_path / 'scores').exists()


def truncate(file):
    file.write_bytes(file.read_bytes()[:100])


def flip(file):
    blob = file.read_bytes()
    file.write_bytes(bytes([blob[0] ^ 1]) + blob[1:])


@pytest.mark.parametrize('damage', [truncate, flip])
@pytest.mark.parametrize('killed', [True, False], ids=['half', 'whole'])
def test_a_damaged_file_is_refused(plan, stores, tmp_path, killed, damage, monkeypatch):
    monkeypatch.setattr(plan_scores, '_SAVE_EVERY', 2)
    try:
        TeacherScores.build(tmp_path / 'scores', Table(kill_at=5 if killed else None), plan, *stores, steps=STEPS)
    except KeyboardInterrupt:
        assert killed
    damage(tmp_path / 'scores' / 'scores.f2')
    with pytest.raises(ValueError, match='damaged'):
        TeacherScores.build(tmp_path / 'scores', Table(), plan, *stores, steps=STEPS)
    if not killed:
        with pytest.raises(ValueError, match='damaged'):
            TeacherScores(tmp_path / 'scores')


def test_an_absent_path_says_how_scores_are_made(tmp_path):
    with pytest.raises(ValueError, match='TeacherScores.build'):
        TeacherScores(tmp_path / 'nothing')


def test_it_is_an_artifact(plan, stores, tmp_path):
    TeacherScores.build(tmp_path / 'scores', Table(), plan, *stores, steps=STEPS)
    loaded = pt.Artifact.load(str(tmp_path / 'scores'))
    assert isinstance(loaded, TeacherScores)
    assert_equals_live(loaded, plan)
