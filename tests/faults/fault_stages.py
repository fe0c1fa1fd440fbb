"""The long steps, each as a function of a folder that returns what it made; run in processes that are killed."""
import os
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyterrier as pt
import torch

from pyterrier_tasb import (
    LateInteraction,
    QueryClusters,
    ScoredPairs,
    TasBalanced,
    TeacherScores,
    TextStore,
    Training,
)
from pyterrier_tasb import indexing as indexing_module
from pyterrier_tasb._files import file_fingerprint, fingerprint
from pyterrier_tasb.encoding import TokenStore, token_store
from pyterrier_tasb.teachers import CachedScorer, plan_scores

TRAINING = Training(steps=6, batch_size=4, clusters=3, learning_rate=1e-3, save_every=2)


class Clock:
    """Counts what changes the disk, and kills the process at a given count."""

    def __init__(self, kill_at):
        self.kill_at, self.now = kill_at, 0

    def tick(self):
        self.now += 1
        if self.now == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, module, name):
        """A tick before and after every call."""
        call = getattr(module, name)

        def ticking(*args, **kwargs):
            self.tick()
            result = call(*args, **kwargs)
            self.tick()
            return result
        setattr(module, name, ticking)


class Scorer(pt.Transformer):
    """Words in common; a tick at each call."""

    def __init__(self, clock):
        self.clock = clock

    def transform(self, inp):
        pt.validate.result_frame(inp, extra_columns=['query', 'text'], context=self)
        self.clock.tick()
        scores = [float(len(set(query.split()) & set(text.split()))) for query, text in zip(inp['query'], inp['text'])]
        return pt.model.add_ranks(inp.assign(score=scores))

    def __repr__(self):
        return 'Scorer()'


class Given:
    def __init__(self, folder, given, clock):
        self.folder, self.clock = Path(folder), clock
        self.model, self.results, self.qrels, self.topics, self.corpus = given


def pairs_of_a_pipeline(g):
    candidates = pt.Transformer.from_df(g.results.drop(columns='score'))
    pairs = ScoredPairs.from_pipeline(candidates >> Scorer(g.clock), g.topics, g.qrels, g.folder / 'pairs', chunk=10) \
        if not (g.folder / 'pairs').exists() else ScoredPairs(g.folder / 'pairs')
    return pairs.fingerprint


def pairs_of_a_file(g):
    if not (g.folder / 'pairs').exists():
        (g.folder / 'scores').write_text(''.join(f'{i}.5 {i % 7} {i % 20} {i % 13} {20 + i}\n' for i in range(300)))
        ScoredPairs.from_teacher_file(g.folder / 'scores', g.folder / 'pairs')
    return ScoredPairs(g.folder / 'pairs').fingerprint


def teacher_scores_cache(g):
    scored = []
    for _, query in g.results.groupby('qid', sort=False):
        scored.append(CachedScorer(Scorer(g.clock), g.folder / 'cache')(query.drop(columns='score')))
    return fingerprint(pd.concat(scored)['score'].tolist())


def texts_and_tokens(g):
    token_store._CHUNK = 25
    store = g.folder / 'texts'
    texts = TextStore(store) if store.exists() else TextStore.build(store, ((d['docno'], d['text']) for d in g.corpus))
    tasb = TasBalanced(g.model, amp='off')
    tokens = TokenStore.build(g.folder / 'tokens', texts, tasb.tokenizer, 50)
    return texts.fingerprint + fingerprint(np.asarray(tokens.take(None).ids), np.asarray(tokens.take(None).offsets))


def clusters(g):
    if not (g.folder / 'clusters').exists():
        vectors = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
        QueryClusters.fit(vectors, 5).save(g.folder / 'clusters')
    return QueryClusters(g.folder / 'clusters').fingerprint


def training(g):
    teacher = LateInteraction(g.model, doc_max_length=50, cache_dir=g.folder / 'vectors')
    tasb = TasBalanced(g.model, in_batch_teacher=teacher, training=TRAINING, amp='off')
    tasb.fit(g.results, g.qrels, g.results, g.qrels, work_dir=g.folder / 'work', resume=True)
    return tasb.model_name.rpartition('#')[2]


def plan_of_scores(g):
    plan_scores._SAVE_EVERY = 4
    teacher = LateInteraction(g.model, doc_max_length=50)
    tasb = TasBalanced(g.model, training=TRAINING, amp='off')
    plan, queries, docs = tasb.batch_plan(g.results, g.qrels, work_dir=g.folder / 'work')
    TeacherScores.build(g.folder / 'scores', teacher, plan, queries, docs, steps=20)
    return file_fingerprint(g.folder / 'scores' / 'scores.f2')


def saving(g):
    tasb = TasBalanced(g.model, amp='off')
    if (g.folder / 'model').exists():
        TasBalanced(g.folder / 'model')   # whole, whatever happened
    for _ in range(2):
        tasb.save(g.folder / 'model', overwrite=True)
    return file_fingerprint(g.folder / 'model' / 'model.safetensors')


def indexing(g):
    tasb = TasBalanced(g.model, amp='off')
    indexing_module._SAVE_EVERY = 0.0
    index = tasb.index(g.corpus, g.folder / 'index', overwrite=True, batch_size=20)
    docnos, vectors, _ = index.payload()
    return fingerprint(list(docnos), np.array(vectors))


STAGES = {stage.__name__: stage for stage in (
    pairs_of_a_pipeline, pairs_of_a_file, teacher_scores_cache, texts_and_tokens, clusters, training, plan_of_scores,
    saving, indexing)}


def run(name, folder, given, kill_at, kill_after, out):
    """Run a stage; `out` gets what it made, how often the disk changed and how many seconds it took."""
    torch.set_num_threads(1)
    clock, start = Clock(kill_at), time.perf_counter()
    for module, call in ((os, 'replace'), (os, 'fsync')):
        clock.watch(module, call)
    signal.setitimer(signal.ITIMER_REAL, kill_after)   # nobody handles it: the process ends wherever it is
    made = STAGES[name](Given(folder, given, clock))
    signal.setitimer(signal.ITIMER_REAL, 0)
    out.send((made, clock.now, time.perf_counter() - start))
