"""A scored results frame and qrels → pairs."""
from __future__ import annotations

import numbers
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from more_itertools import peekable

from .._warn import warn
from ..checks import check_count, check_qrels, check_scores, check_topics_or_results, first
from .store import ScoredPairs

IDS = ['qid', 'pos', 'neg']
_ROW = np.dtype([('qid', '<u4'), ('pos', '<u4'), ('neg', '<u4'), ('margin', '<f4')])


def from_results(results: pd.DataFrame, qrels: pd.DataFrame, path: str | os.PathLike | None = None, *,
                 max_pairs_per_query: int | None = 1000, seed: int = 0) -> ScoredPairs:
    """Every positive of a query with every one of its negatives.

    Args:
        results: qid, query, docno, score; judged above 0 is a positive, unjudged or 0 a negative.
        qrels: qid, docno, label.
        path: Where the pairs go; None keeps them in memory.
        max_pairs_per_query: Pairs kept, drawn at random, of a query that has more; None keeps all.
        seed: Of that draw.

    Raises:
        ValueError: Bad columns, ids, labels or scores; or no query has both a positive and a negative.
    """
    qrels = check_qrels(qrels, 'training')
    _, results = check_topics_or_results(results, 'training', 'text')
    if results is None:
        raise ValueError('the results have no column docno: these are topics')
    check_scores(results, 'training')
    check_draw(max_pairs_per_query, seed)
    return of_queries([pairs_frame(results, qrels, max_pairs_per_query, seed)], path, results['qid'])


def check_draw(max_pairs_per_query: int | None, seed: int) -> None:
    """What a query's pairs are drawn by.

    Raises:
        ValueError: It cannot be.
    """
    if max_pairs_per_query is not None:
        check_count('max_pairs_per_query', max_pairs_per_query)
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral):
        raise ValueError(f'seed={seed!r}: must be a whole number')


def of_queries(frames: Iterable[pd.DataFrame], path: str | os.PathLike | None, qids: pd.Series,
               run: dict[str, Any] | None = None) -> ScoredPairs:
    """Pairs given by ids, and a warning of the queries that have none.

    Raises:
        ValueError: None has one.
    """
    n_queries, frames = qids.nunique(), (frame for frame in frames if len(frame))
    frames = peekable(frames)
    if not frames:
        raise ValueError(f'none of the {n_queries} queries has both a positive and a negative among its results (qids '
                         f'{first(qids)}): retrieve deeper, or check that qids and docnos agree')
    pairs = from_frames(frames, path, run)
    lost = n_queries - pairs.n_queries
    if lost:
        warn(f'{lost} of {n_queries} queries have no positive or no negative among their results and are left out')
    return pairs


def pairs_frame(results: pd.DataFrame, qrels: pd.DataFrame, max_pairs_per_query: int | None,
                seed: int) -> pd.DataFrame:
    """Pairs of a scored results frame: qid, pos, neg, margin."""
    labelled = results[['qid', 'docno', 'score']].astype({'score': float})
    labelled = labelled.merge(qrels, on=['qid', 'docno'], how='left').fillna({'label': 0})
    positive = labelled['label'] > 0
    if not positive.any():
        check_whole(results, qrels)
    pairs = labelled[positive].merge(labelled[~positive], on='qid', suffixes=('_pos', '_neg'))
    pairs = pd.DataFrame({'qid': pairs['qid'], 'pos': pairs['docno_pos'], 'neg': pairs['docno_neg'],
                          'margin': (pairs['score_pos'] - pairs['score_neg']).astype(np.float32)})
    if max_pairs_per_query is None or not len(pairs):
        return pairs
    # a draw that depends on the query's own pairs only, not on which chunk they came in
    key = pd.util.hash_pandas_object(pairs[['qid', 'pos', 'neg']].astype(object), index=False,
                                     hash_key=f'{seed:016d}'[-16:])
    return pairs[key.groupby(pairs['qid']).rank(method='first') <= max_pairs_per_query].reset_index(drop=True)


def check_whole(results: pd.DataFrame, qrels: pd.DataFrame) -> None:
    """Refuse passages of judged documents: their ids are others.

    Raises:
        ValueError: The results are passages that `pt.text.sliding` made.
    """
    of = results['docno'].astype(object).map(lambda docno: docno.partition('%p')[0])
    passages = results.loc[(of != results['docno']) & of.isin(set(qrels['docno'])), 'docno']
    if len(passages):
        raise ValueError(f'the results are passages of judged documents (docnos {first(passages)}), and qrels know the '
                         'documents: put pt.text.max_passage() before this stage, or give the whole of '
                         'sliding >> scorer >> max_passage as pairwise_teacher=')


def from_frames(frames: Iterable[pd.DataFrame], path: str | os.PathLike | None,
                run: dict[str, Any] | None = None) -> ScoredPairs:
    """Pairs given by ids, qid, pos, neg and margin, some at a time; `run` says what they were made of.

    A pair costs 16 bytes until all are there, and every id its string once.
    """
    queries: dict[str, int] = {}
    docs: dict[str, int] = {}
    parts = []
    for frame in frames:
        rows = np.empty(len(frame), dtype=_ROW)
        for name, known in zip(IDS, (queries, docs, docs)):
            codes, ids = pd.factorize(frame[name])
            rows[name] = np.array([known.setdefault(i, len(known)) for i in ids], dtype=np.uint32)[codes]
        rows['margin'] = frame['margin']
        parts.append(rows)
    rows = np.concatenate(parts)
    del parts
    query_rank, doc_rank = _ranks(queries), _ranks(docs)
    return ScoredPairs.from_arrays(path, sorted(queries), sorted(docs), query_rank[rows['qid']], doc_rank[rows['pos']],
                                   doc_rank[rows['neg']], rows['margin'], run=run)


def _ranks(numbers: dict[str, int]) -> np.ndarray:
    """uint32[n], where the id of each number is among the sorted ones."""
    ranks = np.empty(len(numbers), dtype=np.uint32)
    ranks[[numbers[name] for name in sorted(numbers)]] = np.arange(len(numbers), dtype=np.uint32)
    return ranks
