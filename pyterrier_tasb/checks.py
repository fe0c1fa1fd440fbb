"""What frames and settings must be, checked at the door: every error names what was seen and what to do."""
from __future__ import annotations

import itertools
import numbers
import os
import re
import reprlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt

from ._warn import warn


def first(values: Any, n: int = 5) -> str:
    """The first `n` distinct values, for messages."""
    return ', '.join(map(str, list(dict.fromkeys(values))[:n]))


def name_of(pipeline: pt.Transformer | None) -> str:
    """What `repr` says of a pipeline, less memory addresses: equal in the next process."""
    return re.sub(r' at 0x[0-9a-fA-F]+', '', repr(pipeline))


def is_blank(texts: pd.Series) -> pd.Series:
    """Which texts are missing, or white space."""
    # as objects: Arrow's strings cannot hold half of a surrogate pair
    return texts.isna() | ~texts.astype(object).map(lambda text: bool(str(text).strip())).astype(bool)


def check_texts(frame: pd.DataFrame, *columns: str, context: Any = None) -> None:
    """Every value a string: a text loader leaves None where it does not know a document.

    Raises:
        ValueError: Some are none; the message names the column and the rows' ids.
    """
    for column in columns:
        wrong = frame[[not isinstance(text, str) for text in frame[column]]]
        if len(wrong):
            ids = 'qid' if column == 'query' else 'docno'
            where = f' ({ids}s {first(wrong[ids])})' if ids in wrong.columns else ''
            raise ValueError(f'{context!r}: {len(wrong)} of {len(frame)} values of column {column!r} are no text{where}'
                             f', first {wrong[column].iloc[0]!r:.60}: load it, or drop these rows')


def with_lost_queries(frame: pd.DataFrame) -> pd.DataFrame:
    """The query of a row that has none is that of its qid: a sum of pipelines keeps the queries of one side only."""
    if not {'qid', 'query'} <= set(frame.columns) or not frame['query'].isna().any():
        return frame
    lost = frame['query'].isna()
    known = frame[~lost].drop_duplicates('qid').set_index('qid')['query']
    return frame.assign(query=frame['query'].astype(object).where(~lost, frame['qid'].map(known)))


def warn_of_untaught(student: pt.Transformer) -> None:
    """Say that a stage before it, which a pipeline's `fit` trains as well, does not teach it."""
    frame = sys._getframe()
    while frame is not None and frame.f_code is not pt.Compose.fit.__code__:
        frame = frame.f_back
    stages = [] if frame is None else list(frame.f_locals['self'])
    if not any(stage is student for stage in stages):   # what is fitted is a stage that fits it
        return
    for stage in itertools.takewhile(lambda stage: stage is not student, stages):
        if isinstance(stage, pt.Estimator):
            warn(f'the scores that arrive are not those of {stage!r}: the fit of a pipeline trains each stage '
                 'that can learn and hands on what came before it. To be taught by it, fit without it and '
                 'give it as pairwise_teacher=')


def check_miner(negatives: Any) -> None:
    """A pipeline, or None.

    Raises:
        ValueError: It is something else.
    """
    if not isinstance(negatives, (pt.Transformer, type(None))):
        remedy = 'its .retriever' if hasattr(negatives, 'retriever') else 'a pipeline that retrieves'
        raise ValueError(f'negatives={reprlib.repr(negatives):.80} ({type(negatives).__name__}) cannot mine: give '
                         f'{remedy}')


def check_count(name: str, value: Any, least: int = 1) -> None:
    """A whole number of at least `least`.

    Raises:
        ValueError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(f'{name}={value!r}: must be a whole number of at least {least}')


def check_path(name: str, value: Any, remedy: str) -> None:
    """A path, or a name.

    Raises:
        ValueError: It is neither; the message ends with the remedy.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise ValueError(f'{name}= is a {type(value).__name__}, neither a path nor a name: {remedy}')


def check_model_name(model_name: Any) -> None:
    """What a model is loaded by.

    Raises:
        ValueError: It is neither a path nor a name, but perhaps the model itself.
    """
    check_path('model_name', model_name, 'give a model directory or a hub name (save_pretrained of a model and of its '
               'tokenizer write such a directory)')


def listed(texts: Iterable[str]) -> list[str]:
    """Texts as a list.

    Raises:
        ValueError: They are one string, whose letters would be taken for texts.
    """
    if isinstance(texts, str):
        raise ValueError(f'{texts!r:.60} is one text, where several are expected: give a list, [text]')
    return list(texts)


def check_same(kept: Any, now: Any, place: Path, what: str, name: str) -> None:
    """Compare numbers that were kept with what a teacher says now; precisions may differ.

    Raises:
        ValueError: They differ by more than that.
    """
    kept, now = np.asarray(kept, dtype=float), np.asarray(now, dtype=float)
    if not kept.size:
        raise ValueError(f'{place} holds {what} of other candidates than {name} finds now: use another directory, or '
                         'delete it')
    if not np.allclose(now, kept, rtol=.05, atol=.05 * (np.std(kept) + 1e-6)):
        raise ValueError(f'{place} holds {what} of another teacher than {name}: {kept[:3].round(3)} there, '
                         f'{now[:3].round(3)} now. Use another directory, or delete it')


def check_qrels(qrels: pd.DataFrame, what: str, context: Any = None) -> pd.DataFrame:
    """Qrels with string ids and whole-number labels, at least one of them positive.

    Args:
        qrels: Frame with qid, docno, label.
        what: 'training' or 'validation', for messages.
        context: The transformer that asks.

    Raises:
        ValueError: No frame, no rows, a label that is no whole number, contradicting labels, or no positive label.
    """
    if not isinstance(qrels, pd.DataFrame):
        raise ValueError(f'{what} qrels must be a DataFrame with columns qid, docno, label; got {type(qrels).__name__}')
    _check_columns(qrels, ['qid', 'docno', 'label'], f'{what} qrels', context)
    if not len(qrels):
        raise ValueError(f'the {what} qrels are empty: nothing says which passages are relevant')
    qrels = _string_ids(qrels, ('qid', 'docno'), f'{what} qrels')
    labels = pd.to_numeric(qrels['label'], errors='coerce')
    if labels.isna().any():
        bad = qrels[labels.isna()]
        raise ValueError(f'{len(bad)} labels of the {what} qrels are no numbers (qids {first(bad["qid"])}, first '
                         f'value {bad["label"].iloc[0]!r}): remove or repair these rows')
    parts = qrels[labels.astype(float) % 1 != 0]
    if len(parts):
        raise ValueError(f'{len(parts)} labels of the {what} qrels are no whole numbers (qids {first(parts["qid"])}, '
                         f'first value {parts["label"].iloc[0]}), and measures would cut them off: multiply all until '
                         'they are, qrels.assign(label=4 * qrels["label"]) for quarters')
    qrels = qrels.assign(label=labels.astype(np.int64))[['qid', 'docno', 'label']].drop_duplicates()
    twice = qrels[qrels.duplicated(['qid', 'docno'], keep=False)]
    if len(twice):
        raise ValueError(f'{len(twice)} rows of the {what} qrels give one (qid, docno) different labels '
                         f'(qids {first(twice["qid"])}): keep one label for each')
    if not (qrels['label'] > 0).any():
        raise ValueError(f'all {len(qrels)} labels of the {what} qrels are 0 or below: there is no positive passage')
    return qrels


def _check_columns(frame: pd.DataFrame, includes: list[str], what: str, context: Any) -> None:
    """PyTerrier's own look, whose message does not say which of four frames is meant."""
    try:
        pt.validate.columns(frame, includes=includes, context=context)
    except pt.validate.InputValidationError as error:
        found = ', '.join(map(str, frame.columns))
        raise pt.validate.InputValidationError(f'the {what} (columns {found}): {error.args[0]}', error.modes) from None


def check_topics_or_results(frame: pd.DataFrame, what: str, text_field: str, *, context: Any = None,
                            ) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Split a frame into topics (qid, query) and, where it has docnos, results.

    Raises:
        ValueError: No frame, no rows, missing ids or queries, one qid with two queries, or a duplicate (qid, docno).
    """
    if not isinstance(frame, pd.DataFrame):
        raise ValueError(f'{what} topics or results must be a DataFrame; got {type(frame).__name__}')
    if not len(frame):
        raise ValueError(f'the {what} frame is empty: no {what} results or topics to learn from')
    _check_columns(frame, ['qid', 'query'], f'{what} topics or results', context)
    is_results = 'docno' in frame.columns
    frame = _string_ids(frame, ('qid', 'docno') if is_results else ('qid',), f'{what} frame')
    frame = _users_queries(frame, what)
    blank = is_blank(frame['query'])
    if blank.any():
        raise ValueError(f'{int(blank.sum())} rows of the {what} frame have no query text '
                         f'(qids {first(frame.loc[blank, "qid"])}): drop these queries')
    topics = frame[['qid', 'query']].drop_duplicates().reset_index(drop=True)
    twice = topics[topics.duplicated('qid', keep=False)]
    if len(twice):
        raise ValueError(f'{twice["qid"].nunique()} qids of the {what} frame have more than one query text '
                         f'(qids {first(twice["qid"])}): give each query a qid of its own')
    if not is_results:
        return topics, None
    check_distinct(frame, what)
    if text_field in frame.columns:
        wrong = frame[text_field].notna() & ~frame[text_field].map(lambda text: isinstance(text, str))
        if wrong.any():
            raise ValueError(f'{int(wrong.sum())} values of column {text_field!r} of the {what} results are no text '
                             f'(docnos {first(frame.loc[wrong, "docno"])})')
    return topics, frame.reset_index(drop=True)


def _users_queries(frame: pd.DataFrame, what: str) -> pd.DataFrame:
    """Queries as users write them, which the student will be asked: rewriters put others in their place."""
    before = [name for name in frame.columns if re.fullmatch(r'query_\d+', str(name))]
    if before:
        first_of_all = max(before, key=lambda name: int(name.partition('_')[2]))   # each rewriting moves them up by one
        theirs = frame[first_of_all].astype(object).where(frame[first_of_all].notna(), frame['query'])
        rewritten = frame.loc[theirs != frame['query'], 'qid'].nunique()
        if rewritten:
            warn(f'{rewritten} queries of the {what} frame were rewritten on the way: their own words, column '
                 f'{first_of_all!r}, are taken. pt.rewrite.reset() brings them back for the stages between')
            frame = frame.assign(query=theirs)
    return with_lost_queries(frame)


def check_distinct(results: pd.DataFrame, what: str) -> None:
    """Refuse results that have a document of a query twice.

    Raises:
        ValueError: Some do; the message names the qids.
    """
    repeated = results[results.duplicated(['qid', 'docno'], keep=False)]
    if len(repeated):
        raise ValueError(f'{len(repeated)} rows of the {what} results repeat a (qid, docno) '
                         f'(qids {first(repeated["qid"])}): drop_duplicates(["qid", "docno"]) first')


def check_scores(results: pd.DataFrame, what: str) -> None:
    """Every score a finite number.

    Raises:
        ValueError: Missing, NaN or infinite scores.
    """
    if 'score' not in results.columns:
        raise ValueError(f'the {what} results have no column score: end the pipeline before this stage with a scorer, '
                         'or give pairwise_teacher=')
    scores = pd.to_numeric(results['score'], errors='coerce').astype(float)
    bad = results[~scores.abs().lt(float('inf'))]
    if len(bad):
        raise ValueError(f'{len(bad)} scores of the {what} results are NaN or infinite (qids {first(bad["qid"])}): '
                         'score every candidate, or drop these rows')


def check_overlap(topics: pd.DataFrame, qrels: pd.DataFrame, what: str) -> None:
    """Some query has a positive.

    Raises:
        ValueError: Topics and qrels have no query in common, or none with a positive.
    """
    positive = set(qrels.loc[qrels['label'] > 0, 'qid'])
    if not positive & set(topics['qid']):
        raise ValueError(f'none of the {len(topics)} {what} queries has a positive in the qrels: qids are '
                         f'{first(topics["qid"])} in the topics, {first(qrels["qid"])} in the qrels')


def check_relevant(candidates: pd.DataFrame, qrels: pd.DataFrame) -> None:
    """Some validation candidate is relevant; where most queries have none, that is said.

    Raises:
        ValueError: None is.
    """
    positives = qrels.loc[qrels['label'] > 0, ['qid', 'docno']]
    positives = positives[positives['qid'].isin(set(candidates['qid']))]
    found = candidates[['qid', 'docno']].astype(object).merge(positives, on=['qid', 'docno'])['qid'].nunique()
    n_queries = positives['qid'].nunique()
    if not found:
        raise ValueError(f'no validation candidate is judged relevant, and every measure would be 0: docnos are '
                         f'{first(candidates["docno"])} among the candidates, {first(positives["docno"])} in the '
                         'qrels. Retrieve deeper, or see that they agree')
    if found < n_queries / 2:
        warn(f'{n_queries - found} of {n_queries} validation queries have no relevant candidate: they say nothing of '
             'what is learnt. Retrieve deeper, or see that docnos agree')


def _string_ids(frame: pd.DataFrame, columns: tuple[str, ...], what: str) -> pd.DataFrame:
    for name in columns:
        missing = frame[name].isna()
        if missing.any():
            raise ValueError(f'{int(missing.sum())} rows of the {what} have no {name}: drop them')
        if pd.api.types.is_float_dtype(frame[name]):
            raise ValueError(f'column {name} of the {what} holds decimals (first: {frame[name].iloc[0]!r}), which a '
                             f'missing value turns whole numbers into: read it as text, dtype={{"{name}": str}}')
    return frame.assign(**{name: frame[name].astype(str) for name in columns})
