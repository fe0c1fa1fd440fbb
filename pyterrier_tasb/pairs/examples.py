"""From what a user has (topics, results, qrels, pipelines) to scored pairs and the texts they name."""
from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
from more_itertools import chunked

from .._files import fingerprint, read_json, write_json
from .._locks import rank
from .._warn import warn
from ..checks import (
    check_distinct,
    check_overlap,
    check_qrels,
    check_scores,
    check_topics_or_results,
    first,
    is_blank,
    name_of,
)
from ..text_loading import TextLoader, fetch_texts, text_loader
from ..texts import TextRows, TextStore
from .pipeline import remove_chunks
from .results import check_whole
from .store import ScoredPairs

_CHUNK = 4096   # texts fetched at a time: keeps memory flat whatever the corpus
_QUERIES = 64   # queries mined and scored at a time; a chunk is what an interruption loses
_MINED_AGAIN, _OTHERS = 8, .03   # queries, and the share of negatives that may be others: where scores are nearly equal


@dataclass(frozen=True)
class Examples:
    """What a retriever learns from.

    Args:
        pairs: (query, positive, negative, margin).
        queries: Text of query row i.
        docs: Text of document row j; rows of the corpus where that is a text store.
        dropped: What could not be used, with counts.
        positives: qid and docno of all that is judged above 0; None where no qrels were given.
    """
    pairs: ScoredPairs
    queries: TextStore
    docs: TextStore | TextRows
    dropped: dict[str, int] = field(default_factory=dict)
    positives: pd.DataFrame | None = None

    def judged(self) -> tuple[np.ndarray, np.ndarray] | None:
        """int64[n] query rows and int64[n] document rows of judged positives; a query's candidates may lack some."""
        if self.positives is None:
            return None
        wanted = set(self.positives['docno'])
        doc = {docno: row for row, docno in enumerate(map(str, self.pairs.docnos)) if docno in wanted}
        query = {qid: row for row, qid in enumerate(map(str, self.pairs.qids))}
        rows = [(query[qid], doc[docno]) for qid, docno in self.positives[['qid', 'docno']].itertuples(index=False)
                if qid in query and docno in doc]
        return tuple(np.array(rows, dtype=np.int64).reshape(-1, 2).T)


def prepare(topics_or_res: pd.DataFrame, qrels: pd.DataFrame, folder: Path, *,
            negatives: pt.Transformer | None = None, corpus: Any = None,
            teacher: pt.Transformer | None = None, text_field: str = 'text', scores_needed: bool = True,
            max_pairs_per_query: int | None = 1000, seed: int = 0, context: Any = None,
            claim: Callable[[dict[str, Any]], None] | None = None,
            check_queries: Callable[[pd.Series], None] | None = None) -> Examples:
    """Check what a user gave and turn it into examples, in `folder` or found there.

    Args:
        topics_or_res: Results with text, or topics.
        qrels: Training qrels.
        folder: Where pairs and texts go.
        negatives: The pipeline that mines candidates of topics.
        corpus: See :func:`text_loader`.
        teacher: Scores (query, text); None takes the incoming score.
        text_field: Column of the passages' text.
        scores_needed: False where no loss reads a score.
        max_pairs_per_query: Pairs kept of a query that has more.
        seed: Of that choice.
        context: The transformer that asks, for messages.
        claim: Called with fingerprints of the data, after all checks and before anything is written.
        check_queries: Called with the qids that have positives, before any is mined or scored.

    Raises:
        ValueError: Nothing can be learnt from it; the message names column, ids and remedy.
    """
    if topics_or_res is None or qrels is None:
        raise ValueError('nothing to learn from: fit(topics or results, qrels), or fit(topics, pairs=…)')
    qrels = check_qrels(qrels, 'training', context)
    topics, results = check_topics_or_results(topics_or_res, 'training', text_field, context=context)
    check_overlap(topics, qrels, 'training')
    _check_source(results, negatives, corpus, teacher, text_field, scores_needed)
    topics = topics[topics['qid'].isin(set(qrels.loc[qrels['label'] > 0, 'qid']))].reset_index(drop=True)
    if check_queries is not None:
        check_queries(topics['qid'])
    if claim is not None:
        claim({'topics': frame_fingerprint(topics, ('qid', 'query')),
               'qrels': frame_fingerprint(qrels, ('qid', 'docno', 'label')),
               'results': frame_fingerprint(results, ('qid', 'docno', 'score', text_field)),
               'negatives': name_of(negatives), 'pairwise_teacher': name_of(teacher)})
    source = CandidateSource(qrels, results=results, negatives=negatives, corpus=corpus, teacher=teacher,
                             text_field=text_field, scores_needed=scores_needed, counts=folder / 'dropped.json')
    path = folder / 'pairs'
    if (path / 'pt_meta.json').exists():
        pairs = ScoredPairs(path)
        if rank() == 0:   # the others find the pairs that it has just made
            remove_chunks(path)
            if results is None:
                _check_mined(pairs, topics, source, max_pairs_per_query)
    else:
        try:
            pairs = _made(source, topics, qrels, path, max_pairs_per_query=max_pairs_per_query, seed=seed)
        except ValueError:
            source.report()   # which may be why
            raise
    source.report()
    return Examples(pairs, query_store(pairs, topics, folder / 'queries'),
                    doc_store(pairs, results, corpus, folder / 'docs', text_field), source.dropped, source.positives)


def _made(source: CandidateSource, topics: pd.DataFrame, qrels: pd.DataFrame, path: Path, **draw: Any) -> ScoredPairs:
    if source.results is None or source.teacher is not None:
        return ScoredPairs.from_pipeline(source, topics, qrels, path, chunk=_QUERIES, verified=True, **draw)
    candidates = source(topics)
    if not len(candidates):
        raise ValueError(f'nothing is left of {len(source.results)} training results: {source.dropped}')
    return ScoredPairs.from_results(candidates, qrels, path, **draw)


def _check_mined(pairs: ScoredPairs, topics: pd.DataFrame, source: CandidateSource, most: int | None) -> None:
    """Mine a few queries again: two miners of one name need not be one.

    Raises:
        ValueError: They get other negatives than those of the pairs.
    """
    again = copy.copy(source)
    again.counts, again._counted = None, {}   # what was dropped is counted already
    rows = {pairs.qids[int(row)]: int(row)
            for row in np.linspace(0, pairs.n_queries - 1, _MINED_AGAIN).astype(int)}
    some = topics[topics['qid'].isin(rows)]
    mined = again(some)
    found = mined.merge(again.positives, on=['qid', 'docno'], how='left', indicator=True)
    found = found[found['_merge'] == 'left_only'].groupby('qid')['docno'].agg(set)
    others = n = 0
    for qid, row in rows.items():
        start, stop = int(pairs.indptr[row]), int(pairs.indptr[row + 1])
        kept = {str(pairs.docnos[int(doc)]) for doc in np.unique(pairs.neg[start:stop])}
        now = found.get(qid, set())
        whole = most is None or stop - start < most   # else the pairs are a choice
        others, n = others + len(kept - now) + whole * len(now - kept), n + len(kept | now if whole else kept)
    if others > _OTHERS * n and set(mined['docno']) == set(again(some)['docno']):   # else it draws at random
        raise ValueError(f'{pairs.path} holds pairs of other candidates than {source.negatives!r} finds now ({others} '
                         f'of {n} negatives of {len(rows)} queries): use another work_dir, or delete it')


def _check_source(results: pd.DataFrame | None, negatives: pt.Transformer | None, corpus: Any,
                  teacher: pt.Transformer | None, text_field: str, scores_needed: bool) -> None:
    if results is None:
        if negatives is None or corpus is None:
            raise ValueError('topics without candidates: give negatives= (a pipeline) and corpus= (something with a '
                             'text loader), or fit (candidates >> text >> this)')
        return
    if text_field not in results.columns and corpus is None:
        raise ValueError(f'the training results have no column {text_field!r}: put a text loader before this stage '
                         '(candidates >> text >> this), or give corpus=')
    if teacher is None and scores_needed:
        check_scores(results, 'training')


class CandidateSource(pt.Transformer):
    """Training queries → their candidates with text and the teacher's score.

    Candidates come from a results frame or a pipeline. Positives that they lack are fetched from the corpus and
    scored like the rest; where that is impossible they are dropped and counted in `dropped`.

    Args:
        qrels: Frame with qid, docno, label.
        results: Given candidates (qid, query, docno, text, score), or None.
        negatives: The pipeline that mines candidates where `results` is None.
        corpus: Where texts come from; see :func:`text_loader`.
        teacher: Scores (query, text); None takes the incoming score.
        text_field: Column of the passages' text.
        scores_needed: False where no loss reads a score; absent ones are then 0.
        counts: A file that keeps what was dropped, for a call that goes on; None keeps it in memory.
    """

    def __init__(self, qrels: pd.DataFrame, *, results: pd.DataFrame | None = None,
                 negatives: pt.Transformer | None = None, corpus: Any = None,
                 teacher: pt.Transformer | None = None, text_field: str = 'text', scores_needed: bool = True,
                 counts: Path | None = None) -> None:
        self.qrels, self.results, self.negatives, self.corpus = qrels, results, negatives, corpus
        self.teacher, self.text_field, self.scores_needed = teacher, text_field, scores_needed
        self._loader = None if corpus is None else text_loader(corpus, text_field)
        self.positives = qrels[qrels['label'] > 0][['qid', 'docno']]
        self._now: dict[str, int] = {}
        self.counts, self._counted = counts, {}   # by the first query of a call: one that is repeated counts once
        if counts is not None and counts.exists():
            self._counted = read_json(counts)

    @property
    def dropped(self) -> dict[str, int]:
        """What could not be used so far, with counts."""
        total = Counter()
        for some in self._counted.values():
            total.update(some)
        return dict(total)

    def transform(self, topics: pd.DataFrame) -> pd.DataFrame:
        """Candidates of `topics` (qid, query), with `text_field` and `score`."""
        pt.validate.query_frame(topics, extra_columns=['query'], context=self)
        found = self._with_scores(self._of_use(self.with_text(self.with_relevant(topics))))
        if self._now:
            self._counted[topics['qid'].iloc[0]] = self._now
            if self.counts is not None:
                write_json(self.counts, self._counted)
        return found

    def candidates(self, topics: pd.DataFrame) -> pd.DataFrame:
        """Candidates as they come, before positives, texts and the teacher's scores are added."""
        if self.results is not None:
            found = self.results[self.results['qid'].isin(set(topics['qid']))]
        else:
            found = self.negatives(topics[['qid', 'query']])
            pt.validate.result_frame(found, context=self)
            queries = topics.set_index('qid')['query']
            # a rewriting miner (Terrier's tokeniser, expansion) must not change what the student learns to read
            found = found.assign(query=found['qid'].map(queries))
        keep = [name for name in ('qid', 'query', 'docno', self.text_field, 'score') if name in found.columns]
        return found[keep].assign(docno=found['docno'].astype(str))

    def _missing_positives(self, topics: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
        wanted = self.positives.merge(topics[['qid', 'query']], on='qid')
        merged = wanted.merge(found[['qid', 'docno']], on=['qid', 'docno'], how='left', indicator=True)
        missing = merged[merged['_merge'] == 'left_only'][['qid', 'query', 'docno']]
        if self._loader is not None and (self.teacher is not None or not self.scores_needed):
            return missing
        self._count('positives that the candidates lack (give corpus= and pairwise_teacher= to fetch and score them)',
                    len(missing))
        return missing.iloc[:0]

    def with_relevant(self, topics: pd.DataFrame) -> pd.DataFrame:
        """Candidates of `topics` and all their positives, as they come."""
        self._now = {}
        found = self.candidates(topics)
        return pd.concat([found, self._missing_positives(topics, found)], ignore_index=True)

    def usable(self, found: pd.DataFrame, texts: TextStore | None) -> pd.DataFrame:
        """Validation candidates with text, or in a text store; what has none is dropped with a warning.

        Raises:
            ValueError: Nothing is left.
        """
        if texts is None or self.text_field in found.columns:
            found = self.with_text(found)
        else:
            known = texts.index_of(found['docno'].astype(str).tolist()) >= 0
            self._count('candidates without text', int((~known).sum()))
            found = found[known].reset_index(drop=True)
        self._counted['validation'] = self._now
        self.report('validation')
        if not len(found):
            raise ValueError('no validation candidate has text: put a text loader into what makes them, or give '
                             'corpus=')
        return found

    def with_text(self, found: pd.DataFrame) -> pd.DataFrame:
        """Candidates with the text that they lack, as far as the corpus has it; those without are dropped."""
        if self.text_field not in found.columns:
            found = found.assign(**{self.text_field: pd.Series([None] * len(found), dtype=object, index=found.index)})
        without = found[self.text_field].isna()
        if without.any() and self._loader is not None:
            loaded = fetch_texts(self._loader, found.loc[without, 'docno'].unique(), self.text_field)
            texts = found[self.text_field].astype(object)
            texts[without] = found.loc[without, 'docno'].map(loaded)
            found = found.assign(**{self.text_field: texts})
        lacking = is_blank(found[self.text_field])
        self._count('candidates without text', int(lacking.sum()))
        return found[~lacking].reset_index(drop=True)

    def _of_use(self, found: pd.DataFrame) -> pd.DataFrame:
        """Candidates of queries that have both a positive and a negative: a teacher need not score others."""
        if self.teacher is None:
            return found
        relevant = found[['qid', 'docno']].merge(self.positives, how='left', indicator='side')['side'] == 'both'
        if not relevant.any():
            check_whole(found, self.qrels)
        kinds = relevant.groupby(found['qid']).nunique()
        return found[found['qid'].map(kinds).eq(2)].reset_index(drop=True)

    def _with_scores(self, found: pd.DataFrame) -> pd.DataFrame:
        if self.teacher is not None and len(found):
            scored = self.teacher(found.drop(columns='score', errors='ignore'))
            pt.validate.result_frame(scored, extra_columns=['score'], context=self.teacher)
            scored = scored.astype({'qid': str, 'docno': str})
            check_distinct(scored, "pairwise teacher's")
            before = len(found)
            found = found.drop(columns='score', errors='ignore').merge(
                scored[['qid', 'docno', 'score']], on=['qid', 'docno'], how='inner')
            self._count('candidates that the pairwise teacher did not score', before - len(found))
        elif self.teacher is not None or not self.scores_needed:
            found = found.assign(score=0.0)
        return found

    def _count(self, what: str, n: int) -> None:
        if n:
            self._now[what] = self._now.get(what, 0) + n

    def report(self, what: str = 'training') -> None:
        """Warn once of what was dropped from `what` data, with counts."""
        if self.dropped:
            parts = '; '.join(f'{n:,} {reason}' for reason, n in self.dropped.items())
            warn(f'dropped from the {what} data: {parts}')

    def __repr__(self) -> str:
        source = 'results' if self.results is not None else repr(self.negatives)
        return f'CandidateSource({source}, teacher={self.teacher!r})'


def query_store(pairs: ScoredPairs, topics: pd.DataFrame, path: Path) -> TextStore:
    """The text of every query row, in order.

    Raises:
        ValueError: A query of the pairs is not in `topics`.
    """
    texts = dict(zip(topics['qid'].astype(str), topics['query'].astype(object), strict=True))
    missing = [qid for qid in pairs.qids if qid not in texts]
    if missing:
        raise ValueError(f'{len(missing)} queries of the pairs have no text in the topics (first: {missing[:5]}): '
                         'pass a topics frame (qid, query) that has them')
    return _store(path, ((qid, texts[qid]) for qid in pairs.qids), pairs.qids)


def doc_store(pairs: ScoredPairs, results: pd.DataFrame | None, corpus: Any, path: Path,
              text_field: str = 'text') -> TextStore | TextRows:
    """The text of every document row, in order: from the results frame where it has them, else from the corpus.

    Raises:
        ValueError: A document has no text anywhere.
    """
    known: dict[str, str] = {}
    if results is not None and text_field in results.columns:
        rows = results[~is_blank(results[text_field])]
        distinct = rows[['docno', text_field]].drop_duplicates()
        several = distinct.loc[distinct.duplicated('docno', keep=False), 'docno']
        if len(several):
            warn(f'{several.nunique()} documents of the training results have more than one text (docnos '
                 f'{first(several)}): the student reads the first of each, whatever the teacher read')
        kept = distinct.drop_duplicates('docno')
        known = dict(zip(kept['docno'].astype(str), kept[text_field].astype(object), strict=True))
    loader = None if corpus is None else text_loader(corpus, text_field)
    if isinstance(loader, TextLoader) and not known:
        return TextRows(loader.texts, _found(loader.texts.index_of(pairs.docnos), pairs.docnos))

    def items() -> Iterator[tuple[str, str]]:
        for docnos in chunked(pairs.docnos, _CHUNK):
            docnos = [str(docno) for docno in docnos]
            absent = [docno for docno in docnos if docno not in known]
            loaded = fetch_texts(loader, absent, text_field) if absent and loader is not None else {}
            _found(np.array([docno in known or docno in loaded for docno in docnos]) - 1, docnos)
            yield from ((docno, known[docno] if docno in known else loaded[docno]) for docno in docnos)
    store = _store(path, items(), pairs.docnos)
    if loader is not None:
        _check_unchanged(store, [docno for docno in _some(store.ids) if docno not in known], loader, text_field)
    return store


def _some(ids: Any, n: int = 50) -> list[str]:
    """At most `n` of them, from beginning to end."""
    return [ids[int(row)] for row in np.unique(np.linspace(0, len(ids) - 1, n).astype(int))]


def _check_unchanged(store: TextStore, docnos: list[str], loader: pt.Transformer, text_field: str) -> None:
    """Compare some texts with those of the corpus: a work directory may have been made of an earlier one.

    Raises:
        ValueError: One has changed.
    """
    loaded = fetch_texts(loader, docnos, text_field) if docnos else {}
    changed = [docno for docno, row in zip(docnos, store.index_of(docnos)) if loaded.get(docno) != store[row]]
    if changed:
        raise ValueError(f'{store.path} holds other texts than corpus= ({len(changed)} of {len(docnos)} looked at, '
                         f'first: {changed[:5]}): use another work_dir, or delete it')


def _found(rows: np.ndarray, docnos: Any) -> np.ndarray:
    """`rows`, none of which is below 0.

    Raises:
        ValueError: Some are; the message names their documents.
    """
    lost = np.flatnonzero(rows < 0)
    if len(lost):
        raise ValueError(f'{len(lost)} documents of the pairs have no text (first: {[docnos[i] for i in lost[:5]]}): '
                         'give corpus= something whose text_loader() knows them')
    return rows


def _store(path: Path, items: Iterator[tuple[str, str]], ids: Any) -> TextStore:
    if path.exists():
        store = TextStore(path)
        if len(store) == len(ids):
            return store
        raise ValueError(f'{path} holds the texts of other data: use another work_dir, or delete it')
    return TextStore.build(path, items)


def frame_fingerprint(frame: pd.DataFrame | None, columns: tuple[str, ...]) -> str | None:
    """A hash of some columns of a frame, whatever its index."""
    if frame is None:
        return None
    present = [name for name in columns if name in frame.columns]
    # bytes, because half of a surrogate pair has no utf-8
    as_bytes = {name: frame[name] if name == 'score' else
                frame[name].astype(object).map(lambda value: str(value).encode('utf-8', 'surrogatepass'))
                for name in present}
    hashes = pd.util.hash_pandas_object(pd.DataFrame(as_bytes), index=False)
    return fingerprint(present, np.asarray(hashes, dtype=np.uint64))
