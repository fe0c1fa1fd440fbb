"""Every way through the model gives the same vectors and gradients."""
import copy
import logging
import sys
import types
import warnings

import numpy as np
import pytest
import torch
import transformers as tf
from tiny_encoders import CONFIGS, PACKABLE, OnlyPadding, encoder, ragged

from pyterrier_tasb import TasBalanced
from pyterrier_tasb.encoding import Encoder, Tokens, attention, kernels, parity
from pyterrier_tasb.encoding import encoder as encoder_module
from pyterrier_tasb.encoding.batching import by_budget, equal, near_equal
from pyterrier_tasb.encoding.kernels import KERNELS, Packing


def _one_by_one(model, tokens):
    """The oracle: each text alone, through the unmodified model."""
    return [model(input_ids=torch.from_numpy(tokens.take(np.array([i])).ids)[None],
                  attention_mask=torch.ones(1, n, dtype=torch.long)).last_hidden_state[0]
            for i, n in enumerate(tokens.lengths)]


def _gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _assert_equal_gradients(ours, theirs):
    assert ours.keys() == theirs.keys() and ours
    for name, grad in theirs.items():
        torch.testing.assert_close(ours[name], grad, rtol=1e-4, atol=1e-5 * max(1, grad.abs().max().item()), msg=name)


@pytest.mark.parametrize('attended', [False, True])
@pytest.mark.parametrize('name', CONFIGS)
def test_states_of_filled_texts_are_those_of_each_text_alone(name, attended):
    filler, length, ours, theirs = 7, 10, encoder(name, 'auto'), encoder(name, 'padded')
    tokens = ragged().take(np.flatnonzero(ragged().lengths < length))
    theirs.model.set_attn_implementation('eager')
    states = ours.filled_states(tokens, length, filler, attended=attended)
    expected = []
    for i, n in enumerate(tokens.lengths):
        ids, mask = torch.full((1, length), filler), torch.ones(1, length, dtype=torch.long)
        ids[0, :n] = torch.from_numpy(tokens.take(np.array([i])).ids)
        mask[0, n:] = int(attended)
        expected.append(theirs.model(input_ids=ids, attention_mask=mask).last_hidden_state[0])
    torch.testing.assert_close(states, torch.cat(expected), rtol=1e-5, atol=1e-5)
    own = states.view(len(tokens), length, -1)[torch.arange(length) < torch.from_numpy(tokens.lengths)[:, None]]
    assert torch.allclose(own, ours.token_states(tokens)[0], rtol=1e-4, atol=1e-4) != attended
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(0))
    (states * weights).mean().backward()
    (torch.cat(expected) * weights).mean().backward()
    _assert_equal_gradients(_gradients(ours.model), _gradients(theirs.model))


@pytest.mark.parametrize('pooling', ['cls', 'mean'])
@pytest.mark.parametrize('name, strategy', [
    *((name, strategy) for name in [*PACKABLE, 'mpnet'] for strategy in ('sorted', 'equal', 'padded')),
    *((name, 'packed') for name in PACKABLE)])   # mpnet's relative positions would run over the whole row
def test_vectors_and_gradients_are_those_of_each_text_alone(name, strategy, pooling):
    tokens = ragged()
    weights = torch.randn(len(tokens), 32, generator=torch.Generator().manual_seed(0))

    ours = encoder(name, strategy, pooling=pooling)
    vectors = ours(tokens)
    (vectors * weights).sum().backward()

    theirs = encoder(name, 'padded')
    theirs.model.set_attn_implementation('eager')
    states = _one_by_one(theirs.model, tokens)
    expected = torch.stack([s[0] if pooling == 'cls' else s.mean(0) for s in states])
    (expected * weights).sum().backward()

    assert vectors.dtype == torch.float32 and ours.strategy == strategy
    torch.testing.assert_close(vectors, expected, rtol=1e-5, atol=1e-5)
    _assert_equal_gradients(_gradients(ours.model), _gradients(theirs.model))


@pytest.mark.parametrize('strategy', ['packed', 'sorted', 'padded'])
def test_token_states_are_in_the_order_given(strategy):
    tokens = ragged()
    ours = encoder('bert', strategy)
    states, offsets = ours.token_states(tokens)
    torch.testing.assert_close(states, torch.cat(_one_by_one(ours.model, tokens)), rtol=1e-5, atol=1e-5)
    assert np.array_equal(offsets, tokens.offsets)


@pytest.mark.parametrize('name', PACKABLE)
def test_packed_is_chosen_and_said(name, caplog):
    with caplog.at_level(logging.INFO, 'pyterrier_tasb'):
        assert encoder(name, 'auto').strategy == 'packed'
    assert 'packed forward passes (runs, groups)' in caplog.text


def test_unknown_architectures_are_sorted():
    assert encoder('mpnet', 'auto').strategy == 'sorted'
    with pytest.raises(ValueError, match="not known to be right for 'mpnet'"):
        encoder('mpnet', 'packed')


def test_mpnet_would_be_wrong_if_packed_and_the_check_sees_it(monkeypatch):
    monkeypatch.setitem(attention._PACKABLE, 'mpnet', True)
    auto, packed = encoder('mpnet', 'auto'), encoder('mpnet', 'packed')
    for one in (auto, packed):
        one.model.config._attn_implementation = attention.NAME   # what other architectures are given
    assert auto.strategy == 'sorted'
    with pytest.raises(ValueError, match='other states than padding'):
        packed(ragged())


def test_a_kernel_that_is_wrong_or_raises_is_not_used(monkeypatch, caplog):
    def groups(packing, query, *rest):
        return query

    monkeypatch.setitem(KERNELS, 'groups', kernels.Kernel(groups, lambda *call: True))
    with caplog.at_level(logging.INFO, 'pyterrier_tasb'):
        assert encoder('bert', 'auto').strategy == 'sorted'
    assert "kernel 'groups' does not agree" in caplog.text

    def broken(*call):
        raise NotImplementedError

    monkeypatch.setitem(KERNELS, 'groups', kernels.Kernel(broken, lambda *call: True))
    assert encoder('bert', 'auto').strategy == 'sorted'


@pytest.mark.parametrize('pooling', ['cls', 'mean'])
@pytest.mark.parametrize('name', PACKABLE)
def test_the_last_layer_sees_first_tokens_only_where_they_are_the_vectors(name, pooling):
    ours, tokens, seen = encoder(name, 'packed', pooling=pooling), ragged(), []
    assert ours.strategy == 'packed'   # after the check, which computes both
    stack = next(module for module in ours.model.modules() if isinstance(module, torch.nn.ModuleList))
    for layer in stack:
        layer.register_forward_hook(lambda layer, args, states: seen.append(states.shape[1]))
    ours(tokens)
    trimmed = pooling == 'cls' and name != 'modernbert'   # that makes keys and queries at once
    assert seen == [226] * (len(stack) - 1) + [12 if trimmed else 226]
    seen.clear()
    ours.token_states(tokens)
    assert seen == [226] * len(stack)


def test_a_kernel_that_is_wrong_for_first_tokens_is_used_for_all(monkeypatch):
    right = KERNELS['groups'].run

    def groups(*call):
        return right(*call) * (1 + call[7])
    monkeypatch.setitem(KERNELS, 'groups', kernels.Kernel(groups, lambda *call: True))
    ours, tokens = encoder('bert', 'auto'), ragged()
    assert ours._choice() == encoder_module._Choice('packed', ('runs', 'groups'), firsts=False)
    torch.testing.assert_close(ours(tokens), encoder('bert', 'padded')(tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('share', [0., 1e-9])
def test_first_tokens_get_what_they_get_among_all(share, monkeypatch):
    monkeypatch.setitem(kernels._GROUPS, 'cpu', 3)
    packing = Packing(np.sort(ragged().lengths))
    starts, generator = packing.starts(226), torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(226, 2, 8, generator=generator).requires_grad_() for _ in range(3))
    expected = KERNELS['groups'].run(packing, q, k, v, 0., .3, None)[starts]
    for name, of in (('runs', 0.), ('groups', share)):
        found = KERNELS[name].run(packing, q[starts], k, v, of, .3, None, True)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        for ours, theirs in zip(*(torch.autograd.grad((out ** 2).sum(), (q, k, v), retain_graph=True)
                                  for out in (found, expected))):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('amp', ['off', 'bf16'])
def test_a_kernel_with_a_wrong_gradient_is_not_used(monkeypatch, amp):
    right = KERNELS['groups'].run
    monkeypatch.setitem(KERNELS, 'groups', kernels.Kernel(lambda *call: right(*call).detach(), lambda *call: True))
    assert encoder('bert', 'auto', amp=amp).strategy == 'sorted'


@pytest.mark.parametrize('amp', ['off', 'bf16'])
@pytest.mark.parametrize('name', PACKABLE)
def test_the_check_can_be_made_while_nothing_is_differentiated(name, amp):
    with torch.inference_mode():
        assert encoder(name, 'auto', amp=amp).strategy == 'packed'
    with torch.no_grad():
        frozen = encoder(name, 'auto', amp=amp).requires_grad_(False)
        assert frozen.strategy == 'packed'


@pytest.mark.parametrize('nothing', [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize('name', PACKABLE)
def test_the_check_finds_the_same_whoever_asks_first(name, nothing):
    asked, other = encoder(name, 'auto'), encoder(name, 'auto')
    with nothing():
        found = asked._choice()
    assert found == other._choice()


@pytest.mark.parametrize('name', CONFIGS)
def test_an_encoders_first_token_sees_the_text(name):
    encoder(name, 'auto').check_pooling()


def test_a_causal_models_first_token_is_no_vector(tmp_path, tiny_bert_dir):
    with torch.random.fork_rng([]):
        model = tf.GPT2Model(tf.GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=2, bos_token_id=2,
                                           eos_token_id=3))
    model.save_pretrained(tmp_path)
    tf.AutoTokenizer.from_pretrained(tiny_bert_dir).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match='first token of GPT2Model sees nothing of the text'):
        TasBalanced(tmp_path)
    Encoder.load(tmp_path, pooling='mean').check_pooling()


def test_weights_that_are_no_numbers_do_not_pass_for_equal():
    nan = torch.full((3, 2), torch.nan)
    assert parity.difference(lambda: nan, lambda: nan) == float('inf')
    assert parity.difference(lambda: torch.ones(3), lambda: torch.ones(3) * 2) == .5


def test_the_check_leaves_modes_as_they_were():
    ours = encoder('bert', 'auto').train()
    ours.model.embeddings.eval()
    before = [m.training for m in ours.modules()]
    assert ours.strategy == 'packed'
    ours.encode(ragged())
    assert [m.training for m in ours.modules()] == before and True in before and False in before


def test_other_callers_of_the_model_see_nothing_of_the_packing():
    tokens, ours = ragged(), encoder('modernbert', 'packed')
    n = int(tokens.lengths.max())
    ids = torch.from_numpy(np.stack([tokens.ids[:n], tokens.ids[1:n + 1]]))
    expected = encoder('modernbert', 'padded').model
    expected.set_attn_implementation('eager')
    for mask in (None, torch.ones(2, n, dtype=torch.long), torch.tensor([[1] * n, [1] * 20 + [0] * (n - 20)])):
        ours_states = ours.model(input_ids=ids, attention_mask=mask).last_hidden_state
        theirs = expected(input_ids=ids, attention_mask=mask).last_hidden_state
        kept = slice(None) if mask is None else mask.bool()
        torch.testing.assert_close(ours_states[kept], theirs[kept], rtol=1e-5, atol=1e-5)


def test_another_attention_set_later_is_used_and_gives_the_same_vectors():
    """As who looks at attention weights does: it knows nothing of packing."""
    tokens, ours = ragged(), encoder('bert', 'auto')
    packed = ours(tokens)
    ours.model.set_attn_implementation('eager')
    assert ours.strategy == 'sorted'
    torch.testing.assert_close(ours(tokens), packed, rtol=1e-5, atol=1e-5)


def test_dropout_is_the_configurations():
    """Without dropout train mode is evaluation mode; with attention dropout alone it differs, and on average agrees."""
    tokens, ours = ragged(), encoder('bert', 'packed')
    expected = ours(tokens).detach()
    ours.train()
    for module in ours.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.
    assert torch.equal(ours(tokens), expected)

    x = torch.randn(3, int(tokens.lengths.sum()), 2, 16, generator=torch.Generator().manual_seed(1))
    packing = Packing(np.sort(tokens.lengths))
    attend = {'share': .2, 'scale': None, 'reach': None}
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        drawn = torch.stack([packing(*x, **attend) for _ in range(2000)])
    mean, spread = drawn.mean(0), drawn.std(0)
    assert spread.min() > 0
    off = (mean - packing(*x, **{**attend, 'share': 0.})) / (spread / 2000 ** .5 + 1e-6)
    assert off.abs().mean() == pytest.approx((2 / np.pi) ** .5, abs=.05)   # of a standard normal


@pytest.mark.parametrize('share', [0., 1e-9])   # next to none, but computed in training's own way
@pytest.mark.parametrize('reach', [None, 5])
def test_groups_and_runs_agree(reach, share, monkeypatch):
    monkeypatch.setitem(kernels._GROUPS, 'cpu', 3)   # of 12 texts: rectangles have padding, some more than they reach
    packing = Packing(np.sort(ragged().lengths))
    assert any(group.mask is not None for group in packing.groups)
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(int(packing.lengths.sum()), 2, 8, generator=generator).requires_grad_() for _ in range(3))
    results = []
    for name, of in (('runs', 0.), ('groups', share)):
        out = KERNELS[name].run(packing, q, k, v, of, .3, reach)
        results.append((out, *torch.autograd.grad((out ** 2).sum(), (q, k, v))))
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_flash_attn_is_called_as_it_wants(monkeypatch):
    """flash-attn is for GPUs; a double with its signature computes what it would."""
    lengths = np.array([2, 3, 3, 9])
    q, k, v = torch.randn(3, 17, 2, 8, generator=torch.Generator().manual_seed(2))

    def flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0,
                               softmax_scale=None, causal=False, window_size=(-1, -1)):
        assert cu_seqlens_q.dtype == torch.int32 and max_seqlen_q == max_seqlen_k == 9
        out = torch.empty_like(q)
        for start, stop in zip(cu_seqlens_q[:-1], cu_seqlens_q[1:]):
            at = torch.arange(stop - start)
            near = (at[:, None] - at).abs() <= (window_size[0] if window_size[0] >= 0 else 99)
            weights = torch.einsum('ihd,jhd->hij', q[start:stop], k[start:stop]) * softmax_scale
            out[start:stop] = torch.einsum('hij,jhd->ihd', weights.masked_fill(~near, -torch.inf).softmax(-1),
                                           v[start:stop])
        return out

    module = types.ModuleType('flash_attn')
    module.flash_attn_varlen_func = flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, 'flash_attn', module)
    kernels._import.cache_clear()
    try:
        for reach in (None, 4):
            args = (Packing(lengths), q, k, v, 0., .3, reach)
            torch.testing.assert_close(KERNELS['flash'].run(*args), KERNELS['runs'].run(*args), rtol=1e-5, atol=1e-5)
    finally:
        kernels._import.cache_clear()


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
@pytest.mark.parametrize('amp', ['off', 'bf16'])
@pytest.mark.parametrize('name', PACKABLE)
def test_packed_on_a_gpu(name, amp):
    tokens = ragged()
    ours, theirs = encoder(name, 'auto', amp=amp).to('cuda'), encoder(name, 'padded', amp='off')
    for _ in range(2):
        tolerance = 1e-4 if amp == 'off' else 5e-2
        torch.testing.assert_close(ours(tokens).cpu(), theirs(tokens), rtol=tolerance, atol=tolerance * 3)
    assert ours.strategy == 'packed'


def test_copies_are_independent():
    tokens, ours = ragged(), encoder('distilbert', 'auto')
    expected = ours.encode(tokens)
    other = copy.deepcopy(ours)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    assert np.array_equal(ours.encode(tokens), expected)
    assert not np.allclose(other.encode(tokens), expected)


def test_encode_is_deterministic_and_independent_of_batches(no_global_rng_change):
    tokens, ours = ragged(), encoder('bert', 'auto').train()
    with no_global_rng_change():
        once = ours.encode(tokens)
        assert ours.training and not torch.is_inference(ours.model.embeddings.word_embeddings.weight)
        assert np.array_equal(ours.encode(tokens), once)
    for budget in (1, 40, 100):
        np.testing.assert_allclose(ours.encode(tokens, budget), once, rtol=1e-5, atol=1e-5)
    ours.eval()
    np.testing.assert_allclose(ours(tokens).detach(), once, rtol=1e-5, atol=1e-5)


def test_encode_into_a_memory_map(tmp_path):
    tokens, ours = ragged(), encoder('bert', 'auto')
    out = np.memmap(tmp_path / 'vectors', dtype=np.float16, mode='w+', shape=(len(tokens), 32))
    assert ours.encode(tokens, 50, out=out) is out
    np.testing.assert_allclose(out, ours.encode(tokens), atol=5e-3)
    with pytest.raises(ValueError, match=r'shape \(3, 32\), the vectors have \(12, 32\)'):
        ours.encode(tokens, out=np.zeros((3, 32)))


@pytest.mark.parametrize('strategy', ['packed', 'sorted', 'padded'])
def test_no_texts(strategy):
    ours, none = encoder('bert', strategy), Tokens.from_lists([])
    assert ours(none).shape == (0, 32) and ours.encode(none).shape == (0, 32)
    states, offsets = ours.token_states(none)
    assert states.shape == (0, 32) and offsets.tolist() == [0]


def test_pooling_of_known_states():
    """Token t of all has the state (t, 10 t): means and first tokens can be seen."""
    ours = encoder('bert', 'packed')
    states = torch.arange(7.)[:, None] * torch.tensor([1., 10.])
    lengths = np.array([1, 2, 4])
    assert ours._pool(states, lengths).tolist() == [[0, 0], [1, 10], [3, 30]]
    ours.pooling = 'mean'
    assert ours._pool(states, lengths).tolist() == [[0, 0], [1.5, 15], [4.5, 45]]


def test_unit_length():
    vectors = encoder('bert', 'auto', normalize=True)(ragged())
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(12))


def test_half_precision_gives_float32_near_the_same_vectors():
    exact, half = encoder('bert', 'auto', amp='off')(ragged()), encoder('bert', 'auto', amp='bf16')
    assert half(ragged()).dtype == half.token_states(ragged())[0].dtype == torch.float32
    assert half.strategy == 'packed'
    cosine = torch.cosine_similarity(half(ragged()), exact)
    assert cosine.min() > .999 and not torch.equal(half(ragged()), exact)


@pytest.mark.parametrize('amp, hardware, said', [('bf16', False, 1), ('bf16', True, 0), ('auto', False, 0),
                                                 ('off', False, 0)])
def test_emulated_half_precision_is_said_once(monkeypatch, amp, hardware, said):
    monkeypatch.setattr('pyterrier_tasb.encoding.precision.has_bf16', lambda device: hardware)
    ours = encoder('bert', 'auto', amp=amp)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter('always')
        ours(ragged()), ours(ragged())
    assert sum('emulates it far slower' in str(warning.message) for warning in found) == said


def test_several_threads():
    from concurrent.futures import ThreadPoolExecutor
    tokens, ours = ragged(), encoder('bert', 'auto')
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: ours.encode(tokens), range(12)))
    assert all(np.array_equal(result, results[0]) for result in results)


@pytest.mark.parametrize('option', [{'pooling': 'max'}, {'strategy': 'fast'}, {'amp': 'int8'}])
def test_unknown_options(option):
    with pytest.raises(ValueError, match=f'{next(iter(option.values()))!r} is unknown: one of'):
        encoder('bert', **{'strategy': 'auto', **option})


# which texts go together

def _padded_cost(lengths, groups):
    return sum(int(lengths[g].max()) * len(lengths[g]) for g in groups)


def _best_cost(lengths, most):
    """Brute force over all ways to cut."""
    from itertools import combinations
    n = len(lengths)
    return min(_padded_cost(lengths, [slice(a, b) for a, b in zip((0, *cut), (*cut, n))])
               for k in range(min(most, n)) for cut in combinations(range(1, n), k))


@pytest.mark.parametrize('most', [1, 2, 3, 5, 20])
@pytest.mark.parametrize('lengths', [[4], [4, 4, 4], [2, 3, 9, 9, 10], [1, 1, 2, 5, 5, 6, 30, 31, 80]])
def test_near_equal_pads_least(lengths, most):
    lengths = np.array(lengths)
    groups = near_equal(lengths, most)
    assert len(groups) <= most
    assert np.array_equal(np.concatenate([np.arange(g.start, g.stop) for g in groups]), np.arange(len(lengths)))
    assert _padded_cost(lengths, groups) == _best_cost(lengths, most)


def test_by_budget():
    lengths = np.array([1, 2, 2, 3, 9])
    cut = [(g.start, g.stop) for g in by_budget(lengths, 5)]
    assert cut == [(0, 3), (3, 4), (4, 5)]   # 5, 3, and 9 that is more than the budget
    cut = [(g.start, g.stop) for g in by_budget(lengths, 5, padded=True)]
    assert cut == [(0, 2), (2, 3), (3, 4), (4, 5)]   # 2·2, 1·2, 1·3, 1·9
    assert by_budget(np.array([], dtype=np.int64), 5) == []


def _convolving():
    config = tf.ConvBertConfig(vocab_size=90, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                               intermediate_size=48, max_position_embeddings=80, embedding_size=32,
                               initializer_range=.3)
    with torch.random.fork_rng([]):
        torch.manual_seed(5)
        return tf.AutoModel.from_config(config).eval()


def test_a_model_that_mixes_padding_into_texts_gets_texts_of_one_length():
    model, tokens = _convolving(), ragged()
    ours = Encoder(model, OnlyPadding(0), query_max_length=10, doc_max_length=60, amp='off').eval()
    assert ours.strategy == 'equal'
    vectors = ours(tokens)
    alone = torch.stack([states[0] for states in _one_by_one(model, tokens)])
    torch.testing.assert_close(vectors, alone, rtol=1e-5, atol=1e-5)
    padded = Encoder(model, OnlyPadding(0), strategy='padded', query_max_length=10, doc_max_length=60, amp='off').eval()
    assert (padded(tokens) - alone).abs().max() > .01   # what it is for


def test_equal_groups_have_one_length_each():
    lengths = np.array([2, 3, 3, 3, 7, 9, 9])
    assert [lengths[group].tolist() for group in equal(lengths)] == [[2], [3, 3, 3], [7], [9, 9]]
    assert equal(np.array([4])) == [slice(0, 1)]


@pytest.mark.parametrize('name', PACKABLE)
def test_a_padding_token_within_a_text_is_where_the_model_counts_it(name):
    ours = encoder(name, 'auto')
    padding = ours.model.config.pad_token_id
    tokens = Tokens.from_lists([[5, 6, padding, 7, 8], [9, padding, padding, 4], [5, 6, 7]])
    assert ours.strategy == 'packed'
    alone = torch.stack([states[0] for states in _one_by_one(encoder(name, 'padded').model, tokens)])
    torch.testing.assert_close(ours(tokens), alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('config, most', [
    (lambda: tf.Data2VecTextConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                                   vocab_size=90, max_position_embeddings=80, pad_token_id=1), 78),
    (lambda: tf.XLNetConfig(vocab_size=90, d_model=32, n_layer=1, n_head=2, d_inner=32), 10**9),
    (CONFIGS['roberta'], 78), (CONFIGS['bert'], 80)], ids=['data2vec', 'xlnet', 'roberta', 'bert'])
def test_as_many_tokens_as_the_model_has_positions_for(config, most):
    ours = Encoder(tf.AutoModel.from_config(config()), OnlyPadding(1), query_max_length=10, doc_max_length=20)
    assert ours.max_positions == most
    texts = Tokens.from_lists([list(range(4, 4 + min(most, 80)))])
    assert torch.isfinite(ours.eval()(texts)).all()
