"""Any PyTerrier scorer as an in-batch teacher."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyterrier as pt
import torch

from ..texts import TextRows, TextStore

_Texts = tuple[list[str], list[str]]   # ids and texts


def scores_of(scored: pd.DataFrame, asked: pd.DataFrame) -> np.ndarray:
    """float[n], the score of each row asked for, by qid and docno; NaN where the scorer left it out.

    Raises:
        ValueError: Rows share qid and docno, and come back in another order: whose score is whose?
    """
    scores, wanted = scored.set_index(['qid', 'docno'])['score'], pd.MultiIndex.from_frame(asked[['qid', 'docno']])
    if scores.index.equals(wanted):
        return scores.to_numpy(dtype=float)
    if not scores.index.is_unique:
        raise ValueError(f'{int(scores.index.duplicated().sum())} scored rows repeat a (qid, docno), first '
                         f'{scores.index[scores.index.duplicated()][0]}, in another order than was asked: give each '
                         'passage a docno of its own, or drop_duplicates(["qid", "docno"]) first')
    return scores.reindex(wanted).to_numpy(dtype=float)


class ScorerTeacher:
    """Asks a scorer for every (query, passage) of a batch: right for any scorer, and as slow as B × 2B calls to it.

    Args:
        scorer: A transformer that scores qid, query, docno and the text column; it may read the text, or look up by qid
            and docno.
        text_field: The text's column.
    """

    def __init__(self, scorer: pt.Transformer, text_field: str = 'text') -> None:
        self.scorer, self.text_field = scorer, text_field

    def bind(self, queries: TextStore | TextRows, docs: TextStore | TextRows, cache_dir: Path | None = None,
             ) -> Callable[[np.ndarray, np.ndarray], torch.Tensor]:
        """The scorer of a run's texts by row: (query rows, document rows) → float32[B, P].

        The scorer is given the run's own qids and docnos: it may look up by them, as a cache or an index does.
        """
        def scores(query_rows: np.ndarray, doc_rows: np.ndarray) -> torch.Tensor:
            (query_rows, i), (doc_rows, j) = (np.unique(rows, return_inverse=True) for rows in (query_rows, doc_rows))
            matrix = self._scores((queries.ids_of(query_rows), queries.take(query_rows)),
                                  (docs.ids_of(doc_rows), docs.take(doc_rows)))
            return torch.from_numpy(matrix[np.ix_(i, j)])
        return scores

    def _scores(self, queries: _Texts, docs: _Texts) -> np.ndarray:
        (qids, queries), (docnos, docs) = queries, docs
        frame = pd.DataFrame({
            'qid': np.repeat(np.array(qids, dtype=object), len(docs)),
            'query': np.repeat(np.array(queries, dtype=object), len(docs)),
            'docno': np.tile(np.array(docnos, dtype=object), len(queries)),
            self.text_field: np.tile(np.array(docs, dtype=object), len(queries))})
        scored = self.scorer(frame)
        pt.validate.result_frame(scored, extra_columns=['score'], context=self.scorer)
        scored = scored.drop_duplicates(['qid', 'docno'], keep='last')
        matrix = scores_of(scored, frame).astype(np.float32).reshape(len(qids), -1)
        missing = ~np.isfinite(matrix)
        if missing.any():
            raise ValueError(f'{self.scorer!r} left {int(missing.sum())} of {matrix.size} (query, passage) pairs of a '
                             'batch without a finite score: an in-batch teacher must score all')
        return matrix

    def __repr__(self) -> str:
        return f'ScorerTeacher({self.scorer!r})'
