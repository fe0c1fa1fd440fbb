"""Ctrl-C ends training with a sentence and a checkpoint, also in a process where Java runs."""
import ctypes
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pyterrier as pt
import pytest

from pyterrier_tasb import ScoredPairs, TasBalanced, TeacherScores, Training
from pyterrier_tasb.baselines import bm25

SCRIPT = '''
import sys
import pandas as pd
import pyterrier as pt
from pyterrier_tasb import TasBalanced, Training
model, data = sys.argv[1:]
pt.java.init()
tasb = TasBalanced(model, device='cpu', amp='off', training=Training(
    steps=2000, batch_size=4, sampling='random', save_every=2))
tasb.fit(pd.read_pickle(data + '/results'), pd.read_pickle(data + '/qrels'), work_dir=data + '/work')
'''


def _heed():
    signal.signal(signal.SIGINT, signal.SIG_DFL)   # what runs the tests may ignore it, as what runs in the background


@pytest.mark.skipif(sys.platform == 'win32', reason='needs POSIX signals')
def test_ctrl_c_after_java_has_started(tiny_bert_dir, toy_results, toy_qrels, tmp_path):
    toy_results.to_pickle(tmp_path / 'results')
    toy_qrels.to_pickle(tmp_path / 'qrels')
    with open(tmp_path / 'said', 'w') as said, subprocess.Popen(
            [sys.executable, '-c', SCRIPT, tiny_bert_dir, str(tmp_path)], cwd=tmp_path, stderr=said,
            env={**os.environ, 'OMP_NUM_THREADS': '1'}, preexec_fn=_heed) as process:
        while process.poll() is None and not list(tmp_path.glob('work/checkpoints/checkpoint-*/complete.json')):
            time.sleep(.1)
        process.send_signal(signal.SIGINT)
    said = (tmp_path / 'said').read_text()
    assert 'interrupted at step' in said and 'resume=True goes on' in said and 'KeyboardInterrupt' in said, said
    assert not list(tmp_path.glob('hs_err*'))


LONG_CALLS = {
    'an index': lambda tasb, given, folder: tasb.index(given.corpus, folder / 'index'),
    'pairs': lambda tasb, given, folder: ScoredPairs.from_pipeline(given.miner, given.topics, given.qrels,
                                                                   folder / 'pairs'),
    'scores': lambda tasb, given, folder: TeacherScores.build(
        folder / 'scores', pt.apply.doc_score(lambda row: len(row['text'])),
        *tasb.batch_plan(given.results, given.qrels, work_dir=folder / 'work'), steps=2),
    'BM25': lambda tasb, given, folder: bm25(given.corpus, folder / 'bm25', engine='terrier'),
}


@pytest.mark.parametrize('call', LONG_CALLS)
def test_long_calls_take_ctrl_c_back(call, tiny_bert_dir, toy_corpus, toy_topics, toy_qrels, toy_results, tmp_path):
    given = SimpleNamespace(corpus=toy_corpus, topics=toy_topics, qrels=toy_qrels, results=toy_results,
                            miner=pt.apply.generic(lambda topics: toy_results[toy_results['qid'].isin(topics['qid'])]))
    tasb = TasBalanced(tiny_bert_dir, device='cpu', training=Training(steps=2, batch_size=4))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        ctypes.CDLL(None).signal(signal.SIGINT, ctypes.c_void_p(1))   # ignored, and Python does not know: as Java does
        LONG_CALLS[call](tasb, given, tmp_path)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    finally:
        signal.signal(signal.SIGINT, before)
