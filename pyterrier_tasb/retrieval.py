"""From a trained encoder to an index, and from an index to pipelines whose results carry text."""
from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pyterrier as pt
import pyterrier_dr
from more_itertools import peekable

from ._files import atomic_dir
from .pairs.examples import text_loader


class WithoutDocid(pt.Transformer):
    """Drops the index's own `docid`, which text loaders of other indexes would take for theirs."""

    schematic = {'label': 'drop docid'}

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Results without `docid` and `query_vec`."""
        pt.validate.result_frame(inp, context=self)
        return inp.drop(columns=['docid', 'query_vec'], errors='ignore')

    def fuse_rank_cutoff(self, k: int) -> pt.Transformer:
        """Cut before dropping: the retriever before us can then search for k only."""
        return pt.RankCutoff(k) >> self

    def __repr__(self) -> str:
        return 'WithoutDocid()'

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WithoutDocid)

    def __hash__(self) -> int:
        return hash(WithoutDocid)


def build_index(doc_encoder: pt.Transformer, corpus: Iterable[dict], path: str | os.PathLike, *,
                overwrite: bool = False) -> pyterrier_dr.FlexIndex:
    """Encode a corpus into a new FlexIndex, which appears at `path` only when it is whole.

    Args:
        doc_encoder: Adds `doc_vec`.
        corpus: Dictionaries with docno and the text field; streamed.
        path: Where the index goes.
        overwrite: Replace what is at `path`.

    Returns:
        A fresh object: an index object that was open on the old files would go on answering from them.

    Raises:
        ValueError: `path` exists and `overwrite` is False; or the corpus is empty.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise ValueError(f'{path} exists: index to a new path, or pass overwrite=True')
    corpus = peekable(corpus)
    if not corpus:
        raise ValueError('the corpus has no documents: nothing was indexed')
    with atomic_dir(path, overwrite=overwrite) as part:
        index = pyterrier_dr.FlexIndex(str(part), verbose=False)
        shutil.rmtree(part)   # an index that exists counts as built
        (doc_encoder >> index.indexer()).index(corpus)
    return pyterrier_dr.FlexIndex(str(path))


def build_retriever(query_encoder: pt.Transformer, index: pyterrier_dr.FlexIndex, *, text: Any = None,  # noqa: ANN401
                    num_results: int = 1000, text_field: str = 'text') -> pt.Transformer:
    """Queries → results by exact search, with text, without the index's own docid.

    Args:
        query_encoder: Adds `query_vec`.
        index: What to search.
        text: A data set, index or transformer that adds the text by docno; None leaves it out.
        num_results: Results for each query.
        text_field: The text's column.

    Returns:
        An ordinary pipeline; `% k` after it fuses into the search when compiled.
    """
    pipeline = query_encoder >> index.np_retriever(num_results=num_results, drop_query_vec=True) >> WithoutDocid()
    return pipeline if text is None else pipeline >> text_loader(text, text_field)
