"""Checkpoints of a training run: whole, verified, and without pickled generators; and the weights it began with."""
from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerState

from .._files import add_file, atomic_dir, read_json, write_json
from .._locks import rank
from .._warn import warn

_COMPLETE, _START, _WEIGHTS, _STATE = 'complete.json', 'start', 'model.safetensors', 'trainer_state.json'
_FILES = frozenset([_WEIGHTS, 'optimizer.pt', 'scheduler.pt', _STATE])   # of every checkpoint


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    add_file(digest, file)
    return digest.hexdigest()


def _is_whole(folder: Path, files: frozenset[str] = _FILES) -> bool:
    """Whether a directory has what `complete.json` says, and at least `files`."""
    try:
        sums = read_json(folder / _COMPLETE)
        return files <= set(sums) and all(_sha256(folder / name) == digest for name, digest in sums.items())
    except (OSError, ValueError):
        return False


def seal(folder: Path) -> None:
    """Write into a checkpoint what its files must be."""
    (folder / _COMPLETE).unlink(missing_ok=True)   # of a damaged checkpoint that was here before
    write_json(folder / _COMPLETE, {file.name: _sha256(file) for file in sorted(folder.iterdir())})


def newest_checkpoint(output_dir: Path) -> Path | None:
    """The newest checkpoint to go on from: it and the best one that it remembers are whole. None without one."""
    for folder in sorted(found_in(output_dir), key=number, reverse=True):
        best = _best(folder) if _is_whole(folder) else None
        if best is not None and (best == folder or _is_whole(best)):
            return folder
        warn(f'{folder if best is None else best} is incomplete or damaged and is passed over')
    return None


def rotate(output_dir: Path) -> None:
    """Remove all but the two newest checkpoints and the best ones they remember, without which they are nothing."""
    newest = sorted(found_in(output_dir), key=number)[-2:]
    kept = {*newest, *(_best(folder) for folder in newest if (folder / _COMPLETE).exists())}
    for folder in found_in(output_dir):
        if folder not in kept:
            shutil.rmtree(folder, ignore_errors=True)


def found_in(output_dir: Path) -> list[Path]:
    """All that are there, whole or not."""
    return [folder for folder in output_dir.glob('checkpoint-*') if number(folder) >= 0]


def state_of(checkpoint: Path) -> TrainerState:
    """Step, log and best step until then."""
    return TrainerState.load_from_json(str(checkpoint / _STATE))


def _best(checkpoint: Path) -> Path:
    """The checkpoint of the best step until then, itself where no validation says otherwise."""
    step = read_json(checkpoint / _STATE).get('best_global_step')
    return checkpoint.with_name(f'checkpoint-{step}') if step else checkpoint


def remove_unusable(output_dir: Path, newest: Path | None) -> None:
    """Remove damaged checkpoints beyond the newest whole one: the oldest of too many is dropped, by number."""
    for folder in found_in(output_dir):
        if newest is None or number(folder) > number(newest):
            shutil.rmtree(folder)


def number(folder: Path) -> int:
    """The step of a checkpoint; −1 where it is none."""
    digits = folder.name.rpartition('-')[2]
    return int(digits) if digits.isdecimal() else -1


def begin(module: torch.nn.Module, output_dir: Path, *, resume: bool) -> None:
    """Keep the weights that training starts from; a run that was interrupted before its first checkpoint takes them.

    Raises:
        ValueError: What was kept is damaged.
    """
    folder = output_dir / _START
    if resume and folder.exists():
        if not _is_whole(folder, frozenset([_WEIGHTS])):
            raise ValueError(f'{folder}, the weights that training began with, is damaged: delete {output_dir}, load '
                             'the model again and run the same call')
        read_weights(module, folder)
    elif rank() == 0:
        with atomic_dir(folder, overwrite=True) as part:
            write_weights(module, part)
            seal(part)


def write_weights(module: torch.nn.Module, folder: Path) -> None:
    """Write a module's weights into a directory."""
    save_file({name: value.contiguous() for name, value in module.state_dict().items()}, folder / _WEIGHTS,
              metadata={'format': 'pt'})


def read_weights(module: torch.nn.Module, folder: Path) -> None:
    """Take the weights of a checkpoint."""
    module.load_state_dict(load_file(folder / _WEIGHTS))


def going_on(output_dir: Path) -> str:
    """How an interrupted run goes on, for messages."""
    newest = newest_checkpoint(output_dir)
    return (f'the newest checkpoint is {newest or "none yet"}: the same call with resume=True goes on from '
            f'{"it" if newest else "the weights that this one began with"}')


@dataclass(frozen=True)
class Run:
    """What a model was when a run began.

    Args:
        folder: The work directory.
        name: The model's name.
        weights: The fingerprint of its weights.
        ended_with: That of the weights after it; None before it has ended.
    """
    folder: str
    name: str
    weights: str
    ended_with: str | None = None

    @classmethod
    def of(cls, earlier: Run | None, folder: Path, name: str, weights: str) -> Run:
        """The run in a work directory: the model's earlier one, where that is here and has made its weights.

        Args:
            earlier: The model's last run, or None.
            folder: The work directory.
            name: The model's name now.
            weights: The fingerprint of its weights now.
        """
        place, there = str(folder.resolve()), folder / 'run.json'
        ours = earlier is not None and earlier.folder == place and earlier.ended_with in (None, weights)
        if ours and there.exists() and read_json(there).get('weights') == earlier.weights:   # not moved, nor deleted
            return earlier
        return cls(place, name, weights)


def restore(module: torch.nn.Module, output_dir: Path) -> None:
    """Take the weights of the newest checkpoint, or those that training began with."""
    read_weights(module, newest_checkpoint(output_dir) or output_dir / _START)


def take_best(module: torch.nn.Module, output_dir: Path, step: int) -> None:
    """Take the weights of the best validation's step.

    Raises:
        ValueError: Their checkpoint is damaged.
    """
    folder = output_dir / f'checkpoint-{step}'
    if not _is_whole(folder):
        raise ValueError(f'{folder}, the checkpoint with the best weights, is damaged: the same call with resume=True '
                         'trains again from the last one before it that is whole')
    read_weights(module, folder)
