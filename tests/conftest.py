"""Tiny models and a toy collection that every test may use."""
import os

os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')

import random
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from hypothesis import settings

settings.register_profile('untimed', deadline=None)   # a busy machine is no failure
settings.load_profile('untimed')
pt.documentation._cached_objects_inv = {}  # schematics look their links up on the network otherwise

TOPICS = {
    'gardening': 'soil seed compost rose pruning watering greenhouse weed harvest mulch',
    'astronomy': 'planet comet telescope orbit galaxy eclipse nebula meteor gravity star',
    'cooking': 'oven butter garlic simmer dough spice roast sauce whisk marinade',
    'sailing': 'anchor mast harbour knot tide keel rudder compass wind hull',
    'medicine': 'fever vaccine dose surgery artery nurse insulin allergy fracture diagnosis',
    'music': 'violin chord rhythm piano melody tempo choir drum opera harmony',
}
TOPICS = {topic: words.split() for topic, words in TOPICS.items()}
QUESTIONS = ['what is the best', 'how to use a', 'why does the', 'when to choose the', 'guide to good']
FILLER = ('the a of and to in is that it for with as on by this from at or an be are was which can has more '
          'people often first small large time day year work way many found known used well about over under '
          'between long short new old good best how what why when choose guide use does not').split()


def _sentence(rng, topic, word, length):
    """`length` words, led by the aspect and its topic, then filler in which both come again."""
    body = list(rng.choice(FILLER, size=length))
    for at in range(3, length, 7):
        body[at] = word if at % 2 else topic
    return ' '.join([word, topic, *body])


def _collection():
    """60 queries (6 topics of 10 aspects) with two documents about each; an even query also has a judged 0."""
    rng = np.random.Generator(np.random.Philox(key=[7, 0]))
    corpus, topics, qrels = [], [], []
    for t, (topic, words) in enumerate(TOPICS.items()):
        for a, word in enumerate(words):
            n, neighbour = 10 * t + a, 10 * t + (a + 1) % 10
            topics.append({'qid': f'q{n}', 'query': f'{QUESTIONS[n % 5]} {word} {topic}'})
            for letter, label in (('a', 2), ('b', 1)):
                text = _sentence(rng, topic, word, int(rng.integers(5, 40)))
                corpus.append({'docno': f'd{n}{letter}', 'text': text})
                qrels.append({'qid': f'q{n}', 'docno': f'd{n}{letter}', 'label': label})
            if n % 2 == 0:
                qrels.append({'qid': f'q{n}', 'docno': f'd{neighbour}a', 'label': 0})
    return corpus, pd.DataFrame(topics), pd.DataFrame(qrels)


def _candidates(corpus, topics):
    """Each query's 12 best documents by shared topic and aspect words, ties broken by a little noise."""
    rng = np.random.Generator(np.random.Philox(key=[7, 1]))
    words = [doc['text'].split() for doc in corpus]
    content = {*TOPICS, *(word for aspects in TOPICS.values() for word in aspects)}
    rows = []
    for qid, query in topics[['qid', 'query']].itertuples(index=False):
        asked = content.intersection(query.split())
        score = [sum(doc.count(word) for word in asked) / len(doc) ** .5 for doc in words]
        score = np.array(score) + rng.uniform(0, .01, size=len(words))
        for rank, row in enumerate(np.argsort(-score)[:12]):
            rows.append({'qid': qid, 'query': query, **corpus[row], 'score': float(score[row]), 'rank': rank})
    return pd.DataFrame(rows)


@pytest.fixture(scope='session')
def _toy():
    corpus, topics, qrels = _collection()
    return corpus, topics, qrels, _candidates(corpus, topics)


@pytest.fixture
def toy_corpus(_toy):
    """120 dicts of docno and text, of 7 to 41 words: two about each aspect of six topics."""
    return [dict(doc) for doc in _toy[0]]


@pytest.fixture
def toy_topics(_toy):
    """60 queries (qid, query), ten on each of six topics, in the order of their topics."""
    return _toy[1].copy()


@pytest.fixture
def toy_qrels(_toy):
    """A document of label 2 and one of label 1 for every query, and one of label 0 for every even query."""
    return _toy[2].copy()


@pytest.fixture
def toy_results(_toy):
    """12 candidates a query (qid, query, docno, text, score, rank), scored by words in common."""
    return _toy[3].copy()


@pytest.fixture
def write_splits(toy_qrels):
    """(folder, {split: topics}) → queries.SPLIT.tsv and qrels.SPLIT.tsv, whose columns `sep` parts, in a new folder."""
    def write(folder, splits, sep='\t'):
        folder.mkdir()
        for split, topics in splits.items():
            topics.to_csv(folder / f'queries.{split}.tsv', sep='\t', header=False, index=False)
            qrels = toy_qrels[toy_qrels['qid'].isin(topics['qid'])].assign(zero=0)
            qrels[['qid', 'zero', 'docno', 'label']].to_csv(folder / f'qrels.{split}.tsv', sep=sep, header=False,
                                                            index=False)
    return write


def _tokenizer():
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = [chr(c) for c in range(ord('a'), ord('z') + 1)] + [str(d) for d in range(10)] + list('.,?!-\'')
    words = dict.fromkeys([*TOPICS, *(w for aspects in TOPICS.values() for w in aspects), *FILLER])
    vocabulary = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *letters, *(f'##{c}' for c in letters),
                  *(w for w in words if len(w) > 1)]
    ids = {token: i for i, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token='[UNK]'))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single='[CLS] $A [SEP]', pair='[CLS] $A [SEP] $B:1 [SEP]:1', special_tokens=[('[CLS]', 2), ('[SEP]', 3)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token='[UNK]', pad_token='[PAD]', cls_token='[CLS]',
                                   sep_token='[SEP]', mask_token='[MASK]', model_max_length=512)


def _model_directory(path, build):
    import torch

    tokenizer = _tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = build(len(tokenizer))
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope='session')
def tiny_bert_dir(tmp_path_factory):
    """A directory with a random BertModel (2 layers, 32 dimensions, 2 heads) and a word-piece tokenizer."""
    from transformers import BertConfig, BertModel

    return _model_directory(tmp_path_factory.mktemp('tiny') / 'bert', lambda vocabulary: BertModel(BertConfig(
        vocab_size=vocabulary, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=512, initializer_range=.2)))


@pytest.fixture(scope='session')
def tiny_distilbert_dir(tmp_path_factory):
    """A directory with a random DistilBertModel (2 layers, 32 dimensions, 2 heads) and the same tokenizer."""
    from transformers import DistilBertConfig, DistilBertModel

    return _model_directory(tmp_path_factory.mktemp('tiny') / 'distilbert', lambda vocabulary: DistilBertModel(
        DistilBertConfig(vocab_size=vocabulary, dim=32, n_layers=2, n_heads=2, hidden_dim=64,
                         max_position_embeddings=512, initializer_range=.2)))


@pytest.fixture(scope='session')
def tiny_t5_dir(_toy, tmp_path_factory):
    """A directory with a random T5 (one layer, 32 dimensions) and a tokenizer of the collection's words."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration, T5TokenizerFast

    path = str(tmp_path_factory.mktemp('tiny') / 't5')
    words = sorted({word for doc in _toy[0] for word in doc['text'].split()})
    pieces = [f'▁{word}' for word in ['true', 'false', 'Query:', 'Document:', 'Relevant:', *words]]
    tokenizer = T5TokenizerFast(extra_ids=0, vocab=[
        ('<pad>', 0.), ('</s>', 0.), ('<unk>', 0.), ('▁', -9.), *((piece, -3.) for piece in dict.fromkeys(pieces))])
    tokenizer.model_max_length = 512
    tokenizer.save_pretrained(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = T5ForConditionalGeneration(T5Config(
            vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, n_positions=512,
            decoder_start_token_id=0))
    model.save_pretrained(path)
    return path


@pytest.fixture(scope='session')
def minilm_dir():
    """The directory of the packaged all-MiniLM-L6-v2, its weights checked."""
    from pyterrier_tasb.packaged import minilm

    try:
        return minilm()
    except ImportError as error:
        pytest.skip(str(error))


def _rng_states():
    import torch

    kind, keys, position, has_gauss, gauss = np.random.get_state()
    of_numpy = kind, keys.tobytes(), position, has_gauss, gauss
    return random.getstate(), of_numpy, torch.get_rng_state().numpy().tobytes()


@pytest.fixture
def no_global_rng_change():
    """A context manager: `with no_global_rng_change(): …` fails when Python's, numpy's or torch's global RNG moves."""
    @contextmanager
    def unchanged():
        before = _rng_states()
        yield
        moved = [name for name, old, new in zip(('random', 'numpy', 'torch'), before, _rng_states()) if old != new]
        assert not moved, f'global random state changed: {moved}'

    return unchanged
