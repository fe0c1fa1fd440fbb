"""What an encoder is in a pipeline: pyterrier_dr's transformers, which here look at the texts that they are given."""
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pyterrier as pt
from pyterrier_dr.biencoder import BiDocEncoder, BiQueryEncoder, BiScorer

from .pairs.checks import check_texts


class QueryEncoder(BiQueryEncoder):
    """Adds `query_vec`."""

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Encode each distinct query once."""
        with pt.validate.any(inp, context=self) as v:
            v.query_frame(extra_columns=['query'])
            v.columns(includes=['query'])
        check_texts(inp, 'query', context=self)
        return super().transform(inp)


class DocEncoder(BiDocEncoder):
    """Adds `doc_vec`."""

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Encode passages."""
        with pt.validate.any(inp, context=self) as v:
            v.document_frame(extra_columns=[self.text_field])
            v.columns(includes=[self.text_field])
        check_texts(inp, self.text_field, context=self)
        return super().transform(inp)


class TextScorer(BiScorer):
    """Adds `score` and `rank`, also to frames without qids, whose rows are ranked within their query."""

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Score rows that have a query or its vector, and a text or its vector."""
        text_field = self.bi_encoder_model.text_field
        with pt.validate.any(inp, context=self) as v:
            for query in ('query_vec', 'query'):
                for doc in ('doc_vec', text_field):
                    v.columns(includes=[query, doc])
        scores = np.einsum('nd,nd->n', self._vectors(inp, 'query_vec', 'query', self.bi_encoder_model.encode_queries),
                           self._vectors(inp, 'doc_vec', text_field, self.bi_encoder_model.encode_docs))
        out = inp.assign(score=scores.astype(np.float64))
        group = next((name for name in ('qid', 'query') if name in inp.columns), None)
        ranked = out['score'] if group is None else out.groupby(group, sort=False)['score']
        return out.assign(rank=ranked.rank(method='first', ascending=False).astype(np.int64) - 1)

    def _vectors(self, inp: pd.DataFrame, given: str, text: str, encode: Callable) -> np.ndarray:
        if given not in inp.columns:
            check_texts(inp, text, context=self.bi_encoder_model)
            return encode(inp[text])
        dim = self.bi_encoder_model.encoder.dim
        return np.stack(inp[given].to_list()) if len(inp) else np.empty((0, dim), dtype=np.float32)

    def fuse_rank_cutoff(self, k: int) -> None:
        """A cut after scoring cannot come before it."""
        return None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TextScorer) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple:
        return self.bi_encoder_model, self.verbose, self.batch_size, self.sim_fn
