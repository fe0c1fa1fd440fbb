"""Validation by re-ranking a fixed pool: every distinct text is encoded once."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
import pandas as pd

from ..encoding import Encoder, TokenStore
from ..texts import TextRows, TextStore

_CANDIDATES = 50_000   # scored at a time


class RerankingPool:
    """Validation queries with their candidates, and what a student makes of them.

    Args:
        results: Frame with qid, query, docno and, unless `corpus` has it, the text column; each row is a candidate to
            re-rank.
        qrels: Frame with qid, docno, label.
        measure: An ir_measures measure, for example 'nDCG@10'.
        text_field: The column that holds the candidates' text.
        corpus: The texts by docno, where the frame has none: their tokens serve here as everywhere.
        folder: Where distinct texts and their tokens are kept, memory-mapped; None keeps them in memory.

    Raises:
        ValueError: No candidate's query is in the qrels, or a docno is not in `corpus`.
    """

    def __init__(self, results: pd.DataFrame, qrels: pd.DataFrame, measure: str = 'nDCG@10',
                 text_field: str = 'text', *, corpus: TextStore | None = None, folder: Path | None = None) -> None:
        judged = set(qrels['qid'].astype(str))
        results = results[results['qid'].isin(judged)]
        if not len(results):
            raise ValueError('none of the validation queries has a judgement: check that qids agree '
                             f'(first judged qids: {sorted(judged)[:5]})')
        self.measure, self.folder = ir_measures.parse_measure(measure), folder
        self.query_row, self.queries = self._distinct(results['query'], 'queries')
        if text_field in results.columns:
            self.doc_row, self.docs = self._distinct(results[text_field], 'docs')
        else:
            self.doc_row, self.docs = _rows_of(corpus, results['docno'])
        self._run = pd.DataFrame({'query_id': results['qid'].astype(str).to_numpy(),
                                  'doc_id': results['docno'].astype(str).to_numpy()})
        self._evaluator = ir_measures.evaluator([self.measure], pd.DataFrame({
            'query_id': qrels['qid'].astype(str).to_numpy(), 'doc_id': qrels['docno'].astype(str).to_numpy(),
            'relevance': qrels['label'].astype(int).to_numpy()})[lambda q: q['query_id'].isin(set(results['qid']))])
        self._tokens: tuple | None = None

    def _distinct(self, texts: pd.Series, name: str) -> tuple[np.ndarray, list[str] | TextStore]:
        """The row of each text among the distinct ones, and these."""
        rows, distinct = pd.factorize(texts.astype(object))
        if self.folder is None:
            return rows, list(distinct)
        path = self.folder / name
        items = ((str(row), text) for row, text in enumerate(distinct))
        return rows, TextStore(path) if path.exists() else TextStore.build(path, items)

    def __len__(self) -> int:
        """Number of candidates."""
        return len(self._run)

    def __call__(self, encoder: Encoder) -> dict[str, float]:
        """Re-rank the pool with `encoder`.

        Returns:
            The measure's name and its mean over the pool's queries.
        """
        if self._tokens is None:
            self._tokens = self._tokens_of(encoder, 'query', self.queries), self._tokens_of(encoder, 'doc', self.docs)
        query_vecs, doc_vecs = (encoder.encode(tokens) for tokens in self._tokens)
        values = self._evaluator.calc_aggregate(self._run.assign(score=self._scores(query_vecs, doc_vecs)))
        return {str(self.measure): float(values[self.measure])}

    def _scores(self, query_vecs: np.ndarray, doc_vecs: np.ndarray) -> np.ndarray:
        """float32[N], some candidates at a time: gathered vectors of 320,000 would take 2 GB."""
        parts = np.array_split(np.arange(len(self)), 1 + len(self) // _CANDIDATES)
        return np.concatenate([np.einsum('nd,nd->n', query_vecs[self.query_row[part]], doc_vecs[self.doc_row[part]])
                               for part in parts])

    def _tokens_of(self, encoder: Encoder, side: str, texts: list[str] | TextStore | TextRows) -> Any:
        if isinstance(texts, list):
            return encoder.tokenise(texts, side)
        return TokenStore.of(texts, encoder.tokenizer, encoder.max_length(side), elsewhere=self.folder)


def _rows_of(corpus: TextStore, docnos: pd.Series) -> tuple[np.ndarray, TextRows]:
    """The row of each document among the distinct ones, and these."""
    found, rows = np.unique(corpus.index_of(docnos.astype(str).tolist()), return_inverse=True)
    if found[0] < 0:
        lost = docnos[(rows == 0)].astype(str).tolist()
        raise ValueError(f'{len(lost)} validation candidates are not in {corpus!r} (docnos {lost[:5]}): drop them, or '
                         'give a corpus that has them')
    return rows.reshape(-1), TextRows(corpus, found)


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
