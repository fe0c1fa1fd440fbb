"""Pairs, tokens, clusters and plan at MS MARCO's size: seconds and peak resident memory, each in its own process.

`--scale 1` is the full size: 40M lines of teacher scores, 8.8M passages, 800K query vectors of 768 dimensions. Of
scores with texts there is a tenth, which is 3.5 GB.
"""
from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from common import machine, markdown, peak_memory

PARTS = ('pairs', 'pairs of string ids', 'pairs with texts', 'plan', 'tokens', 'clusters', 'clusters by scikit-learn')


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--scale', type=float, default=1.0, help='share of the full size')
    parser.add_argument('--parts', nargs='*', default=PARTS, choices=PARTS)
    parser.add_argument('--folder', type=Path, default=None, help='where files go; default: a temporary place')
    parser.add_argument('--measure', default=None, help=argparse.SUPPRESS)
    return parser.parse_args()


def make_pairs(file: Path, scale: float, id_prefix: str = '') -> None:
    """Lines as published: two scores with ten digits, ids in MS MARCO's ranges."""
    rng, lines = np.random.default_rng(0), int(40_000_000 * scale)
    qids = rng.choice(1_185_868, max(1, int(400_000 * scale)), replace=False)
    with open(file, 'w', encoding='ascii') as out:
        for start in range(0, lines, 1_000_000):
            n = min(1_000_000, lines - start)
            frame = pd.DataFrame({'pos': rng.normal(8, 2, n), 'neg': rng.normal(2, 4, n), 'q': rng.choice(qids, n),
                                  'p': rng.integers(0, 8_841_823, n), 'n': rng.integers(0, 8_841_823, n)})
            if id_prefix:
                frame = frame.assign(**{name: id_prefix + frame[name].astype(str) for name in ('q', 'p', 'n')})
            frame.to_csv(out, sep='\t', header=False, index=False, float_format='%.10f')


def make_scores_with_texts(file: Path, scale: float) -> None:
    """Lines as published in text form; a query has 100."""
    rng, lines = np.random.default_rng(0), int(4_000_000 * scale)
    docs, queries = list(passages(int(884_182 * scale), rng)), list(passages(max(1, lines // 100), rng, share=.1))
    with open(file, 'w', encoding='utf-8') as out:
        for pos_score, neg_score in rng.normal(8, 2, (lines, 2)):
            query, (pos, neg) = queries[rng.integers(len(queries))], rng.integers(len(docs), size=2)
            out.write(f'{pos_score:.10f}\t{neg_score:.10f}\t{query}\t{docs[pos]}\t{docs[neg]}\n')


def passages(n: int, rng: np.random.Generator, share: float = 1.0) -> Iterator[str]:
    """Texts of MS MARCO's lengths (mean 69 word pieces, 99th percentile about 169), or of a share of them."""
    from pyterrier_tasb import pydocs
    words = np.array(sorted({word for doc in pydocs.load().get_corpus_iter() for word in doc['text'].split()}))
    for start in range(0, n, 10_000):
        lengths = np.clip(share * rng.gamma(3.7, 6.0, 10_000), 5, 300).astype(int)
        drawn = words[np.minimum(rng.zipf(1.3, lengths.sum()) - 1, len(words) - 1)]
        ends = np.cumsum(lengths)
        for end, length in list(zip(ends, lengths))[:n - start]:
            yield ' '.join(drawn[end - length:end])


def make_texts(folder: Path, scale: float) -> None:
    """As many passages as MS MARCO has, out of words of pydocs."""
    from pyterrier_tasb import TextStore
    texts = passages(int(8_841_823 * scale), np.random.default_rng(0))
    TextStore.build(folder, ((str(i), text) for i, text in enumerate(texts)))


def make_vectors(file: Path, scale: float) -> None:
    rng, n = np.random.default_rng(0), int(800_000 * scale)
    vectors = np.lib.format.open_memmap(file, mode='w+', dtype=np.float32, shape=(n, 768))
    centres = rng.normal(size=(2000, 768)).astype(np.float32)
    for start in range(0, n, 50_000):
        size = min(50_000, n - start)
        noise = rng.standard_normal((size, 768), dtype=np.float32)
        vectors[start:start + size] = centres[rng.integers(0, 2000, size)] + noise
    vectors.flush()


def make(folder: Path, part: str, scale: float) -> None:
    """What `measure` reads, made beforehand and not measured."""
    part = part.removesuffix(' by scikit-learn')   # of the same vectors
    makers = {'pairs': (folder / 'scores.tsv', make_pairs), 'tokens': (folder / 'texts', make_texts),
              'pairs of string ids': (folder / 'names.tsv', partial(make_pairs, id_prefix='D')),
              'pairs with texts': (folder / 'scores-with-texts.tsv', make_scores_with_texts),
              'clusters': (folder / 'vectors.npy', make_vectors)}
    if part in makers and not makers[part][0].exists():
        makers[part][1](makers[part][0], scale)
    if part.startswith(('pairs', 'tokens')):   # what an earlier run made would be opened, and that timed
        shutil.rmtree(folder / part, ignore_errors=True)
    if part == 'plan' and not (folder / 'pairs').exists():
        make(folder, 'pairs', scale)
        measure(folder, 'pairs', scale)


def measure(folder: Path, part: str, scale: float) -> str:
    """Do the work of a part; returns what was done."""
    if part == 'pairs':
        from pyterrier_tasb import ScoredPairs
        return repr(ScoredPairs.from_teacher_file(folder / 'scores.tsv', folder / part))
    if part == 'pairs of string ids':
        from pyterrier_tasb import ScoredPairs
        return repr(ScoredPairs.from_teacher_file(folder / 'names.tsv', folder / part))
    if part == 'pairs with texts':
        from pyterrier_tasb import ScoredPairs
        pairs = ScoredPairs.from_text_file(folder / 'scores-with-texts.tsv', folder / part)
        return f'{pairs!r}, {len(pairs.docs):,} passages'
    if part == 'plan':
        from pyterrier_tasb import BatchPlan, QueryClusters, ScoredPairs
        pairs = ScoredPairs(folder / 'pairs')
        clusters = QueryClusters.from_assignment(np.random.default_rng(0).integers(0, 2000, pairs.n_queries))
        start = time.perf_counter()
        plan = BatchPlan(pairs, clusters)
        made, steps = time.perf_counter() - start, [500_000 + i for i in range(2000)]
        plan[0]
        start = time.perf_counter()
        for step in steps:
            plan[step]
        return f'bins in {made:.1f} s, {(time.perf_counter() - start) / len(steps) * 1e6:.0f} µs a batch of 32'
    if part == 'tokens':
        from transformers import AutoTokenizer

        from pyterrier_tasb import TextStore, minilm
        from pyterrier_tasb.encoding import TokenStore
        tokenizer = AutoTokenizer.from_pretrained(minilm())
        store = TokenStore.build(folder / 'tokens', TextStore(folder / 'texts'), tokenizer, 200)
        lengths = store.lengths
        return f'{store!r}: mean {lengths.mean():.0f}, 99th percentile {np.percentile(lengths, 99):.0f} word pieces'
    vectors, k = np.load(folder / 'vectors.npy', mmap_mode='r'), max(1, int(2000 * min(1, scale * 2)))
    if part == 'clusters':
        from pyterrier_tasb import QueryClusters
        clusters = QueryClusters.fit(vectors, k)
        return f'{clusters!r}, {spread(vectors, clusters.centroids, clusters.assignment):.1f} from their centres'
    from sklearn.cluster import MiniBatchKMeans

    from pyterrier_tasb.sampling.clusters import TRAINED_ON
    # as many as `QueryClusters.fit` trains on
    sample = np.sort(np.random.default_rng(0).permutation(len(vectors))[:TRAINED_ON * k])
    found = MiniBatchKMeans(k, batch_size=10 * k, n_init=1, random_state=0).fit(vectors[sample])
    nearest = np.concatenate([found.predict(vectors[start:start + 50_000]) for start in range(0, len(vectors), 50_000)])
    return f'MiniBatchKMeans, {spread(vectors, found.cluster_centers_, nearest):.1f} from their centres'


def spread(vectors: np.ndarray, centres: np.ndarray, labels: np.ndarray) -> float:
    """Mean squared distance to the centre: what k-means makes small."""
    total = 0.0
    for start in range(0, len(vectors), 50_000):
        some = slice(start, start + 50_000)
        total += float(((vectors[some] - centres[labels[some]]) ** 2).sum())
    return total / len(vectors)


def main() -> None:
    args = arguments()
    if args.measure:
        start = time.perf_counter()
        done = measure(args.folder, args.measure, args.scale)
        print(f'{args.measure}\t{time.perf_counter() - start:.1f}\t{peak_memory():.2f}\t{done}')
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.folder or Path(temporary)) / f'{args.scale:g}'
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        for part in args.parts:
            make(folder, part, args.scale)
            command = [sys.executable, __file__, '--measure', part, '--folder', str(folder), '--scale', str(args.scale)]
            line = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
            rows.append(line.split('\t'))
            print(line, flush=True)
    print(f'\n## Size {args.scale:g} of MS MARCO\n')
    print(markdown(pd.DataFrame(rows, columns=['', 'seconds', 'peak GB', 'done'])))
    print(f'\n{machine()}')


if __name__ == '__main__':
    main()
