"""`LateInteraction`: a re-ranker, a teacher of batches, an estimator, and a reader of ColBERT's layouts."""
import copy
import gc
import json
import pickle
import warnings

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from ir_measures import RR
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, DistilBertConfig, DistilBertModel

from pyterrier_tasb import TasBalanced, Training
from pyterrier_tasb.teachers import LateInteraction
from pyterrier_tasb.teachers.label_training import LabelledBatches, in_batch_loss
from pyterrier_tasb.texts import TextStore

FAST = Training(steps=6, batch_size=8, learning_rate=1e-3, sampling='random', pairwise_loss='ranknet', log_every=2,
                eval_every=2, save_every=2)
QUERIES = ['what is the best rose gardening', 'star', 'how to use a violin music at night']
DOCS = ['soil seed compost rose', 'orbit', 'violin chord rhythm piano melody for the choir', 'rose star']


@pytest.fixture(autouse=True, scope='module')
def _quick_collections():
    """Every run ends with a garbage collection, which need not look at all modules that are loaded."""
    gc.freeze()
    yield
    gc.unfreeze()


def teacher_of(path, **options):
    """A teacher that computes in float32 wherever the tests run."""
    return LateInteraction(path, device='cpu', amp='off', **options)


@pytest.fixture
def teacher(tiny_bert_dir):
    return teacher_of(tiny_bert_dir, training=FAST)


@pytest.fixture
def stores(tmp_path):
    return (TextStore.build(tmp_path / 'queries', ((f'q{i}', text) for i, text in enumerate(QUERIES))),
            TextStore.build(tmp_path / 'docs', ((f'd{j}', text) for j, text in enumerate(DOCS))))


def all_pairs():
    return pd.DataFrame([{'qid': f'q{i}', 'query': query, 'docno': f'd{j}', 'text': text}
                         for i, query in enumerate(QUERIES) for j, text in enumerate(DOCS)])


def brute_force(states, tokenizer, *, mask_tokens=0, query_max_length=32, doc_max_length=200):
    """[queries, docs] by loops; `states` is token ids [1, L] → token vectors [L, D]."""
    def vectors(text, length, extra=()):
        ids = tokenizer(text, truncation=True, max_length=length)['input_ids']
        with torch.no_grad():
            return states(torch.tensor([[*ids, *extra]]))
    queries = [vectors(text, query_max_length, [tokenizer.mask_token_id] * mask_tokens) for text in QUERIES]
    docs = [vectors(text, doc_max_length) for text in DOCS]
    return np.array([[sum(max(float(q @ d) for d in doc) for q in query) for doc in docs] for query in queries])


def of_encoder(path, normalize=True):
    model, tokenizer = AutoModel.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)

    def states(ids):
        states = model(input_ids=ids).last_hidden_state[0]
        return F.normalize(states, dim=-1) if normalize else states
    return states, tokenizer


def scores_of(teacher):
    return teacher.score_matrix(QUERIES, DOCS).numpy()


# ---- scoring ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('options', [{}, {'scale': 3.0}, {'normalize': False}, {'mask_tokens': 4},
                                     {'query_max_length': 5, 'doc_max_length': 6}], ids=str)
def test_scores_are_those_of_loops_over_token_vectors(tiny_bert_dir, options):
    expected = brute_force(*of_encoder(tiny_bert_dir, options.get('normalize', True)), **{
        name: value for name, value in options.items() if name not in ('scale', 'normalize')})
    found = scores_of(teacher_of(tiny_bert_dir, **options))
    np.testing.assert_allclose(found, options.get('scale', 1) * expected, rtol=5e-3, atol=5e-3)   # vectors are fp16


@pytest.mark.parametrize('cache_bytes', [1 << 30, 3000, 0])
def test_a_re_ranker_gives_the_matrix_whatever_the_cache_holds(tiny_bert_dir, cache_bytes):
    teacher, frame = teacher_of(tiny_bert_dir, cache_bytes=cache_bytes), all_pairs().sample(frac=1, random_state=1)
    for _ in range(2):
        results = teacher(frame)
        assert results['docno'].tolist() == frame['docno'].tolist()
        found = results.pivot(index='qid', columns='docno', values='score').to_numpy()
        np.testing.assert_allclose(found, scores_of(teacher), atol=5e-3)
        for _, of_query in results.groupby('qid'):
            assert of_query.sort_values('rank')['score'].is_monotonic_decreasing
        assert teacher._cache.bytes <= cache_bytes


def test_an_empty_frame_gets_its_columns_and_never_reaches_the_model(teacher, monkeypatch):
    monkeypatch.setattr(teacher.module, 'forward', lambda *_: pytest.fail('the model was called'))
    results = teacher(all_pairs().iloc[:0])
    assert not len(results) and {'qid', 'docno', 'score', 'rank'} <= set(results.columns)


def test_a_missing_column_names_the_transformer(teacher):
    with pytest.raises(pt.validate.InputValidationError, match='LateInteraction'):
        teacher(all_pairs().drop(columns='text'))


def test_pyterriers_own_transformer_tests(teacher):
    import unittest
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(pt.testing.transformer_test_class(lambda: teacher)).run(result)
    assert result.testsRun and result.wasSuccessful(), result.failures + result.errors


@pytest.mark.parametrize('attributes', [{'mask_tokens': 4}, {'scale': 2.0}, {'normalize': False},
                                        {'doc_max_length': 5}], ids=str)
def test_applied_attributes_take_effect_and_leave_the_original_as_it_was(teacher, tiny_bert_dir, attributes):
    before = scores_of(teacher)
    other = pt.inspect.transformer_apply_attributes(teacher, **attributes)
    np.testing.assert_allclose(scores_of(other), scores_of(teacher_of(tiny_bert_dir, **attributes)), atol=5e-3)
    np.testing.assert_array_equal(scores_of(teacher), before)
    assert other != teacher


@pytest.mark.parametrize('name, value', [('mask_tokens', 8), ('doc_max_length', 5), ('query_max_length', 4),
                                         ('normalize', False)])
def test_settings_take_effect_whenever_they_are_set(teacher, tiny_bert_dir, tmp_path, name, value):
    before, fresh = scores_of(teacher), teacher_of(tiny_bert_dir, **{name: value})
    teacher.set_parameter(name, value)
    np.testing.assert_array_equal(scores_of(teacher), scores_of(fresh))
    assert not np.array_equal(scores_of(teacher), before) and teacher == fresh and repr(teacher) == repr(fresh)
    teacher.save(tmp_path / 'saved')
    np.testing.assert_array_equal(scores_of(teacher_of(tmp_path / 'saved')), scores_of(teacher))


def test_what_shares_weights_and_is_trained_leaves_the_other_as_it_was(teacher, toy_results, toy_qrels):
    before, name = scores_of(teacher), repr(teacher)
    other = pt.inspect.transformer_apply_attributes(teacher, training=teacher.training.replace(steps=2, batch_size=4))
    other.fit(toy_results, toy_qrels)
    np.testing.assert_array_equal(scores_of(teacher), before)
    assert repr(teacher) == name != repr(other) and not np.array_equal(scores_of(other), before)


def test_another_device_is_another_copy_of_the_weights(teacher):
    elsewhere = pt.inspect.transformer_apply_attributes(teacher, device='meta')
    assert elsewhere.module.encoder.device.type == elsewhere.device.type == 'meta'
    assert teacher.module.encoder.device.type == 'cpu' and len(scores_of(teacher))


def test_an_attribute_that_does_not_exist_is_refused(teacher):
    with pytest.raises(ValueError, match='rope'):
        teacher.apply_attributes(rope=1)


COPIES = {'pickled': lambda it: pickle.loads(pickle.dumps(it)), 'deep': copy.deepcopy}


@pytest.mark.parametrize('kind', COPIES)
def test_a_copy_scores_the_same_from_an_empty_cache(teacher, kind):
    expected = scores_of(teacher)
    other = COPIES[kind](teacher)
    assert other == teacher and repr(other) == repr(teacher)
    assert teacher._cache.bytes > 0 == other._cache.bytes and other._cache.most_bytes == teacher._cache.most_bytes
    np.testing.assert_array_equal(scores_of(other), expected)
    assert other._cache.bytes == teacher._cache.bytes


@pytest.mark.parametrize('kind', COPIES)
def test_a_student_is_copied_with_its_teacher(tiny_bert_dir, teacher, kind):
    other = COPIES[kind](TasBalanced(tiny_bert_dir, pairwise_teacher=teacher, in_batch_teacher=teacher))
    assert other.in_batch_teacher is other.pairwise_teacher is not teacher
    np.testing.assert_array_equal(scores_of(other.in_batch_teacher), scores_of(teacher))


# ---- a teacher of batches --------------------------------------------------------------------------------------------

@pytest.mark.parametrize('mask_tokens', [0, 3])
def test_vectors_on_disk_give_the_scores_of_live_ones(tiny_bert_dir, stores, tmp_path, mask_tokens):
    rows = np.array([2, 0]), np.array([3, 0, 1])
    live = teacher_of(tiny_bert_dir, mask_tokens=mask_tokens).bind(*stores)(*rows)
    expected = scores_of(teacher_of(tiny_bert_dir, mask_tokens=mask_tokens))[np.ix_(*rows)]
    np.testing.assert_allclose(live, expected, atol=5e-3)
    on_disk = teacher_of(tiny_bert_dir, mask_tokens=mask_tokens, cache_dir=tmp_path / 'vectors')
    np.testing.assert_allclose(on_disk.bind(*stores)(*rows), live, atol=5e-3)
    at_once = teacher_of(tiny_bert_dir, mask_tokens=mask_tokens, cache_bytes=0).bind(*stores)(*rows)
    np.testing.assert_allclose(at_once, live, atol=5e-3)
    assert at_once.dtype == torch.float32 and at_once.shape == live.shape


def test_vectors_on_disk_are_computed_once(tiny_bert_dir, stores, tmp_path, monkeypatch):
    rows = np.array([0, 1]), np.array([0, 2, 3])
    first = teacher_of(tiny_bert_dir, cache_dir=tmp_path / 'vectors').bind(*stores)(*rows)
    again = teacher_of(tiny_bert_dir, cache_dir=tmp_path / 'vectors')
    bound = again.bind(*stores)
    monkeypatch.setattr(again, '_encode', lambda texts, side: pytest.fail('encoded again'))
    assert torch.equal(bound(*rows), first)


def test_another_teachers_vectors_are_not_taken(tiny_bert_dir, tiny_distilbert_dir, stores, tmp_path):
    rows = np.arange(len(QUERIES)), np.arange(len(DOCS))
    for path, options in ((tiny_bert_dir, {}), (tiny_distilbert_dir, {}), (tiny_bert_dir, {'normalize': False}),
                          (tiny_bert_dir, {'mask_tokens': 2})):
        found = teacher_of(path, cache_dir=tmp_path / 'vectors', **options).bind(*stores)(*rows)
        np.testing.assert_allclose(found, scores_of(teacher_of(path, **options)), atol=5e-3)


# ---- checkpoints -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('options', [{}, {'scale': 3.0}, {'normalize': False}, {'mask_tokens': 4},
                                     {'query_max_length': 5, 'doc_max_length': 6}], ids=str)
@pytest.mark.parametrize('projected', [False, True], ids=['plain', 'projected'])
@pytest.mark.parametrize('directory', ['tiny_bert_dir', 'tiny_distilbert_dir'])
def test_a_saved_teacher_scores_the_same_when_loaded(request, directory, projected, options, tmp_path):
    teacher = teacher_of(request.getfixturevalue(directory), **options)
    if projected:
        teacher.module.projection = linear(32, 8, bias=False)
    teacher.save(tmp_path / 'saved')
    loaded = teacher_of(tmp_path / 'saved')
    np.testing.assert_allclose(scores_of(loaded), scores_of(teacher), atol=1e-3)
    assert (loaded.module.projection is not None) == projected


def test_a_saved_teacher_is_not_written_over_unless_asked(teacher, tmp_path):
    teacher.save(tmp_path / 'saved')
    with pytest.raises(ValueError, match='overwrite=True'):
        teacher.save(tmp_path / 'saved')
    teacher.save(tmp_path / 'saved', overwrite=True)


def linear(n_in, n_out, bias):
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        return torch.nn.Linear(n_in, n_out, bias=bias)


def test_colberts_layout(tiny_bert_dir, tmp_path):
    projection = linear(32, 8, bias=False)
    model = AutoModel.from_pretrained(tiny_bert_dir)
    AutoTokenizer.from_pretrained(tiny_bert_dir).save_pretrained(tmp_path)
    save_file({**{f'bert.{name}': value for name, value in model.state_dict().items()},
               'linear.weight': projection.weight.detach()}, tmp_path / 'model.safetensors', metadata={'format': 'pt'})
    (tmp_path / 'config.json').write_text(json.dumps({**model.config.to_dict(), 'architectures': ['HF_ColBERT']}))
    (tmp_path / 'artifact.metadata').write_text(json.dumps({'query_maxlen': 6, 'doc_maxlen': 180, 'dim': 8}))
    states, tokenizer = of_encoder(tiny_bert_dir, normalize=False)
    expected = brute_force(lambda ids: F.normalize(projection(states(ids)), dim=-1), tokenizer, query_max_length=6)
    teacher = teacher_of(tmp_path)
    assert (teacher.query_max_length, teacher.doc_max_length, teacher.normalize) == (6, 180, True)
    np.testing.assert_allclose(scores_of(teacher), expected, rtol=5e-3, atol=5e-3)


def backbone(kind, vocabulary):
    with torch.random.fork_rng([]):
        torch.manual_seed(4)
        if kind == 'distilbert':   # two heads of 64 dimensions, as in every published model
            return DistilBertModel(DistilBertConfig(vocab_size=vocabulary, dim=128, n_layers=2, n_heads=2,
                                                    hidden_dim=64, initializer_range=.2)).eval()
        return BertModel(BertConfig(vocab_size=vocabulary, hidden_size=128, num_hidden_layers=2, num_attention_heads=2,
                                    intermediate_size=64, initializer_range=.2)).eval()


@pytest.fixture(params=['distilbert', 'bert'])
def released(request, tiny_bert_dir, tmp_path):
    """A directory in the released teacher's layout, its backbone and its projection."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_dir)
    tokenizer.save_pretrained(tmp_path / 'released')
    model, compressor = backbone(request.param, len(tokenizer)), linear(128, 16, bias=True)
    save_file({**{f'bert_model.{name}': value for name, value in model.state_dict().items()},
               'compressor.weight': compressor.weight.detach(), 'compressor.bias': compressor.bias.detach()},
              tmp_path / 'released' / 'model.safetensors', metadata={'format': 'pt'})
    (tmp_path / 'released' / 'config.json').write_text(json.dumps({
        'model_type': 'ColBERT', 'architectures': ['ColBERT'], 'compression_dim': 16, 'return_vecs': False}))
    return tmp_path / 'released', model, compressor


@pytest.mark.parametrize('mask_tokens', [0, 8])
def test_the_released_teachers_layout(released, tiny_bert_dir, mask_tokens):
    path, model, compressor = released
    expected = brute_force(lambda ids: compressor(model(input_ids=ids).last_hidden_state[0]),
                           AutoTokenizer.from_pretrained(tiny_bert_dir), mask_tokens=mask_tokens)
    teacher = teacher_of(path, mask_tokens=mask_tokens)
    assert not teacher.normalize
    np.testing.assert_allclose(scores_of(teacher), expected, rtol=5e-3, atol=5e-2)


def test_a_released_teacher_that_is_saved_keeps_the_bias_of_its_projection(released, tmp_path):
    teacher = teacher_of(released[0])
    teacher.save(tmp_path / 'saved')
    np.testing.assert_array_equal(scores_of(teacher_of(tmp_path / 'saved')), scores_of(teacher))


def test_released_weights_that_fit_no_backbone_are_refused(released):
    path = released[0]
    state = load_file(path / 'model.safetensors')
    name = next(name for name in state if name.endswith('.layer.1.ffn.lin2.bias')
                or name.endswith('.layer.1.output.dense.bias'))
    del state[name]
    save_file(state, path / 'model.safetensors', metadata={'format': 'pt'})
    with pytest.raises(ValueError, match='do not fit a BERT or DistilBERT'):
        teacher_of(path)


def test_weights_that_can_run_code_are_refused(tiny_bert_dir, tmp_path):
    AutoTokenizer.from_pretrained(tiny_bert_dir).save_pretrained(tmp_path)
    torch.save({}, tmp_path / 'pytorch_model.bin')
    with pytest.raises(ValueError, match='no model.safetensors but .*pytorch_model.bin.*convert it once'):
        LateInteraction(tmp_path)


def test_loading_leaves_global_generators_alone(released, no_global_rng_change):
    with no_global_rng_change():
        teacher_of(released[0])


# ---- learning --------------------------------------------------------------------------------------------------------

def test_the_loss_leaves_a_querys_other_positives_out(teacher, toy_results, toy_qrels, tmp_path):
    from pyterrier_tasb.pairs.examples import prepare
    from pyterrier_tasb.sampling import BatchPlan
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)   # of positives that the candidates lack
        examples = prepare(toy_results, toy_qrels, tmp_path, scores_needed=False)
    plan = BatchPlan(examples.pairs, sampling='random', batch_size=16, seed=1)
    labelled, drawn = LabelledBatches(teacher, examples, plan, tmp_path)[0], plan[0]
    loss, parts = in_batch_loss(teacher.module, labelled, 2.0)
    docs = np.concatenate([drawn.pos, drawn.neg])
    scores = 2.0 * teacher.score_matrix(examples.queries.take(drawn.query), examples.docs.take(docs)).numpy()
    good = {(qid, docno) for qid, docno, label in toy_qrels[['qid', 'docno', 'label']].itertuples(index=False) if label}
    expected = []
    for i, query in enumerate(drawn.query):
        others = [j for j in range(32)
                  if j != i and (examples.pairs.qids[query], examples.pairs.docnos[docs[j]]) not in good]
        expected.append(np.log(np.exp(scores[i, [i, *others]] - scores[i, i]).sum()))
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-2)
    assert 0 <= parts['accuracy'].item() <= 1


def test_fit_learns_the_labels_and_changes_the_identity(tiny_bert_dir, toy_results, toy_qrels, no_global_rng_change):
    training = FAST.replace(steps=40, batch_size=16, learning_rate=3e-3, eval_every=20)
    teacher = teacher_of(tiny_bert_dir, training=training, scale=2.0)
    before, name, twin = teacher(toy_results), teacher.model_name, teacher_of(tiny_bert_dir, scale=2.0)
    assert teacher == twin
    with no_global_rng_change():
        assert teacher.fit(toy_results, toy_qrels, toy_results, toy_qrels) is teacher
    reciprocal = [pt.Evaluate(results, toy_qrels, metrics=[RR])['RR'] for results in (before, teacher(toy_results))]
    assert reciprocal[1] > reciprocal[0] + .1
    assert teacher.model_name.startswith(f'{name}#trained-') and teacher != twin
    assert not teacher.module.training and teacher.record['best_step'] in (20, 40)


def test_what_was_learnt_is_saved(teacher, toy_results, toy_qrels, tmp_path):
    before = scores_of(teacher)
    teacher.fit(toy_results, toy_qrels).save(tmp_path / 'saved')
    assert not np.allclose(before, scores_of(teacher), atol=1e-2)
    np.testing.assert_allclose(scores_of(teacher_of(tmp_path / 'saved')), scores_of(teacher), atol=1e-3)


def test_fit_from_topics_with_a_miner_and_a_corpus(teacher, toy_topics, toy_results, toy_qrels, toy_corpus):
    texts = {doc['docno']: doc['text'] for doc in toy_corpus}
    corpus = pt.apply.generic(lambda res: res.assign(text=res['docno'].map(texts)), required_columns=['docno'])
    miner = pt.Transformer.from_df(toy_results.drop(columns='text'))
    teacher.fit(toy_topics, toy_qrels, negatives=miner, corpus=corpus)
    assert teacher.record['steps'] == 6


def test_an_interrupted_fit_goes_on_and_ends_with_the_same_weights(tiny_bert_dir, toy_results, toy_qrels, tmp_path,
                                                                   monkeypatch):
    whole = teacher_of(tiny_bert_dir, training=FAST).fit(toy_results, toy_qrels)
    draw = LabelledBatches.__getitem__

    def interrupt_at_4(self, step):
        if step == 4:
            raise KeyboardInterrupt
        return draw(self, step)
    interrupted = teacher_of(tiny_bert_dir, training=FAST)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(LabelledBatches, '__getitem__', interrupt_at_4)
        interrupted.fit(toy_results, toy_qrels, work_dir=tmp_path / 'work')
    assert not interrupted.module.training
    resumed = teacher_of(tiny_bert_dir, training=FAST)
    resumed.fit(toy_results, toy_qrels, work_dir=tmp_path / 'work', resume=True)
    assert resumed.model_name == whole.model_name
    expected = whole.module.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.module.state_dict().items())


@pytest.mark.parametrize('name, value', [('scale', 20.0), ('normalize', False), ('doc_max_length', 9)])
def test_what_a_run_depends_on_beside_weights_is_noticed(tiny_bert_dir, toy_results, toy_qrels, tmp_path, name, value):
    teacher_of(tiny_bert_dir, training=FAST).fit(toy_results, toy_qrels, work_dir=tmp_path / 'work')
    with pytest.raises(ValueError, match='lengths' if 'length' in name else name):
        teacher_of(tiny_bert_dir, training=FAST, **{name: value}).fit(toy_results, toy_qrels,
                                                                      work_dir=tmp_path / 'work', resume=True)


def test_qrels_of_other_queries_do_not_count_in_validation(tiny_bert_dir, toy_results, toy_qrels):
    def best(qrels):
        some = toy_results[toy_results['qid'].isin(toy_qrels['qid'].unique()[:20])]
        return teacher_of(tiny_bert_dir, training=FAST).fit(toy_results, toy_qrels, some, qrels).record['best_value']
    assert best(toy_qrels) == best(toy_qrels[toy_qrels['qid'].isin(toy_qrels['qid'].unique()[:20])])


@pytest.mark.parametrize('kind', [float, 'Int64'])
def test_labels_of_validation_may_be_any_whole_numbers(tiny_bert_dir, toy_results, toy_qrels, kind):
    def best(qrels):
        return teacher_of(tiny_bert_dir, training=FAST).fit(toy_results, toy_qrels, toy_results, qrels).record
    assert best(toy_qrels.astype({'label': kind})) == best(toy_qrels)


def test_a_teacher_in_the_pipeline_that_is_fitted_is_warned_of(tiny_bert_dir, toy_results, toy_topics, toy_qrels,
                                                               recwarn):
    candidates = pt.apply.generic(lambda topics: toy_results[toy_results['qid'].isin(topics['qid'])].copy())
    teacher = teacher_of(tiny_bert_dir, training=FAST)
    (candidates >> teacher).fit(toy_topics, toy_qrels)
    reads_scores = Training(steps=2, batch_size=8)
    student = TasBalanced(tiny_bert_dir, training=reads_scores)
    (candidates >> student).fit(toy_topics, toy_qrels)
    taught = TasBalanced(tiny_bert_dir, pairwise_teacher=teacher, training=reads_scores)
    (candidates >> teacher >> taught).fit(toy_topics, toy_qrels)
    for learner in teacher, student, TasBalanced(tiny_bert_dir, training=reads_scores):   # one after the other
        learner.fit(toy_results, toy_qrels)
    assert not [warning for warning in recwarn if 'pairwise_teacher=' in str(warning.message)]
    for before in candidates >> teacher, candidates >> student, candidates >> teacher % 10, \
            candidates >> teacher >> pt.apply.generic(lambda found: found.copy()):
        with pytest.warns(UserWarning, match='are not those of .* give it as pairwise_teacher='):
            (before >> TasBalanced(tiny_bert_dir, training=reads_scores)).fit(toy_topics, toy_qrels)


def test_other_batches_a_step_are_another_run(tiny_bert_dir, toy_results, toy_qrels, tmp_path):
    def fit(accumulation):
        training = FAST.replace(accumulation=accumulation)
        teacher_of(tiny_bert_dir, training=training).fit(toy_results, toy_qrels, work_dir=tmp_path, resume=True)
    fit(1)
    with pytest.raises(ValueError, match=r'batches a step \(1 there, 2 now\)'):
        fit(2)


def test_a_device_may_be_set_by_its_name(tiny_bert_dir, toy_results, toy_qrels):
    teacher = teacher_of(tiny_bert_dir, training=FAST)
    teacher.device = 'cpu'
    assert teacher.fit(toy_results, toy_qrels).record['steps'] == FAST.steps


def test_a_work_directory_of_another_teacher_is_refused(tiny_bert_dir, tiny_distilbert_dir, toy_results, toy_qrels,
                                                        tmp_path):
    teacher_of(tiny_bert_dir, training=FAST).fit(toy_results, toy_qrels, work_dir=tmp_path / 'work')
    with pytest.raises(ValueError, match='weights .* there'):
        teacher_of(tiny_distilbert_dir, training=FAST).fit(toy_results, toy_qrels, work_dir=tmp_path / 'work',
                                                           resume=True)


@pytest.mark.parametrize('lone', [0, 1])
def test_validation_needs_results_and_qrels(teacher, toy_results, toy_qrels, lone):
    validation = [toy_results, toy_qrels]
    validation[lone] = None
    with pytest.raises(ValueError, match='both results and qrels'):
        teacher.fit(toy_results, toy_qrels, *validation)


@pytest.mark.parametrize('spoil, message', [
    (lambda results, qrels: (results, qrels.assign(qid='x' + qrels['qid'])), 'has a positive'),
    (lambda results, qrels: (results, qrels.drop(columns='label')), 'label'),
    (lambda results, qrels: (results.assign(text=None), qrels), 'have no text'),
    (lambda results, qrels: (pd.concat([results, results.iloc[:2]]), qrels), 'repeat a'),
    (lambda results, qrels: (results[['qid', 'query']].drop_duplicates(), qrels), 'topics without candidates'),
])
def test_bad_validation_data_is_refused_before_training(teacher, toy_results, toy_qrels, spoil, message):
    before = teacher.weights_fingerprint
    with pytest.raises((ValueError, KeyError), match=message):
        teacher.fit(toy_results, toy_qrels, *spoil(toy_results, toy_qrels))
    assert teacher.weights_fingerprint == before


def test_validation_mines_as_training_does(teacher, toy_corpus, toy_results, toy_topics, toy_qrels):
    texts = pd.Series({doc['docno']: doc['text'] for doc in toy_corpus})
    corpus = pt.apply.generic(lambda found: found.assign(text=found['docno'].map(texts)))
    candidates = pt.apply.generic(lambda topics: toy_results[toy_results['qid'].isin(topics['qid'])].copy())
    mined, given = teacher, copy.copy(teacher)
    mined.fit(toy_topics, toy_qrels, toy_topics.iloc[:9], toy_qrels, negatives=candidates, corpus=corpus)
    given.fit(toy_results, toy_qrels, candidates(toy_topics.iloc[:9]), toy_qrels)
    assert mined.record['history'] == given.record['history']


def test_whole_numbers_are_good_ids_of_validation(teacher, toy_results, toy_qrels):
    ids = [frame.assign(qid=frame['qid'].str[1:].astype(int)) for frame in (toy_results, toy_qrels)]
    teacher.fit(toy_results, toy_qrels, *ids)
    assert any(0 < entry.get('nDCG@10', 0) < 1 for entry in teacher.record['history'])


def test_vectors_beyond_half_precision_are_refused_where_they_are_kept(tiny_bert_dir, stores, tmp_path):
    rows = np.array([0, 1]), np.array([0, 1])
    for options in (dict(), dict(cache_dir=tmp_path / 'vectors'), dict(cache_bytes=0)):
        teacher = teacher_of(tiny_bert_dir, normalize=False, **options)
        with torch.no_grad():
            last = teacher.module.encoder.model.encoder.layer[-1].output.LayerNorm
            last.weight.mul_(1e6)
        if options == dict(cache_bytes=0):
            assert torch.isfinite(teacher.bind(*stores)(*rows)).all()
        else:
            with pytest.raises(ValueError, match='half precision holds 65504'):
                teacher.bind(*stores)(*rows)


@pytest.mark.parametrize('options, message', [
    ({'mask_tokens': -3}, 'mask_tokens=-3: must be a whole number'), ({'mask_tokens': True}, 'mask_tokens=True'),
    ({'mask_tokens': 2.7}, 'mask_tokens=2.7'), ({'mask_tokens': '8'}, "mask_tokens='8'"),
    ({'mask_tokens': 8, 'query_max_length': 505}, 'are more than the 512 positions'),
    ({'scale': 0}, 'scale=0: must be a finite number above 0'), ({'scale': float('nan')}, 'scale=nan'),
    ({'scale': -1}, 'scale=-1'),
])
def test_settings_that_cannot_be_are_refused(tiny_bert_dir, options, message):
    with pytest.raises(ValueError, match=message):
        teacher_of(tiny_bert_dir, **options)


def test_masks_are_looked_at_when_they_are_set(teacher, toy_results):
    teacher.mask_tokens = -1
    with pytest.raises(ValueError, match='mask_tokens=-1'):
        teacher(toy_results)


def test_nothing_is_scored_as_nothing(teacher):
    assert teacher.score_matrix([], ['a rose']).shape == (0, 1)
    assert teacher.score_matrix(['a rose', 'wind'], []).shape == (2, 0)


@pytest.mark.parametrize('part', ['encoder', 'projection'])
def test_weights_that_are_no_numbers_are_neither_saved_nor_loaded(tiny_bert_dir, tmp_path, part):
    def spoil(teacher):
        with torch.no_grad():
            next(getattr(teacher.module, part).parameters()).flatten()[0] = float('nan')
    teacher = teacher_of(tiny_bert_dir)
    if part == 'projection':
        teacher._module.projection = torch.nn.Linear(32, 8, bias=False)
    path = teacher.save(tmp_path / 'good')
    spoil(teacher)
    with pytest.raises(ValueError, match='the model is not saved: 1 of its tensors are NaN'):
        teacher.save(tmp_path / 'bad')
    weights = load_file(path / 'model.safetensors')
    weights['linear.weight' if part == 'projection' else 'bert.embeddings.word_embeddings.weight'][0, 0] = float('nan')
    save_file(weights, path / 'model.safetensors', metadata={'format': 'pt'})
    with pytest.raises(ValueError, match='cannot be used: 1 of its tensors are NaN'):
        LateInteraction(path)


def test_a_length_that_is_set_later_is_cut_as_well(teacher):
    with pytest.warns(UserWarning, match='query_max_length=900 is more than the 512 positions'):
        teacher.query_max_length = 900
        teacher.score_matrix(['rose'], ['rose'])
    assert teacher.query_max_length == 512


def test_an_estimator_that_fits_the_student_is_no_stage_before_it(tiny_bert_dir, toy_results, toy_topics, toy_qrels,
                                                                  recwarn):
    class Wraps(pt.Estimator):
        def transform(self, inp):
            return inp

        def fit(self, results, qrels, *validation):
            TasBalanced(tiny_bert_dir, training=Training(steps=2, batch_size=8)).fit(results, qrels)
    candidates = pt.apply.generic(lambda topics: toy_results[toy_results['qid'].isin(topics['qid'])].copy())
    (candidates >> Wraps()).fit(toy_topics, toy_qrels)
    assert not [warning for warning in recwarn if 'pairwise_teacher=' in str(warning.message)]
