"""Our Triton kernels in its interpreter, which must be chosen before Triton is imported."""
import numpy as np
import pytest
import torch

from pyterrier_tasb.encoding import embedding_gradients, ragged_attention
from pyterrier_tasb.training.captured import sorted_places

ragged_attention.BLOCK = 16   # the interpreter takes its time
LENGTHS = [1, 3, 18, 0, 40, 32]   # an empty text, ends within blocks and at one
BEHIND = 50   # tokens in no text: more than the blocks of the longest
BOUNDS = torch.tensor(np.concatenate([[0], np.cumsum(LENGTHS)]), dtype=torch.int32)


def inputs(n=4, dim=16):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, sum(LENGTHS) + BEHIND, 2, dim, generator=generator).requires_grad_().unbind()


def plain(q, k, v, reach, scale):
    outs = []
    for start, stop in zip(BOUNDS[:-1], BOUNDS[1:]):
        scores = torch.einsum('ihd,jhd->hij', q[start:stop], k[start:stop]) * scale
        at = torch.arange(stop - start)
        scores = scores.masked_fill((at[:, None] - at).abs() >= (reach or 1000), -torch.inf)
        outs.append(torch.einsum('hij,jhd->ihd', scores.softmax(-1), v[start:stop]))
    return torch.cat([*outs, torch.zeros(BEHIND, *q.shape[1:])])


@pytest.mark.parametrize('reach', [None, 14])
@pytest.mark.parametrize('dim, scale', [(16, None), (32, .3)])
def test_outputs_and_gradients_are_those_of_plain_attention(dim, scale, reach):
    *qkv, weight = inputs(dim=dim)
    expected = plain(*qkv, reach, scale or dim ** -.5)
    found = ragged_attention.attention(*qkv, BOUNDS, max(LENGTHS), scale=scale, reach=reach)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(torch.autograd.grad((found * weight).sum(), qkv),
                            torch.autograd.grad((expected * weight).sum(), qkv)):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('reach', [None, 14])
def test_side_by_side_is_what_apart_is(reach):
    *qkv, weight = inputs()
    joint = torch.stack(qkv, 1).detach().requires_grad_()
    torch.manual_seed(1)
    expected = ragged_attention.attention(*qkv, BOUNDS, max(LENGTHS), share=.3, reach=reach)
    torch.manual_seed(1)
    found = ragged_attention.joint_attention(joint, BOUNDS, max(LENGTHS), share=.3, reach=reach)
    torch.manual_seed(1)   # what lies apart but in one tensor is not copied
    strided = ragged_attention.attention(*joint.unbind(1), BOUNDS, max(LENGTHS), share=.3, reach=reach)
    assert torch.equal(found, expected) and torch.equal(strided, expected)
    gradients = torch.stack(torch.autograd.grad((expected * weight).sum(), qkv, retain_graph=True), 1)
    for out in (found, strided):
        assert torch.equal(*torch.autograd.grad((out * weight).sum(), joint, retain_graph=True), gradients)


def test_keys_and_values_of_first_tokens_may_lie_side_by_side():
    *qkv, weight = inputs()
    q, joint = qkv[0], torch.stack(qkv[1:], 1).detach().requires_grad_()
    expected, found = of_firsts(qkv, .3), of_firsts((q, *joint.unbind(1)), .3)
    assert torch.equal(found, expected)
    weight = weight[:len(LENGTHS)]
    gradients = torch.stack(torch.autograd.grad((expected * weight).sum(), qkv[1:], retain_graph=True), 1)
    assert torch.equal(*torch.autograd.grad((found * weight).sum(), joint), gradients)


def attend(qkv, share, seed):
    torch.manual_seed(seed)
    return ragged_attention.attention(*qkv, BOUNDS, max(LENGTHS), share=share)


def test_dropout_drops_its_share_anew_for_each_seed():
    q, k, v, _ = (x.detach() for x in inputs())
    outs = torch.stack([attend((q, k, torch.ones_like(v)), .3, seed)[:BOUNDS[-1], :, 0] for seed in range(8)])
    assert torch.equal(outs[1], attend((q, k, torch.ones_like(v)), .3, 1)[:BOUNDS[-1], :, 0])
    assert abs(outs.mean() - 1) < .05                       # what is left is scaled up
    alone = outs[:, 0]                                      # a text of one token: all or nothing
    assert sorted({round(value, 4) for value in alone.flatten().tolist()}) == [0.0, round(1 / .7, 4)]
    assert torch.corrcoef(outs.flatten(1))[0, 1:].abs().max() < .3
    assert torch.corrcoef(outs.permute(2, 0, 1).flatten(1))[0, 1].abs() < .2   # heads drop others


def test_dropout_may_drop_all():
    *qkv, weight = inputs()
    out = attend(qkv, 1.0, 0)
    assert not out.any()
    assert not any(gradient.any() for gradient in torch.autograd.grad((out * weight).sum(), qkv))


def test_gradients_with_dropout_are_those_of_what_was_dropped():
    *qkv, weight = inputs()
    gradients = torch.autograd.grad((attend(qkv, .3, 3) * weight).sum(), qkv)
    for at, gradient in enumerate(gradients):
        direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(at))
        moved = [[x.detach() + sign * .01 * direction * (i == at) for i, x in enumerate(qkv)] for sign in (1, -1)]
        up, down = ((attend(some, .3, 3) * weight).double().sum() for some in moved)
        torch.testing.assert_close(((up - down) / .02).float(), (gradient * direction).sum(), rtol=2e-3, atol=2e-3)


def of_firsts(qkv, share=0.0, scale=None, seed=0):
    """The queries are those of all tokens."""
    q, k, v = qkv
    torch.manual_seed(seed)
    starts = BOUNDS[:-1].long()
    return ragged_attention.of_firsts(q[starts], k, v, BOUNDS, share=share, scale=scale)


@pytest.mark.parametrize('dim, scale', [(16, None), (32, .3)])
def test_first_tokens_get_what_they_get_among_all(dim, scale):
    *qkv, weight = inputs(dim=dim)
    starts, there = BOUNDS[:-1].long(), torch.tensor(LENGTHS) > 0
    expected, found = plain(*qkv, None, scale or dim ** -.5)[starts] * there[:, None, None], of_firsts(qkv, 0., scale)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    weight = weight[:len(LENGTHS)]
    for ours, theirs in zip(torch.autograd.grad((found * weight).sum(), qkv),
                            torch.autograd.grad((expected * weight).sum(), qkv)):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_dropout_of_first_tokens():
    *qkv, weight = inputs()
    weight = weight[:len(LENGTHS)].detach()
    q, k, v = (x.detach() for x in qkv)
    outs = torch.stack([of_firsts((q, k, torch.ones_like(v)), .3, seed=seed)[:, :, 0] for seed in range(40)])
    assert abs(outs[:, torch.tensor(LENGTHS) > 0].mean() - 1) < .1 and outs.std() > .1
    gradients = torch.autograd.grad((of_firsts(qkv, .3) * weight).sum(), qkv)
    for at, gradient in enumerate(gradients):
        direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(at))
        moved = [[x.detach() + sign * .01 * direction * (i == at) for i, x in enumerate(qkv)] for sign in (1, -1)]
        up, down = ((of_firsts(some, .3) * weight).double().sum() for some in moved)
        torch.testing.assert_close(((up - down) / .02).float(), (gradient * direction).sum(), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize('padding', [None, 0, 3])
def test_gradients_of_sorted_ids_are_those_of_embeddings(padding):
    ids = np.random.default_rng(0).permutation(np.repeat([0, 3, 4, 8, 9], [3, 70, 1, 32, 33]))
    module, weight = torch.nn.Embedding(10, 150, padding_idx=padding), torch.randn(1, len(ids), 150)
    assert embedding_gradients.can(module)
    given = torch.from_numpy(ids)[None]

    def gradient():
        return torch.autograd.grad((module(given) * weight).sum(), module.weight)[0]
    expected, found = gradient(), torch.full((10, 150), torch.nan)
    with embedding_gradients.used(module, *map(torch.from_numpy, sorted_places(ids)), found):
        for _ in range(2):
            assert gradient().data_ptr() == found.data_ptr()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(gradient(), expected)   # the module is as it was


def test_other_embeddings_are_left_alone():
    frozen = torch.nn.Embedding(3, 4).requires_grad_(False)
    for module in (None, torch.nn.Linear(3, 4), frozen, torch.nn.Embedding(3, 4, max_norm=1.),
                   torch.nn.Embedding(3, 4, sparse=True), torch.nn.Embedding(3, 4).bfloat16()):
        assert not embedding_gradients.can(module)
