"""What lies in a model's directory: read by :meth:`Encoder.load`, written by :func:`save`."""
from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from .._files import read_json

_POOLING_KEYS = {'pooling_mode_cls_token': 'cls', 'pooling_mode_mean_tokens': 'mean'}


@dataclass
class Parts:
    """What a directory holds."""
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    options: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


def load(name_or_path: str | os.PathLike, *, trust_remote_code: bool = False) -> Parts:
    """Read a directory."""
    path = Path(name_or_path)
    options = {'pooling': 'cls', 'normalize': False}
    if (path / 'modules.json').exists():
        for module in read_json(path / 'modules.json'):
            if module['type'].endswith('Pooling'):
                config = read_json(path / module['path'] / 'config.json')
                options['pooling'] = config.get('pooling_mode') or next(
                    mode for key, mode in _POOLING_KEYS.items() if config.get(key))
            options['normalize'] |= module['type'].endswith('Normalize')
    with torch.random.fork_rng([]):
        model = AutoModel.from_pretrained(path, trust_remote_code=trust_remote_code, use_safetensors=True)
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    return Parts(model, tokenizer, options)
