"""Whatever a user names as a teacher → what a training run asks."""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyterrier as pt

from ..sampling import BatchPlan
from ..texts import TextStore
from .scorer import ScorerTeacher
from .weighted import WeightedSum


def in_batch_teacher_of(teacher: Any, text_field: str = 'text') -> Any:
    """What can be bound, of whatever a user names: a checkpoint's name is loaded.

    Args:
        teacher: What the user names.
        text_field: The column that scorers read.

    Raises:
        ValueError: It cannot teach, or there is no such checkpoint.
    """
    if isinstance(teacher, (str, os.PathLike)):
        if (Path(teacher) / 'pt_meta.json').exists():   # an artifact, which checkpoints are not
            from .plan_scores import TeacherScores
            return TeacherScores(teacher)
        from .late_interaction import LateInteraction
        return LateInteraction(teacher)
    if type(teacher) is WeightedSum:   # a subclass may bind in its own way
        return WeightedSum([(weight, in_batch_teacher_of(some, text_field)) for weight, some in teacher.teachers])
    if hasattr(teacher, 'of_plan') or hasattr(teacher, 'bind'):
        return teacher
    if isinstance(teacher, pt.Transformer):
        return ScorerTeacher(teacher, text_field)
    raise ValueError(f'in_batch_teacher={teacher!r} cannot teach: give a LateInteraction, a checkpoint\'s name, a '
                     'WeightedSum, TeacherScores, or a transformer that scores (query, text)')


def bind_in_batch_teacher(teacher: Any, queries: TextStore, docs: TextStore, cache_dir: Path,
                          plan: BatchPlan, steps: int | None = None, text_field: str = 'text') -> Any:
    """Tie an in-batch teacher to the texts of a run.

    Args:
        teacher: What :func:`in_batch_teacher_of` takes, or gave.
        queries: Texts of query rows.
        docs: Texts of document rows.
        cache_dir: Where the teacher may keep what it computes.
        plan: The batches that will be asked.
        steps: How many of them.
        text_field: The column that scorers read.

    Returns:
        A function of (query rows, document rows), or the stored scores of the plan, indexed by step.

    Raises:
        ValueError: It is none of these, or the stored scores are of another plan.
    """
    teacher = in_batch_teacher_of(teacher, text_field)
    if hasattr(teacher, 'of_plan'):
        return teacher.of_plan(plan, steps, queries, docs)
    return teacher.bind(queries, docs, cache_dir)
