"""One recorded constant for each teacher, from the margins of the first batches."""
import json

import numpy as np
import pytest
import torch

from pyterrier_tasb import Training
from pyterrier_tasb.encoding import Tokens
from pyterrier_tasb.training.batches import TrainingBatch
from pyterrier_tasb.training.calibration import calibrate, student_scores, transform_of

B = 6


class Made:
    """Batches whose student's scores are known: teachers say `slope` times them, and some noise."""

    def __init__(self, slope, in_batch_slope=None, noise=.3):
        self.slope, self.in_batch_slope, self.noise = slope, in_batch_slope, noise

    def scores(self, step):
        return np.random.default_rng(step).normal(scale=4, size=(B, 2 * B)).astype(np.float32)

    def __getitem__(self, step):
        rng, scores = np.random.default_rng(100 + step), self.scores(step)
        noisy = scores + rng.normal(scale=self.noise, size=scores.shape).astype(np.float32)
        rows = np.arange(B)
        none = torch.zeros(B, dtype=torch.long)
        return TrainingBatch(
            Tokens.from_lists([[step]]), none, none, none,
            torch.from_numpy(self.slope * (noisy[rows, rows] - noisy[rows, B + rows])),
            None if self.in_batch_slope is None else torch.from_numpy(self.in_batch_slope * noisy), ())


def looked_at(batches, **options):
    return calibrate(batches, lambda batch: batches.scores(int(batch.tokens.ids[0])), **options)


def in_batch_margins(scores):
    return np.array([row[i] - row[j] for i, row in enumerate(scores) for j in range(2 * B) if j not in (i, B + i)])


@pytest.mark.parametrize('slope', [.01, 1.0, 30.0])
def test_the_factors_bring_standard_deviations_together(slope):
    batches = Made(slope, 2 * slope)
    found = looked_at(batches, n_batches=5)
    transform = transform_of(found, positive_bonus=1.5)
    assert (transform.pairwise, transform.in_batch) == (found.pairwise_factor, found.in_batch_factor)
    assert transform.positive_bonus == 1.5
    teacher = np.concatenate([batches[step].margin for step in range(5)])
    student = np.concatenate([in_batch_margins(batches.scores(step)) for step in range(5)])
    in_batch = np.concatenate([in_batch_margins(batches[step].in_batch.numpy()) for step in range(5)])
    assert np.std(teacher * transform.pairwise) == pytest.approx(found.student.sd, rel=1e-3)
    assert np.std(in_batch * transform.in_batch) == pytest.approx(np.std(student), rel=1e-3)
    assert found.student_in_batch.sd == pytest.approx(np.std(student), rel=1e-5)
    assert found.pairwise_factor == pytest.approx(1 / slope, rel=.1)
    assert found.n_pairs == 5 * B and found.correlation > .9


def test_the_record_holds_the_very_constant_used():
    found = looked_at(Made(1 / 3, 1 / 7))
    assert found.pairwise_factor == float(f'{found.pairwise_factor:.4g}')
    assert json.loads(json.dumps(found.to_dict()))['in_batch_factor'] == found.in_batch_factor
    assert f'factor {found.pairwise_factor:.3g}' in str(found) and 'in the batch' in str(found)


def test_constant_margins_say_nothing_of_scale():
    found = looked_at(Made(0.0, 0.0))
    assert found.pairwise_factor == found.in_batch_factor == 1.0
    assert found.correlation is None and '(constant, factor 1)' in str(found)


def test_the_published_run_rescales_nothing():
    found = looked_at(Made(30.0, 60.0), factor=Training.faithful().teacher_scale)
    assert found.pairwise_factor == found.in_batch_factor == 1.0
    assert found.pairwise.sd > 20 * found.student.sd


def test_a_given_factor_is_for_both_teachers():
    found = looked_at(Made(30.0, 60.0), factor=.25)
    assert found.pairwise_factor == found.in_batch_factor == .25


def test_without_an_in_batch_teacher_its_factor_is_one():
    found = looked_at(Made(30.0))
    assert found.in_batch_factor == 1.0 and found.in_batch is None and found.student_in_batch is None
    assert 'in the batch' not in str(found)


def test_a_students_scores_are_dot_products_without_gradients():
    vecs = torch.tensor([[1., 2.], [3., 4.], [5., 6.]], requires_grad=True)
    batch = TrainingBatch(None, torch.tensor([0, 1]), torch.tensor([2, 1]), torch.tensor([1, 2]), None, None, ())
    scores = student_scores(lambda batch: vecs * 1)(batch)
    queries, docs = vecs.detach().numpy()[[0, 1]], vecs.detach().numpy()[[2, 1, 1, 2]]
    np.testing.assert_array_equal(scores, queries @ docs.T)
