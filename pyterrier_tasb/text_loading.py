"""Texts by docno, from whatever can load them."""
from __future__ import annotations

import reprlib
from typing import Any

import pandas as pd
import pyterrier as pt

from .texts import TextStore


class TextLoader(pt.Transformer):
    """Adds the text by docno from a text store; an unknown docno is an error.

    Args:
        texts: The store.
        text_field: The column that is added.
    """

    schematic = {'label': 'load text'}

    def __init__(self, texts: TextStore, text_field: str = 'text') -> None:
        self.texts, self.text_field = texts, text_field

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """`inp` with the text's column."""
        pt.validate.columns(inp, includes=['docno'], context=self)
        rows = self.texts.index_of(inp['docno'].astype(str).tolist())
        if len(rows) and rows.min() < 0:
            missing = inp['docno'][rows < 0]
            raise ValueError(f'{len(missing)} docnos are not in the collection (first: {missing.iloc[:5].tolist()})')
        return inp.assign(**{self.text_field: pd.Series(self.texts.take(rows), index=inp.index, dtype=object)})

    def fuse_rank_cutoff(self, k: int) -> pt.Transformer:
        """Cut first, load less."""
        return pt.RankCutoff(k) >> self

    def __repr__(self) -> str:
        return f'TextLoader({self.texts!r})'

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TextLoader) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[str, str]:
        return self.texts.fingerprint, self.text_field


def text_loader(corpus: Any, text_field: str = 'text', *, name: str = 'corpus') -> pt.Transformer:
    """A transformer that adds `text_field` by docno, from anything that can load text.

    Args:
        corpus: A text store, something with a `text_loader` method (a dataset, a Terrier index, `PyDocs`), or a
            transformer that adds the column itself.
        text_field: The column.
        name: What the user calls `corpus`.

    Raises:
        ValueError: `corpus` can do none of it.
    """
    if isinstance(corpus, TextStore):
        return TextLoader(corpus, text_field)
    if hasattr(corpus, 'text_loader'):
        return corpus.text_loader(fields=[text_field])
    if isinstance(corpus, pt.Transformer) and not isinstance(corpus, pt.Indexer):   # an index has no text to load
        return corpus
    raise ValueError(f'{name}={reprlib.repr(corpus):.80} ({type(corpus).__name__}) cannot load text: give a TextStore '
                     '(of a dictionary: TextStore.build(path, texts.items())), a data set or index with a '
                     f'text_loader(), or a transformer that adds {text_field!r} by docno')


def fetch_texts(loader: pt.Transformer, docnos: Any, text_field: str = 'text') -> dict[str, str]:
    """Texts of `docnos` by docno; ids that the loader does not know are absent."""
    if isinstance(loader, TextLoader):   # which takes an unknown docno for an error
        rows = loader.texts.index_of(docnos)
        return {str(docno): loader.texts[row] for docno, row in zip(docnos, rows.tolist(), strict=True) if row >= 0}
    frame = loader(pd.DataFrame({'qid': '0', 'query': '', 'docno': [str(docno) for docno in docnos]}))
    known = frame[frame[text_field].notna()]
    return dict(zip(known['docno'].astype(str), known[text_field].astype(object), strict=True))
