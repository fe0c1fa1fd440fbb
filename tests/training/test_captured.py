"""A step as one CUDA graph: the loss, the gradients and the weights of the plain path."""
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / 'encoding'))
from tiny_encoders import PACKABLE, encoder, ragged

from pyterrier_tasb import Encoder, TasBalanced, Training, fitting
from pyterrier_tasb.training import captured, checkpoints, step
from pyterrier_tasb.training.batches import TrainingBatch
from pyterrier_tasb.training.dual import dual_loss

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
SIZE = 4
TRAINING = Training(steps=6, batch_size=6, clusters=2, learning_rate=1e-3, log_every=1, save_every=3)


def batch(seed=0, teacher=True):
    """Queries are texts 0 to 3, passages the other eight; one of them comes twice, and one not at all."""
    generator = torch.Generator().manual_seed(seed)
    return TrainingBatch(ragged(), torch.arange(4), torch.tensor([4, 5, 6, 7]), torch.tensor([8, 9, 10, 8]),
                         torch.randn(SIZE, generator=generator),
                         torch.randn(SIZE, 2 * SIZE, generator=generator) if teacher else None, ('q',) * SIZE)


def loss_of(vectors, margin, in_batch):
    return dual_loss(*vectors.split(SIZE), margin, in_batch)


@pytest.mark.parametrize('tokens', [1, 2, 31, 33, 100, 4700, 38_144, 65_536])
def test_few_tokens_are_added_and_few_shapes_remain(tokens):
    found = captured.rounded(tokens)
    assert tokens <= found <= max(tokens + 1, tokens * 1.07) and captured.rounded(found) == found
    assert len({captured.rounded(n) for n in range(tokens, 2 * tokens)}) <= 34


def test_a_batch_in_the_shape_of_its_graph():
    tokens, values = ragged(), captured._inputs(batch(), encoder('roberta', 'auto'))
    bounds = values['bounds']
    assert len(bounds) == 3 * SIZE + 1 and len(values['ids']) == len(values['positions']) == captured.rounded(226)
    for i in range(len(tokens)):
        row = slice(bounds[i], bounds[i + 1])
        assert values['ids'][row].tolist() == tokens.take(np.array([i])).ids.tolist()
        assert values['positions'][row].tolist() == list(range(2, 2 + tokens.lengths[i]))   # RoBERTa's begin at 2
    assert (bounds[len(tokens):] == 226).all()
    for name in ('ids', 'positions'):
        order, begins = values[f'{name}_order'], values[f'{name}_bounds']
        found = [values[name][order[start:stop]].tolist() for start, stop in zip(begins, begins[1:]) if start < stop]
        assert all(len(set(some)) == 1 for some in found) and len(found) == len(set(values[name].tolist()))
        assert sorted(order.tolist()) == list(range(len(order)))


def test_a_text_longer_than_the_encoder_takes_is_refused():
    small = encoder('bert', 'auto').view(doc_max_length=40)
    with pytest.raises(ValueError, match=r'a text of \d+ tokens, where the encoder takes 40'):
        captured._inputs(batch(), small)


@pytest.mark.parametrize('name', PACKABLE)
def test_the_embeddings_of_ids_and_positions_are_found(name):
    found = captured._embeddings(encoder(name, 'auto').model)
    assert [module and len(module.weight) for module in found.values()] == [90, None if name == 'modernbert' else 80]


def test_without_a_gpu_nothing_is_captured():
    assert not encoder('bert', 'auto').captures


def test_the_layers_are_found_and_left_as_they_were():
    for name in PACKABLE:
        model = encoder(name, 'auto').model
        layers = captured._layers(model)
        assert len(layers) in (2, 3) and {type(layer).__name__ for layer in layers}
        with captured._compiled(model, wanted=True):
            assert all(layer._compiled_call_impl is not None for layer in layers)
        assert all(layer._compiled_call_impl is None for layer in layers)


def plain_gradients(loss, weights):
    return torch.autograd.grad(loss, weights, allow_unused=True)


@pytest.mark.parametrize('name', PACKABLE)
def test_weights_cast_at_once_give_what_autocast_gives(name):
    ours, tokens = encoder(name, 'auto', amp='bf16'), ragged()
    weights = [weights for weights in ours.parameters() if weights.requires_grad]
    halves = captured._Halves(ours)
    assert sum(some in halves.halves for some in weights) >= 12   # of two or three layers
    assert len(halves.joints) == (0 if name == 'modernbert' else 2)
    with torch.no_grad():
        for some in weights:
            some.add_(.01)

    def found(gradients):
        vectors = ours(tokens)
        gradients = gradients((vectors * torch.arange(32).sin()).sum(), weights)
        return [vectors, *(gradient.float() for gradient in gradients if gradient is not None)]
    expected = found(plain_gradients)
    with halves.used():
        halves.update()
        cast = found(halves.gradients)
    assert len(cast) == len(expected)
    one, other = (torch.cat([x.flatten() for x in some]) for some in (cast, expected))
    assert (one - other).norm() < .02 * other.norm()   # one product adds up in another order than three
    if name == 'modernbert':
        assert torch.equal(one, other)
    assert [weights for weights in ours.parameters() if weights.requires_grad] == weights
    assert not captured._Halves(encoder(name, 'auto', amp='off')).places


@pytest.mark.parametrize('pooling', ['cls', 'mean'])
@pytest.mark.parametrize('name', PACKABLE)
def test_one_product_gives_what_three_give(name, pooling, monkeypatch):
    ours, tokens = encoder(name, 'auto', pooling=pooling), ragged()
    weights = [weights for weights in ours.parameters() if weights.requires_grad]
    monkeypatch.setattr(captured, 'autocast_dtype', lambda amp, device: torch.float32)
    halves = captured._Halves(ours)
    with torch.no_grad():
        for some in weights:
            some.add_(.01)

    def found(gradients):
        vectors = ours(tokens)
        gradients = gradients((vectors * torch.arange(32).sin()).sum(), weights)
        return [vectors, *(gradient for gradient in gradients if gradient is not None)]
    expected, state = found(plain_gradients), list(ours.state_dict())
    with halves.used():
        halves.update()
        joint = found(halves.gradients)
    for one, other in zip(joint, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert list(ours.state_dict()) == state and all(map(torch.equal, found(plain_gradients), expected))


@pytest.fixture
def unable(monkeypatch):
    """A loss whose capture fails, as it does where there is no GPU, until the layers are not compiled."""
    monkeypatch.setattr(torch.cuda, 'graph_pool_handle', lambda: None)
    monkeypatch.setattr(torch.cuda, 'Stream', lambda device: None)
    tried = []

    def graph(self, values, joined):
        tried.append(self.compiled)
        raise OSError('no compiler')
    monkeypatch.setattr(captured.CapturedLoss, '_graph', graph)
    return captured.CapturedLoss(encoder('bert', 'auto'), loss_of, compiled=True), tried


def test_what_cannot_be_compiled_is_captured_without(unable):
    capture, tried = unable
    with pytest.warns(UserWarning, match=r'torch.compile cannot be used here \(OSError: no compiler\)'), \
            pytest.raises(captured.CaptureError, match='no compiler'):
        capture(batch())
    assert tried == [True, False]


def test_too_little_memory_is_for_the_trainer_to_handle(unable, monkeypatch):
    def graph(self, values, joined):
        raise torch.OutOfMemoryError('CUDA out of memory')
    monkeypatch.setattr(captured.CapturedLoss, '_graph', graph)
    with pytest.raises(torch.OutOfMemoryError) as error:
        unable[0](batch())
    assert error.value.__context__ is None   # what was made is free before the step is tried again

    def ended(self, values, joined):
        try:
            graph(self, values, joined)
        finally:
            raise RuntimeError('capture failed')
    monkeypatch.setattr(captured.CapturedLoss, '_graph', ended)
    with pytest.raises(torch.OutOfMemoryError):
        unable[0](batch())


def test_too_little_memory_first_ends_the_captures(unable, tiny_distilbert_dir, toy_results, toy_qrels, monkeypatch,
                                                   capsys):
    def graph(self, values, joined):
        raise torch.OutOfMemoryError('CUDA out of memory')
    monkeypatch.setattr(captured.CapturedLoss, '_graph', graph)
    monkeypatch.setattr(Encoder, 'captures', True)
    TasBalanced(tiny_distilbert_dir, training=TRAINING, amp='off', device='cpu').fit(toy_results, toy_qrels)
    said = capsys.readouterr().err
    assert said.count('going on without captured steps') == 1 and 'at a time' not in said


def test_too_little_memory_for_the_teacher_ends_the_captures(tiny_distilbert_dir, tmp_path, capsys):
    tasb = TasBalanced(tiny_distilbert_dir, training=TRAINING, amp='off', device='cpu')
    fit = fitting.Fit(tasb, tmp_path, resume=False)
    fit = fit.loss
    assert not fit.save_memory(2, None) and fit.fallbacks.plain_from > 6   # nothing that the student could give up
    fit._captured = captured.CapturedLoss.__new__(captured.CapturedLoss)
    assert fit.save_memory(3, batch()) and fit.fallbacks.plain_from == 3 and fit._captured is None
    fit._captured = captured.CapturedLoss.__new__(captured.CapturedLoss)
    assert fit.save_memory(2, None) and fit.fallbacks.plain_from == 1 and fit._captured is None
    assert 'going on without captured steps' in capsys.readouterr().err
    assert not fit.save_memory(2, None)


def test_what_cannot_be_captured_is_trained_without(unable, tiny_distilbert_dir, toy_results, toy_qrels, monkeypatch,
                                                    tmp_path):
    def trained(folder=None):
        tasb = TasBalanced(tiny_distilbert_dir, training=TRAINING, amp='off', device='cpu')
        tasb.fit(toy_results, toy_qrels, work_dir=folder)
        return tasb.model.state_dict()
    expected = trained()
    monkeypatch.setattr(Encoder, 'captures', True)
    with pytest.warns(UserWarning, match=r'cannot be captured as a CUDA graph here .* no compiler') as said:
        found = trained(tmp_path)
    assert sum('cannot be captured' in str(warning.message) for warning in said) == 1
    going_on = fitting.Fit(TasBalanced(tiny_distilbert_dir), tmp_path, resume=True)
    assert going_on.fallbacks.plain_from == 0
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


@on_a_gpu
@pytest.mark.parametrize('name, pooling, compiled', [
    *[(name, pooling, False) for name in PACKABLE for pooling in ('cls', 'mean')], ('distilbert', 'cls', True),
    ('bert', 'mean', True)])
def test_loss_and_gradients_are_those_of_the_plain_path(name, pooling, compiled):
    ours, plain = (encoder(name, 'auto', amp='bf16', pooling=pooling).to('cuda') for _ in range(2))
    assert ours.captures
    capture = captured.CapturedLoss(ours, loss_of, compiled=compiled)
    for seed, teacher in enumerate((True, False, True)):
        some = batch(seed, teacher)
        loss, parts = capture(some)
        loss.backward()
        expected, expected_parts = loss_of(plain(some.tokens)[some.rows.cuda()], some.margin, some.in_batch)
        expected.backward()
        torch.testing.assert_close(loss, expected, rtol=3e-2, atol=1e-2)
        assert parts.keys() == expected_parts.keys()
        both = [(a.grad, b.grad) for a, b in zip(ours.parameters(), plain.parameters())]
        assert all((a is None) == (b is None) for a, b in both)
        found, wanted = (torch.cat([grad.flatten() for grad in side if grad is not None]) for side in zip(*both))
        assert (found - wanted).norm() / wanted.norm() < 3e-2
        ours.zero_grad()
        plain.zero_grad()
    assert len(capture.graphs) == 2


@on_a_gpu
@pytest.mark.parametrize('compiled', [False, True])
def test_dropout_is_that_of_the_seed_whenever_the_graph_was_captured(compiled):
    def losses(capture, seeds):
        found = []
        for seed in seeds:
            torch.cuda.manual_seed(seed)
            found.append(capture(batch())[0].item())
        return found
    with torch.random.fork_rng([0]):
        early, late = (captured.CapturedLoss(encoder('distilbert', 'auto', amp='bf16').to('cuda').train(), loss_of,
                                             compiled=compiled) for _ in range(2))
        expected = losses(early, range(4))
        assert len(set(expected)) == 4
        assert losses(late, (2, 3)) == expected[2:] and losses(early, (1, 1)) == [expected[1]] * 2


@pytest.fixture
def fitted(tiny_distilbert_dir, toy_results, toy_qrels, tmp_path):
    def fit(name, prepare=lambda tasb: None, resume=False, **settings):
        tasb = TasBalanced(tiny_distilbert_dir, training=TRAINING.replace(**settings), amp='bf16', doc_max_length=60,
                           device='cuda')
        prepare(tasb)
        tasb.fit(toy_results, toy_qrels, work_dir=tmp_path / name, resume=resume)
        return tasb, {name: value.clone() for name, value in tasb.model.state_dict().items()}
    return fit


@on_a_gpu
def test_a_fit_on_a_gpu_is_captured_repeats_itself_and_goes_on(fitted, monkeypatch):
    captures = []
    plain = captured.CapturedLoss._capture
    monkeypatch.setattr(captured.CapturedLoss, '_capture',
                        lambda self, *args: captures.append(1) or plain(self, *args))
    whole, expected = fitted('whole')
    assert captures and torch.isfinite(torch.tensor([entry['loss'] for entry in whole.record['history']])).all()
    _, again = fitted('again')

    def stop_after_four(tasb):
        calls = []
        original = captured.CapturedLoss.__call__

        def counted(self, some):
            calls.append(1)
            if len(calls) > 4:
                raise RuntimeError('stop')
            return original(self, some)
        monkeypatch.setattr(captured.CapturedLoss, '__call__', counted)
    with monkeypatch.context():
        with pytest.raises(RuntimeError, match='stop'):
            fitted('cut', stop_after_four)
    monkeypatch.undo()
    _, resumed = fitted('cut', resume=True)
    for name, value in expected.items():
        assert torch.equal(value, again[name]), name
        assert torch.equal(value, resumed[name]), name


@on_a_gpu
def test_a_fit_on_a_gpu_learns_what_the_plain_path_learns(fitted, monkeypatch):
    ours, _ = fitted('captured', learning_rate=1e-4, steps=12)
    monkeypatch.setattr(Encoder, 'captures', False)
    plain, _ = fitted('plain', learning_rate=1e-4, steps=12)
    ours, plain = (np.mean([entry['loss'] for entry in tasb.record['history'] if 'loss' in entry])
                   for tasb in (ours, plain))
    assert ours == pytest.approx(plain, rel=.2)   # they drop other elements


@on_a_gpu
@pytest.mark.parametrize('capture', [True, False])
def test_on_a_gpu_a_bad_step_moves_no_weights(fitted, monkeypatch, capture):
    if not capture:
        monkeypatch.setattr(Encoder, 'captures', False)
    plain = step.dual_loss

    def nan(query, pos, neg, margin, teacher, **options):
        loss, parts = plain(query, pos, neg, margin, teacher, **options)
        return loss * torch.where(margin.sum().isfinite(), 1.0, float('nan')), parts
    monkeypatch.setattr(step, 'dual_loss', nan)
    batches = fitting.TrainingBatches.__getitem__

    def poisoned(self, step):
        some = batches(self, step)
        if step == 4:
            some.margin[0] = float('inf')
        return some
    monkeypatch.setattr(fitting.TrainingBatches, '__getitem__', poisoned)
    restore, at_once = checkpoints.restore, []

    def remember(module, folder):
        at_once.append({name: value.clone() for name, value in module.state_dict().items()})
        restore(module, folder)
        at_once.append({name: value.clone() for name, value in module.state_dict().items()})
    monkeypatch.setattr(checkpoints, 'restore', remember)
    with pytest.raises(ValueError, match='the loss is nan at step 5'):
        # save_every: nothing reads the loss of step 5 before step 6 does; calibration reads batches too
        fitted('bad', log_every=100, save_every=4, teacher_scale=1.0)
    before, after = at_once
    assert all(torch.equal(value, after[name]) for name, value in before.items())
