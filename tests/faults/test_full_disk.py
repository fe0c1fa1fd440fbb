"""A disk that is really full, or read-only, in the middle of each long step: a sentence, and the same call goes on."""
import ctypes
import multiprocessing
import os
from multiprocessing import forkserver

import pytest
import torch
from fault_stages import STAGES, Clock, Given

SHARES = (.1, .4, .7, .95)   # of the room that a step needs
_NEW_MOUNTS, _PRIVATE, _REMOUNT, _READ_ONLY = 0x00020000, 1 << 18 | 1 << 14, 1 << 5, 1


def _call(name, *args):
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*args):
        raise OSError(ctypes.get_errno(), name)


def _mount(folder, size, flags=0):
    _call('mount', b'tmpfs', str(folder).encode(), b'tmpfs', flags, f'size={size}'.encode())


def _own_mounts():
    """What this process mounts from now on, no other sees; it is gone with the process."""
    _call('unshare', _NEW_MOUNTS)
    _call('mount', b'none', b'/', None, _PRIVATE, None)


def _can_mount(folder, out):
    try:
        _own_mounts()
        _mount(folder, 4096)
        out.send(True)
    except OSError:
        out.send(False)


def _room(folder):
    stat = os.statvfs(folder)
    return (stat.f_blocks - stat.f_bfree) * stat.f_frsize


def _try(stage, folder, given):
    """What the step made, or the error's type and text."""
    try:
        return STAGES[stage](Given(folder, given, Clock(None))), None
    except Exception as error:
        return None, (type(error).__mro__[1].__name__ if type(error).__name__ == 'DiskError' else type(error).__name__,
                      str(error))


def _fill(stage, folder, given, out):
    torch.set_num_threads(1)
    _own_mounts()
    _mount(folder, '64m')
    os.environ['TMPDIR'] = str(folder)
    made, error = _try(stage, folder, given)
    needed = _room(folder)
    results = []
    for share in SHARES:
        _mount(folder, max(4096, int(needed * share) // 4096 * 4096))
        first = _try(stage, folder, given)
        _mount(folder, '64m', _REMOUNT)
        results.append((share, first, _try(stage, folder, given)))
    _mount(folder, '64m')
    _mount(folder, '64m', _REMOUNT | _READ_ONLY)
    first = _try(stage, folder, given)
    _mount(folder, '64m', _REMOUNT)
    results.append(('read-only', first, _try(stage, folder, given)))
    out.send((made, error, needed, results))


def _run(target, *args):
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['fault_stages'])
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv('PYTHONPATH', os.path.dirname(__file__))
        forkserver.ensure_running()
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(*args, theirs))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        process.join()
        pytest.fail(f'the process ended with code {process.exitcode}: a signal, where there should be an error')


@pytest.fixture
def given(tiny_bert_dir, toy_results, toy_qrels, toy_topics, toy_corpus):
    return tiny_bert_dir, toy_results, toy_qrels, toy_topics, toy_corpus


@pytest.mark.parametrize('stage', STAGES)
def test_a_full_disk_is_a_sentence_and_the_same_call_goes_on(stage, given, tmp_path):
    if not _run(_can_mount, tmp_path):
        pytest.skip('a small disk to fill needs the right to mount one (root)')
    made, error, needed, results = _run(_fill, stage, tmp_path, given)
    assert error is None and needed > 4096
    failed = 0
    for share, (_, error), (again, error_again) in results:
        assert error_again is None and again == made, (share, error, error_again)
        if error is not None:
            failed += 1
            assert error[0] == 'OSError' and ('space' in error[1] or 'ead-only' in error[1]), (share, error)
    assert failed >= 3
