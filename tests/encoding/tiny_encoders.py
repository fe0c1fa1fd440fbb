"""Tiny random encoders of every architecture, and token ids of texts of various lengths."""
import numpy as np
import torch
import transformers as tf

from pyterrier_tasb.encoding import Encoder, Tokens

_BERT = dict(vocab_size=90, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
             max_position_embeddings=80, initializer_range=.3)
CONFIGS = {
    'bert': lambda: tf.BertConfig(**_BERT),
    'electra': lambda: tf.ElectraConfig(**_BERT, embedding_size=16),
    'roberta': lambda: tf.RobertaConfig(**_BERT, pad_token_id=1),
    'xlm-roberta': lambda: tf.XLMRobertaConfig(**_BERT, pad_token_id=1),
    'camembert': lambda: tf.CamembertConfig(**_BERT, pad_token_id=1),
    'distilbert': lambda: tf.DistilBertConfig(vocab_size=90, dim=32, n_layers=2, n_heads=2, hidden_dim=48,
                                              max_position_embeddings=80, initializer_range=.3),
    'modernbert': lambda: tf.ModernBertConfig(
        vocab_size=90, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
        max_position_embeddings=80, local_attention=16, initializer_range=.3, pad_token_id=0, bos_token_id=2,
        eos_token_id=3, cls_token_id=2, sep_token_id=3),
    'mpnet': lambda: tf.MPNetConfig(**_BERT, pad_token_id=1),
}
# the oldest transformers' ModernBERT takes no attention but its own, and is sorted
PACKABLE = [name for name in CONFIGS
            if name != 'mpnet' and (name != 'modernbert' or tf.ModernBertModel._can_set_attn_implementation())]


class OnlyPadding:
    """Stands for a tokenizer where ids are given."""

    def __init__(self, pad_token_id):
        self.pad_token_id = pad_token_id


def random_model(name):
    """A model of this architecture, always the same, in evaluation mode."""
    with torch.random.fork_rng([]):
        torch.manual_seed(5)
        return tf.AutoModel.from_config(CONFIGS[name]()).eval()


def ragged():
    """12 texts of 2 to 60 tokens, not sorted; some are equally long, and two are equal."""
    rng = np.random.default_rng(3)
    lists = [rng.integers(4, 90, n).tolist() for n in (9, 2, 33, 9, 60, 3, 12, 2, 33, 21, 9)]
    return Tokens.from_lists([*lists, lists[2]])


def encoder(name, strategy, **options):
    """An encoder around :func:`random_model`; it takes ids, not texts, and computes in float32."""
    model = random_model(name)
    return Encoder(model, OnlyPadding(model.config.pad_token_id), query_max_length=10, doc_max_length=60,
                   strategy=strategy, **{'amp': 'off', **options}).eval()
