"""One experiment over every kind of system that a user compares, and what PyTerrier has waiting for the unwary."""
import warnings

import numpy as np
import pandas as pd
import pyterrier as pt
import pyterrier_alpha as pta
import pytest
import torch
from ir_measures import RR, R, nDCG
from pyterrier_doc2query import Doc2Query
from pyterrier_t5 import MonoT5ReRanker

from pyterrier_tasb import LateInteraction, TasBalanced, TextStore, Training
from pyterrier_tasb.baselines import bm25
from pyterrier_tasb.collection import TextLoader
from pyterrier_tasb.retrieval import WithoutDocid

FAST = Training(steps=6, batch_size=8, learning_rate=1e-3, clusters=4, log_every=2)
MEASURES = [nDCG@10, RR(rel=2)@10, R@100]


@pytest.fixture(scope='module')
def world(_toy, tiny_bert_dir, tiny_t5_dir, tmp_path_factory):
    """The toy collection, a trained encoder with its index, and what re-ranks and loads text."""
    class World:
        path = tmp_path_factory.mktemp('world')
        corpus, every_topic, every_qrel, results = _toy
        topics = every_topic.iloc[::4]
        qrels = every_qrel[every_qrel['qid'].isin(topics['qid'])]
        base = TasBalanced(tiny_bert_dir, training=FAST, amp='off')
        tasb = base.copy().fit(results, every_qrel)
        index = tasb.index(corpus, path / 'tasb.flex')
        text = TextLoader(TextStore.build(path / 'texts', ((doc['docno'], doc['text']) for doc in corpus)))
        dense = tasb.retriever(index, text=text)
        mono = MonoT5ReRanker(tiny_t5_dir, tiny_t5_dir, batch_size=32, verbose=False)
        late = LateInteraction(tiny_bert_dir)
    return World


@pytest.fixture(scope='module')
def systems(world, tiny_t5_dir):
    query = world.tasb.query_encoder()
    terrier, pisa = (bm25(world.corpus, world.path / 'bm25', engine=engine) for engine in ('terrier', 'pisa'))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        doc2query = Doc2Query(tiny_t5_dir, append=True, fast_tokenizer=True, batch_size=32, num_samples=1)
        expanded = bm25(world.corpus[:30], world.path / 'd2q', engine='terrier', name='docT5query',
                        expansion=doc2query)
    return {
        **{sparse.label: sparse.retriever for sparse in (terrier, pisa, expanded)},
        'dense': world.dense,
        'torch': query >> world.index.torch_retriever(),
        'faiss flat': query >> world.index.faiss_flat_retriever(),
        'faiss hnsw': query >> world.index.faiss_hnsw_retriever(ef_search=512),
        'dense >> monoT5': world.dense % 10 >> world.mono,
        'dense >> late interaction': world.dense % 10 >> world.late,
        'fusion': pta.RRFusion(terrier.retriever, world.dense),
    }


@pytest.fixture(scope='module')
def table(systems, world):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        out = pt.Experiment(systems, world.topics, world.qrels, MEASURES, validate='error', plan='linear')
    assert not [str(warning.message) for warning in said if 'alidat' in str(warning.message)]
    return out.set_index('name')


def test_every_system_runs_in_a_strict_experiment(table, systems):
    assert table.index.tolist() == list(systems)
    assert table.notna().all(axis=None) and ((table > 0) & (table <= 1)).all(axis=None)


def test_linear_and_tree_plans_give_the_same_table(table, systems, world):
    tree = pt.Experiment(systems, world.topics, world.qrels, MEASURES, validate='error', plan='tree')
    pd.testing.assert_frame_equal(table, tree.set_index('name'))


def test_bm25_knows_a_collection_of_shared_words(table):
    assert (table.loc[['BM25 (Terrier, k1=1.2, b=0.75)', 'BM25 (PISA, k1=0.9, b=0.4)'], 'nDCG@10'] > .8).all()


@pytest.mark.parametrize('engine', ['torch', 'faiss flat', 'faiss hnsw'])
def test_every_exact_search_finds_what_ours_finds(table, systems, world, engine):
    ours, theirs = (systems[name](world.topics).sort_values(['qid', 'docno']) for name in ('dense', engine))
    assert ours['docno'].tolist() == theirs['docno'].tolist()
    np.testing.assert_allclose(ours['score'].astype(float), theirs['score'].astype(float), atol=1e-4)
    np.testing.assert_allclose(table.loc['dense'], table.loc[engine], atol=1e-6)


@pytest.mark.parametrize('reranked', ['dense >> monoT5', 'dense >> late interaction'])
def test_a_reranker_orders_the_first_ten_anew(systems, world, reranked):
    first, last = (world.dense % 10)(world.topics), systems[reranked](world.topics)
    assert len(last) == 10 * len(world.topics)
    assert set(map(tuple, first[['qid', 'docno']].values)) == set(map(tuple, last[['qid', 'docno']].values))
    assert first.sort_values(['qid', 'rank'])['docno'].tolist() != last.sort_values(['qid', 'rank'])['docno'].tolist()
    assert {'query', 'text', 'score', 'rank'} <= set(last) and 'docid' not in last


def test_a_fusion_is_the_sum_of_reciprocal_ranks(systems, world):
    query = world.topics.iloc[:1]
    sparse, dense = (systems[name](query).set_index('docno')['rank'] for name in (next(iter(systems)), 'dense'))
    fused = systems['fusion'](query).set_index('docno')['score'].astype(float)
    expected = (1 / (60 + sparse)).add(1 / (60 + dense), fill_value=0)
    pd.testing.assert_series_equal(fused.sort_index(), expected.sort_index(), check_names=False)


# ---- what waits for the unwary ---------------------------------------------------------------------------------------

def test_an_encoder_before_a_retriever_is_not_fitted_in_vain(world):
    """Compose.fit would train it, then fail: without candidates nothing is trained."""
    tasb = world.base.copy()
    with pytest.raises(ValueError, match='negatives='):
        (tasb >> world.index.np_retriever()).fit(world.topics, world.qrels)
    assert tasb == world.base and tasb.record is None


def test_a_pipeline_made_before_the_fit_follows_it_and_a_copy_does_not(world):
    tasb = world.base.copy()
    ours, copied = (encoder.query_encoder() for encoder in (tasb, tasb.copy()))
    before = np.stack(ours(world.topics)['query_vec'])
    tasb.fit(world.results, world.every_qrel)
    assert not np.allclose(before, np.stack(ours(world.topics)['query_vec']))
    np.testing.assert_array_equal(before, np.stack(copied(world.topics)['query_vec']))


@pytest.mark.parametrize('plan', ['linear', 'tree'])
def test_two_encoders_that_share_an_index_keep_their_own_rows(world, plan):
    shared = {name: encoder.query_encoder() >> world.index.np_retriever() >> WithoutDocid()
              for name, encoder in (('base', world.base), ('tuned', world.tasb))}
    both = pt.Experiment(shared, world.topics, world.qrels, [nDCG@10], plan=plan)
    alone = [pt.Evaluate(system(world.topics), world.qrels, metrics=[nDCG@10])['nDCG@10'] for system in shared.values()]
    assert both['name'].tolist() == ['base', 'tuned'] and both['nDCG@10'].tolist() == pytest.approx(alone)
    assert alone[0] != alone[1]


def test_text_comes_by_docno_where_the_other_index_has_another_order(world):
    pt.IterDictIndexer(str(world.path / 'reversed'), meta={'docno': 20, 'text': 1000}).index(world.corpus[::-1])
    texts = pt.terrier.TerrierIndex(str(world.path / 'reversed'))
    found = world.tasb.retriever(world.index, text=texts, num_results=5)(world.topics)
    assert (found['text'] == found['docno'].map({doc['docno']: doc['text'] for doc in world.corpus})).all()


def test_a_cut_before_the_reranker_reaches_the_search(world):
    seen = []

    def score(results):
        seen.append(len(results))
        return results['text'].str.len()
    reranker = pt.apply.doc_score(score, batch_size=10**6)
    for pipeline in (world.dense % 10 >> reranker, (world.dense % 10 >> reranker).compile()):
        seen.clear()
        assert len(pipeline(world.topics)) == sum(seen) == 10 * len(world.topics)
    fused = (world.dense % 10).compile()
    assert [stage.num_results for stage in fused if hasattr(stage, 'num_results')] == [10]
    pd.testing.assert_frame_equal(fused(world.topics), (world.dense % 10)(world.topics))


@pytest.mark.parametrize('scorer', ['late', 'tasb'])
def test_a_forgotten_text_loader_is_found_before_anything_runs(world, scorer):
    forgetful = world.tasb.retriever(world.index) >> getattr(world, scorer)
    with pytest.raises(ValueError, match={'late': 'LateInteraction', 'tasb': 'TasBalanced'}[scorer]):
        pt.Experiment([forgetful], world.topics, world.qrels, MEASURES, validate='error')


def test_operators_in_queries_reach_every_stage_as_they_were_written(systems, world):
    topics = world.topics.assign(query=world.topics['query'] + '? "(rose^2 -soil"')
    for name, system in systems.items():
        found = system(topics)
        assert (found['query'] == found['qid'].map(topics.set_index('qid')['query'])).all(), name
        assert set(found['qid']) == set(topics['qid']), name


def test_texts_longer_than_the_model_takes_are_cut_and_it_is_said(tiny_bert_dir):
    with pytest.warns(UserWarning, match='doc_max_length=600 is more than the 512 positions'):
        tasb = TasBalanced(tiny_bert_dir, doc_max_length=600, amp='off')
    long = tasb.encode_docs(['rose ' * 2000, 'rose ' * 510])
    np.testing.assert_array_equal(long[0], long[1])


def test_texts_of_unknown_words_are_warned_of(tiny_bert_dir):
    with pytest.warns(UserWarning, match=r'100% of 30 tokens are \[UNK\]'):
        TasBalanced(tiny_bert_dir, amp='off').encode_docs([chr(0x4e00 + i) for i in range(30)])


def test_schematics_are_drawn_without_a_network(systems):
    for name, system in systems.items():
        assert '<svg' in pt.schematic.draw(system) or '<div' in pt.schematic.draw(system), name
