"""The loop on a module of a few weights: exact, resumable, and quiet towards the rest of the process."""
import gc
import os
import shutil

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import TrainerCallback

from pyterrier_tasb import Training
from pyterrier_tasb._files import read_json
from pyterrier_tasb.training import checkpoints, guard, trainer
from pyterrier_tasb.training.checkpoints import newest_checkpoint
from pyterrier_tasb.training.guard import NotFiniteError
from pyterrier_tasb.training.stream import BatchStream
from pyterrier_tasb.training.trainer import train

FAST = Training(steps=10, learning_rate=1e-2, save_every=2, log_every=2, seed=3)
CPU = torch.device('cpu')


@pytest.fixture(autouse=True, scope='module')
def _quick_collections():
    """Every run ends with a garbage collection, which need not look at all modules that are loaded."""
    gc.freeze()
    yield
    gc.unfreeze()


class StopError(Exception):
    """Stands for whatever may end a run."""


class Batch:
    def __init__(self, number):
        rng = np.random.Generator(np.random.Philox(key=[5, number]))
        self.number = number
        self.x = torch.from_numpy(rng.normal(size=(6, 4)).astype(np.float32))

    def describe(self):
        return f'batch {self.number}'


class Batches:
    """Batches that note which of them were asked for."""

    def __init__(self):
        self.asked = []

    def __getitem__(self, number):
        self.asked.append(number)
        return Batch(number)


def network(dropout=0.0):
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(dropout), torch.nn.Linear(8, 1))


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def equal(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def squares(module, batch):
    loss = ((module(batch.x)[:, 0] - batch.x.sum(1)) ** 2).mean()
    return loss, {'squares': loss, 'number': torch.tensor(float(batch.number))}


def failing(at, error=StopError):
    """The loss, until batch `at`."""
    def loss(module, batch):
        if batch.number == at:
            raise error
        return squares(module, batch)
    return loss


def run(folder, training=FAST, loss=squares, module=None, batches=None, dropout=0.0, **options):
    """A trained module."""
    module = network(dropout) if module is None else module
    train(module, batches or Batches(), loss, training, output_dir=folder, device=CPU, **options)
    return module


class At(TrainerCallback):
    """Copies of the weights after every step."""

    def __init__(self):
        self.after = {}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.after[state.global_step] = weights(model)


def test_the_first_step_moves_the_weights_by_the_warm_ups_rate(tmp_path):
    training, seen = FAST.replace(warmup=.5, max_grad_norm=0), At()
    before = weights(network())
    run(tmp_path, training, extra_callbacks=(seen,))
    moved = (seen.after[1]['2.bias'] - before['2.bias']).abs().item()
    assert moved == pytest.approx(training.learning_rate / 5, rel=1e-3)   # Adam's first step is the rate


def test_it_learns(tmp_path):
    module = run(tmp_path, FAST.replace(steps=200, save_every=200, learning_rate=5e-2))
    assert squares(module, Batch(999))[0] < .1 * squares(network(), Batch(999))[0]


def test_the_same_seed_gives_the_same_weights_and_dropout_follows_the_seed(tmp_path):
    one, again = (run(tmp_path / name, dropout=.5) for name in ('one', 'again'))
    other = run(tmp_path / 'other', FAST.replace(seed=4), dropout=.5)
    assert equal(weights(one), weights(again)) and not equal(weights(one), weights(other))


@pytest.mark.parametrize('accumulation', [1, 2])
def test_a_step_averages_over_its_batches(tmp_path, accumulation):
    """One step of plain gradients by hand, through Adam's own formula, gives the trainer's weights."""
    training = FAST.replace(steps=1, accumulation=accumulation, max_grad_norm=0, warmup=0)
    ours, by_hand = run(tmp_path, training), network()
    optimiser = torch.optim.AdamW(by_hand.parameters(), lr=training.learning_rate, weight_decay=0)
    sum(squares(by_hand, Batch(number))[0] for number in range(accumulation)).div(accumulation).backward()
    optimiser.step()
    for a, b in zip(ours.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_decay_leaves_out_biases_and_layer_norms(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8))
    torch.nn.init.ones_(module[0].bias)
    before = weights(module)
    training = FAST.replace(steps=1, warmup=0, weight_decay=.5)
    run(tmp_path, training, loss=lambda module, batch: (0 * module(batch.x).sum(), {}), module=module)
    decayed = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert decayed == {'0.weight'}


@pytest.mark.parametrize('accumulation', [1, 3])
def test_batches_that_are_made_ahead_are_the_same(tmp_path, accumulation, monkeypatch):
    training = FAST.replace(accumulation=accumulation)
    expected, batches = weights(run(tmp_path / 'one', training)), Batches()
    monkeypatch.setattr(trainer, '_AHEAD', {'cpu': 2})
    assert equal(weights(run(tmp_path / 'ahead', training, batches=batches)), expected)
    assert batches.asked == list(range(10 * accumulation))
    with pytest.raises(StopError):
        run(tmp_path / 'failing', training, loss=failing(4))

    class Broken(Batches):
        def __getitem__(self, number):
            if number == 6:
                raise StopError
            return super().__getitem__(number)
    with pytest.raises(StopError):
        run(tmp_path / 'broken', training, batches=Broken())


@pytest.mark.parametrize('world_size', [1, 2, 3])
def test_a_process_makes_only_its_own_batches_ahead(world_size):
    batches, n = Batches(), 12
    steps = BatchStream(batches, n, ahead=2, stride=world_size)
    for number in range(1, n, world_size):
        assert steps[number][1].number == number
    steps.close()
    assert batches.asked == list(range(1, n, world_size)) and not steps._made


@pytest.mark.parametrize('ahead', [0, 2])
@pytest.mark.parametrize('helps', [True, False])
def test_a_batch_that_memory_is_too_small_for_is_made_again_with_more(helps, ahead):
    class Tight(Batches):
        def __getitem__(self, number):
            if number >= 3 and not saved:
                raise torch.OutOfMemoryError('CUDA out of memory')
            return super().__getitem__(number)

    def save_memory(first, batch):
        steps._pool.submit(int).result()   # what was asked for ahead has failed by now
        if helps:
            saved.append((first, batch))
        return helps
    saved, steps = [], BatchStream(Tight(), 6, ahead, save_memory=save_memory)
    if helps:
        assert [steps[number][1].number for number in range(6)] == list(range(6)) and saved == [(3, None)]
    else:
        with pytest.raises(torch.OutOfMemoryError, match=r'memory \(in the in-batch teacher.*TeacherScores'):
            [steps[number] for number in range(6)]
    steps.close()


@pytest.mark.parametrize('accumulation', [1, 2])
def test_every_batch_is_asked_for_once_in_order(tmp_path, accumulation):
    batches = Batches()
    run(tmp_path, FAST.replace(accumulation=accumulation), batches=batches)
    assert batches.asked == list(range(10 * accumulation))


@pytest.mark.parametrize('dropout', [0.0, .5])
@pytest.mark.parametrize('accumulation', [1, 2])
@pytest.mark.parametrize('step', [1, 4, 7])
def test_a_resumed_run_ends_with_the_uninterrupted_runs_weights(tmp_path, step, accumulation, dropout):
    training = FAST.replace(accumulation=accumulation)
    whole = run(tmp_path / 'whole', training, dropout=dropout)
    with pytest.raises(StopError):
        run(tmp_path / 'cut', training, failing(step * accumulation), dropout=dropout)
    resumed = run(tmp_path / 'cut', training, dropout=dropout, resume=True)
    assert equal(weights(resumed), weights(whole))


@pytest.mark.parametrize('accumulation', [1, 3])
def test_a_resumed_run_touches_no_earlier_batch(tmp_path, accumulation, capsys):
    training, batches = FAST.replace(accumulation=accumulation), Batches()
    with pytest.raises(StopError):
        run(tmp_path, training, failing(7 * accumulation))
    run(tmp_path, training, batches=batches, resume=True)
    assert sorted(set(batches.asked)) == list(range(6 * accumulation, 10 * accumulation))
    said = capsys.readouterr().err
    assert 'resumed at step 6 of 10' in said and f'batch {6 * accumulation}' in said


def test_resuming_where_nothing_was_saved_begins_anew(tmp_path):
    assert equal(weights(run(tmp_path / 'cut', resume=True)), weights(run(tmp_path / 'whole')))


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    finished, batches = run(tmp_path), Batches()
    assert equal(weights(run(tmp_path, batches=batches, resume=True)), weights(finished))
    assert not batches.asked


@pytest.mark.parametrize('accumulation, step', [(1, 4), (2, 2)])
def test_a_loss_that_is_no_number_names_its_step_and_batch(tmp_path, accumulation, step):
    def nan(module, batch):
        loss, parts = squares(module, batch)
        return loss * (float('nan') if batch.number == 3 else 1.0), parts
    with pytest.raises(NotFiniteError, match=rf'the loss is nan at step {step} \(batch 3\)'):
        run(tmp_path, FAST.replace(accumulation=accumulation), nan)
    with pytest.raises(NotFiniteError, match='checkpoint-2' if accumulation == 1 else 'none yet'):
        run(tmp_path / 'again', FAST.replace(accumulation=accumulation), nan)


def test_a_loss_that_explodes_names_its_step_and_batch(tmp_path):
    def exploding(module, batch):
        loss, parts = squares(module, batch)
        return loss * (1e6 if batch.number == 5 else 1.0), parts
    with pytest.raises(NotFiniteError, match=r'the loss exploded to .* at step 6 \(batch 5\).*checkpoint-4'):
        run(tmp_path, loss=exploding)


def test_losses_of_very_different_sizes_explode_nothing(tmp_path):
    def uneven(module, batch):
        loss, parts = squares(module, batch)
        return loss * (1e-6 if batch.number < 5 else 1.0), parts
    run(tmp_path, loss=uneven)


@pytest.mark.parametrize('at', [2, 3, 9])
def test_gradients_that_are_no_numbers_never_reach_a_checkpoint(tmp_path, at):
    """The loss is finite, its gradient is not."""
    def root(module, batch):
        loss, parts = squares(module, batch)
        return loss + (0.0 * loss).sqrt() if batch.number == at else loss, parts
    with pytest.raises(NotFiniteError, match=rf'gradients of step {at + 1} \(batch {at}\) are NaN'):
        run(tmp_path, loss=root)
    newest = newest_checkpoint(tmp_path)
    assert newest == tmp_path / f'checkpoint-{at // 2 * 2}'
    assert all(torch.isfinite(value).all() for value in load_file(newest / 'model.safetensors').values())


def test_weights_that_are_no_numbers_never_reach_a_checkpoint(tmp_path):
    with pytest.raises(NotFiniteError, match='step 1 made weights NaN or infinite; the last checkpoint is none yet'):
        run(tmp_path, FAST.replace(learning_rate=1e39, save_every=1))


def test_half_precision_without_a_gpu_does_not_learn(tmp_path):
    with pytest.raises(ValueError, match="amp='fp16' trains on a GPU only"):
        run(tmp_path, amp='fp16')


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_half_precision_scales_small_losses(tmp_path):
    def small(module, batch):
        with torch.autocast('cuda', torch.float16):
            loss = ((module(batch.x.cuda())[:, 0].float() - batch.x.sum(1).cuda()) ** 2).mean() * 1e-7
        return loss, {}
    module = network().cuda()
    before = weights(module)
    train(module, Batches(), small, FAST, output_dir=tmp_path, device=torch.device('cuda', 0), amp='fp16')
    assert all((value != before[name]).any() for name, value in weights(module).items())


def test_after_numbers_that_are_none_the_weights_are_those_of_the_checkpoint(tmp_path):
    def nan(module, batch):
        loss, parts = squares(module, batch)
        return loss * (float('nan') if batch.number == at else 1.0), parts
    for at, kept in ((5, 'checkpoint-4'), (1, 'start')):
        module = network()
        with pytest.raises(NotFiniteError):
            run(tmp_path / kept, loss=nan, module=module)
        assert equal(weights(module), load_file(tmp_path / kept / kept / 'model.safetensors'))


@pytest.mark.parametrize('where', [set(), {'cpu'}], ids=['at once', 'a step later'])
@pytest.mark.parametrize('factor, said', [(float('nan'), 'loss is nan at step 4'), (1e9, 'loss exploded .* step 4')])
def test_a_bad_step_moves_no_weights_whenever_its_loss_is_read(tmp_path, monkeypatch, where, factor, said):
    monkeypatch.setattr(guard, '_LATE', where)
    before, after, steps = [], [], []

    def bad(module, batch):
        steps.append(batch.number)
        if batch.number == 3:
            before.append(weights(module))
        loss, parts = squares(module, batch)
        return loss * (factor if batch.number == 3 else 1.0), parts
    monkeypatch.setattr(trainer.checkpoints, 'restore', lambda module, folder: after.append(weights(module)))
    with pytest.raises(NotFiniteError, match=said):
        run(tmp_path, loss=bad, training=FAST.replace(log_every=3, save_every=100))
    assert equal(before[0], after[0]) and steps[-1] == (4 if where else 3)


@pytest.mark.parametrize('again', ['the same module', 'a new one'])
def test_a_run_that_ended_before_its_first_checkpoint_begins_again_where_it_began(tmp_path, again):
    whole, module = run(tmp_path / 'whole'), network()
    with pytest.raises(StopError):
        run(tmp_path / 'cut', loss=failing(1), module=module)
    assert not equal(weights(module), weights(network()))
    module = module if again == 'the same module' else network()
    assert equal(weights(run(tmp_path / 'cut', module=module, resume=True)), weights(whole))


def test_damaged_weights_of_the_beginning_are_refused(tmp_path):
    with pytest.raises(StopError):
        run(tmp_path, loss=failing(1))
    flip(tmp_path / 'start' / 'model.safetensors')
    with pytest.raises(ValueError, match='that training began with, is damaged'):
        run(tmp_path, resume=True)


def truncate(file):
    with open(file, 'r+b') as stream:
        stream.truncate(file.stat().st_size // 2)


def flip(file):
    blob = bytearray(file.read_bytes())
    blob[len(blob) // 2] ^= 1
    file.write_bytes(blob)


@pytest.mark.parametrize('harm', [truncate, flip, os.remove], ids=['truncated', 'flipped', 'removed'])
@pytest.mark.parametrize('file', ['model.safetensors', 'optimizer.pt', 'trainer_state.json', 'complete.json'])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, file, harm):
    with pytest.raises(StopError):
        run(tmp_path, loss=failing(7))
    harm(tmp_path / 'checkpoint-6' / file)
    with pytest.warns(UserWarning, match='checkpoint-6 is incomplete or damaged and is passed over'):
        assert newest_checkpoint(tmp_path) == tmp_path / 'checkpoint-4'


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one_and_writes_it_anew(tmp_path):
    whole = run(tmp_path / 'whole')
    folder = tmp_path / 'cut'
    with pytest.raises(StopError):
        run(folder, loss=failing(7))
    truncate(folder / 'checkpoint-6' / 'optimizer.pt')
    with pytest.warns(UserWarning, match='passed over'), pytest.raises(StopError):
        run(folder, loss=failing(7), resume=True)
    assert newest_checkpoint(folder) == folder / 'checkpoint-6'
    assert equal(weights(run(folder, resume=True)), weights(whole))


@pytest.mark.parametrize('sums', ['{}', '[]', 'null', '{"model.safetensors": "0"}'])
def test_a_checkpoint_that_vouches_for_nothing_is_no_checkpoint(tmp_path, sums):
    run(tmp_path)
    (tmp_path / 'checkpoint-10' / 'complete.json').write_text(sums)
    (tmp_path / 'checkpoint-best').mkdir()
    with pytest.warns(UserWarning, match='checkpoint-10 is incomplete'):
        assert newest_checkpoint(tmp_path) == tmp_path / 'checkpoint-8'


def test_a_run_with_checkpoints_is_not_written_over_without_resume(tmp_path):
    run(tmp_path)
    kept = (tmp_path / 'checkpoint-10' / 'model.safetensors').read_bytes()
    with pytest.raises(ValueError, match='resume=True'):
        run(tmp_path)
    assert (tmp_path / 'checkpoint-10' / 'model.safetensors').read_bytes() == kept


class Validation:
    """Gives these values, one after the other, and notes how it found the module."""

    def __init__(self, module, values):
        self.module, self.values, self.modes, self.weights = module, iter(values), [], []

    def __call__(self):
        self.modes.append((self.module.training, torch.is_grad_enabled()))
        self.weights.append(weights(self.module))
        return {'nDCG@10': next(self.values)}


@pytest.mark.parametrize('patience_from, last', [(0, 4), (6, 6), (99, 10)])
def test_training_stops_after_validations_without_gain_and_keeps_the_best_weights(tmp_path, patience_from, last):
    module, seen = network(dropout=.5), At()
    validation = Validation(module, [.1, .5, .4, .3, .2, .1, .1, .1, .1, .1])
    record = train(module, Batches(), squares, FAST.replace(eval_every=1, patience=2, patience_from=patience_from),
                   output_dir=tmp_path, device=CPU, validate=validation, extra_callbacks=(seen,))
    assert (record.steps, record.best_step, record.best_value) == (last, 2, .5)
    assert max(seen.after) == last and equal(weights(module), seen.after[2])
    assert not equal(seen.after[2], seen.after[last])


def test_without_patience_all_steps_are_done_and_the_best_weights_kept(tmp_path):
    module, seen = network(), At()
    record = train(module, Batches(), squares, FAST.replace(eval_every=2), output_dir=tmp_path, device=CPU,
                   validate=Validation(module, [.1, .2, .7, .3, .4]), extra_callbacks=(seen,))
    assert (record.steps, record.best_step) == (10, 6) and equal(weights(module), seen.after[6])


@pytest.mark.parametrize('moved', [False, True], ids=['in place', 'moved'])
def test_the_best_weights_of_before_an_interruption_are_kept(tmp_path, moved):
    module, seen, training = network(), At(), FAST.replace(eval_every=2)
    with pytest.raises(StopError):
        train(module, Batches(), failing(5), training, output_dir=tmp_path / 'here', device=CPU,
              validate=Validation(module, [.9, .2]), extra_callbacks=(seen,))
    folder = tmp_path / 'here'
    if moved:
        folder = shutil.move(folder, tmp_path / 'there')
    module = network()
    record = train(module, Batches(), squares, training, output_dir=folder, device=CPU, resume=True,
                   validate=Validation(module, [.3, .4, .5]))
    assert (record.steps, record.best_step) == (10, 2) and equal(weights(module), seen.after[2])


def test_damaged_best_weights_are_trained_again(tmp_path):
    module, seen, training = network(), At(), FAST.replace(eval_every=2)
    with pytest.raises(StopError):
        train(module, Batches(), failing(7), training, output_dir=tmp_path, device=CPU,
              validate=Validation(module, [.1, .9, .2]), extra_callbacks=(seen,))
    flip(tmp_path / 'checkpoint-4' / 'model.safetensors')
    module = network()
    with pytest.warns(UserWarning, match='checkpoint-4 is incomplete or damaged'):
        record = train(module, Batches(), squares, training, output_dir=tmp_path, device=CPU, resume=True,
                       validate=Validation(module, [.1, .9, .2, .3, .4]))
    assert (record.steps, record.best_step) == (10, 4) and equal(weights(module), seen.after[4])


def test_best_weights_that_are_damaged_meanwhile_are_not_loaded(tmp_path):
    module = network()

    def validate():
        if (tmp_path / 'checkpoint-8').exists():
            flip(tmp_path / 'checkpoint-2' / 'model.safetensors')
            return {'nDCG@10': .1}
        return {'nDCG@10': .9 if not (tmp_path / 'checkpoint-2').exists() else .2}
    with pytest.raises(ValueError, match='checkpoint-2, the checkpoint with the best weights, is damaged'):
        train(module, Batches(), squares, FAST.replace(eval_every=2), output_dir=tmp_path, device=CPU,
              validate=validate)


@pytest.mark.parametrize('at', [3, 4, 5])
def test_a_resumed_run_stops_where_an_uninterrupted_one_does(tmp_path, at):
    values, training = [.1, .5, .4, .3, .2, .1, .9, .9, .9, .9], FAST.replace(eval_every=1, patience=4)

    def fit(folder, loss, values, **options):
        module = network()
        record = train(module, Batches(), loss, training, output_dir=folder, device=CPU,
                       validate=Validation(module, values), **options)
        return weights(module), record.steps, record.best_step
    whole = fit(tmp_path / 'whole', squares, values)
    with pytest.raises(StopError):
        fit(tmp_path / 'cut', failing(at), values)
    resumed = fit(tmp_path / 'cut', squares, values[at:], resume=True)
    assert resumed[1:] == whole[1:] and equal(resumed[0], whole[0])
    assert whole[1:] == (6, 2)


def test_validation_sees_the_module_in_evaluation_mode_and_training_goes_on_in_training_mode(tmp_path):
    module, modes = network(dropout=.5), []
    validation = Validation(module, [.1] * 5)

    def loss(module, batch):
        modes.append(module.training)
        return squares(module, batch)
    train(module, Batches(), loss, FAST.replace(eval_every=2), output_dir=tmp_path, device=CPU, validate=validation)
    assert validation.modes == [(False, False)] * 5 and modes == [True] * 10
    assert not module.training


def test_validation_does_not_change_what_is_learnt(tmp_path):
    module, seen = network(dropout=.5), At()

    def validate():
        torch.rand(3)
        return {'nDCG@10': .5}
    train(module, Batches(), squares, FAST.replace(eval_every=2), output_dir=tmp_path / 'with', device=CPU,
          validate=validate, extra_callbacks=(seen,))
    assert equal(seen.after[10], weights(run(tmp_path / 'without', dropout=.5)))


@pytest.mark.parametrize('error', [StopError, KeyboardInterrupt])
def test_the_module_is_left_in_evaluation_mode_after_an_exception(tmp_path, error):
    module = network(dropout=.5)
    with pytest.raises(error):
        run(tmp_path, loss=failing(3, error), module=module)
    assert not module.training and not any(part.training for part in module.modules())


@pytest.mark.parametrize('at, step, checkpoint', [(1, 1, 'none yet'), (5, 5, 'checkpoint-4')])
def test_an_interrupt_says_where_it_was_and_how_to_go_on(tmp_path, capsys, at, step, checkpoint):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, loss=failing(at, KeyboardInterrupt), desc='Learning')
    said = capsys.readouterr().err
    assert f'Learning: interrupted at step {step}' in said and checkpoint in said and 'resume=True' in said


def test_an_interrupt_promises_nothing_where_nothing_is_kept(tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, loss=failing(5, KeyboardInterrupt), kept=False)
    said = capsys.readouterr().err
    assert 'interrupted at step 5' in said and 'work_dir=' in said and 'checkpoint' not in said


@pytest.mark.parametrize('ends', ['well', 'with an error'])
def test_the_process_is_left_as_it_was(tmp_path, no_global_rng_change, monkeypatch, ends):
    verbosity = transformers.utils.logging.get_verbosity()
    monkeypatch.setenv('A_VARIABLE', 'mine')

    def loss(module, batch):
        os.environ['A_VARIABLE'] = 'yours'
        os.environ['ANOTHER_VARIABLE'] = 'new'
        np.random.rand()
        return squares(module, batch) if ends == 'well' else failing(3)(module, batch)

    def state():
        return (dict(os.environ), transformers.utils.logging.get_verbosity(), torch.get_num_threads(),
                torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(), torch.get_default_dtype())
    before = state()
    with no_global_rng_change():
        if ends == 'well':
            run(tmp_path, loss=loss, dropout=.5)
        else:
            with pytest.raises(StopError):
                run(tmp_path, loss=loss, dropout=.5)
    assert state() == before and before[1] == verbosity


def test_the_log_has_the_loss_its_parts_and_the_rate(tmp_path):
    module = network()
    record = train(module, Batches(), squares, FAST.replace(eval_every=5), output_dir=tmp_path, device=CPU,
                   validate=Validation(module, [.1, .2]))
    logged = [entry for entry in record.history if 'loss' in entry]
    assert [entry['step'] for entry in logged] == [2, 4, 6, 8, 10]
    assert [entry['number'] for entry in logged] == [.5, 2.5, 4.5, 6.5, 8.5]   # means over the batches since the last
    assert all(entry['loss'] == pytest.approx(entry['squares'], abs=1e-3) and entry['learning_rate'] >= 0
               for entry in logged)
    assert [(entry['step'], entry['nDCG@10']) for entry in record.history if 'nDCG@10' in entry] == [(5, .1), (10, .2)]


def test_a_module_without_validation_has_no_best_step(tmp_path):
    record = train(network(), Batches(), squares, FAST, output_dir=tmp_path, device=CPU)
    assert record.best_step is None and record.best_value is None and record.steps == 10


def test_checkpoints_hold_no_pickled_generator_states(tmp_path):
    run(tmp_path)
    sums = read_json(tmp_path / 'checkpoint-10' / 'complete.json')
    assert 'model.safetensors' in sums and not [name for name in sums if name.startswith('rng_state')]


@pytest.mark.parametrize('values', [[.5, .4, .6, .1, .1], [.5, .4, .3, .1, .1]], ids=['new best', 'old best'])
def test_a_run_that_ends_before_its_checkpoint_is_whole_goes_on_from_the_one_before(tmp_path, monkeypatch, values):
    training, sealed = FAST.replace(eval_every=2), checkpoints.seal
    whole = network()
    expected = train(whole, Batches(), squares, training, output_dir=tmp_path / 'whole', device=CPU,
                     validate=Validation(whole, values))

    def seal(folder):
        if folder.name == 'checkpoint-6':
            raise StopError
        sealed(folder)
    monkeypatch.setattr(checkpoints, 'seal', seal)
    module = network()
    with pytest.raises(StopError):
        train(module, Batches(), squares, training, output_dir=tmp_path / 'cut', device=CPU,
              validate=Validation(module, values))
    monkeypatch.setattr(checkpoints, 'seal', sealed)
    module, batches = network(), Batches()
    with pytest.warns(UserWarning, match='checkpoint-6 is incomplete or damaged'):
        record = train(module, batches, squares, training, output_dir=tmp_path / 'cut', device=CPU, resume=True,
                       validate=Validation(module, values[2:]))
    assert min(batches.asked) == 4
    assert record == expected and equal(weights(module), weights(whole))


def test_without_validation_a_tenth_of_the_steps_is_saved_whatever_the_validations_interval(tmp_path):
    run(tmp_path, FAST.replace(steps=20, save_every=None, eval_every=5))
    assert {folder.name for folder in tmp_path.glob('checkpoint-*')} == {'checkpoint-18', 'checkpoint-20'}


def test_checkpoints_that_are_kept_have_the_best_that_they_remember(tmp_path):
    module = network()
    train(module, Batches(), squares, FAST.replace(eval_every=1), output_dir=tmp_path, device=CPU,
          validate=Validation(module, [.9, .1, .1, .1, .1, .1, .1, .1, .1, .95]))
    assert {folder.name for folder in tmp_path.glob('checkpoint-*')} == {
        'checkpoint-1', 'checkpoint-9', 'checkpoint-10'}
    flip(tmp_path / 'checkpoint-10' / 'model.safetensors')
    with pytest.warns(UserWarning, match='checkpoint-10 is incomplete'):
        assert newest_checkpoint(tmp_path).name == 'checkpoint-9'


def test_a_run_that_stopped_early_stays_where_it_stopped(tmp_path, capsys):
    training, module = FAST.replace(eval_every=1, patience=2), network()
    expected = train(module, Batches(), squares, training, output_dir=tmp_path, device=CPU,
                     validate=Validation(module, [.5, .4, .3]))
    for _ in range(2):
        again, batches = network(), Batches()
        record = train(again, batches, squares, training, output_dir=tmp_path, device=CPU, resume=True,
                       validate=Validation(again, []))
        assert (record.steps, record.best_step, record.best_value) == (3, 1, .5) and not batches.asked
        assert record.history == expected.history and equal(weights(again), weights(module))
        assert 'resumed at step 3 of 10' in (said := capsys.readouterr().err) and 'stopped early' in said
