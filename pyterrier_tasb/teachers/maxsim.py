"""MaxSim over ragged token vectors: no padding, so nothing to mask."""
from __future__ import annotations

import torch

from ..encoding.transfer import moved

_MOST_PRODUCTS = 1 << 27   # token similarities held at a time: 512 MB in float32


def maxsim(query: torch.Tensor, query_lengths: torch.Tensor, docs: torch.Tensor,
           doc_lengths: torch.Tensor) -> torch.Tensor:
    """Late interaction of every query with every passage (Khattab and Zaharia 2020).

    For each query token the maximum over the passage's tokens, summed over query tokens. Each text's tokens are a run
    of rows, so a maximum never sees another text's tokens: what padding would have to be −inf for.

    Args:
        query: float[Tq, D], token vectors of B queries one after the other.
        query_lengths: long[B], at least 1; on the CPU, wherever the vectors are.
        docs: float[Td, D], token vectors of P passages one after the other.
        doc_lengths: long[P], at least 1; on the CPU.

    Returns:
        float32[B, P]; gradients flow.

    >>> one = torch.tensor([[1., 0.], [0., 1.]])
    >>> maxsim(one, torch.tensor([2]), torch.tensor([[-3., -1.], [-2., -5.]]), torch.tensor([1, 1])).tolist()
    [[-4.0, -7.0]]
    """
    rows, ends = [], [0, *query_lengths.cumsum(0).tolist()]
    doc_lengths, on_device = moved(doc_lengths, docs.device), moved(query_lengths, docs.device)
    for start, stop in _chunks(query_lengths.tolist(), len(docs)):
        similarity = docs.float() @ query[ends[start]:ends[stop]].float().T             # [Td, Tq']
        best = torch.segment_reduce(similarity, 'max', lengths=doc_lengths, axis=0)     # [P, Tq']
        rows.append(torch.segment_reduce(best.T.contiguous(), 'sum', lengths=on_device[start:stop], axis=0))
    return torch.cat(rows)


def _chunks(query_lengths: list[int], n_doc_tokens: int) -> list[tuple[int, int]]:
    """Runs of queries whose similarities to all passages fit in memory."""
    budget, runs, start, size = max(1, _MOST_PRODUCTS // max(1, n_doc_tokens)), [], 0, 0
    for i, length in enumerate(query_lengths):
        if size and size + length > budget:
            runs.append((start, i))
            start, size = i, 0
        size += length
    return [*runs, (start, len(query_lengths))]
