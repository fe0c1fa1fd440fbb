"""Fast dropout is dropout: shares, means, independence, gradients, seeds."""
import numpy as np
import pytest
import torch
from tiny_encoders import encoder, ragged

from pyterrier_tasb.encoding.dropout import Dropout, dropout, use_in


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('share', [.1, .5, .9])
def test_shares_and_means(share, dtype):
    n = 1_000_000
    found = dropout(torch.ones(n, dtype=dtype), share)
    values, counts = found.unique(return_counts=True)
    assert values.tolist() == [0, torch.tensor(65536 / (65536 - round(share * 65536)), dtype=dtype)]
    spread = (share * (1 - share) / n) ** .5
    assert abs(counts[0].item() / n - share) < 5 * spread + 2**-17


def test_elements_are_independent():
    """Neighbours share a draw of 64 bits: each of the four, and each pair of them, drops as often as it should."""
    dropped = (dropout(torch.ones(400_000), .25) == 0).reshape(-1, 4).double()
    assert np.allclose(dropped.mean(0), .25, atol=.007)
    together = dropped.T @ dropped / len(dropped)
    assert np.allclose(together, torch.full((4, 4), .0625) + torch.eye(4) * .1875, atol=.007)
    assert abs((dropped[1:] * dropped[:-1]).mean().item() - .0625) < .003   # and from draw to draw


@pytest.mark.parametrize('shape', [(), (1,), (3,), (5, 7), (2, 3, 4, 5), (0,)])
def test_shapes_and_gradients(shape):
    x = torch.full(shape, 2.).requires_grad_()
    found = dropout(x, .5)
    found.sum().backward()
    assert found.shape == x.shape and torch.equal(x.grad * 2, found)


def test_inputs_need_not_be_contiguous():
    x = torch.arange(1., 13).reshape(3, 4).T
    found = dropout(x, .5)
    assert torch.equal(found[found != 0], (x * 2)[found != 0])


@pytest.mark.parametrize('share', [0., 1e-9, 1.])
def test_none_and_all(share):
    x = torch.arange(1., 9)
    assert torch.equal(dropout(x, share), x * 0 if share == 1 else x)


def test_the_generator_is_pytorchs():
    x = torch.ones(1000)
    torch.manual_seed(7)
    first, second = dropout(x, .3), dropout(x, .3)
    torch.manual_seed(7)
    assert torch.equal(dropout(x, .3), first) and not torch.equal(first, second)


def test_modules_are_replaced_and_nothing_else_changes():
    class Own(torch.nn.Dropout):
        pass

    model = torch.nn.ModuleDict({'a': torch.nn.Sequential(torch.nn.Dropout(.2), torch.nn.Linear(2, 2)),
                                 'own': Own(.3), 'inplace': torch.nn.Dropout(.4, inplace=True)})
    model['a'][0].eval()
    before = model.state_dict().keys()
    use_in(model)
    assert type(model['a'][0]) is Dropout and model['a'][0].p == .2 and not model['a'][0].training
    assert type(model['own']) is Own and type(model['inplace']) is torch.nn.Dropout
    assert model.state_dict().keys() == before
    assert torch.equal(model['a'][0](torch.ones(50)), torch.ones(50))
    assert (model['a'][0].train()(torch.ones(50)) == 0).any()


@pytest.mark.parametrize('name', ['bert', 'distilbert', 'modernbert', 'mpnet'])
def test_encoders_have_it(name):
    ours = encoder(name, 'auto').train()
    kinds = {type(module) for module in ours.modules() if isinstance(module, torch.nn.Dropout)}
    assert kinds <= {Dropout} and (kinds or name == 'modernbert')


@pytest.mark.parametrize('name', ['bert', 'distilbert'])
def test_recomputed_activations_drop_the_same(name):
    """Gradient checkpointing runs a layer again in the backward pass, with the generator set back."""
    results = []
    for recompute in (False, True):
        ours = encoder(name, 'packed').train()
        if recompute:
            ours.model.gradient_checkpointing_enable()
        torch.manual_seed(3)
        vectors = ours(ragged())
        vectors.square().sum().backward()
        results.append([vectors, *(p.grad for p in ours.parameters() if p.grad is not None)])
    for plain, again in zip(*results, strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-5, atol=1e-6)
