"""An iterable of (query_id, doc_id_a, doc_id_b), as ir_datasets has them → pairs."""
from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
from more_itertools import chunked

from .._files import check_new, claim, discard
from .._warn import warn
from ..checks import check_distinct, check_same, check_scores, name_of
from ..texts import is_id
from .pipeline import chunks, chunks_of, read_chunk, write_chunk
from .results import IDS, from_frames
from .store import ScoredPairs

_CHUNK = 4096   # pairs scored at a time
_SCORED_AGAIN = 8   # pairs, when an interrupted call is gone on with: two teachers of one name need not be one


def from_docpairs(docpairs: Iterable[Any], path: str | os.PathLike | None = None, *,
                  teacher: pt.Transformer | None = None) -> ScoredPairs:
    """Pairs in the vocabulary of ir_datasets: `query_id`, `doc_id_a` (the better one), `doc_id_b`.

    A pair costs 16 bytes while they are read, and every id its string once.

    Args:
        docpairs: Objects with these attributes, or mappings with these keys. A `margin`, where there is one, is
            the teacher's.
        path: Where the pairs go; None keeps them in memory. Beside it, `path.chunks` keeps what the teacher has scored
            until all is: the same call after an interruption goes on from there.
        teacher: Scores (qid, docno); it looks up query and passage itself. Pairs that it does not score are left out,
            with a warning. None takes the pairs' margins, or 0.

    Raises:
        ValueError: There are no pairs, an attribute is missing, the teacher scores none, `path` exists,
            or its chunks are of other docpairs or of another teacher.
    """
    if teacher is None or path is None:
        if path is not None:
            check_new(path, 'ScoredPairs')
        frames = _frames(docpairs)
        if teacher is not None:
            frames = _with_margins(_scored(frame, teacher) for frame in frames)
        return from_frames(frames, path)
    path, ours = Path(path), {'teacher': name_of(teacher), 'chunk': _CHUNK}
    folder = chunks_of(path)
    whole = folder.exists() and (path / 'run.json').exists()   # where a call was killed at its end
    if whole:
        claim(path, 'pairs', ours)
    else:
        check_new(path, 'ScoredPairs')
    with chunks(folder, ours):
        try:
            frames = _kept(_frames(docpairs), teacher, folder)
            if whole:
                next(frames)   # which compares
                pairs = ScoredPairs(path)
            else:
                pairs = from_frames(_with_margins(frames), path, run=ours)
        except BaseException:
            if not any(folder.glob('*.npz')):
                discard(folder, path)
            raise
        discard(folder, path)
    return pairs


def _with_margins(frames: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """Pairs of which the teacher has scored both passages; the others are counted."""
    n = lost = 0
    for frame in frames:
        known = frame['margin'].notna()
        n, lost = n + len(frame), lost + int((~known).sum())
        if known.any():
            yield frame[known]
    if lost == n:
        raise ValueError(f'the teacher scored both passages of none of the {n:,} docpairs: see that it knows their ids')
    if lost:
        warn(f'{lost:,} of {n:,} docpairs are left out: the teacher did not score both of their passages')


def _kept(frames: Iterable[pd.DataFrame], teacher: pt.Transformer, folder: Path) -> Iterator[pd.DataFrame]:
    """Scored frames: margins that are in the folder are read, the others are put there."""
    number, n_files = 1, 0
    for frame in frames:
        file = folder / f'{number - 1:09d}.npz'
        if file.exists():
            kept = read_chunk(file)
            _check_same(folder, number, kept, frame)
            if not n_files:
                _check_again(folder, kept['margin'].to_numpy(), frame, teacher)
            frame = frame.assign(margin=kept['margin'])
        else:
            frame = _scored(frame, teacher)
            write_chunk(file, frame)
        yield frame
        number, n_files = number + len(frame), n_files + 1
    if len(list(folder.glob('*.npz'))) > n_files > 0:
        raise ValueError(f'{folder} holds scores of more docpairs than the {number - 1} that were given. Use another '
                         'path, or delete it')


def _check_again(folder: Path, kept: np.ndarray, frame: pd.DataFrame, teacher: pt.Transformer) -> None:
    some = np.flatnonzero(~np.isnan(kept))[:_SCORED_AGAIN]
    if len(some):
        now = _scored(frame.iloc[some], teacher)['margin'].fillna(np.inf)   # what it has scored it scores again
        check_same(kept[some], now, folder, 'margins', repr(teacher))


def _check_same(folder: Path, number: int, there: pd.DataFrame, now: pd.DataFrame) -> None:
    theirs, ours = (frame[IDS].to_numpy().tolist() for frame in (there, now))
    for i, (one, other) in enumerate(zip_longest(theirs, ours, fillvalue='nothing'), number):
        if one != other:
            raise ValueError(f'{folder} holds scores of other docpairs: number {i} is {one} there, {other} now. Use '
                             'another path, or delete it')


def _frames(docpairs: Iterable[Any]) -> Iterator[pd.DataFrame]:
    number = 0
    for some in chunked(pt.tqdm(docpairs, desc='docpairs', unit='pair'), _CHUNK):
        rows = []
        for pair in some:
            number += 1
            rows.append(_row(pair, number))
        yield pd.DataFrame(rows, columns=[*IDS, 'margin'])
    if not number:
        raise ValueError('the docpairs are empty: expected objects with query_id, doc_id_a and doc_id_b')


_REQUIRED = object()


def rows_of(docpairs: Iterable[Any]) -> list[tuple[str, str, str, float]]:
    """Query, better and worse document, and margin of each."""
    return [_row(pair, number) for number, pair in enumerate(docpairs, 1)]


def _row(pair: Any, number: int) -> tuple[str, str, str, float]:
    ids = (_id(_get(pair, name, number), number, pair) for name in ('query_id', 'doc_id_a', 'doc_id_b'))
    return (*ids, float(_get(pair, 'margin', number, 0.0)))


def _id(value: Any, number: int, pair: Any) -> str:
    if not is_id(value):
        raise ValueError(f'docpair {number} ({pair!r:.80}) has the id {value!r}: expected a string or a whole number')
    return str(value)


def _get(pair: Any, name: str, number: int, default: Any = _REQUIRED) -> Any:
    value = pair.get(name, default) if isinstance(pair, Mapping) else getattr(pair, name, default)
    if value is _REQUIRED:
        raise ValueError(f'docpair {number} ({pair!r:.80}) has no {name}: expected query_id, doc_id_a and doc_id_b, as '
                         'ir_datasets has them')
    return value


def _scored(pairs: pd.DataFrame, teacher: pt.Transformer) -> pd.DataFrame:
    asked = pd.concat([pairs[['qid', side]].rename(columns={side: 'docno'}) for side in ('pos', 'neg')])
    results = teacher(asked.drop_duplicates(ignore_index=True))
    pt.validate.result_frame(results, extra_columns=['score'], context=teacher)
    check_scores(results, "teacher's")
    results = results.astype({'qid': str, 'docno': str})
    check_distinct(results, "teacher's")
    score = results.set_index(['qid', 'docno'])['score']
    found = {side: score.reindex(pd.MultiIndex.from_frame(pairs[['qid', side]])).to_numpy(np.float64)
             for side in ('pos', 'neg')}
    return pairs.assign(margin=found['pos'] - found['neg'])
