"""Train a dense retriever with TAS-Balanced on real text and compare it with BM25, in one command.

The collection is `pydocs`: the documentation of the Python packages on this machine. Every step is a public call;
README.md and examples/own_collection.py do the same to a collection of your own.
"""
from __future__ import annotations

import argparse
import platform
import time
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pyterrier as pt
import pyterrier_alpha as pta
from ir_measures import RR, R, nDCG

from pyterrier_tasb import LateInteraction, TasBalanced, Training, minilm, pydocs
from pyterrier_tasb.baselines import bm25

MEASURES = [nDCG @ 10, RR @ 10, R @ 100, R @ 1000]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--steps', type=int, default=60, help='training steps of the student')
    parser.add_argument('--teacher-steps', type=int, default=60, help='training steps of the teacher')
    parser.add_argument('--train-queries', type=int, default=3000, help='training queries, a random sample')
    parser.add_argument('--batch-size', type=int, default=32)
    parser.add_argument('--learning-rate', type=float, default=3e-5)
    parser.add_argument('--candidates', type=int, default=15, help='candidates a miner gives to each training query')
    parser.add_argument('--max-words', type=int, default=32, help='words of a passage, for every system alike')
    parser.add_argument('--packages', nargs='*', default=None, help='packages to read; default: see pydocs')
    parser.add_argument('--engine', default='auto', help='BM25 engine: terrier, pisa or auto')
    parser.add_argument('--doc2query', default='macavaney/doc2query-t5-base-msmarco', help='checkpoint or directory')
    parser.add_argument('--monot5', default='castorini/monot5-base-msmarco', help='checkpoint or directory')
    parser.add_argument('--seed', type=int, default=42)
    parser.add_argument('--out', type=Path, default=Path('runs/quickstart'), help='indexes, models, table, figures')
    return parser.parse_args()


@contextmanager
def step(name: str):  # noqa: ANN201
    """Print what is done, and how long it took."""
    print(f'\n== {name}', flush=True)
    start = time.perf_counter()
    yield
    print(f'   {time.perf_counter() - start:.0f} s', flush=True)


def optional_systems(args: argparse.Namespace, data: pydocs.PyDocs, systems: dict) -> dict:
    """docT5query and monoT5 rows where their checkpoints can be loaded; else a line that says what was missing."""
    found = {}
    try:
        from pyterrier_doc2query import Doc2Query
        expansion = Doc2Query(args.doc2query, append=True, fast_tokenizer=True, verbose=True)
        expanded = bm25(data.get_corpus_iter(), args.out / 'doct5query', engine=args.engine, name='docT5query',
                        expansion=expansion)
        found[expanded.label] = expanded.retriever
    except (OSError, ImportError, ValueError) as error:
        print(f'no docT5query row: {args.doc2query} could not be loaded ({first_line(error)}); --doc2query PATH')
    try:
        from pyterrier_t5 import MonoT5ReRanker
        mono = MonoT5ReRanker(tok_model=args.monot5, model=args.monot5, verbose=False)
        dense = systems['TAS-Balanced']
        found['TAS-Balanced % 100 >> monoT5'] = (dense % 100 >> mono).compile()
    except (OSError, ImportError, ValueError) as error:
        print(f'no monoT5 row: {args.monot5} could not be loaded ({first_line(error)}); --monot5 PATH')
    return found


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:100] if str(error).strip() else type(error).__name__


def main() -> None:
    args = arguments()
    start = time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)

    with step('reading the documentation of the installed packages'):
        data = pydocs.load(**({} if args.packages is None else {'packages': args.packages}), max_words=args.max_words)
        print(data.report())
        train, dev, test = (data.get_topics(split) for split in ('train', 'dev', 'test'))
        train = train.sample(min(args.train_queries, len(train)), random_state=args.seed)
        text = data.text_loader('text')

    with step('BM25'):
        sparse = bm25(data.get_corpus_iter(), args.out / 'bm25', engine=args.engine)
        print(sparse.label)

    with step('the untrained encoder: index and search'):
        student = TasBalanced(minilm(), doc_max_length=128, training=Training(
            steps=args.steps, batch_size=args.batch_size, learning_rate=args.learning_rate, seed=args.seed,
            positive_bonus=2.0, eval_every=max(1, args.steps // 4)))
        untrained = student.copy()
        untrained_index = untrained.index(data.get_corpus_iter(), args.out / 'untrained.flex', overwrite=True)

    with step('candidates for training: BM25 and the untrained encoder, any pipeline would do'):
        # retrieve once, use for teacher and student
        few = dict(num_results=args.candidates)
        miner = (bm25(data.get_corpus_iter(), args.out / 'bm25', engine=args.engine, **few).retriever
                 | untrained.retriever(untrained_index, **few))
        train_results, dev_results = (miner >> text)(train), (miner >> text)(dev.head(100))
        print(f'{len(train_results):,} candidates for {len(train):,} training queries')

    with step('the teacher: late interaction, trained on the labels'):
        teacher = LateInteraction(minilm(), doc_max_length=128, scale=2.0, training=Training(
            steps=args.teacher_steps, batch_size=args.batch_size, learning_rate=args.learning_rate, seed=args.seed))
        teacher.fit(train_results, data.get_qrels('train'))

    with step('the student: TAS-Balanced, the teacher both pairwise and in the batch'):
        student.pairwise_teacher = student.in_batch_teacher = teacher
        student.fit(train_results, data.get_qrels('train'), dev_results, data.get_qrels('dev'),
                    work_dir=args.out / 'work', resume=True)
        student.save(args.out / 'model', overwrite=True)

    with step('indexing with the trained encoder'):
        index = student.index(data.get_corpus_iter(), args.out / 'tasb.flex', overwrite=True)

    dense = student.retriever(index, text=data)
    systems = {
        sparse.label: sparse.retriever,
        'Untrained encoder': untrained.retriever(untrained_index, text=data),
        'TAS-Balanced': dense,
        'TAS-Balanced + BM25 (RRF)': pta.RRFusion(dense, sparse.retriever),
        **{f'TAS-Balanced, top {k} by teacher': (dense % k >> teacher) ^ dense for k in (10, 50, 100)},
    }
    systems |= optional_systems(args, data, systems)

    with step(f'pt.Experiment on {len(test):,} test queries'):
        table = pt.Experiment(systems, test, data.get_qrels('test'), [*MEASURES, 'mrt'], baseline=sparse.label,
                              correction='holm', round=4)
    table.to_csv(args.out / 'table.csv', index=False)
    shown = table[['name', *map(str, MEASURES), 'mrt', *(f'{measure} p-value corrected' for measure in MEASURES[:1])]]
    print(shown.to_string(index=False))
    print(f'\np-values: against BM25, Holm correction. {platform.machine()}, seed {args.seed}, '
          + ', '.join(f'{name} {version(name)}' for name in ('pyterrier', 'torch', 'transformers'))
          + f'; {time.perf_counter() - start:.0f} s in all')
    print(f"""
Table and figures are in {args.out}. With a collection of your own (corpus.jsonl, queries.*.tsv, qrels.*.tsv):

    {Path('.venv/bin/python')} examples/own_collection.py --data YOUR_DIRECTORY --out runs/mine
""")


if __name__ == '__main__':
    main()
