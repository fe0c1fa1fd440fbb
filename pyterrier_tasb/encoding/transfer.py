"""From memory to a device, without waiting for what the device is doing."""
from __future__ import annotations

import numpy as np
import torch


def moved(values: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """`values` on `device`.

    A copy from ordinary memory to a GPU waits until all work given to it so far is done, several times a step; one
    from page-locked memory takes its turn.
    """
    values = torch.as_tensor(values)
    if device.type == 'cuda' and values.device.type == 'cpu':
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)
