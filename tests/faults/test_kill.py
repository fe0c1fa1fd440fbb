"""A process that is killed anywhere loses nothing: the same call again makes what an uninterrupted one makes."""
import multiprocessing
import os
import random
import signal
from multiprocessing import forkserver

import pytest
from fault_stages import STAGES, run

KILLS = 3   # of each stage, one after the other, before it may finish


@pytest.fixture(scope='module')
def server():
    """Processes are forked off one that has imported everything and done nothing."""
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['fault_stages'])
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv('PYTHONPATH', os.path.dirname(__file__))   # where the server finds what it imports
        forkserver.ensure_running()
    return context


@pytest.fixture
def given(tiny_bert_dir, toy_results, toy_qrels, toy_topics, toy_corpus):
    return tiny_bert_dir, toy_results, toy_qrels, toy_topics, toy_corpus


def _run(server, stage, folder, given, kill_at=None, kill_after=0.0):
    folder.mkdir(exist_ok=True)
    ours, theirs = server.Pipe(duplex=False)
    process = server.Process(target=run, args=(stage, folder, given, kill_at, kill_after, theirs))
    process.start()
    theirs.close()
    try:
        made = ours.recv()
    except EOFError:
        made = None
    process.join()
    return process.exitcode, made


@pytest.mark.parametrize('stage', STAGES)
def test_killed_and_run_again_makes_the_same(server, stage, given, tmp_path):
    code, (expected, changes, seconds) = _run(server, stage, tmp_path / 'whole', given)
    assert code == 0 and changes > 1
    rng = random.Random(stage)
    at_changes = [dict(kill_at=rng.randint(1, changes)) for _ in range(KILLS)]
    at_any_instruction = [dict(kill_after=seconds * rng.uniform(.1, .9))]
    for kill in [*at_changes, *at_any_instruction]:
        code, made = _run(server, stage, tmp_path / 'killed', given, **kill)
        # what is left may be done before that
        assert code in (-signal.SIGKILL, -signal.SIGALRM) or made[0] == expected
    code, made = _run(server, stage, tmp_path / 'killed', given)
    assert code == 0 and made[0] == expected
    names = {path.name for path in (tmp_path / 'killed').iterdir()}
    assert {name for name in names if not name.startswith('.') or name.endswith('.tmp')} == {
        path.name for path in (tmp_path / 'whole').iterdir() if not path.name.startswith('.')}
