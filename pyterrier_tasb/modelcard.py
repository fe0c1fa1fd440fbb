"""The README of a saved model: what it is, how it was trained, how to use it."""
from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .tasbalanced import TasBalanced

_SAMPLED = {'tas-balanced': 'trained with TAS-Balanced sampling', 'tas': 'trained with topic-aware sampling (TAS)',
            'random': 'trained on random batches'}
_HEADER = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags:
- pyterrier
- dense-retrieval
- tas-balanced
- sentence-transformers
---
"""


def model_card(tasb: TasBalanced) -> str:
    """Markdown with data, hyper-parameters, measures and the code to use the model.

    Args:
        tasb: The encoder, trained or not.
    """
    sections = [_HEADER + f'# {_place(tasb.model_name)}', _what(tasb), _use(tasb)]
    if tasb.record:
        sections += [_data(tasb.record), _hyper_parameters(tasb.record), _measures(tasb.record)]
    sections.append('## Reference\n\nHofstätter, Lin, Yang, Lin, Hanbury: Efficiently Teaching an Effective Dense '
                    'Retriever with Balanced Topic Aware Sampling. SIGIR 2021. https://arxiv.org/abs/2104.06967')
    return '\n\n'.join(sections) + '\n'


def _what(tasb: TasBalanced) -> str:
    score = 'cosine' if tasb.encoder.normalize else 'dot product'
    trained = _SAMPLED[tasb.record['training']['sampling']] if tasb.record else 'not trained further'
    return (f'A dense retriever, {trained}: {tasb.encoder.pooling} pooling, {tasb.encoder.dim} dimensions, {score}; '
            f'queries of up to {tasb.query_max_length} tokens, passages of up to {tasb.doc_max_length}.')


def _use(tasb: TasBalanced) -> str:
    others = ['SentenceTransformer(path)', 'pyterrier_dr.SBertBiEncoder(path)']
    if tasb.encoder.pooling == 'cls' and not tasb.encoder.normalize:
        others += ['pyterrier_dr.TasB(path)', 'pyterrier_dr.HgfBiEncoder.from_pretrained(path)']
    return ('## Use\n\n```python\nfrom pyterrier_tasb import TasBalanced\n\n'
            'tasb = TasBalanced(path)\nindex = tasb.index(dataset.get_corpus_iter(), "corpus.flex")\n'
            'dense = tasb.retriever(index, text=dataset)\ndense.search("my query")\n```\n\n'
            f'Equal vectors come from {", ".join(f"`{other}`" for other in others)}, but of queries longer than '
            f'{tasb.query_max_length} tokens, of which they read up to {max(tasb.max_length)}.')


def _table(rows: dict[str, object]) -> str:
    return '| | |\n|---|---|\n' + '\n'.join(f'| {name} | {_cell(value)} |' for name, value in rows.items())


def _cell(value: object) -> str:
    """Plain text for Markdown, in which a `repr` may have what it likes."""
    text = re.sub(r'([\'"])(/[^\'"]*)\1', lambda found: f'{found[1]}{_place(found[2])}{found[1]}', str(value))
    return ' '.join(re.sub(r'([|<>])', r'\\\1', text).split())


def _data(record: dict) -> str:
    dropped = record.get('dropped', 'not counted') or 'nothing'
    if isinstance(dropped, dict):
        dropped = '; '.join(f'{n:,} {what}' for what, n in dropped.items())
    rows = {'base model': _place(record['base_model']),
            **{name: _short(value) for name, value in record['pairs'].items()},
            'query clusters': record['clusters'], 'dropped': dropped,
            'candidates': record.get('candidates', 'not said'), 'pairwise teacher': record.get('pairwise_teacher'),
            'in-batch teacher': record.get('in_batch_teacher')}
    return '## Training data\n\n' + _table(rows)


def _place(name: str) -> str:
    """A model's name, of a directory its last two parts: where it lies on this machine is nobody else's."""
    return '/'.join(Path(name).parts[-2:]) if Path(name).is_absolute() else name


def _short(value: object) -> object:
    return f'{value:.4g}' if isinstance(value, float) else value


def _hyper_parameters(record: dict) -> str:
    calibration = record['calibration']
    return '## Hyper-parameters\n\n' + _table({
        **record['training'], 'factor on the pairwise teacher': calibration['pairwise_factor'],
        'factor on the in-batch teacher': calibration['in_batch_factor']})


def _measures(record: dict) -> str:
    import ir_measures
    measure = str(ir_measures.parse_measure(record['training']['measure']))   # the name that the history has
    values = {0: record['untrained_value']} if 'untrained_value' in record else {}
    values |= {entry['step']: entry[measure] for entry in record['history'] if measure in entry}
    rows = {'steps': record['steps'], 'seconds': record['seconds'],
            **{f'validation {measure}, step {step}': f'{value:.4f}' for step, value in values.items()},
            'weights kept from step': record['best_step'] or record['steps'],
            'hardware': record['hardware'], 'versions': record['versions']}
    return '## Training run\n\n' + _table(rows)
