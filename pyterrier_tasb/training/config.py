"""Every hyper-parameter of a training run, with its default and its source."""
from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import numpy as np

_CHOICES = {
    'sampling': ('tas-balanced', 'tas', 'random'),
    'pairwise_loss': ('margin-mse', 'ranknet'),
    'in_batch_loss': ('margin-mse', 'kl', 'listnet', 'lambda'),
    'schedule': ('linear', 'cosine', 'constant'),
}
_AT_LEAST_ONE = ('steps', 'batch_size', 'accumulation', 'clusters_per_batch', 'n_bins', 'max_pairs_per_query',
                 'log_every', 'clusters', 'eval_every', 'save_every', 'patience', 'micro_batch_tokens')
_POSITIVE = ('learning_rate', 'scale')
_NOT_NEGATIVE = ('weight_decay', 'max_grad_norm', 'pairwise_weight', 'in_batch_weight', 'size_power',
                 'positive_bonus', 'seed', 'patience_from')
_BESIDE = ('report_to', 'log_every', 'save_every', 'accumulation')


@dataclass(frozen=True)
class Training:
    """The hyper-parameters of one training run (Hofstätter et al., SIGIR 2021, section 4).

    An instance never changes; use :meth:`replace` for a variant. `Training.faithful()` has the paper's values, but for
    spherical k-means and `patience_from`, which are the reference code's.

    Args:
        steps: Optimiser steps.
        batch_size: B, queries in a batch; each brings one positive and one negative passage. The paper has 32, 96, 256.
        learning_rate: Peak learning rate of AdamW. The paper's 7e-6 suits hundreds of thousands of steps.
        schedule: What follows the warm-up: 'linear' or 'cosine' decay to zero, or 'constant'.
        warmup: Share of the steps over which the rate rises; it is above zero from the first step.
        weight_decay: AdamW's decoupled decay, of all but biases and the weights of layer norms, as Hugging Face has it;
            0 is Adam, as in the paper.
        max_grad_norm: Gradients are clipped to this norm; 0 never clips.
        accumulation: Batches an optimiser step averages over.
        seed: Decides clusters, batches and dropout.
        sampling: 'tas-balanced' (by the pairs' scores, with any loss), 'tas' (topics without balanced margins) or
            'random'.
        clusters: k, number of query clusters; None takes one for every 200 training queries, and at most one for every
            ten clusters that the run draws.
        spherical: k-means by inner product on unit vectors (the reference code) instead of Euclidean (the paper).
        clusters_per_batch: n, clusters that share a batch equally.
        n_bins: h, margin bins of a query.
        size_power: A cluster is drawn with probability proportional to size**size_power; 0 (the paper) is uniform.
        max_pairs_per_query: Pairs kept of a query whose positives and negatives make more; None keeps all.
        pairwise_loss: 'margin-mse' or, without a teacher, 'ranknet'.
        in_batch_loss: 'margin-mse' (the paper's choice), 'kl', 'listnet' or 'lambda'.
        pairwise_weight: λ, weight of the pairwise term.
        in_batch_weight: α, weight of the in-batch term.
        teacher_scale: A number that both teachers' scores are multiplied by, or 'auto': one constant for each teacher
            that brings the standard deviation of its margins to the untrained student's. It is recorded.
        scale: Factor on the cosine of a student with unit-length vectors; a student without them ignores it.
        positive_bonus: Added to the teacher's score of a judged positive, after scaling; 0 is the paper.
        eval_every: Steps between validations; None takes a tenth of the steps. The last step is validated in any case.
        measure: The measure that validation watches, as `pt.Experiment` takes it (`nDCG @ 10`, 'ndcg_cut_10') or by any
            name in ir_measures ('MRR@10'). It is kept by its own name there ('RR@10').
        patience: Validations without gain before training stops; None never stops early.
        patience_from: No early stop before this step.
        save_every: Steps between checkpoints in a run without validation; None takes a tenth of the steps. With
            validation every validation saves, and `eval_every` says how much an interruption may lose.
        log_every: Steps between entries of the training log.
        compile: Put the encoder's layers and the loss through `torch.compile`, on a GPU and where a step can be
            captured as a CUDA graph; elsewhere nothing changes. Worth it in long runs: it takes 20 to 30 seconds.
        micro_batch_tokens: Encode a batch in pieces of at most this many tokens and keep no activations between them
            (gradient caching): slower, exact, and flat in memory. None encodes it in one call. For
            :class:`TasBalanced`; a late-interaction teacher does not read it.
        report_to: A tracker of `transformers.Trainer`: 'none', 'tensorboard', 'wandb', 'mlflow', …, or 'all' that are
            installed.

    Raises:
        ValueError: A field is out of its range, or a tracker is not installed; the message names field, value and
            range.

    >>> Training(steps=100).replace(sampling='random').sampling
    'random'
    """
    steps: int = 20_000
    batch_size: int = 32
    learning_rate: float = 2e-5
    schedule: Literal['linear', 'cosine', 'constant'] = 'linear'
    warmup: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    accumulation: int = 1
    seed: int = 42
    sampling: Literal['tas-balanced', 'tas', 'random'] = 'tas-balanced'
    clusters: int | None = None
    spherical: bool = False
    clusters_per_batch: int = 1
    n_bins: int = 10
    size_power: float = 0.0
    max_pairs_per_query: int | None = 1000
    pairwise_loss: Literal['margin-mse', 'ranknet'] = 'margin-mse'
    in_batch_loss: Literal['margin-mse', 'kl', 'listnet', 'lambda'] = 'margin-mse'
    pairwise_weight: float = 1.0
    in_batch_weight: float = 0.75
    teacher_scale: float | Literal['auto'] = 'auto'
    scale: float = 20.0
    positive_bonus: float = 0.0
    eval_every: int | None = None
    measure: str | Any = 'nDCG@10'   # a name from construction on
    patience: int | None = None
    patience_from: int = 0
    save_every: int | None = None
    log_every: int = 10
    compile: bool = False
    micro_batch_tokens: int | None = None
    report_to: str = 'none'

    def __post_init__(self) -> None:
        for field in fields(self):   # plain values, which JSON can hold
            if isinstance(value := getattr(self, field.name), np.generic):
                object.__setattr__(self, field.name, value.item())
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f'Training({name}={getattr(self, name)!r}): must be one of {", ".join(allowed)}')
        optional = {field.name for field in fields(self) if field.default is None} | {'max_pairs_per_query'}
        for name in _AT_LEAST_ONE:
            value = getattr(self, name)
            if value is None and name in optional:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f'Training({name}={value!r}): must be a whole number of at least 1')
        for name in (*_POSITIVE, *_NOT_NEGATIVE):
            low_is_open = name in _POSITIVE
            value = self._number(name)
            if value < 0 or (low_is_open and value == 0):
                raise ValueError(f'Training({name}={value!r}): must be {"above" if low_is_open else "at least"} 0')
        if self.clusters_per_batch > self.batch_size:
            raise ValueError(f'Training(clusters_per_batch={self.clusters_per_batch}): must be at most the batch size, '
                             f'{self.batch_size}')
        if not isinstance(self.seed, int) or self.seed >= 2**63:
            raise ValueError(f'Training(seed={self.seed!r}): must be a whole number below 2**63')
        if not 0 <= self._number('warmup') < 1:
            raise ValueError(f'Training(warmup={self.warmup!r}): must be a share of the steps in [0, 1)')
        if self.teacher_scale != 'auto' and self._number('teacher_scale') <= 0:
            raise ValueError(f"Training(teacher_scale={self.teacher_scale!r}): must be 'auto' or above 0")
        for name in ('spherical', 'compile'):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f'Training({name}={getattr(self, name)!r}): must be True or False')
        self._check_measure()
        self._check_tracker()

    def _number(self, name: str) -> float:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f'Training({name}={value!r}): must be a finite number')
        return value

    def _check_measure(self) -> None:
        import ir_measures
        name = str(self.measure) if isinstance(self.measure, ir_measures.Measure) else self.measure
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f'Training(measure={self.measure!r}): must be a measure, or its name, nDCG@10 for example')
        try:
            found = _measures_of(name)
        except Exception as error:
            raise ValueError(f'Training(measure={self.measure!r}): ir_measures does not know it ({error})') from error
        if len(found) != 1:
            raise ValueError(f'Training(measure={name!r}): stands for {len(found)} measures '
                             f'({", ".join(map(str, found[:5]))}, …): name one')
        object.__setattr__(self, 'measure', str(found[0]))

    def _check_tracker(self) -> None:
        if self.report_to == 'none':
            return
        from transformers.integrations import integration_utils
        known = integration_utils.INTEGRATION_TO_CALLBACK
        if not isinstance(self.report_to, str) or self.report_to != 'all' and self.report_to not in known:
            raise ValueError(f'Training(report_to={self.report_to!r}): must be none, all or one of {", ".join(known)}')
        # that list leaves out flyte always, and azure_ml where mlflow is installed as well
        installed = {*integration_utils.get_available_reporting_integrations(), 'all', 'flyte', 'azure_ml'}
        if self.report_to not in installed:
            raise ValueError(f'Training(report_to={self.report_to!r}): it is not installed, so nothing can be reported '
                             "to it: install it, or report_to='none'")

    @classmethod
    def faithful(cls, **changes: Any) -> Training:
        """The published run: Adam at 7e-6, 800K batches of 32, k-means as in the reference code, nothing rescaled.

        Args:
            **changes: Fields that differ from the published run, `batch_size=256` for example.

        >>> Training.faithful(batch_size=256).learning_rate
        7e-06
        """
        published = dict(
            steps=800_000, batch_size=32, learning_rate=7e-6, schedule='constant', warmup=0.0, max_grad_norm=0.0,
            clusters=2000, spherical=True, teacher_scale=1.0, max_pairs_per_query=None,
            eval_every=4000, patience=30, patience_from=300_000)
        return cls(**{**published, **changes})

    def replace(self, **changes: Any) -> Training:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)

    def deciding(self) -> dict[str, Any]:
        """Fields that trained weights depend on, {'Training.steps': 20000, …}; a run may go on with others changed.

        Of `accumulation` they depend by the batches a step takes: N processes may go on with what one accumulated.
        """
        return {f'Training.{name}': value for name, value in self.to_dict().items() if name not in _BESIDE}

    @property
    def validation_interval(self) -> int:
        """Steps between validations."""
        return self.eval_every or max(1, self.steps // 10)

    @property
    def warmup_steps(self) -> int:
        """Steps of the warm-up."""
        return int(self.warmup * self.steps + 1e-6)   # to floating point, .29 · 100 is less than 29

    def rate_at(self, step: int) -> float:
        """Share of the peak learning rate at optimiser step `step`, counted from 0; never 0 while training.

        >>> Training(steps=10, warmup=0.2).rate_at(0)
        0.5
        """
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        if self.schedule == 'linear':
            return max(0.0, 1.0 - done)
        if self.schedule == 'cosine':
            return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
        return 1.0


def _measures_of(name: str) -> list:
    """What a name means in ir_measures, or else to `pt.Experiment`, which takes trec_eval's names."""
    import ir_measures
    try:
        return [ir_measures.parse_measure(name)]
    except Exception as unknown:
        try:
            return ir_measures.parse_trec_measure(name)
        except ValueError:
            raise unknown from None
