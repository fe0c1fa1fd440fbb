"""`ScoredPairs` in memory and on disk."""
import pickle

import numpy as np
import pyterrier as pt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pair_rows import rows

from pyterrier_tasb import ScoredPairs
from pyterrier_tasb._files import atomic_dir

ARRAYS = ('indptr', 'pos', 'neg', 'margin')
triples = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(0, 5), st.floats(-9, 9, width=32)),
                   min_size=1, max_size=30)


def build(path, pairs=((1, 0, 1, 2.5), (0, 2, 1, -1.0), (1, 2, 0, .5), (0, 2, 0, 3.0), (0, 1, 0, -1.0))):
    query, pos, neg, margin = map(np.array, zip(*pairs))
    return ScoredPairs.from_arrays(path, ['q-ä', '7'], ['d0', 'd 1', ''], query, pos, neg, margin)


@settings(max_examples=40)
@given(triples)
def test_pairs_are_kept_by_query_margins_ascending(given_rows):
    given_rows = [*given_rows, *((q, 0, 1, 0.0) for q in range(5))]
    query, pos, neg, margin = map(np.array, zip(*given_rows))
    pairs = ScoredPairs.from_arrays(None, list('abcde'), list('uvwxyz'), query, pos, neg, margin)
    assert rows(pairs) == sorted(('abcde'[q], 'uvwxyz'[p], 'uvwxyz'[n], m) for q, p, n, m in given_rows)
    assert pairs.indptr[0] == 0 and pairs.indptr[-1] == len(pairs) == len(given_rows) and pairs.n_queries == 5
    for q in range(5):
        mine = slice(pairs.indptr[q], pairs.indptr[q + 1])
        keys = list(zip(pairs.margin[mine], pairs.pos[mine], pairs.neg[mine]))
        assert keys == sorted(keys)


@pytest.mark.parametrize('load', [ScoredPairs, pt.Artifact.load])
def test_pairs_come_back_from_disk(tmp_path, load):
    memory, written = build(None), build(tmp_path / 'pairs')
    read = load(str(tmp_path / 'pairs'))
    assert isinstance(read, ScoredPairs) and read.fingerprint == written.fingerprint == memory.fingerprint
    assert memory.path is pt.Artifact.NO_PATH and str(read.path) == str(tmp_path / 'pairs')
    assert list(read.qids) == memory.qids and list(read.docnos) == memory.docnos
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(read, name), getattr(memory, name))
        assert getattr(read, name).dtype == getattr(memory, name).dtype
        assert isinstance(getattr(read, name), np.memmap)
    assert read.queries is None and read.docs is None
    assert read.describe() == memory.describe()


def test_the_order_of_rows_does_not_matter_and_every_value_does(tmp_path):
    pairs = [(0, 1, 2, 1.0), (0, 0, 2, 1.0), (1, 0, 1, 2.0)]
    one = build(tmp_path / 'one', pairs)
    assert build(tmp_path / 'two', pairs[::-1]).fingerprint == one.fingerprint
    others = [[*pairs[:2], (1, 0, 1, 2.5)], [*pairs[:2], (1, 0, 2, 2.0)], [*pairs, pairs[0]]]
    assert one.fingerprint not in [build(tmp_path / f'other{i}', other).fingerprint for i, other in enumerate(others)]


def test_describe_counts():
    described = build(None).describe()
    assert described['pairs'] == 5 and described['queries'] == 2 and described['documents'] == 3
    assert described['margin p50'] == .5


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_margins_must_be_numbers(tmp_path, bad):
    with pytest.raises(ValueError, match=r"1 margins are NaN or infinite \(qids \['7'\]\)"):
        build(tmp_path / 'pairs', [(0, 1, 2, 1.0), (1, 0, 1, bad)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('qids, n', [(['a', 'b', 'c'], 2), ([], 0)])
def test_every_query_has_a_pair(qids, n):
    empty = np.zeros(int(bool(n)), dtype=np.int64)
    with pytest.raises(ValueError, match=f'{n} queries have no pair'):
        ScoredPairs.from_arrays(None, qids, ['d', 'e'], empty, empty, empty, empty)


def test_nothing_is_written_over(tmp_path):
    pairs = build(tmp_path / 'pairs')
    with pytest.raises(ValueError, match='exists: ScoredPairs'):
        build(tmp_path / 'pairs', [(0, 1, 2, 1.0), (1, 0, 1, 1.0)])
    assert ScoredPairs(tmp_path / 'pairs').fingerprint == pairs.fingerprint


def test_a_directory_without_pairs_says_how_to_make_them(tmp_path):
    with pytest.raises(ValueError, match='holds no scored pairs.*from_results'):
        ScoredPairs(tmp_path)


DAMAGES = {'cut': lambda file: file.write_bytes(file.read_bytes()[:-4]), 'empty': lambda file: file.write_bytes(b''),
           'lost': lambda file: file.unlink(), 'noise': lambda file: file.write_bytes(b'noise' * 40)}


@pytest.mark.parametrize('damage', DAMAGES)
@pytest.mark.parametrize('name', [*(f'{name}.npy' for name in ARRAYS), 'qids.bin', 'docnos.offsets.npy'])
def test_damaged_files_are_named(tmp_path, name, damage):
    build(tmp_path / 'pairs')
    DAMAGES[damage](tmp_path / 'pairs' / name)
    with pytest.raises(ValueError, match='pairs.* is damaged'):
        ScoredPairs(tmp_path / 'pairs')


def test_a_damaged_description_is_named(tmp_path):
    build(tmp_path / 'pairs')
    (tmp_path / 'pairs' / 'pt_meta.json').write_text('{"type": ')
    with pytest.raises(ValueError, match='pt_meta.json is damaged'):
        ScoredPairs(tmp_path / 'pairs')


@pytest.mark.parametrize('name', ARRAYS)
def test_arrays_must_fit_together(tmp_path, name):
    build(tmp_path / 'pairs')
    file = tmp_path / 'pairs' / f'{name}.npy'
    np.save(file, np.load(file)[:-1])
    with pytest.raises(ValueError, match='is damaged'):
        ScoredPairs(tmp_path / 'pairs')


@pytest.mark.parametrize('change, message', [
    ({'neg': [5]}, r'neg is array\(\[5\]\): expected whole numbers, each the row of one of 2 ids'),
    ({'neg': [-1]}, r'neg is array\(\[-1\]\)'), ({'query': [1]}, r'query is array\(\[1\]\).* of one of 1 ids'),
    ({'neg': [1.7]}, r'neg is array\(\[1.7\]\)'), ({'neg': [1, 1]}, r'have shapes \(1,\), \(1,\), \(2,\) and \(1,\)'),
    ({'docnos': ['d', 'd']}, "docnos has 'd' more than once"), ({'qids': ['q', 'q']}, "qids has 'q' more than once")])
def test_rows_of_no_id_are_refused(tmp_path, change, message):
    good = dict(qids=['q'], docnos=['d0', 'd1'], query=[0], pos=[0], neg=[1], margin=[1.0])
    assert len(ScoredPairs.from_arrays(tmp_path / 'good', **good)) == 1
    with pytest.raises(ValueError, match=message):
        ScoredPairs.from_arrays(tmp_path / 'bad', **{**good, **change})
    assert [path.name for path in tmp_path.iterdir()] == ['good']


def test_ids_on_disk_are_a_sequence(tmp_path):
    pairs = ScoredPairs.from_arrays(tmp_path / 'p', ['a', 'b', 'c'], ['d', 'e'], [0, 1, 2], [0] * 3, [1] * 3, [1.] * 3)
    assert pairs.qids[:2] == ['a', 'b'] and pairs.qids[::-1] == ['c', 'b', 'a'] and pairs.qids[5:] == []


def test_another_process_that_was_faster_is_named(tmp_path):
    with pytest.raises(FileExistsError, match='another process has made .*pairs meanwhile'), \
            atomic_dir(tmp_path / 'pairs') as part:
        (part / 'mine').touch()
        (tmp_path / 'pairs').mkdir()
        (tmp_path / 'pairs' / 'theirs').touch()
    assert [path.name for path in tmp_path.rglob('*')] == ['pairs', 'theirs']


def test_relative_paths_are_those_of_when_they_were_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pairs = ScoredPairs.from_arrays('p', ['q'], ['d0', 'd1'], [0], [0], [1], [1.0])
    monkeypatch.chdir('/')
    assert pickle.loads(pickle.dumps(pairs)).fingerprint == pairs.fingerprint
