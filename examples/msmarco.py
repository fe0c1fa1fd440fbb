"""The published recipe on MS MARCO: T2 teacher scores, ColBERT in the batch, 2000 query clusters, TREC-DL evaluation.

Everything is read from a directory with the files under their published names:

    collection.tsv                     pid, text
    queries.train.tsv                  qid, text
    bert_cat_ensemble_msmarcopassage_train_scores_ids.tsv[.gz]    pos_score, neg_score, qid, pos pid, neg pid
    clusters.tsv                       optional: a cluster a line, qids separated by white space
    queries.dev.small.tsv, qrels.dev.small.tsv     evaluation: the 6,980 dev queries that everybody reports
    queries.dev.tsv, qrels.dev.tsv     all dev queries; some that are not evaluated decide when to stop
    candidates.dev.tsv                 optional: qid, pid, rank: candidates of validation, instead of BM25's
    queries.dl19.tsv, qrels.dl19.tsv, queries.dl20.tsv, qrels.dl20.tsv    optional
    docT5query.tsv                     optional: pid, predicted queries; adds the docT5query row

or, with --irds, collection, queries and qrels come from ir_datasets (msmarco-passage/…) and only the teacher file from
--data. `--check MODEL` evaluates a released checkpoint against the numbers that independent evaluations of it agree on.
"""
from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyterrier as pt
from ir_measures import RR, R, nDCG

from pyterrier_tasb import LateInteraction, ScoredPairs, TasBalanced, TeacherScores, TextStore, Training
from pyterrier_tasb.baselines import bm25
from pyterrier_tasb.documents import documents
from pyterrier_tasb.training.validation import by_reciprocal_rank

TEACHER_FILE = 'bert_cat_ensemble_msmarcopassage_train_scores_ids.tsv'
COLBERT = 'sebastian-hofstaetter/colbert-distilbert-margin_mse-T2-msmarco'
RELEASED = 'sebastian-hofstaetter/distilbert-dot-tas_b-b256-msmarco'
IRDS = {'train': 'msmarco-passage/train', 'dev': 'msmarco-passage/dev', 'dev.small': 'msmarco-passage/dev/small',
        'dl19': 'msmarco-passage/trec-dl-2019/judged',
        'dl20': 'msmarco-passage/trec-dl-2020/judged'}
# TREC's four grades are binarised at 2 (METHOD.md, section 3)
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
    parser.add_argument('--mask-tokens', type=int, default=8, help='[MASK] tokens that it was trained with')
    parser.add_argument('--batch-size', type=int, default=32, help='the paper has 32, 96 and 256')
    parser.add_argument('--steps', type=int, default=800_000)
    parser.add_argument('--clusters', type=int, default=2000)
    parser.add_argument('--cluster-encoder', metavar='MODEL',
                        help='a dense retriever whose query vectors are clustered, as in the paper, unless there is '
                             'clusters.tsv; default: the student, untrained')
    parser.add_argument('--eval-every', type=int, default=4000)
    parser.add_argument('--patience-from', type=int, default=300_000)
    parser.add_argument('--validation-queries', type=int, default=3200)
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
        store = args.out / 'texts'
        self.texts = TextStore(store) if store.exists() else TextStore.build(store, self._passages())

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
        return pt.io.read_qrels(str(self.folder / f'qrels.{split}.tsv'))[['qid', 'docno', 'label']]

    def has(self, split: str) -> bool:
        return self.irds or (self.folder / f'queries.{split}.tsv').exists()

    def validation(self, n: int, sparse: pt.Transformer, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Candidates and qrels of `n` judged dev queries that are not evaluated, easy and hard ones in equal shares.

        The 100 best candidates of each, and all that is relevant (the paper's pool).
        """
        qrels, topics = self.qrels('dev'), self.topics('dev')
        held_out = set(qrels['qid']) - set(self.topics('dev.small')['qid'])
        topics = topics[topics['qid'].isin(held_out)]
        if len(topics) > 5 * n:   # enough to find hard ones among them
            topics = topics.sample(5 * n, random_state=seed)
        file = self.folder / 'candidates.dev.tsv'
        found = best_candidates(file, topics) if file.exists() else (sparse % 100)(topics)
        found = by_reciprocal_rank(found[['qid', 'query', 'docno']], qrels, n, seed=seed)
        relevant = qrels[qrels['label'] > 0].merge(found[['qid', 'query']].drop_duplicates(), on='qid')
        pool = pd.concat([found, relevant[['qid', 'query', 'docno']]]).drop_duplicates(['qid', 'docno'])
        return pool.reset_index(drop=True), qrels


def best_candidates(file: Path, topics: pd.DataFrame, n: int = 100) -> pd.DataFrame:
    """The `n` best of a file of qid, pid, rank for each topic, in the order of their ranks."""
    parts = []
    for some in pd.read_csv(file, sep='\t', header=None, dtype={0: str, 1: str}, chunksize=1_000_000):
        if some.shape[1] != 3:
            raise SystemExit(f'{file} has {some.shape[1]} columns, expected qid, pid, rank')
        some = some.set_axis(['qid', 'docno', 'rank'], axis=1)
        parts.append(some[some['qid'].isin(set(topics['qid']))])
    found = pd.concat(parts).sort_values(['qid', 'rank']).drop_duplicates(['qid', 'docno'])
    return found.groupby('qid').head(n).merge(topics, on='qid')


def columns(file: Path, n: int | None = None) -> Iterator[list[str]]:
    """Tab-separated rows; the last of `n` columns may hold tabs."""
    with open(file, encoding='utf-8-sig') as lines:
        for number, line in enumerate(lines, 1):
            row = line.rstrip('\r\n').split('\t', -1 if n is None else n - 1)
            if n is not None and len(row) != n:
                raise ValueError(f'{file}, line {number}: {len(row)} columns, expected {n}')
            yield row


def teacher_scores(folder: Path) -> Path:
    files = [folder / name for name in (TEACHER_FILE, f'{TEACHER_FILE}.gz') if (folder / name).exists()]
    if not files:
        raise SystemExit(f'{folder} has no {TEACHER_FILE}[.gz], the published teacher scores')
    return files[0]


def train(args: argparse.Namespace, data: MsMarco, sparse: pt.Transformer) -> TasBalanced:
    path = args.out / 'pairs'
    pairs = ScoredPairs(path) if path.exists() else ScoredPairs.from_teacher_file(teacher_scores(args.data), path)
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


def expanded_corpus(args: argparse.Namespace, data: MsMarco) -> Iterator[dict[str, str]]:
    """Passages with their predicted queries."""
    predicted = TextStore.build(args.out / 'predictions', columns(args.data / 'docT5query.tsv', 2)) \
        if not (args.out / 'predictions').exists() else TextStore(args.out / 'predictions')
    for doc in documents(data.texts):
        row = int(predicted.index_of([doc['docno']])[0])
        yield doc if row < 0 else {**doc, 'text': f'{doc["text"]} {predicted[row]}'}


def evaluate(args: argparse.Namespace, data: MsMarco, systems: dict[str, pt.Transformer]) -> pd.DataFrame:
    tables = []
    for split, measures in MEASURES.items():
        if data.has(split):
            table = pt.Experiment(systems, data.topics(split), data.qrels(split), measures, round=4)
            tables.append(table.assign(queries=split))
            print(f'\n{split}\n{table.to_string(index=False)}')
    table = pd.concat(tables)
    table.to_json(args.out / 'table.json', orient='records', indent=1)
    return table


def check(table: pd.DataFrame) -> None:
    """The released checkpoint against what others measure."""
    for split, targets in TARGETS.items():
        row = table[(table['queries'] == split) & (table['name'] == 'TAS-Balanced')]
        for measure, target in targets.items() if len(row) else ():
            found = row[measure].iloc[0]
            print(f'{split} {measure}: {found:.4f}, target {target} ({found - target:+.4f})')


def main() -> None:
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    data = MsMarco(args)
    print(f'{len(data.texts):,} passages')
    sparse = bm25(data.texts, args.out / 'bm25')
    systems = {sparse.label: sparse.retriever}
    if (args.data / 'docT5query.tsv').exists():
        expanded = bm25(expanded_corpus(args, data), args.out / 'doct5query', name='docT5query')
        systems[expanded.label] = expanded.retriever
    student = TasBalanced(args.check, verbose=True) if args.check else train(args, data, sparse.retriever)
    index = student.index(data.texts, args.out / ('checked.flex' if args.check else 'tasb.flex'),
                          overwrite=True)
    table = evaluate(args, data, systems | {'TAS-Balanced': student.retriever(index)})
    if args.check:
        check(table)


if __name__ == '__main__':
    main()
