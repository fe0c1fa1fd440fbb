"""What bad input gets: one error of the right type, before hours are spent, that says what was seen; disk unchanged."""
import gzip
import json

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from pyterrier_tasb import (
    BatchPlan,
    LateInteraction,
    QueryClusters,
    ScoredPairs,
    TasBalanced,
    TextStore,
    Training,
    WeightedSum,
)
from pyterrier_tasb.collection import Collection

TRAINING = Training(steps=2, batch_size=8, clusters=4)


class Given:
    """Good input, for a case to spoil."""

    def __init__(self, model, results, qrels, topics, folder):
        self.model, self.results, self.qrels, self.topics, self.folder = model, results, qrels, topics, folder

    def fit(self, results=None, qrels=None, *validation, training=TRAINING, name='work', **options):
        at_fit = {key: options.pop(key) for key in ('pairs', 'resume') if key in options}
        tasb = TasBalanced(self.model, training=training, **options)
        return tasb.fit(results, qrels, *validation, work_dir=self.folder / name, **at_fit)

    def file(self, name, content):
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def model_dir(self, *without, **config):
        path = self.folder / 'model'
        AutoModel.from_pretrained(self.model).save_pretrained(path)
        AutoTokenizer.from_pretrained(self.model).save_pretrained(path)
        for name in without:
            (path / name).unlink()
        if config:
            values = json.loads((path / 'config.json').read_text())
            (path / 'config.json').write_text(json.dumps({**values, **config}))
        return path

    def pairs(self, **changes):
        arrays = dict(qids=['q1', 'q2'], docnos=['a', 'b'], query=[0, 1], pos=[0, 1], neg=[1, 0], margin=[1.0, 2.0])
        return ScoredPairs.from_arrays(None, **{name: np.array(value) if name not in ('qids', 'docnos') else value
                                                for name, value in {**arrays, **changes}.items()})


def _scores(content):
    return lambda g: ScoredPairs.from_teacher_file(g.file('scores.tsv', content), g.folder / 'pairs')


def _clusters(content):
    return lambda g: QueryClusters.read_text(g.file('clusters.tsv', content), ['q1', 'q2'])


def _changed(**columns):
    return lambda g: g.fit(g.results.assign(**columns), g.qrels)


def _judged(**columns):
    return lambda g: g.fit(g.results, g.qrels.assign(**columns))


def _collection(**files):
    def build(g):
        defaults = {'corpus_jsonl': '{"docno": "d1", "text": "x"}\n', 'queries_test_tsv': 'q1\tx\n',
                    'qrels_test_tsv': 'q1 0 d1 1\n'}
        for name, content in {**defaults, **files}.items():
            if content is not None:
                stem, _, suffix = name.rpartition('_')
                g.file(f'{stem.replace("_", ".")}.{suffix}', content)
        data = Collection(g.folder)
        list(data.get_corpus_iter())
        return data.get_topics('test'), data.get_qrels('test')
    return build


ROW = '2.5\t1.5\t7\t11\t12\n'
CASES = {
    # frames
    'nothing': (lambda g: g.fit(), 'nothing to learn from'),
    'qrels only': (lambda g: g.fit(None, g.qrels), 'nothing to learn from'),
    'a list for results': (lambda g: g.fit([1], g.qrels), 'must be a DataFrame; got list'),
    'a dict for qrels': (lambda g: g.fit(g.results, {}), 'with columns qid, docno, label; got dict'),
    'empty results': (lambda g: g.fit(g.results.iloc[:0], g.qrels), 'is empty'),
    'empty qrels': (lambda g: g.fit(g.results, g.qrels.iloc[:0]), 'qrels are empty'),
    'no column qid': (lambda g: g.fit(g.results.drop(columns='qid'), g.qrels), 'qid'),
    'no column query': (lambda g: g.fit(g.results.drop(columns='query'), g.qrels), 'query'),
    'no column text': (lambda g: g.fit(g.results.drop(columns='text'), g.qrels), "no column 'text'"),
    'no column score': (lambda g: g.fit(g.results.drop(columns='score'), g.qrels), 'no column score'),
    'qrels without label': (lambda g: g.fit(g.results, g.qrels.drop(columns='label')), 'label'),
    'qrels without docno': (lambda g: g.fit(g.results, g.qrels.drop(columns='docno')), 'docno'),
    'duplicate qid and docno': (lambda g: g.fit(pd.concat([g.results, g.results.iloc[:3]]), g.qrels),
                                '6 rows of the training results repeat a .qid, docno.'),
    'a qid with two queries': (lambda g: g.fit(g.results.assign(qid='q1', docno=g.results.index.astype(str)), g.qrels),
                               'more than one query text'),
    'a missing query': (_changed(query=None), 'no query text'),
    'a blank query': (_changed(query='  '), 'no query text'),
    'a missing qid': (_changed(qid=None), 'have no qid'),
    'a missing docno': (_changed(docno=None), 'have no docno'),
    'decimal qids': (_changed(qid=1.5), 'holds decimals'),
    'texts that are numbers': (_changed(text=3), 'are no text'),
    'texts that are bytes': (_changed(text=b'rose'), 'are no text'),
    'texts that are all empty': (_changed(text=''), 'text'),
    'a NaN score': (_changed(score=np.nan), 'NaN or infinite'),
    'an infinite score': (_changed(score=np.inf), 'NaN or infinite'),
    'a score that is text': (_changed(score='high'), 'NaN or infinite'),
    'scores that are all the same': (_changed(score=1.0), 'margins are 0'),
    'foreign qids': (lambda g: g.fit(g.results.assign(qid='x' + g.results['qid']), g.qrels),
                     'none of the 60 training queries has a positive'),
    'foreign docnos': (lambda g: g.fit(g.results.assign(docno='x' + g.results['docno']), g.qrels),
                       'both a positive and a negative'),
    'only positives among the candidates': (lambda g: g.fit(g.results.merge(g.qrels[g.qrels['label'] > 0], on=[
        'qid', 'docno'])[g.results.columns], g.qrels), 'both a positive and a negative'),
    'resuming without a directory': (lambda g: TasBalanced(g.model).fit(g.results, g.qrels, resume=True), 'work_dir='),
    # qrels
    'labels all 0': (_judged(label=0), 'no positive passage'),
    'labels below 0': (_judged(label=-1), 'no positive passage'),
    'a label that is text': (_judged(label='good'), "first value 'good'"),
    'a missing label': (_judged(label=None), 'are no numbers'),
    'labels that are quarters': (lambda g: g.fit(g.results, g.qrels.assign(label=g.qrels['label'] / 4)),
                                 r'120 labels .* no whole numbers \(qids q0, .*first value 0.5\).*multiply'),
    'validation labels that are halves': (lambda g: g.fit(g.results, g.qrels, g.results, g.qrels.assign(
        label=g.qrels['label'] / 2)), '60 labels of the validation qrels are no whole numbers'),
    'an infinite label': (_judged(label=np.inf), 'no whole numbers'),
    'contradicting labels': (lambda g: g.fit(g.results, pd.concat([g.qrels, g.qrels.assign(label=5)])),
                             'different labels'),
    'qrels with decimal docnos': (_judged(docno=2.0), 'holds decimals'),
    # the shape of the call
    'lone validation topics': (lambda g: g.fit(g.results, g.qrels, g.results), 'only topics_or_res_va was given'),
    'lone validation qrels': (lambda g: g.fit(g.results, g.qrels, None, g.qrels), 'only qrels_va was given'),
    'validation of other queries': (lambda g: g.fit(g.results, g.qrels, g.results, g.qrels.assign(
        qid='x' + g.qrels['qid'])),
                                    'validation queries has a positive'),
    'validation whose docnos are others': (lambda g: g.fit(g.results, g.qrels, g.results, g.qrels.assign(
        docno='x' + g.qrels['docno'])), 'no validation candidate is judged relevant.*docnos are d.* xd'),
    "a teacher's validation whose docnos are others": (lambda g: LateInteraction(g.model).fit(
        g.results, g.qrels, g.results, g.qrels.assign(docno='x' + g.qrels['docno'])),
        'no validation candidate is judged relevant'),
    'qrels and results changed over': (lambda g: g.fit(g.qrels, g.results),
                                       r'the training qrels \(columns qid, query, docno, '),
    'validation changed over': (lambda g: g.fit(g.results, g.qrels, g.qrels, g.results),
                                r'the validation qrels \(columns qid, query, docno, '),
    'topics for qrels': (lambda g: g.fit(g.results, g.topics), r'the training qrels \(columns qid, query\)'),
    'a miner that is a path': (lambda g: g.fit(g.topics, g.qrels, negatives='bm25', corpus=g.loader),
                               "negatives='bm25' .str. cannot mine: give a pipeline"),
    "a teacher's miner that is a frame": (lambda g: LateInteraction(g.model).fit(
        g.topics, g.qrels, negatives=g.results, corpus=g.loader), 'DataFrame. cannot mine'),
    'an encoder of clusters that is a path': (lambda g: g.fit(g.results, g.qrels, cluster_encoder='bert'),
                                              "cluster_encoder='bert' cannot encode queries"),
    "a teacher's settings in a dict": (lambda g: LateInteraction(g.model, training={'steps': 3}), 'give Training'),
    'clusters that are pairs': (lambda g: QueryClusters(ScoredPairs.from_results(
        g.results, g.qrels, g.folder / 'other').path), 'other holds scored_pairs, not query_clusters'),
    'an in-batch teacher that is pairs': (lambda g: g.fit(g.results, g.qrels, in_batch_teacher=ScoredPairs.from_results(
        g.results, g.qrels, g.folder / 'other').path), 'other holds scored_pairs, not teacher_scores'),
    'validation topics without a miner': (lambda g: g.fit(g.results, g.qrels, g.topics, g.qrels), 'negatives='),
    'topics without a miner': (lambda g: g.fit(g.topics, g.qrels), 'negatives='),
    'a miner without a corpus': (lambda g: g.fit(g.topics, g.qrels, negatives=pt.Transformer.from_df(g.results)),
                                 'corpus='),
    'a corpus that loads no text': (lambda g: g.fit(g.results.drop(columns='text'), g.qrels, corpus=7), 'corpus=7'),
    'fewer queries than a batch': (lambda g: g.fit(g.results, g.qrels, training=TRAINING.replace(batch_size=61)),
                                   '60 queries have a positive in the qrels, fewer than a batch of 61'),
    'more clusters than queries': (lambda g: g.fit(g.results, g.qrels, training=TRAINING.replace(clusters=61)),
                                   'more clusters'),
    'pairs without topics': (lambda g: g.fit(pairs=g.pairs()), "queries' texts"),
    'pairs without a corpus': (lambda g: g.fit(g.topics, pairs=g.pairs()), 'corpus='),
    'pairs of unknown queries': (lambda g: g.fit(g.topics.iloc[5:], pairs=g.pairs(), training=TRAINING.replace(
        batch_size=1, clusters=1), corpus=g.loader), "queries of the pairs have no text in the topics"),
    'clusters of other queries': (lambda g: g.fit(g.results, g.qrels, clusters=QueryClusters.from_assignment(
        np.zeros(3), qids=['a', 'b', 'c'])), 'none of its 3 query ids is a training query'),
    'clusters of no queries': (lambda g: g.fit(g.results, g.qrels, clusters=QueryClusters.from_assignment(
        np.zeros(60))), 'does not say which queries these are'),
    'documents for texts': (lambda g: TextStore.build(g.folder / 'texts', [{'docno': 'd1', 'text': 'rose'}]),
                            'is no .id, text. pair: of documents, give'),
    'clusters that are not there': (lambda g: g.fit(g.results, g.qrels, clusters=str(g.folder / 'nowhere')),
                                    'nowhere.* is not there: give a cluster file'),
    'clusters that are none': (lambda g: g.fit(g.results, g.qrels, clusters=7), 'clusters=7: give QueryClusters'),
    'ids for other clusters': (lambda g: QueryClusters.from_assignment(np.zeros(3), qids=['a', 'a', 'b']),
                               '3 qids, 2 of them different, for 3 queries'),
    'more clusters in a batch than queries': (lambda g: TRAINING.replace(clusters_per_batch=100), 'at most the batch'),
    'a pairwise teacher that cannot teach': (lambda g: g.fit(g.results, g.qrels, pairwise_teacher=7),
                                             'pairwise_teacher=7 cannot teach'),
    'nothing to imitate or to rank': (lambda g: g.fit(g.results, g.qrels, training=TRAINING.replace(
        pairwise_weight=0)), 'nothing would be learnt'),
    'an in-batch teacher that cannot teach': (lambda g: g.fit(g.results, g.qrels, in_batch_teacher=7),
                                              'in_batch_teacher=7 cannot teach'),
    'no teachers to sum': (lambda g: WeightedSum([]), 'at least one'),
    'a pairwise teacher that says NaN': (lambda g: g.fit(g.results, g.qrels, pairwise_teacher=pt.apply.generic(
        lambda results: results.assign(score=np.nan), required_columns=['text'])), 'NaN or infinite score'),
    # pairs
    'a margin that is NaN': (lambda g: g.pairs(margin=[1.0, np.nan]), 'margins are NaN'),
    'a query without a pair': (lambda g: g.pairs(query=[0, 0]), '1 queries have no pair'),
    'no pairs at that path': (lambda g: ScoredPairs(g.folder / 'nowhere'), 'holds no scored pairs'),
    'more from a plan than there is': (lambda g: BatchPlan(g.pairs(), sampling='random', batch_size=3), '2 queries'),
    'an unknown sampling': (lambda g: BatchPlan(g.pairs(), sampling='best'), 'must be one of'),
    # teacher files
    'a short row': (_scores(ROW + '2.5\t1.5\t7\t11\n'), 'line 2: 4 columns, expected 5'),
    'a long row': (_scores(ROW + '2.5\t1.5\t7\t11\t12\t13\n'), 'line 2: 6 columns, expected 5'),
    'text in a number': (_scores(ROW + 'high\t1.5\t7\t11\t12\n'), "line 2: the scores are 'high'"),
    'a NaN in a teacher file': (_scores(ROW + 'nan\t1.5\t7\t11\t12\n'), 'line 2: the scores are nan'),
    'an infinite score in a teacher file': (_scores(ROW + 'inf\t1.5\t7\t11\t12\n'), 'line 2'),
    'an underscore in a teacher file': (_scores(ROW + '1_5\t1.5\t7\t11\t12\n'), "line 2: the scores are '1_5'"),
    'a teacher file in latin-1': (_scores((ROW + '2\t1\té\t11\t12\n').encode('latin-1')), 'line 2 is not utf-8'),
    'a text form in latin-1': (lambda g: ScoredPairs.from_text_file(
        g.file('text.tsv', '1\t2\té\tp\tn\n'.encode('latin-1')), g.folder / 'pairs'), 'line 1 is not utf-8'),
    'an empty teacher file': (_scores(''), 'has no lines'),
    'a teacher file that is no text': (_scores(bytes(range(256)) * 4), 'line 1'),
    'a header in a teacher file': (_scores('pos_score\tneg_score\tqid\tpos\tneg\n' + ROW), 'line 1'),
    'gzip cut off': (_scores(gzip.compress((ROW * 5000).encode())[:-20]), 'cut off or damaged'),
    'a text form of four columns': (lambda g: ScoredPairs.from_text_file(
        g.file('text.tsv', '1\t2\tq\tp\n'), g.folder / 'pairs'),
                                    'line 1: 4 columns'),
    # cluster files
    'no known query in a cluster file': (_clusters('x y\nz\n'), 'none of its 3 query ids'),
    'an empty cluster file': (_clusters(''), 'none of its 0 query ids'),
    'a query in two clusters': (_clusters('q1 q2\nq1\n'), 'line 2: query q1 is in more than one cluster'),
    'a cluster file in latin-1': (_clusters('q1\nq2 é\n'.encode('latin-1')), 'clusters.tsv, line 2 is not utf-8'),
    'clusters that are no whole numbers': (lambda g: QueryClusters.from_assignment([.7, 1.9]), 'row 0 is 0.7'),
    'clusters numbered beyond k': (lambda g: QueryClusters.from_assignment(np.array([0, 3]), n_clusters=2), '0 to 1'),
    'no clusters at that path': (lambda g: QueryClusters(g.folder / 'nowhere'), 'holds no query clusters'),
    'vectors that are NaN': (lambda g: QueryClusters.fit(np.full((4, 2), np.nan), 2), 'NaN, infinite or too long'),
    # model directories
    'no such directory': (lambda g: TasBalanced(g.folder / 'nowhere'), 'there is no directory'),
    'a model that is a file': (lambda g: TasBalanced(g.file('model.bin', b'')), 'is a file'),
    'an empty model directory': (lambda g: TasBalanced(g.folder), 'no config.json'),
    'a model without a tokenizer': (lambda g: TasBalanced(g.model_dir('tokenizer.json', 'tokenizer_config.json')),
                                    'no tokenizer'),
    'a model without weights': (lambda g: TasBalanced(g.model_dir('model.safetensors')), 'no model.safetensors'),
    'weights of another size': (lambda g: TasBalanced(g.model_dir(hidden_size=64)), 'cannot be loaded|do not belong'),
    'a broken config': (lambda g: (g.model_dir(), g.file('model/config.json', '{'), TasBalanced(g.folder / 'model')),
                        'config.json is damaged'),
    'a tokenizer of another model': (lambda g: (g.model_dir(), BertModel(BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)).save_pretrained(
            g.folder / 'model'), TasBalanced(g.folder / 'model')), 'the table of embeddings 20 rows'),
    'settings that are no object': (lambda g: (g.model_dir(), g.file('model/tasb.json', '[1]'), TasBalanced(
        g.folder / 'model')), 'tasb.json is damaged'),
    'a layer without a type': (lambda g: (g.model_dir(), g.file('model/modules.json', '[{"path": ""}]'), TasBalanced(
        g.folder / 'model')), 'modules.json has the entry'),
    'a model saved over something else': (lambda g: (g.file('thesis.tex', 'x'), TasBalanced(g.model).save(
        g.folder, overwrite=True)), 'is no model directory and is not replaced'),
    'a model that is loaded already': (lambda g: TasBalanced(AutoModel.from_pretrained(g.model)),
                                       'model_name= is a BertModel, neither a path nor a name: give a model directory'),
    'a teacher that is loaded already': (lambda g: LateInteraction(AutoModel.from_pretrained(g.model)),
                                         'model_name= is a BertModel'),
    'batches of no text': (lambda g: TasBalanced(g.model, batch_size=0), 'batch_size=0: must be a whole number of at'),
    'batches of half a text': (lambda g: TasBalanced(g.model, batch_size=.5), 'batch_size=0.5: must be'),
    'a text for texts': (lambda g: TasBalanced(g.model).encode_docs('rose gardening'),
                         "'rose gardening' is one text, where several are expected: give a list"),
    'a query for queries': (lambda g: TasBalanced(g.model).encode_queries('rose'), "'rose' is one text"),
    'a text for texts with gradients': (lambda g: TasBalanced(g.model).encode_docs_torch('rose'), 'is one text'),
    'a length of one token': (lambda g: TasBalanced(g.model, query_max_length=1), 'query_max_length=1'),
    'an unknown precision': (lambda g: TasBalanced(g.model, amp='int4'), "amp='int4' is unknown"),
    'a teacher without weights': (lambda g: LateInteraction(g.model_dir('model.safetensors')), 'model.safetensors'),
    # texts and collections
    'an id that comes twice': (lambda g: TextStore.build(g.folder / 't', [('a', 'x'), ('a', 'y')]), 'comes twice'),
    'a text that is no string': (lambda g: TextStore.build(g.folder / 't', [('a', None)]), 'no string'),
    'no store at that path': (lambda g: TextStore(g.folder / 'nowhere'), 'no text store'),
    'a corpus without text': (_collection(corpus_jsonl='{"docno": "d1"}\n'), 'line 1'),
    'a corpus that is no JSON': (_collection(corpus_jsonl='d1\tx\n'), 'line 1'),
    'a collection without a corpus': (_collection(corpus_jsonl=None), 'no corpus.jsonl'),
    'queries of one column': (_collection(queries_test_tsv='q1\n'), 'line 1'),
    'qrels of three columns': (_collection(qrels_test_tsv='q1 0 d1\n'), 'line 1'),
    # configurations, each field: tests/training/test_config.py
    'an unknown measure': (lambda g: Training(measure='best@10'), 'ir_measures does not know it'),
    'a rate below 0': (lambda g: Training(learning_rate=-1), r'learning_rate=-1'),
    'a tracker that nobody knows': (lambda g: Training(report_to='wandbb'), "report_to='wandbb'"),
    'a measure that is empty': (lambda g: Training(measure=''), "measure=''"),
    'a choice that is text': (lambda g: Training(spherical='no'), "spherical='no'"),
    # indexes
    'an empty corpus': (lambda g: TasBalanced(g.model).index([], g.folder / 'index'), 'no documents'),
    'a corpus that is a frame': (lambda g: TasBalanced(g.model).index(g.topics, g.folder / 'index'), 'to_dict'),
    'a document that is a tuple': (lambda g: TasBalanced(g.model).index([('d1', 'x')], g.folder / 'index'), 'number 0'),
    'a docno that is missing': (lambda g: TasBalanced(g.model).index(
        [{'docno': None, 'text': 'x'}], g.folder / 'index'), 'number 0 is None'),
    'half a surrogate pair in a docno': (lambda g: TasBalanced(g.model).index(
        [{'docno': '\ud800', 'text': 'x'}], g.folder / 'index'), 'number 0.*name the passage otherwise'),
    'an index over something else': (lambda g: (g.file('thesis.tex', 'x'), TasBalanced(g.model).index(
        [{'docno': 'd1', 'text': 'x'}], g.folder, overwrite=True)), 'is no dense index'),
    'an index before its corpus': (lambda g: TasBalanced(g.model).index(
        g.folder / 'index', [{'docno': 'd1', 'text': 'x'}]), r'path= is a list.* corpus first .*index\(corpus, path\)'),
    'a document without text': (lambda g: TasBalanced(g.model).index([{'docno': 'd1'}], g.folder / 'index'), 'text'),
}


@pytest.fixture
def given(tiny_bert_dir, toy_results, toy_qrels, toy_topics, toy_corpus, tmp_path):
    given = Given(tiny_bert_dir, toy_results, toy_qrels, toy_topics, tmp_path)
    texts = {doc['docno']: doc['text'] for doc in toy_corpus}
    given.loader = pt.apply.generic(lambda res: res.assign(text=res['docno'].map(texts)), required_columns=['docno'])
    return given


def _products(folder):
    """Files below `folder` that are neither a case's own input nor a work directory's bookkeeping."""
    return {path.name for path in folder.iterdir()} & {'pairs', 'index', 't'} | {
        str(path.relative_to(folder)) for path in folder.glob('work/checkpoints/*')}


@pytest.mark.parametrize('case', CASES)
@pytest.mark.filterwarnings('ignore:dropped from the training data')
def test_bad_input_gets_a_clear_error_and_leaves_nothing(given, case, monkeypatch):
    spoil, message = CASES[case]
    monkeypatch.setattr('pyterrier_tasb.fitting.train', lambda *args, **kwargs: pytest.fail('training began'))
    with pytest.raises((ValueError, KeyError, pt.validate.InputValidationError), match=message):
        spoil(given)
    assert not _products(given.folder)


def test_there_are_at_least_sixty_kinds():
    assert len(CASES) >= 60


def test_a_work_directory_of_other_data_or_settings_is_refused_with_the_difference(given):
    given.fit(given.results, given.qrels)
    before = sorted((path, path.stat().st_mtime_ns) for path in (given.folder / 'work').rglob('*') if path.is_file())
    with pytest.raises(ValueError, match='results .*there'):
        given.fit(given.results.assign(score=1.0 + given.results['score']), given.qrels, resume=True)
    with pytest.raises(ValueError, match=r'Training.learning_rate \(2e-05 there, 0.002 now\)'):
        given.fit(given.results, given.qrels, training=TRAINING.replace(learning_rate=2e-3), resume=True)
    with pytest.raises(ValueError, match='resume=True'):
        given.fit(given.results, given.qrels)
    after = sorted((path, path.stat().st_mtime_ns) for path in (given.folder / 'work').rglob('*') if path.is_file())
    assert [row for row in before if row[0].name != '.lock'] == [row for row in after if row[0].name != '.lock']


def test_a_miner_behind_its_attribute_is_named(given):
    class Sparse:
        retriever = pt.Transformer.identity()
    with pytest.raises(ValueError, match='cannot mine: give its .retriever'):
        given.fit(given.topics, given.qrels, negatives=Sparse(), corpus=given.loader)


def test_validation_of_which_most_is_not_relevant_is_warned_of(given):
    few = given.qrels['qid'].isin(['q0', 'q1'])
    qrels = given.qrels.assign(docno=given.qrels['docno'].where(few, 'x' + given.qrels['docno']))
    with pytest.warns(UserWarning, match='58 of 60 validation queries have no relevant candidate'):
        given.fit(given.results, given.qrels, given.results, qrels)


def test_a_teacher_is_not_asked_of_queries_that_can_give_no_pair(given):
    asked = []

    def score(results):
        asked.extend(results['qid'].unique())
        return results.assign(score=results['text'].str.len())
    teacher = pt.apply.generic(score, required_columns=['text'])
    lost = given.qrels['qid'].isin(['q3', 'q4'])
    qrels = given.qrels.assign(docno=given.qrels['docno'].where(~lost, 'x' + given.qrels['docno']))
    with pytest.warns(UserWarning, match='2 of 60 queries have no positive or no negative'):
        given.fit(given.results, qrels, pairwise_teacher=teacher)
    assert sorted(asked) == sorted(set(given.topics['qid']) - {'q3', 'q4'})
    asked.clear()
    foreign = given.qrels.assign(docno='x' + given.qrels['docno'])
    with pytest.raises(ValueError, match='both a positive and a negative'), \
            pytest.warns(UserWarning, match='120 candidates without text'):
        given.fit(given.topics, foreign, pairwise_teacher=teacher, name='mined', corpus=given.loader,
                  negatives=pt.Transformer.from_df(given.results[['qid', 'docno', 'score', 'rank']]))
    assert not asked


UNUSUAL = {
    'integer ids': lambda r, q: tuple(frame.assign(qid=frame['qid'].str[1:].astype(int)) for frame in (r, q)),
    'categorical ids': lambda r, q: (r.astype({'qid': 'category', 'docno': 'category'}), q),
    'object columns': lambda r, q: (r.astype({'qid': object, 'docno': object, 'text': object, 'query': object}), q),
    'python strings': lambda r, q: (r.astype({'text': pd.StringDtype('python')}), q),
    'unicode': lambda r, q: (r.assign(query='Würde 東京 ' + r['query'], text='naïve ☕ ' + r['text']), q),
    'half a surrogate pair': lambda r, q: (r.assign(text=r['text'].astype(object) + ' \ud800'), q),
    'a text of a megabyte': lambda r, q: (r.assign(text=r['text'].where(r.index > 0, 'rose ' * 200_000)), q),
    'some empty texts': lambda r, q: (r.assign(text=r['text'].where(r.index % 50 > 0, '')), q),
    'an index that is not a range': lambda r, q: (r.set_index(np.arange(len(r))[::-1] * 3), q),
    'float labels': lambda r, q: (r, q.astype({'label': float})),
    'more columns': lambda r, q: (r.assign(other=1, label=9), q.assign(iteration=0)),
    'float32 scores': lambda r, q: (r.astype({'score': np.float32}), q),
}


@pytest.mark.parametrize('case', UNUSUAL)
@pytest.mark.filterwarnings('ignore:dropped from the training data')
def test_unusual_input_is_good_input(given, case):
    results, qrels = UNUSUAL[case](given.results, given.qrels)
    assert given.fit(results, qrels).record['steps'] == 2
