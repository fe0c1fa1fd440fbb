"""A plan's rows as what a training step needs: tokens, margins and the in-batch teacher's scores."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from ..encoding import Tokens
from ..sampling import Batch, BatchPlan

_QUERIES = 10_000   # looked at at a time
BoundTeacher = Callable[[np.ndarray, np.ndarray], torch.Tensor]


class TokenRows(Protocol):
    """Tokens of texts by row."""

    def take(self, rows: np.ndarray) -> Tokens: ...  # noqa: D102


@dataclass(frozen=True)
class TrainingBatch:
    """B queries with a positive and a negative passage each; every distinct text is there once.

    Args:
        tokens: Distinct queries, then distinct passages.
        query: long[B], rows of `tokens`.
        pos: long[B], rows of `tokens`.
        neg: long[B], rows of `tokens`.
        margin: float[B], the pairwise teacher's t⁺ − t⁻.
        in_batch: float[B, 2B], the in-batch teacher's scores against [P⁺ | P⁻], or None.
        qids: The queries' ids.
        step: The batch's number in its plan.
    """
    tokens: Tokens
    query: torch.Tensor
    pos: torch.Tensor
    neg: torch.Tensor
    margin: torch.Tensor
    in_batch: torch.Tensor | None
    qids: tuple[str, ...]
    step: int = 0

    @property
    def rows(self) -> torch.Tensor:
        """long[3B], rows of `tokens`: queries, positives, negatives."""
        return torch.cat([self.query, self.pos, self.neg])

    def describe(self) -> str:
        """The first queries, for messages."""
        return f'queries {", ".join(self.qids[:3])}, …'


@dataclass(frozen=True)
class TeacherTransform:
    """What is done to the teachers' scores before the losses see them: a recorded constant each, and a bonus.

    Args:
        pairwise: Factor on the pairwise teacher's margins.
        in_batch: Factor on the in-batch teacher's scores.
        positive_bonus: Added to the score of a judged positive, after the factor; 0 is the paper.
    """
    pairwise: float = 1.0
    in_batch: float = 1.0
    positive_bonus: float = 0.0


class JudgedPositives:
    """Which (query row, document row) are judged positives, for arrays at a time.

    Args:
        indptr: Of the pairs.
        pos: Of the pairs.
        n_docs: Document rows.
        others: Query rows and document rows of judged positives that may be in no pair of their query.
    """

    def __init__(self, indptr: np.ndarray, pos: np.ndarray, n_docs: int,
                 others: tuple[np.ndarray, np.ndarray] | None = None) -> None:
        self.n_docs, n_queries = n_docs, len(indptr) - 1
        parts = []
        for start in range(0, n_queries, _QUERIES):   # the keys of all pairs would be GBs, those of positives are MBs
            stop = min(start + _QUERIES, n_queries)
            query = np.repeat(np.arange(start, stop, dtype=np.int64), np.diff(indptr[start:stop + 1]))
            parts.append(np.unique(query * n_docs + np.asarray(pos[indptr[start]:indptr[stop]], dtype=np.int64)))
        if others is not None:
            parts = [np.unique(np.concatenate([*parts, others[0] * n_docs + others[1]]))]
        self.keys = np.concatenate(parts)

    def __call__(self, query: np.ndarray, docs: np.ndarray) -> np.ndarray:
        """bool[B, P]: is docs[j] a judged positive of query[i]."""
        return self.pairs(query[:, None], docs[None, :])

    def pairs(self, query: np.ndarray, docs: np.ndarray) -> np.ndarray:
        """bool, in the arrays' common shape: is the document a judged positive of the query."""
        keys = query.astype(np.int64) * self.n_docs + docs.astype(np.int64)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return self.keys[at] == keys


class TrainingBatches:
    """`batches[step]`: the plan's row `step` with tokens and teachers' scores; a pure function of the step.

    Args:
        plan: What goes in a batch.
        queries: Tokens of query rows.
        docs: Tokens of document rows.
        qids: Ids of query rows.
        teacher: The in-batch teacher: `teacher(query rows, document rows)` → float[B, P]; or anything indexed by the
            step that gives float[B, 2B]; None has no in-batch term.
        transform: Factors and bonus for the teachers' scores.
        judged: Which documents get the bonus; needed where it is not 0.
    """

    def __init__(self, plan: BatchPlan, queries: TokenRows, docs: TokenRows, qids: np.ndarray, *,
                 teacher: BoundTeacher | None = None, transform: TeacherTransform = TeacherTransform(),
                 judged: JudgedPositives | None = None) -> None:
        self.plan, self.queries, self.docs, self.qids = plan, queries, docs, qids
        self.teacher, self.transform, self.judged = teacher, transform, judged

    def __getitem__(self, step: int) -> TrainingBatch:
        batch = self.plan[step]
        docs, where = np.unique(np.concatenate([batch.pos, batch.neg]), return_inverse=True)
        n_queries = len(batch.query)
        rows = torch.from_numpy(where.reshape(-1) + n_queries)
        return TrainingBatch(
            tokens=Tokens.concat([self.queries.take(batch.query), self.docs.take(docs)]),
            query=torch.arange(n_queries), pos=rows[:n_queries], neg=rows[n_queries:],
            margin=torch.from_numpy(self._margin(batch)),
            in_batch=self._in_batch(batch, docs, where.reshape(-1)),
            qids=tuple(str(self.qids[int(row)]) for row in batch.query), step=int(step))

    def _margin(self, batch: Batch) -> np.ndarray:
        margin = np.asarray(batch.margin, dtype=np.float32) * self.transform.pairwise
        if not self.transform.positive_bonus:
            return margin.astype(np.float32)
        both = self.judged.pairs(batch.query, batch.neg)   # a negative of this pair, a positive of another
        return (margin + self.transform.positive_bonus * ~both).astype(np.float32)

    def _in_batch(self, batch: Batch, docs: np.ndarray, where: np.ndarray) -> torch.Tensor | None:
        if self.teacher is None:
            return None
        if hasattr(self.teacher, '__getitem__'):   # stored scores of this very plan
            scores = torch.as_tensor(self.teacher[batch.step])
        else:
            scores = self.teacher(batch.query, docs)[:, torch.from_numpy(where)]   # each distinct passage scored once
        scores = scores.float().cpu() * self.transform.in_batch
        if self.transform.positive_bonus:
            judged = self.judged(batch.query, docs)[:, where]
            scores = scores + self.transform.positive_bonus * torch.from_numpy(judged)
        return scores
