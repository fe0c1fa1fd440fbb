"""The same weights under other settings, as `pt.inspect.transformer_apply_attributes` asks for them."""
from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch

from .precision import device_of

Loaded = TypeVar('Loaded')
Module = TypeVar('Module', bound=torch.nn.Module)


def with_settings(transformer: Loaded, settings: dict[str, Any]) -> Loaded:
    """A shallow copy of a transformer that has a `model_name` and a `device`, with these attributes.

    Raises:
        ValueError: There is no such attribute, or `model_name` is that of other weights.
    """
    kind = type(transformer).__name__
    if settings.get('model_name', transformer.model_name) != transformer.model_name:
        raise ValueError(f'{transformer!r} cannot take the name of other weights: '
                         f'{kind}({settings["model_name"]!r}) loads them')
    other = copy.copy(transformer)
    for name, value in settings.items():
        if not hasattr(other, name):
            raise ValueError(f'{kind} has no attribute {name!r}')
        setattr(other, name, value)
    other.device = device_of(other.device)
    return other


@torch.inference_mode(False)   # a copy that is made inside it can never be trained
def copied(module: Module, device: torch.device | None = None) -> Module:
    """Weights of its own; on another device, if one is named."""
    return copy.deepcopy(module).to(device)
