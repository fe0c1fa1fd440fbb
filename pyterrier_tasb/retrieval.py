"""From an index to pipelines whose results carry text."""
from __future__ import annotations

from typing import Any

import pandas as pd
import pyterrier as pt
import pyterrier_dr
import torch

from .pairs.examples import text_loader
from .search import HalfPrecisionRetriever, fits


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


def build_retriever(query_encoder: pt.Transformer, index: pyterrier_dr.FlexIndex, *, text: Any = None,  # noqa: ANN401
                    num_results: int = 1000, text_field: str = 'text',
                    device: torch.device | str = 'cpu') -> pt.Transformer:
    """Queries → results by exact search, with text, without the index's own docid.

    Args:
        query_encoder: Adds `query_vec`.
        index: What to search.
        text: A data set, index or transformer that adds the text by docno; None leaves it out.
        num_results: Results for each query.
        text_field: The text's column.
        device: A GPU with room for all vectors in half precision searches there; anything else searches with NumPy, a
            block of the memory-mapped vectors at a time.

    Returns:
        An ordinary pipeline; `% k` after it fuses into the search when compiled.
    """
    device = torch.device(device)
    if index.sim_fn == pyterrier_dr.SimFn.dot and fits(index, device):
        pipeline = query_encoder >> HalfPrecisionRetriever(index, device, num_results)
    else:
        pipeline = query_encoder >> index.np_retriever(num_results=num_results, drop_query_vec=True) >> WithoutDocid()
    return pipeline if text is None else pipeline >> text_loader(text, text_field, name='text')
