"""How a late-interaction teacher learns from labels."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ir_measures
import numpy as np
import pandas as pd
import pyterrier as pt
import torch
import torch.nn.functional as F  # noqa: N812

from .._files import claim, fingerprint
from .._locks import world_size
from ..checks import check_miner, check_overlap, check_qrels, check_relevant, check_topics_or_results, first, is_blank
from ..encoding.precision import check_trains
from ..encoding.transfer import moved
from ..pairs.examples import CandidateSource, Examples, frame_fingerprint, prepare
from ..sampling import BatchPlan
from ..training.batches import JudgedPositives, TrainingBatch, TrainingBatches
from ..training.checkpoints import Run
from ..training.state import main_process_first
from ..training.trainer import train
from .maxsim import maxsim

if TYPE_CHECKING:
    from .late_interaction import LateInteraction


def fit_on_labels(teacher: LateInteraction, topics_or_res: pd.DataFrame, qrels: pd.DataFrame,
                  validation: pd.DataFrame | None, validation_qrels: pd.DataFrame | None,
                  negatives: pt.Transformer | None, corpus: Any, folder: Path,
                  resume: bool, kept: bool) -> dict[str, Any]:
    """Train `teacher` in place; returns the record."""
    check_trains(teacher.amp, teacher.device)
    teacher.module.encoder.check_precision()
    check_miner(negatives)
    training = teacher.training.replace(sampling='random', pairwise_loss='ranknet')
    run = Run.of(teacher._run if resume else None, folder, teacher.model_name, teacher.weights_fingerprint)
    weights = run.weights
    lengths = [teacher.query_max_length, teacher.mask_tokens, teacher.doc_max_length, *teacher._marks()]
    with main_process_first(teacher.device):
        validate, of_validation = _validation(teacher, validation, validation_qrels, negatives, corpus)
        examples = prepare(topics_or_res, qrels, folder, negatives=negatives, corpus=corpus,
                           text_field=teacher.text_field, scores_needed=False,
                           max_pairs_per_query=training.max_pairs_per_query, seed=training.seed, context=teacher,
                           claim=lambda data: claim(folder, 'work', {
                               **data, 'validation': of_validation, 'weights': weights, 'lengths': lengths,
                               'normalize': teacher.normalize, 'scale': teacher.scale,
                               'tokenizer': teacher.module.encoder.tokenizer_fingerprint, 'amp': teacher.amp,
                               'batches a step': training.accumulation * world_size(), **training.deciding()}))
        batches = LabelledBatches(teacher, examples, BatchPlan(
            examples.pairs, sampling='random', batch_size=training.batch_size, seed=training.seed), folder)
    teacher._run = replace(run, ended_with=None)
    try:
        record = train(teacher.module, batches, lambda module, batch: in_batch_loss(module, batch, teacher.scale),
                       training, output_dir=folder / 'checkpoints', device=teacher.device, validate=validate,
                       resume=resume, desc='LateInteraction', amp=teacher.amp, kept=kept)
    finally:
        teacher.weights_changed()
    teacher._run = replace(run, ended_with=teacher.weights_fingerprint)
    return {'training': training.to_dict(), 'pairs': examples.pairs.describe(), 'dropped': examples.dropped,
            **record.to_dict()}


@dataclass(frozen=True)
class LabelledBatch:
    """A batch, and which passages are positives of which queries.

    Args:
        batch: Tokens and rows.
        positive: bool[B, 2B], judged positives among [P⁺ | P⁻], each query's own included.
        n_queries: B.
    """
    batch: TrainingBatch
    positive: torch.Tensor
    n_queries: int

    def describe(self) -> str:
        """The first queries, for messages."""
        return self.batch.describe()


class LabelledBatches:
    """`batches[step]` with its judged positives."""

    def __init__(self, teacher: LateInteraction, examples: Examples, plan: BatchPlan, folder: Path) -> None:
        pairs = examples.pairs
        self.plan = plan
        self.judged = JudgedPositives(pairs.indptr, pairs.pos, len(pairs.docnos), examples.judged())
        self.batches = TrainingBatches(plan, teacher.tokens_of(examples.queries, 'query', folder),
                                       teacher.tokens_of(examples.docs, 'doc', folder), pairs.qids)

    def __getitem__(self, step: int) -> LabelledBatch:
        drawn, batch = self.plan[step], self.batches[step]
        docs = np.concatenate([drawn.pos, drawn.neg])
        return LabelledBatch(batch, torch.from_numpy(self.judged(drawn.query, docs)), len(drawn.query))


def in_batch_loss(module: torch.nn.Module, labelled: LabelledBatch,
                  scale: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Softmax cross entropy of each query's own positive against [P⁺ | P⁻], its other positives left out."""
    batch, size = labelled.batch, labelled.n_queries
    states, lengths = module(batch.tokens, size)
    lengths = torch.from_numpy(lengths)
    split = int(lengths[:size].sum())
    scores = scale * maxsim(states[:split], lengths[:size], states[split:], lengths[size:])
    scores = scores[:, moved(torch.cat([batch.pos, batch.neg]), scores.device) - size]
    own = torch.eye(size, 2 * size, dtype=torch.bool, device=scores.device)
    scores = scores.masked_fill(moved(labelled.positive, scores.device) & ~own, float('-inf'))
    loss = F.cross_entropy(scores, torch.arange(size, device=scores.device))
    return loss, {'accuracy': (scores.argmax(1) == torch.arange(size, device=scores.device)).float().mean()}


def _validation(teacher: LateInteraction, topics_or_res: pd.DataFrame | None, qrels: pd.DataFrame | None,
                negatives: pt.Transformer | None, corpus: Any,
                ) -> tuple[Callable[[], dict[str, float]] | None, str | None]:
    """What validates, and a fingerprint of its data."""
    if (topics_or_res is None) != (qrels is None):
        raise ValueError('validation needs both results and qrels, or neither')
    if topics_or_res is None:
        return None, None
    qrels = check_qrels(qrels, 'validation', teacher)
    topics, results = check_topics_or_results(topics_or_res, 'validation', teacher.text_field, context=teacher)
    check_overlap(topics, qrels, 'validation')
    if results is None:
        if negatives is None:
            raise ValueError('validation was given topics without candidates: give results with text, or negatives= '
                             'and corpus=')
        source = CandidateSource(qrels, negatives=negatives, corpus=corpus, text_field=teacher.text_field,
                                 scores_needed=False)
        results = source.usable(source.with_relevant(topics), None)
    pt.validate.result_frame(results, extra_columns=['query', teacher.text_field], context=teacher)
    blank = is_blank(results[teacher.text_field])
    if blank.any():
        raise ValueError(f'{int(blank.sum())} of {len(results)} validation results have no text (docnos '
                         f'{first(results.loc[blank, "docno"])}): load it, or drop them')
    check_relevant(results, qrels)
    qrels = qrels[qrels['qid'].isin(set(results['qid']))]   # what is not validated counts for nothing
    parsed = ir_measures.parse_measure(teacher.training.measure)

    def validate() -> dict[str, float]:
        teacher.weights_changed()   # vectors of earlier weights are worth nothing
        return pt.Evaluate(teacher(results), qrels, metrics=[parsed])
    return validate, fingerprint(frame_fingerprint(results, ('qid', 'query', 'docno', teacher.text_field)),
                                 frame_fingerprint(qrels, ('qid', 'docno', 'label')))
