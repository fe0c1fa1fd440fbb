"""The sparse baselines: BM25 by Terrier, or by PISA where there is no Java, and docT5query over either."""
from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pandas as pd
import pyterrier as pt
from more_itertools import chunked, peekable

from ._files import atomic_dir
from ._interrupts import take_ctrl_c
from ._locks import LOCK, locked
from ._warn import warn
from .checks import check_texts
from .documents import Corpus, checked, utf8
from .retrieval import WithoutDocid, WithoutSettings

_PARAMETERS = {'terrier': (1.2, 0.75), 'pisa': (0.9, 0.4)}   # k1 and b, each engine's own defaults
_EXPANDED_AT_A_TIME = 1000   # documents
_LETTERS = {'english': re.compile('[A-Za-z0-9]'), 'utf': re.compile(r'[^\W_]')}
_WITHOUT_TERMS, _MANY = 100_000, .1   # documents, and the share of all, that are worth a word
_LEAST_ROOM = 100 << 20   # bytes free for an index of PISA's


@dataclass(frozen=True)
class Sparse:
    """A BM25 retriever and what to call it in a table.

    Args:
        retriever: Queries → results, without `docid`; `query` stays the user's.
        label: Names engine, k1 and b.
    """
    retriever: pt.Transformer
    label: str


def available_engine() -> str:
    """'terrier' where there is a Java machine, else 'pisa'.

    Raises:
        ImportError: Neither is there.
    """
    if shutil.which('java') or os.environ.get('JAVA_HOME'):
        return 'terrier'
    try:
        import pyterrier_pisa  # noqa: F401
    except ImportError as error:
        raise ImportError('BM25 needs Java (for Terrier) or PISA: pip install pyterrier_pisa') from error
    return 'pisa'


def bm25(corpus: Corpus, path: str | os.PathLike, *, engine: str = 'auto', k1: float | None = None,
         b: float | None = None, num_results: int = 1000, name: str = 'BM25',
         expansion: pt.Transformer | None = None, tokeniser: str = 'english') -> Sparse:
    """Index a corpus (docno, text) and search it with BM25; an index that is there is used as it is.

    Where another process is building the same index, this one waits and opens what that has made. PISA ends the
    process when the disk fills up: it is not started on one that is nearly full, and for a large corpus there should
    be as much room as the texts take.

    Args:
        corpus: Dictionaries with docno (a string or a whole number) and text, a text store or a data set
            (anything with `get_corpus_iter`); streamed.
        path: The index's directory; the engine's name is added to it, and that of another tokeniser than 'english'.
        engine: 'terrier', 'pisa', or 'auto' for whichever is there.
        k1: None takes the engine's default (Terrier 1.2, PISA 0.9).
        b: None takes the engine's default (Terrier 0.75, PISA 0.4).
        num_results: Results for each query.
        name: First word of the label.
        expansion: Applied to documents before they are indexed, `Doc2Query(append=True)` for docT5query.
        tokeniser: Terrier's. 'english' knows the letters a to z and digits, 'utf' those of all scripts. PISA is as
            'english', and leaves accents out.

    Raises:
        ValueError: An engine or a tokeniser that is not known, a document that the engine cannot hold, without docno or
            text, or with a docno that came before, a corpus that is empty or of other letters than the tokeniser's, or
            less than 100 MB of room for PISA.
        ImportError: No engine is there.
    """
    engine = available_engine() if engine == 'auto' else engine
    if engine not in _PARAMETERS:
        raise ValueError(f'engine={engine!r}: must be terrier, pisa or auto')
    if tokeniser not in _LETTERS or tokeniser != 'english' and engine == 'pisa':
        raise ValueError(f'tokeniser={tokeniser!r}: must be english, or utf with engine="terrier"')
    k1 = _PARAMETERS[engine][0] if k1 is None else k1
    b = _PARAMETERS[engine][1] if b is None else b
    path = Path(f'{path}.{engine}' if tokeniser == 'english' else f'{path}.{engine}-{tokeniser}').absolute()
    if engine == 'pisa':
        return Sparse(_pisa(corpus, path, k1, b, num_results, expansion), f'{name} (PISA, k1={k1:g}, b={b:g})')
    return Sparse(_terrier(corpus, path, k1, b, num_results, expansion, tokeniser),
                  f'{name} (Terrier, k1={k1:g}, b={b:g})')


class UsersQuery(WithoutSettings):
    """`pt.rewrite.reset()`, before which a cutoff can be made: Terrier then searches for no more."""

    schematic = {'label': 'reset query'}

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Results with the query that was rewritten."""
        pt.validate.result_frame(inp, extra_columns=['query', 'query_0'], context=self)
        return pt.model.pop_queries(inp)

    def fuse_rank_cutoff(self, k: int) -> pt.Transformer:
        """Cut before."""
        return pt.RankCutoff(k) >> self


def _terrier(corpus: Corpus, path: Path, k1: float, b: float, num_results: int, expansion: pt.Transformer | None,
             tokeniser: str) -> pt.Transformer:
    if not pt.java.started():
        pt.java.init()
    take_ctrl_c()
    longest = 100   # bytes of a docno; Terrier cuts longer ones in silence
    docs = _fitting(corpus, lambda docno: len(docno.encode()) <= longest, f'Terrier takes at most {longest} bytes')
    _build(path, _readable(docs, tokeniser), expansion, lambda part: pt.IterDictIndexer(
        str(part), meta={'docno': longest}, text_attrs=['text'], tokeniser=tokeniser))
    search = pt.terrier.TerrierIndex(str(path)).bm25(k1=k1, b=b, num_results=num_results)
    # Terrier reads operators in queries: it gets tokens, the stages after it the user's words
    return CheckedQueries() >> pt.rewrite.tokenise(tokeniser) >> search >> UsersQuery() >> WithoutDocid()


def _pisa(corpus: Corpus, path: Path, k1: float, b: float, num_results: int,
          expansion: pt.Transformer | None) -> pt.Transformer:
    try:
        from pyterrier_pisa import PisaIndex
    except ImportError as error:
        raise ImportError('engine="pisa" needs PISA: pip install pyterrier-tasb[pisa]') from error
    docs = _fitting(corpus, lambda docno: docno.split() == [docno], 'PISA cuts it at the first white space')

    def indexer(part: Path) -> pt.Indexer:
        free = shutil.disk_usage(part).free
        if free < _LEAST_ROOM:
            raise ValueError(f'{part.parent} has room for {free >> 20} MB, and PISA ends the process when a disk is '
                             'full: make room, or index with engine="terrier"')
        return PisaIndex(str(part), text_field='text')
    _build(path, _readable(map(_in_utf8, docs), 'english'), expansion, indexer)
    return CheckedQueries() >> PisaIndex(str(path), text_field='text').bm25(k1=k1, b=b, num_results=num_results)


def _fitting(corpus: Corpus, fits: Callable[[str], bool], rule: str) -> Iterator[dict]:
    for doc in checked(corpus):
        if not fits(doc['docno']):
            raise ValueError(f'docno {doc["docno"]!r}: {rule}')
        yield doc


def _in_utf8(doc: dict) -> dict:
    return {**doc, 'text': utf8(doc['text'])}


def _readable(docs: Iterator[dict], tokeniser: str) -> Iterator[dict]:
    """Documents, not before one has a term: PISA ends the process, and Terrier has no lexicon, where none has.

    Raises:
        ValueError: None of all has one, or of the first 100,000.
    """
    def has_term(doc: dict) -> bool:
        return bool(_LETTERS[tokeniser].search(doc['text']))
    remedy, waiting = 'give engine="terrier", tokeniser="utf" for other scripts', []
    for doc in islice(docs, _WITHOUT_TERMS):
        waiting.append(doc)
        if has_term(doc):
            break
    else:
        if waiting:
            raise ValueError(f'none of {len(waiting):,} documents has a letter or a digit that BM25 would index (the '
                             f'first is {waiting[0]["docno"]!r}): {remedy}')
    n, without = len(waiting), len(waiting) - 1
    yield from waiting
    del waiting
    for doc in docs:
        n, without = n + 1, without + (not has_term(doc))
        yield doc
    if without > _MANY * n:
        warn(f'{without:,} of {n:,} documents have no letter or digit that BM25 indexes and cannot be found: '
             f'{remedy}')


class CheckedQueries(WithoutSettings):
    """Queries that are text, in what the engines can read: they end the process, or fail without a word of which."""

    schematic = {'label': 'check queries'}

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Queries without zero bytes and half surrogate pairs."""
        pt.validate.query_frame(inp, extra_columns=['query'], context=self)
        check_texts(inp, 'query', context=self)
        return inp.assign(query=inp['query'].astype(object).map(lambda query: utf8(query).replace('\0', ' ')))


def _build(path: Path, docs: Iterator[dict], expansion: pt.Transformer | None,
           indexer: Callable[[Path], pt.Indexer]) -> None:
    """Index documents unless `path` is there, or is made by another process meanwhile."""
    if path.exists():
        return
    with _alone(path.with_name(path.name + '.lock')):
        if not path.exists():
            _index(path, docs, expansion, indexer)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Others wait for this process, which leaves no trace."""
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(locked(folder, wait=True))
                break
            except FileNotFoundError:   # the process that was waited for has removed it
                continue
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)
            with suppress(OSError):
                folder.rmdir()


def _index(path: Path, docs: Iterator[dict], expansion: pt.Transformer | None,
           indexer: Callable[[Path], pt.Indexer]) -> None:
    """The index appears only when all documents are in it.

    Both engines read in a thread of their own, whose errors they take for the end of the documents.
    """
    errors: list[BaseException] = [RuntimeError('the engine stopped before it had read all documents')]

    def read() -> Iterator[dict]:
        try:
            yield from docs if expansion is None else _expanded(docs, expansion)
            errors.clear()
        except Exception as error:
            errors[:] = [error]

    with atomic_dir(path) as part:
        documents = peekable(read())
        if documents:
            indexer(part).index(documents)
        elif not errors:
            raise ValueError('the corpus has no documents: nothing was indexed')
        if errors:
            raise errors[0]


def _expanded(docs: Iterator[dict], expansion: pt.Transformer) -> Iterator[dict]:
    for batch in chunked(docs, _EXPANDED_AT_A_TIME):
        yield from expansion.transform_iter(batch)
