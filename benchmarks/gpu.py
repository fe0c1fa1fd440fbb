"""On a GPU: step time, corpus encoding and exact search latency. Without one, says so and measures nothing."""
from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from common import machine, markdown
from transformers import DistilBertConfig, DistilBertModel

from pyterrier_tasb import Encoder
from pyterrier_tasb.encoding import Tokens
from pyterrier_tasb.search import search as exact_search
from pyterrier_tasb.training.dual import dual_loss

STEPS = 750_000   # the paper's run
VOCABULARY = 30_522


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--batch-sizes', type=int, nargs='*', default=[32, 256])
    parser.add_argument('--rounds', type=int, default=50)
    parser.add_argument('--passages', type=int, default=200_000, help='encoded')
    parser.add_argument('--index-size', type=int, default=8_841_823, help='vectors searched, in half precision')
    return parser.parse_args()


class Padding:
    """Stands where a tokenizer would: ids are drawn, not read."""
    pad_token_id = 0


def distilbert() -> Encoder:
    """DistilBERT's size with random weights: what is measured does not depend on their values."""
    model = DistilBertModel(DistilBertConfig()).cuda()
    return Encoder(model, Padding(), query_max_length=30, doc_max_length=200)


def drawn(rng: np.random.Generator, n: int, mean: float, most: int) -> Tokens:
    """Texts of random ids with MS MARCO's spread of lengths."""
    lengths = np.clip(rng.gamma(3.7, mean / 3.7, n), 4, most).astype(int)
    return Tokens.from_lists([rng.integers(1000, VOCABULARY, length).tolist() for length in lengths])


def seconds(run: Callable[[], object], rounds: int) -> float:
    """Median of `rounds` after three that do not count."""
    times = []
    for number in range(rounds + 3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        if number >= 3:
            times.append(time.perf_counter() - start)
    return float(np.median(times))


def peak() -> float:
    """FLOP/s of one large bf16 product: what this GPU can do."""
    n = 8192
    a, b = (torch.randn(n, n, dtype=torch.bfloat16, device='cuda') for _ in range(2))
    return 2 * n**3 / seconds(lambda: a @ b, 10)


def forward_flops(encoder: Encoder, lengths: np.ndarray) -> float:
    """Of a padding-free forward pass: two a weight and token outside the embeddings, and attention within texts."""
    config = encoder.model.config
    weights = sum(p.numel() for name, p in encoder.model.named_parameters() if 'embeddings' not in name)
    return float(2 * weights * lengths.sum() + 4 * config.n_layers * config.dim * (lengths.astype(float) ** 2).sum())


def training_step(encoder: Encoder, size: int, rounds: int, most: float) -> dict[str, str]:
    rng = np.random.default_rng(0)
    encoder.train()
    update = torch.optim.AdamW(encoder.parameters(), lr=1e-6, fused=True)
    batches = iter([Tokens.concat([drawn(rng, size, 9, 30), drawn(rng, 2 * size, 69, 200)]) for _ in range(rounds + 3)])
    teacher, margin = torch.randn(size, 2 * size).cuda(), torch.randn(size).cuda()
    lengths = []

    def step() -> None:
        tokens = next(batches)
        lengths.append(tokens.lengths)
        vectors = encoder(tokens)
        loss, _ = dual_loss(vectors[:size], vectors[size:2 * size], vectors[2 * size:], margin, teacher)
        loss.backward()
        update.step()
        update.zero_grad()
    took = seconds(step, rounds)
    return {'': f'training step, B = {size}', 'milliseconds': f'{took * 1e3:.1f}',
            'tokens/s': f'{np.mean([some.sum() for some in lengths]) / took:,.0f}',
            'of the peak': f'{3 * np.mean([forward_flops(encoder, some) for some in lengths]) / took / most:.0%}',
            'note': f'{STEPS:,} steps: {STEPS * took / 3600:.1f} h'}


def encoding(encoder: Encoder, n: int, most: float) -> dict[str, str]:
    tokens = drawn(np.random.default_rng(1), n, 69, 200)
    encoder.eval()
    encoder.encode(tokens.take(np.arange(min(n, 2000))))
    took = seconds(lambda: encoder.encode(tokens), 1)
    return {'': f'encoding {n:,} passages', 'milliseconds': f'{took * 1e3:,.0f}',
            'tokens/s': f'{len(tokens.ids) / took:,.0f}',
            'of the peak': f'{forward_flops(encoder, tokens.lengths) / took / most:.0%}',
            'note': f'{n / took:,.0f} passages/s'}


def search(n: int, dim: int, size: int) -> dict[str, str]:
    index = torch.randn(n, dim, dtype=torch.float16, device='cuda')
    queries = torch.randn(size, dim, device='cuda')
    took = seconds(lambda: exact_search(index, queries, 1000), 5)
    return {'': f'search of {n:,} vectors, batch {size}', 'milliseconds': f'{took * 1e3:.1f}', 'tokens/s': '',
            'of the peak': '', 'note': f'{took / size * 1e3:.2f} ms a query, top 1000'}


def main() -> None:
    args = arguments()
    if not torch.cuda.is_available():
        print(f'no GPU here: nothing was measured. {machine()}')
        return
    encoder, most = distilbert(), peak()
    rows = [training_step(encoder, size, args.rounds, most) for size in args.batch_sizes]
    rows.append(encoding(encoder, args.passages, most))
    rows += [search(args.index_size, encoder.dim, size) for size in (1, 10, 2000)]
    print(f'\n## GPU\n\n{markdown(pd.DataFrame(rows))}\n\nPeak: {most / 1e12:.0f} TFLOP/s in bf16, measured. '
          f'{machine()}, {encoder.strategy} forward passes')


if __name__ == '__main__':
    main()
