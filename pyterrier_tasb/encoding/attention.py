"""Padding-free attention inside unmodified Hugging Face encoders.

`transformers.AttentionInterface` lets a model's attention be looked up by name. The one registered here does what
'sdpa' does, unless the call brings a `packing=`: then its single row of T tokens is N texts, which attend to
themselves only.
"""
from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .kernels import Packing, window

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


@torch.compiler.disable   # which kernel it is depends on the call
def _attention(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
               attention_mask: torch.Tensor | None, dropout: float = 0.0, scaling: float | None = None,
               packing: Packing | None = None, sliding_window: int | None = None,
               **kwargs: Any) -> tuple[torch.Tensor, None]:
    if packing is None:
        if attention_mask is None:
            attention_mask = window(query.shape[2], sliding_window, query.device)
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    flat = (x.transpose(1, 2)[0] for x in (query, key, value))   # [1, H, T, d] → [T, H, d]
    return packing(*flat, share=dropout, scale=scaling, reach=sliding_window)[None], None


def _mask(*args: Any, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor | None:
    """Where nothing is padded there is no mask: for a packed row it would be [T, T]."""
    return None if attention_mask is None else sdpa_mask(*args, attention_mask=attention_mask, **kwargs)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)
