"""Where to compute, and in half precision where the hardware does."""
from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .._locks import world_size
from .._warn import warn

_DTYPES = {'off': None, 'bf16': torch.bfloat16, 'fp16': torch.float16}


def device_of(device: str | torch.device | None) -> torch.device:
    """The device asked for; None takes a GPU if there is one, in a distributed run one for each process."""
    if device is None:
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
    device = torch.device(device)
    if device.type == 'cuda' and device.index is None:   # threads have a current device each
        return torch.device('cuda', int(os.environ.get('LOCAL_RANK') or 0))
    return device


@contextmanager
def autocast(amp: str, device: torch.device) -> Iterator[None]:
    """Matrix products in the precision that `amp` says.

    Casts of weights are forgotten when it ends, also within another such block, where PyTorch keeps them: weights
    change.
    """
    dtype = autocast_dtype(amp, device)
    try:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            yield
    finally:
        torch.clear_autocast_cache()


def in_own_precision(device: torch.device) -> torch.autocast:
    """A block in which the caller's autocast does not count: what we compute in is what `amp` says."""
    return torch.autocast(device.type, enabled=False)


def has_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bf16 matrices itself; emulation is slower than float32."""
    if device.type == 'cuda':
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type == 'cpu':
        return any(getattr(torch.cpu, name, lambda: False)()
                   for name in ('_is_avx512_bf16_supported', '_is_amx_tile_supported'))
    return False


def autocast_dtype(amp: str, device: torch.device) -> torch.dtype | None:
    """The dtype of autocast; None computes in float32.

    Raises:
        ValueError: `amp` is unknown.
    """
    if amp == 'auto':
        return torch.bfloat16 if has_bf16(device) else None
    if amp not in _DTYPES:
        raise ValueError(f"amp={amp!r} is unknown: one of 'auto', 'off', 'bf16', 'fp16'")
    return _DTYPES[amp]


def warn_of_emulation(amp: str, device: torch.device) -> None:
    """Say it where bf16 was asked for and the hardware does not multiply in it."""
    if amp == 'bf16' and not has_bf16(device):
        warn(f"amp='bf16': this {device.type} device does not multiply in it, and emulates it far slower than "
             "float32; amp='auto' takes what is fast, 'off' is float32")


def check_trains(amp: str, device: torch.device) -> None:
    """Whether a model can learn in this precision here: gradients in fp16 vanish unless losses are scaled.

    And on this device: `transformers.Trainer` takes the first GPU that it sees, one for each process.

    Raises:
        ValueError: It cannot.
    """
    if amp == 'fp16' and device.type != 'cuda':
        raise ValueError(f"amp='fp16' trains on a GPU only, and this is {device.type!r}: take 'auto', 'bf16' or 'off'")
    own = device_of('cuda')
    if device.type == 'cuda' and world_size() > 1 and device.index not in (None, own.index):
        raise ValueError(f'process {own.index} of this machine trains on {own}, and the model is on {device}: leave '
                         'device=None, which takes it')
    if device.type == 'cuda' and device.index and world_size() == 1:
        raise ValueError(f'training takes the first GPU there is, and the model is on {device}: run with '
                         f'CUDA_VISIBLE_DEVICES={device.index} and device=None')
