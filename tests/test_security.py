"""Nothing that a user opens can run code or write outside its directory."""
import ast
import io
import json
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

import pyterrier_tasb
from pyterrier_tasb import LateInteraction, QueryClusters, ScoredPairs, TasBalanced

FORBIDDEN = {'eval', 'exec', 'pickle.load', 'pickle.loads', 'torch.load', 'marshal.loads', 'os.system', 'joblib.load',
             'subprocess.run', 'shelve.open'}


class Bomb:
    """Leaves a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_no_code_of_ours_unpickles_or_evaluates():
    for file in Path(pyterrier_tasb.__file__).parent.rglob('*.py'):
        for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in FORBIDDEN, f'{file.name}:{node.lineno}'
                assert not (ast.unparse(node.func) == 'np.load' and 'allow_pickle=False' not in ast.unparse(node)), file


@pytest.mark.parametrize('load', [TasBalanced, LateInteraction])
def test_weights_that_are_pickles_are_not_opened(load, tiny_bert_dir, tmp_path):
    model = tmp_path / 'model'
    AutoModel.from_pretrained(tiny_bert_dir).save_pretrained(model)
    AutoTokenizer.from_pretrained(tiny_bert_dir).save_pretrained(model)
    (model / 'model.safetensors').unlink()
    torch.save({'bomb': Bomb(tmp_path / 'bang')}, model / 'pytorch_model.bin')
    with pytest.raises(ValueError, match='model.safetensors'):
        load(model)
    assert not (tmp_path / 'bang').exists()


@pytest.mark.parametrize('make', [
    lambda folder: ScoredPairs.from_arrays(folder, ['q'], ['a', 'b'], [0], [0], [1], [1.0]),
    lambda folder: QueryClusters.from_assignment(np.array([0, 1])).save(folder)])
def test_arrays_that_are_pickles_are_not_opened(make, tmp_path):
    artifact = make(tmp_path / 'artifact')
    name = 'margin.npy' if isinstance(artifact, ScoredPairs) else 'assignment.npy'
    np.save(tmp_path / 'artifact' / name, np.array([Bomb(tmp_path / 'bang')], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError):
        type(artifact)(tmp_path / 'artifact')
    assert not (tmp_path / 'bang').exists()


def test_code_beside_a_model_does_not_run(tiny_bert_dir, tmp_path):
    model = tmp_path / 'model'
    AutoModel.from_pretrained(tiny_bert_dir).save_pretrained(model)
    AutoTokenizer.from_pretrained(tiny_bert_dir).save_pretrained(model)
    config = json.loads((model / 'config.json').read_text())
    config |= {'model_type': 'mine', 'auto_map': {'AutoConfig': 'mine.Config', 'AutoModel': 'mine.Model'}}
    (model / 'config.json').write_text(json.dumps(config))
    (model / 'mine.py').write_text(f'open({str(tmp_path / "bang")!r}, "w")')
    with pytest.raises(ValueError, match='cannot be loaded'):
        TasBalanced(model)
    assert not (tmp_path / 'bang').exists()


def test_a_directory_that_points_outside_itself_is_refused(tiny_bert_dir, tmp_path):
    model = TasBalanced(tiny_bert_dir).save(tmp_path / 'model')
    modules = json.loads((model / 'modules.json').read_text())
    modules[1]['path'] = '../elsewhere'
    (model / 'modules.json').write_text(json.dumps(modules))
    with pytest.raises(ValueError, match='outside itself'):
        TasBalanced(model)


def test_an_archive_that_writes_outside_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv('PYTERRIER_HOME', str(tmp_path / 'home'))
    package = tmp_path / 'package.tar'
    with tarfile.open(package, 'w') as archive:
        for name, content in {'pt_meta.json': json.dumps({'type': 'scored_pairs', 'format': 'csr'}).encode(),
                              '../../escaped': b'x'}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    with pytest.raises(Exception):
        pt.Artifact.from_url(package.as_uri())
    assert not list(tmp_path.rglob('escaped'))


def test_the_bomb_works(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / 'bang')))
    assert (tmp_path / 'bang').exists()


@pytest.mark.parametrize('load', [TasBalanced, LateInteraction])
def test_code_beside_a_model_runs_where_it_is_trusted(load, tiny_bert_dir, tmp_path):
    model = tmp_path / 'model'
    shutil.copytree(tiny_bert_dir, model)
    config = json.loads((model / 'config.json').read_text())
    del config['model_type']
    (model / 'config.json').write_text(json.dumps({**config, 'auto_map': {
        'AutoConfig': 'configuration_own.Config', 'AutoModel': 'modeling_own.Model'}}))
    (model / 'configuration_own.py').write_text(
        'from transformers import BertConfig\n\nclass Config(BertConfig):\n    model_type = "own"\n')
    (model / 'modeling_own.py').write_text(
        'from transformers import BertModel\nfrom .configuration_own import Config\n\n'
        'class Model(BertModel):\n    config_class = Config\n')
    with pytest.raises(ValueError, match='trust_remote_code=True'):
        load(model)
    frame = pd.DataFrame({'qid': ['1'], 'query': ['rose'], 'docno': ['a'], 'text': ['a rose garden']})
    scores = [load(path, trust_remote_code=True, device='cpu')(frame)['score'] for path in (model, tiny_bert_dir)]
    np.testing.assert_allclose(*scores, rtol=1e-5)
