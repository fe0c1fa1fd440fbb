"""Stores on disk are pickled by their path and shared by their copies, and so is what holds them."""
import copy
import pickle
import shutil

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from transformers import AutoTokenizer

from pyterrier_tasb import LateInteraction, ScoredPairs, TasBalanced, TextStore
from pyterrier_tasb.collection import TextLoader
from pyterrier_tasb.encoding import TokenStore
from pyterrier_tasb.retrieval import WithoutDocid


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


def test_the_encoder_of_a_retriever_that_has_searched_takes_no_vectors_along(tiny_bert_dir, toy_corpus, tmp_path):
    tasb = TasBalanced(tiny_bert_dir)
    retriever = tasb.retriever(tasb.index(toy_corpus, tmp_path / 'index'))
    before = len(pickle.dumps(retriever[0]))
    retriever.search('rose')
    assert len(pickle.dumps(retriever[0])) < before + 1000


def test_a_student_is_copied_without_its_corpus(tiny_bert_dir, tmp_path):
    store = _texts(tmp_path / 'texts', 3)
    assert copy.deepcopy(TasBalanced(tiny_bert_dir, corpus=store)).corpus is store


class Uncopied(pt.Transformer):
    """What holds objects of Java or PISA."""

    def transform(self, inp):
        return inp

    def __reduce__(self):
        raise TypeError('cannot pickle')


STAGES = ['query_encoder', 'doc_encoder', 'text_scorer']


@pytest.mark.parametrize('stage', STAGES)
def test_a_stage_is_pickled_without_what_only_fit_needs(tiny_bert_dir, toy_results, stage):
    plain = TasBalanced(tiny_bert_dir, amp='off')
    tasb = TasBalanced(tiny_bert_dir, amp='off', negatives=Uncopied(), corpus=Uncopied(), clusters='clusters.tsv',
                       pairwise_teacher=Uncopied(), in_batch_teacher=LateInteraction(tiny_bert_dir),
                       cluster_encoder=TasBalanced(tiny_bert_dir, doc_max_length=50))
    ours = getattr(tasb, stage)()
    blob, blob_of_plain = pickle.dumps(ours), pickle.dumps(getattr(plain, stage)())
    other = pickle.loads(blob)
    assert other == ours and hash(other) == hash(ours) and repr(other) == repr(ours)
    assert abs(len(blob) - len(blob_of_plain)) < 100   # strings that are one object are written once
    assert other.bi_encoder_model.negatives is other.bi_encoder_model.in_batch_teacher is None
    pd.testing.assert_frame_equal(other(toy_results[:9]), ours(toy_results[:9]))
    assert isinstance(tasb.negatives, Uncopied) and isinstance(copy.copy(tasb).negatives, Uncopied)


@pytest.mark.parametrize('stage', STAGES)
@pytest.mark.parametrize('copied', [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))], ids=['deep', 'pickled'])
@pytest.mark.parametrize('order', [1, -1])
def test_a_stage_that_is_copied_with_its_encoder_stays_its_stage(tiny_bert_dir, stage, copied, order):
    tasb = TasBalanced(tiny_bert_dir, negatives=WithoutDocid(), in_batch_teacher='colbert')
    both = [tasb, getattr(tasb, stage)()]
    other, its_stage = copied(both[::order])[::order]
    assert its_stage.bi_encoder_model is other is not tasb and other.model is not tasb.model and other == tasb
    assert other.negatives == WithoutDocid() and other.in_batch_teacher == 'colbert'
    assert copy.copy(both[1]).bi_encoder_model is tasb


def test_a_miner_that_uses_the_encoder_is_pickled_with_it(tiny_bert_dir):
    tasb = TasBalanced(tiny_bert_dir)
    tasb.negatives, tasb.pairwise_teacher = tasb.query_encoder(), tasb
    other = pickle.loads(pickle.dumps(tasb))
    assert other.negatives.bi_encoder_model is other.pairwise_teacher is other


def test_a_deep_copy_shares_a_miner_that_cannot_be_copied(tiny_bert_dir):
    tasb = TasBalanced(tiny_bert_dir, negatives=Uncopied(), corpus=Uncopied())
    encoder, scorer = copy.deepcopy([tasb, tasb.text_scorer()])
    assert encoder.negatives is tasb.negatives and encoder.corpus is tasb.corpus and encoder == tasb
    assert scorer.bi_encoder_model is encoder and encoder.model is not tasb.model
    with pytest.raises(TypeError, match='cannot pickle'):
        pickle.dumps(tasb)   # which says that the miner does not get there


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
