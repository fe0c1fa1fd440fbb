"""Pairs of a pipeline, a chunk at a time: interrupted, resumed, refused."""
import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from pair_rows import rows

from pyterrier_tasb import ScoredPairs, _files


class Candidates(pt.Transformer):
    """Given results; notes the queries of each call, and stops at call number `stop_at`."""

    def __init__(self, results, stop_at=None, name='given'):
        self.results, self.stop_at, self.name, self.calls = results, stop_at, name, []

    def transform(self, topics):
        self.calls.append(topics['qid'].tolist())
        if len(self.calls) == self.stop_at:
            raise KeyboardInterrupt
        return self.results[self.results['qid'].isin(set(topics['qid']))].reset_index(drop=True)

    def __repr__(self):
        return f'Candidates({self.name})'


class Unnamed(Candidates):
    __repr__ = object.__repr__


OPTIONS = dict(chunk=25, max_pairs_per_query=6, seed=3)


@pytest.fixture
def interrupted(toy_results, toy_topics, toy_qrels, tmp_path):
    """The path of a call that stopped in the second of three chunks."""
    pipeline = Candidates(toy_results, stop_at=2)
    with pytest.raises(KeyboardInterrupt):
        ScoredPairs.from_pipeline(pipeline, toy_topics, toy_qrels, tmp_path / 'pairs', **OPTIONS)
    assert len(pipeline.calls) == 2 and not (tmp_path / 'pairs').exists()
    return tmp_path / 'pairs'


@pytest.mark.parametrize('chunk', [1, 25, 60, 256])
def test_equals_from_results_whatever_the_chunk(toy_results, toy_topics, toy_qrels, tmp_path, chunk):
    pipeline = Candidates(toy_results)
    pairs = ScoredPairs.from_pipeline(pipeline, toy_topics, toy_qrels, tmp_path / 'pairs',
                                      **{**OPTIONS, 'chunk': chunk})
    whole = ScoredPairs.from_results(toy_results, toy_qrels, tmp_path / 'whole', max_pairs_per_query=6, seed=3)
    assert pairs.fingerprint == whole.fingerprint and rows(pairs) == rows(whole)
    assert [len(call) for call in pipeline.calls] == [min(chunk, 60 - start) for start in range(0, 60, chunk)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ['pairs', 'whole']


def test_resuming_runs_the_missing_chunks_only(interrupted, toy_results, toy_topics, toy_qrels, tmp_path):
    pipeline = Candidates(toy_results)
    pairs = ScoredPairs.from_pipeline(pipeline, toy_topics, toy_qrels, interrupted, **OPTIONS)
    qids = toy_topics['qid'].tolist()
    assert pipeline.calls == [qids[:2], qids[25:50], qids[50:]]   # the first call compares
    whole = ScoredPairs.from_pipeline(Candidates(toy_results), toy_topics, toy_qrels, tmp_path / 'whole', **OPTIONS)
    assert pairs.fingerprint == whole.fingerprint and rows(pairs) == rows(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['pairs', 'whole']


def test_a_pipeline_whose_name_is_an_address_can_be_resumed(toy_results, toy_topics, toy_qrels, tmp_path):
    first, second = Unnamed(toy_results, stop_at=3), Unnamed(toy_results)
    with pytest.raises(KeyboardInterrupt):
        ScoredPairs.from_pipeline(first, toy_topics, toy_qrels, tmp_path / 'pairs', **OPTIONS)
    assert repr(first) != repr(second)
    ScoredPairs.from_pipeline(second, toy_topics, toy_qrels, tmp_path / 'pairs', **OPTIONS)
    assert len(second.calls) == 2


@pytest.mark.parametrize('change, message', [
    (lambda results: results.assign(score=-results['score']), 'holds margins of another teacher than Candidates'),
    (lambda results: results.assign(docno='other-' + results['docno']), 'holds margins of other candidates than Cand')])
def test_another_pipeline_of_the_same_name_is_noticed(interrupted, toy_results, toy_topics, toy_qrels, change, message):
    with pytest.raises(ValueError, match=message):
        ScoredPairs.from_pipeline(Candidates(change(toy_results)), toy_topics, toy_qrels, interrupted, **OPTIONS)


def test_results_of_queries_that_were_not_asked_are_left(toy_results, toy_topics, toy_qrels, tmp_path):
    everything = pt.apply.generic(lambda topics: toy_results)
    some = toy_topics.iloc[:30]
    pairs = ScoredPairs.from_pipeline(everything, some, toy_qrels, tmp_path / 'pairs', **{**OPTIONS, 'chunk': 10})
    own = ScoredPairs.from_pipeline(Candidates(toy_results), some, toy_qrels, tmp_path / 'own', **OPTIONS)
    assert pairs.fingerprint == own.fingerprint and pairs.n_queries == 30


@pytest.mark.parametrize('options, message', [
    (dict(chunk=0), 'chunk=0: must be a whole number of at least 1'), (dict(chunk=-1), 'chunk=-1'),
    (dict(max_pairs_per_query=0), 'max_pairs_per_query=0: must be'), (dict(max_pairs_per_query=2.5), 'query=2.5'),
    (dict(seed='x'), "seed='x': must be a whole number")])
def test_numbers_that_cannot_be_are_refused(toy_results, toy_topics, toy_qrels, tmp_path, options, message):
    pipeline = Candidates(toy_results)
    with pytest.raises(ValueError, match=message):
        ScoredPairs.from_pipeline(pipeline, toy_topics, toy_qrels, tmp_path / 'pairs', **options)
    assert not pipeline.calls


def test_numbers_of_numpy_are_numbers(interrupted, toy_results, toy_topics, toy_qrels):
    options = {name: np.int64(value) for name, value in OPTIONS.items()}
    ScoredPairs.from_pipeline(Candidates(toy_results), toy_topics, toy_qrels, interrupted, **options)


def test_a_call_that_was_killed_at_its_very_end_is_completed(toy_results, toy_topics, toy_qrels, tmp_path, monkeypatch):
    def make():
        return ScoredPairs.from_pipeline(Candidates(toy_results), toy_topics, toy_qrels, tmp_path / 'pairs', **OPTIONS)
    monkeypatch.setattr(_files, '_remove', lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make()
    monkeypatch.undo()
    monkeypatch.setattr(_files, '_is_alive', lambda pid: False)
    assert len(make()) and [path.name for path in tmp_path.iterdir()] == ['pairs']


@pytest.mark.parametrize('change, names', [
    (dict(chunk=30), [r'chunk \(25 there, 30 now\)']), (dict(seed=4), [r'seed \(3 there, 4 now\)']),
    (dict(max_pairs_per_query=None), [r'max_pairs_per_query \(6 there, None now\)']),
    (dict(name='other'), [r"pipeline \('Candidates\(given\)' there, 'Candidates\(other\)' now\)"]),
    (dict(topics=59), ['topics']), (dict(qrels=100), ['qrels']), (dict(qrels=100, seed=4), ['qrels', 'seed'])],
    ids=str)
def test_other_settings_are_refused_with_the_difference_named(interrupted, toy_results, toy_topics, toy_qrels, change,
                                                              names):
    options = {**OPTIONS, **change}
    pipeline = Candidates(toy_results, name=options.pop('name', 'given'))
    topics, qrels = toy_topics.head(options.pop('topics', 60)), toy_qrels.head(options.pop('qrels', 999))
    with pytest.raises(ValueError, match='.*; '.join(names)) as error:
        ScoredPairs.from_pipeline(pipeline, topics, qrels, interrupted, **options)
    assert str(error.value).count(' now)') == len(names) and not pipeline.calls


@pytest.mark.parametrize('damage', [lambda blob: blob[:-30], lambda blob: b'',
                                    lambda blob: blob[:100] + b'xx' + blob[102:]], ids=['cut', 'empty', 'changed'])
def test_a_damaged_chunk_is_named(interrupted, toy_results, toy_topics, toy_qrels, damage):
    chunk, = interrupted.with_name('pairs.chunks').glob('*.npz')
    chunk.write_bytes(damage(chunk.read_bytes()))
    with pytest.raises(ValueError, match=f'{chunk.name} is damaged.*delete it and run the same call again'):
        ScoredPairs.from_pipeline(Candidates(toy_results), toy_topics, toy_qrels, interrupted, **OPTIONS)
    chunk.unlink()
    assert ScoredPairs.from_pipeline(Candidates(toy_results), toy_topics, toy_qrels, interrupted, **OPTIONS).n_queries


def test_pairs_that_are_there_are_not_scored_again(toy_results, toy_topics, toy_qrels, tmp_path):
    made = ScoredPairs.from_pipeline(Candidates(toy_results), toy_topics, toy_qrels, tmp_path / 'pairs', **OPTIONS)
    pipeline = Candidates(toy_results)
    again = ScoredPairs.from_pipeline(pipeline, toy_topics, toy_qrels, tmp_path / 'pairs', **OPTIONS)
    assert not pipeline.calls and again.fingerprint == made.fingerprint
    with pytest.raises(ValueError, match=r'seed \(.* there, 99 now\)'):
        ScoredPairs.from_pipeline(pipeline, toy_topics, toy_qrels, tmp_path / 'pairs', **{**OPTIONS, 'seed': 99})
    other = ScoredPairs.from_results(toy_results, toy_qrels, tmp_path / 'other')
    with pytest.raises(ValueError, match='was not made by from_pipeline'):
        ScoredPairs.from_pipeline(pipeline, toy_topics, toy_qrels, other.path, **OPTIONS)


def test_chunks_without_a_pair_are_counted(toy_results, toy_topics, toy_qrels, tmp_path):
    results = toy_results[~toy_results['qid'].isin(toy_topics['qid'][:30])]
    with pytest.warns(UserWarning, match='30 of 60 queries have no positive or no negative'):
        pairs = ScoredPairs.from_pipeline(Candidates(results), toy_topics, toy_qrels, tmp_path / 'pairs', **OPTIONS)
    whole = ScoredPairs.from_results(results, toy_qrels, tmp_path / 'whole', max_pairs_per_query=6, seed=3)
    assert pairs.fingerprint == whole.fingerprint


def test_no_pair_at_all_is_an_error(toy_results, toy_topics, toy_qrels, tmp_path):
    with pytest.raises(ValueError, match='none of the 60 queries has both'):
        ScoredPairs.from_pipeline(Candidates(toy_results.iloc[:0]), toy_topics, toy_qrels, tmp_path / 'pairs')


@pytest.mark.parametrize('score', [float('nan'), float('inf'), None])
def test_candidates_without_a_score_are_an_error(toy_results, toy_topics, toy_qrels, tmp_path, score):
    pipeline = Candidates(toy_results.assign(score=score))
    with pytest.raises(ValueError, match='NaN or infinite'):
        ScoredPairs.from_pipeline(pipeline, toy_topics, toy_qrels, tmp_path / 'pairs')


def test_columns_are_checked_at_the_door(toy_results, toy_topics, toy_qrels, tmp_path):
    with pytest.raises(pt.validate.InputValidationError, match='query'):
        ScoredPairs.from_pipeline(Candidates(toy_results), toy_topics[['qid']], toy_qrels, tmp_path / 'pairs')
    with pytest.raises(pt.validate.InputValidationError, match='score'):
        ScoredPairs.from_pipeline(Candidates(toy_results.drop(columns='score')), toy_topics, toy_qrels,
                                  tmp_path / 'pairs')
    with pytest.raises(ValueError, match='must be a DataFrame'):
        ScoredPairs.from_pipeline(Candidates(toy_results), pd.Series(['q0']), toy_qrels, tmp_path / 'pairs')


def test_a_document_twice_is_refused(toy_results, toy_topics, toy_qrels, tmp_path):
    twice = pd.concat([toy_results, toy_results.iloc[3:5]])
    with pytest.raises(ValueError, match=r"4 rows of the training results repeat a \(qid, docno\)"):
        ScoredPairs.from_pipeline(Candidates(twice), toy_topics, toy_qrels, tmp_path / 'pairs')
