"""Checkpoints of colbert-ai: their scores are those that colbert-ai gives."""
import copy
import json
import pickle
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertConfig, BertModel

from pyterrier_tasb import TasBalanced, Training
from pyterrier_tasb.teachers import LateInteraction
from pyterrier_tasb.teachers.label_training import LabelledBatches, in_batch_loss
from pyterrier_tasb.texts import TextStore

PUNCTUATION = '!"#$%&\'()*+,-./:;<=>?@[\\]^_`{|}~'
QUERIES = ['what is the best rose gardening?', 'star', 'how to use a violin, at night!', 'a [PAD] or [MASK] rose?', '',
           'rose star violin soil seed compost orbit chord ' * 6]
DOCS = ['soil, seed; compost - rose.', 'orbit', "violin chord rhythm? piano's melody (for) the choir!", '...', '',
        'rose star § unknown 東京', 'a [PAD] and a [MASK]', 'star, rose. ' * 90]
CASES = [{}, {'attend_to_mask_tokens': True}, {'mask_punctuation': False}, {'query_maxlen': 8, 'doc_maxlen': 10},
         {'query_maxlen': 40, 'doc_maxlen': 90, 'attend_to_mask_tokens': True}]
FAST = Training(steps=4, batch_size=8, learning_rate=1e-3, sampling='random', pairwise_loss='ranknet')


class Checkpoint:
    """A directory as colbert-ai writes it, and its scores, computed as plainly as its source says."""

    def __init__(self, path, base, **settings):
        self.path = path
        self.settings = {'query_token_id': '[unused0]', 'doc_token_id': '[unused1]', 'query_maxlen': 32,
                         'doc_maxlen': 220, 'dim': 8, 'mask_punctuation': True, 'attend_to_mask_tokens': False,
                         'similarity': 'cosine', 'interaction': 'colbert', **settings}
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self.tokenizer.add_tokens(['[unused0]', '[unused1]'], special_tokens=True)
        with torch.random.fork_rng([]):
            torch.manual_seed(7)
            self.model = BertModel(BertConfig(
                vocab_size=len(self.tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                intermediate_size=64, initializer_range=.2)).eval()
            self.linear = torch.nn.Linear(32, 8, bias=False)
        self.tokenizer.save_pretrained(path)
        save_file({**{f'bert.{name}': value for name, value in self.model.state_dict().items()},
                   'linear.weight': self.linear.weight.detach()}, path / 'model.safetensors', metadata={'format': 'pt'})
        config = {**self.model.config.to_dict(), 'architectures': ['HF_ColBERT']}
        (path / 'config.json').write_text(json.dumps(config))
        (path / 'artifact.metadata').write_text(json.dumps(self.settings))

    def scores(self, queries=QUERIES, docs=DOCS):
        """[queries, docs]."""
        doc_vectors, scored = self._docs(docs)
        found = []
        for query in queries:
            similarity = doc_vectors @ self._query(query).T
            similarity[~scored] = -9999
            found.append(similarity.max(1).values.sum(1))
        return torch.stack(found).numpy()

    def _query(self, text):
        length, mask = self.settings['query_maxlen'], self.tokenizer.mask_token_id
        read = self.tokenizer(text, truncation=True, padding='max_length', max_length=length - 1)
        ids = self._with_marker(read['input_ids'], 'query')
        attended = self._with_marker(read['attention_mask'], None)
        ids = [mask if id == self.tokenizer.pad_token_id else id for id in ids]
        if self.settings['attend_to_mask_tokens']:
            attended = [1] * length
        return self._vectors([ids], [attended])[0]

    def _docs(self, texts):
        read = self.tokenizer(texts, truncation=True, padding='longest', max_length=self.settings['doc_maxlen'] - 1)
        ids = [self._with_marker(row, 'doc') for row in read['input_ids']]
        unscored = {self.tokenizer.pad_token_id}
        if self.settings['mask_punctuation']:
            unscored |= {self.tokenizer.encode(symbol, add_special_tokens=False)[0] for symbol in PUNCTUATION}
        scored = torch.tensor([[id not in unscored for id in row] for row in ids])
        return self._vectors(ids, [self._with_marker(row, None) for row in read['attention_mask']]), scored

    def _with_marker(self, row, side):
        marker = 1 if side is None else self.tokenizer.convert_tokens_to_ids(self.settings[f'{side}_token_id'])
        return [row[0], marker, *row[1:]]

    @torch.no_grad()
    def _vectors(self, ids, attended):
        states = self.model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(attended)).last_hidden_state
        return F.normalize(self.linear(states), dim=-1)


@pytest.fixture
def checkpoint(tiny_bert_dir, tmp_path):
    return Checkpoint(tmp_path, tiny_bert_dir)


@pytest.fixture(params=CASES, ids=str)
def any_checkpoint(request, tiny_bert_dir, tmp_path):
    return Checkpoint(tmp_path, tiny_bert_dir, **request.param)


@pytest.fixture
def stores(tmp_path):
    return (TextStore.build(tmp_path / 'queries', ((f'q{i}', text) for i, text in enumerate(QUERIES))),
            TextStore.build(tmp_path / 'docs', ((f'd{j}', text) for j, text in enumerate(DOCS))))


def teacher_of(path, **options):
    return LateInteraction(path, device='cpu', amp='off', **{'cache_bytes': 0, **options})


def scores_of(teacher):
    return teacher.score_matrix(QUERIES, DOCS).numpy()


def changed(path, **settings):
    file = path / 'artifact.metadata'
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


# ---- scores ----------------------------------------------------------------------------------------------------------

def test_scores_are_those_of_colbert(any_checkpoint, recwarn):
    expected = any_checkpoint.scores()
    teacher = teacher_of(any_checkpoint.path)
    assert not recwarn
    np.testing.assert_allclose(scores_of(teacher), expected, atol=5e-5)
    kept = teacher_of(any_checkpoint.path, cache_bytes=1 << 30)
    for _ in range(2):
        np.testing.assert_allclose(scores_of(kept), expected, atol=2e-2)   # kept in half precision
    teacher.marking = None
    assert np.abs(scores_of(teacher) - expected).max() > 1


def test_lengths_that_are_given_count_the_marker_as_well(checkpoint):
    teacher = teacher_of(checkpoint.path, query_max_length=7, doc_max_length=9)
    checkpoint.settings.update(query_maxlen=7, doc_maxlen=9)
    np.testing.assert_allclose(scores_of(teacher), checkpoint.scores(), atol=5e-5)
    teacher.query_max_length = checkpoint.settings['query_maxlen'] = 12
    np.testing.assert_allclose(scores_of(teacher), checkpoint.scores(), atol=5e-5)


def test_a_bound_teacher_gives_these_scores_however_vectors_are_kept(any_checkpoint, stores, tmp_path):
    rows = np.array([3, 0, 5, 2, 4]), np.array([7, 3, 0, 1, 5, 6])
    expected = any_checkpoint.scores()[np.ix_(*rows)]
    for options, off in (({}, 5e-5), ({'cache_bytes': 1 << 30}, 2e-2), ({'cache_dir': tmp_path / 'vectors'}, 2e-2)):
        for _ in range(2):
            bound = teacher_of(any_checkpoint.path, **options).bind(*stores)
            np.testing.assert_allclose(bound(*rows), expected, atol=off)


def test_vectors_on_disk_take_room_for_what_is_scored(checkpoint, stores, tmp_path, monkeypatch):
    monkeypatch.setattr('pyterrier_tasb.teachers.marking._CHUNK', 3)
    teacher = teacher_of(checkpoint.path, cache_dir=tmp_path / 'vectors')
    _, scored = checkpoint._docs(DOCS)
    assert teacher.tokens_of(stores[1], 'doc').lengths.tolist() == scored.sum(1).tolist()
    assert teacher.tokens_of(stores[0], 'query').lengths.tolist() == [32] * len(QUERIES)


def test_what_colbert_takes_where_a_checkpoint_does_not_say(checkpoint):
    (checkpoint.path / 'artifact.metadata').write_text('{"mask_punctuation": true}')
    np.testing.assert_allclose(scores_of(teacher_of(checkpoint.path)), checkpoint.scores(), atol=5e-5)


def test_a_student_is_taught_with_these_scores(checkpoint, tiny_bert_dir, toy_results, toy_qrels, tmp_path):
    student = TasBalanced(tiny_bert_dir, in_batch_teacher=str(checkpoint.path), device='cpu', amp='off',
                          training=Training(steps=2, batch_size=8, sampling='random'))
    student.fit(toy_results, toy_qrels)
    assert student.record['steps'] == 2


# ---- identity and files ----------------------------------------------------------------------------------------------

def test_a_saved_teacher_scores_the_same(any_checkpoint, tmp_path):
    teacher = teacher_of(any_checkpoint.path)
    teacher.save(tmp_path / 'saved')
    np.testing.assert_array_equal(scores_of(teacher_of(tmp_path / 'saved')), scores_of(teacher))
    written = json.loads((tmp_path / 'saved' / 'artifact.metadata').read_text())
    read = {name: any_checkpoint.settings[name] for name in any_checkpoint.settings
            if name not in ('similarity', 'interaction')}
    assert written.items() >= read.items()


@pytest.mark.parametrize('kind', [lambda it: pickle.loads(pickle.dumps(it)), copy.deepcopy, copy.copy])
def test_a_copy_scores_the_same(checkpoint, kind):
    teacher = teacher_of(checkpoint.path)
    other = kind(teacher)
    assert other == teacher and repr(other) == repr(teacher)
    np.testing.assert_array_equal(scores_of(other), scores_of(teacher))


def test_teachers_that_read_texts_in_another_way_are_others(checkpoint, stores, tmp_path):
    rows = np.arange(len(QUERIES)), np.arange(len(DOCS))
    found = []
    for settings in {}, {'attend_to_mask_tokens': True}, {'mask_punctuation': False}:
        changed(checkpoint.path, **settings)
        teacher = teacher_of(checkpoint.path, cache_dir=tmp_path / 'vectors')
        np.testing.assert_allclose(teacher.bind(*stores)(*rows), scores_of(teacher), atol=2e-2)
        assert teacher not in found and repr(teacher) not in map(repr, found)
        found.append(teacher)
    plain = found[-1].apply_attributes(marking=None)
    assert plain != found[-1] and repr(plain) != repr(found[-1]) and 'ColBERT' not in repr(plain)


def test_a_checkpoint_of_the_hub_is_read_with_its_settings(checkpoint, monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    def download(name, file):
        if not (checkpoint.path / file).exists():
            raise EntryNotFoundError(file)
        return str(checkpoint.path / file)
    monkeypatch.setattr(huggingface_hub, 'hf_hub_download', download)
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', lambda *_, **__: str(checkpoint.path))
    np.testing.assert_allclose(scores_of(teacher_of('colbert-ir/colbert')), checkpoint.scores(), atol=5e-5)
    (checkpoint.path / 'artifact.metadata').unlink()
    with pytest.warns(UserWarning, match='colbert-ir/colbert has a projection.*no artifact.metadata was found'):
        assert teacher_of('colbert-ir/colbert').marking is None


# ---- what cannot be --------------------------------------------------------------------------------------------------

def test_further_masks_are_refused(checkpoint):
    with pytest.raises(ValueError, match='fills its queries up to query_max_length with .MASK.: leave mask_tokens out'):
        teacher_of(checkpoint.path, mask_tokens=8)
    teacher = teacher_of(checkpoint.path)
    teacher.mask_tokens = 3
    with pytest.raises(ValueError, match='mask_tokens=3'):
        scores_of(teacher)


def test_a_tokenizer_without_masks_is_refused(checkpoint):
    file = checkpoint.path / 'tokenizer_config.json'
    config = json.loads(file.read_text())
    del config['mask_token']
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r'lacks \[MASK\] or a marker token of its ColBERT\(query_token_id='):
        teacher_of(checkpoint.path)


def test_a_tokenizer_without_the_markers_is_refused(checkpoint):
    file = checkpoint.path / 'artifact.metadata'
    file.write_text(json.dumps({**json.loads(file.read_text()), 'query_token_id': '[unheard of]'}))
    with pytest.raises(ValueError, match=r"a marker token of its ColBERT\(query_token_id='\[unheard of\]'"):
        teacher_of(checkpoint.path)


def test_another_interaction_is_warned_of(checkpoint, tmp_path):
    changed(checkpoint.path, interaction='flipr')
    with pytest.warns(UserWarning, match="interaction='flipr', which is not applied here"):
        teacher = teacher_of(checkpoint.path)
    with pytest.warns(UserWarning, match="interaction='flipr'"):
        teacher_of(teacher.save(tmp_path / 'saved'))


def test_a_pylate_directory_is_refused(checkpoint):
    """Its projection is a layer of its own, and its settings lie in other files."""
    path = checkpoint.path
    (path / 'artifact.metadata').unlink()
    weights = load_file(path / 'model.safetensors')
    (path / '1_Dense').mkdir()
    save_file({'linear.weight': weights.pop('linear.weight')}, path / '1_Dense' / 'model.safetensors')
    save_file({name.removeprefix('bert.'): value for name, value in weights.items()}, path / 'model.safetensors',
              metadata={'format': 'pt'})
    (path / 'config_sentence_transformers.json').write_text(json.dumps({
        'query_prefix': '[unused0]', 'document_prefix': '[unused1]', 'query_length': 32, 'document_length': 180}))
    (path / 'modules.json').write_text(json.dumps([
        {'idx': 0, 'name': '0', 'path': '', 'type': 'sentence_transformers.models.Transformer'},
        {'idx': 1, 'name': '1', 'path': '1_Dense', 'type': 'pylate.models.Dense.Dense'}]))
    for load in LateInteraction, TasBalanced:
        with pytest.raises(ValueError, match='modules.json asks for a Dense layer; only Transformer'):
            load(path)


# ---- learning --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('attended', [False, True])
def test_the_loss_is_that_of_these_scores(tiny_bert_dir, toy_results, toy_qrels, tmp_path, attended):
    from pyterrier_tasb.pairs.examples import prepare
    from pyterrier_tasb.sampling import BatchPlan
    (tmp_path / 'model').mkdir()
    checkpoint = Checkpoint(tmp_path / 'model', tiny_bert_dir, attend_to_mask_tokens=attended)
    teacher = teacher_of(checkpoint.path)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)   # of positives that the candidates lack
        examples = prepare(toy_results, toy_qrels, tmp_path / 'work', scores_needed=False)
    plan = BatchPlan(examples.pairs, sampling='random', batch_size=8, seed=1)
    labelled, drawn = LabelledBatches(teacher, examples, plan, tmp_path)[0], plan[0]
    loss, _ = in_batch_loss(teacher.module, labelled, 2.0)
    loss.backward()
    assert all(weights.grad is not None for name, weights in teacher.module.named_parameters() if 'pooler' not in name)
    scores = 2.0 * torch.from_numpy(checkpoint.scores(
        examples.queries.take(drawn.query), examples.docs.take(np.concatenate([drawn.pos, drawn.neg]))))
    own = torch.eye(8, 16, dtype=torch.bool)
    scores = scores.masked_fill(labelled.positive & ~own, float('-inf'))
    assert loss.item() == pytest.approx(F.cross_entropy(scores, torch.arange(8)).item(), rel=1e-3, abs=1e-5)


def test_what_was_learnt_is_saved_and_read_by_colberts_rules(checkpoint, toy_results, toy_qrels, tmp_path):
    teacher = teacher_of(checkpoint.path, training=FAST)
    before = scores_of(teacher)
    teacher.fit(toy_results, toy_qrels, toy_results, toy_qrels).save(tmp_path / 'saved')
    weights = load_file(tmp_path / 'saved' / 'model.safetensors')
    checkpoint.linear.weight.data.copy_(weights.pop('linear.weight'))
    checkpoint.model.load_state_dict({name.removeprefix('bert.'): value for name, value in weights.items()})
    np.testing.assert_allclose(scores_of(teacher_of(tmp_path / 'saved')), checkpoint.scores(), atol=5e-5)
    assert np.abs(checkpoint.scores() - before).max() > .1


def test_a_run_that_read_texts_in_another_way_is_not_gone_on_with(checkpoint, toy_results, toy_qrels, tmp_path):
    def fit():
        teacher_of(checkpoint.path, training=FAST).fit(toy_results, toy_qrels, work_dir=tmp_path / 'work', resume=True)
    fit()
    changed(checkpoint.path, attend_to_mask_tokens=True)
    with pytest.raises(ValueError, match='lengths'):
        fit()
