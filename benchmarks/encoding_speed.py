"""Passages encoded a second and peak memory: ours against SentenceTransformer.encode and pyterrier_dr.HgfBiEncoder.

Each runs in a process of its own for the memory, and interleaved in one process for the time. bf16 is left out where
the CPU does not multiply in it.
"""
from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence

import pandas as pd
from common import computes, interleaved, machine, markdown, peak_memory, report

from pyterrier_tasb import Encoder, minilm, pydocs

PARTS = ('time', 'memory')
NAMES = ('HgfBiEncoder', 'SentenceTransformer', 'ours fp32', 'ours bf16')


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--passages', type=int, default=1024)
    parser.add_argument('--max-words', type=int, default=60)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--model', default=None, help='default: the packaged MiniLM')
    parser.add_argument('--parts', nargs='*', default=PARTS, choices=PARTS)
    parser.add_argument('--memory-of', default=None, help=argparse.SUPPRESS)
    return parser.parse_args()


def encoders(path: str, names: Sequence[str]) -> dict[str, Callable[[list[str]], object]]:
    """Name → texts to vectors."""
    def hgf() -> Callable:
        from pyterrier_dr import HgfBiEncoder
        model = HgfBiEncoder.from_pretrained(path, batch_size=32, device='cpu')
        model.tokenizer.model_max_length = 200
        return model.encode_docs

    def st() -> Callable:
        from sentence_transformers import SentenceTransformer
        model = SentenceTransformer(path, device='cpu')
        model.max_seq_length = 200
        return lambda texts: model.encode(texts, batch_size=32)

    def ours(amp: str) -> Callable:
        encoder = Encoder.load(path, amp=amp, doc_max_length=200, device='cpu')
        return lambda texts: encoder.encode(encoder.tokenise(texts, 'doc'))

    makers = dict(zip(NAMES, (hgf, st, lambda: ours('off'), lambda: ours('bf16')), strict=True))
    return {name: makers[name]() for name in names}


def time(path: str, texts: list[str], rounds: int, names: Sequence[str]) -> None:
    seconds = interleaved({name: lambda _, encode=encode: encode(texts)
                           for name, encode in encoders(path, names).items()}, rounds)
    ours = [name for name in names if name.startswith('ours')]
    for peer in ('SentenceTransformer', 'HgfBiEncoder'):
        report(f'Encoding against {peer}', {name: seconds[name] for name in (peer, *ours)}, len(texts), 'passages',
               dict.fromkeys(ours, peer))


def memory(names: Sequence[str]) -> None:
    rows = []
    for name in names:
        command = [sys.executable, *sys.argv, '--memory-of', name]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        before, after = done.stdout.split()[-2:]
        rows.append({'': name, 'GB with the model loaded': before, 'peak GB when done': after})
    print(f'## Memory\n\n{markdown(pd.DataFrame(rows))}\n')


def main() -> None:
    args = arguments()
    path = args.model or minilm()
    texts = [doc['text'] for doc in pydocs.load(max_words=args.max_words).get_corpus_iter()][:args.passages]
    if args.memory_of:
        encode = encoders(path, (args.memory_of,))[args.memory_of]
        encode(texts[:8])
        before = peak_memory()
        encode(texts)
        print(f'{before:.2f} {peak_memory():.2f}')
        return
    names = [name for name in NAMES if computes(name)]
    if 'time' in args.parts:
        time(path, texts, args.rounds, names)
    if 'memory' in args.parts:
        memory(names)
    print(machine())


if __name__ == '__main__':
    main()
