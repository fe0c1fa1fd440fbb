"""Padding-free attention inside unmodified Hugging Face encoders.

`transformers.AttentionInterface` lets a model's attention be looked up by name. The one registered here does what
'sdpa' does, unless the call brings a `packing=`: then its single row of T tokens is N texts, which attend to
themselves only.

Where vectors are the first tokens' states, nothing else is needed of the last layer: `first_only=True` has it called
with those states alone. Its attention takes keys and values of all.
"""
from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .kernels import Packing, Room, window

NAME = 'pyterrier_tasb'

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


def give_firsts(model: PreTrainedModel) -> bool:
    """Have a model's last layer understand `first_only=True`; False where its architecture is none for that."""
    stack = next((module for module in model.modules() if isinstance(module, torch.nn.ModuleList)), None)
    if not stack or not any(_of_keys(module) for module in stack[-1].modules()):
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


def _of_keys(module: torch.nn.Module) -> list[torch.nn.Module]:
    """What an attention module makes keys and values with; empty where they are not made by themselves."""
    found = [[getattr(module, name, None) for name in names] for names in (('key', 'value'), ('k_lin', 'v_lin'))]
    return next((both for both in found if all(isinstance(one, torch.nn.Module) for one in both)), [])


def _attention(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
               attention_mask: torch.Tensor | None, dropout: float = 0.0, scaling: float | None = None,
               packing: Packing | Room | None = None, all_states: torch.Tensor | None = None,
               sliding_window: int | None = None, **kwargs: Any) -> tuple[torch.Tensor, None]:
    if packing is None:
        if attention_mask is None:
            attention_mask = window(query.shape[2], sliding_window, query.device)
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    query, key, value = (x.transpose(1, 2).squeeze(0) for x in (query, key, value))   # [1, H, T, d] → [T, H, d]
    if all_states is not None:   # the layer has made those of the first tokens
        key, value = (make(all_states).view(-1, *key.shape[1:]) for make in _of_keys(module))
    out = packing(query, key, value, share=dropout, scale=scaling, reach=sliding_window, firsts=all_states is not None)
    return out.unsqueeze(0), None


def _mask(*args: Any, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor | None:
    """Where nothing is padded there is no mask: for a packed row it would be [T, T]."""
    return None if attention_mask is None else sdpa_mask(*args, attention_mask=attention_mask, **kwargs)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)
