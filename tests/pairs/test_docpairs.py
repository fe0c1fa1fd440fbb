"""Pairs in the vocabulary of ir_datasets."""
import tracemalloc
from collections import UserDict, namedtuple
from types import SimpleNamespace

import pandas as pd
import pyterrier as pt
import pytest
from pair_rows import rows

from pyterrier_tasb import ScoredPairs
from pyterrier_tasb.pairs import docpairs as docpairs_module

DocPair = namedtuple('DocPair', ['query_id', 'doc_id_a', 'doc_id_b'])
ScoredPair = namedtuple('ScoredPair', [*DocPair._fields, 'margin'])
KINDS = {'namedtuples': DocPair._make, 'objects': lambda ids: SimpleNamespace(**dict(zip(DocPair._fields, ids))),
         'dicts': lambda ids: dict(zip(DocPair._fields, ids))}
IDS = [('q2', 'd1', 'd2'), ('q1', 'd3', 'd1'), ('q2', 'd1', 'd3'), ('q2', 'd1', 'd2')]


def teacher(asked=None, **change):
    """Scores a candidate by the numbers in its ids; notes what it was asked."""
    def score(frame):
        if asked is not None:
            asked.append(sorted(zip(frame['qid'], frame['docno'])))
        return frame.assign(**{'score': [10.0 * int(q[1:]) - int(d[1:]) for q, d in zip(frame['qid'], frame['docno'])],
                               **change})
    return pt.apply.generic(score)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('consume', [list, iter])
def test_every_kind_of_object_gives_its_pairs(kind, consume):
    pairs = ScoredPairs.from_docpairs(consume([KINDS[kind](ids) for ids in IDS]))
    assert rows(pairs) == sorted((*ids, 0.0) for ids in IDS)


def test_ids_become_strings():
    assert rows(ScoredPairs.from_docpairs([DocPair(1, 20, 3)])) == [('1', '20', '3', 0.0)]


@pytest.mark.parametrize('kind', [ScoredPair._make, lambda values: dict(zip(ScoredPair._fields, values))],
                         ids=['namedtuple', 'dict'])
def test_margins_are_kept(kind):
    pairs = ScoredPairs.from_docpairs([kind((*ids, margin)) for ids, margin in zip(IDS, [1.5, -2, 0.25, 3])])
    assert rows(pairs) == sorted((*ids, margin) for ids, margin in zip(IDS, [1.5, -2.0, 0.25, 3.0]))


@pytest.mark.parametrize('chunk', [1, 2, 4096])
def test_a_teacher_scores_each_candidate_of_a_chunk_once(monkeypatch, chunk):
    monkeypatch.setattr(docpairs_module, '_CHUNK', chunk)
    asked = []
    pairs = ScoredPairs.from_docpairs([ScoredPair(*ids, 99.0) for ids in IDS], teacher=teacher(asked))
    assert rows(pairs) == sorted((q, p, n, float(int(n[1:]) - int(p[1:]))) for q, p, n in IDS)
    expected = [IDS[start:start + chunk] for start in range(0, len(IDS), chunk)]
    assert asked == [sorted({(q, d) for q, *both in some for d in both}) for some in expected]


@pytest.mark.parametrize('load', [ScoredPairs, pt.Artifact.load])
def test_docpairs_on_disk_equal_those_in_memory(tmp_path, load):
    ScoredPairs.from_docpairs(map(DocPair._make, IDS), tmp_path / 'pairs', teacher=teacher())
    assert rows(load(str(tmp_path / 'pairs'))) == rows(ScoredPairs.from_docpairs(map(DocPair._make, IDS),
                                                                                teacher=teacher()))


@pytest.mark.parametrize('name', DocPair._fields)
@pytest.mark.parametrize('kind', ['objects', 'dicts'])
def test_a_missing_attribute_is_named(tmp_path, kind, name):
    pairs = [KINDS[kind](ids) for ids in IDS]
    (pairs[2] if kind == 'dicts' else vars(pairs[2])).pop(name)
    with pytest.raises(ValueError, match=f'docpair 3 .* has no {name}'):
        ScoredPairs.from_docpairs(pairs, tmp_path / 'pairs')
    assert not list(tmp_path.iterdir())


def test_no_pairs_are_an_error():
    with pytest.raises(ValueError, match='the docpairs are empty'):
        ScoredPairs.from_docpairs(iter([]))


@pytest.mark.parametrize('margin', [float('nan'), float('inf')])
def test_margins_that_are_no_numbers_are_an_error(margin):
    with pytest.raises(ValueError, match='1 margins are NaN or infinite.*q1'):
        ScoredPairs.from_docpairs([ScoredPair('q1', 'd1', 'd2', margin), ScoredPair('q2', 'd1', 'd2', 1.0)])


@pytest.mark.parametrize('scorer, error, message', [
    (teacher(score=float('nan')), ValueError, 'NaN or infinite'),
    (teacher() >> pt.apply.generic(lambda frame: frame.iloc[:0]), ValueError,
     'scored both passages of none of the 4 docpairs'),
    (pt.apply.generic(lambda frame: pd.DataFrame(frame)), pt.validate.InputValidationError, 'score')],
    ids=['NaN', 'left out', 'no score'])
def test_a_teacher_must_score_every_candidate(scorer, error, message):
    with pytest.raises(error, match=message):
        ScoredPairs.from_docpairs(map(DocPair._make, IDS), teacher=scorer)


def partial(docno):
    return teacher() >> pt.apply.generic(lambda frame: frame[frame['docno'] != docno])


@pytest.mark.parametrize('chunk', [1, 2, 4096])
@pytest.mark.parametrize('on_disk', [False, True])
def test_pairs_that_a_teacher_does_not_score_are_left_out_and_counted(tmp_path, monkeypatch, chunk, on_disk):
    monkeypatch.setattr(docpairs_module, '_CHUNK', chunk)
    with pytest.warns(UserWarning, match='2 of 4 docpairs are left out'):
        pairs = ScoredPairs.from_docpairs(map(DocPair._make, IDS), tmp_path / 'pairs' if on_disk else None,
                                          teacher=partial('d3'))
    assert rows(pairs) == [('q2', 'd1', 'd2', 1.0)] * 2


# ---- interrupted ---------------------------------------------------------------------------------------------------

class Stops(pt.Transformer):
    """Scores by the numbers in the ids; stops at call number `stop_at`."""

    def __init__(self, stop_at=None, name='it'):
        self.stop_at, self.name, self.calls = stop_at, name, 0

    def transform(self, frame):
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        return teacher()(frame)

    def __repr__(self):
        return f'Stops({self.name})'


MANY = [(f'q{i % 3}', f'd{i}', f'd{i + 1}') for i in range(10)]


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """The path of a call that stopped in the third of four chunks."""
    monkeypatch.setattr(docpairs_module, '_CHUNK', 3)
    with pytest.raises(KeyboardInterrupt):
        ScoredPairs.from_docpairs(map(DocPair._make, MANY), tmp_path / 'pairs', teacher=Stops(3))
    assert [path.name for path in tmp_path.iterdir()] == ['pairs.chunks']
    return tmp_path / 'pairs'


def test_the_same_call_scores_what_is_missing_only(interrupted):
    scorer = Stops()
    pairs = ScoredPairs.from_docpairs(map(DocPair._make, MANY), interrupted, teacher=scorer)
    assert scorer.calls == 3 and len(list(interrupted.parent.iterdir())) == 1   # the first call compares
    whole = ScoredPairs.from_docpairs(map(DocPair._make, MANY), interrupted.with_name('whole'), teacher=Stops())
    assert pairs.fingerprint == whole.fingerprint and rows(pairs) == sorted((*ids, 1.0) for ids in MANY)


@pytest.mark.parametrize('others, options, message', [
    ([*MANY[:4], ('q9', 'd4', 'd5'), *MANY[5:]], {},
     r"number 5 is \['q1', 'd4', 'd5'\] there, \['q9', 'd4', 'd5'\] now"),
    (MANY[:5], {}, r"number 6 is \['q2', 'd5', 'd6'\] there, nothing now"),
    (MANY[:3], {}, 'of more docpairs than the 3 that were given'),
    (MANY, dict(name='other'), r"teacher \('Stops\(it\)' there, 'Stops\(other\)' now\)"),
], ids=str)
def test_chunks_of_something_else_are_refused_with_the_difference(interrupted, others, options, message):
    with pytest.raises(ValueError, match=message):
        ScoredPairs.from_docpairs(map(DocPair._make, others), interrupted, teacher=Stops(**options))
    assert not interrupted.exists()
    assert len(ScoredPairs.from_docpairs(map(DocPair._make, MANY), interrupted, teacher=Stops())) == 10


def test_what_was_not_scored_is_left_out_after_an_interruption_as_well(tmp_path, monkeypatch):
    monkeypatch.setattr(docpairs_module, '_CHUNK', 3)

    class Partial(Stops):
        def transform(self, frame):
            return super().transform(frame).query('docno not in ["d1", "d8"]')

    def build(scorer, path):
        return ScoredPairs.from_docpairs(map(DocPair._make, MANY), path, teacher=scorer)
    with pytest.raises(KeyboardInterrupt):
        build(Partial(3), tmp_path / 'pairs')
    with pytest.warns(UserWarning, match='4 of 10 docpairs are left out'):
        pairs = build(Partial(), tmp_path / 'pairs')
    with pytest.warns(UserWarning, match='4 of 10 docpairs are left out'):
        assert pairs.fingerprint == build(Partial(), tmp_path / 'whole').fingerprint


def test_another_teacher_of_the_same_name_is_noticed(interrupted):
    class Other(Stops):
        def transform(self, frame):
            return super().transform(frame).assign(score=lambda scored: -3 * scored['score'])
    with pytest.raises(ValueError, match='holds margins of another teacher than Stops'):
        ScoredPairs.from_docpairs(map(DocPair._make, MANY), interrupted, teacher=Other())


def test_pairs_that_are_there_are_refused_before_any_work(tmp_path):
    ScoredPairs.from_docpairs(map(DocPair._make, IDS), tmp_path / 'pairs')
    scorer = Stops()
    with pytest.raises(ValueError, match='pairs exists: ScoredPairs'):
        ScoredPairs.from_docpairs(map(DocPair._make, IDS), tmp_path / 'pairs', teacher=scorer)
    assert not scorer.calls


def test_files_of_someone_else_are_not_touched(tmp_path):
    (tmp_path / 'pairs.chunks').mkdir()
    (tmp_path / 'pairs.chunks' / 'precious').write_text('x')
    with pytest.raises(ValueError, match='holds other files'):
        ScoredPairs.from_docpairs(map(DocPair._make, IDS), tmp_path / 'pairs', teacher=Stops())
    assert [path.name for path in (tmp_path / 'pairs.chunks').iterdir()] == ['precious']


@pytest.mark.parametrize('docpairs', [[], [{'query_id': 'q1'}]])
def test_nothing_is_left_where_nothing_was_scored(tmp_path, docpairs):
    with pytest.raises(ValueError, match='expected'):
        ScoredPairs.from_docpairs(docpairs, tmp_path / 'pairs', teacher=Stops())
    assert not list(tmp_path.iterdir())


def test_a_pair_costs_no_strings_of_its_own():
    docpairs = ({'query_id': f'query {i % 50}', 'doc_id_a': f'doc {i % 500}', 'doc_id_b': f'doc {i % 501}'}
                for i in range(200_000))
    tracemalloc.start()
    pairs = ScoredPairs.from_docpairs(docpairs)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(pairs) == 200_000 and most < 200_000 * 100   # bytes; three strings alone take 150


def test_a_call_that_was_killed_at_its_very_end_is_completed(interrupted, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
        patched.setattr(docpairs_module, 'discard', lambda folder, of: 1 / 0)
        ScoredPairs.from_docpairs(map(DocPair._make, MANY), interrupted, teacher=Stops())
    scorer = Stops()
    assert len(ScoredPairs.from_docpairs(map(DocPair._make, MANY), interrupted, teacher=scorer)) == len(MANY)
    assert scorer.calls == 1 and [path.name for path in interrupted.parent.iterdir()] == ['pairs']   # which compares


def test_pairs_of_something_else_are_not_taken_for_those_of_a_killed_call(interrupted):
    ScoredPairs.from_docpairs(map(DocPair._make, IDS), interrupted)
    with pytest.raises(ValueError, match='pairs exists: ScoredPairs'):
        ScoredPairs.from_docpairs(map(DocPair._make, MANY), interrupted, teacher=Stops())
    assert interrupted.with_name('pairs.chunks').exists()


@pytest.mark.parametrize('wrong', [None, float('nan'), 1.0])
def test_ids_that_are_none_are_named(wrong):
    with pytest.raises(ValueError, match=f'docpair 2 .* has the id {wrong}: expected a string or a whole number'):
        ScoredPairs.from_docpairs([DocPair('q', 'a', 'b'), DocPair('q', wrong, 'b')])


def test_any_mapping_is_one():
    pairs = ScoredPairs.from_docpairs([UserDict(query_id='q', doc_id_a='a', doc_id_b='b')])
    assert rows(pairs) == [('q', 'a', 'b', 0.0)]


def test_a_teacher_that_scores_twice_is_named():
    twice = pt.apply.generic(lambda asked: pd.concat([asked.assign(score=1.0)] * 2))
    with pytest.raises(ValueError, match="rows of the teacher's results repeat a"):
        ScoredPairs.from_docpairs(map(DocPair._make, IDS), teacher=twice)
