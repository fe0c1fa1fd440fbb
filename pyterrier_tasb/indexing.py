"""From a corpus to a FlexIndex, in batches that are kept: an interruption loses seconds, and no half index is seen."""
from __future__ import annotations

import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyterrier as pt
import pyterrier_dr
from more_itertools import chunked, peekable
from npids import Lookup
from npids.codecs import FwdFixedBytes

from ._files import fingerprint, move_into_place, read_json, write_json
from ._interrupts import take_ctrl_c
from ._locks import LOCK, locked
from ._progress import say
from ._threads import in_order
from .documents import Corpus, checked

WEIGHTS = 'encoder_weights'   # in an index's pt_meta.json
_SAVE_EVERY = 5.0   # seconds of encoding that an interruption may lose, beside the batch that is worked on


def build_index(corpus: Corpus, path: str | os.PathLike, tokenise: Callable[[int, list[str]], Any],
                encode: Callable[[Any], np.ndarray], *, key: str, weights: str, text_field: str = 'text',
                batch_size: int = 4096, overwrite: bool = False, verbose: bool = False) -> pyterrier_dr.FlexIndex:
    """Encode a corpus into a new FlexIndex, which appears at `path` only when it is whole.

    Until then, vectors are kept in `path.part`. The same call after an interruption reads the corpus again from its
    beginning and encodes only what is not there yet; vectors of other passages or of another encoder are not used.

    Args:
        corpus: Dictionaries with docno (a string or a whole number) and the text field, a text store or a data set
            (anything with `get_corpus_iter`); streamed.
        path: Where the index goes; a link is followed.
        tokenise: (row of the first, texts of a batch) → what `encode` takes; called in another thread, a batch ahead.
        encode: → float32[n, D], the vectors of a batch.
        key: What the vectors depend on beside the texts.
        weights: A hash of the encoder's weights, kept with the index.
        text_field: The passages' text.
        batch_size: Passages encoded and kept at a time.
        overwrite: Replace the dense index at `path`.
        verbose: Show progress, also of searches in the index that is returned.

    Returns:
        A fresh object: an index object that was open on the old files would go on answering from them.

    Raises:
        ValueError: `path` exists and `overwrite` is False or it is no dense index, `path.part` holds something else,
            the corpus is empty or none, a passage has no text or no docno that can be kept, or a docno comes twice.
    """
    given, path = path, Path(path)
    path = path.resolve() if path.is_symlink() else path
    folder = path.with_name(path.name + '.part')
    _check_place(path, overwrite)
    _check_part(folder)
    batches = peekable(_batches(corpus, text_field, batch_size, key))
    if not batches:
        raise ValueError('the corpus has no documents: nothing was indexed')
    take_ctrl_c()
    with locked(folder):
        part = _Part(folder)
        try:
            with Lookup.builder(part.index / 'docnos.npids') as docnos, \
                    pt.tqdm(desc='Encoding', unit='passage', disable=not verbose) as bar:
                docnos.formats['fixedbytes'] = docnos.seeded_formats['fixedbytes'] = _FixedBytes()
                for vectors, batch in part.vectors(batches, tokenise, encode):
                    for docno in batch.docnos:
                        docnos.add(docno)
                    part.keep(vectors, batch)
                    bar.update(len(batch.docnos))
            part.finish(path, weights, overwrite=overwrite)
        except BaseException:
            part.leave()
            raise
        shutil.rmtree(folder)
    return pyterrier_dr.FlexIndex(str(given), verbose=verbose)


def is_index(path: Path) -> bool:
    """Whether `path` is the directory of a dense index."""
    meta = path / 'pt_meta.json'
    return meta.exists() and read_json(meta).get('type') == pyterrier_dr.FlexIndex.ARTIFACT_TYPE


def _check_place(path: Path, overwrite: bool) -> None:
    """Nothing but a dense index is replaced, and that only where it is asked for."""
    if not path.exists():
        return
    if not overwrite:
        raise ValueError(f'{path} exists: index to a new path, or pass overwrite=True')
    if not path.is_dir() or not is_index(path) and any(path.iterdir()):
        raise ValueError(f'{path} is no dense index (its pt_meta.json would say so) and is not replaced: index to '
                         'another path')


def _check_part(folder: Path) -> None:
    """`path.part` holds what an interrupted call left, or nothing: it is emptied and removed in the end."""
    if not folder.exists():
        return
    there = set(os.listdir(folder)) if folder.is_dir() else {folder.name}
    others = sorted(name for name in there - {LOCK, 'index', 'progress.json'} if not name.startswith('.progress.json.'))
    if others or 'index' in there and 'progress.json' not in there:
        raise ValueError(f'{folder}, where vectors are kept until the index is whole, holds something else '
                         f'({", ".join(others[:5]) or "index without progress.json"}): move it away, or index to '
                         'another path')


class _FixedBytes(FwdFixedBytes):
    """npids' format for docnos without a pattern, right for a lone one and for prefixes that end within a character.

    A prefix is what docnos begin with in common: all of a lone one, which leaves nothing to read.
    """

    def seed(self, id: str) -> bool:
        self.is_lone = self.prefix is None
        super().seed(id)
        self.prefix = self.prefix[:max(0, self.length - 1)].decode('utf-8', 'ignore').encode()
        self.length = max(1, self.length)
        return True

    def size(self) -> int:
        return 0 if self.is_lone else super().size()   # before the other formats, which lose some lone docnos


class _Batch:
    """Passages that follow each other in the corpus, and a hash of them."""

    def __init__(self, row: int, docnos: list[str], texts: list[str], key: str) -> None:
        self.row, self.docnos, self.texts = row, docnos, texts
        self.hash = fingerprint(key, docnos, texts)


def _batches(corpus: Corpus, text_field: str, size: int, key: str) -> Iterator[_Batch]:
    row = 0
    for docs in chunked(checked(corpus, text_field, size), size):
        yield _Batch(row, [doc['docno'] for doc in docs], [doc[text_field] for doc in docs], key)
        row += len(docs)


class _Part:
    """`path.part`: the index that is being made, and of which passages its vectors are.

    Args:
        folder: `index` in it becomes the index; `progress.json` has hash and checksum of every batch whose vectors are
            there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.index = folder, folder / 'index'
        file = folder / 'progress.json'
        if not file.exists():
            write_json(file, [])   # says whose the folder is
        self.kept: list[dict[str, Any]] = read_json(file, list)
        self.index.mkdir(exist_ok=True)
        self.n, self.saved, self.saved_at = 0, len(self.kept), time.monotonic()
        (self.index / 'vecs.f4').touch()
        (self.index / 'docnos.npids').unlink(missing_ok=True)   # made again from the corpus
        self.file: BinaryIO = open(self.index / 'vecs.f4', 'r+b')

    def vectors(self, batches: Iterator[_Batch], tokenise: Callable, encode: Callable,
                ) -> Iterator[tuple[np.ndarray | None, _Batch]]:
        """Vectors of all batches in order; None of those that are kept already."""
        batches = peekable(batches)
        while batches and self._has(batches.peek()):
            self.n += 1
            yield None, next(batches)
        del self.kept[self.n:]
        self.saved = min(self.saved, self.n)
        self.file.truncate(self._size)
        with ThreadPoolExecutor(1) as pool:
            prepared = in_order(pool, lambda batch: (batch, tokenise(batch.row, batch.texts)), batches, 2)
            for batch, tokens in prepared:
                yield np.ascontiguousarray(encode(tokens), dtype='<f4'), batch

    def _has(self, batch: _Batch) -> bool:
        if self.n >= len(self.kept) or self.kept[self.n]['passages'] != batch.hash:
            return False
        vectors = self.file.read(self.kept[self.n]['bytes'])
        return len(vectors) == self.kept[self.n]['bytes'] and zlib.crc32(vectors) == self.kept[self.n]['checksum']

    @property
    def _size(self) -> int:
        return sum(batch['bytes'] for batch in self.kept)

    def keep(self, vectors: np.ndarray | None, batch: _Batch) -> None:
        """Add a batch's vectors to the file."""
        if vectors is None:
            return
        if len(vectors) != len(batch.docnos) or not np.isfinite(vectors).all():
            raise ValueError(f'the encoder gave {vectors.shape[0]} vectors for the {len(batch.docnos)} passages from '
                             f'{batch.docnos[0]!r} on, {int((~np.isfinite(vectors)).any(1).sum())} of them with NaN or '
                             'infinite numbers: they cannot be searched')
        self.file.seek(self._size)
        self.file.write(vectors.tobytes())
        self.kept.append({'n': len(vectors), 'bytes': vectors.nbytes, 'passages': batch.hash,
                          'checksum': zlib.crc32(vectors)})
        self.n += 1
        if time.monotonic() - self.saved_at >= _SAVE_EVERY:
            self._save()

    def _save(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
        write_json(self.folder / 'progress.json', self.kept)
        self.saved, self.saved_at = len(self.kept), time.monotonic()

    def finish(self, path: Path, weights: str, *, overwrite: bool) -> None:
        """Move the index to its place."""
        self._save()
        self.file.close()
        rows = sum(batch['n'] for batch in self.kept)
        write_json(self.index / 'pt_meta.json', {
            'type': pyterrier_dr.FlexIndex.ARTIFACT_TYPE, 'format': pyterrier_dr.FlexIndex.ARTIFACT_FORMAT,
            'vec_size': self.kept[0]['bytes'] // 4 // self.kept[0]['n'], 'doc_count': rows, WEIGHTS: weights})
        move_into_place(self.index, path, overwrite=overwrite)

    def leave(self) -> None:
        """Keep what an interrupted call has made, and say so."""
        if self.file.closed:
            return
        if len(self.kept) > self.saved:
            self._save()
        self.file.close()
        if self.kept:
            say(f'{sum(batch["n"] for batch in self.kept):,} passages are encoded and kept in {self.folder}: '
                'the same call goes on from there')
        else:
            shutil.rmtree(self.index, ignore_errors=True)
            shutil.rmtree(self.folder, ignore_errors=True)
