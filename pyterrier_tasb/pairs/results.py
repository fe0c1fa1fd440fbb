"""A scored results frame and qrels → pairs."""
from __future__ import annotations

import os
import warnings

import numpy as np
import pandas as pd

from .checks import check_qrels, check_scores, check_topics_or_results, first
from .store import ScoredPairs


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
    frame = pairs_frame(results, qrels, max_pairs_per_query, seed)
    check_pairs(frame, results['qid'])
    return from_frame(frame, path)


def check_pairs(frame: pd.DataFrame, qids: pd.Series) -> None:
    """Say which of the queries have no pair.

    Raises:
        ValueError: None has one.
    """
    n_queries = qids.nunique()
    if not len(frame):
        raise ValueError(f'none of the {n_queries} queries has both a positive and a negative among its results (qids '
                         f'{first(qids)}): retrieve deeper, or check that qids and docnos agree')
    lost = n_queries - frame['qid'].nunique()
    if lost:
        warnings.warn(f'{lost} of {n_queries} queries have no positive or no negative among their results and are left '
                      'out', stacklevel=3)


def pairs_frame(results: pd.DataFrame, qrels: pd.DataFrame, max_pairs_per_query: int | None,
                seed: int) -> pd.DataFrame:
    """Pairs of a scored results frame: qid, pos, neg, margin."""
    labelled = results[['qid', 'docno', 'score']].astype({'score': float})
    labelled = labelled.merge(qrels, on=['qid', 'docno'], how='left').fillna({'label': 0})
    positive = labelled['label'] > 0
    if not positive.any():
        _check_whole(results, qrels)
    pairs = labelled[positive].merge(labelled[~positive], on='qid', suffixes=('_pos', '_neg'))
    pairs = pd.DataFrame({'qid': pairs['qid'], 'pos': pairs['docno_pos'], 'neg': pairs['docno_neg'],
                          'margin': (pairs['score_pos'] - pairs['score_neg']).astype(np.float32)})
    if max_pairs_per_query is None or not len(pairs):
        return pairs
    # a draw that depends on the query's own pairs only, not on which chunk they came in
    key = pd.util.hash_pandas_object(pairs[['qid', 'pos', 'neg']].astype(object), index=False,
                                     hash_key=f'{seed:016d}'[-16:])
    return pairs[key.groupby(pairs['qid']).rank(method='first') <= max_pairs_per_query].reset_index(drop=True)


def _check_whole(results: pd.DataFrame, qrels: pd.DataFrame) -> None:
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


def from_frame(frame: pd.DataFrame, path: str | os.PathLike | None, run: dict | None = None) -> ScoredPairs:
    """Pairs given by ids: qid, pos, neg, margin; `run` says what they were made of."""
    query, qids = pd.factorize(frame['qid'], sort=True)
    docs, docnos = pd.factorize(pd.concat([frame['pos'], frame['neg']], ignore_index=True), sort=True)
    return ScoredPairs.from_arrays(path, list(qids), list(docnos), query, docs[:len(frame)], docs[len(frame):],
                                   frame['margin'].to_numpy(), run=run)
