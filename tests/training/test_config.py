"""Every field of `Training` is checked; the schedule never has a rate of 0 while it trains."""
import json
import subprocess
import sys

import numpy as np
import pytest
from ir_measures import AP, RR, define_byquery, nDCG

from pyterrier_tasb import Training
from pyterrier_tasb.modelcard import _measures

BAD = [
    ('steps', 0), ('steps', 1.5), ('steps', True), ('batch_size', 0), ('accumulation', 0), ('clusters_per_batch', 0),
    ('n_bins', 0), ('max_pairs_per_query', 0), ('log_every', 0), ('clusters', 0), ('eval_every', 0),
    ('save_every', 0), ('patience', 0), ('micro_batch_tokens', 0), ('learning_rate', 0), ('learning_rate', -1e-5),
    ('learning_rate', float('nan')), ('learning_rate', 'fast'), ('scale', 0), ('weight_decay', -1),
    ('max_grad_norm', -1), ('pairwise_weight', -1), ('in_batch_weight', float('inf')), ('size_power', -1),
    ('positive_bonus', -1), ('seed', -1), ('seed', 1.5), ('seed', 2**63), ('warmup', 1), ('warmup', -.1),
    ('teacher_scale', 0), ('teacher_scale', 'big'), ('sampling', 'topics'), ('pairwise_loss', 'mse'),
    ('in_batch_loss', 'mse'), ('schedule', 'step'), ('measure', 'best@10'), ('patience_from', -1),
    ('measure', None), ('measure', ''), ('measure', ' '), ('measure', 10), ('measure', 'nDCG@@10'), ('spherical', 'no'),
    ('spherical', 1), ('spherical', None), ('report_to', 'wandbb'), ('report_to', None), ('report_to', ''),
    ('report_to', ['wandb']),
    ('batch_size', 8.0), ('steps', np.float64(5)), ('learning_rate', np.float32('nan')), ('seed', True),
]


@pytest.mark.parametrize('field, value', BAD)
def test_a_field_out_of_range_is_named_with_its_value(field, value):
    with pytest.raises(ValueError, match=field) as error:
        Training(**{field: value})
    assert repr(value.item() if isinstance(value, np.generic) else value) in str(error.value)


def test_numbers_of_numpy_are_kept_as_plain_ones():
    training = Training(steps=np.int64(5), seed=np.int32(3), learning_rate=np.float32(.5), warmup=np.float64(.25),
                        clusters=np.uint8(2), teacher_scale=np.float64(2), spherical=np.bool_(True))
    expected = Training(steps=5, seed=3, learning_rate=.5, warmup=.25, clusters=2, teacher_scale=2.0, spherical=True)
    assert json.dumps(training.to_dict()) == json.dumps(expected.to_dict())


@pytest.mark.parametrize('given, name', [('MRR@10', 'RR@10'), ('nDCG@10', 'nDCG@10'),
                                         ('nDCG(dcg="exp-log2")@5', "nDCG(dcg='exp-log2')@5")])
def test_a_measure_is_kept_by_its_own_name(given, name):
    assert Training(measure=given).measure == Training().replace(measure=given).measure == name


@pytest.mark.parametrize('given, name', [(nDCG @ 10, 'nDCG@10'), (AP(rel=2), 'AP(rel=2)'), (RR, 'RR'),
                                         ('map', 'AP'), ('ndcg_cut_10', 'nDCG@10'), ('recip_rank', 'RR'),
                                         ('recall_100', 'R@100'), ('P_10', 'P@10')])
def test_a_measure_is_taken_as_experiments_take_it(given, name):
    training = Training(measure=given)
    assert training == Training(measure=name) and training.measure == name == training.replace(steps=5).measure
    assert json.loads(json.dumps(training.to_dict()))['measure'] == name


@pytest.mark.parametrize('given, message', [
    ('ndcg_cut', "measure='ndcg_cut'.*9 measures .nDCG@5, nDCG@10, .*name one"),
    (define_byquery(lambda qrels, run: 0.0, name='Mine'), r'measure=Mine\): ir_measures does not know it'),
    ([nDCG @ 10], r'measure=\[nDCG@10\]\): must be a measure, or its name'),
])
def test_a_measure_must_be_one_that_a_name_stands_for(given, message):
    with pytest.raises(ValueError, match=message):
        Training(measure=given)


@pytest.mark.parametrize('measure', ['MRR@10', 'RR@10'])
def test_the_card_shows_the_validations(measure):
    record = {'training': {'measure': measure}, 'history': [{'step': 4, 'RR@10': .25}, {'step': 8, 'RR@10': .5}],
              'steps': 8, 'seconds': 1.0, 'best_step': 8, 'hardware': 'a CPU', 'versions': {}}
    rows = [line for line in _measures(record).splitlines() if 'validation' in line]
    assert rows == ['| validation RR@10, step 4 | 0.2500 |', '| validation RR@10, step 8 | 0.5000 |']


def test_a_tracker_must_be_installed(monkeypatch):
    from transformers.integrations import integration_utils
    monkeypatch.setattr(integration_utils, 'get_available_reporting_integrations', lambda: ['tensorboard'])
    assert Training(report_to='tensorboard').report_to == 'tensorboard' and Training(report_to='all').replace(steps=3)
    with pytest.raises(ValueError, match="report_to='wandb'.: it is not installed"):
        Training(report_to='wandb')


def test_a_configuration_loads_neither_torch_nor_transformers():
    script = 'import sys; from pyterrier_tasb.training.config import Training; Training(measure="MRR@10"); ' \
        'sys.exit(bool({"torch", "transformers"} & set(sys.modules)))'
    assert subprocess.run([sys.executable, '-c', script]).returncode == 0


@pytest.mark.parametrize('schedule', ['linear', 'cosine', 'constant'])
@pytest.mark.parametrize('steps', [1, 2, 20, 1000])
def test_the_rate_is_above_zero_at_every_step(schedule, steps):
    training = Training(steps=steps, schedule=schedule)
    rates = [training.rate_at(step) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    assert max(rates) == 1 if steps > 1 else True


@pytest.mark.parametrize('steps, warmup, expected', [(100, .29, 29), (100, .57, 57), (1000, .05, 50), (150, .05, 7),
                                                     (10, 0.0, 0)])
def test_the_warm_up_is_its_share_of_the_steps(steps, warmup, expected):
    assert Training(steps=steps, warmup=warmup).warmup_steps == expected


def test_the_published_run():
    training = Training.faithful(batch_size=96)
    assert (training.batch_size, training.learning_rate, training.clusters) == (96, 7e-6, 2000)
    assert (training.teacher_scale, training.positive_bonus, training.size_power) == (1.0, 0.0, 0.0)
    assert training.rate_at(0) == training.rate_at(700_000) == 1.0
    assert training.spherical and training.patience_from == 300_000   # the reference code's, not the paper's


def test_a_variant_leaves_the_original():
    training = Training()
    assert training.replace(steps=5).steps == 5 and training.steps == 20_000
