"""Who encodes and trains in one block of inference mode gets a model that learns."""
import pytest
import torch

from pyterrier_tasb import LateInteraction, TasBalanced, Training

TRAINING = Training(steps=2, batch_size=6, clusters=2, learning_rate=1e-2)
MAKE = {
    'loaded': lambda path: TasBalanced(path, training=TRAINING, amp='off'),
    'copied': lambda path: TasBalanced(path, training=TRAINING, amp='off').copy(),
    'late interaction': lambda path: LateInteraction(path, amp='off', training=TRAINING.replace(
        sampling='random', pairwise_loss='ranknet')),
}


@pytest.mark.parametrize('how', MAKE)
def test_a_model_made_in_inference_mode_can_be_trained(how, tiny_bert_dir, toy_results, toy_qrels):
    with torch.inference_mode():
        model = MAKE[how](tiny_bert_dir)
    weights = getattr(model, 'module', None) or model.encoder
    before = {name: value.clone() for name, value in weights.state_dict().items()}
    model.fit(toy_results, toy_qrels)
    assert any(not torch.equal(value, before[name]) for name, value in weights.state_dict().items())
