"""The steps of `TasBalanced.fit`: each builds one product in the work directory, or finds it there."""
from __future__ import annotations

import itertools
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyterrier as pt
import torch
from more_itertools import spy
from transformers import TrainerCallback

from . import checks
from ._files import claim, fingerprint, read_json, write_json
from ._locks import rank, world_size
from ._progress import say
from ._warn import warn
from .encoding import TokenRows, TokenStore
from .encoding.encoder import weights_fingerprint
from .machine import hardware, versions
from .pairs import ScoredPairs
from .pairs.docpairs import rows_of
from .pairs.examples import (
    CandidateSource,
    Examples,
    doc_store,
    frame_fingerprint,
    prepare,
    query_store,
)
from .pairs.pipeline import remove_chunks
from .sampling import BatchPlan, QueryClusters, default_k
from .teachers import CachedScorer, WeightedSum, bind_in_batch_teacher, in_batch_teacher_of
from .teachers.same import check_batch, check_pairs
from .text_loading import TextLoader, text_loader
from .texts import TextRows, TextStore
from .training.batches import JudgedPositives, TrainingBatches
from .training.calibration import Calibration, calibrate, student_scores, transform_of
from .training.checkpoints import Run, found_in
from .training.fallbacks import Fallbacks
from .training.step import StepLoss
from .training.trainer import train
from .training.validation import RerankingPool

if TYPE_CHECKING:
    from .tasbalanced import TasBalanced


_LOOKED_AT = 1000   # docpairs that are compared with those of an earlier call


class Fit:
    """One call of `fit`: the student, what it was given, and the work directory.

    Args:
        student: Who learns.
        folder: The work directory.
        resume: Whether products and checkpoints of an earlier call may be there.
        kept: Whether the work directory is there after the call, for messages.
        processes: Of the run; None takes those that are there.
    """

    def __init__(self, student: TasBalanced, folder: Path, *, resume: bool, kept: bool = True,
                 processes: int | None = None) -> None:
        self.student, self.folder, self.resume = student, folder, resume
        self.processes = world_size() if processes is None else processes
        self.training = student.training
        self._given_clusters = _opened(student.clusters) if self.training.sampling != 'random' else None
        self.validation: str | None = None   # a fingerprint of the validation data
        self.pool: RerankingPool | None = None   # what validation re-ranks
        self.given_pairs = False   # with margins
        self.claimed = False   # the work directory, as this run's
        self.fallbacks = Fallbacks(folder / 'fallbacks.json', going_on=bool(found_in(folder / 'checkpoints')))
        self.loss = StepLoss(student.encoder, self.training, self.fallbacks, repr(student))
        self.kept, self.weights_before = kept, weights_fingerprint(student.encoder)
        self.run = Run.of(student._run if resume else None, folder, student.model_name, self.weights_before)
        self.base_name, self.base_weights = self.run.name, self.run.weights
        self.report: dict[str, Any] = {
            'base_model': self.base_name, 'training': self.training.to_dict(),
            'in_batch_teacher': checks.name_of(student.in_batch_teacher if self._in_batch_teacher_asked else None)}
        self.started = time.perf_counter()

    def check(self) -> None:
        """See what is wrong with student and teachers before any of them scores anything.

        Raises:
            ValueError: All weights are frozen, no loss has a teacher, or a teacher, miner or encoder is none.
        """
        student, training = self.student, self.training
        student.encoder.check_precision()
        if not any(weights.requires_grad for weights in student.encoder.parameters()):
            raise ValueError(f'all weights of {student!r} are frozen (requires_grad=False): nothing can be learnt')
        if not self._in_batch_teacher_asked and not training.pairwise_weight:
            raise ValueError(f'nothing would be learnt: Training(pairwise_weight=0, in_batch_weight='
                             f'{training.in_batch_weight:g}) with in_batch_teacher={student.in_batch_teacher!r}: give '
                             'in_batch_teacher=, or a pairwise_weight above 0')
        checks.check_miner(student.negatives)
        if student.cluster_encoder is not None and not hasattr(student.cluster_encoder, 'encode_queries'):
            raise ValueError(f'cluster_encoder={student.cluster_encoder!r} cannot encode queries: give an encoder, '
                             'TasBalanced(…) for example')
        if not isinstance(student.pairwise_teacher, (pt.Transformer, type(None))):
            raise ValueError(f'pairwise_teacher={student.pairwise_teacher!r} cannot teach: give a transformer that '
                             'scores (query, text), or None for the scores that arrive')
        if isinstance(student.pairwise_teacher, WeightedSum):
            student.pairwise_teacher.check_scores()
        if self._in_batch_teacher_asked:
            # loaded again when it teaches: memory is others' till then
            in_batch_teacher_of(student.in_batch_teacher, student.text_field)

    @property
    def _in_batch_teacher_asked(self) -> bool:
        return self.student.in_batch_teacher is not None and self.training.in_batch_weight > 0

    # ---- what to learn from ------------------------------------------------------------------------------------

    def examples(self, topics_or_res: pd.DataFrame | None, qrels: pd.DataFrame | None,
                 pairs: ScoredPairs | Iterable | None) -> Examples:
        """Scored pairs and their texts."""
        self.given_pairs = isinstance(pairs, ScoredPairs)
        self.report['pairwise_teacher'] = self._teacher_name()
        if pairs is not None:
            return self._given_pairs(topics_or_res, qrels, pairs)
        student, training = self.student, self.training
        if self._scores_needed and student.pairwise_teacher is None:
            checks.warn_of_untaught(student)
        found = (self.folder / 'pairs').exists()   # whole, by an earlier call
        examples = prepare(topics_or_res, qrels, self.folder, negatives=student.negatives, corpus=student.corpus,
                           teacher=self._pairwise_teacher(), text_field=student.text_field,
                           scores_needed=self._scores_needed,
                           max_pairs_per_query=training.max_pairs_per_query, seed=training.seed, context=student,
                           claim=self._claim, check_queries=self._check_queries)
        self.report['dropped'] = examples.dropped
        given = 'docno' in topics_or_res.columns
        self.report['candidates'] = 'those given' if given else checks.name_of(student.negatives)
        if found:
            self._check_teacher(examples)
        self._check_usable(examples.pairs)
        return examples

    def _check_teacher(self, examples: Examples) -> None:
        """That it is the one who gave the margins of an earlier call."""
        teacher = self.student.pairwise_teacher
        if self._scores_needed and teacher is not None:
            check_pairs(examples, teacher, self.folder, self._teacher_name(), self.student.text_field)

    def _teacher_name(self) -> str:
        if not self._scores_needed:
            return 'none'
        if self.given_pairs:
            return "the pairs' margins"
        teacher = self.student.pairwise_teacher
        return 'the scores given' if teacher is None else checks.name_of(teacher)

    def _pairwise_teacher(self) -> pt.Transformer | None:
        """The pairwise teacher behind a cache; None where scores arrive with the candidates, or none is read."""
        teacher = self.student.pairwise_teacher if self._scores_needed else None
        if teacher is None:
            return None
        return CachedScorer(teacher, self.folder / f'teacher-scores-{fingerprint(checks.name_of(teacher))[:8]}')

    @property
    def _n_batches(self) -> int:
        """Batches that the run draws, on all processes together."""
        return self.training.steps * self._batches_a_step

    @property
    def _batches_a_step(self) -> int:
        return self.training.accumulation * self.processes

    @property
    def _scores_needed(self) -> bool:
        """Whether a loss reads the pairs' margins, or the sampling balances by them."""
        training = self.training
        return training.sampling == 'tas-balanced' or (training.pairwise_loss != 'ranknet'
                                                       and training.pairwise_weight > 0)

    def _given_pairs(self, topics: pd.DataFrame | None, qrels: pd.DataFrame | None,
                     pairs: ScoredPairs | Iterable) -> Examples:
        student = self.student
        positives, of_qrels = None, {}   # what else is relevant, for the in-batch bonus
        if qrels is not None:
            qrels = checks.check_qrels(qrels, 'training', student)
            positives = qrels[qrels['label'] > 0][['qid', 'docno']]
            of_qrels = {'qrels': frame_fingerprint(qrels, ('qid', 'docno', 'label'))}
        if self.given_pairs and student.pairwise_teacher is not None:
            warn(f'pairwise_teacher={student.pairwise_teacher!r} is not asked: the pairs have margins')
        if self.given_pairs and pairs.queries is not None:   # made from a text form: texts are with them
            self._claim({'pairs': pairs.fingerprint, **of_qrels})
            self._check_usable(pairs)
            return Examples(pairs, pairs.queries, pairs.docs, positives=positives)
        if topics is None:
            raise ValueError('pairs= needs the queries\' texts: fit(topics, pairs=…), topics with qid and query')
        topics, results = checks.check_topics_or_results(topics, 'training', student.text_field, context=student)
        if student.corpus is None and results is None:
            raise ValueError('pairs= needs the passages\' texts: construct with corpus= (something with a text loader)')
        self._claim({'topics': frame_fingerprint(topics, ('qid', 'query')), **of_qrels,
                     'pairs': getattr(pairs, 'fingerprint', 'docpairs'), 'pairwise_teacher': self._teacher_name()})
        found = (self.folder / 'pairs').exists()
        if not self.given_pairs:
            pairs = self._docpairs(topics, pairs)
        self._check_usable(pairs)
        examples = Examples(pairs, query_store(pairs, topics, self.folder / 'queries'),
                            doc_store(pairs, results, student.corpus, self.folder / 'docs', student.text_field),
                            positives=positives)
        if found and not self.given_pairs:
            self._check_teacher(examples)
        return examples

    def _docpairs(self, topics: pd.DataFrame, docpairs: Iterable) -> ScoredPairs:
        path, teacher = self.folder / 'pairs', self._pairwise_teacher()
        some, docpairs = spy(docpairs, _LOOKED_AT)
        claim(self.folder, 'pairs', {f'first {_LOOKED_AT} docpairs': fingerprint(rows_of(some))}, 'docpairs.json')
        counts = self.folder / 'dropped.json'
        if path.exists():
            if rank() == 0:
                remove_chunks(path)
            self.report['dropped'] = read_json(counts) if counts.exists() else {}
            return ScoredPairs(path)
        if teacher is not None:
            if self.student.corpus is None:
                raise ValueError('docpairs with a pairwise_teacher need corpus= for the passages it reads')
            teacher = pt.apply.generic(lambda rows: rows.assign(query=_query_of(topics, rows['qid'])),
                                       required_columns=['qid']) \
                >> text_loader(self.student.corpus, self.student.text_field) >> teacher
        n = itertools.count()
        pairs = ScoredPairs.from_docpairs((pair for pair, _ in zip(docpairs, n)), path, teacher=teacher)
        lost = next(n) - len(pairs)
        self.report['dropped'] = {'docpairs that the pairwise teacher did not score': lost} if lost else {}
        write_json(counts, self.report['dropped'])
        return pairs

    def _check_queries(self, qids: pd.Series) -> None:
        """See before anything is mined or scored that there are enough, and that given clusters know some."""
        self._check_number(len(qids), 'a positive in the qrels')
        if self._given_clusters is not None:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')   # which of them are known is said of those that are left
                self._clusters_of(list(qids))

    def _check_number(self, queries: int, what: str) -> None:
        if queries < self.training.batch_size:
            raise ValueError(f'{queries} queries have {what}, fewer than a batch of {self.training.batch_size}: give '
                             'more queries, or Training(batch_size=…)')
        if self.training.clusters is not None and self.training.clusters > queries:
            raise ValueError(f'Training(clusters={self.training.clusters}) asks for more clusters than there are '
                             f'queries with {what} ({queries})')

    def _check_usable(self, pairs: ScoredPairs) -> None:
        self._check_number(pairs.n_queries, 'training pairs')
        if self._scores_needed and not np.any(pairs.margin):
            raise ValueError(f'all {len(pairs):,} margins are 0, there is nothing to imitate and to balance: give '
                             "pairwise_teacher=, or train without a teacher, Training(pairwise_loss='ranknet', "
                             "sampling='tas')")

    def take_validation(self, topics_or_res: pd.DataFrame | None, qrels: pd.DataFrame | None) -> None:
        """Make the pool that validation re-ranks, if there is to be any."""
        student = self.student
        if (topics_or_res is None) != (qrels is None):
            raise ValueError('validation needs both topics_or_res_va and qrels_va, or neither; only '
                             f'{"qrels_va" if topics_or_res is None else "topics_or_res_va"} was given')
        if topics_or_res is None:
            return
        qrels = checks.check_qrels(qrels, 'validation', student)
        topics, results = checks.check_topics_or_results(topics_or_res, 'validation', student.text_field,
                                                         context=student)
        checks.check_overlap(topics, qrels, 'validation')
        if results is None and student.negatives is None:
            raise ValueError('validation was given topics without candidates: construct with negatives= (a pipeline), '
                             'or validate on results')
        source = CandidateSource(qrels, results=results, negatives=student.negatives, corpus=student.corpus,
                                 text_field=student.text_field, scores_needed=False)
        candidates = source.with_relevant(topics) if results is None else results
        corpus = None if student.corpus is None else text_loader(student.corpus, student.text_field)
        texts = corpus.texts if isinstance(corpus, TextLoader) else None
        candidates = source.usable(candidates, texts)
        checks.check_relevant(candidates, qrels)
        self.validation = fingerprint(
            frame_fingerprint(candidates, ('qid', 'query', 'docno', student.text_field)),
            frame_fingerprint(qrels, ('qid', 'docno', 'label')), None if texts is None else texts.fingerprint)
        self.pool = RerankingPool(candidates, qrels, self.training.measure, student.text_field, corpus=texts,
                                  folder=self.folder / f'validation-{self.validation}')

    def _validate_untrained(self) -> None:
        """Measure the student before it learns, and before hours of mining: a measure that fails shows here."""
        if self.pool is None:
            return
        path = self.pool.folder / f'untrained-{self.base_weights[:8]}.json'
        if not path.exists():   # kept, because the student of a resumed call is no longer untrained
            self.student.encoder.eval()
            with torch.no_grad():
                write_json(path, self.pool(self.student.encoder))
        self.report['untrained_value'] = read_json(path, needs=[self.training.measure])[self.training.measure]

    # ---- what goes in a batch ----------------------------------------------------------------------------------

    def clusters(self, examples: Examples) -> QueryClusters | None:
        """Topics of the training queries; None for random batches."""
        if self.training.sampling == 'random':
            return None
        path = self.folder / 'clusters'
        if self._given_clusters is not None:
            return self._clusters_of(examples.pairs.qids)
        if not path.exists():
            training = self.training
            k = training.clusters or default_k(examples.pairs.n_queries, self._n_batches * training.clusters_per_batch)
            with self._query_vectors(examples) as vectors:
                QueryClusters.fit(vectors, k, qids=examples.pairs.qids, spherical=training.spherical,
                                  seed=training.seed).save(path)
        return QueryClusters(path)

    def _clusters_of(self, qids: Sequence[str]) -> QueryClusters:
        given = self._given_clusters
        return given.of_queries(qids) if isinstance(given, QueryClusters) else QueryClusters.read_text(given, qids)

    @contextmanager
    def _query_vectors(self, examples: Examples) -> Iterator[np.ndarray]:
        """float32[Q, D], on disk for as long as they are needed: 800,000 of 768 dimensions take 2.5 GB."""
        encoder = self.student.cluster_encoder
        if encoder is not None:
            yield encoder.encode_queries(examples.queries.take(np.arange(len(examples.queries))))
            return
        with tempfile.TemporaryFile(dir=self.folder) as file:
            shape = len(examples.queries), self.student.encoder.dim
            if hasattr(os, 'posix_fallocate'):
                os.posix_fallocate(file.fileno(), 0, 4 * shape[0] * shape[1])   # a full disk shows here
            out = np.memmap(file, dtype=np.float32, mode='w+', shape=shape)
            yield self.student.encoder.encode(self._tokens(examples.queries, 'query'), out=out)

    def _tokens(self, texts: TextStore | TextRows, side: str) -> TokenStore | TokenRows:
        encoder = self.student.encoder
        return TokenStore.of(texts, encoder.tokenizer, encoder.max_length(side), elsewhere=self.folder)

    # ---- whom to imitate ---------------------------------------------------------------------------------------

    def plan(self, examples: Examples, clusters: QueryClusters | None) -> BatchPlan:
        """Which pairs each step takes."""
        training = self.training
        return BatchPlan(examples.pairs, clusters, sampling=training.sampling, batch_size=training.batch_size,
                         clusters_per_batch=training.clusters_per_batch, n_bins=training.n_bins,
                         size_power=training.size_power, seed=training.seed)

    def batches(self, examples: Examples, clusters: QueryClusters | None) -> TrainingBatches:
        """The plan's batches with both teachers' scores, on the student's scale."""
        training, pairs, plan = self.training, examples.pairs, self.plan(examples, clusters)
        claim(self.folder, 'training', {
            'plan': plan.fingerprint, 'queries': examples.queries.fingerprint, 'docs': examples.docs.fingerprint,
            'validation': self.validation, 'in_batch_teacher': self.report['in_batch_teacher'],
            'batches a step': self._batches_a_step}, 'training.json')
        teacher = None
        if self._in_batch_teacher_asked:
            teacher = bind_in_batch_teacher(self.student.in_batch_teacher, examples.queries, examples.docs,
                                            self.folder / 'teacher-vectors', plan, self._n_batches,
                                            self.student.text_field)
        batches = TrainingBatches(plan, self._tokens(examples.queries, 'query'), self._tokens(examples.docs, 'doc'),
                                  pairs.qids, teacher=teacher)
        if teacher is not None:
            check_batch(batches[0].in_batch, self.folder / 'in-batch-teacher.json', self.report['in_batch_teacher'])
        if training.positive_bonus:
            judged = examples.judged()
            if judged is not None and not len(judged[0]):
                raise ValueError('nothing that the qrels judge relevant is among the pairs: qids and docnos are '
                                 f'{checks.first(examples.positives["qid"])} and '
                                 f'{checks.first(examples.positives["docno"])} in the qrels, '
                                 f'{checks.first(pairs.qids[:5])} and {checks.first(pairs.docnos[:5])} in the pairs')
            batches.judged = JudgedPositives(pairs.indptr, pairs.pos, len(pairs.docnos), judged)
        batches.transform = transform_of(self._calibration(batches), training.positive_bonus)
        self.report |= {'pairs': pairs.describe(), 'plan': plan.fingerprint,
                        'clusters': None if clusters is None else clusters.n_clusters}
        return batches

    def _calibration(self, batches: TrainingBatches) -> Any:
        path = self.folder / 'calibration.json'   # kept, because the student of a resumed call is no longer untrained
        if not path.exists():
            self.student.encoder.eval()
            untrained = student_scores(lambda batch: self.loss.vectors(self.student.encoder, batch))
            write_json(path, calibrate(batches, untrained, n_batches=min(8, self._n_batches),
                                       factor=self.training.teacher_scale).to_dict())
        calibration = Calibration.from_dict(read_json(path, needs=[field.name for field in fields(Calibration)]))
        self.report['calibration'] = calibration.to_dict()
        if self._scores_needed:
            say(f'{self.student!r}: {calibration}')
        return calibration

    # ---- how weights move --------------------------------------------------------------------------------------

    def train(self, batches: TrainingBatches) -> dict[str, Any]:
        """Train the student in place; returns the record."""
        encoder, checkpoints = self.student.encoder, self.folder / 'checkpoints'
        self.student._run = replace(self.run, ended_with=None)
        if self.fallbacks.describe():
            say(f'{self.student!r}: as in the call that this one goes on with, {self.fallbacks.describe()} '
                f'({self.fallbacks.file})')
        try:
            record = train(encoder, batches, self.loss, self.training, output_dir=checkpoints, device=encoder.device,
                           validate=None if self.pool is None else lambda: self.pool(encoder), resume=self.resume,
                           desc='TAS-Balanced', save_memory=self.loss.save_memory, amp=encoder.amp, kept=self.kept,
                           extra_callbacks=(_AtCheckpoints(self.count_seconds),))
        finally:
            self.loss.close()
        self.student._run = replace(self.run, ended_with=weights_fingerprint(encoder))
        untrained = self.report.get('untrained_value')
        if untrained is not None and record.best_value < untrained:
            warn(f'{self.training.measure} of the validation queries was {untrained:.4f} before training and '
                 f'{record.best_value:.4f} at best since: lower the learning rate, or look at the teacher')
        return {**self.report, **record.to_dict(), 'seconds': self.count_seconds(), 'hardware': hardware(),
                'versions': versions()}

    @contextmanager
    def timed(self) -> Iterator[None]:
        """What is interrupted or fails has taken its time as well; what is refused has not."""
        try:
            yield
        except BaseException as error:
            if self.claimed and not isinstance(error, ValueError):
                with suppress(OSError):
                    self.count_seconds()
            raise

    def count_seconds(self) -> float:
        """Seconds of this call and of those that it goes on with; kept in the work directory, at every checkpoint."""
        path = self.folder / 'seconds.json'
        before = read_json(path, needs=['seconds'])['seconds'] if path.exists() else 0.0
        now, self.started = time.perf_counter() - self.started, time.perf_counter()
        if rank() == 0:
            write_json(path, {'seconds': round(before + now, 1)})
        return round(before + now, 1)

    # ---- identity and work directory ---------------------------------------------------------------------------

    def identity(self) -> str:
        """A name that no other weights have: equality, caches and experiment plans depend on it."""
        weights = weights_fingerprint(self.student.encoder)
        if weights == self.weights_before:
            return self.student.model_name
        return f'{self.base_name.partition("#")[0]}#tasb-{weights[:8]}'

    def _claim(self, data: dict[str, Any]) -> None:
        """Mark the work directory as this run's, or refuse another's; what was given has been checked before."""
        student = self.student
        # not its name: a model directory may be named in several ways, and may have moved
        ours = {**data, 'weights': self.base_weights, 'tokenizer': student.encoder.tokenizer_fingerprint,
                'pooling': student.encoder.pooling, 'normalize': student.encoder.normalize,
                'amp': student.amp, 'lengths': list(student.max_length),
                **self.training.deciding()}
        if self.training.sampling != 'random' and self._given_clusters is None:
            other = student.cluster_encoder if student.cluster_encoder is not student else None
            ours['cluster_encoder'] = checks.name_of(other)
            if self.training.clusters is None:
                ours['batches a step'] = self._batches_a_step   # which the number of clusters depends on
        claim(self.folder, 'work', ours)
        self.claimed = True
        self._validate_untrained()


class _AtCheckpoints(TrainerCallback):
    """Calls a function whenever one is written."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function

    def on_save(self, args, state, control, **kwargs) -> None:  # noqa: ANN001
        self.function()


def _opened(clusters: QueryClusters | str | os.PathLike | None) -> QueryClusters | Path | None:
    """What `clusters=` names: clusters with ids, or a file that has them.

    Raises:
        ValueError: There is none, or it does not say whose clusters they are.
    """
    if isinstance(clusters, (str, os.PathLike)):
        path = Path(clusters)
        if not path.exists():
            raise ValueError(f'clusters={str(clusters)!r} is not there: give a cluster file in the published text '
                             'format, or what QueryClusters.save() wrote')
        clusters = QueryClusters(path) if path.is_dir() else path
    if isinstance(clusters, QueryClusters):
        clusters.check_named()
    if not isinstance(clusters, (QueryClusters, Path, type(None))):
        raise ValueError(f'clusters={clusters!r}: give QueryClusters, or the path of a cluster file')
    return clusters


def _query_of(topics: pd.DataFrame, qids: pd.Series) -> pd.Series:
    """The text of each query.

    Raises:
        ValueError: One is not in `topics`.
    """
    queries = qids.map(topics.set_index('qid')['query'])
    if queries.isna().any():
        lost = qids[queries.isna()]
        raise ValueError(f'{lost.nunique()} queries of the docpairs have no text in the topics (qids '
                         f'{checks.first(lost)}): pass a topics frame (qid, query) that has them')
    return queries
