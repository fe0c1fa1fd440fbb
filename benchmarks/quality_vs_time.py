"""Quality against wall time on pydocs: ours against sentence-transformers' own trainer, same student, same negatives.

The clock starts when the corpus and the labels are in memory and counts everything: mining the negatives, training and
running the teacher, clustering, training, encoding the corpus. Every system pays for what it uses. Weights are copied
while the clock stands still, and each copy is evaluated afterwards; encoding the corpus with it is added to its time.
"""
from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pyterrier as pt
from common import machine, markdown
from ir_measures import nDCG

from pyterrier_tasb import LateInteraction, TasBalanced, Training, minilm, plots, pydocs
from pyterrier_tasb.baselines import bm25
from pyterrier_tasb.fitting import Fit
from pyterrier_tasb.training.trainer import train

MEASURE = nDCG @ 10
State = dict


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--steps', type=int, default=150)
    parser.add_argument('--every', type=int, default=15, help='steps between two copies')
    parser.add_argument('--teacher-steps', type=int, default=60)
    parser.add_argument('--batch-size', type=int, default=32)
    parser.add_argument('--learning-rate', type=float, default=5e-5)
    parser.add_argument('--candidates', type=int, default=10)
    parser.add_argument('--max-words', type=int, default=50)
    parser.add_argument('--packages', nargs='*', default=pydocs.DEFAULT_PACKAGES)
    parser.add_argument('--systems', nargs='*', default=['ours', 'mnrl', 'margin-mse'],
                        choices=['ours', 'mnrl', 'margin-mse'])
    parser.add_argument('--out', type=Path, default=Path('docs/results'))
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
    """What the systems share: data, candidates and how long those took."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder = args, folder
        self.data = pydocs.load(args.packages, args.max_words)
        self.topics, self.qrels = self.data.get_topics('train'), self.data.get_qrels('train')
        clock = Clock()
        self.sparse = bm25(self.data.get_corpus_iter(), folder / 'bm25')
        few = dict(num_results=args.candidates)
        untrained = TasBalanced(minilm(), doc_max_length=128)
        index = untrained.index(self.data.get_corpus_iter(), folder / 'untrained')
        miner = bm25(self.data.get_corpus_iter(), folder / 'bm25', **few).retriever | untrained.retriever(index, **few)
        self.candidates = (miner >> self.data.text_loader('text'))(self.topics)
        self.mining = clock.seconds

    def training(self, steps: int) -> Training:
        return Training(steps=steps, batch_size=self.args.batch_size, learning_rate=self.args.learning_rate,
                        positive_bonus=2.0, eval_every=self.args.every)

    def teacher(self) -> LateInteraction:
        """A teacher trained on the labels."""
        teacher = LateInteraction(minilm(), doc_max_length=128, scale=2.0, cache_bytes=4 << 30,
                                  training=self.training(self.args.teacher_steps))
        return teacher.fit(self.candidates, self.qrels, corpus=self.data)

    def evaluate(self, encoder: TasBalanced) -> tuple[float, float]:
        """(seconds of encoding the corpus, the measure)."""
        clock = Clock()
        index = encoder.index(self.data.get_corpus_iter(), self.folder / 'evaluated', overwrite=True)
        seconds = clock.seconds
        results = encoder.retriever(index, num_results=10)(self.data.get_topics('test'))
        return seconds, pt.Evaluate(results, self.data.get_qrels('test'), metrics=[MEASURE])[str(MEASURE)]


def ours(race: Race) -> list[tuple[float, State]]:
    clock, copies = Clock(race.mining), []
    teacher = race.teacher()
    student = TasBalanced(minilm(), corpus=race.data, doc_max_length=128, pairwise_teacher=teacher,
                          in_batch_teacher=teacher, training=race.training(race.args.steps))
    fit = Fit(student, race.folder / 'work', resume=False)
    examples = fit.examples(race.candidates, race.qrels, None)
    batches = fit.batches(examples, fit.clusters(examples))

    def keep() -> dict[str, float]:
        with clock.paused():
            copies.append((clock.seconds, copy.deepcopy(student.model.state_dict())))
        return {student.training.measure: float(len(copies))}
    train(student.encoder, batches, fit._loss, student.training, output_dir=race.folder / 'checkpoints',
          device=student.device, validate=keep)
    return copies


def sentence_transformers(race: Race, loss: str) -> list[tuple[float, State]]:
    import sentence_transformers as st
    from datasets import Dataset
    from sentence_transformers.losses import MarginMSELoss, MultipleNegativesRankingLoss
    from transformers import TrainerCallback

    clock, copies = Clock(race.mining), []
    found = race.candidates
    if loss == 'margin-mse':
        found = race.teacher()(found)
    labelled = found.merge(race.qrels, on=['qid', 'docno'], how='left').fillna({'label': 0})
    positives, negatives = (labelled[(labelled['label'] > 0) == wanted] for wanted in (True, False))
    pairs = positives.merge(negatives, on='qid', suffixes=('', '_neg')).sample(frac=1, random_state=0)
    rows = {'query': pairs['query'], 'positive': pairs['text'], 'negative': pairs['text_neg']}
    if loss == 'margin-mse':
        rows['label'] = pairs['score'] - pairs['score_neg']
    model = st.SentenceTransformer(minilm())
    model.max_seq_length = 128
    training = race.training(race.args.steps)

    class Keep(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):  # noqa: ANN001, ANN003, ANN202
            if state.global_step % race.args.every == 0:
                with clock.paused():
                    copies.append((clock.seconds, copy.deepcopy(model[0].auto_model.state_dict())))
    arguments = st.SentenceTransformerTrainingArguments(
        str(race.folder / loss), max_steps=training.steps, per_device_train_batch_size=training.batch_size,
        learning_rate=training.learning_rate, warmup_steps=training.warmup_steps, save_strategy='no', report_to='none',
        disable_tqdm=True, seed=training.seed)
    made = MarginMSELoss(model) if loss == 'margin-mse' else MultipleNegativesRankingLoss(model)
    dataset = Dataset.from_dict({name: list(column) for name, column in rows.items()})
    st.SentenceTransformerTrainer(model, arguments, dataset, loss=made, callbacks=[Keep()]).train()
    return copies


def main() -> None:
    args = arguments()
    systems: dict[str, Callable[[Race], list[tuple[float, State]]]] = {
        'ours': ours, 'mnrl': lambda race: sentence_transformers(race, 'mnrl'),
        'margin-mse': lambda race: sentence_transformers(race, 'margin-mse')}
    with tempfile.TemporaryDirectory() as folder:
        race = Race(args, Path(folder))
        baseline = pt.Evaluate(race.sparse.retriever(race.data.get_topics('test')), race.data.get_qrels('test'),
                               metrics=[MEASURE])[str(MEASURE)]
        print(f'{race.data.report()}\nnegatives mined in {race.mining:.0f} s; {race.sparse.label}: {baseline:.4f}')
        curves = {}
        for name in args.systems:
            copies, curves[name] = systems[name](race), []
            encoder = TasBalanced(minilm(), doc_max_length=128)
            for seconds, state in copies:
                encoder.model.load_state_dict(state)
                encoding, value = race.evaluate(encoder)
                curves[name].append((seconds + encoding, value))
                print(f'{name}: {seconds + encoding:.0f} s, {value:.4f} ({value / baseline - 1:+.0%})', flush=True)
    rows = [{'system': name, 'seconds': f'{seconds:.0f}', str(MEASURE): f'{value:.4f}',
             'against BM25': f'{value / baseline - 1:+.1%}'}
            for name, curve in curves.items() for seconds, value in curve]
    table = markdown(pd.DataFrame(rows))
    print(f'\n{table}\n\n{machine()}')
    args.out.mkdir(parents=True, exist_ok=True)
    plots.quality_against_time(curves, str(MEASURE), (race.sparse.label, baseline)).savefig(
        args.out / 'quality_vs_time.png')
    shown = {name: value for name, value in vars(args).items() if name not in ('out', 'packages')}
    settings = ', '.join(f'{name} {value}' for name, value in shown.items())
    (args.out / 'quality_vs_time.md').write_text(
        f'# Quality against time\n\nMade by `python benchmarks/quality_vs_time.py` ({settings}).\n\n'
        f'![Quality against time](quality_vs_time.png)\n\n{table}\n\n{race.sparse.label}: {baseline:.4f}. '
        f'{machine()}\n')


if __name__ == '__main__':
    main()
