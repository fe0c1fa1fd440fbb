"""What an encoder is in a pipeline: pyterrier_dr's transformers, which here look at the texts that they are given."""
from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyterrier as pt
import pyterrier_dr
from pyterrier_dr.biencoder import BiDocEncoder, BiQueryEncoder, BiScorer

from .checks import check_texts, with_lost_queries
from .encoding.settings import shallow
from .retrieval import check_weights

if TYPE_CHECKING:
    from .tasbalanced import TasBalanced

_ROWS = 4096   # scored at a time: 200,000 rows of 768 dimensions would take 600 MB a side


class Bare:
    """Stands for an encoder in the pickles of its stages, and comes out as an encoder without some attributes.

    Args:
        encoder: Which keeps this object: what is once in a pickle is one encoder when it comes out, whose stages see
            what is set on it.
        without: Attributes that are None then.
    """

    def __init__(self, encoder: pt.Transformer, without: Sequence[str]) -> None:
        self.encoder, self.without = weakref.ref(encoder), without

    def __reduce__(self) -> tuple:
        encoder = self.encoder()
        return object.__new__, (type(encoder),), {**vars(encoder), **dict.fromkeys(self.without)}


def itself(encoder: pt.Transformer) -> pt.Transformer:
    """What a :class:`Bare` has become, for who pickles an encoder as that and more."""
    return encoder


class _Stage:
    """Equal where the models are, precision and weights included, which pyterrier_dr's stages do not look at."""

    def _key(self) -> tuple:
        return self.bi_encoder_model, self.verbose, self.batch_size, getattr(self, 'text_field', None)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), 'bi_encoder_model': self.bi_encoder_model._in_pickles}   # what is pickled only encodes

    def __copy__(self) -> _Stage:
        return shallow(self)

    def __deepcopy__(self, memo: dict) -> _Stage:
        other = shallow(self)
        vars(other).update(copy.deepcopy(vars(self), memo))
        return other


class QueryEncoder(_Stage, BiQueryEncoder):
    """Adds `query_vec`."""

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Encode each distinct query once."""
        with pt.validate.any(inp, context=self) as v:
            v.query_frame(extra_columns=['query'])
            v.columns(includes=['query'])
        inp = with_lost_queries(inp)
        check_texts(inp, 'query', context=self)
        return inp.assign(query_vec=list(self.bi_encoder_model.encode_queries(inp['query'], verbose=self.verbose)))


class IndexQueryEncoder(QueryEncoder):
    """Adds `query_vec` for the search of an index, and warns if the encoder was trained since it made that."""

    schematic = {'label': 'QueryEncoder'}

    def __init__(self, bi_encoder_model: TasBalanced, index: pyterrier_dr.FlexIndex, verbose: bool | None = None,
                 batch_size: int | None = None) -> None:
        super().__init__(bi_encoder_model, verbose=verbose, batch_size=batch_size)
        self.index = index

    def _key(self) -> tuple:
        return *super()._key(), self.index.index_path

    def __getstate__(self) -> dict[str, Any]:
        # the pickle of an index that was searched holds all its vectors, which are not needed here
        index = pyterrier_dr.FlexIndex(str(self.index.index_path), verbose=False)
        index._meta = self.index._meta
        return {**super().__getstate__(), 'index': index}

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Encode each distinct query once."""
        out = super().transform(inp)
        if len(inp):
            # the object's own meta, which is that of the vectors it searches: others may lie at the path by now
            meta, = self.index.payload(return_dvecs=False, return_docnos=False)
            check_weights(meta, self.index, self.bi_encoder_model)
        return out


class DocEncoder(_Stage, BiDocEncoder):
    """Adds `doc_vec`."""

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Encode each distinct passage once."""
        with pt.validate.any(inp, context=self) as v:
            v.document_frame(extra_columns=[self.text_field])
            v.columns(includes=[self.text_field])
        check_texts(inp, self.text_field, context=self)
        return inp.assign(doc_vec=list(self.bi_encoder_model.encode_docs(inp[self.text_field], verbose=self.verbose)))


class TextScorer(_Stage, BiScorer):
    """Adds `score` and `rank`, also to frames without qids, whose rows are ranked within their query."""

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Score rows that have a query or its vector, and a text or its vector."""
        with pt.validate.any(inp, context=self) as v:
            for query in ('query_vec', 'query'):
                for doc in ('doc_vec', self.text_field):
                    v.columns(includes=[query, doc])
        inp = with_lost_queries(inp)
        queries = self._vectors(inp, 'query_vec', 'query', self.bi_encoder_model.encode_queries)
        docs = self._vectors(inp, 'doc_vec', self.text_field, self.bi_encoder_model.encode_docs)
        scores = np.empty(len(inp), dtype=np.float64)
        for start in range(0, len(inp), _ROWS):
            rows = slice(start, start + _ROWS)
            scores[rows] = np.einsum('nd,nd->n', queries(rows), docs(rows))
        out = inp.assign(score=scores)
        group = next((name for name in ('qid', 'query') if name in inp.columns), None)
        ranked = out['score'] if group is None else out.groupby(group, sort=False)['score']
        return out.assign(rank=ranked.rank(method='first', ascending=False).astype(np.int64) - 1)

    def _vectors(self, inp: pd.DataFrame, given: str, text: str, encode: Callable) -> Callable[[slice], np.ndarray]:
        """Rows of `inp` → their vectors [n, D]; those of texts are kept once for each distinct text."""
        if given in inp.columns:
            vectors = inp[given].to_list()
            return lambda rows: np.stack(vectors[rows])
        check_texts(inp, text, context=self.bi_encoder_model)
        row_of, distinct = pd.factorize(inp[text].astype(object))
        encoded = encode(distinct, verbose=self.verbose)
        return lambda rows: encoded[row_of[rows]]
