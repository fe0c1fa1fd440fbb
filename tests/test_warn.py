"""A warning names the line of the caller's own code, however deep it was raised."""
import warnings
from concurrent.futures import ThreadPoolExecutor

import pyterrier as pt
import pytest
from more_itertools import chunked

from pyterrier_tasb import Encoder, TasBalanced, Training, baselines
from pyterrier_tasb._warn import warn


def _where(call):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter('always')
        call()
    return {warning.filename for warning in found if 'more than' in str(warning.message)
            or 'dropped' in str(warning.message) or 'cannot be found' in str(warning.message)}


def test_of_loading_is_at_the_callers_line(tiny_bert_dir):
    assert _where(lambda: Encoder.load(tiny_bert_dir, doc_max_length=10_000)) == {__file__}
    assert _where(lambda: TasBalanced(tiny_bert_dir, doc_max_length=10_000)) == {__file__}


def test_of_fit_in_a_pipeline_is_at_the_callers_line(tiny_bert_dir, toy_results, toy_qrels):
    tasb = TasBalanced(tiny_bert_dir, device='cpu', training=Training(steps=1, batch_size=2, clusters=2))
    results = toy_results.assign(text=toy_results['text'].where(toy_results.index != toy_results.index[0], ''))
    pipeline = pt.apply.generic(lambda frame: results) >> tasb
    topics = toy_results[['qid', 'query']].drop_duplicates()
    assert _where(lambda: pipeline.fit(topics, toy_qrels)) == {__file__}


def test_of_a_corpus_that_another_library_draws_from_is_at_the_callers_line():
    corpus = [{'docno': str(i), 'text': 'роза'} for i in range(3)] + [{'docno': 'x', 'text': 'rose'}]
    assert _where(lambda: list(chunked(baselines._readable(iter(corpus), 'english'), 2))) == {__file__}


def test_of_a_thread_comes_through():
    def in_a_thread():
        with ThreadPoolExecutor(1) as pool:
            pool.submit(warn, 'more than').result()
    with pytest.warns(UserWarning, match='more than'):
        in_a_thread()
