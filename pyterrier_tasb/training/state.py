"""Leave the process as it was found: generators, environment, accelerate's settings."""
from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

from .._locks import world_size

_WAIT = timedelta(days=7)   # the first process may score candidates for days before all begin to train


@contextmanager
def untouched_global_state() -> Iterator[None]:
    """Restore what is global when the block ends, also after an exception."""
    python, numpy, environment = random.getstate(), np.random.get_state(), dict(os.environ)
    shared = [kind._shared_state for kind in (PartialState, AcceleratorState, GradientState)]   # of all Accelerators
    shared = [(state, dict(state)) for state in shared]
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            for name in set(os.environ) - set(environment):
                del os.environ[name]
            os.environ.update(environment)
            for state, before in shared:
                state.clear()
                state.update(before)


@contextmanager
def main_process_first(device: torch.device) -> Iterator[None]:
    """In a distributed run, the first process does the work of the block while the others wait; they find it done."""
    if world_size() == 1:
        yield
        return
    with PartialState(cpu=device.type == 'cpu', timeout=_WAIT).main_process_first():
        yield
