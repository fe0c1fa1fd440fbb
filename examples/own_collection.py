"""Train a dense retriever with TAS-Balanced on a collection of your own and compare it with BM25.

The collection is a directory with corpus.jsonl[.gz] (docno, text), queries.{train,dev,test}.tsv (qid, text) and
qrels.{train,dev,test}.tsv (qid, 0, docno, grade), or data sets of ir_datasets. Without a dev split, every tenth
training query is held out. Every step below is a public call that can be typed in a notebook.
"""
from __future__ import annotations

import argparse
import json
from pathlib import Path

import pandas as pd
import pyterrier as pt
import pyterrier_alpha as pta
from ir_measures import RR, R, nDCG

from pyterrier_tasb import LateInteraction, TasBalanced, Training, minilm
from pyterrier_tasb.baselines import bm25
from pyterrier_tasb.collection import Collection, IrdsCollection

MEASURES = [nDCG @ 10, RR @ 10, R @ 100, R @ 1000]
MONOT5 = 'castorini/monot5-base-msmarco'


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--data', type=Path, help='directory in the layout above')
    source.add_argument('--irds', nargs='+', metavar='ID', help='ir_datasets: TRAIN TEST, TRAIN DEV TEST, or one')
    parser.add_argument('--student', default=None, help='encoder to start from; default: the packaged MiniLM')
    parser.add_argument('--teacher', default='labels', help='labels: late interaction that is trained on the labels '
                        'first; hybrid: BM25 + the untrained student; monot5; or a checkpoint (ColBERT, encoder or T5)')
    parser.add_argument('--in-batch-teacher', default='auto', help='auto: the teacher if it is late interaction, else '
                        'untrained late interaction over the student; none; or a checkpoint')
    parser.add_argument('--steps', type=int, default=1000, help='training steps of the student')
    parser.add_argument('--teacher-steps', type=int, default=500, help='training steps of the teacher')
    parser.add_argument('--batch-size', type=int, default=32)
    parser.add_argument('--learning-rate', type=float, default=3e-5)
    parser.add_argument('--positive-bonus', type=float, default=2.0, help='for judged positives; 0 is the paper')
    parser.add_argument('--candidates', type=int, default=30, help='of each of the two miners')
    parser.add_argument('--train-queries', type=int, default=None, help='a random sample; default: all')
    parser.add_argument('--dev-queries', type=int, default=200, help='a random sample')
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
    return LateInteraction(name, query_max_length=args.query_length, doc_max_length=args.doc_length,
                           cache_bytes=int(args.cache_gb * 2**30), **options)


def main() -> None:
    args = arguments()
    data = Collection(args.data) if args.data else IrdsCollection(*args.irds)
    args.out.mkdir(parents=True, exist_ok=True)
    texts = data.text_store(args.out / 'texts')
    print(f'{data}: {len(texts):,} passages')
    topics = {split: data.get_topics(split) for split in ('train', 'dev', 'test')}
    qrels = {split: data.get_qrels(split) for split in ('train', 'dev', 'test')}
    for split, most in (('train', args.train_queries), ('dev', args.dev_queries)):
        if most is not None and most < len(topics[split]):
            topics[split] = topics[split].sample(most, random_state=0)

    # who takes part
    student_name = args.student or minilm()
    lengths = dict(query_max_length=args.query_length, doc_max_length=args.doc_length)
    untrained = TasBalanced(student_name, corpus=data, verbose=True, **lengths)
    untrained_path = args.out / 'untrained.flex'
    untrained_index = pta.Artifact.load(str(untrained_path)) if untrained_path.exists() \
        else untrained.index(texts, untrained_path)
    sparse = bm25(data.get_corpus_iter(), args.out / 'bm25', engine=args.engine)
    text = data.text_loader('text')

    # candidates: what BM25 and what the untrained student finds
    few = dict(num_results=args.candidates)
    found_by_bm25 = bm25(data.get_corpus_iter(), args.out / 'bm25', engine=args.engine, **few).retriever
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

    # teachers
    training = Training(steps=args.steps, batch_size=args.batch_size, learning_rate=args.learning_rate,
                        positive_bonus=args.positive_bonus)
    pairwise = None   # hybrid: the score that arrives
    if args.teacher == 'labels':
        pairwise = checkpoint(student_name, args, scale=2.0, training=training.replace(steps=args.teacher_steps))
        pairwise.fit(candidates['train'], qrels['train'], corpus=data, work_dir=args.out / 'teacher-work', resume=True)
        pairwise.save(args.out / 'teacher', overwrite=True)
    elif args.teacher != 'hybrid':
        pairwise = checkpoint(MONOT5 if args.teacher == 'monot5' else args.teacher, args)
    in_batch = pairwise if isinstance(pairwise, LateInteraction) else None
    if args.in_batch_teacher not in ('auto', 'none'):
        in_batch = checkpoint(args.in_batch_teacher, args)
    elif args.in_batch_teacher == 'auto' and in_batch is None:
        in_batch = checkpoint(student_name, args)
    elif args.in_batch_teacher == 'none':
        in_batch = None

    # students
    systems = {sparse.label: sparse.retriever, 'Untrained encoder': untrained.retriever(untrained_index, text=data)}
    for seed in args.seeds:
        student = TasBalanced(student_name, pairwise_teacher=pairwise, in_batch_teacher=in_batch, corpus=data,
                              training=training.replace(seed=seed), verbose=True, **lengths)
        student.fit(candidates['train'], qrels['train'], candidates['dev'], qrels['dev'],
                    work_dir=args.out / f'work-{seed}', resume=True)
        student.save(args.out / f'model-{seed}', overwrite=True)
        index = student.index(texts, args.out / f'tasb-{seed}.flex', overwrite=True)
        dense = student.retriever(index, text=data)
        name = 'TAS-Balanced' if len(args.seeds) == 1 else f'TAS-Balanced, seed {seed}'
        systems |= {name: dense, f'{name} + BM25 (RRF)': pta.RRFusion(dense, sparse.retriever)}
        if pairwise is not None:
            systems[f'{name}, top 100 by teacher'] = (dense % 100 >> pairwise) ^ dense

    # the comparison
    runs = args.out / 'runs'
    runs.mkdir(exist_ok=True)
    table = pt.Experiment(systems, topics['test'], qrels['test'], [*MEASURES, 'mrt'], baseline=sparse.label,
                          correction='holm', round=4, save_dir=str(runs), save_mode='overwrite')
    p_values = [f'{measure} p-value corrected' for measure in (MEASURES[0], MEASURES[-1])]
    shown = table[['name', *map(str, MEASURES), 'mrt', *p_values]]
    print(shown.to_string(index=False))
    (args.out / 'table.txt').write_text(shown.to_string(index=False) + '\n')
    table.to_json(args.out / 'table.json', orient='records', indent=1)
    print(f'\nmodels, run files and table are in {args.out}; TasBalanced({str(args.out / f"model-{args.seeds[0]}")!r}) '
          'loads a model')


if __name__ == '__main__':
    main()
