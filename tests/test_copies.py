"""Stores on disk are pickled by their path and shared by their copies, and so is what holds them."""
import copy
import pickle
import shutil

import numpy as np
import pytest
from transformers import AutoTokenizer

from pyterrier_tasb import ScoredPairs, TasBalanced, TextStore
from pyterrier_tasb.collection import TextLoader
from pyterrier_tasb.encoding import TokenStore


def _texts(path, n, word='rose'):
    return TextStore.build(path, ((str(i), f'{word} {i} ' * 20) for i in range(n)))


@pytest.fixture
def tokens_of(tiny_bert_dir):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_dir)
    return lambda texts: TokenStore.of(texts, tokenizer, 20)


@pytest.fixture(params=['texts', 'tokens'])
def store(request, tmp_path, tokens_of):
    texts = _texts(tmp_path / 'texts', 30)
    return texts if request.param == 'texts' else tokens_of(texts)


@pytest.mark.parametrize('holder', ['store', 'loader', 'tokens'])
def test_a_pickle_does_not_grow_with_the_collection(tmp_path, tokens_of, holder):
    held = {'store': lambda texts: texts, 'loader': TextLoader, 'tokens': tokens_of}[holder]
    few, many = (len(pickle.dumps(held(_texts(tmp_path / name, n)))) for name, n in (('a', 3), ('b', 3000)))
    assert few == many < 500


def test_a_pickle_opens_the_same_store_wherever_the_process_is(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blob = pickle.dumps(type(store)(store.path.relative_to(tmp_path)))
    monkeypatch.chdir('/')
    other, rows = pickle.loads(blob), np.array([29, 0, 3])
    assert pickle.loads(blob) is other   # opened once in a process
    assert other.path == store.path and other.fingerprint == store.fingerprint and len(other) == 30
    found, expected = (getattr(taken, 'ids', taken) for taken in (other.take(rows), store.take(rows)))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('copied', [copy.copy, copy.deepcopy])
def test_copies_share_a_store(store, copied):
    assert copied([store, store])[1] is copied(store) is store


def test_a_student_is_copied_without_its_corpus(tiny_bert_dir, tmp_path):
    store = _texts(tmp_path / 'texts', 3)
    assert copy.deepcopy(TasBalanced(tiny_bert_dir, corpus=store)).corpus is store


def test_a_pickle_of_what_is_gone_says_so(tmp_path):
    blob = pickle.dumps(_texts(tmp_path / 'texts', 3))
    shutil.rmtree(tmp_path / 'texts')
    with pytest.raises(ValueError, match='texts is gone: a pickle names a TextStore by its path'):
        pickle.loads(blob)


def test_a_pickle_of_what_is_another_now_says_so(tmp_path):
    blob = pickle.dumps(_texts(tmp_path / 'texts', 3))
    shutil.rmtree(tmp_path / 'texts')
    _texts(tmp_path / 'texts', 3, word='star')
    with pytest.raises(ValueError, match=r'holds another TextStore \(\w+\) than was pickled'):
        pickle.loads(blob)


@pytest.mark.parametrize('path', ['pairs', None])
def test_pairs_are_pickled_by_their_path_where_they_have_one(path, tmp_path):
    def made(n):
        rows = np.arange(n)
        return ScoredPairs.from_arrays(path and tmp_path / f'{path}{n:05}', [f'q{i}' for i in rows], ['a', 'b'], rows,
                                       0 * rows, 0 * rows + 1, rows + 1.0)
    small, large = (pickle.dumps(made(n)) for n in (3, 3000))
    assert (len(small) == len(large)) == (path is not None)
    other = pickle.loads(large)
    assert other.fingerprint == made(3000).fingerprint if path is None else other.n_queries == 3000
    assert copy.deepcopy(other).qids[7] == 'q7'
