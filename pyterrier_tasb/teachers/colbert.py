"""Late-interaction checkpoints: ColBERT's layout, the layout of the paper's released teacher, and plain encoders."""
from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertConfig, BertModel, DistilBertConfig, DistilBertModel, PreTrainedModel

from .._files import atomic_dir, read_json
from .._warn import warn
from ..encoding import Encoder
from ..encoding.model_directory import check_finite, check_replaceable
from .marking import Marking

_METADATA = 'artifact.metadata'   # ColBERT's own name for its settings
_COLBERTS_OWN = ('query_token_id', 'doc_token_id', 'mask_punctuation')   # there in what colbert-ai itself wrote


@dataclass
class Checkpoint:
    """What a checkpoint holds.

    Args:
        encoder: The token encoder.
        projection: Applied to token vectors; None where there is none.
        normalize: Whether token vectors get unit length; None where the checkpoint does not say.
        marking: How colbert-ai reads texts with it; None where colbert-ai did not write it.
        settings: Further settings that :func:`save` wrote.
    """
    encoder: Encoder
    projection: torch.nn.Linear | None
    normalize: bool | None
    marking: Marking | None
    settings: dict


@torch.inference_mode(False)   # what is made inside it can never be trained
def load(name_or_path: str, *, query_max_length: int | None, doc_max_length: int | None,
         device: torch.device, amp: str = 'auto', trust_remote_code: bool = False) -> Checkpoint:
    """Read a checkpoint, whichever layout it has.

    Args:
        name_or_path: A directory or hub name.
        query_max_length: Tokens of a query; None takes what the checkpoint says, else 32.
        doc_max_length: Tokens of a passage; None takes what the checkpoint says, else 200.
        device: Where the weights go.
        amp: Precision of matrix products; see `Encoder`.
        trust_remote_code: Whether code that lies with the model may run.

    Raises:
        ValueError: Its weights are no safetensors, or it is no encoder.
    """
    weights = _weights_file(name_or_path)
    metadata, names = _metadata(name_or_path), _names(weights)
    options = dict(
        amp=amp, query_max_length=metadata.get('query_maxlen', 32) if query_max_length is None else query_max_length,
        doc_max_length=metadata.get('doc_maxlen', 200) if doc_max_length is None else doc_max_length)
    if metadata.get('interaction', 'colbert') != 'colbert':
        warn(f'{name_or_path} was trained by ColBERT with interaction={metadata["interaction"]!r}, which is not '
             'applied here: scores are sums of maxima, not those that ColBERT gives')
    if 'linear.weight' in names and not metadata:
        warn(f'{name_or_path} has a projection, as ColBERT\'s checkpoints have, and no {_METADATA} was found: it is '
             'read without marker tokens, and scores may not be those that it was trained for')
    if 'compressor.weight' in names:
        return _released(name_or_path, weights, options, device, metadata)
    encoder = Encoder.load(name_or_path, device=device, trust_remote_code=trust_remote_code, **options)
    marking = Marking(encoder.tokenizer, metadata) if _is_colberts(metadata) else None
    if 'linear.weight' not in names:
        return Checkpoint(encoder, None, metadata.get('normalize'), marking, metadata)
    with safe_open(weights, 'pt') as file:
        bias = file.get_tensor('linear.bias') if 'linear.bias' in names else None
        projection = _linear(file.get_tensor('linear.weight'), bias)
    check_finite(f'{name_or_path} cannot be used', projection)
    return Checkpoint(encoder, projection.to(device), metadata.get('normalize', True), marking, metadata)


def save(checkpoint: Checkpoint, path: str | os.PathLike, *, overwrite: bool = False) -> None:
    """Write ColBERT's layout: the encoder's weights under `bert.`, and `linear.weight` where there is a projection.

    Raises:
        ValueError: `path` exists, and `overwrite` is False or it holds anything but a model; or a weight is NaN or
            infinite.
    """
    if Path(path).exists():
        if not overwrite:
            raise ValueError(f'{path} exists: save to a new path, or pass overwrite=True')
        check_replaceable(Path(path))
    model = checkpoint.encoder.model
    for part in filter(None, [model, checkpoint.projection]):
        check_finite('the model is not saved', part)
    weights = {f'{model.base_model_prefix}.{name}': value.detach().cpu().contiguous()
               for name, value in model.state_dict().items()}
    if checkpoint.projection is not None:   # with a bias where it came from the paper's teacher; ColBERT has none
        weights.update({f'linear.{name}': value.detach().cpu().contiguous()
                        for name, value in checkpoint.projection.state_dict().items()})
    with atomic_dir(path, overwrite=overwrite) as part:
        config = {**model.config.to_dict(), 'architectures': ['HF_ColBERT']}
        (part / 'config.json').write_text(json.dumps(config, indent=1, default=str))
        checkpoint.encoder.tokenizer.save_pretrained(part)
        save_file(weights, part / 'model.safetensors', metadata={'format': 'pt'})
        own = {} if checkpoint.marking is None else checkpoint.marking.settings
        if own and checkpoint.projection is not None:
            own = {**own, 'dim': checkpoint.projection.out_features}   # colbert-ai builds its layer by this
        (part / _METADATA).write_text(json.dumps({**own, **checkpoint.settings, 'normalize': checkpoint.normalize},
                                                 indent=1))


def _released(name_or_path: str, weights: str, options: dict, device: torch.device, metadata: dict) -> Checkpoint:
    """The paper's teacher: `bert_model.*` and a `compressor` with a bias, scores not normalised."""
    state = load_file(weights)
    inner = {name.removeprefix('bert_model.'): value for name, value in state.items() if name.startswith('bert_model.')}
    model = _backbone(inner)
    missing, unexpected = model.load_state_dict(inner, strict=False)
    if [name for name in (*missing, *unexpected) if 'position_ids' not in name and 'pooler' not in name]:
        raise ValueError(f'{name_or_path}: its bert_model weights do not fit a BERT or DistilBERT (missing '
                         f'{missing[:3]}, unexpected {unexpected[:3]})')
    tokenizer = AutoTokenizer.from_pretrained(name_or_path)
    encoder = Encoder(model, tokenizer, **options).to(device).eval()
    projection = _linear(state['compressor.weight'], state.get('compressor.bias')).to(device)
    for part in model, projection:
        check_finite(f'{name_or_path} cannot be used', part)
    return Checkpoint(encoder, projection, False, None, metadata)


def _backbone(state: dict[str, torch.Tensor]) -> PreTrainedModel:
    vocabulary, dim = state['embeddings.word_embeddings.weight'].shape
    positions = state['embeddings.position_embeddings.weight'].shape[0]
    layers = 1 + max(int(name.split('.layer.')[1].split('.')[0]) for name in state if '.layer.' in name)
    heads = max(1, dim // 64)   # 64 dimensions a head in every published BERT and DistilBERT
    with torch.random.fork_rng([]):
        if any(name.startswith('transformer.') for name in state):
            return DistilBertModel(DistilBertConfig(
                vocab_size=vocabulary, dim=dim, n_layers=layers, n_heads=heads, max_position_embeddings=positions,
                hidden_dim=state['transformer.layer.0.ffn.lin1.weight'].shape[0]))
        return BertModel(BertConfig(
            vocab_size=vocabulary, hidden_size=dim, num_hidden_layers=layers, num_attention_heads=heads,
            max_position_embeddings=positions,
            intermediate_size=state['encoder.layer.0.intermediate.dense.weight'].shape[0]), add_pooling_layer=False)


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> torch.nn.Linear:
    with torch.random.fork_rng([]):
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight.data.copy_(weight)
    if bias is not None:
        linear.bias.data.copy_(bias)
    return linear


def _weights_file(name_or_path: str) -> str:
    folder = Path(name_or_path)
    if folder.is_dir():
        if not (folder / 'model.safetensors').exists():
            other = [file.name for file in folder.glob('*.bin')]
            found = f' but {other}, which can run code' if other else ''
            raise ValueError(f'{folder} has no model.safetensors{found}: convert it once with '
                             'save_pretrained(…, safe_serialization=True)')
        return str(folder / 'model.safetensors')
    from huggingface_hub import hf_hub_download
    try:
        return hf_hub_download(name_or_path, 'model.safetensors')
    except Exception as error:
        raise ValueError(f'{name_or_path!r} is no directory, and its model.safetensors could not be had from the hub: '
                         f'{str(error).splitlines()[0]}') from error


def _names(weights: str) -> set[str]:
    with safe_open(weights, 'pt') as file:
        return set(file.keys())


def _metadata(name_or_path: str) -> dict:
    """ColBERT's settings; empty where there are none."""
    file = Path(name_or_path) / _METADATA
    if not Path(name_or_path).is_dir():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError
        try:
            file = Path(hf_hub_download(name_or_path, _METADATA))
        except EntryNotFoundError:   # the repository has none, or nobody fetched it before the network was gone
            return {}
    if not file.exists():
        return {}
    metadata = read_json(file)
    return {'doc_maxlen': 220, **metadata} if _is_colberts(metadata) else metadata   # as colbert-ai takes it


def _is_colberts(metadata: dict) -> bool:
    return any(name in metadata for name in _COLBERTS_OWN)
