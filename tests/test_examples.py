"""The examples run from end to end, small."""
import gzip
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pyterrier as pt
import pytest
from transformers import T5ForConditionalGeneration

EXAMPLES = Path(__file__).parent.parent / 'examples'


def _run(name, *arguments, cwd):
    done = subprocess.run([sys.executable, str(EXAMPLES / name), *map(str, arguments)], cwd=cwd, text=True,
                          capture_output=True, env={**os.environ, 'HF_HUB_OFFLINE': '1'})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert 'could not be validated' not in done.stderr
    return done.stdout


@pytest.fixture
def example(monkeypatch):
    """(name, *arguments) → the module, loaded here, with this command line."""
    def load(name, *arguments):
        monkeypatch.setattr(sys, 'argv', [name, *map(str, arguments)])
        monkeypatch.syspath_prepend(EXAMPLES)
        spec = importlib.util.spec_from_file_location(f'example_{name}', EXAMPLES / f'{name}.py')
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    return load


def test_quickstart_prints_the_table_and_writes_the_figures(tmp_path, minilm_dir, tiny_t5_dir):
    small = ['--packages', 'logging', 'argparse', 'email', 'statistics', '--steps', 4, '--teacher-steps', 2,
             '--batch-size', 4, '--dev-queries', 7, '--max-words', 24]
    out = _run('quickstart.py', *small, cwd=tmp_path)
    folder = tmp_path / 'runs' / 'quickstart'
    table = pd.read_csv(folder / 'table.csv')
    assert table['name'].tolist() == [
        'BM25 (Terrier, k1=1.2, b=0.75)', 'Untrained encoder', 'TAS-Balanced', 'TAS-Balanced + BM25 (RRF)',
        'TAS-Balanced, top 10 by teacher', 'TAS-Balanced, top 50 by teacher', 'TAS-Balanced, top 100 by teacher']
    assert {'nDCG@10', 'RR@10', 'R@100', 'R@1000', 'mrt'} < set(table.columns)
    assert out.count('could not be loaded') == 2 and '--doc2query PATH' in out and '--monot5 PATH' in out
    assert 'own_collection.py --data' in out
    assert {file.stem for file in (folder / 'figures').iterdir()} == {'recall', 'margins', 'learning_curve', 'clusters'}
    checkpoints = ['--doc2query', tiny_t5_dir, '--monot5', tiny_t5_dir]
    out = _run('quickstart.py', *small, *checkpoints, '--dev-queries', 6, cwd=tmp_path)   # over what is there
    assert 'could not be loaded' not in out
    assert pd.read_csv(folder / 'table.csv')['name'].tolist()[-2:] == [
        'docT5query (Terrier, k1=1.2, b=0.75)', 'TAS-Balanced, top 100 by monoT5']


def test_quickstart_expands_anew_for_another_doc2query(tmp_path, tiny_t5_dir, toy_corpus, example):
    def expanded(checkpoint):
        module = example('quickstart', '--doc2query', checkpoint, '--monot5', checkpoint, '--engine', 'pisa')
        data = SimpleNamespace(get_corpus_iter=lambda: toy_corpus[:3])
        module.optional_systems(module.arguments(), data, pt.Transformer.identity(), tmp_path)
        return list(tmp_path.glob('doct5query-*.pisa'))
    other = T5ForConditionalGeneration.from_pretrained(tiny_t5_dir)
    other.shared.weight.data *= 2
    shutil.copytree(tiny_t5_dir, tmp_path / 'other')
    other.save_pretrained(tmp_path / 'other')
    assert len(expanded(tiny_t5_dir)) == len(expanded(tiny_t5_dir)) == 1 and len(expanded(tmp_path / 'other')) == 2


def test_experiment_trains_rows_side_by_side_and_keeps_what_is_done(tmp_path, minilm_dir):
    small = ['--packages', 'logging', 'argparse', 'email', 'statistics', '--steps', 2, '--teacher-steps', 2,
             '--batch-size', 4, '--layers', 1, '--seeds', 2, '--rows', 'none, random', 'both, TAS-Balanced']
    out = _run('experiment.py', *small, cwd=tmp_path)
    assert '4 of 4 students to train' in out
    text = (tmp_path / 'runs' / 'experiment' / 'report' / 'experiment.md').read_text()
    assert 'both, TAS-Balanced' in text and '±' in text and 'none, random' in text
    assert len(pd.read_csv(tmp_path / 'runs' / 'experiment' / 'report' / 'experiment.csv')) == 4
    assert '0 of 4 students to train' in _run('experiment.py', *small, cwd=tmp_path)


@pytest.fixture
def own(tmp_path, toy_corpus, toy_topics, write_splits):
    """The toy collection in the layout of files, without a dev split."""
    folder = tmp_path / 'own'
    write_splits(folder, {'train': toy_topics.iloc[:48], 'test': toy_topics.iloc[48:]})
    with gzip.open(folder / 'corpus.jsonl.gz', 'wt') as out:
        out.writelines(json.dumps(doc) + '\n' for doc in toy_corpus)
    return folder


@pytest.mark.parametrize('teacher', [['--teacher', 'labels'], ['--teacher', 'hybrid', '--seeds', 1, 2],
                                     ['--teacher', 'hybrid', '--in-batch-teacher', 'none', '--engine', 'pisa']])
def test_own_collection_from_files(own, tmp_path, tiny_bert_dir, teacher):
    _run('own_collection.py', '--data', own, '--student', tiny_bert_dir, '--steps', 3, '--teacher-steps', 2,
         '--batch-size', 4, '--candidates', 8, '--doc-length', 64, *teacher, cwd=tmp_path)
    folder = tmp_path / 'runs' / 'own'
    names = [row['name'] for row in json.loads((folder / 'table.json').read_text())]
    assert names[0].startswith('BM25') and any(name.startswith('TAS-Balanced') for name in names)
    assert all(name in (folder / 'table.txt').read_text() for name in names)
    assert len(list((folder / 'runs').glob('*.res.gz'))) == len(names)
    assert (folder / f'model-{teacher[3] if "--seeds" in teacher else 42}' / 'model.safetensors').exists()


def test_own_collection_keeps_what_is_built_for_each_corpus_and_encoder(own, tmp_path, tiny_bert_dir, example):
    def run(*options):
        example('own_collection', '--data', own, '--student', tiny_bert_dir, '--steps', 1, '--batch-size', 4,
                '--candidates', 4, '--teacher', 'hybrid', '--in-batch-teacher', 'none', '--engine', 'pisa',
                '--out', tmp_path, *options).main()
        return {path.relative_to(tmp_path): path.stat().st_mtime_ns for path in tmp_path.glob('corpus-*/*.*')}
    first = run('--doc-length', 64)
    assert {path.suffix for path in first} == {'.flex', '.pisa'}
    assert run('--doc-length', 64) == first   # all of it is there
    shorter = run('--doc-length', 16)
    assert first.items() < shorter.items() and sum(path.suffix == '.flex' for path in shorter) == 4
    with gzip.open(own / 'corpus.jsonl.gz', 'at') as out:
        out.write('{"docno": "another", "text": "rose"}\n')
    assert len({path.parent for path in run('--doc-length', 16)}) == 2


@pytest.mark.parametrize('name, split', [('queries.test.tsv', 'test'), ('qrels.test.tsv', 'test'),
                                         ('qrels.train.tsv', 'train'), (None, 'dev')])
def test_own_collection_looks_at_every_split_first(own, tmp_path, example, name, split):
    (own / name).unlink() if name else (own / 'queries.dev.tsv').write_text('q1\trose\n')
    with pytest.raises(ValueError, match=f'no judged {split} query .* queries.{split}.tsv and qrels.{split}.tsv'):
        example('own_collection', '--data', own, '--out', tmp_path / 'out').main()
    assert not (tmp_path / 'out').exists()


def test_own_collection_samples_judged_queries(own, example):
    with (own / 'queries.train.tsv').open('a') as out:
        out.writelines(f'unjudged{i}\twords\n' for i in range(1000))
    module = example('own_collection')
    topics, qrels = module.read_split(module.Collection(own), 'train', 5)
    assert len(topics) == 5 and set(topics['qid']) <= set(qrels['qid'])


def test_a_misspelt_teacher_is_answered_with_the_words(own, tmp_path, tiny_bert_dir, example):
    with pytest.raises(ValueError, match="'lables' is no checkpoint .*labels, hybrid and monot5"):
        example('own_collection', '--data', own, '--student', tiny_bert_dir, '--teacher', 'lables',
                '--out', tmp_path / 'out').main()
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('name, option', [
    ('own_collection', '--train-queries'), ('own_collection', '--dev-queries'), ('own_collection', '--candidates'),
    ('experiment', '--seeds'), ('quickstart', '--dev-queries'), ('msmarco', '--validation-queries')])
@pytest.mark.parametrize('number', ['0', '-1', '1.5'])
def test_numbers_below_1_are_refused(example, capsys, name, option, number):
    with pytest.raises(SystemExit):
        example(name, option, number).arguments()
    assert f"argument {option}: '{number}': must be a whole number of at least 1" in capsys.readouterr().err


def test_a_refusal_is_one_sentence(tmp_path):
    done = subprocess.run([sys.executable, str(EXAMPLES / 'own_collection.py'), '--data', str(tmp_path)], text=True,
                          capture_output=True)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith(f'{tmp_path} has no corpus.jsonl')
    assert 'Traceback' not in done.stderr


def test_other_libraries_errors_keep_their_traceback(example):
    with pytest.raises(ValueError, match='Invalid'):
        example('_script').run_script(lambda: pd.to_datetime('rose', format='Invalid%'))


@pytest.fixture
def msmarco(tmp_path, toy_corpus, toy_topics, toy_qrels, toy_results, write_splits):
    """The toy collection in files of the published formats; of 15 queries to validate with, 8 have candidates."""
    folder = tmp_path / 'msmarco'
    train, test = toy_topics.iloc[:30], toy_topics.iloc[45:]
    write_splits(folder, {'train': train, 'dev': toy_topics.iloc[30:], 'dev.small': test, 'dl19': test.iloc[:8]}, ' ')
    (folder / 'collection.tsv').write_text(''.join(f'{doc["docno"]}\t{doc["text"]}\n' for doc in toy_corpus))
    scored = toy_results.merge(toy_qrels[toy_qrels['label'] > 0], on=['qid', 'docno'], how='left').fillna({'label': 0})
    with gzip.open(folder / 'bert_cat_ensemble_msmarcopassage_train_scores_ids.tsv.gz', 'wt') as out:
        for qid in train['qid']:
            of = scored[scored['qid'] == qid]
            for pos in of[of['label'] > 0].itertuples():
                out.writelines(f'{pos.score}\t{neg.score}\t{qid}\t{pos.docno}\t{neg.docno}\n'
                               for neg in of[of['label'] == 0].itertuples())
    (folder / 'clusters.tsv').write_text(' '.join(train['qid'][:15]) + '\n' + ' '.join(train['qid'][15:]) + '\n')
    (folder / 'docT5query.tsv').write_text(''.join(f'{doc["docno"]}\t{doc["text"][:20]}\n' for doc in toy_corpus))
    ranked = toy_results[toy_results['qid'].isin([f'q{i}' for i in range(37, 60)])][['qid', 'docno', 'rank']]
    ranked.sample(frac=1, random_state=1).to_csv(folder / 'candidates.dev.tsv', sep='\t', header=False, index=False)
    return folder


def test_msmarco_recipe_on_files_of_the_published_formats(msmarco, tmp_path, tiny_bert_dir):
    arguments = ['--data', msmarco, '--student', tiny_bert_dir, '--in-batch-teacher', tiny_bert_dir, '--steps', 4,
                 '--eval-every', 2, '--batch-size', 4, '--clusters', 2, '--patience-from', 0, '--validation-queries', 7,
                 '--cluster-encoder', tiny_bert_dir]
    out = _run('msmarco.py', *arguments, '--store-teacher', cwd=tmp_path)
    folder = tmp_path / 'runs' / 'msmarco'
    table = pd.DataFrame(json.loads((folder / 'table.json').read_text()))
    assert set(table['queries']) == {'dev.small', 'dl19'}
    assert {'docT5query (Terrier, k1=1.2, b=0.75)', 'TAS-Balanced'} < set(table['name'])
    assert 'TeacherScores' not in out and '7 validation queries' in out
    out = _run('msmarco.py', '--data', msmarco, '--check', tiny_bert_dir, cwd=tmp_path)
    assert 'dev.small RR@10: ' in out and 'target 0.344' in out
    assert tiny_bert_dir in {row['name'] for row in json.loads((folder / 'checked.json').read_text())}
    assert table.equals(pd.DataFrame(json.loads((folder / 'table.json').read_text())))
    assert len(list(folder.glob('corpus-*/*.flex'))) == 2 and len(list(folder.glob('pairs-*'))) == 1


@pytest.fixture
def msmarco_data(msmarco, tmp_path, example):
    """(options) → the example, and its data."""
    def load(*options):
        module = example('msmarco', '--data', msmarco, '--out', tmp_path / 'out', *options)
        return module, module.MsMarco(module.arguments())
    return load


def _lose(folder, *names):
    for name in names:
        (folder / name).unlink()


UNFIT = {   # what is done to the files → what is said
    'no qrels': (lambda path: _lose(path, 'qrels.dl19.tsv'), 'qrels.dl19.tsv is missing'),
    'no queries': (lambda path: _lose(path, 'queries.dl19.tsv'), 'queries.dl19.tsv is missing'),
    'no evaluation': (lambda path: _lose(path, *(f'{what}.{split}.tsv' for what in ('queries', 'qrels')
                                                 for split in ('dev.small', 'dl19'))), 'has nothing to evaluate on'),
    'other qids': (lambda path: (path / 'qrels.dl19.tsv').write_text('x 0 d1a 1\n'), 'no query of queries.dl19.tsv'),
    'empty qrels': (lambda path: (path / 'qrels.dl19.tsv').write_text(''), 'qrels.dl19.tsv is empty'),
    'no training queries': (lambda path: _lose(path, 'queries.train.tsv'), 'queries.train.tsv is missing'),
    'no dev queries': (lambda path: _lose(path, 'queries.dev.tsv'), 'queries.dev.tsv is missing'),
    'no teacher': (lambda path: _lose(path, 'bert_cat_ensemble_msmarcopassage_train_scores_ids.tsv.gz'), r'\[.gz\]'),
    'all evaluated': (lambda path: (path / 'queries.dl19.tsv').write_bytes((path / 'queries.dev.tsv').read_bytes()),
                      'every judged query of queries.dev.tsv is evaluated'),
    'no candidates': (lambda path: (path / 'candidates.dev.tsv').write_text(''), 'candidates.dev.tsv is empty'),
    'other candidates': (lambda path: (path / 'candidates.dev.tsv').write_text('q59\td1a\t1\n'), 'has no judged query'),
    'two columns': (lambda path: (path / 'candidates.dev.tsv').write_text('q31\td1a\n'), 'has 2 columns, expected qid'),
    'five columns': (lambda path: (path / 'candidates.dev.tsv').write_text('q31\t0\td1a\t1\t.5\n'), 'has 5 columns'),
    'no collection': (lambda path: _lose(path, 'collection.tsv'), 'collection.tsv is missing'),
    'empty collection': (lambda path: (path / 'collection.tsv').write_text(''), 'collection.tsv is empty'),
}


@pytest.mark.parametrize('name', UNFIT)
def test_msmarco_looks_at_its_files_first(msmarco, msmarco_data, tmp_path, name):
    spoil, message = UNFIT[name]
    spoil(msmarco)
    with pytest.raises(ValueError, match=message):
        msmarco_data()
    assert not list((tmp_path / 'out').glob('corpus-*/*'))


def test_msmarco_validates_with_queries_that_have_candidates_and_are_not_evaluated(msmarco, msmarco_data):
    _, data = msmarco_data()
    assert set(data.held_out['qid']) == {f'q{i}' for i in range(37, 45)}
    (msmarco / 'queries.dl19.tsv').write_text('q40\twords\n')
    (msmarco / 'qrels.dl19.tsv').write_text('q40 0 d40a 1\n')
    _, data = msmarco_data()
    assert set(data.held_out['qid']) == {f'q{i}' for i in range(37, 45)} - {'q40'}


def test_msmarco_keeps_the_texts_of_each_collection(msmarco, msmarco_data):
    _, data = msmarco_data()
    with (msmarco / 'collection.tsv').open('a') as out:
        out.write('another\trose\n')
    _, other = msmarco_data()
    assert len(other.texts) == len(data.texts) + 1 and other.kept != data.kept


def test_msmarco_reads_ids_as_they_are_written(msmarco, msmarco_data):
    (msmarco / 'qrels.dl19.tsv').write_text('q45 0 NA 1\nq45 0 "d1 2\n')
    (msmarco / 'candidates.dev.tsv').write_text('q44\t"d1\t2\nq44\tNA\t1\n')
    module, data = msmarco_data()
    assert data.qrels('dl19')['docno'].tolist() == ['NA', '"d1']
    found = module.best_candidates(msmarco / 'candidates.dev.tsv', data.held_out)
    assert found['docno'].tolist() == ['NA', '"d1']


def test_msmarco_reads_candidates_with_texts_in_the_order_of_the_file(msmarco, msmarco_data, monkeypatch):
    lines = [f'{qid}\t{docno}\tits words\tsome "text\n' for docno in ('d9', 'NA', 'd1') for qid in ('q44', 'q43')]
    (msmarco / 'candidates.dev.tsv').write_text(''.join(lines))
    module, data = msmarco_data()
    assert set(data.held_out['qid']) == {'q43', 'q44'}
    read = pd.read_csv
    monkeypatch.setattr(module.pd, 'read_csv', lambda *args, **options: read(*args, **{**options, 'chunksize': 2}))
    found = module.best_candidates(msmarco / 'candidates.dev.tsv', data.held_out, n=2)
    assert found[['qid', 'docno']].values.tolist() == [['q43', 'd9'], ['q43', 'NA'], ['q44', 'd9'], ['q44', 'NA']]
    assert set(found.columns) == {'qid', 'docno', 'rank', 'query'}


def test_msmarco_writes_its_table_after_each_split(msmarco_data, tmp_path, monkeypatch):
    module, data = msmarco_data()
    monkeypatch.setattr(module.pt, 'Experiment', lambda systems, topics, *args, **options: pd.DataFrame(
        {'name': ['rose']} if len(topics) == 15 else 1 / 0))
    with pytest.raises(ZeroDivisionError):
        module.evaluate(data, {}, tmp_path / 'table.json')
    assert json.loads((tmp_path / 'table.json').read_text()) == [{'name': 'rose', 'queries': 'dev.small'}]


def test_the_readmes_code_runs(own, tmp_path, minilm_dir):
    code = (EXAMPLES.parent / 'README.md').read_text(encoding='utf-8').partition('```python\n')[2].partition('```')[0]
    for long, short in {'YOUR_DIRECTORY': str(own), 'steps=500': 'steps=2, batch_size=4',
                        'steps=1000': 'steps=2, batch_size=4'}.items():
        assert long in code
        code = code.replace(long, short)
    (tmp_path / 'readme.py').write_text(code, encoding='utf-8')
    done = subprocess.run([sys.executable, 'readme.py'], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / 'model' / 'README.md').exists()


def test_the_notebook_runs(tmp_path, minilm_dir):
    import nbformat
    from nbclient import NotebookClient
    notebook = nbformat.read(EXAMPLES / 'step_by_step.ipynb', as_version=4)
    shorter = {"['stdlib', 'numpy']": "['logging', 'argparse', 'email']",
               'STEPS = 20': 'STEPS = 2', 'clusters=8': 'clusters=2', '.sample(400,': '.sample(40,'}
    for cell in notebook.cells:
        for long, short in shorter.items():
            cell.source = cell.source.replace(long, short)
    NotebookClient(notebook, timeout=600, resources={'metadata': {'path': str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == 'code' for output in cell.outputs]
    assert sum('image/png' in output.get('data', {}) for output in outputs) == 3
