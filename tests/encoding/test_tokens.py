"""Tokens in memory and on disk."""
import json
import warnings

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, BertJapaneseTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from pyterrier_tasb import TextStore
from pyterrier_tasb.encoding import Tokens, TokenStore, token_store, tokenise
from pyterrier_tasb.encoding.tokens import tokenizer_fingerprint

LISTS = st.lists(st.lists(st.integers(0, 2 ** 31), max_size=6), max_size=8)
TEXTS = ['butter the oven', '', 'rose! ' * 300, 'Ünïcode 漢字 \ud800 text', 'the [SEP] star', 'zzz', '\n\t ']


@pytest.fixture(scope='module')
def tokenizer(tiny_bert_dir):
    return AutoTokenizer.from_pretrained(tiny_bert_dir)


class Texts:
    """Stands for a TextStore; raises at a row, as a kill would."""

    def __init__(self, texts, fails_at=None):
        self.texts, self.fails_at, self.fingerprint, self.asked = texts, fails_at, 'f00d', []

    def __len__(self):
        return len(self.texts)

    def take(self, rows):
        self.asked.extend(rows.tolist())
        if self.fails_at in rows:
            raise KeyboardInterrupt
        return [self.texts[row] for row in rows]


def _lists(tokens):
    return [part.tolist() for part in np.split(tokens.ids, tokens.offsets[1:-1])][:len(tokens)]


@given(LISTS, st.data())
def test_take_and_concat_are_those_of_lists(lists, data):
    tokens = Tokens.from_lists(lists)
    assert len(tokens) == len(lists) and tokens.lengths.tolist() == [len(ids) for ids in lists]
    rows = data.draw(st.lists(st.integers(0, max(len(lists) - 1, 0)), max_size=10)) if lists else []
    taken = tokens.take(np.array(rows, dtype=np.int64))
    assert _lists(taken) == [lists[row] for row in rows] and taken.ids.dtype == np.int64
    assert _lists(Tokens.concat([tokens, taken])) == lists + [lists[row] for row in rows]
    assert tokens.take(None) is tokens


@given(LISTS)
def test_with_second_is_that_of_lists(lists):
    found = Tokens.from_lists([[1, *ids] for ids in lists]).with_second(7)
    assert _lists(found) == [[1, 7, *ids] for ids in lists] and len(found) == len(lists)


def test_concat_of_nothing():
    assert len(Tokens.concat([])) == 0


def test_tokenise_is_the_tokenizers_own_call(tokenizer):
    expected = tokenizer([text.replace('\ud800', '?') for text in TEXTS], truncation=True, max_length=30)['input_ids']
    assert _lists(tokenise(tokenizer, TEXTS, 30)) == expected
    assert expected[1] == [tokenizer.cls_token_id, tokenizer.sep_token_id] and len(expected[2]) == 30
    assert _lists(tokenise(tokenizer, TEXTS[:3], 5))[2][-1] == tokenizer.sep_token_id


def test_tokenise_leaves_the_tokenizer_as_it_was(tokenizer):
    before = tokenizer.backend_tokenizer.to_str()
    tokenise(tokenizer, TEXTS, 7)
    assert tokenizer.backend_tokenizer.to_str() == before


def test_added_tokens_are_seen(tiny_bert_dir):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_dir)
    before = tokenise(tokenizer, ['xyzzy rose'], 30)
    tokenizer.add_tokens(['xyzzy'])
    assert len(before.ids) > len(tokenise(tokenizer, ['xyzzy rose'], 30).ids) == 4


@pytest.mark.parametrize('text, shown', [(None, 'NoneType'), (float('nan'), 'float'), (b'x', 'bytes')])
def test_what_is_no_string(tokenizer, text, shown):
    with pytest.raises(ValueError, match=f'text 1 of 2 is no string but {shown}'):
        tokenise(tokenizer, ['a', text], 30)


def test_unknown_words_are_said_once(tiny_bert_dir):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_dir)
    texts = ['漢字 тест rose'] * 20
    with pytest.warns(UserWarning, match=r'75% of 80 tokens are \[UNK\]'):
        tokenise(tokenizer, texts, 30)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        tokenise(tokenizer, texts, 30)
        tokenise(AutoTokenizer.from_pretrained(tiny_bert_dir), ['rose compost'] * 20, 30)


def test_fingerprint(tokenizer, tiny_bert_dir):
    again = AutoTokenizer.from_pretrained(tiny_bert_dir)
    again(['a text that sets a state'], truncation=True, max_length=4, padding=True)
    assert tokenizer_fingerprint(again) == tokenizer_fingerprint(tokenizer)
    again.add_tokens(['xyzzy'])
    assert tokenizer_fingerprint(again) != tokenizer_fingerprint(tokenizer)


# on disk

@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(token_store, '_CHUNK', 4)


@pytest.fixture
def texts():
    return Texts([f'{word} the planet ' * (i % 5) for i, word in enumerate('rose soil tide mast oven'.split() * 3)])


@pytest.mark.parametrize('n_jobs', [1, 3])
def test_store_holds_what_tokenise_gives(tmp_path, tokenizer, texts, n_jobs):
    expected = tokenise(tokenizer, texts.texts, 9)
    store = TokenStore.build(tmp_path / 'tokens', texts, tokenizer, 9, n_jobs=n_jobs)
    assert len(store) == 15 and np.array_equal(store.lengths, expected.lengths)
    for rows in (None, np.array([14, 0, 0, 7]), np.array([], dtype=np.int64)):
        ours, theirs = store.take(rows), expected.take(rows)
        assert ours.ids.dtype == ours.offsets.dtype == np.int64
        assert np.array_equal(ours.ids, theirs.ids) and np.array_equal(ours.offsets, theirs.offsets)
    assert (tmp_path / 'tokens' / 'ids.bin').stat().st_size == 2 * len(expected.ids)


def test_store_is_opened_when_it_is_there(tmp_path, tokenizer, texts):
    first = TokenStore.build(tmp_path / 'tokens', texts, tokenizer, 9)
    texts.asked.clear()
    second = TokenStore.build(tmp_path / 'tokens', texts, tokenizer, 9)
    assert texts.asked == [] and second.fingerprint == first.fingerprint


@pytest.mark.parametrize('fails_at', [0, 5, 14])
def test_an_interrupted_build_goes_on(tmp_path, tokenizer, texts, fails_at):
    texts.fails_at = fails_at
    with pytest.raises(KeyboardInterrupt):
        TokenStore.build(tmp_path / 'tokens', texts, tokenizer, 9)
    with pytest.raises(ValueError, match='no whole token store'):
        TokenStore(tmp_path / 'tokens')
    for name in ('ids.bin', 'offsets.bin'):   # the kill may come between a write and its record
        with open(tmp_path / 'tokens' / name, 'ab') as file:
            file.write(b'12345')
    texts.fails_at, texts.asked = None, []
    store = TokenStore.build(tmp_path / 'tokens', texts, tokenizer, 9)
    assert np.array_equal(store.take(None).ids, tokenise(tokenizer, texts.texts, 9).ids)
    assert texts.asked == list(range(fails_at // 4 * 4, 15))


def test_many_ids_take_four_bytes(tmp_path, tiny_bert_dir, texts):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_dir)
    tokenizer.add_tokens([f'w{i}w' for i in range(2 ** 16)])
    store = TokenStore.build(tmp_path / 'tokens', Texts([f'w{2 ** 16 - 1}w']), tokenizer, 9)
    assert store.take(None).ids.tolist() == tokenise(tokenizer, [f'w{2 ** 16 - 1}w'], 9).ids.tolist()
    assert store.take(None).ids.max() > 2 ** 16


def test_no_texts(tmp_path, tokenizer):
    store = TokenStore.build(tmp_path / 'tokens', Texts([]), tokenizer, 9)
    assert len(store) == 0 and len(store.take(None)) == 0 and store.lengths.tolist() == []


def test_tokens_of_something_else_are_refused(tmp_path, tokenizer, texts):
    TokenStore.build(tmp_path / 'tokens', texts, tokenizer, 9)
    files = {file.name: file.read_bytes() for file in (tmp_path / 'tokens').iterdir()}
    with pytest.raises(ValueError, match=r'max_length \(9 there, 12 now\)'):
        TokenStore.build(tmp_path / 'tokens', texts, tokenizer, 12)
    texts.fingerprint = 'beef'
    with pytest.raises(ValueError, match=r"texts \('f00d' there, 'beef' now\)"):
        TokenStore.build(tmp_path / 'tokens', texts, tokenizer, 9)
    assert {file.name: file.read_bytes() for file in (tmp_path / 'tokens').iterdir()} == files


def test_a_directory_of_other_files_is_refused(tmp_path, tokenizer, texts):
    (tmp_path / 'thesis.tex').write_text('x')
    with pytest.raises(ValueError, match='no token store: give another path'):
        TokenStore.build(tmp_path, texts, tokenizer, 9)
    with pytest.raises(ValueError, match='no whole token store'):
        TokenStore(tmp_path)


@pytest.mark.parametrize('name', ['ids.bin', 'offsets.bin'])
@pytest.mark.parametrize('harm', ['cut', 'flip'])
def test_damage_is_seen(tmp_path, tokenizer, texts, name, harm):
    TokenStore.build(tmp_path / 'tokens', texts, tokenizer, 9)
    file = tmp_path / 'tokens' / name
    blob = bytearray(file.read_bytes())
    blob[16] ^= 1
    file.write_bytes(blob if harm == 'flip' else blob[:-2])
    with pytest.raises(ValueError, match='damaged'):
        TokenStore(tmp_path / 'tokens')


def test_damaged_meta_is_named(tmp_path, tokenizer, texts):
    TokenStore.build(tmp_path / 'tokens', texts, tokenizer, 9)
    meta = tmp_path / 'tokens' / 'meta.json'
    assert json.loads(meta.read_text())['dtype'] == 'uint16'
    meta.write_text(meta.read_text()[:40])
    with pytest.raises(ValueError, match=r'meta\.json is damaged'):
        TokenStore(tmp_path / 'tokens')


def test_the_side_that_is_cut_may_change(tiny_bert_dir):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_dir)
    one, _ = tokenise(tokenizer, ['rose garden soil seed water'] * 2, 4).ids.reshape(2, -1)
    tokenizer.truncation_side = 'left'
    other, _ = tokenise(tokenizer, ['rose garden soil seed water'] * 2, 4).ids.reshape(2, -1)
    assert one.tolist() != other.tolist() and one[[0, -1]].tolist() == other[[0, -1]].tolist()


def test_ids_beyond_the_number_of_words_are_kept(tmp_path):
    engine = tokenizers.Tokenizer(tokenizers.models.WordLevel({'[UNK]': 0, 'rose': 70_000}, unk_token='[UNK]'))
    engine.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=engine, unk_token='[UNK]')
    texts = TextStore.build(tmp_path / 'texts', [('a', 'rose rose')])
    assert TokenStore.of(texts, tokenizer, 20).take(np.array([0])).ids.tolist() == [70_000, 70_000]


def test_slow_tokenizers_differ_by_their_options(tmp_path):
    (tmp_path / 'vocab.txt').write_text('\n'.join(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'rose', 'Rose']))
    one, other, again = (BertJapaneseTokenizer(str(tmp_path / 'vocab.txt'), word_tokenizer_type='basic',
                                               do_lower_case=lower) for lower in (True, False, True))
    assert tokenizer_fingerprint(one) == tokenizer_fingerprint(again) != tokenizer_fingerprint(other)


def test_a_slow_tokenizer_is_the_same_however_it_was_loaded(tmp_path):
    made = ByT5Tokenizer()
    made.save_pretrained(tmp_path / 'tokenizer')
    loaded = [AutoTokenizer.from_pretrained(tmp_path / 'tokenizer', local_files_only=local) for local in (True, False)]
    assert len({tokenizer_fingerprint(tokenizer) for tokenizer in (made, *loaded)}) == 1
