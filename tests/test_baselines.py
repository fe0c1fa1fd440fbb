"""BM25 by both engines: the same columns, harmless queries, an index that is whole or not there."""
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from types import SimpleNamespace

import pandas as pd
import pyterrier as pt
import pytest

from pyterrier_tasb import baselines
from pyterrier_tasb.baselines import available_engine, bm25

ENGINES = ['terrier', 'pisa']
OPERATORS = ['rose^2 gardening', 'title:rose', '"rose gardening"', '+rose -soil', '{rose} (soil',
             'rose AND | ~ * ? soil', 'who\'s "rose', '   ', '?', '']


@pytest.fixture(scope='module', params=ENGINES)
def engine(request):
    return request.param


@pytest.fixture(scope='module')
def there(tmp_path_factory):
    return tmp_path_factory.mktemp('bm25') / 'toy'


@pytest.fixture(scope='module')
def sparse(engine, _toy, there):
    return bm25(_toy[0], there, engine=engine, num_results=20)


def topics(*queries):
    return pd.DataFrame({'qid': [f'q{i}' for i in range(len(queries))], 'query': queries})


class Spoiled(pt.Transformer):
    """Takes the text from the third document."""

    def transform_iter(self, docs):
        for i, doc in enumerate(docs):
            yield doc if i != 2 else {'docno': doc['docno']}


def failing(docs, error):
    yield from docs
    raise error


def test_results_have_the_users_query_and_no_docid(sparse, toy_topics):
    results = sparse.retriever(toy_topics)
    assert set(results) == {'qid', 'query', 'docno', 'score', 'rank'}
    words = toy_topics.set_index('qid')['query']
    assert (results['query'] == results['qid'].map(words)).all()
    assert set(results['qid']) == set(toy_topics['qid'])


def test_a_cutoff_reaches_the_engine(sparse, toy_topics):
    cut = sparse.retriever % 3
    compiled = cut.compile()
    assert not any(isinstance(stage, pt.RankCutoff) for stage in compiled)
    pd.testing.assert_frame_equal(compiled(toy_topics).sort_values(['qid', 'rank'], ignore_index=True),
                                  cut(toy_topics).sort_values(['qid', 'rank'], ignore_index=True))


def test_the_document_about_the_query_comes_first(sparse, toy_topics, toy_qrels):
    assert pt.Evaluate(sparse.retriever(toy_topics), toy_qrels, metrics=['recip_rank'])['recip_rank'] > .95


@pytest.mark.parametrize('query', OPERATORS)
def test_operators_are_words(sparse, query):
    results = sparse.retriever(topics(query, 'rose gardening'))
    assert set(results.loc[results['qid'] == 'q0', 'query']) <= {query}
    plain = sparse.retriever(topics('', 'rose gardening'))
    pd.testing.assert_frame_equal(*(res[res['qid'] == 'q1'].reset_index(drop=True) for res in (results, plain)))


def test_punctuation_changes_no_score(sparse):
    with_operators, plain = (sparse.retriever(topics(query)) for query in ('+rose -(gardening)?', 'rose gardening'))
    assert with_operators[['docno', 'score']].equals(plain[['docno', 'score']])


@pytest.mark.parametrize('parameters, said', [({}, {'terrier': 'BM25 (Terrier, k1=1.2, b=0.75)',
                                                     'pisa': 'BM25 (PISA, k1=0.9, b=0.4)'}),
                                              ({'k1': .82, 'b': 0, 'name': 'docT5query'},
                                               {'terrier': 'docT5query (Terrier, k1=0.82, b=0)',
                                                'pisa': 'docT5query (PISA, k1=0.82, b=0)'})])
def test_label_names_engine_and_parameters(engine, sparse, there, parameters, said):
    assert bm25([], there, engine=engine, **parameters).label == said[engine]


def test_parameters_reach_the_engine(engine, sparse, there, toy_topics):
    one, other = (bm25([], there, engine=engine, k1=k1, b=b, num_results=5).retriever(toy_topics)
                  for k1, b in ((.9, .4), (3, 1)))
    assert len(one) == len(other) == 5 * len(toy_topics)
    assert one['score'].tolist() != other['score'].tolist()


def test_an_index_that_is_there_is_used_as_it_is(engine, sparse, there, toy_topics):
    again = bm25(failing([], AssertionError('the corpus was read')), there, engine=engine, num_results=20)
    pd.testing.assert_frame_equal(sparse.retriever(toy_topics), again.retriever(toy_topics))


@pytest.mark.parametrize('fails', [False, True])
def test_who_comes_second_waits_and_opens_what_is_there(toy_corpus, toy_topics, tmp_path, monkeypatch, fails):
    waiting, second = Event(), []
    monkeypatch.setattr('pyterrier_tasb._locks.say',
                        lambda said: waiting.set() if 'waiting for another' in said else None)
    with ThreadPoolExecutor(1) as pool:
        def slowly():
            yield from toy_corpus[:60]
            others = toy_corpus if fails else failing([], AssertionError('the corpus was read'))
            second.append(pool.submit(bm25, others, tmp_path / 'index', engine='pisa'))
            assert waiting.wait(60)
            if fails:
                raise RuntimeError('the disk is gone')
            yield from toy_corpus[60:]
        try:
            bm25(slowly(), tmp_path / 'index', engine='pisa')
        except RuntimeError:
            assert fails
        found = second[0].result().retriever(toy_topics)
    assert set(found['docno']) == {doc['docno'] for doc in toy_corpus}
    assert [path.name for path in tmp_path.iterdir()] == ['index.pisa']
    assert '.lock' not in [path.name for path in (tmp_path / 'index.pisa').iterdir()]


def test_pisa_is_not_started_on_a_disk_that_is_nearly_full(toy_corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(baselines.shutil, 'disk_usage', lambda path: SimpleNamespace(free=30 << 20))
    with pytest.raises(ValueError, match='has room for 30 MB.*make room, or index with engine="terrier"'):
        bm25(toy_corpus, tmp_path / 'index', engine='pisa')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('n_before, error', [(0, KeyError('text')), (60, RuntimeError('the disk is gone'))])
def test_no_index_is_left_when_the_corpus_raises(engine, toy_corpus, toy_topics, tmp_path, n_before, error):
    with pytest.raises(type(error)) as raised:
        bm25(failing(toy_corpus[:n_before], error), tmp_path / 'index', engine=engine)
    assert raised.value is error
    assert not list(tmp_path.iterdir())
    whole = bm25(toy_corpus, tmp_path / 'index', engine=engine)
    assert set(whole.retriever(toy_topics)['docno']) == {doc['docno'] for doc in toy_corpus}


def test_no_index_is_left_when_the_expansion_raises(engine, toy_corpus, tmp_path):
    def expand(docs):
        raise ValueError('no such word')
    with pytest.raises(ValueError, match='no such word'):
        bm25(toy_corpus, tmp_path / 'index', engine=engine, expansion=pt.apply.generic(expand))
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings('ignore::pytest.PytestUnhandledThreadExceptionWarning')
def test_no_index_is_left_when_the_engine_stops_early(engine, toy_corpus, tmp_path):
    with pytest.raises(RuntimeError, match='before it had read all documents'):
        bm25(toy_corpus, tmp_path / 'index', engine=engine, expansion=Spoiled())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('text', [None, 1.5, ['rose']])
def test_a_text_that_is_no_string_is_refused(toy_corpus, tmp_path, text):
    with pytest.raises(ValueError, match=r"'odd' \(number 120\) has no 'text' that is a string"):
        bm25([*toy_corpus, {'docno': 'odd', 'text': text}, *toy_corpus], tmp_path / 'index', engine='pisa')
    assert not list(tmp_path.iterdir())


def test_an_expansion_is_indexed(engine, toy_corpus, tmp_path):
    expansion = pt.apply.generic(lambda docs: docs.assign(text=docs['text'] + ' expanded' + docs['docno']))
    expanded = bm25(toy_corpus, tmp_path / 'index', engine=engine, expansion=expansion)
    assert expanded.retriever.search('expandedd7a')['docno'].tolist() == ['d7a']


@pytest.mark.parametrize('corpus', [[], iter([])])
def test_an_empty_corpus_is_refused(engine, tmp_path, corpus):
    with pytest.raises(ValueError, match='no documents'):
        bm25(corpus, tmp_path / 'index', engine=engine)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('of_engine, docno', [('terrier', 'ü' * 51), ('pisa', 'd 1'),
                                              ('pisa', '')])
def test_a_docno_that_the_engine_would_cut_is_refused(toy_corpus, tmp_path, of_engine, docno):
    with pytest.raises(ValueError, match=repr(docno)):
        bm25([*toy_corpus, {'docno': docno, 'text': 'rose'}], tmp_path / 'index', engine=of_engine)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('of_engine, docno', [('terrier', 'd ' + 'ü' * 49), ('pisa', 'd' * 300)])
def test_other_docnos_come_back_whole(toy_corpus, tmp_path, of_engine, docno):
    found = bm25([*toy_corpus, {'docno': docno, 'text': 'xylophone'}], tmp_path / 'index', engine=of_engine)
    assert found.retriever.search('xylophone')['docno'].tolist() == [docno]


def test_without_java_the_engine_is_pisa(toy_corpus, tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.delenv('JAVA_HOME', raising=False)
    assert available_engine() == 'pisa'
    assert 'PISA' in bm25(toy_corpus, tmp_path / 'index').label


def test_with_java_the_engine_is_terrier(monkeypatch):
    monkeypatch.setenv('JAVA_HOME', '/java')
    assert available_engine() == 'terrier'


def test_an_unknown_engine_is_refused(toy_corpus, tmp_path):
    with pytest.raises(ValueError, match="engine='lucene': must be terrier, pisa or auto"):
        bm25(toy_corpus, tmp_path / 'index', engine='lucene')


OTHER_SCRIPTS = [{'docno': f'd{i}', 'text': text} for i, text in enumerate(
    ['Москва столица России', 'Γεια σου κόσμε', '日本 東京', 'the soil book'])]


def test_terrier_reads_other_scripts_where_it_is_told(tmp_path):
    with pytest.warns(UserWarning, match='3 of 4 documents have no letter or digit that BM25 indexes'):
        english = bm25(OTHER_SCRIPTS, tmp_path / 'english', engine='terrier').retriever
    every = bm25(OTHER_SCRIPTS, tmp_path / 'english', engine='terrier', tokeniser='utf').retriever
    found = {query: [retriever.search(query)['docno'].tolist() for retriever in (english, every)]
             for query in ('Москва', 'Γεια', 'soil')}
    assert found == {'Москва': [[], ['d0']], 'Γεια': [[], ['d1']], 'soil': [['d3'], ['d3']]}


@pytest.mark.parametrize('engine', ['terrier', 'pisa'])
def test_a_corpus_without_a_term_is_refused_before_the_engine_ends_the_process(tmp_path, engine):
    with pytest.raises(ValueError, match=r'none of 3 documents has a letter or a digit .* is .d0.*tokeniser="utf"'):
        bm25(OTHER_SCRIPTS[:3], tmp_path / 'index', engine=engine)
    assert not list(tmp_path.iterdir())


def test_a_tokeniser_that_there_is_not_is_refused(tmp_path):
    for engine, tokeniser in ('pisa', 'utf'), ('terrier', 'french'):
        with pytest.raises(ValueError, match=f"tokeniser='{tokeniser}': must be english, or utf with engine=.terrier."):
            bm25(OTHER_SCRIPTS, tmp_path / 'index', engine=engine, tokeniser=tokeniser)


@pytest.mark.parametrize('engine', ['terrier', 'pisa'])
def test_odd_queries_and_texts_are_read_or_named(tmp_path, engine):
    docs = [{'docno': 'a', 'text': 'soil\ud800 seed'}, {'docno': 'b', 'text': 'rose'}]
    retriever = bm25(docs, tmp_path / 'index', engine=engine).retriever
    assert retriever.search('soil\0seed')['docno'].tolist() == ['a']
    half = pd.DataFrame({'qid': ['1'], 'query': pd.Series(['\ud800 rose'], dtype=object)})
    assert retriever(half)['docno'].tolist() == ['b']
    with pytest.raises(ValueError, match="1 of 1 values of column 'query' are no text .qids 1., first None"):
        retriever(pd.DataFrame({'qid': ['1'], 'query': [None]}))
