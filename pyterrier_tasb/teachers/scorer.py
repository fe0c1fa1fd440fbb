"""Any PyTerrier scorer as an in-batch teacher."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyterrier as pt
import torch

from ..texts import TextStore


class ScorerTeacher:
    """Asks a scorer for every (query, passage) of a batch: right for any scorer, and as slow as B × 2B calls to it.

    Args:
        scorer: A transformer that scores qid, query, docno and the text column.
        text_field: The text's column.
    """

    def __init__(self, scorer: pt.Transformer, text_field: str = 'text') -> None:
        self.scorer, self.text_field = scorer, text_field

    def bind(self, queries: TextStore, docs: TextStore, cache_dir: Path | None = None,
             ) -> Callable[[np.ndarray, np.ndarray], torch.Tensor]:
        """The scorer of a run's texts by row: (query rows, document rows) → float32[B, P]."""
        def scores(query_rows: np.ndarray, doc_rows: np.ndarray) -> torch.Tensor:
            return self._scores(queries.take(query_rows), docs.take(doc_rows))
        return scores

    def _scores(self, queries: list[str], docs: list[str]) -> torch.Tensor:
        frame = pd.DataFrame({
            'qid': np.repeat([f'{i}' for i in range(len(queries))], len(docs)), 'query': np.repeat(queries, len(docs)),
            'docno': np.tile([f'{j}' for j in range(len(docs))], len(queries)),
            self.text_field: np.tile(np.asarray(docs, dtype=object), len(queries))})
        scored = self.scorer(frame)
        pt.validate.result_frame(scored, extra_columns=['score'], context=self.scorer)
        matrix = np.full((len(queries), len(docs)), np.nan, dtype=np.float32)
        matrix[scored['qid'].astype(int), scored['docno'].astype(int)] = scored['score']
        missing = ~np.isfinite(matrix)
        if missing.any():
            raise ValueError(f'{self.scorer!r} left {int(missing.sum())} of {matrix.size} (query, passage) pairs of a '
                             'batch without a finite score: an in-batch teacher must score all')
        return torch.from_numpy(matrix)

    def __repr__(self) -> str:
        return f'ScorerTeacher({self.scorer!r})'
