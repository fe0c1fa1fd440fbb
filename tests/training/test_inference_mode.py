"""What block of torch's a caller is in does not matter: inference mode, autocast."""
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


@pytest.mark.parametrize('how', MAKE)
def test_autocast_of_the_caller_changes_nothing(how, tiny_bert_dir, toy_results, toy_qrels):
    model, other = MAKE[how](tiny_bert_dir), MAKE[how](tiny_bert_dir)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        model.fit(toy_results, toy_qrels)
        scores = model(toy_results)['score']
    other.fit(toy_results, toy_qrels)
    assert model.weights_fingerprint == other.weights_fingerprint
    assert scores.equals(other(toy_results)['score'])


def test_autocast_of_the_caller_leaves_an_in_batch_teacher_alone(tiny_bert_dir, toy_results, toy_qrels):
    def fitted():
        teacher = LateInteraction(tiny_bert_dir, amp='off')
        return TasBalanced(tiny_bert_dir, training=TRAINING, amp='off', in_batch_teacher=teacher).fit(
            toy_results, toy_qrels).weights_fingerprint
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = fitted()
    assert found == fitted()
