"""The code of the user's pages runs as printed, on small models and little data."""
import json
import re
import textwrap
from pathlib import Path

import pyterrier as pt
import pyterrier_dr
import pytest
import sentence_transformers
from pyterrier_t5 import MonoT5ReRanker

import pyterrier_tasb
from pyterrier_tasb import LateInteraction, TasBalanced, TextStore, Training
from pyterrier_tasb.baselines import bm25
from pyterrier_tasb.collection import SPLITS, Collection

PAGES = Path(pyterrier_tasb.__file__).parent / 'pt_docs'
pytestmark = pytest.mark.filterwarnings('error::UserWarning')   # what a page shows is not warned of
BLOCK = re.compile(r'^( *)\.\. code-block:: python\n\1    :caption: (.*)\n((?:\1    .*\n|\n)+)', flags=re.MULTILINE)
FILE = 'bert_cat_ensemble_msmarcopassage_train_scores_ids.tsv'
SMALL = dict(steps=2, batch_size=6, clusters=2, eval_every=1)


def blocks(page):
    """The code of a page, block by block."""
    text = (PAGES / page).read_text(encoding='utf-8')
    found = BLOCK.findall(text)
    assert len(found) == text.count('code-block:: python')
    return [(caption, textwrap.dedent(code)) for _, caption, code in found]


def small(kind, directory):
    """A class whose models are tiny and whose runs are short, whatever is asked for."""
    def make(name, **options):
        if isinstance(options.get('in_batch_teacher'), str):
            options['in_batch_teacher'] = directory
        options['training'] = options.get('training', Training()).replace(**SMALL)
        return kind(name if Path(name).exists() else directory, **options)
    return make


@pytest.fixture
def names(tiny_distilbert_dir, tiny_t5_dir, toy_corpus, toy_topics, write_splits, tmp_path, monkeypatch):
    """What the pages say that their readers have."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / 'YOUR_DIRECTORY'
    write_splits(folder, {split: toy_topics.iloc[2 * i::6] for i, split in enumerate(SPLITS)})
    (folder / 'corpus.jsonl').write_text(''.join(json.dumps(doc) + '\n' for doc in toy_corpus))
    data = Collection(folder)
    monkeypatch.setattr(pyterrier_tasb, 'TasBalanced', small(TasBalanced, tiny_distilbert_dir))
    monkeypatch.setattr(pyterrier_tasb, 'LateInteraction', small(LateInteraction, tiny_distilbert_dir))
    monkeypatch.setattr('huggingface_hub.HfApi.create_repo', lambda self, repo_id, **options: None)
    monkeypatch.setattr('huggingface_hub.HfApi.upload_folder', lambda self, **options: 'https://hub/commit')
    sparse = bm25(toy_corpus, tmp_path / 'sparse', num_results=20).retriever
    topics = data.get_topics('train')
    Path(FILE).write_text(''.join(
        f'{1.5 + i}\t{.5 * i}\t{qid}\td{qid[1:]}a\td{qid[1:]}b\n' for i, qid in enumerate(topics['qid'])))
    return {'pt': pt, 'TasBalanced': pyterrier_tasb.TasBalanced, 'Training': Training, 'TextStore': TextStore,
            'ScoredPairs': pyterrier_tasb.ScoredPairs, 'QueryClusters': pyterrier_tasb.QueryClusters,
            'LateInteraction': pyterrier_tasb.LateInteraction,
            'pyterrier_dr': pyterrier_dr, 'sentence_transformers': sentence_transformers,
            'dataset': data, 'bm25': sparse, 'text': data.text_loader(),
            'monoT5': MonoT5ReRanker(tiny_t5_dir, tiny_t5_dir, batch_size=32, verbose=False),
            'train_results': (sparse >> data.text_loader())(topics),
            **{f'{split}_{what}': getattr(data, f'get_{what}')(split)
               for split in SPLITS for what in ('topics', 'qrels')}}


@pytest.mark.parametrize('page, n', [('how-to.rst', 11), ('index.rst', 1)])
def test_the_code_of_a_page_runs_from_top_to_bottom(names, page, n):
    found = blocks(page)
    assert len(found) == n
    for caption, code in found:
        exec(compile(code, f'{page}: {caption}', 'exec'), names)

