"""A model's directory: what :meth:`Encoder.load` reads and :func:`save` writes.

Plain Hugging Face directories and those of sentence-transformers are read; what is written is both.
"""
from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from .._files import atomic_dir, read_json, write_json
from .._warn import warn

if TYPE_CHECKING:
    from .encoder import Encoder

RECORD = 'training_record.json'
_RECORDED = ('base_model', 'training', 'calibration', 'pairs', 'clusters', 'steps', 'best_step', 'history', 'seconds',
             'hardware', 'versions')
_LENGTHS = {'query_max_length': 30, 'doc_max_length': 200}   # Hofstätter et al. 2021
_TOKENIZER_FILES = ('tokenizer.json', 'vocab.txt', 'vocab.json', 'sentencepiece.bpe.model', 'spiece.model',
                    'tokenizer.model')
_SENTENCE_KINDS = 'bert', 'roberta', 'distilbert', 'camembert', 'albert', 'xlm-roberta', 'xlnet'
_HUB_FILES = ['*.json', '*.safetensors', '*.txt', '*.model', '*/config.json', '*.py']
# what models are saved with, by the libraries and by us; a directory with anything else in it is not replaced
_MODEL_FILES = ('config*.json', 'model.*', 'model-*', 'pytorch_model*', 'tokenizer*.json', 'tokenizer.model', 'vocab.*',
                'merges.txt', '*.bpe.model', 'spiece.model', 'special_tokens_map.json', 'added_tokens.json',
                'chat_template*', 'modules.json', 'sentence_*_config.json', 'generation_config.json', 'modeling_*.py',
                'configuration_*.py', 'README.md', 'LICENSE*', '.gitattributes', 'artifact.metadata', 'tasb.json',
                RECORD)
_MODEL_FOLDERS = ('[0-9]_[A-Z]*', 'onnx', 'openvino', '.cache')
# what checkpoints hold beside the encoder: heads of pre-training and of other tasks, and buffers
_HEADS = re.compile(r'(cls|lm_head|head|decoder|\w*predictions|vocab_\w+|generator_\w+|pooler|(pre_)?classifier|'
                    r'sop_classifier|qa_outputs|score|seq_relationship)\.|.*position_ids$')
_HUB_NAME = re.compile(r'[\w-][\w.-]*(/[\w-][\w.-]*)?')
_POOLING_FLAGS = {'pooling_mode_cls_token': 'cls', 'pooling_mode_mean_tokens': 'mean',
                  'pooling_mode_max_tokens': 'max', 'pooling_mode_mean_sqrt_len_tokens': 'mean_sqrt_len_tokens',
                  'pooling_mode_weightedmean_tokens': 'weightedmean', 'pooling_mode_lasttoken': 'lasttoken'}


@dataclass(frozen=True)
class Parts:
    """What a directory holds.

    Args:
        path: The directory, on this machine.
        model: The encoder.
        tokenizer: Its tokenizer.
        options: `pooling`, `normalize`, `query_max_length` and `doc_max_length` of an `Encoder`.
        settings: What else `save` was given.
    """
    path: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    options: dict[str, Any]
    settings: dict[str, Any]


def load(name_or_path: str | os.PathLike, *, trust_remote_code: bool = False) -> Parts:
    """Read a directory, or a model of the hub.

    Raises:
        ValueError: There is no model, or none that can be used; the message says what was looked for.
    """
    path = _directory(name_or_path)
    inner, pooling, normalize = _sentence_transformers_modules(path)
    settings = read_json(path / 'tasb.json') if (path / 'tasb.json').exists() else {}
    model, tokenizer = _model(inner, trust_remote_code), _tokenizer(inner, trust_remote_code)
    _check_vocabulary(path, model, tokenizer)
    check_finite(f'{path} cannot be used', model)
    most, lower_case = _sentence_config(inner)
    if lower_case:
        _lower_case(inner, tokenizer)
    most = min(most, tokenizer.model_max_length)
    options = {'pooling': pooling, 'normalize': normalize,
               **{name: settings.pop(name, min(length, most)) for name, length in _LENGTHS.items()}}
    return Parts(path, model, tokenizer, options, settings)


def training_record(path: Path) -> dict[str, Any] | None:
    """How the model was trained, if `TasBalanced.save` wrote that beside it."""
    try:
        return read_json(path / RECORD, needs=_RECORDED)
    except (OSError, ValueError):   # there is none, or another's
        return None


def _directory(name_or_path: str | os.PathLike) -> Path:
    """The local directory of a model; one of the hub is fetched, without weights that are pickles."""
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    name = str(name_or_path)
    if path.exists():
        raise ValueError(f'{name} is a file: give the directory that it lies in')
    if not _HUB_NAME.fullmatch(name):
        raise ValueError(f'there is no directory {name}, and that is no name on the model hub (owner/name) either')
    from huggingface_hub import snapshot_download
    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES, ignore_patterns=['onnx/*', 'openvino/*']))
    except Exception as error:
        raise ValueError(f'there is no directory {name}, and the model hub did not give {name!r} either: '
                         f'{type(error).__name__}: {error}') from error


def _sentence_transformers_modules(path: Path) -> tuple[Path, str, bool]:
    """(the transformer's directory, pooling, unit length) that modules.json says; a plain directory is [CLS]."""
    if not (path / 'modules.json').exists():
        return path, 'cls', False
    inner, pooling, normalize = path, 'mean', False
    for module in read_json(path / 'modules.json', list):
        kind, folder = _kind_and_folder(path, module)
        if kind == 'Transformer':
            inner = folder
        elif kind == 'Pooling':
            pooling = _pooling(folder / 'config.json')
        elif kind == 'Normalize':
            normalize = True
        else:
            raise ValueError(f'{path}/modules.json asks for a {kind} layer; only Transformer, Pooling (cls or mean) '
                             'and Normalize can be used here')
    _warn_of_prompts(path)
    return inner, pooling, normalize


def _kind_and_folder(path: Path, module: Any) -> tuple[str, Path]:
    kind, folder = (module.get('type'), module.get('path') or '') if isinstance(module, dict) else (None, '')
    if not isinstance(kind, str) or not isinstance(folder, str):
        raise ValueError(f'{path}/modules.json has the entry {module!r:.200}: expected type and path, both strings, as '
                         'sentence-transformers writes them')
    return kind.rpartition('.')[2], _inside(path, folder)


def _inside(path: Path, name: str) -> Path:
    if os.path.isabs(name) or '..' in Path(name).parts:
        raise ValueError(f'{path} names a file outside itself: {name!r}')
    return path / name


def _pooling(file: Path) -> str:
    config = read_json(file)
    modes = config.get('pooling_mode') or [mode for flag, mode in _POOLING_FLAGS.items() if config.get(flag)]
    modes = [modes] if isinstance(modes, str) else list(modes) or ['mean']
    if len(modes) > 1 or modes[0] not in ('cls', 'mean'):
        raise ValueError(f'{file} asks for {" + ".join(map(str, modes))} pooling; only cls and mean can be used here')
    return modes[0]


def _warn_of_prompts(path: Path) -> None:
    file = path / 'config_sentence_transformers.json'
    prompts = (read_json(file).get('prompts') or {}) if file.exists() else {}
    prompts = {name: prompt for name, prompt in prompts.items() if prompt}
    if prompts:
        warn(f'{path} was trained with prompts ({", ".join(sorted(prompts))}); none is put before texts here')


def _sentence_config(path: Path) -> tuple[int, bool]:
    """Most tokens of a text, and whether texts become lower case, as sentence-transformers' file says."""
    files = [path / f'sentence_{kind}_config.json' for kind in _SENTENCE_KINDS]
    file = next((file for file in files if file.exists()), None)
    config = {} if file is None else read_json(file)
    length = config.get('max_seq_length')
    if length is not None and (isinstance(length, bool) or not isinstance(length, int) or length < 0):
        raise ValueError(f'{file} says max_seq_length={length!r}: expected a whole number of tokens')
    return length or 10**9, bool(config.get('do_lower_case'))


def _lower_case(path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Have a tokenizer do what sentence-transformers does before it."""
    if not tokenizer.is_fast:
        raise ValueError(f'{path} asks for do_lower_case, and its tokenizer has no fast form that could be told')
    from tokenizers import normalizers
    engine = tokenizer.backend_tokenizer
    engine.normalizer = normalizers.Sequence([normalizers.Lowercase(), *filter(None, [engine.normalizer])])


def _model(path: Path, trust_remote_code: bool) -> PreTrainedModel:
    files = sorted(file.name for file in path.iterdir()) if path.is_dir() else []
    if 'config.json' not in files:
        raise ValueError(f'{path} has no config.json: it is no model directory (there: {_some(files)})')
    config = read_json(path / 'config.json')
    if not any(file in files for file in ('model.safetensors', 'model.safetensors.index.json')):
        pickles = [file for file in files if file.endswith(('.bin', '.pt', '.ckpt', '.h5'))]
        raise ValueError(f'{path} has no model.safetensors' + (
            f', only {_some(pickles)}, which can run code when it is opened and is not read. Where you trust it: '
            f'AutoModel.from_pretrained(path).save_pretrained(path)' if pickles else f' (there: {_some(files)})'))
    if 'model_type' not in config and 'auto_map' not in config:
        raise ValueError(f'{path}/config.json has no model_type: it is no Hugging Face model')
    # a checkpoint may lack layers that are not used here (the pooler): they are drawn, and always the same
    with _quiet(), torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)   # those of GPUs are the user's
        try:
            config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
            model, report = AutoModel.from_pretrained(
                path, config=config, trust_remote_code=trust_remote_code, use_safetensors=True, dtype=torch.float32,
                output_loading_info=True)
        except Exception as error:
            raise ValueError(f'{path} cannot be loaded: {type(error).__name__}: {error}') from error
    if all(hasattr(model, part) for part in ('encoder', 'decoder')):   # T5's encoder alone says that it is none
        raise ValueError(f'{path} is an encoder-decoder, or the encoder of one ({model.config.model_type}): give an '
                         'encoder that was trained as one')
    missing = sorted(name for name in report['missing_keys'] if not name.startswith('pooler.'))
    if missing:
        raise ValueError(f'{path}: {len(missing)} tensors of {type(model).__name__} are not among its weights '
                         f'({_some(missing)}): weights and config.json do not belong together')
    used = 'linear.' if 'HF_ColBERT' in (model.config.architectures or []) else ()   # by who reads ColBERT's layout
    unused = sorted(name for name in report['unexpected_keys'] if not _HEADS.match(name) and not name.startswith(used))
    if unused:
        warn(f'{path}: {type(model).__name__} with this config.json does not use {len(unused)} of its tensors '
             f'({_some(unused)}): vectors are those of a model without them')
    return model


def _tokenizer(path: Path, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    files = {file.name for file in path.iterdir()}
    if not files & set(_TOKENIZER_FILES):
        raise ValueError(f'{path} has no tokenizer (none of {", ".join(_TOKENIZER_FILES)}): save the one of the model '
                         'into it')
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ValueError(f'the tokenizer in {path} cannot be loaded: {type(error).__name__}: {error}') from error


def _check_vocabulary(path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    rows, ids = model.get_input_embeddings().weight.shape[0], 1 + max(tokenizer.get_vocab().values())
    if rows < ids:
        raise ValueError(f'{path}: the tokenizer has {ids} ids, the table of embeddings {rows} rows: they do not '
                         'belong together; put the tokenizer that the model was trained with beside it')


def check_finite(what: str, model: torch.nn.Module) -> None:
    """Refuse weights that are NaN or infinite.

    Raises:
        ValueError: Some are; the message begins with `what`.
    """
    bad = [name for name, weights in model.named_parameters() if not torch.isfinite(weights).all()]
    if bad:
        raise ValueError(f'{what}: {len(bad)} of its tensors are NaN or infinite in places ({_some(bad)})')


def _some(names: list[str]) -> str:
    return ', '.join(names[:5]) + (', …' if len(names) > 5 else '') or 'nothing'


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and notes while weights are read."""
    logging = transformers.utils.logging
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def save(encoder: Encoder, path: str | os.PathLike, overwrite: bool = False,
         extra_files: dict[str, str] | None = None, settings: dict[str, Any] | None = None) -> Path:
    """Write an encoder's directory; it appears when it is whole.

    `Encoder.load`, `SentenceTransformer` and `pyterrier_dr.SBertBiEncoder` load it with equal vectors; so do
    `pyterrier_dr.TasB` and `HgfBiEncoder`, which know [CLS] and the dot product only, where the encoder is such a one.
    Others have one length for both sides, the larger one: a query longer than `query_max_length` is cut later there.

    Args:
        encoder: What to write.
        path: Where to; a link is followed.
        overwrite: Whether another model may be there, which is then replaced.
        extra_files: Text files to put beside it, by name.
        settings: Values to keep with it, over those that the encoder was loaded with.

    Raises:
        ValueError: `path` exists, and `overwrite` is False or it holds anything but a model; or a weight is NaN or
            infinite.
    """
    path = Path(path)
    if path.exists():
        if not overwrite:
            raise ValueError(f'{path} exists: pass overwrite=True to replace it, or give another path')
        check_replaceable(path)
    check_finite('the model is not saved', encoder.model)
    with atomic_dir(path, overwrite=overwrite) as part:
        with _quiet():
            encoder.model.save_pretrained(part)
        _portable_tokenizer(encoder).save_pretrained(part)
        _write_modules(encoder, part)
        write_json(part / 'tasb.json', {**encoder.settings, **(settings or {}),
                                        **{name: getattr(encoder, name) for name in _LENGTHS}})
        for name, text in (extra_files or {}).items():
            _inside(part, name).write_text(text, encoding='utf-8')
    return path


def check_replaceable(path: Path) -> None:
    """Refuse to replace a directory that holds anything but a model.

    Raises:
        ValueError: It does.
    """
    names = sorted(os.listdir(path)) if path.is_dir() else None
    if names is None or names and not {'config.json', 'modules.json'} & set(names):
        raise ValueError(f'{path} is no model directory and is not replaced: give another path')
    others = [name for name in names if not any(
        fnmatch(name, known) for known in (_MODEL_FOLDERS if (path / name).is_dir() else _MODEL_FILES))]
    if others:
        raise ValueError(f'{path} holds more than a model ({_some(others)}) and is not replaced: move that away, or '
                         'give another path')


def _portable_tokenizer(encoder: Encoder) -> PreTrainedTokenizerBase:
    """A copy that cuts texts where the encoder does: loaders that know no lengths of their own use its length."""
    tokenizer = copy.deepcopy(encoder.tokenizer)
    tokenizer.model_max_length = max(encoder.query_max_length, encoder.doc_max_length)
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def _write_modules(encoder: Encoder, path: Path) -> None:
    """What makes a Hugging Face directory one of sentence-transformers."""
    modules = [('', 'Transformer'), ('1_Pooling', 'Pooling')] + [('2_Normalize', 'Normalize')] * encoder.normalize
    write_json(path / 'modules.json', [
        {'idx': i, 'name': str(i), 'path': folder, 'type': f'sentence_transformers.models.{kind}'}
        for i, (folder, kind) in enumerate(modules)])
    for folder, _ in modules[1:]:
        (path / folder).mkdir()
    write_json(path / '1_Pooling' / 'config.json', {
        'word_embedding_dimension': encoder.dim,
        **{flag: mode == encoder.pooling for flag, mode in _POOLING_FLAGS.items()}, 'include_prompt': True})
    write_json(path / 'sentence_bert_config.json', {
        'max_seq_length': max(encoder.query_max_length, encoder.doc_max_length), 'do_lower_case': False})
    write_json(path / 'config_sentence_transformers.json', {
        'prompts': {}, 'default_prompt_name': None, 'similarity_fn_name': 'cosine' if encoder.normalize else 'dot'})
