"""Which tiles our GPU kernels are fastest with: attention within texts, and gradients of embeddings.

The texts are a step's of `gpu.py`, of DistilBERT's size. In Triton's interpreter (`TRITON_INTERPRET=1` and
`--device cpu`) the tables show that it runs. `ragged_attention.py` and `embedding_gradients.py` hold what is used.
"""
from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import torch
from common import machine, markdown
from gpu import LONGEST, VOCABULARY, Clock, device_there, of_step

from pyterrier_tasb.training.captured import sorted_places

HEADS, DIM, DROPOUT = 12, 64, .1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--batch-sizes', type=int, nargs='*', default=[32, 256])
    parser.add_argument('--blocks', type=int, nargs='*', default=[16, 32, 64], help='tokens of a program of attention')
    parser.add_argument('--warps', type=int, nargs='*', default=[1, 2, 4], help='of a program of attention')
    parser.add_argument('--rows', type=int, nargs='*', default=[4, 8, 32], help='of a program of embeddings')
    parser.add_argument('--columns', type=int, nargs='*', default=[128, 256], help='of a program of embeddings')
    parser.add_argument('--heads', type=int, default=HEADS)
    parser.add_argument('--device', default='cuda')
    return parser.parse_args()


def microseconds(run: Callable[[], object], device: torch.device) -> float:
    """Median time; on a GPU without what launching takes."""
    if device.type == 'cuda':
        from triton.testing import do_bench_cudagraph
        return do_bench_cudagraph(run, return_mode='median') * 1e3
    return Clock(device).seconds(run, 1) * 1e6


def attention(args: argparse.Namespace, size: int, device: torch.device) -> Iterator[dict[str, str | int]]:
    from pyterrier_tasb.encoding import ragged_attention
    operators, tokens = torch.ops.pyterrier_tasb, of_step(np.random.default_rng(0), size)
    dtype = torch.bfloat16 if device.type == 'cuda' else torch.float32   # as the interpreter computes
    joint = torch.randn(len(tokens.ids), 3, args.heads, DIM, dtype=dtype, device=device)
    bounds = torch.from_numpy(tokens.offsets.astype(np.int32)).to(device)
    options = LONGEST, DROPOUT, DIM ** -.5, 2**30
    for block, warps in itertools.product(args.blocks, args.warps):
        ragged_attention.BLOCK, ragged_attention.WARPS = block, warps
        found = operators.joint_attention(joint, bounds, *options)
        took = [microseconds(lambda: operators.joint_attention(joint, bounds, *options), device),
                microseconds(lambda found=found: operators.joint_attention_backward(found[0], joint, *found, bounds,
                                                                                    *options), device)]
        yield {'B': size, 'tokens of a block': block, 'warps': warps,
               **{name: f'{some:.1f}' for name, some in zip(('forward µs', 'backward µs'), took)}}


def embeddings(args: argparse.Namespace, size: int, device: torch.device) -> Iterator[dict[str, str | int]]:
    from pyterrier_tasb.encoding import embedding_gradients
    tokens, width = of_step(np.random.default_rng(0), size), args.heads * DIM
    table = torch.nn.Embedding(VOCABULARY, width, device=device)
    ids, found = torch.from_numpy(tokens.ids.astype(np.int64)).to(device), torch.empty_like(table.weight)
    order, bounds = (torch.from_numpy(some).to(device) for some in sorted_places(tokens.ids))
    grad = torch.randn(len(ids), width, device=device)
    for rows, columns in itertools.product(args.rows, args.columns):
        embedding_gradients.ROWS, embedding_gradients.COLUMNS = rows, columns
        with embedding_gradients.used(table, order, bounds, found):
            took = microseconds(lambda: torch.autograd.grad(table(ids), table.weight, grad), device)
        yield {'B': size, 'rows': rows, 'columns': columns, 'lookup, zeros and sums µs': f'{took:.1f}'}


def main() -> None:
    args = arguments()
    device = device_there(args.device)
    if device is None:
        return
    print(machine())
    for size, (name, rows_of) in itertools.product(args.batch_sizes, (
            ('Attention, one layer', attention), ('Gradients of embeddings', embeddings))):
        print(f'\n## {name}, B = {size}\n', flush=True)
        rows = []
        for row in rows_of(args, size, device):   # shown as they come: compiling takes long, and may be cut off
            print(', '.join(f'{key} {value}' for key, value in row.items()), flush=True)
            rows.append(row)
        print(f'\n{markdown(pd.DataFrame(rows))}', flush=True)


if __name__ == '__main__':
    main()
