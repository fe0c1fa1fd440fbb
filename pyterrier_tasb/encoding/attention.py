"""Padding-free attention inside unmodified Hugging Face encoders.

`transformers.AttentionInterface` lets a model's attention be looked up by name. The one registered here does what
'sdpa' does, unless the call brings a `packing=`: then its single row of T tokens is N texts, which attend to
themselves only.

Where vectors are the first tokens' states, nothing else is needed of the last layer: `first_only=True` has it called
with those states alone. Its attention takes keys and values of all.

A layer makes queries, keys and values by three products of the same states. Where many steps follow, one product is
faster: `Joint` has the layer pass on its states, and the attention called makes them.
"""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .kernels import Packing, StaticBounds, window

NAME = 'pyterrier_tasb'
_PROJECTIONS = ('query', 'key', 'value'), ('q_lin', 'k_lin', 'v_lin')   # what architectures call them

# Encoders in which tokens meet in attention only, and positions can be given; and whether these begin behind the id
# of the padding token.
_PACKABLE = {'bert': False, 'distilbert': False, 'electra': False, 'modernbert': False,
             'roberta': True, 'xlm-roberta': True, 'camembert': True}


def is_packable(config: PretrainedConfig) -> bool:
    """Whether the architecture is known to give the same states packed and padded."""
    return config.model_type in _PACKABLE and not getattr(config, 'is_decoder', False)


def first_position(config: PretrainedConfig) -> int:
    """The position of a text's first token."""
    behind_padding = _PACKABLE.get(config.model_type, config.model_type == 'mpnet')
    return config.pad_token_id + 1 if behind_padding else 0


def position_embeddings(model: PreTrainedModel) -> torch.nn.Module | None:
    """The table of positions; None where a model has none."""
    return next((module for name, module in model.named_modules() if name.endswith('position_embeddings')), None)


def give_firsts(model: PreTrainedModel) -> bool:
    """Have a model's last layer understand `first_only=True`; False where its architecture is none for that."""
    stack = next((module for module in model.modules() if isinstance(module, torch.nn.ModuleList)), None)
    if not stack or not any(_projections(module) for module in stack[-1].modules()):
        return False
    if _firsts not in stack[-1]._forward_pre_hooks.values():
        stack[-1].register_forward_pre_hook(_firsts, with_kwargs=True)
    return True


def _firsts(layer: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    if not kwargs.get('first_only'):
        return None
    states, *rest = args
    firsts = states.index_select(1, kwargs['packing'].starts(states.shape[1]))
    return (firsts, *rest), {**kwargs, 'all_states': states}


def _projections(module: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """What an attention module makes queries, keys and values with; empty where they are not made by themselves."""
    found = [{name: getattr(module, name, None) for name in names} for names in _PROJECTIONS]
    return next((three for three in found if all(isinstance(one, torch.nn.Module) for one in three.values())), {})


class Joint:
    """The weights of an attention module's queries, keys and values, one below the other, for one product.

    Args:
        module: One for which :meth:`can` holds.
        dtype: Of the weights.
    """

    def __init__(self, module: torch.nn.Module, dtype: torch.dtype) -> None:
        self.module, self.parts = module, _projections(module)
        self.weight, self.bias = (
            torch.nn.Parameter(torch.cat([getattr(part, name).detach() for part in self.parts.values()]).to(dtype))
            for name in ('weight', 'bias'))

    @staticmethod
    def can(module: torch.nn.Module) -> bool:
        """Whether a module's queries, keys and values are three plain products, each as wide as the states."""
        parts = _projections(module)
        return bool(parts) and all(type(part) is torch.nn.Linear and part.bias is not None
                                   and part.in_features == part.out_features
                                   and part.weight.requires_grad and part.bias.requires_grad
                                   for part in parts.values())

    def places(self) -> Iterator[tuple[torch.nn.Parameter, torch.nn.Parameter, slice]]:
        """(weights of the module, joint ones, which of their rows) of all."""
        for number, part in enumerate(self.parts.values()):
            rows = slice(number * part.out_features, (number + 1) * part.out_features)
            yield part.weight, self.weight, rows
            yield part.bias, self.bias, rows

    @contextmanager
    def used(self) -> Iterator[None]:
        """The module computes with them."""
        for name in self.parts:
            setattr(self.module, name, torch.nn.Identity())
        self.module.joint = self   # read by the attention function
        try:
            yield
        finally:
            del self.module.joint
            for name, part in self.parts.items():
                setattr(self.module, name, part)


def _attention(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
               attention_mask: torch.Tensor | None, dropout: float = 0.0, scaling: float | None = None,
               packing: Packing | StaticBounds | None = None, all_states: torch.Tensor | None = None,
               sliding_window: int | None = None, **kwargs: Any) -> tuple[torch.Tensor, None]:
    if packing is None:
        if attention_mask is None:
            attention_mask = window(query.shape[2], sliding_window, query.device)
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    query, key, value = (x.transpose(1, 2).squeeze(0) for x in (query, key, value))   # [1, H, T, d] → [T, H, d]
    options = {'share': dropout, 'scale': scaling, 'reach': sliding_window}
    joint, shape = getattr(module, 'joint', None), query.shape[1:]
    if all_states is None:
        out = (packing(query, key, value, **options) if joint is None else
               packing.joint(_made(query.flatten(1), joint.weight, joint.bias, shape), **options))
    else:
        if joint is None:   # the layer has made keys and values of the first tokens
            key, value = (make(all_states).view(-1, *shape) for make in list(_projections(module).values())[1:])
        else:
            width = shape.numel()
            query = _made(query.flatten(1), joint.weight[:width], joint.bias[:width], shape)[:, 0]
            key, value = _made(all_states[0], joint.weight[width:], joint.bias[width:], shape).unbind(1)
        out = packing(query, key, value, **options, firsts=True)
    return out.unsqueeze(0), None


def _made(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """[T, D] → [T, n, H, d], of n by one product."""
    return F.linear(states, weight, bias).view(len(states), -1, *shape)


def _mask(*args: Any, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor | None:
    """Where nothing is padded there is no mask: for a packed row it would be [T, T]."""
    return None if attention_mask is None else sdpa_mask(*args, attention_mask=attention_mask, **kwargs)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)
