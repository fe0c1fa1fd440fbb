"""Dropout that does not hold a CPU up: PyTorch's draws a number for each element there, one after the other.

It took a fifth of a training step. Here one draw of 64 bits decides about four elements.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812

_STEPS = 2**16   # shares are rounded to 1/65,536


def dropout(x: torch.Tensor, share: float) -> torch.Tensor:
    """`x` with a random share of its elements set to 0 and the others scaled up, so that means stay.

    Draws from PyTorch's generator of the device, as `torch.nn.functional.dropout` does.
    """
    dropped = round(share * _STEPS)
    if x.device.type != 'cpu' or not 0 < dropped < _STEPS:
        return F.dropout(x, share)
    bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-2**63, None)
    bits = bits.view(torch.int16)[:x.numel()].view(x.shape)
    kept = torch.ge(bits, dropped - _STEPS // 2, out=torch.empty_like(bits, dtype=x.dtype))   # 1.0 or 0.0
    return x * kept.mul_(_STEPS / (_STEPS - dropped))


class Dropout(torch.nn.Dropout):
    """`torch.nn.Dropout`, by :func:`dropout`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return dropout(x, self.p) if self.training else x


def use_in(model: torch.nn.Module) -> None:
    """Replace a model's `torch.nn.Dropout` modules. They have no weights: nothing that is saved changes."""
    for parent in list(model.modules()):
        for name, module in parent.named_children():
            if type(module) is torch.nn.Dropout and not module.inplace:
                setattr(parent, name, Dropout(module.p).train(module.training))
