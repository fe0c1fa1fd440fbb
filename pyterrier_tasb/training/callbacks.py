"""What a run does besides its steps: shows how far it is, and stops early."""
from __future__ import annotations

import pyterrier as pt
from transformers import TrainerCallback, TrainerState

from .config import Training


class Progress(TrainerCallback):
    """A progress bar over optimiser steps with the last loss and measure."""

    def __init__(self, desc: str) -> None:
        self.desc, self.bar = desc, None

    def on_train_begin(self, args, state, control, **kwargs) -> None:  # noqa: ANN001
        """Show the bar, in the first process."""
        state.logging_steps, state.save_steps = args.logging_steps, args.save_steps   # a checkpoint has those of before
        if state.is_world_process_zero:
            self.bar = pt.tqdm(total=state.max_steps, initial=state.global_step, desc=self.desc, unit='step')
            self.shown: dict[str, str] = {}

    def on_step_end(self, args, state, control, **kwargs) -> None:  # noqa: ANN001
        """A step further."""
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:  # noqa: ANN001
        """Show the loss and the measure."""
        if self.bar is not None:
            self.shown |= {name.removeprefix('eval_'): f'{value:.4g}' for name, value in (logs or {}).items()
                           if name == 'loss' or name.startswith('eval_')}
            self.bar.set_postfix(self.shown)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self.bar is not None:
            self.bar.close()


def is_over(training: Training, state: TrainerState) -> bool:
    """Whether validations without gain are enough; by the log alone, so that resumed runs end where whole ones do."""
    measure = f'eval_{training.measure}'
    values = [entry[measure] for entry in state.log_history if measure in entry]
    if training.patience is None or not values:
        return False
    waited = len(values) - 1 - values.index(max(values))
    return waited >= training.patience and state.global_step >= training.patience_from


class Patience(TrainerCallback):
    """Early stopping."""

    def __init__(self, training: Training) -> None:
        self.training = training

    def on_evaluate(self, args, state, control, **kwargs) -> None:  # noqa: ANN001
        """Stop where it is over."""
        if is_over(self.training, state):
            control.should_training_stop = True
