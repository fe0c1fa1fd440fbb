"""A corpus, in any of its forms, as documents."""
from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator
from typing import Protocol

from .texts import TextStore


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
