"""From an index to pipelines whose results carry text."""
from __future__ import annotations

import os
import reprlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyterrier as pt
import pyterrier_dr
import torch

from ._files import read_json
from ._warn import warn
from .checks import check_count
from .encoding.precision import device_of
from .indexing import WEIGHTS, is_index
from .search import FOUND, HalfPrecisionRetriever, fits
from .text_loading import text_loader

if TYPE_CHECKING:
    from .tasbalanced import TasBalanced


class WithoutSettings(pt.Transformer):
    """A stage that has none, and so equals every other of its kind."""

    def __init__(self) -> None:
        super().__init__()   # takes nothing: object's takes anything, which pt.inspect cannot name

    def __repr__(self) -> str:
        return f'{type(self).__name__}()'

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self)

    def __hash__(self) -> int:
        return hash(type(self))


class WithoutDocid(WithoutSettings):
    """Drops the index's own `docid`, which text loaders of other indexes would take for theirs.

    Where a query has one result, pyterrier_dr gives arrays of one; values come out of them.
    """

    schematic = {'label': 'drop docid'}

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Results without `docid` and `query_vec`."""
        pt.validate.result_frame(inp, context=self)
        out = inp.drop(columns=['docid', 'query_vec'], errors='ignore')
        types = {name: kind for name, kind in FOUND.items() if name in out.columns}
        if not len(out):
            return out.astype(types)
        if isinstance(out['docno'].iloc[0], np.ndarray):
            out = out.explode(list(types), ignore_index=True).astype(types)
        return out

    def fuse_rank_cutoff(self, k: int) -> pt.Transformer:
        """Cut before dropping: the retriever before us can then search for k only."""
        return pt.RankCutoff(k) >> self


def build_retriever(query_encoder: pt.Transformer, index: pyterrier_dr.FlexIndex | str | os.PathLike, *,
                    text: Any = None, num_results: int = 1000, text_field: str = 'text',
                    device: torch.device | str = 'cpu') -> pt.Transformer:
    """Queries → results by exact search, with text, without the index's own docid.

    Args:
        query_encoder: Adds `query_vec`.
        index: What to search, or its path.
        text: A data set, index or transformer that adds the text by docno; None leaves it out.
        num_results: Results for each query.
        text_field: The text's column.
        device: A GPU with room for all vectors in half precision searches there; anything else searches with NumPy, a
            block of the memory-mapped vectors at a time.

    Returns:
        An ordinary pipeline; `% k` after it fuses into the search when compiled.

    Raises:
        ValueError: `index` is no dense index, `num_results` is below 1, or `text` cannot load text.
    """
    check_count('num_results', num_results)
    index = opened(index)
    device = device_of(device)
    if index.sim_fn == pyterrier_dr.SimFn.dot and fits(index, device):
        pipeline = query_encoder >> HalfPrecisionRetriever(index, device, num_results)
    else:
        pipeline = query_encoder >> index.np_retriever(num_results=num_results, drop_query_vec=True) >> WithoutDocid()
    return pipeline if text is None else pipeline >> text_loader(text, text_field, name='text')


def check_made_by(index: pyterrier_dr.FlexIndex, encoder: TasBalanced) -> None:
    """Look at who made an index, as far as it says so.

    Raises:
        ValueError: Its vectors have another length.
    """
    meta = read_json(Path(index.index_path) / 'pt_meta.json')
    if meta.get('vec_size', encoder.encoder.dim) != encoder.encoder.dim:
        raise ValueError(f'{index.index_path} has vectors of {meta["vec_size"]} numbers, {encoder!r} makes '
                         f'{encoder.encoder.dim}: index the corpus with it')
    check_weights(meta, index, encoder)


def check_weights(meta: dict[str, Any], index: pyterrier_dr.FlexIndex, encoder: TasBalanced) -> None:
    """Warn of an index whose `meta` says that other weights made it."""
    if meta.get(WEIGHTS, encoder.weights_fingerprint) != encoder.weights_fingerprint:
        warn(f'{index.index_path} was made with other weights than those of {encoder!r}: index the corpus '
             'again, to a new path or with overwrite=True')


def opened(index: pyterrier_dr.FlexIndex | str | os.PathLike) -> pyterrier_dr.FlexIndex:
    """The index itself, of an index or its path.

    Raises:
        ValueError: There is none.
    """
    is_open = isinstance(index, pyterrier_dr.FlexIndex)
    if not is_open and not isinstance(index, (str, os.PathLike)):
        raise ValueError(f'index={reprlib.repr(index):.80} is a {type(index).__name__}: give the FlexIndex that '
                         'index(corpus, path) returns, or its path')
    path = Path(index.index_path if is_open else index)
    if not is_index(path):
        raise ValueError(f'there is no dense index at {str(path)!r}: index(corpus, path) makes one')
    return index if is_open else pyterrier_dr.FlexIndex(str(path), verbose=False)
