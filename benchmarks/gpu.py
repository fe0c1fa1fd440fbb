"""On a GPU: training steps, corpus encoding and exact search latency. Without one, says so and measures nothing.

A bare step is encoder, loss and optimiser on tokens that lie ready: launched kernel by kernel ("plain"), captured as a
CUDA graph, and captured after `torch.compile`. A trained step is one of `TasBalanced.fit`, compiled: the plan, tokens,
the in-batch teacher (none, stored scores, or live), the trainer and its checks. Texts are random ids with MS MARCO's
spread of lengths, weights are random: what is measured depends on neither.
"""
from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import machine, markdown
from transformers import DistilBertConfig, DistilBertModel

from pyterrier_tasb import BatchPlan, Encoder, ScoredPairs, Training
from pyterrier_tasb.encoding import Tokens
from pyterrier_tasb.encoding.precision import autocast_dtype
from pyterrier_tasb.encoding.transfer import moved
from pyterrier_tasb.search import search as exact_search
from pyterrier_tasb.teachers.maxsim import maxsim
from pyterrier_tasb.training.batches import TrainingBatch, TrainingBatches
from pyterrier_tasb.training.captured import CapturedLoss
from pyterrier_tasb.training.dual import dual_loss
from pyterrier_tasb.training.trainer import train

STEPS = 750_000   # the paper's run
TOGETHER = 10   # steps that are timed together: a trainer does not wait for each
VOCABULARY = 30_522
LONGEST = 200   # tokens of a passage
TEACHERS = ('no', 'stored', 'live')
WAYS = ('plain', 'captured', 'compiled')
PARTS = ('bare', 'trained', 'encoding', 'search')


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--batch-sizes', type=int, nargs='*', default=[32, 256])
    parser.add_argument('--parts', nargs='*', default=list(PARTS), choices=PARTS)
    parser.add_argument('--rounds', type=int, default=20, help='of 10 steps each')
    parser.add_argument('--passages', type=int, default=200_000, help='encoded')
    parser.add_argument('--index-size', type=int, default=8_841_823, help='vectors searched, in half precision')
    parser.add_argument('--layers', type=int, default=6)
    parser.add_argument('--device', default='cuda', help='cpu shows that it runs, and nothing else')
    return parser.parse_args()


class Padding:
    """Stands where a tokenizer would: ids are drawn, not read."""
    pad_token_id = 0


def distilbert(layers: int, device: torch.device) -> Encoder:
    """DistilBERT's size with random weights."""
    model = DistilBertModel(DistilBertConfig(n_layers=layers)).to(device)
    return Encoder(model, Padding(), query_max_length=30, doc_max_length=LONGEST)


def drawn(rng: np.random.Generator, n: int, mean: float, most: int) -> Tokens:
    """Texts of random ids with MS MARCO's spread of lengths."""
    lengths = np.clip(rng.gamma(3.7, mean / 3.7, n), 4, most).astype(int)
    ids = rng.integers(1000, VOCABULARY, lengths.sum())
    return Tokens(ids, np.concatenate([[0], np.cumsum(lengths)]))


def of_step(rng: np.random.Generator, size: int) -> Tokens:
    """A step's texts: queries and twice as many passages."""
    return Tokens.concat([drawn(rng, size, 9, 30), drawn(rng, 2 * size, 69, LONGEST)])


class Clock:
    """Medians of runs on a device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def now(self) -> float:
        if self.device.type == 'cuda':
            torch.cuda.synchronize()
        return time.perf_counter()

    def seconds(self, run: Callable[[], object], rounds: int) -> float:
        """Median of `rounds` after three that do not count."""
        times = []
        for number in range(rounds + 3):
            start = self.now()
            run()
            if number >= 3:
                times.append(self.now() - start)
        return float(np.median(times))


def peak(clock: Clock) -> float:
    """FLOP/s of one large product: what this GPU can do in the precision that steps take."""
    n = 8192 if clock.device.type == 'cuda' else 512
    a, b = (torch.randn(n, n, dtype=autocast_dtype('auto', clock.device), device=clock.device) for _ in range(2))
    return 2 * n**3 / clock.seconds(lambda: a @ b, 10)


def forward_flops(encoder: Encoder, lengths: np.ndarray) -> float:
    """Of a padding-free forward pass to vectors: two a weight and token outside the embeddings, and attention in texts.

    The last layer needs keys and values of all tokens, and the rest of first tokens only.
    """
    config = encoder.model.config
    weights = sum(p.numel() for name, p in encoder.model.named_parameters() if 'embeddings' not in name)
    in_layer, of_keys, whole = weights / config.n_layers, 2 * config.dim ** 2, config.n_layers - 1
    products = lengths.sum() * (in_layer * whole + of_keys) + len(lengths) * (in_layer - of_keys)
    return float(2 * products + 4 * config.dim * (whole * (lengths.astype(float) ** 2).sum() + lengths.sum()))


def step_row(name: str, took: float, tokens: float, flops: float, most: float) -> dict[str, str]:
    return {'': name, 'milliseconds': f'{took * 1e3:.1f}', 'tokens/s': f'{tokens / took:,.0f}',
            'of the peak': f'{3 * flops / took / most:.0%}', 'note': f'{STEPS:,} steps: {STEPS * took / 3600:.1f} h'}


def loss_of(vectors: torch.Tensor, margin: torch.Tensor,
            in_batch: torch.Tensor | None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    return dual_loss(*vectors.split(len(margin)), margin, in_batch)


def loss_by(way: str, encoder: Encoder) -> Callable[[TrainingBatch], tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    """A batch's loss, as `fit` computes it."""
    if way != 'plain' and encoder.captures:
        return CapturedLoss(encoder, loss_of, compiled=way == 'compiled')

    def plain(batch: TrainingBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return loss_of(encoder(batch.tokens)[moved(batch.rows, encoder.device)], batch.margin, batch.in_batch)
    return plain


Steps = Callable[[list[TrainingBatch]], None]


def bare_steps_of(encoder: Encoder, way: str, size: int, n_batches: int) -> tuple[Steps, list[TrainingBatch]]:
    """What trains on batches, and batches for it; all have come once."""
    rng = np.random.default_rng(0)
    encoder.train()
    update, loss = torch.optim.AdamW(encoder.parameters(), lr=1e-6, fused=True), loss_by(way, encoder)
    rows = torch.arange(size)
    batches = [TrainingBatch(of_step(rng, size), rows, rows + size, rows + 2 * size, torch.randn(size),
                             torch.randn(size, 2 * size), ())
               for _ in range(n_batches)]

    def steps(some: list[TrainingBatch]) -> None:
        for batch in some:
            loss(batch)[0].backward()
            update.step()
            update.zero_grad()
    steps(batches)   # shapes are captured when they first come
    return steps, batches


def bare_step(encoder: Encoder, way: str, size: int, rounds: int, clock: Clock, most: float) -> dict[str, str]:
    steps, batches = bare_steps_of(encoder, way, size, TOGETHER * min(rounds, 8))
    turns = itertools.cycle(range(0, len(batches), TOGETHER))
    took = clock.seconds(lambda: steps(batches[(at := next(turns)):at + TOGETHER]), rounds) / TOGETHER
    lengths = [batch.tokens.lengths for batch in batches]
    return step_row(f'bare step, {way}, B = {size}', took, np.mean([some.sum() for some in lengths]),
                    np.mean([forward_flops(encoder, some) for some in lengths]), most)


class Data:
    """20,000 queries of 5 pairs each over 100,000 passages."""

    def __init__(self, folder: Path) -> None:
        rng, n_queries, n_docs = np.random.default_rng(0), 20_000, 100_000
        query = np.repeat(np.arange(n_queries), 5)
        self.pairs = ScoredPairs.from_arrays(
            folder, [f'q{i}' for i in range(n_queries)], [f'd{i}' for i in range(n_docs)], query,
            rng.integers(0, n_docs, len(query)), rng.integers(0, n_docs, len(query)), rng.normal(3, 2, len(query)))
        self.queries, self.docs = drawn(rng, n_queries, 9, 30), drawn(rng, n_docs, 69, LONGEST)


class Live:
    """Late interaction over a model of DistilBERT's size, as `LateInteraction` computes it."""

    def __init__(self, data: Data, layers: int, device: torch.device) -> None:
        self.data, self.encoder = data, distilbert(layers, device).eval()

    @torch.inference_mode()
    def __call__(self, query: np.ndarray, docs: np.ndarray) -> torch.Tensor:
        both = [self.data.queries.take(query), self.data.docs.take(docs)]
        states, _ = self.encoder.token_states(Tokens.concat(both))
        of_query, of_docs = states.split([len(tokens.ids) for tokens in both])
        lengths = [torch.from_numpy(tokens.lengths) for tokens in both]
        return maxsim(of_query, lengths[0], of_docs, lengths[1]).cpu()


class Stored:
    """What stands where `TeacherScores` would."""

    def __init__(self, size: int) -> None:
        self.scores = np.random.default_rng(0).normal(0, 1, (size, 2 * size)).astype(np.float16)

    def __getitem__(self, step: int) -> np.ndarray:
        return self.scores.astype(np.float32)


def trained_step(encoder: Encoder, data: Data, teacher: str, size: int, rounds: int, layers: int, clock: Clock,
                 most: float) -> dict[str, str]:
    warm = 20
    teachers = {'no': lambda: None, 'stored': lambda: Stored(size), 'live': lambda: Live(data, layers, clock.device)}
    batches = TrainingBatches(BatchPlan(data.pairs, sampling='random', batch_size=size), data.queries, data.docs,
                              data.pairs.qids, teacher=teachers[teacher]())
    began, lengths, by_batch = [], [], loss_by('compiled', encoder)

    def loss(module: torch.nn.Module, batch: TrainingBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        began.append(time.perf_counter())   # no synchronisation: what is between two of these is what a step takes
        lengths.append(batch.tokens.lengths)
        return by_batch(batch)
    steps = TOGETHER * rounds + warm
    with tempfile.TemporaryDirectory() as folder:
        train(encoder, batches, loss, Training(steps=steps, batch_size=size, learning_rate=1e-6, log_every=TOGETHER,
                                               save_every=steps), output_dir=folder, device=clock.device)
    # medians, as the mean would count shapes that come for the first time; of tens, as every tenth step logs
    took = np.median([began[i + TOGETHER] - began[i] for i in range(warm - 1, steps - TOGETHER)]) / TOGETHER
    return step_row(f'trained step, B = {size}, {teacher} in-batch teacher', took,
                    np.mean([some.sum() for some in lengths]),
                    np.mean([forward_flops(encoder, some) for some in lengths]), most)


def bare_steps(args: argparse.Namespace, clock: Clock, most: float) -> Iterator[dict[str, str]]:
    encoder = distilbert(args.layers, clock.device)   # one for all: each is compiled by itself
    for size, way in itertools.product(args.batch_sizes, WAYS if clock.device.type == 'cuda' else WAYS[:1]):
        yield bare_step(encoder, way, size, args.rounds, clock, most)


def trained_steps(args: argparse.Namespace, clock: Clock, most: float) -> Iterator[dict[str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        encoder, data = distilbert(args.layers, clock.device), Data(Path(folder) / 'pairs')
        for size, teacher in itertools.product(args.batch_sizes, TEACHERS):
            yield trained_step(encoder, data, teacher, size, args.rounds, args.layers, clock, most)


def encoding(args: argparse.Namespace, clock: Clock, most: float) -> Iterator[dict[str, str]]:
    encoder, n = distilbert(args.layers, clock.device).eval(), args.passages
    tokens = drawn(np.random.default_rng(1), n, 69, LONGEST)
    encoder.encode(tokens.take(np.arange(min(n, 2000))))
    start = clock.now()
    encoder.encode(tokens)
    took = clock.now() - start
    yield {'': f'encoding {n:,} passages', 'milliseconds': f'{took * 1e3:,.0f}',
           'tokens/s': f'{len(tokens.ids) / took:,.0f}',
           'of the peak': f'{forward_flops(encoder, tokens.lengths) / took / most:.0%}',
           'note': f'{n / took:,.0f} passages/s'}


def searches(args: argparse.Namespace, clock: Clock, most: float) -> Iterator[dict[str, str]]:
    index = torch.randn(args.index_size, 768, dtype=torch.float16, device=clock.device)
    for size in (1, 10, 2000):
        queries = torch.randn(size, 768, device=clock.device)
        took = clock.seconds(lambda: exact_search(index, queries, 1000), 5)
        yield {'': f'search of {len(index):,} vectors, batch {size}', 'milliseconds': f'{took * 1e3:.1f}',
               'tokens/s': '', 'of the peak': '', 'note': f'{took / size * 1e3:.2f} ms a query, top 1000'}


def device_there(name: str) -> torch.device | None:
    """The device asked for; None, which is said, where it is a GPU and there is none."""
    device = torch.device(name)
    if device.type == 'cuda' and not torch.cuda.is_available():
        print(f'no GPU here: nothing was measured. {machine()}')
        return None
    return device


def main() -> None:
    args = arguments()
    device = device_there(args.device)
    if device is None:
        return
    clock = Clock(device)
    most = peak(clock)
    parts = {'bare': bare_steps, 'trained': trained_steps, 'encoding': encoding, 'search': searches}
    print(f'Peak: {most / 1e12:.2f} TFLOP/s, measured. {machine()}\n', flush=True)
    rows = []
    for row in itertools.chain.from_iterable(parts[name](args, clock, most) for name in args.parts):
        # a run that is cut short has said this much
        print(', '.join(f'{name} {value}'.strip() for name, value in row.items() if value), flush=True)
        rows.append(row)
    print(f'\n## GPU\n\n{markdown(pd.DataFrame(rows))}')


if __name__ == '__main__':
    main()
