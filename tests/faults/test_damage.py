"""Damaged files, full disks and two processes in one place: a clear sentence or a repair, and nothing half-written."""
import errno
import multiprocessing
import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from pyterrier_tasb import QueryClusters, ScoredPairs, TasBalanced, TeacherScores, TextStore, Training
from pyterrier_tasb._files import atomic_dir, atomic_file, disk_named, write_json
from pyterrier_tasb._locks import locked, work_directory
from pyterrier_tasb.encoding import TokenStore
from pyterrier_tasb.sampling import BatchPlan
from pyterrier_tasb.teachers.vectors import TokenVectors

TRAINING = Training(steps=4, batch_size=4, clusters=3, save_every=2)


def _pairs(folder):
    return ScoredPairs.from_arrays(folder / 'it', ['q1', 'q2'], ['a', 'b'], [0, 1], [0, 1], [1, 0], [1.0, 2.0])


def _texts(folder):
    return TextStore.build(folder / 'it', [('a', 'rose soil'), ('b', 'star comet')])


def _clusters(folder):
    vectors = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    return QueryClusters.fit(vectors, 2, qids=list('abcdefghi')).save(folder / 'it')


class _Teacher:
    def bind(self, queries, docs, cache_dir):
        return lambda query, doc: torch.ones(len(query), len(doc))

    def __repr__(self):
        return 'ones'


def _scores(folder):
    plan = BatchPlan(_pairs(folder / 'pairs'), sampling='random', batch_size=2)
    return TeacherScores.build(folder / 'it', _Teacher(), plan, _texts(folder / 'q'), _texts(folder / 'd'), steps=3)


MADE = {'pairs': (_pairs, ScoredPairs), 'texts': (_texts, TextStore), 'clusters': (_clusters, QueryClusters),
        'teacher scores': (_scores, TeacherScores)}


def _cut(blob):
    return blob[:-1]


def _flip(blob):
    return blob[:-1] + bytes([blob[-1] ^ 1])


@pytest.mark.parametrize('damage', [_cut, _flip])
@pytest.mark.parametrize('what', MADE)
def test_every_damaged_file_is_noticed_when_opened(what, damage, tmp_path):
    make, load = MADE[what]
    make(tmp_path)
    load(tmp_path / 'it')
    for file in sorted(path for path in (tmp_path / 'it').rglob('*') if path.is_file()):
        if file.name in ('centroids.npy', 'run.json'):   # read by nobody after they were made
            continue
        blob = file.read_bytes()
        if file.suffix == '.json' and damage is _flip:
            continue   # the last byte is a line's end
        file.write_bytes(damage(blob))
        if file.suffix == '.json':
            file.write_bytes(blob[:len(blob) // 2])
        with pytest.raises(ValueError, match='damaged'):
            load(tmp_path / 'it')
        file.write_bytes(blob)
    load(tmp_path / 'it')


@pytest.mark.parametrize('damage', [_cut, _flip])
def test_damaged_tokens_are_noticed(damage, tiny_bert_dir, tmp_path):
    tokenizer = TasBalanced(tiny_bert_dir).tokenizer
    TokenStore.build(tmp_path / 'tokens', _texts(tmp_path), tokenizer, 10)
    file = tmp_path / 'tokens' / 'ids.bin'
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match='damaged'):
        TokenStore.build(tmp_path / 'tokens', TextStore(tmp_path / 'it'), tokenizer, 10)


def test_a_damaged_token_vector_is_computed_again(tmp_path):
    calls = []

    def encode(rows):
        calls.append(list(rows))
        return torch.cat([torch.full((2, 4), float(row)) for row in rows])
    vectors = TokenVectors(tmp_path / 'it', np.array([2, 2, 2]), 4, encode, 'key')
    vectors.fill(np.arange(3))
    blob = bytearray((tmp_path / 'it' / 'vectors.f2').read_bytes())
    blob[17] ^= 1
    (tmp_path / 'it' / 'vectors.f2').write_bytes(bytes(blob))
    again = TokenVectors(tmp_path / 'it', np.array([2, 2, 2]), 4, encode, 'key')
    found, lengths = again.take(np.array([2, 1]))
    assert calls == [[0, 1, 2], [1]] and lengths.tolist() == [2, 2]
    assert found[:, 0].tolist() == [2.0, 2.0, 1.0, 1.0]
    (tmp_path / 'it' / 'vectors.f2').write_bytes(bytes(blob[:-1]))
    with pytest.raises(ValueError, match='damaged'):
        TokenVectors(tmp_path / 'it', np.array([2, 2, 2]), 4, encode, 'key')


def test_a_damaged_cache_of_teacher_scores_is_named(tiny_bert_dir, toy_results, toy_qrels, tmp_path):
    import pyterrier as pt
    teacher = pt.apply.doc_score(lambda row: float(len(row['text'])))

    def fit(**options):
        tasb = TasBalanced(tiny_bert_dir, pairwise_teacher=teacher, training=TRAINING)
        return tasb.fit(toy_results, toy_qrels, work_dir=tmp_path / 'work', **options)
    fit()
    cache, = (tmp_path / 'work').glob('teacher-scores-*')
    database = next(path for path in cache.iterdir() if path.suffix not in ('.json',))
    database.write_bytes(b'not a database' * 100)
    for path in ('pairs', 'checkpoints'):
        (tmp_path / 'work' / path).rename(tmp_path / path)
    with pytest.raises(ValueError, match='cache of teacher scores, is damaged'):
        fit(resume=True)


# ---- a disk that is full or read-only ------------------------------------------------------------------------------

def _with_a_full_disk(folder, out):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))   # a file that grows beyond it is refused as on a full disk
    texts = [(str(i), 'a text of some length ' * 5) for i in range(100)]
    try:
        TextStore.build(folder / 'texts', texts)
        out.send('no error')
    except OSError as error:
        out.send((type(error).__name__, sorted(path.name for path in folder.iterdir())))


def test_a_full_disk_is_an_error_that_leaves_nothing(tmp_path):
    context = multiprocessing.get_context('fork')
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_with_a_full_disk, args=(tmp_path, theirs))
    process.start()
    name, left = ours.recv()
    process.join()
    assert name == 'DiskError' and left == []


def test_a_place_where_nothing_can_be_written_is_an_error(tiny_bert_dir, toy_results, toy_qrels, tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(OSError):
        TasBalanced(tiny_bert_dir, training=TRAINING).fit(toy_results, toy_qrels, work_dir=tmp_path / 'file' / 'work')
    with pytest.raises(OSError):
        TasBalanced(tiny_bert_dir).save(tmp_path / 'file' / 'model')


def test_a_write_that_fails_keeps_what_was_there(tmp_path):
    write_json(tmp_path / 'file', 1)
    with pytest.raises(ZeroDivisionError), atomic_file(tmp_path / 'file') as part:
        part.write_text('half')
        1 / 0
    with pytest.raises(ZeroDivisionError), atomic_dir(tmp_path / 'folder') as part:
        (part / 'half').touch()
        1 / 0
    assert [path.name for path in tmp_path.iterdir()] == ['file'] and (tmp_path / 'file').read_text() == '1\n'


@pytest.mark.parametrize('swaps', [True, False], ids=['swapped', 'renamed'])
def test_there_is_always_the_old_or_the_new(tmp_path, swaps):
    """A process that is killed while it replaces a directory, at any of its renames."""
    code = (f'import os, sys; from pyterrier_tasb import _files\n'
            f'if not {swaps}: _files._exchange = lambda one, other: False\n'
            'replace, n = os.replace, [int(sys.argv[2])]\n'
            'def killing(*args):\n'
            '    n[0] -= 1\n'
            '    os.kill(os.getpid(), 9) if not n[0] else replace(*args)\n'
            'os.replace = killing\n'
            'with _files.atomic_dir(sys.argv[1], overwrite=True) as part:\n    (part / "new").touch()\n')
    for number in (1, 2, 3):
        path = tmp_path / str(number) / 'it'
        path.mkdir(parents=True)
        (path / 'old').touch()
        subprocess.run([sys.executable, '-c', code, str(path), str(number)], check=False)
        with pytest.raises(FileExistsError), atomic_dir(path):   # whoever comes next puts back what was taken away
            pass
        assert [file.name for file in path.iterdir()] in (['old'], ['new'])
        assert [left.name for left in path.parent.iterdir()] == ['it']


def test_an_exception_between_renames_puts_the_old_back(tmp_path, monkeypatch):
    monkeypatch.setattr('pyterrier_tasb._files._exchange', lambda one, other: False)
    (tmp_path / 'it').mkdir()
    (tmp_path / 'it' / 'old').touch()
    replace, calls = os.replace, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace(*args)
    monkeypatch.setattr(os, 'replace', interrupted)
    with pytest.raises(KeyboardInterrupt), atomic_dir(tmp_path / 'it', overwrite=True) as part:
        (part / 'new').touch()
    assert [path.name for path in tmp_path.rglob('*')] == ['it', 'old']


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / 'real').mkdir()
    (tmp_path / 'link').symlink_to('real')
    with atomic_dir(tmp_path / 'link', overwrite=True) as part:
        (part / 'new').touch()
    assert (tmp_path / 'link').is_symlink() and [path.name for path in (tmp_path / 'real').iterdir()] == ['new']


def test_what_killed_processes_left_is_removed_and_what_living_ones_write_is_not(tmp_path):
    code = ('import os, sys; from pyterrier_tasb._files import atomic_dir\n'
            'with atomic_dir(sys.argv[1]) as part:\n    os.kill(os.getpid(), 9)')
    subprocess.run([sys.executable, '-c', code, str(tmp_path / 'it')], check=False)
    left, = tmp_path.iterdir()
    with atomic_dir(tmp_path / 'it') as outer:
        assert not left.exists()
        with atomic_dir(tmp_path / 'it'):
            assert outer.exists()
        (tmp_path / 'it').rmdir()
    assert [path.name for path in tmp_path.iterdir()] == ['it']


def test_files_of_killed_processes_go_as_well(tmp_path):
    code = ('import os, sys; from pyterrier_tasb._files import atomic_file\n'
            'with atomic_file(sys.argv[1]) as part:\n    os.kill(os.getpid(), 9)')
    subprocess.run([sys.executable, '-c', code, str(tmp_path / 'it')], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    with atomic_file(tmp_path / 'it') as outer:
        write_json(tmp_path / 'it', {})
        assert outer.exists()
    assert [path.name for path in tmp_path.iterdir()] == ['it']


# ---- two processes ---------------------------------------------------------------------------------------------------

def test_a_second_process_in_one_work_directory_is_refused(tiny_bert_dir, toy_results, toy_qrels, tmp_path):
    work = tmp_path / 'work'
    code = ('import sys; from pyterrier_tasb._locks import locked\n'
            'with locked(sys.argv[1]):\n    print("in", flush=True)\n    sys.stdin.read()')
    with subprocess.Popen([sys.executable, '-c', code, str(work)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True) as other:
        assert other.stdout.readline() == 'in\n'
        with pytest.raises(ValueError, match='another process is working in'):
            TasBalanced(tiny_bert_dir, training=TRAINING).fit(toy_results, toy_qrels, work_dir=work)
        other.kill()
        other.wait()
        TasBalanced(tiny_bert_dir, training=TRAINING).fit(toy_results, toy_qrels, work_dir=work)   # its lock died


def test_a_number_left_in_the_environment_is_no_distributed_run(tmp_path, monkeypatch):
    monkeypatch.setenv('RANK', '1')
    with work_directory(tmp_path), pytest.raises(ValueError, match='another process'), work_directory(tmp_path):
        pass


def test_several_processes_need_a_directory_that_all_see(tmp_path, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(ValueError, match='several processes need work_dir='), work_directory(None):
        pass


def test_the_disk_that_is_full_is_named_by_who_wrote(tmp_path):
    with pytest.raises(OSError, match='while writing .*/inner: make room; then that') as info, \
            disk_named(tmp_path / 'outer', 'then this'), disk_named(tmp_path / 'inner', 'then that'):
        raise OSError(errno.ENOSPC, 'full')
    assert info.value.errno == errno.ENOSPC


def test_files_can_be_read_by_those_who_may_read_directories(tmp_path):
    write_json(tmp_path / 'it' / 'file', 1)
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / 'it' / 'file').stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_lock_is_released_after_an_exception(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), locked(tmp_path / 'work'):
            1 / 0
    assert os.listdir(tmp_path / 'work') in ([], ['.lock'])
