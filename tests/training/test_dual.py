"""The method's two losses together, from vectors."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyterrier_tasb.training.dual import dual_loss, in_batch_loss
from pyterrier_tasb.training.losses import IN_BATCH, PAIRWISE


def vectors(size, dim=4, seed=0, scale=1.0):
    """Query, positive and negative vectors that take gradients, margins, and the in-batch teacher's scores."""
    rng = np.random.default_rng(seed)
    encoded = [torch.tensor(rng.normal(scale=scale, size=(size, dim)), dtype=torch.float32, requires_grad=True)
               for _ in range(3)]
    return (*encoded, torch.tensor(rng.normal(size=size), dtype=torch.float32),
            torch.tensor(rng.normal(scale=3, size=(size, 2 * size)), dtype=torch.float32))


def test_the_worked_example():
    query = torch.tensor([[1., 0.], [0., 1.]], requires_grad=True)
    pos = torch.tensor([[2., 1.], [1., 3.]], requires_grad=True)
    neg = torch.tensor([[1., 0.], [0., 1.]], requires_grad=True)
    margin = torch.tensor([3., 4.]) - torch.tensor([1., 1.5])
    teacher = torch.tensor([[4., 1., 3., -1.], [2., 5., 1., 2.]])
    loss, parts = dual_loss(query, pos, neg, margin, teacher)
    loss.backward()
    assert {name: part.item() for name, part in parts.items()} == {'pairwise': .625, 'in_batch': 3.75}
    assert loss.item() == 3.4375
    assert query.grad.tolist() == [[-4, .5], [-.125, -2.875]]
    assert pos.grad.tolist() == [[-2.875, .375], [.75, -1.25]]
    assert neg.grad.tolist() == [[1, .375], [1.125, .5]]


@settings(max_examples=40)
@given(size=st.integers(2, 5), seed=st.integers(0, 9999), weight=st.floats(.1, 4), in_batch_weight=st.floats(.1, 4))
def test_the_dual_loss_equals_the_papers_equations(size, seed, weight, in_batch_weight):
    query, pos, neg, margin, teacher = vectors(size, seed=seed)
    s_pos, s_neg = (query @ pos.T).tolist(), (query @ neg.T).tolist()
    t_pos, t_neg, t = teacher[:, :size].tolist(), teacher[:, size:].tolist(), margin.tolist()
    pairwise = sum((s_pos[i][i] - s_neg[i][i] - t[i]) ** 2 for i in range(size)) / size
    halves = [sum((s_pos[i][i] - s[i][j] - (t_pos[i][i] - t_[i][j])) ** 2
                  for i in range(size) for j in range(size) if i != j) / (size * (size - 1))
              for s, t_ in ((s_pos, t_pos), (s_neg, t_neg))]
    loss, parts = dual_loss(query, pos, neg, margin, teacher, pairwise_weight=weight, in_batch_weight=in_batch_weight)
    assert parts['pairwise'].item() == pytest.approx(pairwise, rel=1e-4)
    assert parts['in_batch'].item() == pytest.approx(sum(halves) / 2, rel=1e-4)
    assert loss.item() == pytest.approx(weight * pairwise + in_batch_weight * sum(halves) / 2, rel=1e-4)


def test_a_batch_of_one_has_no_in_batch_loss():
    query, pos, neg, margin, teacher = vectors(1)
    loss, parts = dual_loss(query, pos, neg, margin, teacher)
    assert parts['in_batch'].item() == 0 and loss.item() == parts['pairwise'].item() > 0


@pytest.mark.parametrize('in_batch', IN_BATCH)
@pytest.mark.parametrize('pairwise', PAIRWISE)
@pytest.mark.parametrize('size', [1, 3])
def test_every_combination_has_finite_gradients(size, pairwise, in_batch):
    query, pos, neg, margin, teacher = vectors(size)
    loss, _ = dual_loss(query, pos, neg, margin, teacher, pairwise=pairwise, in_batch=in_batch)
    loss.backward()
    for encoded in (query, pos, neg):
        assert torch.isfinite(encoded.grad).all() and encoded.grad.any()


@pytest.mark.parametrize('in_batch', IN_BATCH)
@pytest.mark.parametrize('pairwise', PAIRWISE)
def test_half_precision_vectors_are_scored_in_full_precision(pairwise, in_batch):
    query, pos, neg, margin, teacher = vectors(4, dim=32, scale=3)
    names = dict(pairwise=pairwise, in_batch=in_batch)
    half = [encoded.detach().bfloat16() for encoded in (query, pos, neg)]
    loss, _ = dual_loss(*half, margin, teacher, **names)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, dual_loss(*(encoded.float() for encoded in half), margin, teacher, **names)[0])


def test_a_querys_own_passages_are_no_in_batch_entries_of_the_margin_loss():
    student, teacher = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(1))
    other = teacher.clone()
    other[torch.arange(3), torch.arange(3) + 3] += 100
    assert torch.equal(in_batch_loss(student, teacher), in_batch_loss(student, other))


def test_the_in_batch_anchor_is_the_teachers_own_diagonal():
    student, teacher = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(1))
    other = teacher.clone()
    other[0, 0] += 1
    assert not torch.isclose(in_batch_loss(student, teacher), in_batch_loss(student, other))


@pytest.mark.parametrize('given, weights, expected', [
    (True, (1, 1), {'pairwise', 'in_batch'}), (True, (1, 0), {'pairwise'}), (True, (0, 1), {'in_batch'}),
    (False, (1, 1), {'pairwise'}), (False, (0, 1), set()),
])
def test_a_weight_of_zero_or_no_teacher_leaves_a_part_out(given, weights, expected):
    query, pos, neg, margin, teacher = vectors(3)
    loss, parts = dual_loss(query, pos, neg, margin, teacher if given else None,
                            pairwise_weight=weights[0], in_batch_weight=weights[1])
    loss.backward()
    assert set(parts) == expected
    assert loss.item() == pytest.approx(sum(part.item() for part in parts.values()))
    assert bool(query.grad.any()) == bool(expected)
