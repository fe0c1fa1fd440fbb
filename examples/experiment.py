"""The paper's Table 4 on pydocs: which teacher, which sampling. A row is one `Training`; everything else is equal.

Finished rows are kept below --work and not run again, so an interrupted experiment goes on where it stopped.
"""
from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import pyterrier as pt
import torch
from _script import at_least_1, run_script
from ir_measures import RR, R, nDCG
from scipy.stats import ttest_rel

from pyterrier_tasb import Encoder, LateInteraction, ScoredPairs, TasBalanced, Training, minilm, plots, pydocs
from pyterrier_tasb.baselines import bm25
from pyterrier_tasb.encoding import model_directory
from pyterrier_tasb.machine import hardware, versions

MEASURES = [nDCG @ 10, RR @ 10, R @ 100, R @ 1000]
BASELINE = 'none, random'
TEACHERS = {'pairwise': dict(in_batch_weight=0.0), 'in-batch': dict(pairwise_weight=0.0), 'both': dict()}
SAMPLINGS = {'random': 'random', 'TAS': 'tas', 'TAS-Balanced': 'tas-balanced'}
ROWS = {BASELINE: dict(pairwise_loss='ranknet', in_batch_weight=0.0, sampling='random')} | {
    f'{teacher}, {name}': dict(weights, sampling=sampling)
    for teacher, weights in TEACHERS.items() for name, sampling in SAMPLINGS.items()}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--rows', nargs='*', default=list(ROWS), choices=list(ROWS), metavar='ROW', help='rows to run')
    parser.add_argument('--seeds', type=at_least_1, default=3)
    parser.add_argument('--steps', type=int, default=100, help='training steps of every student')
    parser.add_argument('--layers', type=at_least_1, default=3,
                        help='layers of the student, evenly taken from the encoder')
    parser.add_argument('--learning-rate', type=float, default=1e-4)
    parser.add_argument('--batch-size', type=int, default=32)
    parser.add_argument('--positive-bonus', type=float, default=2.0)
    parser.add_argument('--teacher-steps', type=int, default=100)
    parser.add_argument('--teacher-learning-rate', type=float, default=5e-5)
    parser.add_argument('--clusters', type=int, default=None, help='query clusters; default: see Training')
    parser.add_argument('--candidates', type=int, default=15, help='of each of the two miners')
    parser.add_argument('--max-words', type=int, default=32, help='words of a passage')
    parser.add_argument('--packages', nargs='*', default=pydocs.DEFAULT_PACKAGES)
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='rows trained side by side')
    parser.add_argument('--work', type=Path, default=Path('runs/experiment'), help='shared files, and results of rows')
    parser.add_argument('--out', type=Path, default=Path('runs/experiment/report'), help='the table')
    return parser.parse_args()


@cache
def collection(packages: tuple[str, ...], max_words: int) -> pydocs.PyDocs:
    return pydocs.load(packages, max_words)


def data_of(args: argparse.Namespace) -> pydocs.PyDocs:
    return collection(tuple(args.packages), args.max_words)


def prepare(args: argparse.Namespace) -> None:
    """What all rows share, made once: candidates, the trained teacher and its scores, the untrained student."""
    data = data_of(args)
    print(data.report(), flush=True)
    small_student(args.layers, args.work / 'student')
    if (args.work / 'pairs').exists():
        return
    untrained = TasBalanced(minilm(), doc_max_length=128)
    index = untrained.index(data.get_corpus_iter(), args.work / 'untrained.flex', overwrite=True)
    few = dict(num_results=args.candidates)
    miner = bm25(data.get_corpus_iter(), args.work / 'bm25', **few).retriever | untrained.retriever(index, **few)
    results = with_positives((miner >> data.text_loader('text'))(data.get_topics('train')), data)
    teacher, qrels = load_teacher(args, minilm()), data.get_qrels('train')
    teacher.fit(results, qrels, work_dir=args.work / 'teacher-work', resume=True)
    teacher.save(args.work / 'teacher', overwrite=True)
    teacher.verbose = True
    ScoredPairs.from_results(teacher(results), qrels, args.work / 'pairs')


def with_positives(results: pd.DataFrame, data: pydocs.PyDocs) -> pd.DataFrame:
    """Results and the positives that they lack."""
    positives = data.get_qrels('train').merge(data.get_topics('train'), on='qid')[['qid', 'query', 'docno']]
    results = pd.concat([results[['qid', 'query', 'docno', 'text']], data.text_loader('text')(positives)])
    return results.drop_duplicates(['qid', 'docno'], ignore_index=True)


def small_student(layers: int, path: Path) -> None:
    """The packaged encoder with some of its layers, so that 30 students are trained in an hour or two."""
    if path.exists():
        return
    encoder = Encoder.load(minilm(), doc_max_length=128)
    stack = encoder.model.encoder.layer
    if layers > len(stack):
        raise ValueError(f'--layers {layers}: the encoder has {len(stack)}')
    kept = np.linspace(0, len(stack) - 1, layers).round().astype(int)
    encoder.model.encoder.layer = torch.nn.ModuleList([stack[i] for i in kept])
    encoder.model.config.num_hidden_layers = layers
    model_directory.save(encoder, path)


def load_teacher(args: argparse.Namespace, path: str) -> LateInteraction:
    return LateInteraction(path, doc_max_length=128, scale=2.0, cache_dir=args.work / 'vectors', cache_bytes=4 << 30,
                           training=Training(
                               steps=args.teacher_steps, batch_size=args.batch_size,
                               learning_rate=args.teacher_learning_rate))


@cache
def teacher_of(work: Path, args: tuple) -> LateInteraction:
    return load_teacher(argparse.Namespace(**dict(args)), str(work / 'teacher'))


def run(row: str, seed: int, args: argparse.Namespace) -> dict:
    """Train and evaluate one student."""
    data, start = data_of(args), time.perf_counter()
    training = Training(steps=args.steps, batch_size=args.batch_size, learning_rate=args.learning_rate, seed=seed,
                        positive_bonus=args.positive_bonus, clusters=args.clusters, **ROWS[row])
    shared = (('teacher_steps', args.teacher_steps), ('batch_size', args.batch_size), ('work', args.work),
              ('teacher_learning_rate', args.teacher_learning_rate))
    student = TasBalanced(args.work / 'student', training=training, corpus=data, doc_max_length=128,
                          in_batch_teacher=teacher_of(args.work, shared) if training.in_batch_weight else None)
    student.fit(data.get_topics('train'), pairs=ScoredPairs(args.work / 'pairs'))
    trained = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        dense = student.retriever(student.index(data.get_corpus_iter(), Path(folder) / 'flex'))
        per_query = pt.Experiment([dense], data.get_topics('test'), data.get_qrels('test'), MEASURES, names=[row],
                                  perquery=True)
    return {'row': row, 'seed': seed, 'training': training.to_dict(), 'calibration': student.record['calibration'],
            'history': student.record['history'], 'seconds': round(trained, 1),
            'per_query': per_query.pivot(index='qid', columns='measure', values='value').to_dict()}


def result_file(row: str, seed: int, args: argparse.Namespace) -> Path:
    return args.work / 'rows' / f'{row.replace(", ", "_")}-{seed}.json'


def run_and_keep(row: str, seed: int, args: argparse.Namespace) -> tuple[str, int, float]:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // args.jobs))
    result, file = run(row, seed, args), result_file(row, seed, args)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix('.part')
    part.write_text(json.dumps(result))
    part.replace(file)
    return row, seed, result['seconds']


def settings(args: argparse.Namespace) -> dict:
    """What results depend on; rows of other settings are not mixed with these."""
    names = ('steps', 'layers', 'learning_rate', 'batch_size', 'positive_bonus', 'teacher_steps',
             'teacher_learning_rate', 'clusters', 'candidates', 'max_words')
    return {**{name: getattr(args, name) for name in names}, 'data': data_of(args).fingerprint}


def check_settings(args: argparse.Namespace) -> None:
    file = args.work / 'settings.json'
    if file.exists() and json.loads(file.read_text()) != settings(args):
        raise SystemExit(f'{args.work} has rows of other settings ({file.read_text()}): use another --work')
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(settings(args)))


def table(args: argparse.Namespace) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Mean and standard deviation over seeds; p-values of a paired t-test over queries, Holm-corrected."""
    from statsmodels.stats.multitest import multipletests
    frames = []
    for row in ROWS:
        for seed in range(args.seeds):
            file = result_file(row, seed, args)
            if file.exists():
                result = json.loads(file.read_text())
                frames.append(pd.DataFrame(result['per_query']).rename_axis('qid').reset_index()
                              .assign(row=row, seed=seed))
    names = [str(measure) for measure in MEASURES]
    all_rows = pd.concat(frames)
    by_seed = all_rows.groupby(['row', 'seed'], sort=False)[names].mean()
    shown = by_seed.groupby('row', sort=False).agg(
        lambda v: f'{v.mean():.4f} ± {v.std():.4f}' if len(v) > 1 else f'{v.mean():.4f}')
    by_query = all_rows.groupby(['row', 'qid'])[names].mean()
    others = [row for row in shown.index if row != BASELINE]
    for name in (names[0], names[-1]):
        if BASELINE in shown.index and others:
            p = [ttest_rel(by_query.loc[row, name], by_query.loc[BASELINE, name]).pvalue for row in others]
            p = np.nan_to_num(p, nan=1.0)
            shown[f'p, {name}'] = pd.Series([f'{v:.2g}' for v in multipletests(p, method='holm')[1]], index=others)
    return shown.fillna('').assign(seeds=by_seed.groupby('row', sort=False).size()), by_seed


def versus(args: argparse.Namespace, ours: str, theirs: str) -> str:
    """The paper's claim: one row against another, queries paired, seeds averaged."""
    values = []
    for row in (ours, theirs):
        results = [json.loads(file.read_text()) for seed in range(args.seeds)
                   if (file := result_file(row, seed, args)).exists()]
        if not results:
            return ''
        values.append(sum(pd.DataFrame(result['per_query']) for result in results) / len(results))
    parts = [f'{measure} {values[0][measure].mean() - values[1][measure].mean():+.4f} '
             f'(p = {ttest_rel(*(value[measure] for value in values)).pvalue:.2g})' for measure in map(str, MEASURES)]
    return f'“{ours}” against “{theirs}”: {", ".join(parts)}; paired t-test, not corrected.'


def write(args: argparse.Namespace) -> None:
    shown, by_seed = table(args)
    print(shown.to_string())
    args.out.mkdir(parents=True, exist_ok=True)
    data = data_of(args)
    columns = ['teacher, sampling', *shown.columns]
    rows = [f'| {row} | {" | ".join(map(str, values))} |'
            for row, values in zip(shown.index, shown.values, strict=True)]
    lines = ['# Which teacher, which sampling: pydocs', '', 'Made by `make experiment`.', '',
             f'| {" | ".join(columns)} |', f'|{"---|" * len(columns)}', *rows, '',
             '![Means and standard deviations](experiment.png)', '',
             f'Mean ± standard deviation over seeds; {len(data.get_topics("test"))} test queries, {len(data):,} '
             f'passages. p: paired t-test over queries (means over seeds) against “{BASELINE}”, Holm-corrected.', '',
             versus(args, 'both, TAS-Balanced', 'pairwise, random'), '',
             f"Students have {args.layers} of the encoder's layers, so that many are trained in an hour or two: "
             'compare rows with one another, not with the quickstart.', '',
             f'Settings: `{json.dumps(settings(args))}`. {hardware()}; {versions()}.', '',
             '```', data.report(), '```', '']
    (args.out / 'experiment.md').write_text('\n'.join(lines))
    by_seed.round(5).to_csv(args.out / 'experiment.csv')
    plots.comparison(by_seed, [str(measure) for measure in MEASURES]).savefig(args.out / 'experiment.png')


def main() -> None:
    args = arguments()
    check_settings(args)
    prepare(args)
    todo = [(row, seed) for seed in range(args.seeds) for row in args.rows if not result_file(row, seed, args).exists()]
    print(f'{len(todo)} of {args.seeds * len(args.rows)} students to train', flush=True)
    with ProcessPoolExecutor(args.jobs, mp_context=get_context('spawn')) as pool:
        for done in as_completed([pool.submit(run_and_keep, row, seed, args) for row, seed in todo]):
            print('%s, seed %d: %.0f s' % done.result(), flush=True)
    write(args)


if __name__ == '__main__':
    run_script(main)
