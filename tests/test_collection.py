"""A user's own collection: what the files may look like, splits that never move, texts by docno."""
import gc
import gzip
import json
import pickle
import shutil
import tempfile
import unittest
from pathlib import Path

import ir_datasets
import pandas as pd
import pyterrier as pt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyterrier_tasb import TasBalanced, TextStore
from pyterrier_tasb.collection import SPLITS, Collection, IrdsCollection, TextLoader

CORPUS = [{'docno': f'd{i}', 'text': f'text ünd {i}'} for i in range(4)]
LINES = ''.join(json.dumps(doc, ensure_ascii=False) + '\n' for doc in CORPUS)


def write(path, corpus=LINES, **files):
    """A collection in `path`; `queries_train='…'` writes queries.train.tsv."""
    path.mkdir(exist_ok=True)
    (path / 'corpus.jsonl').write_bytes(corpus if isinstance(corpus, bytes) else corpus.encode())
    for name, content in {'queries_test': 'q1\tred rose\n', 'qrels_test': 'q1 0 d1 2\n', **files}.items():
        (path / f'{name.replace("_", ".")}.tsv').write_bytes(
            content if isinstance(content, bytes) else content.encode())
    return Collection(path)


def rows(frame):
    return frame.to_dict('records')


def queries(n, start=0):
    return ''.join(f'q{i}\twords {i}\n' for i in range(start, start + n))


def qids(collection, split):
    return set(collection.get_topics(split)['qid'])


def test_plain_and_gzipped_corpora_are_the_same(tmp_path):
    plain = write(tmp_path / 'plain')
    (tmp_path / 'gz').mkdir()
    (tmp_path / 'gz' / 'queries.test.tsv').write_text('q1\trose\n')
    with gzip.open(tmp_path / 'gz' / 'corpus.jsonl.gz', 'wt', encoding='utf-8') as out:
        out.write(LINES)
    assert list(plain.get_corpus_iter()) == list(Collection(tmp_path / 'gz').get_corpus_iter()) == CORPUS


WAYS = {
    'as they should be': lambda text: text.encode(),
    'with CRLF': lambda text: text.replace('\n', '\r\n').encode(),
    'with a byte order mark': lambda text: b'\xef\xbb\xbf' + text.encode(),
    'with both': lambda text: b'\xef\xbb\xbf' + text.replace('\n', '\r\n').encode(),
    'without a last newline': lambda text: text.rstrip('\n').encode(),
    'with blank lines': lambda text: text.replace('\n', '\n\n').encode() + b' \n',
}


@pytest.mark.parametrize('way', WAYS)
def test_files_may_be_written(tmp_path, way):
    collection = write(tmp_path, corpus=WAYS[way](LINES), queries_test=WAYS[way]('q1\tred rose\nq2\tblue\tsky\n'),
                       qrels_test=WAYS[way]('q1 0 d1 2\nq2\tQ0\td2\t-1\n'))
    assert list(collection.get_corpus_iter()) == CORPUS
    assert rows(collection.get_topics()) == [{'qid': 'q1', 'query': 'red rose'}, {'qid': 'q2', 'query': 'blue\tsky'}]
    assert rows(collection.get_qrels()) == [{'qid': 'q1', 'docno': 'd1', 'label': 2},
                                            {'qid': 'q2', 'docno': 'd2', 'label': -1}]


def test_ids_that_look_like_numbers_stay_strings(tmp_path):
    collection = write(tmp_path, corpus='{"docno": 7, "text": "seven"}\n', queries_test='007\tseven\n',
                       qrels_test='007 0 7 1\n')
    assert list(collection.get_corpus_iter()) == [{'docno': '7', 'text': 'seven'}]
    assert rows(collection.get_topics()) == [{'qid': '007', 'query': 'seven'}]
    assert rows(collection.get_qrels()) == [{'qid': '007', 'docno': '7', 'label': 1}]


MALFORMED = {
    'corpus.jsonl': [b'{"docno": "d1"', b'["d1", "text"]', b'"d1"', b'{"docno": "d1"}', b'{"text": "rose"}', b'3',
                     b'{"docno": "d1", "text": null}', b'{"docno": null, "text": "rose"}', b'\xff\xfe',
                     b'{"docno": "d1", "text": ["rose"]}'],
    'queries.test.tsv': [b'q2', b'q2\t', b'\trose', b'q2 red rose', b'q2\t\xe9t\xe9'],
    'qrels.test.tsv': [b'q2 0 d1', b'q2 d1', b'q2 0 d1 good', b'q2 0 d1 1.5', b'q2 0 d1 1 extra', b'q2\t0\t\xe9\t1'],
}


@pytest.mark.parametrize('name, line', [(name, line) for name, lines in MALFORMED.items() for line in lines])
def test_a_malformed_line_is_named_with_its_file(tmp_path, name, line):
    good = {'corpus.jsonl': LINES.splitlines()[0].encode(), 'queries.test.tsv': b'q1\trose',
            'qrels.test.tsv': b'q1 0 d1 2'}[name]
    collection = write(tmp_path)
    (tmp_path / name).write_bytes(b'\n'.join([good, line.rstrip(b'\n'), good, b'']))
    with pytest.raises(ValueError, match=f'{name}, line 2: ') as error:
        list(collection.get_corpus_iter()), collection.get_topics(), collection.get_qrels()
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize('again, line, qid', [('q1\tblue\n', 3, 'q1'), ('q1\tred rose\nq2\tblue\n', 4, 'q2')])
def test_a_qid_that_comes_again_with_another_text_is_named(tmp_path, again, line, qid):
    collection = write(tmp_path, queries_test='q1\tred rose\nq2\tsky\n' + again)
    with pytest.raises(ValueError, match=f"queries.test.tsv, line {line}: qid '{qid}' came before"):
        collection.get_topics()


def test_a_query_that_is_repeated_is_one(tmp_path):
    collection = write(tmp_path, queries_test='q1\tred rose\nq2\tsky\nq1\tred rose\n')
    assert collection.get_topics()['qid'].tolist() == ['q1', 'q2']


@pytest.mark.parametrize('files, message', [({}, 'no corpus.jsonl or corpus.jsonl.gz'),
                                            ({'corpus.jsonl': LINES}, 'neither queries.train.tsv nor queries.test')])
def test_a_missing_file_is_named(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        Collection(tmp_path)


def test_splits_are_their_files(tmp_path):
    collection = write(tmp_path, queries_train=queries(30), queries_dev=queries(5, 30), queries_test=queries(5, 35),
                       qrels_dev='q30 0 d0 1\n')
    assert [len(collection.get_topics(split)) for split in SPLITS] == [30, 5, 5]
    assert rows(collection.get_qrels('dev')) == [{'qid': 'q30', 'docno': 'd0', 'label': 1}]


@pytest.mark.parametrize('split', SPLITS)
def test_an_absent_split_is_empty_with_its_columns(tmp_path, split):
    collection = write(tmp_path, **({'queries_train': ''} if split == 'test' else {}))
    if split == 'test':
        (tmp_path / 'queries.test.tsv').unlink()
        (tmp_path / 'qrels.test.tsv').unlink()
    topics, qrels = collection.get_topics(split), collection.get_qrels(split)
    assert topics.columns.tolist() == ['qid', 'query'] and not len(topics)
    assert qrels.columns.tolist() == ['qid', 'docno', 'label'] and not len(qrels)
    assert qrels['label'].dtype == int


@settings(max_examples=40)
@given(ids=st.sets(st.text('abcXYZ0189-_ü', min_size=1, max_size=8), min_size=2, max_size=60), data=st.data())
def test_without_a_dev_split_the_held_out_queries_never_move(tmp_path_factory, ids, data):
    ids = sorted(ids)
    some = data.draw(st.lists(st.sampled_from(ids), unique=True, min_size=1))
    def splits(chosen):
        path = tmp_path_factory.mktemp('collection')
        collection = write(path, queries_train=''.join(f'{qid}\twords\n' for qid in chosen),
                           qrels_train=''.join(f'{qid} 0 d1 1\n' for qid in chosen))
        for split in ('train', 'dev'):
            assert set(collection.get_qrels(split)['qid']) == qids(collection, split)
        return qids(collection, 'train'), qids(collection, 'dev')
    (train, dev), (few_train, few_dev) = splits(ids), splits(some)
    assert train | dev == set(ids) and not train & dev
    assert few_train == train & set(some) and few_dev == dev & set(some)


def test_about_a_tenth_is_held_out(tmp_path):
    collection = write(tmp_path, queries_train=queries(2000))
    assert 150 < len(collection.get_topics('dev')) < 250


def test_an_unknown_split_is_refused(tmp_path):
    for collection in (write(tmp_path), IrdsCollection('vaswani')):
        for get in (collection.get_topics, collection.get_qrels):
            with pytest.raises(ValueError, match="variant='validation': must be one of train, dev, test"):
                get('validation')


# ---- texts ---------------------------------------------------------------------------------------------------------

def results(*docnos):
    return pd.DataFrame({'qid': 'q1', 'docno': docnos, 'text': 'another'}, index=range(5, 5 + len(docnos)))


@pytest.mark.parametrize('docnos', [(), ('d2',), ('d3', 'd0', 'd3')])
@pytest.mark.parametrize('fields', ['text', ['text'], '*'])
def test_texts_are_loaded_by_docno(tmp_path, docnos, fields):
    out = write(tmp_path).text_loader(fields)(results(*docnos))
    assert out['text'].tolist() == [f'text ünd {docno[1]}' for docno in docnos]
    assert out.columns.tolist() == ['qid', 'docno', 'text'] and out.index.tolist() == results(*docnos).index.tolist()


def test_unknown_docnos_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"2 docnos are not in the collection \(first: \['d9', 'x'\]\)"):
        write(tmp_path).text_loader()(results('d1', 'd9', 'x'))


def test_a_field_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Collection has the field text only"):
        write(tmp_path).text_loader(['title', 'text'])


def test_a_text_store_is_built_once(tmp_path, monkeypatch):
    collection = write(tmp_path / 'collection')
    assert collection.text_store(tmp_path / 'texts').take([1]) == ['text ünd 1']
    monkeypatch.setattr(Collection, 'get_corpus_iter', lambda self: 1 / 0)
    assert collection.text_store(tmp_path / 'texts').take([1]) == ['text ünd 1']
    assert collection.text_loader()(results('d2'))['text'].tolist() == ['text ünd 2']


def test_a_text_store_of_another_collection_is_refused(tmp_path):
    collection = write(tmp_path / 'collection')
    collection.text_store(tmp_path / 'texts')
    with open(tmp_path / 'collection' / 'corpus.jsonl', 'a') as corpus:
        corpus.write('{"docno": "more", "text": "of it"}\n')
    with pytest.raises(ValueError, match='texts holds texts of another run: collection'):
        Collection(tmp_path / 'collection').text_store(tmp_path / 'texts')


def test_a_text_store_that_a_user_built_is_taken_as_it_is(tmp_path):
    TextStore.build(tmp_path / 'texts', [('other', 'text')])
    assert write(tmp_path / 'collection').text_store(tmp_path / 'texts').take([0]) == ['text']
    assert not (tmp_path / 'texts' / 'collection.json').exists()


@pytest.mark.parametrize('spoil', [
    lambda data: data[:len(data) // 2], lambda data: b'hello',
    lambda data: data[:30] + bytes([data[30] ^ 255]) + data[31:]], ids=['half', 'no gzip', 'a flipped byte'])
def test_a_damaged_corpus_is_named(tmp_path, spoil):
    collection = write(tmp_path / 'collection')
    plain = tmp_path / 'collection' / 'corpus.jsonl'
    packed = gzip.compress(plain.read_bytes() * 50)
    plain.unlink()
    (tmp_path / 'collection' / 'corpus.jsonl.gz').write_bytes(spoil(packed))
    with pytest.raises(ValueError, match=r'corpus.jsonl.gz, after line \d+: the file is cut off or damaged'):
        list(Collection(tmp_path / 'collection').get_corpus_iter())
    assert collection.path.is_absolute()


@pytest.mark.parametrize('content', ['', '\n'])
def test_an_empty_corpus_is_named_and_leaves_nothing(tmp_path, content):
    with pytest.raises(ValueError, match='corpus.jsonl has no documents'):
        write(tmp_path / 'collection', corpus=content).text_store(tmp_path / 'texts')
    assert [path.name for path in tmp_path.iterdir()] == ['collection']


def test_a_fingerprint_is_of_the_corpus_wherever_it_lies(tmp_path):
    one, moved, other = write(tmp_path / 'one'), write(tmp_path / 'moved'), write(tmp_path / 'other', LINES * 2)
    assert one.fingerprint == moved.fingerprint != other.fingerprint


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where temporary directories go; () → what of text stores is left there."""
    folder = tmp_path / 'temporary'
    folder.mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(folder))

    def left():
        gc.collect()
        return list(folder.glob('tasb-texts-*'))
    return left


def test_a_temporary_store_lives_as_long_as_a_loader(tmp_path, temporary):
    loader = write(tmp_path / 'collection').text_loader()
    assert temporary() == [loader.texts.path.parent]
    assert loader(results('d2'))['text'].tolist() == ['text ünd 2']
    store = loader.texts
    del loader
    assert temporary() == [store.path.parent]
    del store
    assert temporary() == []


def test_nothing_is_left_of_an_index_from_a_temporary_store(tmp_path, temporary, tiny_bert_dir):
    loader, tasb = write(tmp_path / 'collection').text_loader(), TasBalanced(tiny_bert_dir)
    assert len(tasb.index(loader.texts, tmp_path / 'index')) == len(CORPUS)
    tokens = tasb.tokenise_corpus(loader.texts)
    del loader
    assert tokens.path.exists() and len(pickle.loads(pickle.dumps(tokens))) == len(CORPUS)
    del tokens
    assert temporary() == []


def test_a_store_that_is_gone_does_not_come_back(tmp_path, tiny_bert_dir):
    store = write(tmp_path / 'collection').text_store(tmp_path / 'texts')
    shutil.rmtree(tmp_path / 'texts')
    with pytest.raises(ValueError, match='texts.* is gone from the disk'):
        TasBalanced(tiny_bert_dir).tokenise_corpus(store)
    assert not (tmp_path / 'texts').exists()


def test_a_pickled_collection_makes_its_temporary_store_anew(tmp_path, temporary):
    collection = write(tmp_path / 'collection')
    collection.text_loader()
    blob = pickle.dumps(collection)
    del collection
    assert temporary() == []
    assert pickle.loads(blob).text_loader()(results('d2'))['text'].tolist() == ['text ünd 2']


def test_a_docno_that_comes_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'d\d' comes twice"):
        write(tmp_path / 'collection', corpus=LINES * 2).text_store(tmp_path / 'texts')
    assert not (tmp_path / 'texts').exists()


def test_text_loader_is_a_transformer_in_good_standing(tmp_path):
    store, other = (TextStore.build(tmp_path / name, [('d1', name)]) for name in 'ab')
    case = pt.testing.transformer_test_class(lambda: TextLoader(store))
    outcome = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(outcome)
    assert outcome.testsRun and outcome.wasSuccessful(), outcome.failures + outcome.errors
    assert TextLoader(store) == TextLoader(TextStore(store.path)) != TextLoader(other)
    assert len({TextLoader(store), TextLoader(TextStore(store.path)), TextLoader(other)}) == 2


# ---- ir_datasets ---------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def ids(tmp_path_factory):
    """Three data sets that ir_datasets knows: 40 queries, 10 others, 5 others."""
    path, made = tmp_path_factory.mktemp('irds'), []
    (path / 'docs.tsv').write_text(''.join(f'd{i}\tpassage {i}\n' for i in range(10)))
    for name, (start, n) in {'train': (0, 40), 'dev': (40, 10), 'test': (50, 5)}.items():
        (path / f'{name}.tsv').write_text(queries(n, start))
        (path / f'{name}.qrels').write_text(''.join(f'q{i} 0 d{i % 10} {i % 3}\n' for i in range(start, start + n)))
        made.append(f'local-{Path(path).name}/{name}')
        ir_datasets.registry.register(made[-1], ir_datasets.create_dataset(
            docs_tsv=str(path / 'docs.tsv'), queries_tsv=str(path / f'{name}.tsv'),
            qrels_trec=str(path / f'{name}.qrels')))
    return made


def test_documents_of_ir_datasets(ids):
    collection = IrdsCollection(*ids)
    assert collection.fingerprint == IrdsCollection(ids[0], ids[2]).fingerprint != IrdsCollection(ids[1]).fingerprint
    assert list(collection.get_corpus_iter()) == [{'docno': f'd{i}', 'text': f'passage {i}'} for i in range(10)]
    assert collection.text_loader()(results('d7', 'd1'))['text'].tolist() == ['passage 7', 'passage 1']


@pytest.mark.parametrize('n_ids', [1, 2, 3])
def test_splits_of_ir_datasets_are_disjoint_and_have_their_qrels(ids, n_ids):
    collection = IrdsCollection(*{1: ids[:1], 2: [ids[0], ids[2]], 3: ids}[n_ids])
    parts = [qids(collection, split) for split in SPLITS]
    assert all(parts) and sum(map(len, parts)) == len(set.union(*parts)) == {1: 40, 2: 45, 3: 55}[n_ids]
    for split, part in zip(SPLITS, parts, strict=True):
        qrels = collection.get_qrels(split)
        assert set(qrels['qid']) == part and qrels['label'].dtype == int
        assert qrels.columns.tolist() == ['qid', 'docno', 'label']
    assert len(parts[0]) > len(parts[1])


def test_two_ids_hold_out_the_queries_that_files_would(ids, tmp_path):
    files = write(tmp_path, queries_train=queries(40))
    assert qids(IrdsCollection(ids[0], ids[2]), 'dev') == qids(files, 'dev')


@pytest.mark.parametrize('given', [[], ['a', 'b', 'c', 'd']])
def test_no_id_or_too_many_are_refused(given):
    with pytest.raises(ValueError, match=f'{len(given)} ids'):
        IrdsCollection(*given)
