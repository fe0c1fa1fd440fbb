"""Whether a teacher is the one whose scores are kept: two of one name need not be one."""
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyterrier as pt

from .._files import read_json, write_json
from ..checks import check_same
from .scorer import scores_of

if TYPE_CHECKING:
    from ..pairs.examples import Examples

_FEW = 8   # pairs that are scored once more


def check_pairs(examples: Examples, teacher: pt.Transformer, place: Path, name: str, text_field: str) -> None:
    """Score a few of the pairs that an earlier call left.

    Raises:
        ValueError: They get other margins.
    """
    pairs = examples.pairs
    some = np.unique(np.linspace(0, len(pairs) - 1, _FEW).astype(int))
    query = np.searchsorted(pairs.indptr, some, side='right') - 1
    scores = []
    for docs in (pairs.pos[some], pairs.neg[some]):
        frame = pd.DataFrame({
            'qid': [str(pairs.qids[int(row)]) for row in query], 'query': examples.queries.take(query),
            'docno': [str(pairs.docnos[int(doc)]) for doc in docs], text_field: examples.docs.take(docs)})
        scores.append(scores_of(teacher(frame.drop_duplicates(['qid', 'docno'])), frame))
    check_same(pairs.margin[some], scores[0] - scores[1], place, 'margins', name)


def check_batch(scores: Any, file: Path, name: str) -> None:
    """Compare some of an in-batch teacher's scores of the first batch with those in a file, or write them there.

    Raises:
        ValueError: They differ.
    """
    now = np.asarray(scores)[:8, :8].flatten().tolist()
    if file.exists():
        check_same(read_json(file, list), now, file.parent, 'in-batch scores', name)
    else:
        write_json(file, now)
