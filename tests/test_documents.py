"""Every form of a corpus gives the same documents, to the dense index and to BM25."""
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pyterrier_tasb import TextStore
from pyterrier_tasb.baselines import bm25
from pyterrier_tasb.documents import checked, documents
from pyterrier_tasb.indexing import build_index

SOME = [{'docno': f'd{i}', 'text': text} for i, text in enumerate(['rose', 'star rose', 'wind wind', 'oven'])]


class Data:
    """A data set of someone else's."""

    def get_corpus_iter(self):
        yield from SOME


FORMS = {'dictionaries': lambda folder: SOME, 'a generator': lambda folder: iter(SOME),
         'a data set': lambda folder: Data(),
         'a text store': lambda folder: TextStore.build(folder / 'texts', map(dict.values, SOME))}


@pytest.fixture(params=FORMS)
def corpus(request, tmp_path):
    return FORMS[request.param](tmp_path)


def built(corpus, path):
    """A dense index in which a text's vector is its length."""
    return build_index(corpus, path, lambda row, texts: texts, key='length', weights='w',
                       encode=lambda texts: np.array([[len(text)] for text in texts], dtype=np.float32))


def by_bm25(engine):
    return lambda corpus, path: bm25(corpus, path, engine=engine).retriever.search('moon')['docno'].tolist()


INDEXES = {'dense': lambda corpus, path: list(built(corpus, path).payload()[0]), 'terrier': by_bm25('terrier'),
           'pisa': by_bm25('pisa')}


def test_every_form_gives_the_same_documents(corpus):
    assert list(documents(corpus)) == SOME


def test_a_dense_index_takes_every_form(corpus, tmp_path):
    docnos, vectors, _ = built(corpus, tmp_path / 'index').payload()
    assert list(docnos) == ['d0', 'd1', 'd2', 'd3'] and vectors[:, 0].tolist() == [4, 9, 9, 4]


@pytest.mark.parametrize('engine', ['terrier', 'pisa'])
def test_bm25_takes_every_form(corpus, tmp_path, engine):
    found = bm25(corpus, tmp_path / 'index', engine=engine).retriever.search('rose')
    assert found['docno'].tolist() == ['d0', 'd1']


def test_the_texts_of_a_store_go_where_they_are_looked_for(tmp_path):
    texts = TextStore.build(tmp_path / 'texts', [('d1', 'rose'), ('d2', 'star')])
    assert list(documents(texts, 'body')) == [{'docno': 'd1', 'body': 'rose'}, {'docno': 'd2', 'body': 'star'}]


@pytest.mark.parametrize('docno', [7, np.int64(7)])
@pytest.mark.parametrize('index', INDEXES)
def test_whole_numbers_become_docnos(docno, index, tmp_path):
    assert INDEXES[index]([*SOME, {'docno': docno, 'text': 'moon'}], tmp_path / 'index')[-1] == '7'


BAD = [
    ({'docno': 'd9'}, r"document 'd9' \(number 4\) has no 'text' that is a string: it has \['docno'\]"),
    ({'docno': 'd9', 'text': 2.5}, r"document 'd9' \(number 4\) has no 'text' that is a string: it is of type float"),
    ({'text': 'moon'}, r"document number 4 has no docno: it has \['text'\]"),
    ({'docno': 2.5, 'text': 'moon'}, 'the docno of document number 4 is 2.5: give a string or a whole number'),
    ({'docno': '\ud800', 'text': 'moon'}, 'half a surrogate pair'),
    ({'docno': 'd1', 'text': 'moon'}, "docno 'd1' comes twice"),
    ('d9', "document number 4 is 'd9', expected a dictionary"),
]


@pytest.mark.parametrize('doc, message', BAD)
@pytest.mark.parametrize('index', INDEXES)
def test_a_document_is_refused_by_every_index_with_what_it_lacks(doc, message, index, tmp_path):
    with pytest.raises(ValueError, match=message):
        INDEXES[index]([*SOME, doc], tmp_path / 'index')
    assert not [path for path in tmp_path.iterdir() if path.suffix != '.part']   # where what came before is kept


@pytest.mark.parametrize('index', INDEXES)
def test_a_frame_is_refused_with_what_to_do(index, tmp_path):
    with pytest.raises(ValueError, match=r'number 0 is .docno.*frame.to_dict\("records"\)'):
        INDEXES[index](pd.DataFrame(SOME), tmp_path / 'index')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('n', [1, 2, 3, 4, 5, 9])
def test_documents_stream_and_no_repetition_is_missed(n):
    docs, seen = [*SOME, SOME[1]], []

    def corpus():
        for doc in docs:
            seen.append(doc['docno'])
            yield doc
    with pytest.raises(ValueError, match="docno 'd1' comes twice"):
        for number, doc in enumerate(checked(corpus(), 'text', n), 1):
            assert len(seen) == number and doc == docs[number - 1]


@pytest.mark.parametrize('wrong', [None, 7, 'corpus.jsonl', Path('corpus.jsonl'), built])
@pytest.mark.parametrize('index', [built, bm25])
def test_what_has_no_documents_is_refused(index, wrong, tmp_path):
    with pytest.raises(ValueError, match=fr'(?s)corpus=.* \({type(wrong).__name__}\) has no documents: give'):
        index(wrong, tmp_path / 'index')
    assert not list(tmp_path.iterdir())
