"""An iterable of (query_id, doc_id_a, doc_id_b), as ir_datasets has them → pairs."""
from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
from more_itertools import chunked

from .checks import check_scores, first
from .results import from_frame
from .store import ScoredPairs

_CHUNK = 4096   # pairs scored at a time


def from_docpairs(docpairs: Iterable[Any], path: str | os.PathLike | None = None, *,
                  teacher: pt.Transformer | None = None) -> ScoredPairs:
    """Pairs in the vocabulary of ir_datasets: `query_id`, `doc_id_a` (the better one), `doc_id_b`.

    Args:
        docpairs: Objects with these attributes, or mappings with these keys. A `margin`, where there is one, is
            the teacher's.
        path: Where the pairs go; None keeps them in memory.
        teacher: Scores (qid, docno); it looks up query and passage itself. None takes the pairs' margins, or 0.

    Raises:
        ValueError: There are no pairs, an attribute is missing, or the teacher leaves a candidate unscored.
    """
    parts = [_scored(frame, teacher) if teacher is not None else frame for frame in _frames(docpairs)]
    if not parts:
        raise ValueError('the docpairs are empty: expected objects with query_id, doc_id_a and doc_id_b')
    return from_frame(pd.concat(parts, ignore_index=True), path)


def _frames(docpairs: Iterable[Any]) -> Iterator[pd.DataFrame]:
    number = 0
    for some in chunked(pt.tqdm(docpairs, desc='docpairs', unit='pair'), _CHUNK):
        rows = []
        for pair in some:
            number += 1
            rows.append(tuple(str(_get(pair, name, number)) for name in ('query_id', 'doc_id_a', 'doc_id_b'))
                        + (float(_get(pair, 'margin', number, 0.0)),))
        yield pd.DataFrame(rows, columns=['qid', 'pos', 'neg', 'margin'])


_REQUIRED = object()


def _get(pair: Any, name: str, number: int, default: Any = _REQUIRED) -> Any:  # noqa: ANN401
    value = pair.get(name, default) if isinstance(pair, dict) else getattr(pair, name, default)
    if value is _REQUIRED:
        raise ValueError(f'docpair {number} ({pair!r:.80}) has no {name}: expected query_id, doc_id_a and doc_id_b, as '
                         'ir_datasets has them')
    return value


def _scored(pairs: pd.DataFrame, teacher: pt.Transformer) -> pd.DataFrame:
    asked = pd.concat([pairs[['qid', side]].rename(columns={side: 'docno'}) for side in ('pos', 'neg')])
    results = teacher(asked.drop_duplicates(ignore_index=True))
    pt.validate.result_frame(results, extra_columns=['score'], context=teacher)
    check_scores(results, 'training')
    score = results.astype({'qid': str, 'docno': str}).set_index(['qid', 'docno'])['score']
    found = {side: score.reindex(pd.MultiIndex.from_frame(pairs[['qid', side]])).to_numpy(np.float64)
             for side in ('pos', 'neg')}
    margin = found['pos'] - found['neg']
    if np.isnan(margin).any():
        lost = pairs[np.isnan(margin)]
        raise ValueError(f'the teacher left {len(lost)} pairs without a score (qids '
                         f'{first(lost["qid"])})')
    return pairs.assign(margin=margin)
