"""What a run does without is known to the call that goes on with it, and to no other."""
import math

import pytest
import torch

from pyterrier_tasb import TasBalanced, Training
from pyterrier_tasb.training.fallbacks import Fallbacks


@pytest.fixture
def fallbacks(tmp_path):
    return lambda going_on=True: Fallbacks(tmp_path / 'fallbacks.json', going_on=going_on)


def test_nothing_is_done_without_until_memory_is_too_small(fallbacks):
    assert fallbacks().plain_from == math.inf and fallbacks().describe() == ''
    assert fallbacks().micro_batch_tokens(7, None) is None and fallbacks().micro_batch_tokens(7, 500) == 500


def test_a_halving_holds_from_its_batch_on(fallbacks):
    fallbacks().halve(4, 800)
    fallbacks().halve(6, 400)
    assert [fallbacks().micro_batch_tokens(batch, None) for batch in (3, 4, 5, 6, 9)] == [None, 800, 800, 400, 400]
    fallbacks().halve(5, 600)   # a call that went on from before batch 6
    assert [fallbacks().micro_batch_tokens(batch, None) for batch in (4, 5, 6)] == [800, 600, 600]


def test_what_is_done_without_is_said(fallbacks):
    fallbacks().capture_no_more(3)
    fallbacks().halve(4, 1800)
    assert fallbacks().plain_from == 3
    assert fallbacks().describe() == 'without captured steps from batch 3 on, 1,800 tokens at a time from batch 4 on'


def test_another_run_starts_with_everything(fallbacks):
    fallbacks().capture_no_more(3)
    fallbacks().halve(4, 800)
    assert fallbacks(going_on=False).describe() == '' == fallbacks().describe()


def test_a_damaged_file_is_named(fallbacks, tmp_path):
    (tmp_path / 'fallbacks.json').write_text('{}')
    with pytest.raises(ValueError, match=r'fallbacks\.json is damaged \(no plain_from, halvings\)'):
        fallbacks()


@pytest.mark.parametrize('checkpoints', [True, False])
def test_a_fit_keeps_to_those_of_the_run_it_goes_on_with(tiny_bert_dir, toy_results, toy_qrels, tmp_path, checkpoints,
                                                         capsys):
    """Without a checkpoint the call is a new run, whatever one before it did without."""
    tasb = TasBalanced(tiny_bert_dir, training=Training(steps=2, batch_size=6, clusters=2, save_every=1), amp='off')
    (tmp_path / 'checkpoints').mkdir()
    if checkpoints:   # of no use: training starts again, and its steps are done as they were
        (tmp_path / 'checkpoints' / 'checkpoint-1').mkdir()
    Fallbacks(tmp_path / 'fallbacks.json', going_on=False).halve(0, 200)
    asked = []
    tasb.encoder.register_forward_pre_hook(
        lambda module, args: asked.append(len(args[0].ids)) if torch.is_grad_enabled() else None)
    if checkpoints:
        with pytest.warns(UserWarning, match='checkpoint-1 is incomplete'):
            tasb.fit(toy_results, toy_qrels, work_dir=tmp_path, resume=True)
    else:
        tasb.fit(toy_results, toy_qrels, work_dir=tmp_path, resume=True)
    assert (max(asked) <= 200) == checkpoints
    assert ('200 tokens at a time from batch 0 on' in capsys.readouterr().err) == checkpoints
