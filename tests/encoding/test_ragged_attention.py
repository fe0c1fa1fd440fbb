"""Our attention kernels: in Triton's interpreter everywhere, and on a GPU where there is one."""
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pyterrier_tasb.encoding.kernels import KERNELS, Packing


def _triton():
    """Its version, (0,) where there is none."""
    try:
        return tuple(int(part) for part in importlib.metadata.version('triton').split('.')[:2])
    except importlib.metadata.PackageNotFoundError:
        return (0,)


on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')


@pytest.mark.skipif(_triton() < (3, 7), reason='no Triton 3.7: the interpreters before do not know every numpy')
def test_the_kernels_in_the_interpreter():
    found = subprocess.run([sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-W', 'ignore',
                            Path(__file__).with_name('interpreted_ragged_attention.py')],
                           env={**os.environ, 'TRITON_INTERPRET': '1'}, capture_output=True, text=True)
    assert not found.returncode and '17 passed' in found.stdout, found.stdout + found.stderr


@on_a_gpu
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('dim', [16, 32, 64, 128])
@pytest.mark.parametrize('reach', [None, 40])
@pytest.mark.parametrize('name', ['ragged', 'varlen', 'groups'])
def test_kernels_agree_on_a_gpu(name, reach, dim, dtype):
    lengths, device = np.array([1, 3, 3, 64, 65, 130, 199, 300]), torch.device('cuda', 0)
    inputs = torch.randn(4, lengths.sum(), 3, dim, generator=torch.Generator().manual_seed(0))

    def run(name, device, dtype):
        q, k, v, weight = (x.to(device, dtype).requires_grad_() for x in inputs)
        out = KERNELS[name].run(Packing(lengths, (name,), device), q, k, v, 0.0, None, reach)
        gradients = torch.autograd.grad((out.float() * weight.float()).sum(), (q, k, v))
        return [x.double().cpu() for x in (out, *gradients)]
    for ours, theirs in zip(run(name, device, dtype), run('groups', torch.device('cpu'), torch.float64)):
        assert (ours - theirs).norm() / theirs.norm() < 1e-2


@on_a_gpu
@pytest.mark.parametrize('name', ['ragged', 'varlen', 'groups'])
def test_dropout_on_a_gpu(name):
    lengths, device, share = np.array([1, 1, 3, 3, 150, 199]), torch.device('cuda', 0), .25
    packing, generator = Packing(lengths, (name,), device), torch.Generator().manual_seed(0)
    q, k, v, other, weight = torch.randn(5, lengths.sum(), 4, 64, generator=generator).to(device, torch.bfloat16)

    def attend(value, share, seed=0):
        torch.cuda.manual_seed(seed)
        return KERNELS[name].run(packing, q, k, value, share, None, None).float()
    with torch.random.fork_rng([device]):
        drawn = torch.stack([attend(v, share, seed) for seed in range(400)])
        assert torch.equal(attend(v, share, 1), drawn[1]) and not torch.equal(drawn[0], drawn[1])
        kept = drawn[:, :2].ne(0).float().mean().item()   # a text of one token: all or nothing
        assert abs(kept - (1 - share)) < .05
        assert (drawn.mean(0) - attend(v, 0.0)).abs().mean() < .03
        # attention is linear in the values: what is dropped forward must be dropped backward
        v.requires_grad_()
        (attend(v, share, 2) * weight.float()).sum().backward()
        forward, backward = (attend(other, share, 2) * weight.float()).sum(), (v.grad.float() * other.float()).sum()
    torch.testing.assert_close(backward, forward, rtol=.02, atol=5.0)
