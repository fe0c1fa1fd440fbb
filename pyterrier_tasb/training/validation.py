"""Validation by re-ranking a fixed pool: every distinct text is encoded once."""
from __future__ import annotations

from typing import TYPE_CHECKING

import ir_measures
import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from ..encoding import Encoder


class RerankingPool:
    """Validation queries with their candidates, and what a student makes of them.

    Args:
        results: Frame with qid, query, docno and the text column; each row is a candidate to re-rank.
        qrels: Frame with qid, docno, label.
        measure: An ir_measures measure, for example 'nDCG@10'.
        text_field: The column that holds the candidates' text.

    Raises:
        ValueError: No candidate's query is in the qrels.
    """

    def __init__(self, results: pd.DataFrame, qrels: pd.DataFrame, measure: str = 'nDCG@10',
                 text_field: str = 'text') -> None:
        judged = set(qrels['qid'].astype(str))
        results = results[results['qid'].isin(judged)]
        if not len(results):
            raise ValueError('none of the validation queries has a judgement: check that qids agree '
                             f'(first judged qids: {sorted(judged)[:5]})')
        self.measure = ir_measures.parse_measure(measure)
        self.query_row, queries = pd.factorize(results['query'])
        self.doc_row, docs = pd.factorize(results[text_field])
        self.queries, self.docs = list(queries), list(docs)
        self._run = pd.DataFrame({'query_id': results['qid'].astype(str).to_numpy(),
                                  'doc_id': results['docno'].astype(str).to_numpy()})
        self._evaluator = ir_measures.evaluator([self.measure], pd.DataFrame({
            'query_id': qrels['qid'].astype(str).to_numpy(), 'doc_id': qrels['docno'].astype(str).to_numpy(),
            'relevance': qrels['label'].astype(int).to_numpy()})[lambda q: q['query_id'].isin(set(results['qid']))])
        self._tokens: tuple | None = None

    def __len__(self) -> int:
        """Number of candidates."""
        return len(self._run)

    def __call__(self, encoder: Encoder) -> dict[str, float]:
        """Re-rank the pool with `encoder`.

        Returns:
            The measure's name and its mean over the pool's queries.
        """
        if self._tokens is None:
            self._tokens = encoder.tokenise(self.queries, 'query'), encoder.tokenise(self.docs, 'doc')
        query_vecs, doc_vecs = (encoder.encode(tokens) for tokens in self._tokens)
        scores = np.einsum('nd,nd->n', query_vecs[self.query_row], doc_vecs[self.doc_row])
        values = self._evaluator.calc_aggregate(self._run.assign(score=scores))
        return {str(self.measure): float(values[self.measure])}


def by_reciprocal_rank(results: pd.DataFrame, qrels: pd.DataFrame, n: int, *, seed: int = 0) -> pd.DataFrame:
    """Candidates of `n` validation queries, easy and hard ones in equal shares.

    Queries are put into bins by the reciprocal rank of their first relevant candidate (1, 1/2, … 1/10, lower, none),
    and drawn from the bins in turn: most queries of a large validation set are alike, and a sample of them says little.

    Args:
        results: qid, docno and what else validation needs; in order of rank within a query.
        qrels: qid, docno, label.
        n: Queries to keep; all where there are fewer.
        seed: Of the draw.

    Returns:
        The rows of `results` of the queries drawn.
    """
    positive = set(map(tuple, qrels.loc[qrels['label'] > 0, ['qid', 'docno']].astype(str).values))
    judged = results[results['qid'].isin(set(qrels['qid']))]
    relevant = [pair in positive for pair in zip(judged['qid'].astype(str), judged['docno'].astype(str), strict=True)]
    rank = judged.groupby('qid', sort=False).cumcount() + 1
    first = rank.where(relevant).groupby(judged['qid'], sort=True).min()
    bins = first.clip(upper=11).fillna(12)
    shuffled = bins.sample(frac=1, random_state=seed)
    turn = shuffled.groupby(shuffled).cumcount()
    kept = shuffled.index[np.lexsort((shuffled, turn))][:n]
    return results[results['qid'].isin(set(kept))].reset_index(drop=True)
