"""What holds for any input: round trips, and results that depend on no order, company or interruption."""
import tempfile
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tiny_encoders import encoder, random_model
from transformers import AutoTokenizer

from pyterrier_tasb import LateInteraction, QueryClusters, TextStore
from pyterrier_tasb.encoding import Tokens, TokenStore, token_store, tokenise
from pyterrier_tasb.encoding.batching import by_budget, near_equal
from pyterrier_tasb.encoding.gradcache import cached_forward
from pyterrier_tasb.teachers import CachedScorer
from pyterrier_tasb.teachers.vectors import TokenVectors

FEW = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
LENGTHS = st.lists(st.integers(2, 40), min_size=1, max_size=12)
WORDS = st.lists(st.sampled_from(['rose', 'star', 'oven', 'the', 'soil', '漢字', 'zz\n', '']), max_size=9).map(' '.join)


@pytest.fixture
def folder():
    """A function that makes an empty directory: an example must not find what the one before left."""
    with tempfile.TemporaryDirectory() as path:
        count = iter(range(10**6))

        def fresh():
            made = Path(path) / str(next(count))
            made.mkdir()
            return made
        yield fresh


# ---- clusters ------------------------------------------------------------------------------------------------------

ASSIGNMENTS = hnp.arrays(np.int32, st.integers(1, 40), elements=st.integers(-1, 6)).filter(lambda a: (a >= 0).any())


@given(ASSIGNMENTS)
@FEW
def test_clusters_survive_disk_and_text(folder, assignment):
    clusters, here = QueryClusters.from_assignment(assignment), folder()
    saved = clusters.save(here / 'clusters')
    np.testing.assert_array_equal(saved.assignment, assignment)
    assert saved.fingerprint == clusters.fingerprint and saved.n_clusters == clusters.n_clusters
    qids = [f'q{i}' for i in range(len(assignment))]
    clusters.write_text(here / 'text', qids)
    with pytest.warns(UserWarning) if (assignment < 0).any() else nullcontext():
        read = QueryClusters.read_text(here / 'text', qids)
    members = [clusters.members(c).tolist() for c in range(clusters.n_clusters)]
    # an empty cluster has no line that could be read
    assert [read.members(c).tolist() for c in range(read.n_clusters)] == [some for some in members if some]


@given(ASSIGNMENTS, st.randoms(use_true_random=False))
@FEW
def test_clusters_are_a_partition_whatever_the_order_of_queries(assignment, random):
    order = list(range(len(assignment)))
    random.shuffle(order)
    clusters, shuffled = QueryClusters.from_assignment(assignment), QueryClusters.from_assignment(assignment[order])
    seen = np.concatenate([clusters.members(c) for c in range(clusters.n_clusters)])
    assert sorted(seen) == np.flatnonzero(assignment >= 0).tolist()
    np.testing.assert_array_equal(clusters.sizes, shuffled.sizes)
    for c in range(clusters.n_clusters):
        assert sorted(order[i] for i in shuffled.members(c)) == clusters.members(c).tolist()


# ---- tokens on disk ------------------------------------------------------------------------------------------------

@given(st.lists(WORDS, max_size=30), st.integers(1, 7), st.integers(1, 3), st.integers(3, 12), st.data())
@FEW
def test_a_token_store_is_the_tokenizer(folder, tiny_bert_dir, texts, chunk, n_jobs, length, data):
    here, tokenizer = folder(), AutoTokenizer.from_pretrained(tiny_bert_dir)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(token_store, '_CHUNK', chunk)
        stored = TextStore.build(here / 'texts', ((str(i), text) for i, text in enumerate(texts)))
        store = TokenStore.build(here / 'tokens', stored, tokenizer, length, n_jobs=n_jobs)
        again = TokenStore(here / 'tokens')
    whole = tokenise(tokenizer, texts, length)
    rows = np.array(data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=9)) if texts else [], dtype=np.int64)
    for ours, theirs in ((store.take(None), whole), (again.take(rows), whole.take(rows))):
        np.testing.assert_array_equal(ours.ids, theirs.ids)
        np.testing.assert_array_equal(ours.offsets, theirs.offsets)
    assert store.fingerprint == again.fingerprint


# ---- packing -------------------------------------------------------------------------------------------------------

@given(LENGTHS.map(sorted).map(np.array), st.integers(1, 90), st.booleans())
def test_groups_cover_all_texts_within_the_budget(lengths, budget, padded):
    groups = by_budget(lengths, budget, padded=padded)
    assert [i for group in groups for i in range(len(lengths))[group]] == list(range(len(lengths)))
    for group in groups:
        some = lengths[group]
        assert len(some) == 1 or (some.max() * len(some) if padded else some.sum()) <= budget


@given(LENGTHS.map(sorted).map(np.array), st.integers(1, 5))
def test_groups_of_near_equal_length_cover_all_texts(lengths, most):
    groups = near_equal(lengths, most)
    assert len(groups) <= most
    assert [i for group in groups for i in range(len(lengths))[group]] == list(range(len(lengths)))


@pytest.fixture(scope='module')
def encoders():
    return {strategy: encoder('bert', strategy) for strategy in ('packed', 'sorted', 'padded')}


def _drawn(lengths, seed):
    rng = np.random.default_rng(seed)
    return Tokens.from_lists([rng.integers(4, 90, n).tolist() for n in lengths])


@given(LENGTHS, st.integers(0, 99), st.sampled_from(['packed', 'sorted', 'padded']))
@FEW
def test_a_vector_depends_on_its_text_alone(encoders, lengths, seed, strategy):
    tokens, order = _drawn(lengths, seed), np.random.default_rng(seed).permutation(len(lengths))
    with torch.no_grad():
        together, alone = encoders[strategy](tokens), [encoders['padded'](tokens.take([i])) for i in range(len(tokens))]
        shuffled = encoders[strategy](tokens.take(order))
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(shuffled, together[torch.from_numpy(order)], atol=1e-5, rtol=1e-5)


@given(LENGTHS, st.integers(0, 99), st.integers(1, 120))
@FEW
def test_micro_batches_give_the_gradients_of_the_batch(encoders, lengths, seed, limit):
    tokens, found = _drawn(lengths, seed), []
    for forward in (lambda e: e(tokens), lambda e: cached_forward(e, tokens, limit)):
        encoders['packed'].zero_grad()
        vectors = forward(encoders['packed'])
        (vectors @ vectors.T).square().mean().backward()   # every text's gradient depends on all others
        found.append([p.grad.clone() for p in encoders['packed'].parameters() if p.grad is not None])
    assert len(found[0]) == len(found[1]) > 0
    largest = max(grad.abs().max().item() for grad in found[0])
    for whole, parts in zip(*found):
        torch.testing.assert_close(parts, whole, atol=1e-5 * largest, rtol=1e-4)


# ---- caches --------------------------------------------------------------------------------------------------------

FRAME = pd.DataFrame([{'qid': f'q{i}', 'query': f'query {i}', 'docno': f'd{j}', 'text': f'text {j}'}
                      for i in range(4) for j in range(5)])


class Product(pt.Transformer):
    """A score of its own for each (query, passage); notes who asked."""

    def __init__(self):
        self.asked = []

    def transform(self, inp):
        pt.validate.result_frame(inp, extra_columns=['query', 'text'], context=self)
        self.asked += list(zip(inp['qid'], inp['docno']))
        return pt.model.add_ranks(inp.assign(score=[(float(q[1:]) + 1) * 10 ** float(d[1:])
                                                    for q, d in zip(inp['qid'], inp['docno'])]))


@given(st.lists(st.sets(st.integers(0, len(FRAME) - 1), min_size=1), min_size=1, max_size=5))
@FEW
def test_cached_scores_are_the_scorers_and_asked_for_once(folder, calls):
    scorer = Product()
    cached = CachedScorer(scorer, folder() / 'cache')
    for rows in calls:
        some = FRAME.iloc[sorted(rows)].reset_index(drop=True)
        key = ['qid', 'docno']
        pd.testing.assert_series_equal(cached(some).set_index(key)['score'].sort_index(),
                                       Product()(some).set_index(key)['score'].sort_index())
    assert len(scorer.asked) == len(set(scorer.asked)) == len(set().union(*calls))


@given(hnp.arrays(np.int64, st.integers(1, 8), elements=st.integers(1, 5)), st.integers(1, 4), st.data())
@FEW
def test_stored_vectors_are_those_encoded(folder, lengths, dim, data):
    vectors, encoded = [torch.randn(n, dim).half() for n in lengths], []

    def encode(rows):
        encoded.extend(rows.tolist())
        return torch.cat([vectors[row] for row in rows])
    path = folder() / 'vectors'
    for _ in range(2):   # the second time from disk
        stored = TokenVectors(path, lengths, dim, encode, 'key')
        for rows in data.draw(st.lists(st.lists(st.integers(0, len(lengths) - 1), min_size=1), max_size=4)):
            found, sizes = stored.take(np.array(rows))
            assert torch.equal(found, torch.cat([vectors[row] for row in rows]))
            assert sizes.tolist() == [lengths[row] for row in rows]
    assert len(encoded) == len(set(encoded))


@pytest.fixture(scope='module')
def teacher(tiny_bert_dir):
    return LateInteraction(tiny_bert_dir, doc_max_length=30)


@given(st.lists(st.lists(WORDS, min_size=1, max_size=5), min_size=1, max_size=4), st.sampled_from([0, 2000, 1 << 20]))
@FEW
def test_late_interaction_does_not_depend_on_what_memory_holds(teacher, calls, cache_bytes):
    remembering = teacher.apply_attributes(cache_bytes=cache_bytes)
    for docs in calls:
        found = remembering.score_matrix(['the rose', 'star'], docs)
        fresh = teacher.apply_attributes(cache_bytes=0).score_matrix(['the rose', 'star'], docs)
        torch.testing.assert_close(found, fresh, atol=2e-2, rtol=2e-3)   # vectors are kept in half precision


def test_the_model_is_the_same_for_every_example():
    one, other = random_model('bert').state_dict(), random_model('bert').state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
