"""Every field of `Training` is checked; the schedule never has a rate of 0 while it trains."""
import pytest

from pyterrier_tasb import Training

BAD = [
    ('steps', 0), ('steps', 1.5), ('steps', True), ('batch_size', 0), ('accumulation', 0), ('clusters_per_batch', 0),
    ('n_bins', 0), ('max_pairs_per_query', 0), ('log_every', 0), ('clusters', 0), ('eval_every', 0),
    ('save_every', 0), ('patience', 0), ('micro_batch_tokens', 0), ('learning_rate', 0), ('learning_rate', -1e-5),
    ('learning_rate', float('nan')), ('learning_rate', 'fast'), ('scale', 0), ('weight_decay', -1),
    ('max_grad_norm', -1), ('pairwise_weight', -1), ('in_batch_weight', float('inf')), ('size_power', -1),
    ('positive_bonus', -1), ('seed', -1), ('seed', 1.5), ('seed', 2**63), ('warmup', 1), ('warmup', -.1),
    ('teacher_scale', 0), ('teacher_scale', 'big'), ('sampling', 'topics'), ('pairwise_loss', 'mse'),
    ('in_batch_loss', 'mse'), ('schedule', 'step'), ('measure', 'best@10'), ('patience_from', -1),
]


@pytest.mark.parametrize('field, value', BAD)
def test_a_field_out_of_range_is_named_with_its_value(field, value):
    with pytest.raises(ValueError, match=field) as error:
        Training(**{field: value})
    assert repr(value) in str(error.value)


@pytest.mark.parametrize('schedule', ['linear', 'cosine', 'constant'])
@pytest.mark.parametrize('steps', [1, 2, 20, 1000])
def test_the_rate_is_above_zero_at_every_step(schedule, steps):
    training = Training(steps=steps, schedule=schedule)
    rates = [training.rate_at(step) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    assert max(rates) == 1 if steps > 1 else True


def test_the_published_run():
    training = Training.faithful(batch_size=96)
    assert (training.batch_size, training.learning_rate, training.clusters) == (96, 7e-6, 2000)
    assert (training.teacher_scale, training.positive_bonus, training.size_power) == (1.0, 0.0, 0.0)
    assert training.rate_at(0) == training.rate_at(700_000) == 1.0


def test_a_variant_leaves_the_original():
    training = Training()
    assert training.replace(steps=5).steps == 5 and training.steps == 20_000
