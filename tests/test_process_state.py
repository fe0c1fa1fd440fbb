"""After every public call, also one that fails, the process is as it was."""
import logging
import os
import random
import signal
import warnings

import numpy as np
import pyterrier as pt
import pytest
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from pyterrier_tasb import (
    BatchPlan,
    LateInteraction,
    QueryClusters,
    ScoredPairs,
    TasBalanced,
    TeacherScores,
    TextStore,
    Training,
    pydocs,
)

FAST = Training(steps=2, batch_size=4, clusters=2, save_every=1)


def state():
    """What a call could leave behind in the process."""
    mask = os.umask(0)
    os.umask(mask)
    return {
        'random': random.getstate(), 'numpy': str(np.random.get_state()), 'torch': torch.get_rng_state().tolist(),
        'environment': dict(os.environ), 'directory': os.getcwd(), 'umask': mask,
        'signals': [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        'filters': list(warnings.filters), 'handlers': list(logging.getLogger().handlers),
        'levels': (logging.getLogger().level, logging.getLogger('pyterrier_tasb').level, logging.root.manager.disable),
        'accelerate': [dict(kind._shared_state) for kind in (PartialState, AcceleratorState, GradientState)],
        'transformers': (transformers.utils.logging.get_verbosity(),
                         transformers.utils.logging.is_progress_bar_enabled()),
        'threads': (torch.get_num_threads(), torch.get_num_interop_threads()),
        'torch settings': (torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled(),
                           torch.is_grad_enabled(), torch.is_inference_mode_enabled(),
                           torch.is_autocast_enabled('cpu'), torch.backends.mkldnn.enabled,
                           torch.get_float32_matmul_precision())}


class World:
    def __init__(self, model, results, qrels, topics, corpus, folder):
        self.model, self.results, self.qrels, self.topics = model, results, qrels, topics
        self.corpus, self.folder = corpus, folder
        self.tasb = TasBalanced(model, training=FAST)
        self.teacher = LateInteraction(model, training=FAST.replace(sampling='random'))
        self.texts = TextStore.build(folder / 'texts', ((doc['docno'], doc['text']) for doc in corpus))
        self.vectors = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)

    def plan(self):
        return self.tasb.batch_plan(self.results, self.qrels, work_dir=self.folder / 'plan')


def _raise(error):
    raise error


CALLS = {
    'load': lambda w: TasBalanced(w.model),
    'load nothing': lambda w: TasBalanced(w.folder / 'nowhere'),
    'encode': lambda w: w.tasb(w.topics),
    'encode what is no text': lambda w: w.tasb.encode_docs([1]),
    'score': lambda w: w.tasb(w.results),
    'fit': lambda w: w.tasb.fit(w.results, w.qrels, w.results, w.qrels),
    'fit with a teacher': lambda w: TasBalanced(w.model, in_batch_teacher=w.teacher, training=FAST).fit(
        w.results, w.qrels),
    'fit on nothing': lambda w: w.tasb.fit(w.results.iloc[:0], w.qrels),
    'fit with a teacher that fails': lambda w: TasBalanced(
        w.model, in_batch_teacher=pt.apply.doc_score(lambda row: _raise(OSError('no'))), training=FAST).fit(
        w.results, w.qrels),
    'fit that explodes': lambda w: TasBalanced(w.model, training=FAST.replace(learning_rate=1e39)).fit(
        w.results, w.qrels),
    'save': lambda w: w.tasb.save(w.folder / 'model'),
    'save over other files': lambda w: w.tasb.save(w.folder, overwrite=True),
    'index': lambda w: w.tasb.index(w.corpus, w.folder / 'index'),
    'index from a store': lambda w: w.tasb.index(w.texts, w.folder / 'store'),
    'index nothing': lambda w: w.tasb.index([], w.folder / 'index'),
    'retrieve': lambda w: w.tasb.retriever(w.tasb.index(w.corpus, w.folder / 'index'))(w.topics),
    'tokenise': lambda w: w.tasb.tokenise_corpus(w.texts, n_jobs=2),
    'cluster': lambda w: QueryClusters.fit(w.vectors, 3).save(w.folder / 'clusters'),
    'cluster too much': lambda w: QueryClusters.fit(w.vectors, 300),
    'pairs': lambda w: ScoredPairs.from_results(w.results, w.qrels, w.folder / 'pairs'),
    'pairs of a file that is none': lambda w: ScoredPairs.from_teacher_file(w.folder / 'none', w.folder / 'pairs'),
    'draw': lambda w: BatchPlan(ScoredPairs.from_results(w.results, w.qrels), sampling='random', batch_size=4)[7],
    'score a plan': lambda w: TeacherScores.build(w.folder / 'scores', w.teacher, *w.plan(), steps=3),
    'late interaction': lambda w: w.teacher(w.results),
    'teach a teacher': lambda w: w.teacher.fit(w.results, w.qrels, w.results, w.qrels),
    'teach a teacher nothing': lambda w: w.teacher.fit(w.results, w.qrels.assign(label=0)),
    'read documentation': lambda w: pydocs.load(['logging']),
}


@pytest.mark.parametrize('call', CALLS)
@pytest.mark.filterwarnings('ignore')
def test_the_process_is_as_it_was(call, tiny_bert_dir, toy_results, toy_qrels, toy_topics, toy_corpus, tmp_path):
    world = World(tiny_bert_dir, toy_results, toy_qrels, toy_topics, toy_corpus, tmp_path)
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    before, failed = state(), False
    try:
        CALLS[call](world)
    except Exception:   # of any kind: what counts is what is left
        failed = True
    after = state()
    assert {name: (before[name], after[name]) for name in before if before[name] != after[name]} == {}
    assert failed == any(word in call for word in ('nothing', 'no text', 'fails', 'explodes', 'over other', 'too much',
                                                   'that is none'))


def test_the_users_accelerator_keeps_its_settings(tiny_bert_dir, toy_results, toy_qrels):
    kinds = PartialState, AcceleratorState, GradientState
    before = [dict(kind._shared_state) for kind in kinds]
    try:
        TasBalanced(tiny_bert_dir, training=FAST).fit(toy_results, toy_qrels)
        users = Accelerator(mixed_precision='bf16', cpu=True, gradient_accumulation_steps=4)   # as if nothing had been
        TasBalanced(tiny_bert_dir, training=FAST).fit(toy_results, toy_qrels)
        assert (users.mixed_precision, users.gradient_accumulation_steps) == ('bf16', 4)
    finally:
        for kind, kept in zip(kinds, before):
            kind._shared_state.clear()
            kind._shared_state.update(kept)
