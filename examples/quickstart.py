"""Train a dense retriever with TAS-Balanced on real text and compare it with BM25, in one command.

The collection is `pydocs`: the documentation of the Python packages on this machine. Every step is a public call;
README.md and examples/own_collection.py do the same to a collection of your own.
"""
from __future__ import annotations

import argparse
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pyterrier as pt
import pyterrier_alpha as pta
from _script import at_least_1, run_script
from ir_measures import RR, R, nDCG

from pyterrier_tasb import LateInteraction, TasBalanced, Training, minilm, plots, pydocs
from pyterrier_tasb.baselines import bm25
from pyterrier_tasb.encoding.encoder import weights_fingerprint
from pyterrier_tasb.machine import hardware, versions

MEASURES = [nDCG @ 10, RR @ 10, R @ 100, R @ 1000]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--steps', type=int, default=40, help='training steps of the student')
    parser.add_argument('--teacher-steps', type=int, default=40, help='training steps of the teacher')
    parser.add_argument('--train-queries', type=at_least_1, default=1500, help='training queries, a random sample')
    parser.add_argument('--dev-queries', type=at_least_1, default=60, help='validation queries, a random sample')
    parser.add_argument('--batch-size', type=int, default=32)
    parser.add_argument('--learning-rate', type=float, default=5e-5)
    parser.add_argument('--candidates', type=at_least_1, default=10, help='of each of the two miners')
    parser.add_argument('--max-words', type=int, default=32, help='words of a passage, for every system alike')
    parser.add_argument('--packages', nargs='*', default=pydocs.DEFAULT_PACKAGES, help='packages to read')
    parser.add_argument('--engine', default='auto', choices=['auto', 'terrier', 'pisa'], help='of BM25')
    parser.add_argument('--doc2query', default='macavaney/doc2query-t5-base-msmarco', help='checkpoint or directory')
    parser.add_argument('--monot5', default='castorini/monot5-base-msmarco', help='checkpoint or directory')
    parser.add_argument('--seed', type=int, default=42)
    parser.add_argument('--out', type=Path, default=Path('runs/quickstart'), help='indexes, model, table, figures')
    return parser.parse_args()


@contextmanager
def step(name: str):  # noqa: ANN201
    """Print what is done, and how long it took."""
    print(f'\n== {name}', flush=True)
    start = time.perf_counter()
    yield
    print(f'   {time.perf_counter() - start:.0f} s', flush=True)


def check_checkpoint(name: str) -> None:
    """Raise at once, without retries, where a checkpoint is neither a directory, nor cached, nor reachable."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    if not Path(name).is_dir() and not isinstance(try_to_load_from_cache(name, 'config.json'), str):
        HfApi().model_info(name, timeout=5)


def optional_systems(args: argparse.Namespace, data: pydocs.PyDocs, dense: pt.Transformer, work: Path) -> dict:
    """docT5query and monoT5 rows where their checkpoints can be loaded; else a line that says what was missing."""
    found = {}
    try:
        check_checkpoint(args.doc2query)
        from pyterrier_doc2query import Doc2Query
        expansion = Doc2Query(args.doc2query, append=True, fast_tokenizer=True, verbose=True)
        expanded = bm25(data.get_corpus_iter(), work / f'doct5query-{weights_fingerprint(expansion.model)}',
                        engine=args.engine, name='docT5query', expansion=expansion)
        found[expanded.label] = expanded.retriever
    except Exception as error:   # whatever a download or a checkpoint can raise
        print(f'no docT5query row: {args.doc2query} could not be loaded ({first_line(error)}); --doc2query PATH')
    try:
        check_checkpoint(args.monot5)
        from pyterrier_t5 import MonoT5ReRanker
        mono = MonoT5ReRanker(tok_model=args.monot5, model=args.monot5, verbose=False)
        found['TAS-Balanced, top 100 by monoT5'] = (dense % 100 >> mono).compile()
    except Exception as error:
        print(f'no monoT5 row: {args.monot5} could not be loaded ({first_line(error)}); --monot5 PATH')
    return found


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f'{type(error).__name__}: {lines[0][:100]}' if lines else type(error).__name__


def sample(topics: pd.DataFrame, n: int, seed: int) -> pd.DataFrame:
    return topics.sample(min(n, len(topics)), random_state=seed)


def draw(out: Path, student: TasBalanced, batches: tuple, results: dict, qrels: pd.DataFrame) -> None:
    """The four figures."""
    out.mkdir(parents=True, exist_ok=True)
    plan, queries, _ = batches
    texts = queries.take(np.arange(len(queries)))
    vectors = TasBalanced(minilm()).encode_queries(texts)
    for name, figure in {
        'recall': plots.recall(results, qrels),
        'margins': plots.margins(plan),
        'learning_curve': plots.learning_curve(student.record),
        'clusters': plots.clusters(plan.clusters, vectors, texts),
    }.items():
        figure.savefig(out / f'{name}.png')
    print(f'recall, margins, learning_curve and clusters are in {out}')


def main() -> None:
    args = arguments()
    start = time.perf_counter()

    with step('reading the documentation of the installed packages'):
        data = pydocs.load(args.packages, max_words=args.max_words)
        print(data.report())
        train, dev = sample(data.get_topics('train'), args.train_queries, args.seed), data.get_topics('dev')
        dev, test, text = sample(dev, args.dev_queries, args.seed), data.get_topics('test'), data.text_loader('text')
    work = args.out / 'work' / f'{data.fingerprint}-{args.seed}-{args.train_queries}-{args.candidates}'

    with step('BM25'):
        sparse = bm25(data.get_corpus_iter(), work / 'bm25', engine=args.engine)
        print(sparse.label)

    with step('the untrained encoder: index and search'):
        student = TasBalanced(minilm(), corpus=data, doc_max_length=128, training=Training(
            steps=args.steps, batch_size=args.batch_size, learning_rate=args.learning_rate, seed=args.seed,
            positive_bonus=2.0, eval_every=max(1, args.steps // 2)))
        untrained = student.copy()
        untrained_index = untrained.index(data.get_corpus_iter(), work / 'untrained.flex', overwrite=True)

    with step('candidates for training: BM25 and the untrained encoder, any pipeline would do'):
        few = dict(num_results=args.candidates)
        miner = (bm25(data.get_corpus_iter(), work / 'bm25', engine=args.engine, **few).retriever
                 | untrained.retriever(untrained_index, **few)) >> text
        train_results, dev_results = miner(train), miner(dev)   # retrieved once, used for teacher and student
        print(f'{len(train_results):,} candidates for {len(train):,} training queries')

    with step('the teacher: late interaction, trained on the labels'):
        teacher = LateInteraction(minilm(), doc_max_length=128, scale=2.0, training=Training(
            steps=args.teacher_steps, batch_size=args.batch_size, learning_rate=args.learning_rate, seed=args.seed))
        teacher.fit(train_results, data.get_qrels('train'), corpus=data)

    with step('the student: TAS-Balanced, the teacher both pairwise and in the batch'):
        student.pairwise_teacher = student.in_batch_teacher = teacher
        learnt = dict(work_dir=work / f'{args.steps}-steps-{args.dev_queries}-dev-{teacher.model_name[-8:]}')
        batches = student.batch_plan(train_results, data.get_qrels('train'), **learnt)
        student.fit(train_results, data.get_qrels('train'), dev_results, data.get_qrels('dev'), **learnt, resume=True)
        student.save(args.out / 'model', overwrite=True)

    with step('indexing with the trained encoder'):
        index = student.index(data.get_corpus_iter(), work / 'tasb.flex', overwrite=True)

    dense = student.retriever(index, text=data)
    systems = {
        sparse.label: sparse.retriever,
        'Untrained encoder': untrained.retriever(untrained_index, text=data),
        'TAS-Balanced': dense,
        'TAS-Balanced + BM25 (RRF)': pta.RRFusion(dense, sparse.retriever),
        **{f'TAS-Balanced, top {k} by teacher': (dense % k >> teacher) ^ dense for k in (10, 50, 100)},
        **optional_systems(args, data, dense, work),
    }

    with step(f'pt.Experiment on {len(test):,} test queries'):
        (dense % 100 >> teacher)(test)   # passages that the teacher has encoded are timed for no row
        runs = args.out / 'runs'
        runs.mkdir(parents=True, exist_ok=True)
        table = pt.Experiment(systems, test, data.get_qrels('test'), [*MEASURES, 'mrt'], baseline=sparse.label,
                              correction='holm', round=4, save_dir=str(runs), save_mode='overwrite')
    write_table(table, args, data, sparse.label, time.perf_counter() - start)

    with step('figures'):
        results = {name: pt.io.read_results(str(runs / f'{name}.res.gz')) for name in systems}
        draw(args.out / 'figures', student, batches, results, data.get_qrels('test'))

    print(f"""
{time.perf_counter() - start:.0f} s in all. Table, runs, model and figures are in {args.out}.

With a collection of your own (corpus.jsonl, queries.train.tsv, queries.test.tsv, qrels.train.tsv, qrels.test.tsv):

    .venv/bin/python examples/own_collection.py --data YOUR_DIRECTORY --out runs/mine
""")


def write_table(table: pd.DataFrame, args: argparse.Namespace, data: pydocs.PyDocs, baseline: str,
                seconds: float) -> None:
    names = [str(measure) for measure in MEASURES]
    shown = table[['name', *names, 'mrt']].rename(columns={'mrt': 'ms/query'}).round({'ms/query': 1})
    shown[names] = shown[names].map('{:.4f}'.format)
    for name in (names[0], names[-1]):
        shown[f'p {name}'] = table[f'{name} p-value corrected'].map(lambda p: '' if pd.isna(p) else f'{p:.2g}')
    print(shown.to_string(index=False))
    lines = [f'| {" | ".join(shown.columns)} |', '|---|' + '---:|' * (len(shown.columns) - 1),
             *(f'| {" | ".join(map(str, row))} |' for row in shown.values.tolist()), '',
             f'p: paired t-test against {baseline}, Holm correction. `make quickstart`, {seconds:.0f} s on '
             f'{hardware()}; seed {args.seed}; {versions()}.', '',
             *(f'> {line}' for line in data.report().splitlines()), '']
    (args.out / 'table.md').write_text('\n'.join(lines))
    table.to_csv(args.out / 'table.csv', index=False)
    print(f'\np: paired t-test against {baseline}, Holm correction; seed {args.seed}; {versions()}')


if __name__ == '__main__':
    run_script(main)
