"""A user's own collection, from files in a simple layout or from ir_datasets, as a PyTerrier data set with splits."""
from __future__ import annotations

import gzip
import json
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyterrier as pt

from ._files import claim, file_fingerprint, fingerprint, unless_made
from .text_loading import TextLoader
from .texts import TextStore

SPLITS = ('train', 'dev', 'test')


class _Texts:
    """What collections have in common: their texts by docno, on disk."""

    _store: TextStore | None = None

    def text_store(self, path: str | os.PathLike) -> TextStore:
        """The texts by docno, memory-mapped at `path`; built there the first time, and used by `text_loader`.

        Raises:
            ValueError: `path` holds the texts of another collection, or of this one as it was.
        """
        is_there, name = Path(path).exists(), 'collection.json'
        self._store = self._built(Path(path))
        if not is_there or (self._store.path / name).exists():   # one that a user built says nothing of whose it is
            claim(path, 'texts', {'collection': self.fingerprint}, name)
        return self._store

    def _built(self, path: Path) -> TextStore:
        if not path.exists():
            with unless_made(path):
                return TextStore.build(path, ((doc['docno'], doc['text']) for doc in self.get_corpus_iter()))
        return TextStore(path)

    def text_loader(self, fields: str | list[str] = 'text', *, verbose: bool = False) -> TextLoader:
        """A transformer that adds the text by docno, from :meth:`text_store` or a temporary one.

        Args:
            fields: Only 'text' is there.
            verbose: Taken, as by every data set; a look into memory maps shows no progress.
        """
        if set([fields] if isinstance(fields, str) else fields) - {'text', '*'}:
            raise ValueError(f'fields={fields!r}: {type(self).__name__} has the field text only')
        if self._store is None:
            folder = tempfile.TemporaryDirectory(prefix='tasb-texts-')
            self._store = self._built(Path(folder.name) / 'texts')
            self._store.temporary = folder   # loaders may outlive this
        return TextLoader(self._store)

    def __getstate__(self) -> dict[str, Any]:
        """Without a temporary store: where the collection is opened again, its files make another."""
        temporary = self._store is not None and self._store.temporary is not None
        return {**self.__dict__, '_store': None} if temporary else self.__dict__


class Collection(_Texts):
    """`corpus.jsonl[.gz]` (docno, text), `queries.{train,dev,test}.tsv` (qid, text), `qrels.{train,dev,test}.tsv`.

    Qrels have four columns (qid, 0, docno, grade), separated by tabs or spaces. A split whose files are absent is
    empty, but where there is no dev split every tenth training query, by a hash of its qid, becomes one: the split
    never moves when queries are added.

    Args:
        path: The directory.

    Raises:
        ValueError: The directory or a file is missing or malformed; the message names file and line.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path).absolute()   # also after a change of directory
        names = [name for name in ('corpus.jsonl', 'corpus.jsonl.gz') if (self.path / name).exists()]
        if not names:
            raise ValueError(f'{self.path} has no corpus.jsonl or corpus.jsonl.gz: one JSON object a line with docno '
                             'and text')
        self.corpus_file = self.path / names[0]
        if not (self.path / 'queries.train.tsv').exists() and not (self.path / 'queries.test.tsv').exists():
            raise ValueError(f'{self.path} has neither queries.train.tsv nor queries.test.tsv (qid, tab, text)')

    @property
    def fingerprint(self) -> str:
        """A hash of the corpus file."""
        return file_fingerprint(self.corpus_file)

    def get_corpus_iter(self, verbose: bool = False) -> Iterator[dict[str, str]]:
        """Documents in file order, as dictionaries with docno and text."""
        lines, empty = _lines(self.corpus_file), True
        for number, line in pt.tqdm(lines, desc=self.corpus_file.name, unit='doc', disable=not verbose):
            if not line.strip():
                continue
            try:
                doc = json.loads(line)
                docno, text = doc['docno'], doc['text']
                if isinstance(docno, bool) or not isinstance(docno, (str, int)) or not isinstance(text, str):
                    raise TypeError('docno or text is no string')
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(f'{self.corpus_file}, line {number}: expected a JSON object with docno and text '
                                 f'({error!r})') from error
            yield {'docno': str(docno), 'text': text}
            empty = False
        if empty:
            raise ValueError(f'{self.corpus_file} has no documents: one JSON object a line with docno and text')

    def get_topics(self, variant: str = 'test') -> pd.DataFrame:
        """Queries of a split: qid, query."""
        source, keep = self._source(variant)
        path, columns = self.path / f'queries.{source}.tsv', {'qid': str, 'query': str}
        texts: dict[str, str] = {}
        for number, (qid, query) in _rows(path, columns, tab_only=True):
            if texts.setdefault(qid, query) != query:
                raise ValueError(f'{path}, line {number}: qid {qid!r} came before with another text: qids must be '
                                 'distinct')
        return _of_split(_frame(texts.items(), columns), keep)

    def get_qrels(self, variant: str = 'test') -> pd.DataFrame:
        """Judgements of a split: qid, docno, label."""
        source, keep = self._source(variant)
        columns = {'qid': str, 'iteration': str, 'docno': str, 'label': int}
        rows = (row for _, row in _rows(self.path / f'qrels.{source}.tsv', columns))
        return _of_split(_frame(rows, columns).drop(columns='iteration'), keep)

    def _source(self, variant: str) -> tuple[str, Callable[[str], bool]]:
        _check_split(variant)
        if (self.path / 'queries.dev.tsv').exists() or variant == 'test':
            return variant, _every
        return 'train', lambda qid: _held_out(qid) == (variant == 'dev')

    def __repr__(self) -> str:
        return f'Collection({str(self.path)!r})'


class IrdsCollection(_Texts):
    """Data sets of ir_datasets as train, dev and test.

    Two ids are train and test, three are train, dev and test; the dev split of two is every tenth training query by a
    hash of its qid. The queries of one id are split by that hash into eight tenths, one and one. Documents are those
    of the first id; their text is all their text fields.

    Args:
        *ids: Ids, 'msmarco-passage/train/judged' for example.

    Raises:
        ValueError: There is no id or more than three.
    """

    def __init__(self, *ids: str) -> None:
        if not 1 <= len(ids) <= 3:
            raise ValueError(f'{len(ids)} ids: give one to split, train and test, or train, dev and test')
        self.ids = ids
        self._sets = [pt.get_dataset(f'irds:{i}') for i in ids]

    @property
    def fingerprint(self) -> str:
        """A hash of the id that documents come from."""
        return fingerprint(self.ids[0])

    def get_corpus_iter(self, verbose: bool = False) -> Iterator[dict[str, str]]:
        """Documents, as dictionaries with docno and text."""
        for doc in self._sets[0].get_corpus_iter(verbose=verbose):
            fields = [value for name, value in doc.items() if name not in ('docno', 'url') and isinstance(value, str)]
            yield {'docno': str(doc['docno']), 'text': ' '.join(field for field in fields if field)}

    def get_topics(self, variant: str = 'test') -> pd.DataFrame:
        """Queries of a split: qid, query."""
        source, keep = self._source(variant)
        topics = source.get_topics()
        name = next(name for name in ('query', 'text', 'title', *topics.columns) if name in topics and name != 'qid')
        topics = topics[['qid', name]].rename(columns={name: 'query'}).astype(str)
        return _of_split(topics, keep)

    def get_qrels(self, variant: str = 'test') -> pd.DataFrame:
        """Judgements of a split: qid, docno, label."""
        source, keep = self._source(variant)
        qrels = source.get_qrels()[['qid', 'docno', 'label']].astype({'qid': str, 'docno': str, 'label': int})
        return _of_split(qrels, keep)

    def _source(self, variant: str) -> tuple[Any, Callable[[str], bool]]:
        _check_split(variant)
        first, last = self._sets[0], self._sets[-1]
        if len(self._sets) == 1:
            tenths = {'train': range(2, 10), 'dev': range(0, 1), 'test': range(1, 2)}[variant]
            return first, lambda qid: _tenth(qid) in tenths
        if variant == 'test':
            return last, _every
        if len(self._sets) == 3:
            return self._sets[variant == 'dev'], _every
        return first, lambda qid: _held_out(qid) == (variant == 'dev')

    def __repr__(self) -> str:
        return f'IrdsCollection({", ".join(map(repr, self.ids))})'


def _check_split(variant: str) -> None:
    if variant not in SPLITS:
        raise ValueError(f'variant={variant!r}: must be one of {", ".join(SPLITS)}')


def _every(qid: str) -> bool:
    return True


def _tenth(qid: str) -> int:
    return zlib.crc32(qid.encode()) % 10


def _held_out(qid: str) -> bool:
    return _tenth(qid) == 0


def _of_split(rows: pd.DataFrame, keep: Callable[[str], bool]) -> pd.DataFrame:
    return rows[rows['qid'].map(keep).astype(bool)].reset_index(drop=True)   # no rows: pandas has no bool to infer


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers from 1, without a byte order mark."""
    opener, number = gzip.open if path.suffix == '.gz' else open, 0
    with opener(path, 'rb') as lines:
        while True:
            try:
                line = next(lines, None)
            except (EOFError, OSError, zlib.error) as error:
                raise ValueError(f'{path}, after line {number}: the file is cut off or damaged ({error}): fetch it '
                                 'again') from error
            if line is None:
                return
            number += 1
            try:
                text = line.decode('utf-8-sig' if number == 1 else 'utf-8')
            except UnicodeDecodeError as error:
                raise ValueError(f'{path}, line {number}: not UTF-8 ({error})') from error
            yield number, text


def _rows(path: Path, columns: dict[str, type], tab_only: bool = False) -> Iterator[tuple[int, list]]:
    """Line numbers and rows of a file; none where there is no file."""
    for number, line in _lines(path) if path.exists() else ():
        cells = [cell.strip() for cell in line.split('\t' if tab_only else None, len(columns) - 1)]
        if not any(cells):
            continue
        try:
            if not all(cells):
                raise ValueError('an empty column')
            row = [kind(cell) for kind, cell in zip(columns.values(), cells, strict=True)]
        except ValueError as error:
            raise ValueError(f'{path}, line {number}: expected {len(columns)} columns ({", ".join(columns)}), '
                             f'found {line.rstrip()[:80]!r} ({error})') from error
        yield number, row


def _frame(rows: Iterable[Sequence], columns: dict[str, type]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(columns)).astype(columns)
