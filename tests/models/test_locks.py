"""Locks: one process at a time, whatever became of the one before, and on file systems without."""
import errno
import fcntl
import os
import signal
import threading
import time
from argparse import Namespace

import pytest

from models import locks
from models.downloads import Url, download
from models.locks import LockedError, hold_lock
from training.folder import ExperimentFolder
from utilities.errors import DataError
from utilities.preparation import locked_folder

# What flock raises on some of Lustre, NFS, 9p and FUSE.
WITHOUT_LOCKS = [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP]


@pytest.fixture
def flock_raises(monkeypatch):
    """Let flock raise an OSError with this number."""
    def make(number):
        def flock(*_):
            raise OSError(number, os.strerror(number))
        monkeypatch.setattr(fcntl, 'flock', flock)
    return make


def test_a_lock_keeps_a_second_one_out_until_it_is_released(tmp_path):
    with hold_lock(tmp_path / 'lock'):
        with pytest.raises(LockedError), hold_lock(tmp_path / 'lock', wait=False):
            pass
    with hold_lock(tmp_path / 'lock', wait=False):
        pass
    assert os.listdir(tmp_path) == []


def test_a_lock_whose_file_comes_and_goes_is_held_by_one_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, 'POLL_SECONDS', 0.001)
    inside, most, rounds = [], [], 25

    def work():
        for _ in range(rounds):
            with hold_lock(tmp_path / 'lock'):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.001)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 4 * rounds


HOLD = """
import os, sys, time
from locks import hold_lock
with hold_lock(sys.argv[1]):
    if os.fork() == 0:
        print(os.getpid(), flush=True)
    time.sleep(60)
"""


def test_a_killed_process_leaves_no_lock_though_its_workers_live_on(tmp_path, root, start_python):
    holder = start_python('-c', HOLD, tmp_path / 'lock', cwd=root, PYTHONPATH=root / 'src/models')
    worker = int(holder.stdout.readline())
    try:
        with pytest.raises(LockedError), hold_lock(tmp_path / 'lock', wait=False):
            pass
        holder.kill()
        holder.wait()
        os.kill(worker, 0)  # it lives
        assert (tmp_path / 'lock').exists()
        with hold_lock(tmp_path / 'lock', wait=False):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


@pytest.mark.parametrize('number', WITHOUT_LOCKS, ids=errno.errorcode.get)
def test_without_locks_the_work_goes_on_and_the_log_warns(tmp_path, number, flock_raises, caplog):
    flock_raises(number)
    with hold_lock(tmp_path / 'lock', wait=False):
        with hold_lock(tmp_path / 'lock'):
            pass
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and str(tmp_path / 'lock') in said[0]
    assert 'no locks' in said[0] and 'do not start two that write to this folder' in said[0]


def test_all_that_takes_a_lock_goes_on_without(tmp_path, flock_raises, server, caplog):
    flock_raises(errno.ENOLCK)
    (tmp_path / 'weights.pth').touch()
    folder = ExperimentFolder(Namespace(exp_dir=tmp_path / 'exp', resume='auto'))
    with folder.lock(), locked_folder(tmp_path / 'data'):
        download([Url(f'{server.address}/none', tmp_path / 'weights.pth')], None)
    assert caplog.text.count('this file system has no locks') == 3
    assert sorted(os.listdir(tmp_path)) == ['weights.pth']


def test_another_error_of_a_lock_is_an_error(tmp_path, flock_raises):
    flock_raises(errno.EIO)
    with pytest.raises(OSError, match='output error'), hold_lock(tmp_path / 'lock'):
        pass
    with pytest.raises(DataError, match='exp cannot be locked: .*output error'):
        ExperimentFolder(Namespace(exp_dir=tmp_path / 'exp', resume='auto')).lock().__enter__()
