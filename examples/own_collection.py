"""Train a dense retriever with TAS-Balanced on a collection of your own and compare it with BM25.

The collection is a directory with corpus.jsonl[.gz] (docno, text), queries.{train,dev,test}.tsv (qid, text) and
qrels.{train,dev,test}.tsv (qid, 0, docno, grade), or data sets of ir_datasets. Without a dev split, every tenth
training query is held out. Every step is a public call that can be typed in a notebook.

What is built is kept in --out under fingerprints of corpus, encoder and settings: another run finds there what is its
own.
"""
from __future__ import annotations

import argparse
import json
import zlib
from pathlib import Path

import pandas as pd
import pyterrier as pt
import pyterrier_alpha as pta
from _script import at_least_1, run_script
from ir_measures import RR, R, nDCG

from pyterrier_tasb import LateInteraction, TasBalanced, TextStore, Training, minilm
from pyterrier_tasb.baselines import bm25
from pyterrier_tasb.collection import Collection, IrdsCollection
from pyterrier_tasb.machine import hardware, versions

MEASURES = [nDCG @ 10, RR @ 10, R @ 100, R @ 1000]
MONOT5 = 'castorini/monot5-base-msmarco'


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--data', type=Path, help='directory in the layout above')
    source.add_argument('--irds', nargs='+', metavar='ID', help='ir_datasets: TRAIN TEST, TRAIN DEV TEST, or one')
    parser.add_argument('--student', default=None, help='encoder to start from, in place of the packaged MiniLM')
    parser.add_argument('--teacher', default='labels', help='labels: late interaction that is trained on the labels '
                        'first; hybrid: BM25 + the untrained student; monot5; or a checkpoint (ColBERT, encoder or T5)')
    parser.add_argument('--in-batch-teacher', default='auto', help='auto: the teacher if it is late interaction, else '
                        'untrained late interaction over the student; none; or a checkpoint')
    parser.add_argument('--steps', type=int, default=1000, help='training steps of the student')
    parser.add_argument('--teacher-steps', type=int, default=500, help='training steps of the teacher')
    parser.add_argument('--batch-size', type=int, default=32)
    parser.add_argument('--learning-rate', type=float, default=3e-5)
    parser.add_argument('--positive-bonus', type=float, default=2.0, help='for judged positives; 0 is the paper')
    parser.add_argument('--candidates', type=at_least_1, default=30, help='of each of the two miners')
    parser.add_argument('--train-queries', type=at_least_1, help='a random sample of those judged, in place of all')
    parser.add_argument('--dev-queries', type=at_least_1, default=200, help='a random sample of those judged')
    parser.add_argument('--query-length', type=int, default=30, help='tokens of a query')
    parser.add_argument('--doc-length', type=int, default=200, help='tokens of a passage')
    parser.add_argument('--cache-gb', type=float, default=8, help="memory for the teacher's token vectors")
    parser.add_argument('--engine', default='auto', choices=['auto', 'terrier', 'pisa'], help='of BM25')
    parser.add_argument('--seeds', type=int, nargs='+', default=[42], help='one student for each')
    parser.add_argument('--out', type=Path, default=Path('runs/own'), help='models, indexes, runs, table')
    return parser.parse_args()


def hybrid_scores(results: pd.DataFrame) -> pd.DataFrame:
    """BM25 scores of each query brought to at most 10, beside ten times a cosine."""
    most = results.groupby('qid')['score'].transform('max').clip(lower=1e-9)
    return results.assign(score=10 * results['score'] / most)


def checkpoint(name: str, args: argparse.Namespace, **options: object) -> pt.Transformer:
    """MonoT5 for a T5 checkpoint, else late interaction."""
    config = Path(name) / 'config.json'
    if name == MONOT5 or (config.exists() and json.loads(config.read_text()).get('model_type') == 't5'):
        from pyterrier_t5 import MonoT5ReRanker
        return MonoT5ReRanker(tok_model=name, model=name)
    try:
        return LateInteraction(name, query_max_length=args.query_length, doc_max_length=args.doc_length,
                               cache_bytes=int(args.cache_gb * 2**30), **options)
    except ValueError as error:
        raise ValueError(f'{name!r} is no checkpoint (--teacher also takes labels, hybrid and monot5, '
                         f'--in-batch-teacher auto and none): {error}') from error


def read_split(data: Collection | IrdsCollection, split: str, most: int | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Topics and qrels; of the topics all, or a sample of those that are judged."""
    topics, qrels = data.get_topics(split), data.get_qrels(split)
    judged = topics[topics['qid'].isin(set(qrels['qid']))]
    if not len(judged):
        raise ValueError(f'{data} has no judged {split} query ({len(topics):,} queries, {len(qrels):,} judgements): '
                         f'queries.{split}.tsv and qrels.{split}.tsv, or data sets, must share qids')
    return topics if most is None else judged.sample(min(most, len(judged)), random_state=0), qrels


def indexed(encoder: TasBalanced, texts: TextStore, folder: Path) -> Path:
    """The index of this very encoder, built the first time."""
    path = folder / f'{encoder.encoder.fingerprint}.flex'
    if not path.exists():
        encoder.index(texts, path)
    return path


def main() -> None:
    args = arguments()
    data = Collection(args.data) if args.data else IrdsCollection(*args.irds)
    topics, qrels = {}, {}
    for split, most in (('train', args.train_queries), ('dev', args.dev_queries), ('test', None)):
        topics[split], qrels[split] = read_split(data, split, most)

    # who takes part
    student_name = args.student or minilm()
    lengths = dict(query_max_length=args.query_length, doc_max_length=args.doc_length)
    training = Training(steps=args.steps, batch_size=args.batch_size, learning_rate=args.learning_rate,
                        positive_bonus=args.positive_bonus)
    untrained = TasBalanced(student_name, corpus=data, verbose=True, **lengths)
    pairwise = None   # hybrid: the score that arrives
    if args.teacher == 'labels':
        pairwise = checkpoint(student_name, args, scale=2.0, training=training.replace(steps=args.teacher_steps))
    elif args.teacher != 'hybrid':
        pairwise = checkpoint(MONOT5 if args.teacher == 'monot5' else args.teacher, args)
    in_batch = pairwise if isinstance(pairwise, LateInteraction) else None
    if args.in_batch_teacher not in ('auto', 'none'):
        in_batch = checkpoint(args.in_batch_teacher, args)
    elif args.in_batch_teacher == 'auto' and in_batch is None:
        in_batch = checkpoint(student_name, args)
    elif args.in_batch_teacher == 'none':
        in_batch = None

    # the corpus: texts and indexes
    kept = args.out / f'corpus-{data.fingerprint}'
    settings = {name: str(value) for name, value in vars(args).items() if name not in ('out', 'seeds')}
    work = kept / f'student-{untrained.encoder.fingerprint}-{zlib.crc32(json.dumps(settings).encode()):08x}'
    texts = data.text_store(kept / 'texts')
    print(f'{data}: {len(texts):,} passages')
    untrained_index = indexed(untrained, texts, kept)
    sparse = bm25(data.get_corpus_iter(), kept / 'bm25', engine=args.engine)
    text = data.text_loader('text')

    # candidates: what BM25 and what the untrained student finds
    few = dict(num_results=args.candidates)
    found_by_bm25 = bm25(data.get_corpus_iter(), kept / 'bm25', engine=args.engine, **few).retriever
    found_by_student = untrained.retriever(untrained_index, **few)
    if args.teacher == 'hybrid':
        miner = (found_by_bm25 >> pt.apply.generic(hybrid_scores)) + 10 * found_by_student
    else:
        miner = found_by_bm25 | found_by_student
    candidates = {}
    for split in ('train', 'dev'):   # a sum of pipelines loses the query of what only one of them found
        found = (miner >> text)(topics[split])
        candidates[split] = found.assign(query=found['qid'].map(topics[split].set_index('qid')['query']))
    print(f'{len(candidates["train"]):,} candidates of {len(topics["train"]):,} training queries')

    if args.teacher == 'labels':
        pairwise.fit(candidates['train'], qrels['train'], corpus=data, work_dir=work / 'teacher', resume=True)
        pairwise.save(args.out / 'teacher', overwrite=True)

    # students
    systems = {sparse.label: sparse.retriever, 'Untrained encoder': untrained.retriever(untrained_index, text=data)}
    for seed in args.seeds:
        student = TasBalanced(student_name, pairwise_teacher=pairwise, in_batch_teacher=in_batch, corpus=data,
                              training=training.replace(seed=seed), verbose=True, **lengths)
        student.fit(candidates['train'], qrels['train'], candidates['dev'], qrels['dev'],
                    work_dir=work / f'seed-{seed}', resume=True)
        student.save(args.out / f'model-{seed}', overwrite=True)
        dense = student.retriever(indexed(student, texts, kept), text=data)
        name = 'TAS-Balanced' if len(args.seeds) == 1 else f'TAS-Balanced, seed {seed}'
        systems |= {name: dense, f'{name} + BM25 (RRF)': pta.RRFusion(dense, sparse.retriever)}
        if pairwise is not None:
            systems[f'{name}, top 100 by teacher'] = (dense % 100 >> pairwise) ^ dense

    # the comparison
    runs = args.out / 'runs'
    runs.mkdir(parents=True, exist_ok=True)
    table = pt.Experiment(systems, topics['test'], qrels['test'], [*MEASURES, 'mrt'], baseline=sparse.label,
                          correction='holm', round=4, save_dir=str(runs), save_mode='overwrite')
    p_values = [f'{measure} p-value corrected' for measure in (MEASURES[0], MEASURES[-1])]
    shown = table[['name', *map(str, MEASURES), 'mrt', *p_values]]
    lines = [shown.to_string(index=False),
             f'{len(topics["test"]):,} test queries; p: paired t-test against {sparse.label}, Holm correction; '
             f'seeds {args.seeds}; {hardware()}; {versions()}']
    print('\n'.join(lines))
    (args.out / 'table.txt').write_text('\n'.join(lines) + '\n')
    table.to_json(args.out / 'table.json', orient='records', indent=1, double_precision=15)
    print(f'\nmodels, run files and table are in {args.out}; TasBalanced({str(args.out / f"model-{args.seeds[0]}")!r}) '
          'loads a model')


if __name__ == '__main__':
    run_script(main)
