"""Bring the teachers' margins to the student's scale: one recorded constant for each teacher.

A teacher whose margins are several times what the student can express pulls it apart on pairs that are easy anyway.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch

from .batches import TeacherTransform, TrainingBatch, TrainingBatches


@dataclass(frozen=True)
class Margins:
    """Mean and standard deviation of a set of margins."""
    mean: float
    sd: float

    @classmethod
    def of(cls, values: np.ndarray) -> Margins | None:
        """Of float[N] margins; None where there are none, as in batches of one query."""
        return None if not len(values) else cls(float(np.mean(values, dtype=float)), float(np.std(values, dtype=float)))

    def __str__(self) -> str:
        return f'{self.mean:.3g} ± {self.sd:.3g}'


@dataclass(frozen=True)
class Calibration:
    """Margins of student and teachers before training, and the factors that bring the teachers' to the student's.

    Args:
        n_pairs: Pairs looked at.
        student: The untrained student's margins on the plan's pairs.
        pairwise: The pairwise teacher's margins on the same pairs, as given.
        student_in_batch: The student's margins s(q, p⁺) − s(q, p) over the rest of the batch.
        in_batch: The in-batch teacher's there, as given; None without one.
        correlation: Pearson correlation of student and pairwise teacher; None where one is constant.
        pairwise_factor: Recorded constant of the pairwise teacher.
        in_batch_factor: Recorded constant of the in-batch teacher.
    """
    n_pairs: int
    student: Margins
    pairwise: Margins
    student_in_batch: Margins | None
    in_batch: Margins | None
    correlation: float | None
    pairwise_factor: float
    in_batch_factor: float

    def to_dict(self) -> dict:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> Calibration:
        """What :meth:`to_dict` gave."""
        margins = {name: Margins(**value) if isinstance(value, dict) else value for name, value in values.items()}
        return cls(**margins)

    def __str__(self) -> str:
        correlation = 'constant' if self.correlation is None else f'correlation {self.correlation:.2f}'
        text = (f'margins over {self.n_pairs} pairs: student {self.student}, pairwise teacher {self.pairwise} '
                f'({correlation}, factor {self.pairwise_factor:.3g})')
        if self.in_batch is not None:
            text += (f'; in the batch: student {self.student_in_batch}, teacher {self.in_batch} '
                     f'(factor {self.in_batch_factor:.3g})')
        return text


def calibrate(batches: TrainingBatches, student: Callable[[TrainingBatch], np.ndarray], *, n_batches: int = 8,
              factor: float | str = 'auto') -> Calibration:
    """Look at the margins of the first batches of a plan.

    Args:
        batches: Batches with unscaled teachers.
        student: A batch → its untrained scores float[B, 2B] against [P⁺ | P⁻].
        n_batches: Batches to look at.
        factor: A number to use for both teachers, or 'auto' for the ratio of standard deviations.
    """
    ours, given, ours_in_batch, given_in_batch = [], [], [], []
    for step in range(n_batches):
        batch = batches[step]
        scores = student(batch)
        size = len(scores)
        rows = np.arange(size)
        ours.append(scores[rows, rows] - scores[rows, size + rows])
        given.append(batch.margin.numpy())
        if batch.in_batch is not None:
            others = np.ones_like(scores, dtype=bool)
            others[rows, rows] = others[rows, size + rows] = False
            for total, matrix in ((ours_in_batch, scores), (given_in_batch, batch.in_batch.numpy())):
                total.append((matrix[rows, rows][:, None] - matrix)[others])
    student_margin, teacher_margin = np.concatenate(ours), np.concatenate(given)
    constant = np.std(student_margin) < 1e-9 or np.std(teacher_margin) < 1e-9
    correlation = None if constant else float(np.corrcoef(student_margin, teacher_margin)[0, 1])
    with_in_batch = bool(given_in_batch)
    student_in_batch = np.concatenate(ours_in_batch) if with_in_batch else None
    teacher_in_batch = np.concatenate(given_in_batch) if with_in_batch else None
    return Calibration(
        n_pairs=len(student_margin), student=Margins.of(student_margin), pairwise=Margins.of(teacher_margin),
        student_in_batch=Margins.of(student_in_batch) if with_in_batch else None,
        in_batch=Margins.of(teacher_in_batch) if with_in_batch else None, correlation=correlation,
        pairwise_factor=_factor(factor, student_margin, teacher_margin),
        in_batch_factor=_factor(factor, student_in_batch, teacher_in_batch) if with_in_batch else 1.0)


def _factor(factor: float | str, student: np.ndarray, teacher: np.ndarray) -> float:
    if factor != 'auto':
        return float(factor)
    if not len(student):
        return 1.0
    student_sd, teacher_sd = float(np.std(student, dtype=float)), float(np.std(teacher, dtype=float))
    if student_sd < 1e-9 or teacher_sd < 1e-9:
        return 1.0   # a constant says nothing of scale
    return float(f'{student_sd / teacher_sd:.4g}')   # four digits: the record holds the very constant used


def transform_of(calibration: Calibration, positive_bonus: float) -> TeacherTransform:
    """The transform that a calibration asks for."""
    return TeacherTransform(calibration.pairwise_factor, calibration.in_batch_factor, positive_bonus)


def student_scores(encode: Callable[[TrainingBatch], torch.Tensor]) -> Callable[[TrainingBatch], np.ndarray]:
    """Scores float[B, 2B] of a batch against [P⁺ | P⁻] from an encoder of its tokens, without gradients."""
    def scores(batch: TrainingBatch) -> np.ndarray:
        with torch.no_grad():
            vecs = encode(batch)
        return (vecs[batch.query] @ vecs[torch.cat([batch.pos, batch.neg])].T).cpu().numpy()
    return scores
