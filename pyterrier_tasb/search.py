"""Exact search on a GPU: vectors held in half precision, so that 8.8M × 768 fit, scores computed in float32."""
from __future__ import annotations

import threading
import weakref

import numpy as np
import pandas as pd
import pyterrier as pt
import pyterrier_alpha as pta
import pyterrier_dr
import torch

from .checks import check_count
from .encoding.precision import device_of

FOUND = {'docno': str, 'score': np.float32, 'rank': np.int64}   # of no results, too: floats do not merge with docnos

_ONE_AT_A_TIME = threading.Lock()
_ROWS = 65_536   # vectors converted at a time
_QUERIES = 64   # at a time: their half-precision scores of 8.8M passages take 1.1 GB


def search(vectors: torch.Tensor, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k nearest by dot product.

    Half-precision products find k + max(100, k / 10) candidates, whose scores are then computed in float32: a product
    around 100 is rounded to 0.06, too coarse to rank by.

    Args:
        vectors: float16[N, D].
        queries: float32[Q, D], on the same device.
        k: Results for each query.

    Returns:
        float32[Q, min(k, N)] scores in descending order and int64 rows; equal scores of candidates are in the order of
        their rows.
    """
    found = [_search(vectors, some, k) for some in queries.split(_QUERIES)]
    return torch.cat([scores for scores, _ in found]), torch.cat([rows for _, rows in found])


def _search(vectors: torch.Tensor, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    coarse = queries.to(vectors.dtype) @ vectors.T
    rows = coarse.topk(min(len(vectors), k + max(100, k // 10)), dim=1, sorted=False).indices.sort(dim=1).values
    del coarse
    scores = torch.stack([vectors[some].float() @ query for some, query in zip(rows, queries.float())])
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return scores[:, :k], rows.gather(1, order[:, :k])


def fits(index: pyterrier_dr.FlexIndex, device: torch.device) -> bool:
    """Whether `device` is a GPU with room for the index in half precision and for what a search takes."""
    if device.type != 'cuda':
        return False
    if _Held.of(index, device).vectors is not None:
        return True
    _, meta = index.payload(return_docnos=False)
    n, dim = meta['doc_count'], meta['vec_size']
    torch.cuda.empty_cache()   # what PyTorch keeps for itself does not count as free
    free, _ = torch.cuda.mem_get_info(device)
    return free > 2 * n * dim + 4 * _QUERIES * n + (1 << 30)


class _Held:
    """An index's vectors on a device, copied there a block at a time when they are first asked for.

    All retrievers over one index object share them.
    """

    there: weakref.WeakValueDictionary[tuple[int, torch.device], _Held] = weakref.WeakValueDictionary()

    @classmethod
    def of(cls, index: pyterrier_dr.FlexIndex, device: torch.device) -> _Held:
        """Those of an index on a device."""
        with _ONE_AT_A_TIME:
            return cls.there.setdefault((id(index), device), cls(index, device))   # which keep their index, so its id

    def __init__(self, index: pyterrier_dr.FlexIndex, device: torch.device) -> None:
        self.index, self.device, self.lock = index, device, threading.Lock()
        self.vectors: torch.Tensor | None = None

    def __reduce__(self) -> tuple:
        return _Held.of, (self.index, self.device)   # vectors are copied there again, a lock is not copied

    def get(self) -> torch.Tensor:
        """float16[N, D]."""
        with self.lock:
            if self.vectors is None:
                stored, _ = self.index.payload(return_docnos=False)
                vectors = torch.empty(stored.shape, dtype=torch.float16, device=self.device)
                for start in range(0, len(stored), _ROWS):
                    vectors[start:start + _ROWS] = torch.from_numpy(stored[start:start + _ROWS].copy()).half()
                self.vectors = vectors
            return self.vectors


class HalfPrecisionRetriever(pt.Transformer):
    """Queries with `query_vec` → results, by :func:`search` over all vectors of an index.

    Args:
        index: What to search, by dot product.
        device: Where its vectors are held; they are copied there at the first search.
        num_results: Results for each query.

    Raises:
        ValueError: The index wants another similarity, or `num_results` is below 1.
    """

    schematic = {'label': 'exact search'}

    def __init__(self, index: pyterrier_dr.FlexIndex, device: torch.device | str, num_results: int = 1000) -> None:
        if index.sim_fn != pyterrier_dr.SimFn.dot:
            raise ValueError(f'{index!r} is searched by {index.sim_fn}, this by the dot product: use np_retriever()')
        check_count('num_results', num_results)
        self.index, self.device, self.num_results = index, device_of(device), num_results
        self._held = _Held.of(index, self.device)

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Results with docno, score and rank, without `query_vec`."""
        pt.validate.query_frame(inp, extra_columns=['query_vec'], context=self)
        inp, results = inp.reset_index(drop=True), pta.DataFrameBuilder(['docno', 'score', 'rank'])
        if len(inp):
            docnos, _ = self.index.payload(return_dvecs=False)
            self._held = _Held.of(self.index, device_of(self.device))   # which may have been set since
            vectors = self._held.get()
            queries = torch.from_numpy(np.stack(inp['query_vec'].to_list()).astype(np.float32)).to(vectors.device)
            for scores, rows in zip(*(part.cpu().numpy() for part in search(vectors, queries, self.num_results))):
                # lists: an array of one would be taken for a value of many rows
                results.extend({'docno': docnos.fwd[rows].tolist(), 'score': scores.tolist(),
                                'rank': list(range(len(rows)))})
        return results.to_df(inp.drop(columns='query_vec')).astype(FOUND)

    def fuse_rank_cutoff(self, k: int) -> pt.Transformer | None:
        """Search for k only, in the same memory."""
        return HalfPrecisionRetriever(self.index, self.device, k) if k < self.num_results else None

    def _key(self) -> tuple:
        return self.index.index_path, self.device, self.num_results

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HalfPrecisionRetriever) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return f'HalfPrecisionRetriever({self.index!r}, device={str(self.device)!r}, num_results={self.num_results})'
