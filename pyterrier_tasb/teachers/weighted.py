"""Weighted sums of teachers."""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
import torch

from ..texts import TextStore
from .scorer import scores_of


class WeightedSum(pt.Transformer):
    """The weighted sum of several teachers' scores: a scorer of pairs, and a teacher of batches.

    Args:
        teachers: (weight, teacher) pairs; a teacher is a transformer that scores. What else teaches batches (the name
            of a checkpoint, something with `bind`) may be summed for an in-batch teacher.

    Raises:
        ValueError: There are none, or something else.
    """

    schematic = {'label': 'WeightedSum'}

    def __init__(self, teachers: Sequence[tuple[float, Any]]) -> None:
        super().__init__()
        if not teachers:
            raise ValueError('WeightedSum needs at least one (weight, teacher)')
        try:
            self.teachers = [(float(weight), teacher) for weight, teacher in teachers]
        except (TypeError, ValueError):
            raise ValueError(f'WeightedSum({teachers!r:.100}): give (weight, teacher) pairs') from None
        if not all(math.isfinite(weight) for weight, _ in self.teachers):
            raise ValueError(f'WeightedSum({teachers!r:.100}): weights must be finite')

    def check_scores(self) -> None:
        """That it scores pairs.

        Raises:
            ValueError: A teacher is none that does.
        """
        for _, teacher in self.teachers:
            if not isinstance(teacher, pt.Transformer):
                raise ValueError(f'{self!r} cannot score pairs: {teacher!r} is no transformer, and can be summed as an '
                                 'in-batch teacher only. LateInteraction(…) of a checkpoint is both')

    def transform_inputs(self) -> list[list[str]]:
        """The columns that all teachers need to score; asked for by `pt.inspect`."""
        columns = ['qid', 'docno', 'query']
        ways = [(teacher, pt.inspect.transformer_inputs(teacher, strict=False) or []) for _, teacher in self.teachers]
        for teacher, some in sorted(ways, key=lambda way: len(way[1])):   # those without a choice first
            wider = [list(dict.fromkeys([*columns, *names])) for names in some]
            scoring = [names for names in wider
                       if 'score' in (pt.inspect.transformer_outputs(teacher, names, strict=False) or [])]
            # texts, where vectors would do as well
            columns = min(scoring, default=columns,
                          key=lambda names: (len(names), sum(name.endswith('_vec') for name in names)))
        return [columns]

    def subtransformers(self) -> dict[str, list[pt.Transformer]]:
        """The teachers that are transformers, for `pt.inspect` and schematics."""
        return {'teachers': [teacher for _, teacher in self.teachers if isinstance(teacher, pt.Transformer)]}

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Results with the sum as `score`, and `rank`."""
        pt.validate.result_frame(inp, extra_columns=['query'], context=self)
        self.check_scores()
        total = np.zeros(len(inp))
        for weight, teacher in self.teachers:
            total += weight * scores_of(teacher(inp), inp)
        if np.isnan(total).any():
            raise ValueError(f'{int(np.isnan(total).sum())} of {len(inp)} rows were not scored by every teacher')
        return pt.model.add_ranks(inp.assign(score=total))

    def bind(self, queries: TextStore, docs: TextStore, cache_dir: Path | None = None,
             ) -> Callable[[np.ndarray, np.ndarray], torch.Tensor]:
        """The sum over a run's texts by row: (query rows, document rows) → float32[B, P]."""
        from .binding import bind_in_batch_teacher
        stored = [teacher for _, teacher in self.teachers if hasattr(teacher, 'of_plan')]
        if stored:
            raise ValueError(f'{stored[0]!r} has the scores of a plan only and cannot be summed: store the sum, '
                             'TeacherScores.build(path, WeightedSum(…), …)')
        bound = [(weight, bind_in_batch_teacher(teacher, queries, docs, cache_dir, None))
                 for weight, teacher in self.teachers]
        return lambda query_rows, doc_rows: sum(weight * score(query_rows, doc_rows) for weight, score in bound)

    def __repr__(self) -> str:
        return f'WeightedSum({self.teachers!r})'

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WeightedSum) and self.teachers == other.teachers

    def __hash__(self) -> int:
        return hash(repr(self))
