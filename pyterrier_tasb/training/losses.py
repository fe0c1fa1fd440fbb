"""The losses, each a function of the scores of B queries against P passages.

All have one interface: `loss(student, teacher, anchor, mask)` with `student` and `teacher` float[B, P], `anchor`
long[B] the column of each query's own positive and `mask` bool[B, P] the columns that take part. Pairwise is P = 2;
in-batch is P = 2B. For the list losses the mask holds the list, the anchor's column included.
"""
from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812

Loss = Callable[[torch.Tensor, 'torch.Tensor | None', torch.Tensor, torch.Tensor], torch.Tensor]
_LOW = -1e30   # stands for −inf in masked columns: softmax gives 0 there, and gradients stay finite


def _margins(scores: torch.Tensor, anchor: torch.Tensor) -> torch.Tensor:
    return scores.gather(1, anchor[:, None]) - scores


def _mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return values.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)


def margin_mse(student: torch.Tensor, teacher: torch.Tensor, anchor: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean squared difference between the student's and the teacher's margins to the anchor.

    mean over the mask of [(s_anchor − s_j) − (t_anchor − t_j)]² (Hofstätter et al. 2021, Eq. 6 and 8).
    """
    teacher = teacher.masked_fill(~_with_anchor(mask, anchor), 0.0)
    return _mean((_margins(student, anchor) - _margins(teacher, anchor)) ** 2, mask)


def ranknet(student: torch.Tensor, teacher: torch.Tensor | None, anchor: torch.Tensor,
            mask: torch.Tensor) -> torch.Tensor:
    """Mean of softplus(−(s_anchor − s_j)); no teacher is read."""
    return _mean(F.softplus(-_margins(student, anchor)), mask)


def kl(student: torch.Tensor, teacher: torch.Tensor, anchor: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """KL(softmax t ‖ softmax s) over each list, mean over queries."""
    target, log_target, log_student = _softmaxes(student, teacher, mask)
    return (target * (log_target - log_student)).masked_fill(~mask, 0.0).sum(1).mean()


def listnet(student: torch.Tensor, teacher: torch.Tensor, anchor: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Cross entropy of softmax s against softmax t over each list, mean over queries (Cao et al. 2007)."""
    target, _, log_student = _softmaxes(student, teacher, mask)
    return -(target * log_student).masked_fill(~mask, 0.0).sum(1).mean()


def lambda_rank(student: torch.Tensor, teacher: torch.Tensor, anchor: torch.Tensor,
                mask: torch.Tensor) -> torch.Tensor:
    """Logistic loss over each list's pairs, weighted by what swapping them changes in nDCG (Burges 2010).

    With gains g = softmax t, r_i the student's rank of i and 1/log₂(1 + r) its discount, a pair with g_i > g_j costs
    ``|g_i − g_j| · |discount(r_i) − discount(r_j)| / idealDCG · softplus(−(s_i − s_j))``; sum over pairs, mean over
    queries.
    """
    target = _softmaxes(student, teacher, mask)[0]
    masked = student.detach().masked_fill(~mask, float('-inf'))
    ranks = masked.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    discount = 1.0 / torch.log2(ranks + 2.0)
    places = 1.0 / torch.log2(torch.arange(student.shape[1], device=student.device) + 2.0)
    ideal = (target.sort(dim=1, descending=True).values * places).sum(1).clamp(min=1e-9)
    gain = target[:, :, None] - target[:, None, :]
    weight = gain.abs() * (discount[:, :, None] - discount[:, None, :]).abs() / ideal[:, None, None]
    pairs = (gain > 0) & mask[:, :, None] & mask[:, None, :]
    losses = weight * F.softplus(-(student[:, :, None] - student[:, None, :]))
    return losses.masked_fill(~pairs, 0.0).sum((1, 2)).mean()


def _with_anchor(mask: torch.Tensor, anchor: torch.Tensor) -> torch.Tensor:
    return mask.scatter(1, anchor[:, None], True)


def _softmaxes(student: torch.Tensor, teacher: torch.Tensor,
               mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    log_target = teacher.masked_fill(~mask, _LOW).log_softmax(1)
    return log_target.exp(), log_target, student.masked_fill(~mask, _LOW).log_softmax(1)


PAIRWISE: dict[str, Loss] = {'margin-mse': margin_mse, 'ranknet': ranknet}
IN_BATCH: dict[str, Loss] = {'margin-mse': margin_mse, 'kl': kl, 'listnet': listnet, 'lambda': lambda_rank}
LISTS = frozenset({'kl', 'listnet', 'lambda'})   # losses whose mask holds the whole list
