"""The published recipe on MS MARCO: T2 teacher scores, ColBERT in the batch, 2000 query clusters, TREC-DL evaluation.

Everything is read from a directory with the files under their published names:

    collection.tsv                     pid, text
    queries.train.tsv                  qid, text
    bert_cat_ensemble_msmarcopassage_train_scores_ids.tsv[.gz]    pos_score, neg_score, qid, pos pid, neg pid
    clusters.tsv                       optional: a cluster a line, qids separated by white space
    queries.dev.small.tsv, qrels.dev.small.tsv     evaluation: the 6,980 dev queries that everybody reports
    queries.dev.tsv, qrels.dev.tsv     all dev queries; some that are not evaluated decide when to stop
    candidates.dev.tsv                 optional: validation's queries and candidates, instead of BM25's: qid, pid, rank,
                                       or, the best first, qid, pid, query, passage
    queries.dl19.tsv, qrels.dl19.tsv, queries.dl20.tsv, qrels.dl20.tsv    optional
    docT5query.tsv                     optional: pid, predicted queries; adds the docT5query row

or, with --irds, collection, queries and qrels come from ir_datasets (msmarco-passage/…) and only the teacher file from
--data. `--check MODEL` evaluates a released checkpoint against the numbers that independent evaluations of it agree on.

What is built from a file is kept in --out under a hash of it: another file finds there what is its own.
"""
from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import pandas as pd
import pyterrier as pt
from _script import at_least_1, run_script
from ir_measures import RR, R, nDCG

from pyterrier_tasb import LateInteraction, ScoredPairs, TasBalanced, TeacherScores, TextStore, Training
from pyterrier_tasb._files import file_fingerprint
from pyterrier_tasb.baselines import bm25
from pyterrier_tasb.documents import documents
from pyterrier_tasb.training.validation import by_reciprocal_rank

TEACHER_FILE = 'bert_cat_ensemble_msmarcopassage_train_scores_ids.tsv'
COLBERT = 'sebastian-hofstaetter/colbert-distilbert-margin_mse-T2-msmarco'
RELEASED = 'sebastian-hofstaetter/distilbert-dot-tas_b-b256-msmarco'
IRDS = {'train': 'msmarco-passage/train', 'dev': 'msmarco-passage/dev', 'dev.small': 'msmarco-passage/dev/small',
        'dl19': 'msmarco-passage/trec-dl-2019/judged',
        'dl20': 'msmarco-passage/trec-dl-2020/judged'}
# TREC's four grades are binarised at 2 (the paper, section 4)
MEASURES = {'dev.small': [RR @ 10, nDCG @ 10, R @ 1000], 'dl19': [nDCG @ 10, RR(rel=2) @ 10, R(rel=2) @ 1000],
            'dl20': [nDCG @ 10, RR(rel=2) @ 10, R(rel=2) @ 1000]}
# What every independent evaluation of the released B = 256 checkpoint measures (not what the paper's table says)
TARGETS = {'dev.small': {'RR@10': .344, 'R@1000': .977}, 'dl19': {'nDCG@10': .721}, 'dl20': {'nDCG@10': .685}}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, required=True, help='directory with the files')
    parser.add_argument('--irds', action='store_true', help='take collection, queries and qrels from ir_datasets')
    parser.add_argument('--student', default='distilbert-base-uncased')
    parser.add_argument('--in-batch-teacher', default=COLBERT, help='a ColBERT checkpoint')
    parser.add_argument('--mask-tokens', type=int, default=8,
                        help='[MASK] tokens that it was trained with; 0 for one of colbert-ai, which knows its own')
    parser.add_argument('--batch-size', type=int, default=32, help='the paper has 32, 96 and 256')
    parser.add_argument('--steps', type=int, default=800_000)
    parser.add_argument('--clusters', type=int, default=2000)
    parser.add_argument('--cluster-encoder', metavar='MODEL',
                        help='a dense retriever whose query vectors are clustered, as in the paper, unless there is '
                             'clusters.tsv; default: the student, untrained')
    parser.add_argument('--eval-every', type=int, default=4000)
    parser.add_argument('--patience-from', type=int, default=300_000)
    parser.add_argument('--validation-queries', type=at_least_1, default=3200)
    parser.add_argument('--store-teacher', action='store_true', help='score the whole plan first: 4 KB a step')
    parser.add_argument('--micro-batch-tokens', type=int, default=None, help='for batches larger than the GPU')
    parser.add_argument('--check', metavar='MODEL', nargs='?', const=RELEASED, default=None,
                        help=f'train nothing: evaluate this checkpoint (default {RELEASED})')
    parser.add_argument('--seed', type=int, default=42)
    parser.add_argument('--out', type=Path, default=Path('runs/msmarco'))
    return parser.parse_args()


class MsMarco:
    """Files under their published names, or ir_datasets."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.folder, self.irds = args.data, args.irds
        self.evaluated = [split for split in MEASURES if self.irds or any(self.folder.glob(f'q*.{split}.tsv'))]
        self._check(training=not args.check)
        source = 'irds' if self.irds else file_fingerprint(self.folder / 'collection.tsv')
        self.kept = args.out / f'corpus-{source}'   # texts and indexes
        store = self.kept / 'texts'
        self.texts = TextStore(store) if store.exists() else TextStore.build(store, self._passages())

    def _check(self, training: bool) -> None:
        """Look first at what is read after hours of work."""
        if not self.evaluated:
            raise ValueError(f'{self.folder} has nothing to evaluate on: queries.SPLIT.tsv and qrels.SPLIT.tsv of '
                             f'{", ".join(MEASURES)}, or one of these')
        for split in self.evaluated:
            if not set(self.topics(split)['qid']) & set(self.qrels(split)['qid']):
                raise ValueError(f'no query of queries.{split}.tsv has a judgement in qrels.{split}.tsv: qids differ')
        if training:
            teacher_file(self.folder)
            self.topics('train')
            self.held_out

    def _passages(self) -> Iterator[tuple[str, str]]:
        if self.irds:
            corpus = pt.get_dataset('irds:msmarco-passage').get_corpus_iter(verbose=True)
            yield from ((doc['docno'], doc['text']) for doc in corpus)
        else:
            yield from pt.tqdm(columns(self.folder / 'collection.tsv', 2), desc='collection', unit='passage')

    def topics(self, split: str) -> pd.DataFrame:
        if self.irds:
            topics = pt.get_dataset(f'irds:{IRDS[split]}').get_topics()
            return topics.rename(columns={'text': 'query'})[['qid', 'query']]
        return pd.DataFrame(columns(self.folder / f'queries.{split}.tsv', 2), columns=['qid', 'query'])

    def qrels(self, split: str) -> pd.DataFrame:
        if self.irds:
            return pt.get_dataset(f'irds:{IRDS[split]}').get_qrels()[['qid', 'docno', 'label']]
        rows = columns(self.folder / f'qrels.{split}.tsv', 4, separator=None)
        return pd.DataFrame(rows, columns=['qid', 'iteration', 'docno', 'label']).astype({'label': int})

    @cached_property
    def held_out(self) -> pd.DataFrame:
        """Judged dev queries that are not evaluated, and have candidates where there is a file of them."""
        evaluated = {qid for split in self.evaluated for qid in self.topics(split)['qid']}
        topics, file = self.topics('dev'), self.folder / 'candidates.dev.tsv'
        topics = topics[topics['qid'].isin(set(self.qrels('dev')['qid']) - evaluated)]
        if not len(topics):
            raise ValueError('every judged query of queries.dev.tsv is evaluated: none is left to decide when to stop')
        if file.exists():
            topics = topics[topics['qid'].isin({qid for some in ranking(file) for qid in some['qid'].unique()})]
            if not len(topics):
                raise ValueError(f'{file} has no judged query of queries.dev.tsv that is not evaluated')
        return topics

    def validation(self, n: int, sparse: pt.Transformer, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Candidates and qrels of `n` queries that are held out, easy and hard ones in equal shares.

        The 100 best candidates of each, and all that is relevant (the paper's pool).
        """
        qrels, topics = self.qrels('dev'), self.held_out
        if len(topics) > 5 * n:   # enough to find hard ones among them
            topics = topics.sample(5 * n, random_state=seed)
        file = self.folder / 'candidates.dev.tsv'
        found = best_candidates(file, topics) if file.exists() else (sparse % 100)(topics)
        found = by_reciprocal_rank(found[['qid', 'query', 'docno']], qrels, n, seed=seed)
        print(f'{found["qid"].nunique():,} validation queries')
        relevant = qrels[qrels['label'] > 0].merge(found[['qid', 'query']].drop_duplicates(), on='qid')
        pool = pd.concat([found, relevant[['qid', 'query', 'docno']]]).drop_duplicates(['qid', 'docno'])
        return pool.reset_index(drop=True), qrels


def ranking(file: Path) -> Iterator[pd.DataFrame]:
    """A file of qid, pid, rank, or of qid, pid, query, passage, whose lines are the ranks; a part at a time."""
    expected = 'expected qid, pid, rank, or qid, pid, query, passage'
    if not file.stat().st_size:
        raise ValueError(f'{file} is empty: {expected}')
    with open(file, encoding='utf-8-sig') as lines:
        n = len(lines.readline().split('\t'))
    if n not in (3, 4):
        raise ValueError(f'{file} has {n} columns, {expected}')
    for some in pd.read_csv(file, sep='\t', header=None, usecols=None if n == 3 else [0, 1], chunksize=1_000_000,
                            dtype={0: str, 1: str, 2: float}, na_filter=False, quoting=csv.QUOTE_NONE):
        ranks = some[2] if n == 3 else some.index   # which goes on from part to part
        yield pd.DataFrame({'qid': some[0], 'docno': some[1], 'rank': ranks})


def best_candidates(file: Path, topics: pd.DataFrame, n: int = 100) -> pd.DataFrame:
    """The `n` best of a file of candidates for each topic, in the order of their ranks."""
    qids = set(topics['qid'])
    found = pd.concat([some[some['qid'].isin(qids)] for some in ranking(file)])
    found = found.sort_values(['qid', 'rank']).drop_duplicates(['qid', 'docno'])
    return found.groupby('qid').head(n).merge(topics, on='qid')


def columns(file: Path, n: int, separator: str | None = '\t') -> Iterator[list[str]]:
    """The rows of a file of `n` columns, parted by tabs or, with None, by white space; the last may hold more of it."""
    if not file.exists():
        raise ValueError(f'{file} is missing')
    number = 0
    with open(file, encoding='utf-8-sig') as lines:
        for number, line in enumerate(lines, 1):
            row = line.rstrip('\r\n').split(separator, n - 1)
            if len(row) != n:
                raise ValueError(f'{file}, line {number}: {len(row)} columns, expected {n}')
            yield row
    if not number:
        raise ValueError(f'{file} is empty')


def teacher_file(folder: Path) -> Path:
    files = [folder / name for name in (TEACHER_FILE, f'{TEACHER_FILE}.gz') if (folder / name).exists()]
    if not files:
        raise ValueError(f'{folder} has no {TEACHER_FILE}[.gz], the published teacher scores')
    return files[0]


def train(args: argparse.Namespace, data: MsMarco, sparse: pt.Transformer) -> TasBalanced:
    scores = teacher_file(args.data)
    path = args.out / f'pairs-{file_fingerprint(scores)}'
    pairs = ScoredPairs(path) if path.exists() else ScoredPairs.from_teacher_file(scores, path)
    print(pairs)
    topics = data.topics('train')
    known = set(pairs.qids)
    topics = topics[topics['qid'].isin(known)]
    validation, validation_qrels = data.validation(args.validation_queries, sparse, args.seed)

    student = TasBalanced(
        args.student, corpus=data.texts, verbose=True,
        clusters=args.data / 'clusters.tsv' if (args.data / 'clusters.tsv').exists() else None,
        cluster_encoder=TasBalanced(args.cluster_encoder) if args.cluster_encoder else None,
        in_batch_teacher=LateInteraction(args.in_batch_teacher, mask_tokens=args.mask_tokens, query_max_length=30),
        training=Training.faithful(
            steps=args.steps, batch_size=args.batch_size, clusters=args.clusters, eval_every=args.eval_every,
            patience_from=args.patience_from, micro_batch_tokens=args.micro_batch_tokens, seed=args.seed,
            compile=True))
    if args.store_teacher:
        plan, queries, docs = student.batch_plan(topics, pairs=pairs, work_dir=args.out / 'work')
        student.in_batch_teacher = TeacherScores.build(args.out / 'teacher-scores', student.in_batch_teacher, plan,
                                                       queries, docs, steps=args.steps)
    student.fit(topics, None, validation, validation_qrels, pairs=pairs, work_dir=args.out / 'work', resume=True)
    student.save(args.out / 'model', overwrite=True)
    return student


def expanded_corpus(data: MsMarco, file: Path, store: Path) -> Iterator[dict[str, str]]:
    """Passages with their predicted queries."""
    predicted = TextStore(store) if store.exists() else TextStore.build(store, columns(file, 2))
    for doc in documents(data.texts):
        row = int(predicted.index_of([doc['docno']])[0])
        yield doc if row < 0 else {**doc, 'text': f'{doc["text"]} {predicted[row]}'}


def evaluate(data: MsMarco, systems: dict[str, pt.Transformer], file: Path) -> pd.DataFrame:
    """A table of all splits, written anew after each."""
    tables = []
    for split in data.evaluated:
        table = pt.Experiment(systems, data.topics(split), data.qrels(split), MEASURES[split], round=4)
        print(f'\n{split}\n{table.to_string(index=False)}')
        tables.append(table.assign(queries=split))
        pd.concat(tables).to_json(file, orient='records', indent=1)
    return pd.concat(tables)


def check(table: pd.DataFrame, name: str) -> None:
    """The released checkpoint against what others measure."""
    for split, targets in TARGETS.items():
        row = table[(table['queries'] == split) & (table['name'] == name)]
        for measure, target in targets.items() if len(row) else ():
            found = row[measure].iloc[0]
            print(f'{split} {measure}: {found:.4f}, target {target} ({found - target:+.4f})')


def main() -> None:
    args = arguments()
    data = MsMarco(args)
    print(f'{len(data.texts):,} passages')
    sparse = bm25(data.texts, data.kept / 'bm25')
    systems = {sparse.label: sparse.retriever}
    file = args.data / 'docT5query.tsv'
    if file.exists():
        of_file = data.kept / f'docT5query-{file_fingerprint(file)}'
        expanded = bm25(expanded_corpus(data, file, of_file / 'predictions'), of_file / 'bm25', name='docT5query')
        systems[expanded.label] = expanded.retriever
    student = TasBalanced(args.check, verbose=True) if args.check else train(args, data, sparse.retriever)
    index = data.kept / f'{student.encoder.fingerprint}.flex'
    if not index.exists():
        student.index(data.texts, index)
    name = args.check or 'TAS-Balanced'
    table = evaluate(data, systems | {name: student.retriever(index)},
                     args.out / ('checked.json' if args.check else 'table.json'))
    if args.check:
        check(table, name)


if __name__ == '__main__':
    run_script(main)
