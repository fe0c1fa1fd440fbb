"""Quality after each minute of wall time on pydocs: ours against sentence-transformers' own trainer.

Same student, same mined negatives, same batch size and learning rate. The clock starts when the corpus and the labels
are in memory and counts everything: mining the negatives, training and running the teacher, clustering, training,
encoding the corpus. Every system pays for what it uses. What a system has after m minutes are the last weights that
left time to encode the corpus; before its first weights it has the untrained encoder. All are encoded by our encoder,
in the time that took for the untrained one, which favours the peer. Weights are copied while the clock stands still.
"""
from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pandas as pd
import pyterrier as pt
import torch
from common import machine, markdown
from ir_measures import nDCG
from transformers import TrainerCallback

from pyterrier_tasb import LateInteraction, TasBalanced, Training, minilm, plots, pydocs
from pyterrier_tasb.baselines import bm25
from pyterrier_tasb.fitting import Fit
from pyterrier_tasb.training.trainer import train

MEASURE = nDCG @ 10
MANY = 100_000   # steps: the clock ends a run
State = dict


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--minutes', type=int, default=5, help='when every system stops')
    parser.add_argument('--teacher-steps', type=int, default=0, help='of ours; 0: untrained late interaction teaches')
    parser.add_argument('--in-batch-loss', default='kl', help='of ours')
    parser.add_argument('--pairwise-weight', type=float, default=0.0,
                        help='of ours; 0 needs no scores of pairs, and does not balance by them')
    parser.add_argument('--positive-bonus', type=float, default=5.0, help='of ours')
    parser.add_argument('--peer-teacher-steps', type=int, default=40, help="of MarginMSE's teacher, trained on labels")
    parser.add_argument('--clusters', type=int, default=10)
    parser.add_argument('--train-queries', type=int, default=3000, help='a random sample')
    parser.add_argument('--batch-size', type=int, default=32)
    parser.add_argument('--learning-rate', type=float, default=1e-4)
    parser.add_argument('--candidates', type=int, default=20, help='of each miner')
    parser.add_argument('--dense-miner', action='store_true', help='mine with the untrained encoder beside BM25')
    parser.add_argument('--max-words', type=int, default=32, help='of a passage')
    parser.add_argument('--packages', nargs='*', default=pydocs.DEFAULT_PACKAGES)
    parser.add_argument('--systems', nargs='*', default=['ours', 'mnrl', 'margin-mse'],
                        choices=['ours', 'mnrl', 'margin-mse'])
    parser.add_argument('--splits', nargs='+', default=['test'], choices=['dev', 'test', 'held-out'],
                        help='queries to evaluate with; dev: to choose settings with; held-out: the training queries '
                        'that are not in the sample, which are the most')
    parser.add_argument('--peer-bf16', action='store_true', help='let sentence-transformers compute in bf16')
    parser.add_argument('--minute', type=float, default=60, help=argparse.SUPPRESS)   # seconds; tests have shorter ones
    parser.add_argument('--seed', type=int, default=42)
    parser.add_argument('--out', type=Path, default=Path('runs/quality_vs_time'))
    return parser.parse_args()


class Clock:
    """Seconds, less those of paused blocks."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.start = time.perf_counter() - seconds

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start

    @contextmanager
    def paused(self) -> Iterator[None]:
        before = self.seconds
        try:
            yield
        finally:
            self.start = time.perf_counter() - before


class Race:
    """What the systems share: data, candidates, and how long they and encoding the corpus took."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder = args, folder
        self.data = pydocs.load(args.packages, args.max_words)
        self.qrels, self.topics = self.data.get_qrels('train'), self.data.get_topics('train')
        if args.train_queries < len(self.topics):
            self.topics = self.topics.sample(args.train_queries, random_state=args.seed)
        self.untrained = TasBalanced(minilm(), doc_max_length=128)
        clock = Clock()
        few = dict(num_results=args.candidates)
        miner = bm25(self.data.get_corpus_iter(), folder / 'bm25', **few).retriever
        with nullcontext() if args.dense_miner else clock.paused():   # else to know what it takes
            before = time.perf_counter()
            index = self.untrained.index(self.data.get_corpus_iter(), folder / 'untrained')
            self.encoding = time.perf_counter() - before
        if args.dense_miner:
            miner = miner | self.untrained.retriever(index, **few)
        self.candidates = (miner >> self.data.text_loader('text'))(self.topics)
        self.mining = clock.seconds
        self.sparse = bm25(self.data.get_corpus_iter(), folder / 'bm25')

    def training(self, steps: int) -> Training:
        return Training(steps=steps, batch_size=self.args.batch_size, learning_rate=self.args.learning_rate,
                        schedule='constant', warmup=min(5 / steps, .5), clusters=self.args.clusters,
                        seed=self.args.seed, positive_bonus=self.args.positive_bonus,
                        in_batch_loss=self.args.in_batch_loss, pairwise_weight=self.args.pairwise_weight,
                        sampling='tas-balanced' if self.args.pairwise_weight else 'tas')   # by scores, if there are any

    def teacher(self, steps: int) -> LateInteraction:
        """A teacher trained on the labels; not at all with 0 steps."""
        teacher = LateInteraction(minilm(), doc_max_length=128, scale=2.0, cache_bytes=4 << 30,
                                  training=self.training(steps or 10))
        if steps:
            teacher.fit(self.candidates, self.qrels, corpus=self.data)
        return teacher

    def values(self, run: pt.Transformer) -> dict[str, float]:
        """The measure of a retriever on each split."""
        return {split: pt.Evaluate(run(self.queries_of(split)), self.data.get_qrels(split.replace('held-out', 'train')),
                                   metrics=[MEASURE])[str(MEASURE)] for split in self.args.splits}

    def queries_of(self, split: str) -> pd.DataFrame:
        """The topics to evaluate with."""
        if split != 'held-out':
            return self.data.get_topics(split)
        topics = self.data.get_topics('train')
        return topics[~topics['qid'].isin(self.topics['qid'])]

    def evaluate(self, state: State | None) -> dict[str, float]:
        """The measure of these weights on each split; None are the untrained ones."""
        encoder = self.untrained.copy()
        if state is not None:
            encoder.model.load_state_dict(state)
        index = encoder.index(self.data.get_corpus_iter(), self.folder / 'evaluated', overwrite=True)
        return self.values(encoder.retriever(index, num_results=10))


class Copies(TrainerCallback):
    """The weights of each minute: the last ones that left time to encode the corpus.

    Args:
        race: Says how long that takes.
        clock: Counts all that the system does.
        model: Whose weights.
    """

    def __init__(self, race: Race, clock: Clock, model: torch.nn.Module) -> None:
        self.minutes, self.minute, self.encoding = race.args.minutes, race.args.minute, race.encoding
        self.clock, self.model = clock, model
        self.kept: list[State | None] = []
        self.last: State | None = None

    def _pass_minutes(self) -> None:
        while len(self.kept) < self.minutes and self.clock.seconds + self.encoding > self.minute * (len(self.kept) + 1):
            self.kept.append(self.last)

    def on_step_end(self, args, state, control, **kwargs) -> None:  # noqa: ANN001
        with self.clock.paused():
            self._pass_minutes()
            self.last = copy.deepcopy(self.model.state_dict())
            control.should_training_stop = len(self.kept) == self.minutes


def ours(race: Race) -> list[State | None]:
    clock = Clock(race.mining)
    teacher = race.teacher(race.args.teacher_steps)
    student = TasBalanced(minilm(), corpus=race.data, doc_max_length=128, pairwise_teacher=teacher,
                          in_batch_teacher=teacher, training=race.training(MANY))
    fit = Fit(student, race.folder / 'work', resume=False)
    examples = fit.examples(race.candidates, race.qrels, None)
    batches = fit.batches(examples, fit.clusters(examples))
    copies = Copies(race, clock, student.model)
    train(student.encoder, batches, fit.loss, student.training, output_dir=race.folder / 'checkpoints',
          device=student.device, extra_callbacks=(copies,))
    return copies.kept


def sentence_transformers(race: Race, loss: str) -> list[State | None]:
    import sentence_transformers as st
    from datasets import Dataset
    from sentence_transformers.losses import MarginMSELoss, MultipleNegativesRankingLoss

    clock, found = Clock(race.mining), race.candidates
    if loss == 'margin-mse':
        found = race.teacher(race.args.peer_teacher_steps)(found)
    labelled = found.merge(race.qrels, on=['qid', 'docno'], how='left').fillna({'label': 0})
    positives, negatives = (labelled[(labelled['label'] > 0) == wanted] for wanted in (True, False))
    pairs = positives.merge(negatives, on='qid', suffixes=('', '_neg')).sample(frac=1, random_state=race.args.seed)
    rows = {'query': pairs['query'], 'positive': pairs['text'], 'negative': pairs['text_neg']}
    if loss == 'margin-mse':
        rows['label'] = pairs['score'] - pairs['score_neg']
    model = st.SentenceTransformer(minilm())
    model.max_seq_length = 128
    training, copies = race.training(MANY), Copies(race, clock, model[0].auto_model)
    arguments = st.SentenceTransformerTrainingArguments(
        str(race.folder / loss), max_steps=training.steps, per_device_train_batch_size=training.batch_size,
        learning_rate=training.learning_rate, lr_scheduler_type='constant_with_warmup',
        warmup_steps=training.warmup_steps, save_strategy='no', report_to='none', disable_tqdm=True,
        seed=training.seed, bf16=race.args.peer_bf16, use_cpu=not torch.cuda.is_available())
    def score(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """20 × cosine, as ours: margins of several points are beyond what unit vectors could give."""
        return 20 * (a * b).sum(-1)
    made = MultipleNegativesRankingLoss(model) if loss == 'mnrl' else MarginMSELoss(model, similarity_fct=score)
    dataset = Dataset.from_dict({name: list(column) for name, column in rows.items()})
    st.SentenceTransformerTrainer(model, arguments, dataset, loss=made, callbacks=[copies]).train()
    return copies.kept


SYSTEMS: dict[str, Callable[[Race], list[State | None]]] = {
    'ours': ours, 'mnrl': lambda race: sentence_transformers(race, 'mnrl'),
    'margin-mse': lambda race: sentence_transformers(race, 'margin-mse')}


def against(value: float, baseline: float) -> str:
    """A value, and how far it is above the baseline."""
    return f'{value:.4f} ({value / baseline - 1:+.1%})'


def shown(values: dict[str, float]) -> str:
    """Values of splits as text."""
    return ', '.join(f'{value:.4f} {split}' for split, value in values.items())


def main() -> None:
    args = arguments()
    with tempfile.TemporaryDirectory() as folder:
        race = Race(args, Path(folder))
        baseline, untrained = race.values(race.sparse.retriever), race.evaluate(None)
        print(f'{race.data.report()}\nnegatives mined in {race.mining:.0f} s; the corpus takes {race.encoding:.0f} s '
              f'to encode; {race.sparse.label}: {shown(baseline)}; untrained: {shown(untrained)}')
        curves, table = {}, pd.DataFrame({'minute': range(1, args.minutes + 1)})
        for name in args.systems:
            rows = []
            for minute, state in enumerate(SYSTEMS[name](race), 1):
                rows.append(untrained if state is None else race.evaluate(state))
                values = ', '.join(f'{against(value, baseline[split])} {split}' for split, value in rows[-1].items())
                print(f'{name}: minute {minute}, {values}', flush=True)
            for split in args.splits:
                label = f'{name}, {split}'
                curves[label] = [(60 * minute, row[split]) for minute, row in enumerate(rows, 1)]
                table[label] = [against(row[split], baseline[split]) for row in rows]
    print(f'\n{markdown(table)}\n\n{machine()}')
    args.out.mkdir(parents=True, exist_ok=True)
    plots.quality_against_time(
        {label: curve for label, curve in curves.items() if label.endswith(args.splits[0])},
        f'{MEASURE}, {args.splits[0]} queries', (race.sparse.label, baseline[args.splits[0]])).savefig(
        args.out / 'quality_vs_time.png')
    settings = ', '.join(f'{name} {value}' for name, value in vars(args).items()
                         if name not in ('out', 'packages', 'minute'))
    (args.out / 'quality_vs_time.md').write_text(
        f'# Quality against time\n\nMade by `python benchmarks/quality_vs_time.py` ({settings}).\n\n'
        f'![Quality against time](quality_vs_time.png)\n\n{markdown(table)}\n\n{MEASURE}, and against '
        f'{race.sparse.label}, {shown(baseline)}; the untrained encoder has {shown(untrained)}. Negatives were mined '
        f'in {race.mining:.0f} s; the corpus takes {race.encoding:.0f} s to encode. {machine()}\n')


if __name__ == '__main__':
    main()
