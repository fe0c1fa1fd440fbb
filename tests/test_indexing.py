"""An index is what pyterrier_dr would write, whole or not there, and an interrupted call is gone on with."""
import os

import numpy as np
import pandas as pd
import pyterrier_dr
import pytest
from filelock import FileLock

from pyterrier_tasb import TasBalanced, TextStore
from pyterrier_tasb.indexing import build_index

CORPUS = [{'docno': f'd{i}', 'text': 'word ' * (1 + i * 7 % 5) + str(i)} for i in range(23)]


def vectors_of(texts):
    return np.array([[len(text), int(text.split()[-1])] for text in texts], dtype=np.float32)


class Encode:
    """Notes what it is asked for, and fails at a given batch."""

    def __init__(self, fails_at=None):
        self.fails_at, self.texts, self.calls = fails_at, [], 0

    def __call__(self, texts):
        self.calls += 1
        if self.calls == self.fails_at:
            raise KeyboardInterrupt
        self.texts += texts
        return vectors_of(texts)


def built(path, corpus=CORPUS, encode=None, key='k', batch_size=4, **options):
    return build_index(iter(corpus), path, lambda row, texts: texts, encode or Encode(), key=key, weights='w',
                       batch_size=batch_size, **options)


def contents(index):
    docnos, vectors, meta = index.payload()
    return list(docnos), np.array(vectors).tolist(), meta


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_files_are_those_of_the_library(tmp_path):
    built(tmp_path / 'ours')
    theirs = pyterrier_dr.FlexIndex(str(tmp_path / 'theirs'), verbose=False)
    theirs.index({'docno': doc['docno'], 'doc_vec': vectors_of([doc['text']])[0]} for doc in CORPUS)
    *ours, meta = contents(built(tmp_path / 'again'))
    assert meta.pop('encoder_weights') == 'w' and (*ours, meta) == contents(theirs)
    for name in ('vecs.f4', 'docnos.npids'):
        assert files(tmp_path / 'ours')[name] == files(tmp_path / 'theirs')[name]
    assert set(files(tmp_path / 'ours')) == set(files(tmp_path / 'theirs'))


@pytest.fixture
def interrupted(tmp_path, capsys):
    """Three batches of four are done, then someone stops the cell."""
    with pytest.raises(KeyboardInterrupt):
        built(tmp_path / 'index', encode=Encode(fails_at=4))
    assert not (tmp_path / 'index').exists()
    assert '12 passages are encoded and kept' in capsys.readouterr().err
    return tmp_path


def test_goes_on_where_it_stopped(interrupted):
    encode = Encode()
    index = built(interrupted / 'index', encode=encode)
    assert encode.texts == [doc['text'] for doc in CORPUS[12:]]
    assert contents(index) == contents(built(interrupted / 'whole'))
    assert not (interrupted / 'index.part').exists()


@pytest.mark.parametrize('changed, encoded', [
    (dict(key='another encoder'), 23), (dict(batch_size=5), 23),
    (dict(corpus=[{**doc, 'text': 'other 1'} if i == 9 else doc for i, doc in enumerate(CORPUS)]), 15),
    (dict(corpus=[{**doc, 'docno': 'x'} if i == 1 else doc for i, doc in enumerate(CORPUS)]), 23),
    (dict(corpus=CORPUS[:8]), 0),
])
def test_vectors_of_anything_else_are_not_used(interrupted, changed, encoded):
    encode = Encode()
    index = built(interrupted / 'index', encode=encode, **changed)
    assert len(encode.texts) == encoded
    assert contents(index) == contents(built(interrupted / 'whole', **changed))


@pytest.mark.parametrize('damage', [lambda blob: blob[:40], lambda blob: blob[:35] + b'!' + blob[36:],
                                    lambda blob: b''])
def test_damaged_vectors_are_made_again(interrupted, damage):
    file = interrupted / 'index.part' / 'index' / 'vecs.f4'
    file.write_bytes(damage(file.read_bytes()))
    index = built(interrupted / 'index')
    assert contents(index) == contents(built(interrupted / 'whole'))


def test_two_processes_do_not_write_one_index(tmp_path):
    (tmp_path / 'index.part').mkdir()
    with FileLock(tmp_path / 'index.part' / '.lock'):
        with pytest.raises(ValueError, match='another process'):
            built(tmp_path / 'index')
    assert len(built(tmp_path / 'index')) == len(CORPUS)


@pytest.mark.parametrize('doc, message', [
    ({'docno': 'd3', 'text': 'word 1'}, "docno 'd3' comes twice"),
    ({'docno': 'd21', 'text': 'word 1'}, "docno 'd21' comes twice"),
    ({'docno': 'd99'}, "'d99'.*'text'"), ({'text': 'no docno 1'}, 'docno'), ({'docno': 'd99', 'text': None}, "'d99'"),
    ({'docno': 'd99', 'text': float('nan')}, "'d99'"), (('d99', 'word 1'), r"number 22 is \('d99', 'word 1'\)"),
    (None, 'number 22 is None'), ('d99', 'frame.to_dict'), ({'docno': None, 'text': 'x 1'}, 'number 22 is None: give'),
    ({'docno': float('nan'), 'text': 'x 1'}, 'number 22 is nan'), ({'docno': 2.0, 'text': 'x 1'}, 'number 22 is 2.0'),
    ({'docno': True, 'text': 'x 1'}, 'number 22 is True'), ({'docno': 'd\ud800', 'text': 'x 1'}, r"'d\\ud800'.*utf-8"),
    ({'docno': 'd99\0', 'text': 'x 1'}, r"'d99\\x00'.*zero byte"),
])
def test_a_bad_passage_is_named_and_what_came_before_is_kept(tmp_path, doc, message):
    with pytest.raises(ValueError, match=message):
        built(tmp_path / 'index', [*CORPUS[:22], doc])
    encode = Encode()
    assert len(built(tmp_path / 'index', [*CORPUS[:22], CORPUS[22]], encode)) == 23
    assert len(encode.texts) <= 7


@pytest.mark.parametrize('encode, message', [(lambda texts: vectors_of(texts) * np.nan, 'NaN'),
                                             (lambda texts: vectors_of(texts)[1:], '3 vectors for the 4')])
def test_vectors_that_cannot_be_searched_are_refused(tmp_path, encode, message):
    with pytest.raises(ValueError, match=message):
        built(tmp_path / 'index', encode=encode)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('ids', [['a'], ['a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i']])
def test_any_repetition_of_a_docno_is_found(tmp_path, ids):
    for again in ids:
        with pytest.raises(ValueError, match=f"'{again}' comes twice"):
            built(tmp_path / 'index', [{'docno': i, 'text': 'word 1'} for i in [*ids, again]])


def test_a_frame_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"document number 0 is 'docno'.*frame.to_dict\(\"records\"\)"):
        built(tmp_path / 'index', pd.DataFrame(CORPUS))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('ids', [
    ['d0'], ['d0001'], ['20240101120000'], ['é'], ['c130705d57319b04f39b8c77989e1a09'], [''], ['é', 'è', 'ê'],
    [f'a{i * i}' for i in range(256)] + ['x'], [f'a{i * i}' for i in range(300)] + ['жб'], ['ab', 'abc', 'abd'],
    ['d0a', 'd0b', 'd1a'], ['x0c130705d5', 'x04f39b8c77'], [3, 5]])
def test_docnos_come_back(tmp_path, ids):
    index = built(tmp_path / 'index', [{'docno': i, 'text': 'word 1'} for i in ids])
    ids = list(map(str, ids))
    docnos, vectors, _ = index.payload()
    assert list(docnos) == ids and len(vectors) == len(ids)
    assert [str(docnos.fwd[row]) for row in range(len(ids))] == ids
    assert [docnos.inv[i] for i in ids] == list(range(len(ids)))
    assert [path.name for path in tmp_path.iterdir()] == ['index']


def tree(folder):
    return {str(path.relative_to(folder)): path.is_file() and path.read_bytes() for path in folder.rglob('*')}


@pytest.mark.parametrize('there', [['thesis.tex'], ['index/vecs.f4'], ['progress.json', '.git/HEAD'], ['.git/HEAD'],
                                   ['progress.json', 'index/vecs.f4', 'mine']], ids=str)
def test_a_part_of_someone_else_is_not_touched(tmp_path, there):
    for name in there:
        (tmp_path / 'index.part' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'index.part' / name).write_text('[]')
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=r'index.part.* holds something else \(.*\): move it away'):
        built(tmp_path / 'index')
    assert tree(tmp_path) == before


def test_a_part_that_is_a_file_is_not_touched(tmp_path):
    (tmp_path / 'index.part').write_text('mine')
    with pytest.raises(ValueError, match='index.part.* holds something else'):
        built(tmp_path / 'index')
    assert (tmp_path / 'index.part').read_text() == 'mine'


@pytest.mark.parametrize('there', [{'precious': 'x'}, {'pt_meta.json': '{"type": "sparse_index"}'}, None], ids=str)
def test_what_is_no_dense_index_is_not_replaced(tmp_path, there):
    if there is None:
        (tmp_path / 'index').write_text('a file')
    else:
        (tmp_path / 'index').mkdir()
        for name, text in there.items():
            (tmp_path / 'index' / name).write_text(text)
    before = tree(tmp_path)
    with pytest.raises(ValueError, match='is no dense index .* and is not replaced'):
        built(tmp_path / 'index', overwrite=True)
    assert tree(tmp_path) == before


def test_an_index_or_an_empty_directory_is_replaced(tmp_path):
    (tmp_path / 'index').mkdir()
    built(tmp_path / 'index', CORPUS[:5], overwrite=True)
    with pytest.raises(ValueError, match='index exists'):
        built(tmp_path / 'index')
    assert len(built(tmp_path / 'index', overwrite=True)) == 23


@pytest.mark.parametrize('verbose', [False, True])
def test_searches_show_progress_where_indexing_did(tmp_path, verbose, capfd):
    index = built(tmp_path / 'index', verbose=verbose)
    capfd.readouterr()
    query = pd.DataFrame({'qid': ['q'], 'query_vec': [np.ones(2, dtype=np.float32)]})
    assert len(index.np_retriever(num_results=5)(query)) == 5
    assert ('scoring' in capfd.readouterr().err) == verbose


def test_what_a_link_points_to_is_replaced(tmp_path):
    built(tmp_path / 'disk' / 'real', CORPUS[:5])
    (tmp_path / 'index').symlink_to('disk/real')
    index = built(tmp_path / 'index', overwrite=True)
    assert (tmp_path / 'index').is_symlink() and index.index_path == tmp_path / 'index'
    assert contents(index) == contents(pyterrier_dr.FlexIndex(str(tmp_path / 'disk' / 'real')))
    assert len(index) == 23 and [path.name for path in (tmp_path / 'disk').iterdir()] == ['real']


# ---- with the encoder ----------------------------------------------------------------------------------------------

@pytest.fixture
def texts(toy_corpus, tmp_path):
    return TextStore.build(tmp_path / 'texts', ((doc['docno'], doc['text']) for doc in toy_corpus))


@pytest.fixture
def tasb(tiny_bert_dir):
    return TasBalanced(tiny_bert_dir, amp='off')


def test_vectors_are_those_of_the_document_encoder(tasb, toy_corpus, tmp_path):
    _, vectors, _ = tasb.index(toy_corpus, tmp_path / 'index', batch_size=50).payload()
    np.testing.assert_allclose(vectors, tasb.encode_docs([doc['text'] for doc in toy_corpus]), atol=1e-5)


def test_a_text_store_and_its_tokens_give_the_same_index(tasb, toy_corpus, texts, tmp_path):
    expected = contents(tasb.index(toy_corpus, tmp_path / 'dicts'))
    assert contents(tasb.index(texts, tmp_path / 'store')) == expected
    tokens = tasb.tokenise_corpus(texts, tmp_path / 'tokens', n_jobs=2)
    read = tasb.index(texts, tmp_path / 'tokens.flex', tokens=tokens, batch_size=50)
    np.testing.assert_allclose(contents(read)[1], expected[1], atol=1e-5)
    assert contents(read)[0] == expected[0]


@pytest.mark.parametrize('wrong, message', [
    (lambda tasb, texts: (texts, tasb.apply_attributes(doc_max_length=9).tokenise_corpus(
        texts, texts.path.parent / 't')), r'max_length \(9 there, 200 now\)'),
    (lambda tasb, texts: (iter(()), tasb.tokenise_corpus(texts, texts.path.parent / 't')), 'text store'),
])
def test_tokens_of_something_else_are_refused(tasb, texts, tmp_path, wrong, message):
    corpus, tokens = wrong(tasb, texts)
    with pytest.raises(ValueError, match=message):
        tasb.index(corpus, tmp_path / 'index', tokens=tokens)
    assert not (tmp_path / 'index').exists() and not os.path.exists(tmp_path / 'index.part')
