"""N processes train on the batches of one process that accumulates N, and end with its weights."""
import os
import subprocess
import sys

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from pyterrier_tasb import TasBalanced, Training

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


TWO = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2']


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


def _check_going_on(data, model, out):
    """One process that accumulates two goes on with what two left, and none with other batches a step."""
    def fit(accumulation):
        tasb = TasBalanced(model, device='cpu', amp='off', training=Training(
            steps=5, batch_size=4, accumulation=accumulation, clusters=4, learning_rate=1e-3))
        return tasb.fit(pd.read_pickle(data / 'results'), pd.read_pickle(data / 'qrels'), work_dir=out / 'work',
                        resume=True)
    with pytest.raises(ValueError, match=r'batches a step \(2 there, 1 now\)'):
        fit(1)
    found, expected = fit(2).model.state_dict(), load_file(out / '0.safetensors')
    assert all(torch.equal(found[name], weights) for name, weights in expected.items())


def test_two_processes_end_with_the_weights_of_one_that_accumulates_two(data, without_dropout, tmp_path):
    _run([], data, without_dropout, 2, tmp_path / 'one')
    _run(TWO, data, without_dropout, 1, tmp_path / 'two')
    _check_going_on(data, without_dropout, tmp_path / 'two')
    one = load_file(tmp_path / 'one' / '0.safetensors')
    for rank in range(2):
        two = load_file(tmp_path / 'two' / f'{rank}.safetensors')
        assert one.keys() == two.keys()
        for name, weights in one.items():
            torch.testing.assert_close(two[name], weights, rtol=1e-5, atol=1e-6, msg=name)


STOPPING = '''
import sys
from pathlib import Path
import torch
from pyterrier_tasb import Training
from pyterrier_tasb._locks import rank
from pyterrier_tasb.training.trainer import train
values = iter([[.5, .4, .3, .2, .1], [.1, .2, .3, .4, .5]][rank()])   # alone, the second would never stop
module = torch.nn.Linear(2, 1)
record = train(module, range(99), lambda module, batch: (module(torch.ones(1, 2)).square().sum(), {}),
               Training(steps=5, eval_every=1, patience=2), output_dir=sys.argv[1], device=torch.device('cpu'),
               validate=lambda: {'nDCG@10': next(values)})
Path(sys.argv[1], f'ended-{rank()}').write_text(f'{record.steps} {record.best_step} {record.best_value}')
'''


def test_all_processes_stop_by_the_first_ones_validation(tmp_path):
    (tmp_path / 'script.py').write_text(STOPPING)
    done = subprocess.run([sys.executable, *TWO, str(tmp_path / 'script.py'), str(tmp_path / 'out')], text=True,
                          capture_output=True, timeout=120, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr[-3000:]
    assert [(tmp_path / 'out' / f'ended-{rank}').read_text() for rank in range(2)] == ['3 1 0.5'] * 2
