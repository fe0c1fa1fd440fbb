"""N processes train on the batches of one process that accumulates N, and end with its weights."""
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

SCRIPT = '''
import os
import sys
import pandas as pd
from safetensors.torch import save_file
from pyterrier_tasb import TasBalanced, Training
model, data, accumulation, out = sys.argv[1:]
tasb = TasBalanced(model, device='cpu', amp='off', training=Training(
    steps=5, batch_size=4, accumulation=int(accumulation), clusters=4, learning_rate=1e-3))
tasb.fit(pd.read_pickle(data + '/results'), pd.read_pickle(data + '/qrels'), work_dir=out + '/work')
rank = os.environ.get('RANK', '0')
save_file(tasb.model.state_dict(), f'{out}/{rank}.safetensors')
'''


@pytest.fixture
def data(tmp_path, toy_results, toy_qrels):
    toy_results.to_pickle(tmp_path / 'results')
    toy_qrels.to_pickle(tmp_path / 'qrels')
    (tmp_path / 'script.py').write_text(SCRIPT)
    return tmp_path


@pytest.fixture
def without_dropout(tiny_bert_dir, tmp_path):
    model = AutoModel.from_pretrained(tiny_bert_dir, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model.save_pretrained(tmp_path / 'bert')
    AutoTokenizer.from_pretrained(tiny_bert_dir).save_pretrained(tmp_path / 'bert')
    return str(tmp_path / 'bert')


def _run(launcher, data, model, accumulation, out):
    out.mkdir()
    command = [sys.executable, *launcher, str(data / 'script.py'), model, str(data), str(accumulation), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_processes_end_with_the_weights_of_one_that_accumulates_two(data, without_dropout, tmp_path):
    _run([], data, without_dropout, 2, tmp_path / 'one')
    launcher = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2']
    _run(launcher, data, without_dropout, 1, tmp_path / 'two')
    one = load_file(tmp_path / 'one' / '0.safetensors')
    for rank in range(2):
        two = load_file(tmp_path / 'two' / f'{rank}.safetensors')
        assert one.keys() == two.keys()
        for name, weights in one.items():
            torch.testing.assert_close(two[name], weights, rtol=1e-5, atol=1e-6, msg=name)
