"""`pydocs`: a test collection out of the documentation of the Python packages on this machine.

The summary line of a docstring is a query, what follows it the passage. Sources are read with `ast`; nothing that is
read is ever imported or run.
"""
from __future__ import annotations

import ast
import gc
import importlib.metadata
import importlib.util
import platform
import re
import statistics
import sys
import sysconfig
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyterrier as pt

from ._files import fingerprint

DEFAULT_PACKAGES = ('stdlib', 'numpy', 'scipy', 'sklearn', 'pandas')
SPLITS = {'test': range(0, 8), 'dev': range(8, 12), 'train': range(12, 100)}   # of the query's hash modulo 100

_SKIPPED = {'test', 'tests', 'testing', 'idle_test', 'site-packages', '__pycache__', 'idlelib', 'lib2to3', 'turtledemo',
            '_vendor', '_vendored', 'externals', 'conftest.py', 'ensurepip', 'pip'}
_QUERY_WORDS = range(3, 26)
_LEAST_PASSAGE_WORDS = 20


@dataclass(frozen=True)
class Docstring:
    """A query and its passage."""
    query: str
    passage: str


class PyDocs:
    """The collection; :func:`load` makes it.

    Args:
        docstrings: (query, passage) in a fixed order.
        sources: Name and version of each package read.
        n_files: Files read.
        max_words: Where passages were cut.
    """

    def __init__(self, docstrings: Iterable[Docstring], sources: dict[str, str], n_files: int, max_words: int) -> None:
        self.sources, self.n_files, self.max_words = sources, n_files, max_words
        relevant: dict[str, set[str]] = {}
        for docstring in docstrings:
            relevant.setdefault(docstring.query, set()).add(docstring.passage)
        passages = sorted({passage for texts in relevant.values() for passage in texts})
        docno = {passage: f'd{_hash(passage):08x}{i}' for i, passage in enumerate(passages)}
        self._texts = {docno[passage]: passage for passage in passages}
        queries = sorted(relevant)
        self._topics = pd.DataFrame({'qid': [f'q{i}' for i in range(len(queries))], 'query': queries}, dtype=str)
        self._split = [_split_of(query) for query in queries]
        self._qrels = pd.DataFrame([(f'q{i}', docno[passage], 1) for i, query in enumerate(queries)
                                    for passage in sorted(relevant[query])], columns=['qid', 'docno', 'label'])

    def __len__(self) -> int:
        """Number of passages."""
        return len(self._texts)

    def get_corpus_iter(self, verbose: bool = False) -> Iterator[dict[str, str]]:
        """Passages, as dictionaries with docno and text, in a fixed order."""
        for docno, text in pt.tqdm(self._texts.items(), desc='pydocs', unit='doc', disable=not verbose):
            yield {'docno': docno, 'text': text}

    def get_topics(self, variant: str = 'test') -> pd.DataFrame:
        """Queries of a split ('train', 'dev' or 'test'): qid, query.

        Raises:
            ValueError: There is no such split.
        """
        if variant not in SPLITS:
            raise ValueError(f'variant={variant!r}: must be one of {", ".join(SPLITS)}')
        return self._topics[[split == variant for split in self._split]].reset_index(drop=True)

    def get_qrels(self, variant: str = 'test') -> pd.DataFrame:
        """Judgements of a split: qid, docno, label."""
        return self._qrels[self._qrels['qid'].isin(set(self.get_topics(variant)['qid']))].reset_index(drop=True)

    def text_loader(self, fields: str | list[str] = 'text', *, verbose: bool = False) -> PyDocsText:
        """A transformer that adds the text by docno.

        Args:
            fields: Only 'text' is there.
            verbose: Not used; every text loader has it.
        """
        if set([fields] if isinstance(fields, str) else fields) - {'text', '*'}:
            raise ValueError(f'fields={fields!r}: pydocs has the field text only')
        return PyDocsText(self)

    @property
    def fingerprint(self) -> str:
        """A hash of queries, passages and judgements."""
        return fingerprint(list(self._texts.items()), self._topics.values.tolist(), self._qrels.values.tolist())

    def report(self) -> str:
        """What was read, in a few lines."""
        versions = ', '.join(f'{name} {version}' for name, version in self.sources.items())
        counts = ', '.join(f'{len(self.get_topics(split)):,} {split}' for split in ('train', 'dev', 'test'))
        words = statistics.median(len(query.split()) for query in self._topics['query'])
        return (f'pydocs: {self.n_files:,} files of {versions}\n'
                f'{len(self):,} passages (median {statistics.median(len(t.split()) for t in self._texts.values()):.0f} '
                f'words, cut after {self.max_words}), queries: {counts} (median {words:.0f} words); '
                f'fingerprint {self.fingerprint}')

    def __repr__(self) -> str:
        return f'PyDocs({len(self)} passages, fingerprint={self.fingerprint!r})'


class PyDocsText(pt.Transformer):
    """Adds `text` by docno.

    Args:
        docs: The collection.
    """

    schematic = {'label': 'load text'}

    def __init__(self, docs: PyDocs) -> None:
        self.docs = docs

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """`inp` with a column text.

        Raises:
            ValueError: A docno is not in the collection.
        """
        pt.validate.columns(inp, includes=['docno'], context=self)
        texts = inp['docno'].map(self.docs._texts)
        if texts.isna().any():
            unknown = inp.loc[texts.isna(), 'docno']
            raise ValueError(f'{len(unknown)} docnos are not in pydocs (first: {unknown.iloc[:5].tolist()})')
        return inp.assign(text=texts.astype(object))

    def fuse_rank_cutoff(self, k: int) -> pt.Transformer:
        """Cut first, load less."""
        return pt.RankCutoff(k) >> self

    def __repr__(self) -> str:
        return f'PyDocsText({self.docs!r})'

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PyDocsText) and self.docs.fingerprint == other.docs.fingerprint

    def __hash__(self) -> int:
        return hash(self.docs.fingerprint)


def load(packages: str | Iterable[str] = DEFAULT_PACKAGES, max_words: int = 50) -> PyDocs:
    """Read the documentation of installed packages.

    Args:
        packages: Names of top-level modules, or one; 'stdlib' is the standard library.
        max_words: Passages end at the first sentence that ends after 4/5 of this many words, or at this many.

    Raises:
        ValueError: No package is named, one is not installed, nothing in them is a query with a passage, or `max_words`
            is less than a passage has.
    """
    packages = [packages] if isinstance(packages, str) else list(packages)
    if not packages:
        raise ValueError(f'packages={packages!r}: name at least one, {DEFAULT_PACKAGES[0]!r} for example')
    if max_words < _LEAST_PASSAGE_WORDS:
        raise ValueError(f'max_words={max_words!r}: must be at least {_LEAST_PASSAGE_WORDS}, the words that a passage '
                         'needs')
    docstrings, sources, n_files = [], {}, 0
    for package in packages:
        root, version = _locate(package)
        sources['Python' if package == 'stdlib' else package] = version
        with _garbage_kept():
            for file in pt.tqdm(_files(root), desc=f'reading {package}', unit='file', leave=False):
                n_files += 1
                docstrings += _docstrings(file, max_words)
    if not docstrings:
        raise ValueError(f'no docstring of {", ".join(sources)} has a summary line and a passage of at least '
                         f'{_LEAST_PASSAGE_WORDS} words')
    return PyDocs(docstrings, sources, n_files, max_words)


@contextmanager
def _garbage_kept() -> Iterator[None]:
    """No search for reference cycles: syntax trees have millions of objects and no cycles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _locate(package: str) -> tuple[Path, str]:
    if package == 'stdlib':
        return Path(sysconfig.get_path('stdlib')), platform.python_version()
    spec = importlib.util.find_spec(package) if '.' not in package else None
    if spec is None or spec.origin is None:
        raise ValueError(f'package {package!r} is not installed: pydocs reads top-level packages of this environment')
    path = Path(spec.origin)
    return path.parent if spec.submodule_search_locations else path, _version(package)


def _version(package: str) -> str:
    if package in sys.stdlib_module_names:
        return platform.python_version()
    names = importlib.metadata.packages_distributions().get(package, [])
    return importlib.metadata.version(names[0]) if names else '?'


def _files(root: Path) -> list[Path]:
    if root.is_file():
        return [root]
    files = (path for path in root.rglob('*.py') if not _SKIPPED & set(path.relative_to(root).parts))
    return sorted(files, key=lambda path: path.relative_to(root).as_posix())


def _docstrings(file: Path, max_words: int) -> Iterator[Docstring]:
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in _definitions(tree):
        text = _text_of(node)
        docstring = _parse(text, max_words) if text else None
        if docstring:
            yield docstring


def _definitions(node: ast.AST) -> Iterator[ast.AST]:
    """Definitions and calls that stand as statements, at any depth of statements."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Expr) and isinstance(child.value, ast.Call):
            yield child.value
        elif isinstance(child, (ast.stmt, ast.ExceptHandler)):
            yield child
            yield from _definitions(child)


def _text_of(node: ast.AST) -> str | None:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return None if node.name.startswith('_') else ast.get_docstring(node)
    if isinstance(node, ast.Call) and getattr(node.func, 'id', getattr(node.func, 'attr', '')) == 'add_newdoc':
        strings = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)
                   and isinstance(part.value, str) and '\n' in part.value]
        return max(strings, key=len) if strings else None
    return None


def _parse(text: str, max_words: int) -> Docstring | None:
    paragraphs = re.split(r'\n\s*\n', text.strip())
    if re.match(r'\S+\(.*\)$', paragraphs[0].strip(), flags=re.DOTALL):   # numpy's signature line
        paragraphs = paragraphs[1:]
    if len(paragraphs) < 2:
        return None
    query = ' '.join(paragraphs[0].split())
    words = _cut(_clean('\n'.join(paragraphs[1:])).split(), max_words)
    if len(query.split()) not in _QUERY_WORDS or len(words) < _LEAST_PASSAGE_WORDS:
        return None
    passage = ' '.join(words)
    return None if query.rstrip('.').lower() in passage.lower() else Docstring(query, passage)


def _clean(text: str) -> str:
    lines = [line for line in text.splitlines()
             if not re.match(r'\s*(>>>|\.\.\.(\s|$)|[-=~^]{3,}\s*$|\.\. \w+::)', line)]
    return re.sub(r':\w+:`~?([^`]*)`|`+([^`]*)`+', r'\1\2', '\n'.join(lines))


def _cut(words: list[str], most: int) -> list[str]:
    for i in range(most * 4 // 5, min(most, len(words))):
        if words[i].endswith(('.', '!', '?')):
            return words[:i + 1]
    return words[:most]


def _hash(text: str) -> int:
    return zlib.crc32(text.encode('utf-8', 'surrogatepass'))


def _split_of(query: str) -> str:
    """A split that depends on nothing but the query's text, so that it never moves."""
    return next(split for split, hashes in SPLITS.items() if _hash(query) % 100 in hashes)
