"""Where the time of a bare training step goes on a GPU, by kinds of kernels, with the slowest ones by name.

The step is `gpu.py`'s. Gaps are what of its time, taken without the profiler, no kernel accounts for. On a CPU
(`--device cpu`) the table has PyTorch's operators, which shows that it runs.
"""
from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

import pandas as pd
import torch
from common import machine, markdown
from gpu import WAYS, Clock, bare_steps_of, device_there, distilbert
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

# The first that a kernel's name has says its kind.
KINDS = {
    'products': 'gemm|nvjet|cutlass|splitk|aten::.*mm',
    'optimiser': 'adam',
    'gradients of embeddings': '^_sums|embedding.*backward|embedding_dense',
    'attention': r'^(first_)?(forward|backward)(_\w+)?$|flash|scaled_dot_product',
    'sums over tokens or states': 'triton_(red|per)|reduce|aten::sum|layer_norm',
    'element by element': 'triton_poi|elementwise|aten::(add|mul|gelu|div|dropout|softmax)',
    'copies, casts and zeros': 'memcpy|memset|copy|fill|aten::(copy|zero)',
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--batch-size', type=int, default=32)
    parser.add_argument('--way', choices=WAYS, default='compiled')
    parser.add_argument('--steps', type=int, default=40)
    parser.add_argument('--names', type=int, default=25, help='kernels listed by name')
    parser.add_argument('--layers', type=int, default=6)
    parser.add_argument('--device', default='cuda')
    return parser.parse_args()


def kind_of(name: str) -> str:
    """A kernel's kind, by its name."""
    return next((kind for kind, names in KINDS.items() if re.search(names, name, re.IGNORECASE)), 'other')


def kernels(profiled: profile, device: torch.device, steps: int) -> Iterator[dict[str, str | float]]:
    """Milliseconds and launches a step of each kernel that ran on a device."""
    on_gpu = device.type == 'cuda'
    for event in profiled.key_averages():
        took = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        is_kernel = event.device_type == (DeviceType.CUDA if on_gpu else DeviceType.CPU)
        if is_kernel and took and not getattr(event, 'is_user_annotation', False):
            yield {'kind': kind_of(event.key), 'name': event.key[:90], 'milliseconds': took / 1e3 / steps,
                   'launches': event.count / steps}


def main() -> None:
    args = arguments()
    device = device_there(args.device)
    if device is None:
        return
    clock = Clock(device)
    steps, batches = bare_steps_of(distilbert(args.layers, device), args.way, args.batch_size, args.steps)
    step = clock.seconds(lambda: steps(batches), 3) / args.steps * 1e3
    with profile(activities=[ProfilerActivity.CUDA if device.type == 'cuda' else ProfilerActivity.CPU]) as profiled:
        steps(batches)
        clock.now()
    found = pd.DataFrame(kernels(profiled, device, args.steps)).sort_values('milliseconds', ascending=False)
    kinds = found.groupby('kind')[['milliseconds', 'launches']].sum().sort_values('milliseconds', ascending=False)
    kinds.loc['gaps'] = step - kinds.milliseconds.sum(), 0
    kinds.loc['a step'] = step, kinds.launches.sum()
    print(f'{machine()}\n\n## A step of {args.batch_size}, {args.way}\n\n{markdown(kinds.reset_index().round(3))}')
    print(f'\n{markdown(found.head(args.names).round(3))}')


if __name__ == '__main__':
    main()
