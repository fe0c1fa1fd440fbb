"""The training loop: a thin `transformers.Trainer` whose batches are a pure function of the step."""
from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch.utils.data import Dataset, Sampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as hf_logging

from .._files import fingerprint
from .._interrupts import take_ctrl_c
from .._locks import rank
from .._progress import say
from ..encoding.precision import check_trains
from . import checkpoints
from .callbacks import Patience, Progress, is_over
from .config import Training
from .guard import LossGuard, NotFiniteError
from .state import untouched_global_state
from .stream import Batches, BatchStream, NumbersFrom, SaveMemory

Loss = Callable[[torch.nn.Module, Any], tuple[torch.Tensor, dict[str, torch.Tensor]]]
_AHEAD = {'cuda': 2}   # batches made ahead; on a CPU the cores have enough to do
_ONE_AT_A_TIME = threading.RLock()   # dropout draws from the process's generator


@dataclass
class TrainingRecord:
    """What happened in a training run.

    Args:
        steps: Optimiser steps done.
        best_step: The step whose weights were kept; None without validation.
        best_value: The measure there.
        history: One entry for each log line or validation: `step`, then `loss`, its parts and the learning rate, or
            the measure.
    """
    steps: int = 0
    best_step: int | None = None
    best_value: float | None = None
    history: list[dict[str, float]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The record as plain JSON values."""
        return asdict(self)


class _Guarded(TrainerCallback):
    """Has the guard look before the weights move."""

    def __init__(self, trainer: _Trainer) -> None:
        self.trainer, clip = trainer, trainer.accelerator.clip_grad_norm_

        def clip_and_remember(*args: Any, **kwargs: Any) -> torch.Tensor:
            trainer.guard.norm = clip(*args, **kwargs)
            return trainer.guard.norm
        trainer.accelerator.clip_grad_norm_ = clip_and_remember

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:  # noqa: ANN001
        optimizer = self.trainer.optimizer
        self.trainer.guard.check(state.global_step + 1, state.log_history, getattr(optimizer, 'optimizer', optimizer),
                                 scaled=self.trainer.accelerator.scaler is not None)


class _Trainer(Trainer):
    """`Trainer` with our batches, our loss, our validation and pickle-free, verified checkpoints."""

    def __init__(self, module: torch.nn.Module, args: TrainingArguments, training: Training, batches: Batches,
                 loss: Loss, validate: Callable[[], dict[str, float]] | None, callbacks: list[TrainerCallback],
                 start: int, save_memory: SaveMemory | None) -> None:
        n_batches = training.steps * training.accumulation * args.world_size
        save_memory = save_memory if args.world_size == 1 else None   # all processes would have to, at the same step
        super().__init__(module, args, data_collator=lambda items: items[0],
                         train_dataset=BatchStream(batches, n_batches, _AHEAD.get(args.device.type, 0), args.world_size,
                                              save_memory),
                         callbacks=callbacks,
                         eval_dataset=None if validate is None else BatchStream(batches, 0))   # `validate` has its own
        self.model_accepts_loss_kwargs = False   # so that the loss is averaged over accumulated batches
        self.training, self.loss, self.validate, self.save_memory = training, loss, validate, save_memory
        self.guard = LossGuard(Path(args.output_dir))
        self.add_callback(_Guarded(self))
        self.first_batch = start * training.accumulation * args.world_size
        self._parts: dict[str, torch.Tensor] = {}
        self._n_parts = 0

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler:
        return NumbersFrom(self.first_batch, len(self.train_dataset))

    def _prepare_inputs(self, inputs: tuple[int, Any]) -> tuple[int, Any]:
        return inputs   # the encoder moves tokens itself

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> None:
        return None

    def create_scheduler(self, num_training_steps: int,
                         optimizer: torch.optim.Optimizer | None = None) -> torch.optim.lr_scheduler.LRScheduler:
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, self.training.rate_at)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def training_step(self, model: torch.nn.Module, inputs: tuple[int, Any],
                      num_items_in_batch: torch.Tensor | None = None) -> torch.Tensor:
        """A step that starts again with less memory where there was too little."""
        parts, first = (dict(self._parts), self._n_parts), inputs[0] - inputs[0] % self.training.accumulation
        try:
            return super().training_step(model, inputs, num_items_in_batch)
        except torch.OutOfMemoryError as error:
            if self.save_memory is None or not self.save_memory(first, inputs[1]):
                raise
            del error   # and what its traceback holds
        # gradients may be half added: those of this step's batches so far are computed again
        model.zero_grad(set_to_none=True)
        self.guard.begin_again()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        for number in range(first, inputs[0]):
            super().training_step(model, (number, self.train_dataset.again(number)), num_items_in_batch)
        self._parts, self._n_parts = parts   # they are logged once
        return self.training_step(model, inputs, num_items_in_batch)

    def compute_loss(self, model: torch.nn.Module, inputs: tuple[int, Any], return_outputs: bool = False,
                     num_items_in_batch: torch.Tensor | None = None) -> torch.Tensor:
        step, batch = inputs
        # dropout is a function of (seed, batch), so that a resumed run repeats it without a stored generator
        _seed(int(fingerprint(self.training.seed, step), 16) >> 1, self.args.device)
        loss, parts = self.loss(model, batch)
        self.guard.add(loss, _describe(batch))
        for name, value in parts.items():
            self._parts[name] = self._parts.get(name, 0.0) + value.detach()
        self._n_parts += 1
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self.guard.read()
        if 'loss' in logs and self._n_parts:
            logs |= {name: float(value) / self._n_parts for name, value in self._parts.items()}
            self._parts, self._n_parts = {}, 0
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        self.guard.read()
        values = self.validate()
        if self.args.world_size > 1:   # all stop by the first one's: on two GPUs the last digit may differ
            values, = broadcast_object_list([values])
        metrics = {f'eval_{name}': value for name, value in values.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        os.makedirs(output_dir, exist_ok=True)
        checkpoints.write_weights(self.model, Path(output_dir))

    def _load_best_model(self) -> None:
        """Nothing: `checkpoints.take_best` loads what it has verified."""

    def _save_rng_state(self, output_dir: str) -> None:
        """Nothing: no step depends on a generator's state."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Nothing: no step depends on a generator's state."""

    def _save_checkpoint(self, model: torch.nn.Module, trial: None) -> None:
        self.guard.read()
        if not all(bool(torch.isfinite(weights).all()) for weights in self.model.parameters()):
            self.guard.stop(f'step {self.state.global_step} made weights NaN or infinite')
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            checkpoints.seal(Path(self.args.output_dir) / f'checkpoint-{self.state.global_step}')
            checkpoints.rotate(Path(self.args.output_dir))   # not before: until then the earlier ones are all there is


def _seed(seed: int, device: torch.device) -> None:
    """Seed the generators that dropout draws from; `torch.manual_seed` looks at every kind of device there is."""
    torch.default_generator.manual_seed(seed)
    if device.type == 'cuda':
        torch.cuda.manual_seed(seed)


def _describe(batch: Any, what: str = '') -> str:
    describe = getattr(batch, 'describe', None)
    return f' ({what}{describe()})' if describe else ''


def _arguments(training: Training, output_dir: Path, device: torch.device, has_validation: bool, *,
               fp16: bool) -> TrainingArguments:
    # a saved step must be a validated one, so that the best weights are on disk
    save_every = (training.validation_interval if has_validation
                  else training.save_every or max(1, training.steps // 10))
    args = TrainingArguments(
        str(output_dir), max_steps=training.steps, per_device_train_batch_size=1,
        gradient_accumulation_steps=training.accumulation, learning_rate=training.learning_rate,
        weight_decay=training.weight_decay, max_grad_norm=training.max_grad_norm, optim='adamw_torch_fused',
        seed=training.seed % 2**32, use_cpu=device.type == 'cpu', disable_tqdm=True, remove_unused_columns=False,
        logging_steps=training.log_every, logging_nan_inf_filter=False, report_to=training.report_to,
        save_strategy='steps', save_steps=save_every, ignore_data_skip=True,
        eval_strategy='steps' if has_validation else 'no', eval_steps=training.validation_interval,
        load_best_model_at_end=has_validation, greater_is_better=True,
        metric_for_best_model=f'eval_{training.measure}' if has_validation else None,
        fp16=fp16, dataloader_pin_memory=False, ddp_find_unused_parameters=False)
    args._n_gpu = min(args.n_gpu, 1)   # one process, one device: DataParallel would split a batch
    return args


def _callbacks(training: Training, has_validation: bool, progress: Progress) -> list[TrainerCallback]:
    callbacks: list[TrainerCallback] = [progress]
    if has_validation:
        callbacks.append(Patience(training))
    return callbacks


@contextmanager
def _turn(desc: str) -> Iterator[None]:
    """For one thread of the process at a time."""
    if not _ONE_AT_A_TIME.acquire(blocking=False):
        say(f'{desc}: waiting for another thread, which trains')
        _ONE_AT_A_TIME.acquire()
    try:
        yield
    finally:
        _ONE_AT_A_TIME.release()


@contextmanager
def _quiet() -> Iterator[None]:
    level = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)


def train(module: torch.nn.Module, batches: Batches, loss: Loss, training: Training, *, output_dir: str | os.PathLike,
          device: torch.device, validate: Callable[[], dict[str, float]] | None = None, resume: bool = False,
          desc: str = 'Training', extra_callbacks: tuple[TrainerCallback, ...] = (),
          save_memory: SaveMemory | None = None, amp: str = 'off', kept: bool = True) -> TrainingRecord:
    """Train `module` in place.

    Args:
        module: What is trained; `loss` calls it, wrapped for several processes where there are some.
        batches: `batches[i]` is batch number i; a step takes `accumulation` of them on every process.
        loss: (module, batch) → the scalar to minimise and its named parts, for the log.
        training: Hyper-parameters.
        output_dir: Where checkpoints go.
        device: Where `module` is.
        validate: Called every `training.validation_interval` steps in evaluation mode, gives {measure: value}; the
            weights of the best value are restored at the end.
        resume: Continue from the newest unharmed checkpoint in `output_dir`, if there is one.
        desc: Label of the progress bar.
        extra_callbacks: Further `transformers.TrainerCallback`s.
        save_memory: Called with the number of the step's first batch and the batch for which the GPU's memory was too
            small, None where that was when it was made; True when `loss` will now take less, from that number on, and
            it is tried again. For one process.
        amp: The precision in which `module` computes; 'fp16' has its losses scaled, as its gradients would vanish.
        kept: Whether `output_dir` is there after the call, for messages.

    Returns:
        The record of the run; `module` holds the best weights and is in evaluation mode, also after an exception.

    Raises:
        NotFiniteError: The loss or the weights are NaN or infinite, or the loss is a thousand times what it was;
            `module` then has the weights of the newest checkpoint, or those that it began with.
        ValueError: There are checkpoints, and `resume` is False; or `amp` is 'fp16' and `device` no GPU.
    """
    output_dir = Path(output_dir)
    check_trains(amp, device)
    if not resume and checkpoints.found_in(output_dir):
        raise ValueError(f'{output_dir} holds a training run: pass resume=True to go on with it, or use another '
                         'work_dir')
    checkpoint = checkpoints.newest_checkpoint(output_dir) if resume else None
    if rank() == 0:
        checkpoints.remove_unusable(output_dir, checkpoint)
    if checkpoint is None:
        checkpoints.begin(module, output_dir, resume=resume)
    start = checkpoints.number(checkpoint) if checkpoint else 0
    state = checkpoints.state_of(checkpoint) if checkpoint and validate else None
    over = state is not None and is_over(training, state)
    progress = Progress(desc)
    # also where the caller wants no gradients, as who encodes and trains in one block does
    with _turn(desc), untouched_global_state(), _quiet(), torch.inference_mode(False), torch.enable_grad():
        args = _arguments(training, output_dir, device, validate is not None, fp16=amp == 'fp16')
        trainer = _Trainer(module, args, training, batches, loss, _in_eval_mode(module, validate),
                           [*_callbacks(training, validate is not None, progress), *extra_callbacks], start,
                           save_memory)
        trainer.remove_callback(PrinterCallback)
        if checkpoint:
            then = ', where it had stopped early' if over else ''
            if not over and start < training.steps:
                then = _describe(batches[trainer.first_batch], 'next batch: ')
            say(f'{desc}: resumed at step {start} of {training.steps}, learning rate '
                f'{training.learning_rate * training.rate_at(start):.3g}{then}')
        take_ctrl_c()
        try:
            if over:
                trainer.state = state
            else:
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            trainer.guard.read()
            if validate is not None and trainer.state.best_global_step:
                checkpoints.take_best(module, output_dir, trainer.state.best_global_step)
        except KeyboardInterrupt:
            then = checkpoints.going_on(output_dir) if kept else 'with work_dir= the call could be gone on with'
            say(f'{desc}: interrupted at step {trainer.state.global_step}; the weights of that step are in '
                f'place, {then}')
            raise
        except NotFiniteError:
            checkpoints.restore(module, output_dir)
            raise
        finally:
            progress.close()
            trainer.train_dataset.close()
            trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
            module.eval()
            module.to(device)
            trainer.accelerator.free_memory()
    return _record(trainer)


def _in_eval_mode(module: torch.nn.Module,
                  validate: Callable[[], dict[str, float]] | None) -> Callable[[], dict[str, float]] | None:
    if validate is None:
        return None

    def wrapped() -> dict[str, float]:
        module.eval()
        with torch.no_grad():
            return validate()
    return wrapped


def _record(trainer: _Trainer) -> TrainingRecord:
    state = trainer.state
    history = [{name.removeprefix('eval_'): value for name, value in entry.items() if name != 'epoch'}
               for entry in state.log_history if not any(name.startswith('train_') for name in entry)]
    return TrainingRecord(state.global_step, state.best_global_step, state.best_metric, history)
