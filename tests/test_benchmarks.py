"""Every benchmark runs, small; what it measures is not looked at."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pyterrier_tasb.encoding.precision import has_bf16

BENCHMARKS = Path(__file__).parent.parent / 'benchmarks'
BF16 = has_bf16(torch.device('cpu'))


def _run(name, *arguments, cwd, **environment):
    done = subprocess.run([sys.executable, str(BENCHMARKS / name), *map(str, arguments)], cwd=cwd, text=True,
                          capture_output=True, env={**os.environ, 'HF_HUB_OFFLINE': '1', **environment})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert 'torch 2.' in done.stdout and 'threads' in done.stdout   # the machine and the versions
    return done.stdout


def test_training_speed(tmp_path, minilm_dir):
    out = _run('training_speed.py', '--rounds', 1, '--batch-size', 2, '--max-words', 24, cwd=tmp_path)
    for row in ('plain loop fp32, live teacher', 'ours padded fp32', 'ours sorted fp32',
                'ours packed fp32, live teacher'):
        assert f'| {row} |' in out
    for row in ('sentence-transformers bf16', 'ours packed bf16', 'ours packed bf16, cached teacher'):
        assert (f'| {row} |' in out) == BF16
    assert out.count('## ') == 3 + BF16 and out.count('×') >= (12 if BF16 else 8)


def test_encoding_speed(tmp_path, minilm_dir):
    out = _run('encoding_speed.py', '--rounds', 1, '--passages', 8, '--max-words', 24, cwd=tmp_path)
    assert out.count('\n| ours fp32 |') == 3 and out.count('\n| ours bf16 |') == 3 * BF16
    assert out.count('×') == 2 + 2 * BF16 and 'peak GB' in out


def test_scale(tmp_path, minilm_dir):
    out = _run('scale.py', '--scale', 2e-4, cwd=tmp_path)
    for part in ('pairs', 'pairs of string ids', 'pairs with texts', 'plan', 'tokens', 'clusters',
                 'clusters by scikit-learn'):
        assert f'| {part} |' in out
    assert 'µs a batch' in out and 'mean' in out


def test_quality_vs_time(tmp_path, minilm_dir):
    out = _run('quality_vs_time.py', '--packages', 'logging', 'argparse', 'email', '--minutes', 2, '--minute', 6,
               '--teacher-steps', 1, '--pairwise-weight', 1, '--batch-size', 4, '--train-queries', 40, '--clusters', 2,
               '--max-words', 24, '--splits', 'test', 'held-out', '--dense-miner', '--out', tmp_path,
               '--peer-teacher-steps', 1, cwd=tmp_path)
    assert 'negatives mined in' in out
    assert all(f'{name}: minute 2' in out for name in ('ours', 'mnrl', 'margin-mse'))
    assert (tmp_path / 'quality_vs_time.md').exists() and (tmp_path / 'quality_vs_time.png').exists()


def test_gpu_says_when_there_is_none(tmp_path):
    out = _run('gpu.py', '--rounds', 1, '--passages', 200, '--index-size', 2000, cwd=tmp_path)
    assert 'no GPU here' in out or 'search of 2,000' in out


def test_gpu_runs_where_there_is_none(tmp_path):
    out = _run('gpu.py', '--device', 'cpu', '--layers', 1, '--rounds', 1, '--batch-sizes', 2, '--passages', 20,
               '--index-size', 500, cwd=tmp_path)
    for row in ('bare step, plain, B = 2', 'trained step, B = 2, live in-batch teacher', 'encoding 20 passages',
                'search of 500 vectors, batch 2000'):
        assert f'| {row} |' in out
    assert ' nan' not in out


def test_gpu_profile(tmp_path):
    out = _run('gpu_profile.py', '--device', 'cpu', '--layers', 1, '--steps', 2, '--batch-size', 2, '--way', 'plain',
               cwd=tmp_path)
    for row in ('products', 'optimiser', 'gaps', 'a step'):
        assert f'| {row} |' in out


def test_gpu_tiles(tmp_path):
    pytest.importorskip('triton')
    out = _run('gpu_tiles.py', '--device', 'cpu', '--batch-sizes', 1, '--blocks', 64, '--warps', 1, '--rows', 32,
               '--columns', 128, '--heads', 1, cwd=tmp_path, TRITON_INTERPRET='1')
    assert '| 1 | 64 | 1 |' in out and '| 1 | 32 | 128 |' in out
