"""Model directories: those that cannot be used are named when they are loaded, and nothing but a model is replaced."""
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BartConfig,
    BartModel,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5EncoderModel,
)

from pyterrier_tasb import LateInteraction, TasBalanced
from pyterrier_tasb.encoding import Encoder
from pyterrier_tasb.encoding.model_directory import save


@pytest.fixture
def model(tiny_bert_dir, tmp_path):
    """A model directory as `save` writes it, to be spoiled."""
    return save(Encoder.load(tiny_bert_dir), tmp_path / 'model')


def tree(folder):
    return {str(path.relative_to(folder)): path.is_file() and path.read_bytes() for path in folder.rglob('*')}


@pytest.mark.parametrize('other', [
    T5EncoderModel(T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)),
    BartModel(BartConfig(vocab_size=9, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                         decoder_attention_heads=2, encoder_ffn_dim=8, decoder_ffn_dim=8)),
], ids=lambda other: type(other).__name__)
def test_an_encoder_decoder_is_refused_as_one(model, other):
    other.save_pretrained(model)
    with pytest.raises(ValueError, match='is an encoder-decoder, or the encoder of one'):
        TasBalanced(model)


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


def changed(folder, **config):
    file = folder / 'config.json'
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))


def with_tensors(folder, **more):
    file = folder / 'model.safetensors'
    save_file({**load_file(file), **more}, file, metadata={'format': 'pt'})


def test_weights_that_the_model_does_not_use_are_warned_of(model, recwarn):
    with_tensors(model, **{'cls.predictions.bias': torch.zeros(3), 'embeddings.position_ids': torch.arange(3)})
    Encoder.load(model)
    assert not recwarn
    with_tensors(model, **{'embeddingHead.weight': torch.zeros(3, 3)})
    with pytest.warns(UserWarning, match=r'does not use 1 of its tensors \(embeddingHead.weight\)'):
        Encoder.load(model)


def test_a_model_cut_by_its_config_is_warned_of(model):
    changed(model, num_hidden_layers=1)
    with pytest.warns(UserWarning, match=r'does not use 16 of its tensors \(encoder.layer.1'):
        Encoder.load(model)


@pytest.fixture
def cased(model):
    """A model whose tokenizer tells cases apart, with some words for it."""
    file = model / 'tokenizer.json'
    tokenizer = json.loads(file.read_text())
    tokenizer['normalizer'] = {'type': 'NFC'}
    file.write_text(json.dumps(tokenizer))
    return model


@pytest.mark.parametrize('lower', [True, False])
def test_lower_case_is_what_sentence_transformers_makes_of_it(cased, lower, tmp_path):
    from sentence_transformers import SentenceTransformer
    (cased / 'sentence_bert_config.json').write_text(json.dumps({'max_seq_length': 200, 'do_lower_case': lower}))
    texts = ['Best ROSE Gardening', 'best rose gardening']
    vectors = TasBalanced(cased).encode_docs(texts)
    np.testing.assert_allclose(vectors, SentenceTransformer(str(cased), device='cpu').encode(texts), atol=1e-5)
    assert np.allclose(*vectors) == lower
    TasBalanced(cased).save(tmp_path / 'saved')
    for load in lambda path: TasBalanced(path).encode_docs, lambda path: SentenceTransformer(path, device='cpu').encode:
        np.testing.assert_allclose(load(str(tmp_path / 'saved'))(texts), vectors, atol=1e-5)


def test_the_length_is_that_of_any_kind_of_transformer(model):
    (model / 'tasb.json').unlink()
    (model / 'sentence_bert_config.json').rename(model / 'sentence_roberta_config.json')
    (model / 'sentence_roberta_config.json').write_text(json.dumps({'max_seq_length': 8}))
    assert Encoder.load(model).doc_max_length == 8


def test_a_text_of_special_tokens_is_read_by_the_model_as_others_read_it(tmp_path):
    """RoBERTa counts no positions for its padding token, which a text may say."""
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    words = ['<s>', '<pad>', '</s>', '<unk>', '<mask>', 'the', 'rose', 'garden']
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token='<unk>'))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single='<s> $A </s>', pair='<s> $A </s> $B </s>', special_tokens=[('<s>', 0), ('</s>', 2)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token='<unk>', pad_token='<pad>', cls_token='<s>', sep_token='</s>',
        mask_token='<mask>', model_max_length=60).save_pretrained(tmp_path / 'model')
    RobertaModel(RobertaConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, initializer_range=.3, pad_token_id=1)).save_pretrained(tmp_path / 'model')
    ours = TasBalanced(tmp_path / 'model', amp='off', device='cpu')
    assert ours.encoder.strategy == 'packed'
    ours.save(tmp_path / 'saved')
    texts = ['the <pad> rose garden', 'rose garden']
    theirs = SentenceTransformer(str(tmp_path / 'saved'), device='cpu')
    np.testing.assert_allclose(ours.encode_docs(texts), theirs.encode(texts), atol=1e-5)
