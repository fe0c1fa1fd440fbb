"""Ctrl-C ends training with a sentence and a checkpoint, also in a process where Java runs."""
import os
import signal
import subprocess
import sys
import time

import pytest

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
