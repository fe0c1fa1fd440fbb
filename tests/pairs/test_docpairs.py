"""Pairs in the vocabulary of ir_datasets."""
from collections import namedtuple
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
    (teacher() >> pt.apply.generic(lambda frame: frame[frame['docno'] != 'd3']), ValueError,
     r'left 2 pairs without a score \(qids q2, q1\)|left 2 pairs without a score \(qids q1, q2\)'),
    (pt.apply.generic(lambda frame: pd.DataFrame(frame)), pt.validate.InputValidationError, 'score')],
    ids=['NaN', 'left out', 'no score'])
def test_a_teacher_must_score_every_candidate(scorer, error, message):
    with pytest.raises(error, match=message):
        ScoredPairs.from_docpairs(map(DocPair._make, IDS), teacher=scorer)
