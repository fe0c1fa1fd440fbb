"""Transformers that are used from several threads at a time give what they give alone."""
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest

from pyterrier_tasb import LateInteraction, TasBalanced


@pytest.fixture
def pipelines(tiny_bert_dir, toy_corpus, tmp_path):
    tasb = TasBalanced(tiny_bert_dir, amp='off')
    teacher = LateInteraction(tiny_bert_dir, doc_max_length=50, cache_bytes=1 << 16)   # threads evict
    return {'encoder': tasb, 'retriever': tasb.retriever(tasb.index(toy_corpus, tmp_path / 'index'), num_results=10),
            'teacher': teacher}


@pytest.mark.parametrize('name', ['encoder', 'retriever', 'teacher'])
def test_threads_get_what_one_alone_gets(pipelines, name, toy_results, toy_topics):
    pipeline = pipelines[name]
    whole = toy_topics if name == 'retriever' else toy_results
    parts = [part.reset_index(drop=True) for _, part in whole.groupby('qid')]
    alone = [pipeline(part) for part in parts]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(pipeline, [*parts, *reversed(parts)]))
    for expected, found in zip([*alone, *reversed(alone)], together, strict=True):
        pd.testing.assert_frame_equal(found, expected)
