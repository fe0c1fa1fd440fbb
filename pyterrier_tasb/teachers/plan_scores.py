"""`TeacherScores`: an in-batch teacher's scores of a whole plan, on disk."""
from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyterrier as pt

from .._files import (
    artifact_meta,
    atomic_dir,
    check_unharmed,
    differences,
    file_fingerprint,
    fingerprint,
    read_json,
    unless_made,
    write_json,
)
from .._interrupts import take_ctrl_c
from .._locks import LOCK, locked
from ..checks import check_same, name_of
from ..sampling import BatchPlan
from ..texts import TextStore
from .binding import bind_in_batch_teacher

_SCORES, _STATE = 'scores.f2', 'state.json'
_KEY = ('plan', 'texts', 'teacher', 'batch_size', 'first', 'last')   # what the scores depend on
_SAVE_EVERY = 64   # steps between two saves: what an interruption loses


class TeacherScores(pt.Artifact):
    """float16[steps, B, 2B]: row `step` is the teacher's scores of batch `step` against [P⁺ | P⁻].

    A plan is known before training, so a teacher can score it once, in slices on several machines, for every run of the
    same plan: the same pairs, `clusters=` and seed, whoever the student is. 4 KB a step at B = 32.

    Args:
        path: A directory that :meth:`build` or :meth:`join` made.

    Raises:
        ValueError: There are no whole scores at `path`, or its file is damaged.
    """

    ARTIFACT_TYPE, ARTIFACT_FORMAT, ARTIFACT_PACKAGE_HINT = 'teacher_scores', 'np', 'pyterrier-tasb'

    def __init__(self, path: str | os.PathLike) -> None:
        super().__init__(str(path))
        folder = Path(path)
        if not (folder / 'pt_meta.json').exists():
            raise ValueError(f'{folder} holds no whole teacher scores: TeacherScores.build(path, teacher, plan, …) '
                             'makes them, or goes on where it was interrupted')
        meta = artifact_meta(folder, TeacherScores, _KEY + ('fingerprint',))
        self.first, self.last, self.plan_fingerprint = meta['first'], meta['last'], meta['plan']
        self.batch_size, self.teacher, self.texts = meta['batch_size'], meta['teacher'], meta['texts']
        self._scores = _map(folder, (self.last - self.first, self.batch_size, 2 * self.batch_size))
        check_unharmed(folder, file_fingerprint(folder / _SCORES), meta['fingerprint'])

    @classmethod
    def build(cls, path: str | os.PathLike, teacher: Any, plan: BatchPlan, queries: TextStore,
              docs: TextStore, *, steps: int | None = None, first: int = 0, last: int | None = None,
              text_field: str = 'text') -> TeacherScores:
        """Score batches `first` to `last` of a plan; an interrupted call goes on where it stopped.

        Args:
            path: Where the scores go.
            teacher: Anything that `in_batch_teacher=` takes.
            plan: The plan; see `TasBalanced.batch_plan`.
            queries: Texts of query rows.
            docs: Texts of document rows.
            steps: Batches 0 to `steps`; the same as `last=steps`.
            first: First batch of a slice.
            last: One after its last batch.
            text_field: The column that a scorer reads.

        Raises:
            ValueError: No steps are named, `path` has scores of another plan, of other texts, another teacher (the
                first batch is scored again) or slice, or a score is beyond half precision.
        """
        last = steps if last is None else last
        if last is None or not 0 <= first < last:
            raise ValueError(f'first={first}, last={last}: name the batches to score, steps=20_000 for example')
        path = Path(path)
        key = {'plan': plan.fingerprint, 'texts': _texts(plan, first, queries, docs), 'teacher': name_of(teacher),
               'batch_size': plan.batch_size, 'first': first, 'last': last}
        if not path.exists():
            with unless_made(path), atomic_dir(path) as part:
                (part / _SCORES).touch()
                write_json(part / _STATE, {**key, 'done': first, 'checksum': 0})
        _check(path, key)
        bound = bind_in_batch_teacher(teacher, queries, docs, path, plan, text_field=text_field)
        if not (path / 'pt_meta.json').exists():
            with locked(path):
                if not (path / 'pt_meta.json').exists():   # another process may have finished meanwhile
                    _score(path, key, bound, plan)
            (path / LOCK).unlink(missing_ok=True)
            return cls(path)
        scores = cls(path)
        check_same(scores[first], _of_batch(bound, plan, first, key['teacher']), path, 'scores', key['teacher'])
        return scores

    @classmethod
    def join(cls, parts: Sequence[TeacherScores], path: str | os.PathLike) -> TeacherScores:
        """One artifact out of consecutive slices of a plan.

        Raises:
            ValueError: `path` exists, they are of different plans or teachers, or batches are missing between them.
        """
        parts = sorted(parts, key=lambda part: part.first)
        if not parts:
            raise ValueError('there are no slices to join')
        for before, after in zip(parts, parts[1:]):
            if (before.plan_fingerprint, before.teacher) != (after.plan_fingerprint, after.teacher):
                raise ValueError(f'{before} and {after} are of different plans or teachers')
            if before.last > after.first:
                raise ValueError(f'batches {after.first} to {min(before.last, after.last)} are in {before} and in '
                                 f'{after}: give each once')
            if before.last != after.first:
                raise ValueError(f'batches {before.last} to {after.first} are missing between {before} and {after}')
        key = {'plan': parts[0].plan_fingerprint, 'texts': parts[0].texts, 'teacher': parts[0].teacher,
               'batch_size': parts[0].batch_size, 'first': parts[0].first, 'last': parts[-1].last}
        if Path(path).exists():
            raise ValueError(f'{path} exists: join to a new path')
        with atomic_dir(path) as folder:
            with open(folder / _SCORES, 'wb') as out:
                for part in parts:
                    for start in range(0, len(part), _SAVE_EVERY):
                        out.write(part._scores[start:start + _SAVE_EVERY].tobytes())
            _complete(folder, key)
        return cls(path)

    def of_plan(self, plan: BatchPlan, steps: int | None = None, queries: TextStore | None = None,
                docs: TextStore | None = None) -> TeacherScores:
        """These scores, if they are of `plan`.

        Args:
            plan: A run's.
            steps: Batches that it takes.
            queries: Its texts of query rows, which are compared with those that were scored.
            docs: Its texts of document rows.

        Raises:
            ValueError: They are of another plan or of other texts, or have fewer batches than the run takes.
        """
        if plan.fingerprint != self.plan_fingerprint:
            raise ValueError(f'{self} are of another plan ({self.plan_fingerprint}, not {plan.fingerprint}): pairs, '
                             'clusters, sampling, batch size and seed must be those that were scored; the number of '
                             'clusters depends on the run\'s processes, batch_plan(processes=…)')
        if self.first or (steps is not None and self.last < steps):
            raise ValueError(f'{self} have batches {self.first} to {self.last}, the run takes 0 to {steps}: score the '
                             'rest, and TeacherScores.join the slices')
        if queries is not None and _texts(plan, self.first, queries, docs) != self.texts:
            raise ValueError(f'{self} are of other texts than this run\'s: score those')
        return self

    def __len__(self) -> int:
        """Number of batches."""
        return self.last - self.first

    def __getitem__(self, step: int) -> np.ndarray:
        """float32[B, 2B], the scores of batch `step`."""
        if not self.first <= step < self.last:
            raise IndexError(f'batch {step} is not among {self.first} to {self.last}')
        return self._scores[step - self.first].astype(np.float32)

    def __repr__(self) -> str:
        return f'TeacherScores(batches {self.first:,} to {self.last:,} of plan {self.plan_fingerprint}, {self.teacher})'


def _map(folder: Path, shape: tuple[int, int, int]) -> np.ndarray:
    file, wanted = folder / _SCORES, int(np.prod(shape)) * 2
    if not file.exists() or file.stat().st_size != wanted:
        raise ValueError(f'{file} is missing or has not the {wanted} bytes that it should: it is damaged, delete '
                         f'{folder} and score again')
    return np.asarray(np.memmap(file, dtype=np.float16, mode='r', shape=shape))


def _score(path: Path, key: dict[str, Any], bound: Any, plan: BatchPlan) -> None:
    """Append batch by batch, from the last one that was saved on."""
    first, last, state = key['first'], key['last'], read_json(path / _STATE, needs=['done', 'checksum'])
    start, checksum = state['done'], state['checksum']
    take_ctrl_c()
    with open(path / _SCORES, 'r+b') as out:
        if _checksum(out, (start - first) * 4 * plan.batch_size ** 2) != checksum:
            raise ValueError(f'{path / _SCORES} is damaged: scores that were saved are not there; delete {path} and '
                             'score again')
        out.truncate()   # what was written and not saved
        if start > first:
            kept = np.fromfile(path / _SCORES, dtype=np.float16, count=2 * plan.batch_size ** 2)
            check_same(kept, _of_batch(bound, plan, first, key['teacher']).reshape(-1), path, 'scores', key['teacher'])
        for step in pt.tqdm(range(start, last), desc='TeacherScores', unit='batch', initial=start - first,
                            total=last - first):
            scores = _of_batch(bound, plan, step, key['teacher']).tobytes()
            checksum = zlib.crc32(scores, checksum)
            out.write(scores)
            if (step + 1 - start) % _SAVE_EVERY == 0:
                out.flush()
                os.fsync(out.fileno())
                write_json(path / _STATE, {**key, 'done': step + 1, 'checksum': checksum})
    _complete(path, key)


def _of_batch(bound: Any, plan: BatchPlan, step: int, teacher: str) -> np.ndarray:
    """float16[B, 2B]; a passage that comes twice is scored once."""
    batch = plan[step]
    docs, where = np.unique(np.concatenate([batch.pos, batch.neg]), return_inverse=True)
    return _half(bound(batch.query, docs).numpy()[:, where.reshape(-1)], teacher)


def _texts(plan: BatchPlan, step: int, queries: TextStore, docs: TextStore) -> str:
    """A hash of the texts of one batch."""
    batch = plan[step]
    return fingerprint(queries.take(batch.query), docs.take(np.concatenate([batch.pos, batch.neg])))


def _checksum(file: BinaryIO, size: int) -> int | None:
    """Of the next `size` bytes; None where the file ends before."""
    checksum = 0
    while size:
        block = file.read(min(size, 1 << 22))
        if not block:
            return None
        checksum, size = zlib.crc32(block, checksum), size - len(block)
    return checksum


def _half(scores: np.ndarray, teacher: str) -> np.ndarray:
    if not np.isfinite(scores).all() or np.abs(scores).max(initial=0) > np.finfo(np.float16).max:
        raise ValueError(f'{teacher} gave a score that is not finite, or beyond what half precision holds '
                         f'({np.abs(scores).max()})')
    return scores.astype(np.float16)


def _check(path: Path, key: dict[str, Any]) -> None:
    file = next((path / name for name in ('pt_meta.json', _STATE) if (path / name).exists()), None)
    there = read_json(file) if file else {}
    differing = differences({name: there.get(name) for name in key}, key)   # not how much of it is done
    if differing:
        raise ValueError(f'{path} holds other scores: {differing}. Use another path, or delete it')


def _complete(path: Path, key: dict[str, Any]) -> None:
    write_json(path / 'pt_meta.json', {
        'type': TeacherScores.ARTIFACT_TYPE, 'format': TeacherScores.ARTIFACT_FORMAT,
        'package_hint': TeacherScores.ARTIFACT_PACKAGE_HINT, **key,
        'fingerprint': file_fingerprint(path / _SCORES)})
    (path / _STATE).unlink(missing_ok=True)
