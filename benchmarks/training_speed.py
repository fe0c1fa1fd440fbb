"""Training triples a second: ours against sentence-transformers' MarginMSELoss and against a plain loop.

The plain loop encodes as the reference trainer does: query, positive, query again, negative, each padded on its own,
with the in-batch teacher live. All train the same model on the same triples with AdamW; rounds are interleaved.
Rows in bf16 are left out where the CPU does not multiply in it: emulation is hundreds of times slower.
"""
from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import computes, interleaved, machine, report
from transformers import AutoModel, AutoTokenizer

from pyterrier_tasb import BatchPlan, Encoder, LateInteraction, ScoredPairs, TeacherScores, TextStore, minilm, pydocs
from pyterrier_tasb.encoding import TokenStore
from pyterrier_tasb.training.batches import TrainingBatches
from pyterrier_tasb.training.dual import dual_loss


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--batch-size', type=int, default=32)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--steps', type=int, default=1, help='of a round')
    parser.add_argument('--max-words', type=int, default=60, help='of a passage: MS MARCO has 69 word '
                        'pieces on average')
    parser.add_argument('--model', default=None, help='default: the packaged MiniLM')
    parser.add_argument('--only', nargs='*', default=None, help='rows whose name has one of these words')
    return parser.parse_args()


class Data:
    """Random triples of pydocs with random margins: what is learnt does not matter here."""

    def __init__(self, folder: Path, args: argparse.Namespace, encoder: Encoder) -> None:
        data = pydocs.load(max_words=args.max_words)
        topics = data.get_topics('train').merge(data.get_qrels('train'), on='qid').drop_duplicates('qid')
        docs = list(data.get_corpus_iter())
        row_of = {doc['docno']: i for i, doc in enumerate(docs)}
        rng, n = np.random.default_rng(0), len(topics)
        self.queries = TextStore.build(folder / 'queries', zip(topics['qid'], topics['query'], strict=True))
        self.docs = TextStore.build(folder / 'docs', ((doc['docno'], doc['text']) for doc in docs))
        self.pairs = ScoredPairs.from_arrays(
            folder / 'pairs', topics['qid'].tolist(), [doc['docno'] for doc in docs], np.arange(n),
            topics['docno'].map(row_of).to_numpy(), rng.integers(0, len(docs), n), rng.normal(3, 2, n))
        self.plan = BatchPlan(self.pairs, sampling='random', batch_size=args.batch_size, seed=0)
        self.query_tokens = TokenStore.build(folder / 'query-tokens', self.queries, encoder.tokenizer, 30)
        self.doc_tokens = TokenStore.build(folder / 'doc-tokens', self.docs, encoder.tokenizer, 200)
        lengths = self.doc_tokens.lengths
        print(f'{len(docs):,} passages of {lengths.mean():.0f} word pieces '
              f'(99th percentile {np.percentile(lengths, 99):.0f})')

    def texts(self, step: int) -> tuple[list[str], list[str], list[str], torch.Tensor]:
        """Queries, positives, negatives and margins of a batch."""
        batch = self.plan[step]
        return (self.queries.take(batch.query), self.docs.take(batch.pos), self.docs.take(batch.neg),
                torch.from_numpy(batch.margin))


def optimiser(module: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-5, fused=True)


def ours(data: Data, base: Encoder, strategy: str, amp: str, teacher: object | None) -> Callable[[int], None]:
    """One optimiser step of `TasBalanced.fit`."""
    encoder = Encoder(copy.deepcopy(base.model), base.tokenizer, pooling='mean', normalize=True, strategy=strategy,
                      amp=amp).train()
    batches = TrainingBatches(data.plan, data.query_tokens, data.doc_tokens, data.pairs.qids, teacher=teacher)
    update = optimiser(encoder)

    def step(number: int) -> None:
        batch = batches[number]
        vectors = encoder(batch.tokens) * 20 ** .5
        loss, _ = dual_loss(vectors[batch.query], vectors[batch.pos], vectors[batch.neg], batch.margin, batch.in_batch)
        loss.backward()
        update.step()
        update.zero_grad()
    return step


def sentence_transformers(data: Data, path: str, amp: bool) -> Callable[[int], None]:
    """One optimiser step of MarginMSELoss, without the overhead of a trainer."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.losses import MarginMSELoss
    model = SentenceTransformer(path, device='cpu').train()
    model.max_seq_length = 200
    loss, update = MarginMSELoss(model), optimiser(model)

    def step(number: int) -> None:
        *columns, margin = data.texts(number)
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=amp):
            value = loss([model.tokenize(texts) for texts in columns], margin)
        value.backward()
        update.step()
        update.zero_grad()
    return step


def plain_loop(data: Data, path: str, with_teacher: bool) -> Callable[[int], None]:
    """One optimiser step as the reference trainer takes it."""
    model, tokenizer = AutoModel.from_pretrained(path).train(), AutoTokenizer.from_pretrained(path)
    theirs = AutoModel.from_pretrained(path).eval() if with_teacher else None
    update = optimiser(model)

    def states(model: torch.nn.Module, texts: list[str], length: int) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors='pt')
        return model(**inputs).last_hidden_state, inputs['attention_mask'].bool()

    def encode(texts: list[str], length: int) -> torch.Tensor:
        return states(model, texts, length)[0][:, 0]

    def late(queries: list[str], docs: list[str]) -> torch.Tensor:
        with torch.no_grad():
            q, q_mask = states(theirs, queries, 30)
            d, d_mask = states(theirs, docs, 200)
            scores = torch.einsum('qth,dsh->qdts', q, d).masked_fill(~d_mask[None, :, None], -torch.inf)
            return scores.max(-1).values.masked_fill(~q_mask[:, None], 0).sum(-1)

    def step(number: int) -> None:
        queries, pos, neg, margin = data.texts(number)
        q_pos, p = encode(queries, 30), encode(pos, 200)
        q_neg, n = encode(queries, 30), encode(neg, 200)
        scores = torch.cat([q_pos @ p.T, q_neg @ n.T], 1)
        rows = torch.arange(len(queries))
        loss = ((scores[rows, rows] - scores[rows, rows + len(rows)] - margin) ** 2).mean()
        if with_teacher:
            wanted = torch.cat([late(queries, pos), late(queries, neg)], 1)
            difference = (scores[rows, rows][:, None] - scores) - (wanted[rows, rows][:, None] - wanted)
            loss = loss + .75 * (difference ** 2).mean()
        loss.backward()
        update.step()
        update.zero_grad()
    return step


def main() -> None:
    args = arguments()
    path = args.model or minilm()
    with tempfile.TemporaryDirectory() as folder:
        base = Encoder.load(path, amp='off', doc_max_length=200, device='cpu')
        data = Data(Path(folder), args, base)
        teacher = LateInteraction(path, doc_max_length=200, cache_bytes=0, device='cpu')
        live = teacher.bind(data.queries, data.docs)
        n_batches = (args.rounds + 1) * args.steps
        cached = TeacherScores.build(Path(folder) / 'scores', teacher, data.plan, data.queries, data.docs,
                                     steps=n_batches)
        makers = {
            'sentence-transformers fp32': lambda: sentence_transformers(data, path, amp=False),
            'sentence-transformers bf16': lambda: sentence_transformers(data, path, amp=True),
            'plain loop fp32': lambda: plain_loop(data, path, with_teacher=False),
            'plain loop fp32, live teacher': lambda: plain_loop(data, path, with_teacher=True),
            'ours padded fp32': lambda: ours(data, base, 'padded', 'off', None),
            'ours sorted fp32': lambda: ours(data, base, 'sorted', 'off', None),
            'ours packed fp32': lambda: ours(data, base, 'packed', 'off', None),
            'ours packed bf16': lambda: ours(data, base, 'packed', 'bf16', None),
            'ours packed fp32, live teacher': lambda: ours(data, base, 'packed', 'off', live),
            'ours packed fp32, cached teacher': lambda: ours(data, base, 'packed', 'off', cached),
            'ours packed bf16, live teacher': lambda: ours(data, base, 'packed', 'bf16', live),
            'ours packed bf16, cached teacher': lambda: ours(data, base, 'packed', 'bf16', cached),
        }
        steps = {name: make() for name, make in makers.items()
                 if computes(name) and (args.only is None or any(word in name for word in args.only))}
        variants = {name: lambda number, step=step: [step(number * args.steps + i) for i in range(args.steps)]
                    for name, step in steps.items()}
        seconds = interleaved(variants, args.rounds)
    def against(peer: str, *names: str) -> None:
        if peer in seconds:
            pairs = {name: peer for name in names if name in seconds}
            report(f'Training, batches of {args.batch_size} triples, against {peer}',
                   {name: seconds[name] for name in (peer, *pairs)}, args.batch_size * args.steps, 'triples', pairs)
    with_teacher = [name for name in seconds if name.startswith('ours') and 'teacher' in name]
    without = [name for name in seconds if name.startswith('ours') and 'teacher' not in name]
    against('sentence-transformers fp32', 'sentence-transformers bf16', 'plain loop fp32', *without)
    against('sentence-transformers bf16', 'ours packed bf16')
    against('plain loop fp32, live teacher', *with_teacher)
    against('ours packed fp32', 'ours packed fp32, cached teacher', 'ours packed fp32, live teacher')
    print(machine())


if __name__ == '__main__':
    main()
