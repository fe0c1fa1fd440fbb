"""Directories that one process works in at a time, and the processes of a distributed run."""
from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ._files import disk_named
from ._progress import say

LOCK = '.lock'   # the file in a directory that a process holds while it works there


@contextmanager
def locked(folder: str | os.PathLike, *, wait: bool = False) -> Iterator[None]:
    """Keep other processes out of a directory; the lock goes when the process ends, however it ends.

    A disk that is full or cannot be written is said with the directory's name and what to do.

    Args:
        folder: The directory; made when it is not there.
        wait: Wait for another process that is working there, instead of an error.

    Raises:
        ValueError: Another process is working there, and `wait` is False.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f'{folder} is a file: name a directory, or another path')
    with disk_named(folder, 'what is finished is kept there, and the same call goes on'):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(blocking=False)
        except Timeout as error:
            if not wait:
                raise ValueError(f'another process is working in {folder}: wait for it, or use another directory'
                                 ) from error
            say(f'waiting for another process, which is working in {folder}')
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


def world_size() -> int:
    """Processes of this distributed run; 1 where there is none."""
    return int(os.environ.get('WORLD_SIZE') or 1)


def rank() -> int:
    """The number of this process in a distributed run; 0 where there is none, whatever was left in the environment."""
    return int(os.environ.get('RANK') or 0) if world_size() > 1 else 0


@contextmanager
def work_directory(path: str | os.PathLike | None, *, resume: bool = False) -> Iterator[Path]:
    """The directory of a run, locked; a temporary one where `path` is None.

    The processes of one distributed run share it, under the first one's lock.

    Args:
        path: The directory.
        resume: Whether an earlier run is to be found there.

    Raises:
        ValueError: Another process works there, or `path` is None and there are several processes or an earlier run.
    """
    if path is None and resume:
        raise ValueError('resume=True needs the work_dir= of the call that it goes on with')
    if path is None and world_size() > 1:
        raise ValueError('several processes need work_dir=, a directory that all of them see')
    if path is None:
        with tempfile.TemporaryDirectory(prefix='tasb-') as folder, \
                disk_named(Path(folder), 'work_dir= may be a directory with more room'):
            yield Path(folder)
    elif rank():
        yield Path(path)
    else:
        with locked(path):
            yield Path(path)
