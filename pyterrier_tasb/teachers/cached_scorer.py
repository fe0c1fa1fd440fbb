"""A scorer behind a cache on disk: an interrupted run does not ask twice."""
from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pandas as pd
import pyterrier as pt

from .._files import atomic_dir, disk_named, read_json, write_json
from ..checks import check_same, first
from .scorer import scores_of

_UNSCORED = -np.finfo(np.float64).max   # in a cache: the scorer left this row out


class CachedScorer(pt.Transformer):
    """A scorer whose scores are kept on disk, so that an interrupted run does not ask twice.

    Args:
        scorer: Adds `score`, a finite number for every candidate.
        path: The cache, a `pyterrier_caching.ScorerCache`; made at the first use.
    """

    def __init__(self, scorer: pt.Transformer, path: Path) -> None:
        self.scorer, self.path, self.verified, self.was_there = scorer, path, False, path.exists()

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """What the scorer makes of `inp`, computed or found; rows that it does not score are left out."""
        pt.validate.result_frame(inp, extra_columns=['query'], context=self)
        key = ['query', 'docno']
        with disk_named(self.path, 'the scores so far are kept, and the same call goes on'):
            asked = inp.drop_duplicates(key)   # queries of equal text are one to the cache
            if not self.verified and self._probe.exists():
                self._compare(pd.DataFrame(read_json(self._probe, list)))
            scored = self._ask(asked)
            if not self.verified and len(asked):
                self._keep(scored[scored['score'] != _UNSCORED].iloc[:4])
        scores = scored.set_index(key)['score'].reindex(pd.MultiIndex.from_frame(inp[key])).to_numpy()
        return pt.model.add_ranks(inp.assign(score=scores)[scores != _UNSCORED])

    @property
    def _probe(self) -> Path:
        """The first few rows that were ever asked, with their scores."""
        return self.path / 'first.json'

    def _compare(self, scored: pd.DataFrame) -> None:
        """Compare a few scores of an earlier call with what the scorer says now.

        Raises:
            ValueError: They differ: scorers of one name need not be one.
        """
        key = ['qid', 'docno']
        now = FiniteScores(self.scorer)(scored.drop(columns='score')).set_index(key)['score'].astype(float)
        then = scored.set_index(key)['score']
        both = now.index.intersection(then.index)
        if len(both):
            check_same(then[both], now[both], self.path, 'scores', repr(self.scorer))
            self.verified = True

    def _keep(self, scored: pd.DataFrame) -> None:
        """Write down what the next call compares."""
        if not len(scored):
            return
        if self.was_there:   # made by a call that ended before it could
            self._compare(scored)
        plain = [name for name in scored.columns
                 if all(isinstance(value, (str, int, float)) for value in scored[name].tolist())]
        write_json(self._probe, scored[plain].astype(object).to_dict('records'))
        self.verified = True

    def _ask(self, inp: pd.DataFrame) -> pd.DataFrame:
        from pyterrier_caching import ScorerCache
        try:
            if not self.path.exists():
                with atomic_dir(self.path) as part:
                    part.rmdir()
                    ScorerCache(str(part)).close()
            # open no longer than this call, whose thread alone may use it
            with ScorerCache(str(self.path), _AllRows(FiniteScores(self.scorer))) as cache:
                return cache(inp)
        except sqlite3.OperationalError:   # the disk, or another process
            raise
        except sqlite3.DatabaseError as error:
            raise ValueError(f'{self.path}, the cache of teacher scores, is damaged ({error}): delete it and run '
                             'the same call again') from error

    def __repr__(self) -> str:
        return repr(self.scorer)


class _AllRows(pt.Transformer):
    """Gives rows that a scorer leaves out a number that stands for that: the cache wants one for each."""

    def __init__(self, scorer: pt.Transformer) -> None:
        self.scorer = scorer

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        pt.validate.result_frame(inp, extra_columns=['query'], context=self)
        scores = scores_of(self.scorer(inp), inp)
        return inp.assign(score=np.where(np.isnan(scores), _UNSCORED, scores))


class FiniteScores(pt.Transformer):
    """Passes a scorer's results on when every score is a finite number.

    Args:
        scorer: Adds `score`.
    """

    def __init__(self, scorer: pt.Transformer) -> None:
        self.scorer = scorer

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """What the scorer makes of `inp`."""
        pt.validate.result_frame(inp, extra_columns=['query'], context=self)
        results = self.scorer(inp)
        pt.validate.result_frame(results, extra_columns=['score'], context=self.scorer)
        results = results.astype({'qid': str, 'docno': str})
        bad = results[~np.isfinite(results['score'].astype(float))]
        if len(bad):
            raise ValueError(f'the teacher {self.scorer!r} gave {len(bad)} candidates a NaN or infinite score (qids '
                             f'{first(bad["qid"])}, docnos {first(bad["docno"])})')
        return results

    def __repr__(self) -> str:
        return repr(self.scorer)
