"""Dual supervision: the pairwise and the in-batch teacher's losses from the vectors of a batch."""
from __future__ import annotations

import torch

from ..encoding.transfer import moved
from .losses import IN_BATCH, LISTS, PAIRWISE


def pairwise_loss(s_pos: torch.Tensor, s_neg: torch.Tensor, margin: torch.Tensor,
                  loss: str = 'margin-mse') -> torch.Tensor:
    """The loss of B pairs: P = 2, anchor in column 0.

    Args:
        s_pos: float[B], the student's score of each query's positive.
        s_neg: float[B], of its negative.
        margin: float[B], the pairwise teacher's t⁺ − t⁻.
        loss: A name in `losses.PAIRWISE`.
    """
    student = torch.stack([s_pos, s_neg], 1)
    teacher = torch.stack([margin, torch.zeros_like(margin)], 1)
    anchor = torch.zeros(len(margin), dtype=torch.long, device=student.device)
    mask = (torch.arange(2, device=student.device) > 0).expand(len(margin), 2)
    return PAIRWISE[loss](student, teacher, anchor, mask)


def in_batch_loss(student: torch.Tensor, teacher: torch.Tensor, loss: str = 'margin-mse') -> torch.Tensor:
    """The loss of the batch's other passages: P = 2B, anchor on the diagonal.

    Args:
        student: float[B, 2B], scores against [P⁺ | P⁻].
        teacher: float[B, 2B].
        loss: A name in `losses.IN_BATCH`.
    """
    size = len(student)
    anchor = torch.arange(size, device=student.device)
    own = torch.eye(size, dtype=torch.bool, device=student.device)
    # a query's own two passages are the pairwise teacher's; a list holds them all
    mask = torch.ones_like(own).repeat(1, 2) if loss in LISTS else ~own.repeat(1, 2)
    return IN_BATCH[loss](student, teacher, anchor, mask)


def dual_loss(query: torch.Tensor, pos: torch.Tensor, neg: torch.Tensor, margin: torch.Tensor,
              teacher: torch.Tensor | None = None, *, pairwise: str = 'margin-mse', in_batch: str = 'margin-mse',
              pairwise_weight: float = 1.0, in_batch_weight: float = 0.75,
              ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """λ · pairwise + α · in-batch (Hofstätter et al. 2021, Eq. 9), computed in float32.

    Args:
        query: float[B, D].
        pos: float[B, D].
        neg: float[B, D].
        margin: float[B], the pairwise teacher's margins.
        teacher: float[B, 2B], the in-batch teacher's scores against [P⁺ | P⁻]; None has no in-batch term.
        pairwise: Name of the pairwise loss.
        in_batch: Name of the in-batch loss.
        pairwise_weight: λ.
        in_batch_weight: α.

    Returns:
        The scalar and its unweighted parts, 'pairwise' and 'in_batch'.
    """
    scores = query.float() @ torch.cat([pos, neg]).float().T
    rows = torch.arange(len(query), device=scores.device)
    parts = {}
    if pairwise_weight:
        parts['pairwise'] = pairwise_loss(scores[rows, rows], scores[rows, len(query) + rows],
                                          moved(margin, scores.device).to(scores), pairwise)
    total = pairwise_weight * parts['pairwise'] if parts else scores.sum() * 0.0
    if teacher is not None and in_batch_weight:
        parts['in_batch'] = in_batch_loss(scores, moved(teacher, scores.device).to(scores), in_batch)
        total = total + in_batch_weight * parts['in_batch']
    return total, parts
