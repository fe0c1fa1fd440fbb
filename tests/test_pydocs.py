"""Documentation as a collection: the same each time, never imported, splits that never move."""
import platform
import sys
import unittest

import pandas as pd
import pyterrier as pt
import pytest

from pyterrier_tasb import pydocs

SPLITS = ['train', 'dev', 'test']
PASSAGE = ('Water it in the morning, prune it when the frost is gone, and feed it with compost twice a year so that it '
           'flowers until autumn comes.')
SOURCE = f'''
raise AssertionError('this module was imported')


def rose():
    """Grow a rose in the garden.

    {PASSAGE}
    """


class Soil:
    """Mix soil for seed.

    {PASSAGE.replace("it", "them")}
    """

    async def sieve(self):
        """Sieve the soil through two meshes.

        :param self: `first` the coarse mesh. {PASSAGE}

        >>> sieve()
        """

    def _hidden(self):
        """Hide what is under the soil.

        {PASSAGE}
        """


def one_line():
    """There is no passage here at all."""


def short():
    """There is a short passage here.

    Too short.
    """


def repeats():
    """Water it in the morning

    {PASSAGE}
    """


if True:
    def add_newdoc(*args):
        pass
    add_newdoc('garden', """
    weed(bed)

    Weed a bed of flowers.

    {PASSAGE} Then rest.
    """)
'''


@pytest.fixture
def garden(tmp_path, monkeypatch):
    (tmp_path / 'garden_of_tests.py').write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    return 'garden_of_tests'


@pytest.fixture(scope='module')
def small():
    return pydocs.load(['logging', 'email'])


def queries(docs):
    return {query for split in SPLITS for query in docs.get_topics(split)['query']}


def test_a_single_file_is_read_and_never_imported(garden):
    docs = pydocs.load([garden])
    assert garden not in sys.modules and docs.n_files == 1
    assert queries(docs) == {'Grow a rose in the garden.', 'Mix soil for seed.',
                             'Sieve the soil through two meshes.', 'Weed a bed of flowers.'}
    texts = {doc['text'] for doc in docs.get_corpus_iter()}
    assert PASSAGE in texts and f':param self: first the coarse mesh. {PASSAGE}' in texts


def test_packages_are_not_imported_to_be_read():
    name = next(name for name in ('curses', 'wsgiref', 'tkinter') if name not in sys.modules)
    before = set(sys.modules)
    assert len(pydocs.load([name]))
    assert set(sys.modules) == before


def test_reading_twice_gives_the_same(small):
    again = pydocs.load(['logging', 'email'])
    assert again.fingerprint == small.fingerprint != pydocs.load(['logging']).fingerprint
    assert list(again.get_corpus_iter()) == list(small.get_corpus_iter())
    for split in SPLITS:
        pd.testing.assert_frame_equal(again.get_topics(split), small.get_topics(split))
        pd.testing.assert_frame_equal(again.get_qrels(split), small.get_qrels(split))


def test_splits_are_disjoint_and_judged(small):
    topics = [small.get_topics(split) for split in SPLITS]
    ids = [set(part['qid']) for part in topics]
    assert sum(map(len, ids)) == len(set.union(*ids)) and len(ids[0]) > len(ids[2])
    assert sum(len(part) for part in topics) == len(queries(small))
    docnos = {doc['docno'] for doc in small.get_corpus_iter()}
    assert len(docnos) == len(small)
    for split, part in zip(SPLITS, ids, strict=True):
        qrels = small.get_qrels(split)
        assert set(qrels['qid']) == part and set(qrels['docno']) <= docnos and set(qrels['label']) == {1}


def test_a_query_stays_in_its_split_when_packages_are_added(small):
    more = pydocs.load(['json', 'email', 'logging', 'unittest'])
    for split in SPLITS:
        assert set(small.get_topics(split)['query']) <= set(more.get_topics(split)['query'])


def test_a_passage_never_holds_its_query(small):
    texts = {doc['docno']: doc['text'] for doc in small.get_corpus_iter()}
    for split in SPLITS:
        judged = small.get_topics(split).merge(small.get_qrels(split), on='qid')
        for query, docno in judged[['query', 'docno']].itertuples(index=False):
            assert query.rstrip('.').lower() not in texts[docno].lower()


@pytest.mark.parametrize('max_words', [20, 50, 120])
def test_passages_end_at_a_sentence_or_at_max_words(max_words):
    texts = [doc['text'] for doc in pydocs.load(['logging'], max_words=max_words).get_corpus_iter()]
    lengths = [len(text.split()) for text in texts]
    assert max(lengths) <= max_words
    assert any(length > max_words * 4 // 5 for length in lengths)


def test_equal_queries_share_their_passages(tmp_path, monkeypatch):
    (tmp_path / 'twice_in_tests.py').write_text(''.join(
        f'def f{i}():\n    """Grow a rose in the garden.\n\n    {word} {PASSAGE}\n    """\n'
        for i, word in enumerate(['First', 'Second', 'First'])))
    monkeypatch.syspath_prepend(tmp_path)
    docs = pydocs.load(['twice_in_tests'])
    assert len(docs) == 2 and len(queries(docs)) == 1
    assert sum(len(docs.get_qrels(split)) for split in SPLITS) == 2


def test_files_that_python_cannot_read_are_left_out(garden, tmp_path):
    package = tmp_path / 'broken_in_tests'
    package.mkdir()
    (package / '__init__.py').write_text(SOURCE)
    (package / 'old.py').write_text('print "hello"\n')
    (package / 'binary.py').write_bytes(b'\x00\xff')
    (package / 'tests').mkdir()
    (package / 'tests' / 'test_it.py').write_text(SOURCE.replace('Grow', 'Test'))
    docs = pydocs.load(['broken_in_tests'])
    assert docs.n_files == 3 and queries(docs) == queries(pydocs.load([garden]))


def test_report_says_what_was_read(small):
    report = small.report()
    python = platform.python_version()
    assert f' of logging {python}, email {python}\n' in report
    assert small.fingerprint in report and f'{len(small):,} passages' in report and 'cut after 50' in report
    for split in SPLITS:
        assert f'{len(small.get_topics(split)):,} {split}' in report


def test_sources_have_the_versions_of_their_distributions():
    from importlib.metadata import version
    assert pydocs.load(['ir_measures']).sources == {'ir_measures': version('ir_measures')}


@pytest.mark.parametrize('name', ['no_such_package', 'email.mime', 'no.such'])
def test_an_unknown_package_is_refused(name):
    with pytest.raises(ValueError, match=f'package {name!r} is not installed'):
        pydocs.load(['json', name])


def test_a_string_names_one_package_and_no_name_is_refused():
    assert pydocs.load('logging').fingerprint == pydocs.load(['logging']).fingerprint
    with pytest.raises(ValueError, match=r"packages=\[\]: name at least one, 'stdlib' for example"):
        pydocs.load([])


def test_passages_too_short_to_be_any_are_refused():
    with pytest.raises(ValueError, match='max_words=19: must be at least 20'):
        pydocs.load(['logging'], max_words=19)


def test_a_package_without_docstrings_is_refused(tmp_path, monkeypatch):
    (tmp_path / 'bare_in_tests.py').write_text('x = 1\n')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match='no docstring of bare_in_tests'):
        pydocs.load(['bare_in_tests'])


def test_an_unknown_split_is_refused(small):
    for get in (small.get_topics, small.get_qrels):
        with pytest.raises(ValueError, match="variant='validation'"):
            get('validation')


def test_texts_are_loaded_by_docno(small):
    docs = list(small.get_corpus_iter())[:3]
    frame = pd.DataFrame({'qid': 'q', 'docno': [doc['docno'] for doc in docs[::-1]]}, index=[4, 5, 6])
    out = small.text_loader()(frame)
    assert out['text'].tolist() == [doc['text'] for doc in docs[::-1]] and out.index.tolist() == [4, 5, 6]
    with pytest.raises(ValueError, match=r"1 docnos are not in pydocs \(first: \['nothing'\]\)"):
        small.text_loader()(pd.DataFrame({'qid': ['q'], 'docno': ['nothing']}))
    with pytest.raises(ValueError, match='text only'):
        small.text_loader('title')


def test_text_loader_is_a_transformer_in_good_standing(small):
    outcome = unittest.TestResult()
    case = pt.testing.transformer_test_class(small.text_loader)
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(outcome)
    assert outcome.testsRun and outcome.wasSuccessful(), outcome.failures + outcome.errors
    assert small.text_loader() == small.text_loader() != pydocs.load(['logging']).text_loader()
