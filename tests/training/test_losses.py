"""Every loss against loops that read like its formula."""
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyterrier_tasb.training.losses import IN_BATCH, LISTS, PAIRWISE

LOSSES = {**PAIRWISE, **IN_BATCH}


def softmax(row, columns):
    top = max(row[j] for j in columns)
    total = sum(math.exp(row[j] - top) for j in columns)
    return {j: math.exp(row[j] - top) / total for j in columns}


def over_margins(term):
    def loss(student, teacher, anchor, mask):
        values = [term(student[i], teacher[i], anchor[i], j) for i, j in zip(*np.nonzero(mask))]
        return sum(values) / max(1, len(values))
    return loss


def over_lists(term):
    def loss(student, teacher, anchor, mask):
        lists = [np.flatnonzero(row) for row in mask]
        return sum(term(s, t, columns) for s, t, columns in zip(student, teacher, lists) if len(columns)) / len(mask)
    return loss


def kl_of_a_list(s, t, columns):
    p, q = softmax(t, columns), softmax(s, columns)
    return sum(p[j] * math.log(p[j] / q[j]) for j in columns)


def cross_entropy_of_a_list(s, t, columns):
    p, q = softmax(t, columns), softmax(s, columns)
    return -sum(p[j] * math.log(q[j]) for j in columns)


def lambda_of_a_list(s, t, columns):
    gain = softmax(t, columns)
    discount = {j: 1 / math.log2(2 + sum(s[k] > s[j] for k in columns)) for j in columns}
    ideal = sum(g / math.log2(2 + rank) for rank, g in enumerate(sorted(gain.values(), reverse=True)))
    return sum(abs(gain[i] - gain[j]) * abs(discount[i] - discount[j]) / ideal * math.log1p(math.exp(s[j] - s[i]))
               for i in columns for j in columns if gain[i] > gain[j])


ORACLES = {
    'margin-mse': over_margins(lambda s, t, a, j: ((s[a] - s[j]) - (t[a] - t[j])) ** 2),
    'ranknet': over_margins(lambda s, t, a, j: math.log1p(math.exp(s[j] - s[a]))),
    'kl': over_lists(kl_of_a_list),
    'listnet': over_lists(cross_entropy_of_a_list),
    'lambda': over_lists(lambda_of_a_list),
}


@st.composite
def problems(draw):
    """Scores, anchors and masks of 1 to 4 queries against 1 to 7 passages."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.integers(1, 4)), draw(st.integers(1, 7))
    student, teacher = rng.normal(scale=3, size=(2, *shape)).astype(np.float32)
    mask = rng.random(shape) < draw(st.sampled_from([.3, .8, 1]))
    return student, teacher, rng.integers(shape[1], size=shape[0]), mask


def value_and_gradient(loss, student, teacher, anchor, mask):
    student = torch.tensor(student, requires_grad=True)
    value = LOSSES[loss](student, torch.tensor(teacher), torch.tensor(anchor), torch.tensor(mask))
    value.backward()
    return value.item(), student.grad.numpy()


def test_every_loss_has_an_oracle():
    assert set(ORACLES) == set(LOSSES)


@pytest.mark.parametrize('loss', ORACLES)
@settings(max_examples=40)
@given(problem=problems())
def test_a_loss_equals_its_formula(loss, problem):
    student, teacher, anchor, mask = problem
    expected = ORACLES[loss](student.astype(float), teacher.astype(float), anchor, mask)
    value, gradient = value_and_gradient(loss, *problem)
    assert value == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize('loss', ORACLES)
@settings(max_examples=40)
@given(problem=problems())
def test_what_the_mask_leaves_out_is_never_read(loss, problem):
    student, teacher, anchor, mask = problem
    read = mask.copy()
    if loss not in LISTS:
        read[np.arange(len(anchor)), anchor] = True
    elsewhere = np.where(read, teacher, -np.inf).astype(np.float32)
    value, gradient = value_and_gradient(loss, student, elsewhere, anchor, mask)
    assert value == value_and_gradient(loss, *problem)[0]
    assert np.isfinite(gradient).all() and not gradient[~read].any()
    changed = np.where(read, student, student + 7).astype(np.float32)
    assert value == pytest.approx(value_and_gradient(loss, changed, teacher, anchor, mask)[0], abs=1e-6)


@pytest.mark.parametrize('loss', ORACLES)
@settings(max_examples=40)
@given(problem=problems(), shift=st.floats(-50, 50))
def test_a_constant_on_a_row_changes_nothing(loss, problem, shift):
    student, teacher, anchor, mask = problem
    shifts = (shift * np.arange(1, len(anchor) + 1)[:, None]).astype(np.float32)
    value = value_and_gradient(loss, *problem)[0]
    for moved in ((student + shifts, teacher), (student, teacher + shifts)):
        assert value_and_gradient(loss, *moved, anchor, mask)[0] == pytest.approx(value, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize('loss', ORACLES)
@settings(max_examples=40)
@given(problem=problems(), seed=st.integers(0, 999))
def test_the_order_of_columns_does_not_matter(loss, problem, seed):
    student, teacher, anchor, mask = problem
    order = np.random.default_rng(seed).permutation(student.shape[1])
    value, gradient = value_and_gradient(loss, *problem)
    moved, moved_gradient = value_and_gradient(loss, student[:, order], teacher[:, order],
                                               np.argsort(order)[anchor], mask[:, order])
    assert moved == pytest.approx(value, rel=1e-5, abs=1e-6)
    np.testing.assert_allclose(moved_gradient, gradient[:, order], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('loss', ['margin-mse', 'kl', 'listnet'])
def test_the_teachers_own_scores_are_the_best(loss):
    teacher = np.random.default_rng(1).normal(size=(3, 6)).astype(np.float32)
    anchor, mask = np.arange(3), np.ones((3, 6), dtype=bool)
    value, gradient = value_and_gradient(loss, teacher, teacher, anchor, mask)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    other = teacher + np.random.default_rng(2).normal(size=(3, 6)).astype(np.float32)
    assert value < value_and_gradient(loss, other, teacher, anchor, mask)[0]


@pytest.mark.parametrize('loss', sorted(LISTS))
def test_very_confident_teachers_give_finite_losses_and_gradients(loss):
    teacher = np.array([[1000, -1000, 0, 500]], dtype=np.float32)
    value, gradient = value_and_gradient(loss, -teacher, teacher, np.array([0]), np.ones((1, 4), dtype=bool))
    assert np.isfinite(value) and value > 0 and np.isfinite(gradient).all()
