"""A pipeline's results → pairs, a chunk of queries at a time, so that an interruption loses one chunk."""
from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt

from .._files import atomic_file, claim, discard, fingerprint, remove_leftovers
from .._interrupts import take_ctrl_c
from .._locks import LOCK, locked
from ..checks import (
    check_count,
    check_distinct,
    check_qrels,
    check_same,
    check_scores,
    check_topics_or_results,
    name_of,
)
from .results import IDS, check_draw, of_queries, pairs_frame
from .store import ScoredPairs


def from_pipeline(pipeline: pt.Transformer, topics: pd.DataFrame, qrels: pd.DataFrame, path: str | os.PathLike, *,
                  chunk: int = 256, max_pairs_per_query: int | None = 1000, seed: int = 0,
                  verified: bool = False) -> ScoredPairs:
    """Run `pipeline` over topics and keep the pairs of what it scores.

    Args:
        pipeline: Queries → results with score: candidates, text, teacher.
        topics: qid, query.
        qrels: qid, docno, label.
        path: Where the pairs go. Beside it, `path.chunks` keeps the finished chunks until all are done: the same call
            after an interruption goes on from there, and when all is done it opens the pairs.
        chunk: Queries at a time.
        max_pairs_per_query: Pairs kept, drawn at random, of a query that has more; None keeps all.
        seed: Of that draw.
        verified: Whether the pipeline itself notices that scores of an earlier call are another's; else two queries are
            scored again when one is gone on with.

    Raises:
        ValueError: What is at `path`, or its chunks, are of other topics, qrels or pipeline; the message names the
            difference.
    """
    path = Path(path)
    check_count('chunk', chunk)
    check_draw(max_pairs_per_query, seed)
    qrels = check_qrels(qrels, 'training')
    topics, _ = check_topics_or_results(topics, 'training', 'text')
    folder = chunks_of(path)
    ours = {'topics': fingerprint(topics.values.tolist()), 'qrels': fingerprint(qrels.values.tolist()),
            'pipeline': name_of(pipeline), 'chunk': chunk, 'max_pairs_per_query': max_pairs_per_query, 'seed': seed}
    if path.exists():
        if not (path / 'run.json').exists():
            raise ValueError(f'{path} exists and was not made by from_pipeline: give another path')
        claim(path, 'pairs', ours)
        remove_chunks(path)
        return ScoredPairs(path)
    with chunks(folder, ours):
        first = folder / f'{0:09d}.npz'
        if first.exists() and not verified:
            _check_again(first, pipeline, topics, qrels)
        files = []
        for start in pt.tqdm(range(0, len(topics), chunk), desc='Scoring candidates', unit=f'{chunk} queries'):
            files.append(folder / f'{start:09d}.npz')
            take_ctrl_c()   # the pipeline may have started Java
            if not files[-1].exists():
                write_chunk(files[-1],
                            _chunk(pipeline, topics.iloc[start:start + chunk], qrels, max_pairs_per_query, seed))
        pairs = of_queries(map(read_chunk, files), path, topics['qid'], run=ours)
    discard(folder, path)
    return pairs


def chunks_of(path: Path) -> Path:
    """Where the unfinished chunks of pairs are kept."""
    return path.with_name(path.name + '.chunks')


def remove_chunks(path: Path) -> None:
    """Remove what a call that was killed when its pairs were whole has left beside them."""
    remove_leftovers(path)
    if (chunks_of(path) / 'run.json').exists():
        discard(chunks_of(path), path)


@contextmanager
def chunks(folder: Path, ours: dict[str, Any]) -> Iterator[None]:
    """A directory for unfinished chunks, locked, which is this call's alone.

    Raises:
        ValueError: It holds other files, or chunks of another call.
    """
    there = os.listdir(folder) if folder.exists() else []
    if 'run.json' not in there and not all(name.startswith((LOCK, '.run.json.')) for name in there):
        raise ValueError(f'{folder}, where unfinished chunks would go, holds other files: give another path')
    with locked(folder):
        claim(folder, 'chunks', ours)
        yield


def _check_again(file: Path, pipeline: pt.Transformer, topics: pd.DataFrame, qrels: pd.DataFrame) -> None:
    """Score two queries of a chunk again: two pipelines of one name need not be one.

    Raises:
        ValueError: Pairs that both have get other margins.
    """
    kept = read_chunk(file)
    some = topics[topics['qid'].isin(kept['qid'].unique()[:2])]
    if len(some):
        both = kept.merge(_chunk(pipeline, some, qrels, None, 0), on=['qid', 'pos', 'neg'], suffixes=('_kept', '_now'))
        check_same(both['margin_kept'], both['margin_now'], file.parent, 'margins', repr(pipeline))


def _chunk(pipeline: pt.Transformer, topics: pd.DataFrame, qrels: pd.DataFrame, most: int | None,
           seed: int) -> pd.DataFrame:
    results = pipeline(topics.reset_index(drop=True))
    pt.validate.result_frame(results, extra_columns=['score'], context=pipeline)
    check_scores(results, 'training')
    results = results.astype({'qid': str, 'docno': str})
    results = results[results['qid'].isin(topics['qid'])]   # one that looks its results up may give all it has
    check_distinct(results, 'training')
    return pairs_frame(results, qrels, most, seed)


def write_chunk(file: Path, pairs: pd.DataFrame) -> None:
    """Keep pairs given by ids."""
    arrays = {'margin': pairs['margin'].to_numpy()}
    for name in IDS:   # each id once: numpy's strings all take what the longest does
        codes, ids = pd.factorize(pairs[name])
        arrays |= {name: codes.astype(np.uint32), f'{name}s': np.asarray(ids, dtype=np.str_)}
    with atomic_file(file) as part, open(part, 'wb') as out:
        np.savez(out, **arrays)


def read_chunk(file: Path) -> pd.DataFrame:
    """What :func:`write_chunk` kept."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return pd.DataFrame({**{name: arrays[f'{name}s'].astype(object)[arrays[name]] for name in IDS},
                                 'margin': arrays['margin']})
    except Exception as error:
        raise ValueError(f'{file} is damaged ({error}): delete it and run the same call again') from error

