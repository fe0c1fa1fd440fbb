"""Files that appear whole or not at all, fingerprints of what made them, and directories that one run owns."""
from __future__ import annotations

import ctypes
import errno
import glob
import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from io import RawIOBase
from pathlib import Path
from typing import Any

import numpy as np

_REMEDIES = {errno.ENOSPC: 'make room', errno.EDQUOT: 'make room', errno.EFBIG: 'make room',
             errno.EROFS: 'make it writable'}
# what SQLite, safetensors, torch and NumPy say where the system says ENOSPC or EROFS
_OF_LIBRARIES = {'disk is full': errno.ENOSPC, 'No space left': errno.ENOSPC, 'PytorchStreamWriter': errno.ENOSPC,
                 'inline_container': errno.ENOSPC, 'requested and': errno.ENOSPC, 'readonly database': errno.EROFS,
                 'Read-only file system': errno.EROFS, 'unable to open database': errno.EROFS}
_NEW, _OLD = '.tmp', '.old'   # of what is on its way in and out
_HERE, _SWAP = -100, 2   # AT_FDCWD, RENAME_EXCHANGE
_NOTHING = 1 << 20   # bytes free on a disk that is full for whoever writes weights


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it into place when the block ends well, else remove it."""
    path = Path(path)
    with disk_named(path, 'what was there before is as it was'):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        fd, name = tempfile.mkstemp(prefix=f'.{path.name}.{_owner()}.', suffix=_NEW, dir=path.parent)
        os.close(fd)
        part = Path(name)
        try:
            yield part
            part.chmod(0o666 & ~_umask())
            _sync(part)
            os.replace(part, path)
            _sync(path.parent)
        finally:
            part.unlink(missing_ok=True)


def check_new(path: str | os.PathLike, kind: str) -> None:
    """Whether a store of some kind can be built at a path.

    Raises:
        ValueError: There is something.
    """
    if Path(path).exists():
        raise ValueError(f'{path} exists: {kind}({str(path)!r}) opens it, or give another path')


@contextmanager
def atomic_dir(path: str | os.PathLike, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary directory beside `path`; rename it into place when the block ends well, else remove it.

    Args:
        path: Where the directory appears.
        overwrite: Put it in the place of what is there; until the last moment that stays whole.

    Raises:
        FileExistsError: `path` exists, or does when the block ends, and `overwrite` is False.
    """
    path = Path(path)
    path = path.resolve() if path.is_symlink() else path   # what a link points to is replaced, not the link
    with disk_named(path, 'what was there before is as it was'):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        if path.exists() and not overwrite:
            raise FileExistsError(f'{path} already exists')
        part = Path(tempfile.mkdtemp(prefix=f'.{path.name}.{_owner()}.', suffix=_NEW, dir=path.parent))
        part.chmod(0o777 & ~_umask())
        try:
            yield part
            if path.exists() and not overwrite:
                raise FileExistsError(f'another process has made {path} meanwhile: use that, or give another path')
            move_into_place(part, path, overwrite=overwrite)
        finally:
            shutil.rmtree(part, ignore_errors=True)


@contextmanager
def unless_made(path: Path) -> Iterator[None]:
    """Whoever makes `path` may be overtaken by another process, which has made the same."""
    try:
        yield
    except OSError:
        if not path.exists():
            raise


def move_into_place(part: Path, path: Path, *, overwrite: bool = False) -> None:
    """Rename a directory that is whole, its files safely on disk; with `overwrite`, in the place of what is there.

    What is there is replaced at once where the system can do that, so that there is never nothing at `path`.
    """
    for file in part.rglob('*'):
        _sync(file)
    if overwrite and path.exists():
        if _exchange(part, path):
            _remove(part)
        else:
            old = Path(tempfile.mkdtemp(prefix=f'.{path.name}.{_owner()}.', suffix=_OLD, dir=path.parent))
            os.replace(path, old / path.name)
            try:
                os.replace(part, path)
            except BaseException:
                os.replace(old / path.name, path)
                raise
            finally:
                _remove(old)
    else:
        os.replace(part, path)
    _sync(path.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two paths in one step; False where the system cannot."""
    try:
        swap = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    return not swap(_HERE, os.fsencode(one.absolute()), _HERE, os.fsencode(other), _SWAP)


def discard(folder: Path, of: Path) -> None:
    """Remove a directory that was needed while `of` was made; if that is interrupted, with what else is left of it."""
    left = Path(tempfile.mkdtemp(prefix=f'.{of.name}.{_owner()}.', suffix=_NEW, dir=folder.parent))
    os.replace(folder, left)
    _remove(left)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _owner() -> str:
    return f'{socket.gethostname()}-{os.getpid()}'


def remove_leftovers(path: Path) -> None:
    """Remove what processes of this machine that were killed left beside `path`, and put back what they took away."""
    for left in path.parent.glob(f'.{glob.escape(path.name)}.{socket.gethostname()}-*'):
        pid = left.name.removeprefix(f'.{path.name}.{socket.gethostname()}-').partition('.')[0]
        if left.suffix not in (_NEW, _OLD) or not pid.isdigit() or _is_alive(int(pid)):
            continue
        if left.suffix == _OLD and not path.exists() and (left / path.name).exists():
            os.replace(left / path.name, path)
        with suppress(OSError):
            _remove(left)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write `value` as JSON, atomically, with sorted keys; numbers of numpy are numbers."""
    with atomic_file(path) as part:
        part.write_text(json.dumps(value, indent=1, sort_keys=True, default=_number) + '\n', encoding='utf-8')


def _number(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f'{value!r} cannot be written as JSON')


def _number_or_text(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)


def read_json(path: str | os.PathLike, kind: type = dict, needs: Iterable[str] = ()) -> Any:
    """Read a JSON file; one that is damaged, no `kind` or lacks what it `needs` is a `ValueError` that names it."""
    try:
        value = json.loads(Path(path).read_text(encoding='utf-8'))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f'{path} is damaged ({error}); delete it and run the same call again') from error
    if not isinstance(value, kind):
        raise ValueError(f'{path} is damaged (a {type(value).__name__}, not a {kind.__name__}); delete it and run the '
                         'same call again')
    return _having(path, value, needs)


def _having(path: str | os.PathLike, value: Any, needs: Iterable[str]) -> Any:
    missing = [name for name in needs if name not in value]
    if missing:
        raise ValueError(f'{path} is damaged (no {", ".join(missing)}); delete it and run the same call again')
    return value


def artifact_meta(folder: Path, kind: type, needs: Iterable[str]) -> dict[str, Any]:
    """What an artifact of this class says of itself.

    Raises:
        ValueError: It is of another kind, or damaged.
    """
    meta = read_json(folder / 'pt_meta.json')
    found = meta.get('type', kind.ARTIFACT_TYPE)
    if found != kind.ARTIFACT_TYPE:
        raise ValueError(f'{folder} holds {found}, not {kind.ARTIFACT_TYPE}: {kind.__name__} cannot open it')
    return _having(folder / 'pt_meta.json', meta, needs)


def write_at(file: RawIOBase, at: int, array: np.ndarray) -> None:
    """Write an array's bytes from position `at` on, all of them.

    Args:
        file: Opened without a buffer, so that a full disk shows here.
        at: In bytes.
        array: C-contiguous.
    """
    view = memoryview(array).cast('B')
    file.seek(int(at))
    while view:
        view = view[file.write(view):]


def fingerprint(*parts: Any) -> str:
    """A short hash of strings, numbers, bytes, arrays and (nested) JSON values, equal in every process.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            blob = array_fingerprint(part).encode()
        elif isinstance(part, bytes):
            blob = part
        else:
            blob = json.dumps(part, sort_keys=True, default=_number_or_text).encode()
        digest.update(len(blob).to_bytes(8, 'little') + blob)
    return digest.hexdigest()[:16]


def array_fingerprint(array: np.ndarray) -> str:
    """A short hash of an array."""
    digest = hashlib.sha256(f'{array.dtype.str}{array.shape}'.encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def add_file(digest: Any, path: Path) -> None:
    """Add a file's contents to a digest of hashlib, some at a time."""
    with open(path, 'rb') as file:
        while block := file.read(1 << 22):
            digest.update(block)


def file_fingerprint(*paths: Path) -> str:
    """A short hash of the contents of files; one that is missing or unreadable has a hash of its own."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            digest.update(os.path.getsize(path).to_bytes(8, 'little'))
            add_file(digest, path)
        except OSError:
            digest.update(b'missing')
    return digest.hexdigest()[:16]


def check_unharmed(folder: Path, found: str, written: str) -> None:
    """Compare a fingerprint of files with the one that was written with them.

    Raises:
        ValueError: They differ.
    """
    if found != written:
        raise ValueError(f'{folder} is damaged: its files are not those that were written; delete it and build it '
                         'again')


class OnDisk:
    """A store that never changes: pickled by its path, shared by its copies, so that neither costs what it holds.

    A subclass has a `path` and a `fingerprint`, and opens with its path alone.
    """
    path: Path
    fingerprint: str
    temporary: tempfile.TemporaryDirectory | None = None   # where it lies, kept there by whoever holds the store

    def __reduce__(self) -> tuple:
        return _open_again, (type(self), os.path.abspath(self.path), self.fingerprint)

    def __copy__(self) -> OnDisk:
        return self

    def __deepcopy__(self, memo: dict) -> OnDisk:
        return self


@lru_cache(maxsize=16)   # a pool unpickles a pipeline for each of its tasks, and opening a store reads all of it
def _open_again(kind: type, path: str, pickled: str) -> OnDisk:
    """What a pickle names.

    Raises:
        ValueError: It is gone, damaged, or another.
    """
    if not os.path.exists(path):
        raise ValueError(f'{path} is gone: a pickle names a {kind.__name__} by its path and does not hold it; put the '
                         'directory back there, or build and pickle one that lies where it stays')
    store = kind(path)
    if store.fingerprint != pickled:
        raise ValueError(f'{path} holds another {kind.__name__} ({store.fingerprint}) than was pickled ({pickled}): '
                         'give each a path of its own, and pickle again')
    return store


def claim(folder: str | os.PathLike, what: str, ours: dict[str, Any], name: str = 'run.json') -> None:
    """Write what a directory is for into a file there, or compare with what that file says.

    Args:
        folder: The directory; made when it is not there.
        what: What it holds, for messages.
        ours: JSON values that its contents depend on.
        name: The file.

    Raises:
        ValueError: The directory was made for something else; the message names each difference.
    """
    path = Path(folder) / name
    ours = json.loads(json.dumps(ours, default=_number_or_text))
    if not path.exists():
        write_json(path, ours)
        return
    differing = differences(read_json(path), ours)
    if differing:
        raise ValueError(f'{folder} holds {what} of another run: {differing}. Use another directory, or delete '
                         'this one')


def differences(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """Where what a directory says of itself is not what is asked of it, for messages; empty where they agree."""
    return '; '.join(f'{name} ({theirs.get(name)!r} there, {ours.get(name)!r} now)'
                     for name in sorted(set(ours) | set(theirs)) if theirs.get(name) != ours.get(name))


class DiskError(OSError):
    """A disk is full or cannot be written."""


@contextmanager
def disk_named(place: Path, then: str) -> Iterator[None]:
    """Errors of a disk name the place and the remedy: what the system and the libraries say has neither.

    Raises:
        DiskError: The disk was full or read-only, whatever the library that wrote made of it.
    """
    try:
        yield
    except DiskError:   # named already, by who wrote
        raise
    except Exception as error:
        number = _disk_errno(error, place)
        if number is None:
            raise
        raise DiskError(number, f'{os.strerror(number)}, while writing {place}: {_REMEDIES[number]}; {then}') from error


def _disk_errno(error: Exception, place: Path) -> int | None:
    there = _nearest(place)
    if isinstance(error, OSError) and error.errno is not None:
        elsewhere = isinstance(error.filename, (str, os.PathLike)) and (   # what a teacher writes, on another disk
            _nearest(Path(error.filename)).stat().st_dev != there.stat().st_dev)
        return error.errno if error.errno in _REMEDIES and not elsewhere else None
    found = next((number for words, number in _OF_LIBRARIES.items() if words in str(error)), None)
    if found == errno.ENOSPC:
        return found if shutil.disk_usage(there).free < _NOTHING else None
    return found if not os.access(there, os.W_OK) else None


def _nearest(place: Path) -> Path:
    """The place, or the directory above it that is there."""
    place = place.absolute()
    return next(some for some in (place, *place.parents) if some.exists())
