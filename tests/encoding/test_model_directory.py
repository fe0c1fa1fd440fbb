"""Model directories: those that cannot be used are named when they are loaded, and nothing but a model is replaced."""
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from pyterrier_tasb import LateInteraction
from pyterrier_tasb.encoding import Encoder
from pyterrier_tasb.encoding.model_directory import save


@pytest.fixture
def model(tiny_bert_dir, tmp_path):
    """A model directory as `save` writes it, to be spoiled."""
    return save(Encoder.load(tiny_bert_dir), tmp_path / 'model')


def tree(folder):
    return {str(path.relative_to(folder)): path.is_file() and path.read_bytes() for path in folder.rglob('*')}


@pytest.mark.parametrize('name, content, message', [
    ('modules.json', {'type': 'x.Transformer'}, 'modules.json is damaged'),
    ('modules.json', [{'path': ''}], r"modules.json has the entry \{'path': ''\}: expected type and path"),
    ('modules.json', ['Transformer'], "modules.json has the entry 'Transformer'"),
    ('modules.json', [{'type': 3}], 'modules.json has the entry'),
    ('modules.json', [{'type': 'x.Transformer', 'path': 5}], "modules.json has the entry .*'path': 5"),
    ('1_Pooling/config.json', ['mean'], '1_Pooling/config.json is damaged'),
    ('config.json', [], 'config.json is damaged'), ('tasb.json', [1], 'tasb.json is damaged'),
    ('tasb.json', 'null', 'tasb.json is damaged'),
    ('sentence_bert_config.json', {'max_seq_length': 'x'}, "sentence_bert_config.json says max_seq_length='x'"),
    ('sentence_bert_config.json', {'max_seq_length': -1}, 'max_seq_length=-1: expected a whole number'),
    ('sentence_bert_config.json', {'max_seq_length': True}, 'max_seq_length=True'),
    ('sentence_bert_config.json', {'max_seq_length': 1.5}, 'max_seq_length=1.5'),
    ('sentence_bert_config.json', [512], 'sentence_bert_config.json is damaged'),
], ids=str)
def test_a_file_that_says_nothing_sensible_is_named(model, name, content, message):
    (model / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        Encoder.load(model)


def test_no_length_is_any_length(model):
    (model / 'sentence_bert_config.json').write_text('{"max_seq_length": null}')
    (model / 'tasb.json').unlink()
    assert Encoder.load(model).doc_max_length == 200


def test_a_tokenizer_of_another_model_is_refused(model):
    n = len(Encoder.load(model).tokenizer)
    BertModel(BertConfig(vocab_size=n - 40, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                         intermediate_size=48)).save_pretrained(model)
    with pytest.raises(ValueError, match=f'the tokenizer has {n} ids, the table of embeddings {n - 40} rows'):
        Encoder.load(model)


def test_a_table_with_spare_rows_is_good(model):
    BertModel(BertConfig(vocab_size=512, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                         intermediate_size=48)).save_pretrained(model)
    assert Encoder.load(model).model.get_input_embeddings().weight.shape[0] == 512


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf')])
def test_weights_that_are_no_numbers_are_refused(model, bad):
    weights = load_file(model / 'model.safetensors')
    weights['encoder.layer.1.output.dense.bias'][3] = bad
    save_file(weights, model / 'model.safetensors', metadata={'format': 'pt'})
    with pytest.raises(ValueError, match=r'1 of its tensors are NaN .*\(encoder.layer.1.output.dense.bias\)'):
        Encoder.load(model)


def test_weights_that_are_no_numbers_are_not_saved(model):
    encoder, before = Encoder.load(model), tree(model)
    with torch.no_grad():
        encoder.model.get_input_embeddings().weight[7, 7] = float('nan')
    with pytest.raises(ValueError, match='is not saved: .*word_embeddings'):
        save(encoder, model, overwrite=True)
    assert tree(model) == before


@pytest.mark.parametrize('mine', ['.git/HEAD', 'thesis/thesis.tex', 'results.csv', 'model/notes.md', '1_data/x'])
def test_a_directory_with_more_than_a_model_is_not_replaced(model, mine):
    encoder = Encoder.load(model)
    (model / mine).parent.mkdir(exist_ok=True)
    (model / mine).write_text('precious')
    before = tree(model)
    with pytest.raises(ValueError, match=rf'holds more than a model \({mine.partition("/")[0]}\) and is not replaced'):
        save(encoder, model, overwrite=True)
    assert tree(model) == before


@pytest.mark.parametrize('there', ['thesis.tex', 'tasb.json'])
def test_a_directory_without_a_model_is_not_replaced(model, tmp_path, there):
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other' / there).write_text('{}')
    with pytest.raises(ValueError, match='is no model directory and is not replaced'):
        save(Encoder.load(model), tmp_path / 'other', overwrite=True)
    (tmp_path / 'file').write_text('{}')
    with pytest.raises(ValueError, match='is no model directory and is not replaced'):
        save(Encoder.load(model), tmp_path / 'file', overwrite=True)
    assert (tmp_path / 'other' / there).read_text() == '{}' == (tmp_path / 'file').read_text()


def test_models_and_empty_directories_are_replaced(model, tiny_bert_dir, tmp_path):
    encoder = Encoder.load(model)
    with pytest.raises(ValueError, match='overwrite=True'):
        save(encoder, model)
    shutil.copytree(tiny_bert_dir, tmp_path / 'plain')
    (tmp_path / 'empty').mkdir()
    LateInteraction(tiny_bert_dir).save(tmp_path / 'colbert')
    for path in (model, tmp_path / 'plain', tmp_path / 'empty', tmp_path / 'colbert'):
        assert tree(save(encoder, path, overwrite=True, extra_files={'README.md': 'card'})).keys() >= {'tasb.json'}


def test_what_a_link_points_to_is_replaced(model, tmp_path):
    (tmp_path / 'link').symlink_to('model')
    save(Encoder.load(model), tmp_path / 'link', overwrite=True, settings={'scale': 3})
    assert (tmp_path / 'link').is_symlink() and json.loads((model / 'tasb.json').read_text())['scale'] == 3
