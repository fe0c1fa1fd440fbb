"""The same weights under other settings, as `pt.inspect.transformer_apply_attributes` asks for them."""
from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from .precision import device_of

if TYPE_CHECKING:
    from .encoder import Encoder

Loaded = TypeVar('Loaded')
Module = TypeVar('Module', bound=torch.nn.Module)


def with_settings(transformer: Loaded, settings: dict[str, Any]) -> Loaded:
    """A shallow copy of a transformer that has a `model_name`, with these attributes and the same weights.

    Raises:
        ValueError: There is no such attribute, or `model_name` is that of other weights.
    """
    kind = type(transformer).__name__
    if settings.get('model_name', transformer.model_name) != transformer.model_name:
        raise ValueError(f'{transformer!r} cannot take the name of other weights: '
                         f'{kind}({settings["model_name"]!r}) loads them')
    other = sharing(transformer)
    for name, value in settings.items():
        if not hasattr(other, name):
            raise ValueError(f'{kind} has no attribute {name!r}')
        setattr(other, name, value)
    other.device = device_of(other.device)
    return other


def sharing(transformer: Loaded) -> Loaded:
    """A shallow copy; both know that they have the same weights."""
    other = shallow(transformer)
    transformer._shared = other._shared = True
    return other


def shallow(transformer: Loaded) -> Loaded:
    """A shallow copy, for who gives it weights of its own."""
    other = type(transformer).__new__(type(transformer))
    other.__dict__.update(transformer.__dict__)
    return other


def settings_of(encoder: Encoder) -> tuple[str, int, int]:
    """Precision, and tokens of a query and of a passage."""
    return encoder.amp, encoder.query_max_length, encoder.doc_max_length


def under_settings(transformer: Any, encoder: Encoder) -> Encoder:
    """The encoder that a transformer's attributes ask for now: itself, a view of it, or a copy on another device.

    They may be set at any time (`set_parameter`, `pt.GridScan`). What an encoder makes of them is written back: it cuts
    lengths that the model cannot take.
    """
    transformer.device = device_of(transformer.device)
    if not is_on(encoder, transformer.device):
        encoder = copied(encoder, transformer.device)
    wanted = transformer.amp, transformer.query_max_length, transformer.doc_max_length
    if wanted != settings_of(encoder):
        amp, query_max_length, doc_max_length = wanted
        encoder = encoder.view(query_max_length=query_max_length, doc_max_length=doc_max_length, amp=amp)
        transformer.amp, transformer.query_max_length, transformer.doc_max_length = settings_of(encoder)
    return encoder


def is_on(encoder: Encoder, device: torch.device) -> bool:
    """Whether weights are on a device; where one of the two has no number, there is one only ('cpu:0', 'mps')."""
    there = encoder.device
    return there.type == device.type and (None in (there.index, device.index) or there.index == device.index)


def owned(transformer: Any, module: Module) -> Module:
    """A module to train: a copy, where another transformer has the same weights and keeps its name."""
    return copied(module) if transformer._shared else module


@torch.inference_mode(False)   # a copy that is made inside it can never be trained
def copied(module: Module, device: torch.device | None = None) -> Module:
    """Weights of its own; on another device, if one is named."""
    return copy.deepcopy(module).to(device)
