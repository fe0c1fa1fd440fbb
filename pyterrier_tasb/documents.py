"""A corpus, in any of its forms, as documents that an index can hold."""
from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from .numbering import Numbering
from .texts import TextStore, is_id


class DataSet(Protocol):
    """What documents come from: a collection, a data set of PyTerrier's."""

    def get_corpus_iter(self) -> Iterator[dict]:
        """Dictionaries with docno and text."""


Corpus = Iterable[dict] | TextStore | DataSet


def documents(corpus: Corpus, text_field: str = 'text') -> Iterator[dict]:
    """The documents of a corpus, as they come.

    Args:
        corpus: Dictionaries, a text store, or a data set: anything with `get_corpus_iter`.
        text_field: Where the texts of a text store go.

    Raises:
        ValueError: `corpus` is nothing of the kind.
    """
    if isinstance(corpus, TextStore):
        return ({'docno': docno, text_field: corpus[row]} for row, docno in enumerate(corpus.ids))
    if hasattr(corpus, 'get_corpus_iter'):
        corpus = corpus.get_corpus_iter()
    try:
        if not isinstance(corpus, str):
            return iter(corpus)
    except TypeError:
        pass
    raise ValueError(f'corpus={reprlib.repr(corpus):.80} ({type(corpus).__name__}) has no documents: give dictionaries '
                     f'with docno and {text_field!r}, a TextStore, or a data set with get_corpus_iter()')


def checked(corpus: Corpus, text_field: str = 'text', at_a_time: int = 65_536) -> Iterator[dict[str, str]]:
    """The documents of a corpus with docno and text only, as they come.

    Args:
        corpus: See :func:`documents`; a docno that is a whole number becomes a string.
        text_field: The documents' text.
        at_a_time: Docnos that are compared with all before them, which is done when the last of so many documents is
            read and before it comes.

    Raises:
        ValueError: A document has no text or no docno that can be kept, or a docno comes twice.
    """
    numbering, docnos = Numbering(), []
    for number, doc in enumerate(documents(corpus, text_field)):
        doc = _checked(doc, number, text_field)
        docnos.append(doc['docno'])
        if len(docnos) == at_a_time:
            _check_new(numbering, docnos)
            docnos = []
        yield doc
    _check_new(numbering, docnos)


def _check_new(numbering: Numbering, docnos: list[str]) -> None:
    _, new = numbering.add(docnos)
    if len(new) < len(docnos):
        again = np.setdiff1d(np.arange(len(docnos)), new)[0]
        raise ValueError(f'docno {docnos[again]!r} comes twice in the corpus: a docno names one passage')


def _checked(doc: Any, number: int, text_field: str) -> dict[str, str]:
    if not isinstance(doc, Mapping):
        raise ValueError(f'document number {number} is {doc!r:.80}, expected a dictionary with docno and '
                         f'{text_field!r} (of a DataFrame: frame.to_dict("records"))')
    if 'docno' not in doc:
        raise ValueError(f'document number {number} has no docno: it has {sorted(map(str, doc))}')
    docno, text = _docno(doc['docno'], number), doc.get(text_field)
    if not isinstance(text, str):
        seen = f'is of type {type(text).__name__}' if text_field in doc else f'has {sorted(map(str, doc))}'
        raise ValueError(f'document {docno!r} (number {number}) has no {text_field!r} that is a string: it {seen}')
    return {'docno': docno, text_field: text}


def utf8(text: str) -> str:
    """A text that utf-8 can write: half of a surrogate pair becomes a question mark."""
    return text if text.isascii() else text.encode('utf-8', 'replace').decode('utf-8')


def _docno(docno: Any, number: int) -> str:
    if not is_id(docno):
        raise ValueError(f'the docno of document number {number} is {docno!r}: give a string or a whole number')
    docno = str(docno)
    try:
        docno.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f'docno {docno!r} (document number {number}) holds half a surrogate pair, which utf-8 cannot '
                         'write: name the passage otherwise') from error
    if docno.endswith('\0'):
        raise ValueError(f'docno {docno!r} (document number {number}) ends in a zero byte, which the index would not '
                         'give back: name the passage otherwise')
    return docno
