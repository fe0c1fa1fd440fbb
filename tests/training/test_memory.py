"""Too little GPU memory halves the micro-batch and changes nothing else. What raises here is a hook in its place."""
import pytest
import torch

from pyterrier_tasb import TasBalanced, Training

TRAINING = Training(steps=4, batch_size=6, clusters=2, learning_rate=1e-3, accumulation=2, log_every=1)
SIZE = 18   # texts of a batch


@pytest.fixture
def fitted(tiny_bert_dir, toy_results, toy_qrels, tmp_path):
    def fit(name, prepare=lambda tasb: None, dropout=0.0, resume=False, **settings):
        tasb = TasBalanced(tiny_bert_dir, training=TRAINING.replace(**settings), amp='off', doc_max_length=60)
        for module in tasb.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = dropout
        prepare(tasb)
        tasb.fit(toy_results, toy_qrels, work_dir=tmp_path / name, resume=resume)
        return tasb, dict(tasb.model.state_dict())
    return fit


def room_for(limit, asked):
    """The device has memory for `limit` tokens with their activations."""
    def hook(module, args):
        n = len(args[0].ids)
        if torch.is_grad_enabled():
            asked.append(n)
            if n > limit:
                raise torch.OutOfMemoryError('CUDA out of memory')
    return lambda tasb: tasb.encoder.register_forward_pre_hook(hook)


def close(ours, theirs, **tolerance):
    """Equal but for key biases: their gradient is zero, and the optimiser scales up what rounding makes of it."""
    for name, value in theirs.items():
        if name.endswith('key.bias') and tolerance['atol']:
            continue
        torch.testing.assert_close(ours[name], value, **tolerance)


def test_memory_that_is_too_small_gives_the_same_weights(fitted, capsys):
    _, expected = fitted('roomy')
    asked = []
    tasb, found = fitted('tight', room_for(300, asked))
    close(found, expected, atol=1e-5, rtol=0)
    halvings = sum(n > 300 for n in asked)
    assert 1 <= halvings < 5 and min(asked) < 300
    said = capsys.readouterr().err
    assert said.count('out of GPU memory') == halvings and 'micro_batch_tokens=' in said
    assert [entry['step'] for entry in tasb.record['history'] if 'loss' in entry] == [1, 2, 3, 4]


def test_the_losses_that_are_logged_count_no_batch_twice(fitted):
    roomy, _ = fitted('roomy')
    tight, _ = fitted('tight', room_for(300, []))
    for ours, theirs in zip(tight.record['history'], roomy.record['history'], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize('at', [1, 3, 6])
def test_memory_that_ends_in_the_backward_pass_leaves_no_half_gradient(fitted, at):
    _, expected = fitted('roomy')
    calls = []

    def prepare(tasb):
        def hook(grad):
            calls.append(1)
            if len(calls) == at:
                raise torch.OutOfMemoryError('CUDA out of memory')
        next(tasb.model.parameters()).register_hook(hook)
    _, found = fitted('tight', prepare)
    assert len(calls) > 8
    close(found, expected, atol=1e-5, rtol=0)


def test_dropout_is_that_of_the_batch(fitted):
    """A run that had to halve equals, bit for bit, one that had started with what it ended with."""
    asked = []
    tight, found = fitted('tight', room_for(300, asked), dropout=.3)
    before = [n for n in asked if n > 300]
    limit = before[0] // 2
    assert limit <= 300 and len(before) == 1, 'the toy batches must need one halving for this comparison'
    _, expected = fitted('started so', dropout=.3, micro_batch_tokens=limit)
    close(found, expected, atol=0, rtol=0)


@pytest.mark.parametrize('at', [3, 4])
def test_a_resumed_run_halves_where_the_uninterrupted_one_did(fitted, at):
    _, expected = fitted('whole', room_for(300, []), dropout=.3, save_every=1)
    steps = []

    def room_until(tasb):
        room_for(300, [])(tasb)

        def hook(module, args, out):
            if torch.is_grad_enabled():
                out.register_hook(lambda grad: steps.append(1))
                if len(steps) == 2 * (at - 1):   # two batches a step
                    raise KeyboardInterrupt
        tasb.encoder.register_forward_hook(hook)
    with pytest.raises(KeyboardInterrupt):
        fitted('cut', room_until, dropout=.3, save_every=1)
    asked = []
    _, found = fitted('cut', room_for(300, asked), dropout=.3, save_every=1, resume=True)
    close(found, expected, atol=0, rtol=0)


def test_a_text_that_is_too_long_by_itself_ends_the_run(fitted):
    with pytest.raises(torch.OutOfMemoryError):
        fitted('hopeless', room_for(3, []))
