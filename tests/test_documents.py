"""Every form of a corpus gives the same documents, to the dense index and to BM25."""
from pathlib import Path

import numpy as np
import pytest

from pyterrier_tasb import TextStore
from pyterrier_tasb.baselines import bm25
from pyterrier_tasb.documents import documents
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
    return build_index(corpus, path, lambda row, texts: texts, key='length',
                       encode=lambda texts: np.array([[len(text)] for text in texts], dtype=np.float32))


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


@pytest.mark.parametrize('wrong', [None, 7, 'corpus.jsonl', Path('corpus.jsonl'), built])
@pytest.mark.parametrize('index', [built, bm25])
def test_what_has_no_documents_is_refused(index, wrong, tmp_path):
    with pytest.raises(ValueError, match=fr'(?s)corpus=.* \({type(wrong).__name__}\) has no documents: give'):
        index(wrong, tmp_path / 'index')
    assert not list(tmp_path.iterdir())
