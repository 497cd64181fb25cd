"""Locks between processes: one at a time writes to a folder, or downloads a file.

Not the package filelock: on file systems without locks, some of its versions wait forever, and some
leave a file behind that keeps everyone out. Here, the log warns and the work continues.
"""
import contextlib
import errno
import functools
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
    import msvcrt

POLL_SECONDS = 0.05  # how often a waiting process tries again
# What file systems without locks answer: some of Lustre, NFS, 9p and FUSE.
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}

logger = logging.getLogger(__name__)
_held: set[int] = set()  # the open files (descriptors) that this process has locked


class LockedError(OSError):
    """A lock that another process holds."""


@contextlib.contextmanager
def hold_lock(path: str | Path, wait: bool = True) -> Iterator[None]:
    """Keep other processes out of the block: lock a file, which is made and removed again.

    If another process holds the lock, wait for it, or raise LockedError if `wait` is False. The
    lock ends with its process, however that ends: a file that a killed process left locks nobody
    out.
    """
    _let_go_in_forked_processes()
    while (descriptor := _open_and_lock(path)) is None:
        if not wait:
            raise LockedError(f'another process holds the lock {path}')
        time.sleep(POLL_SECONDS)
    _held.add(descriptor)
    try:
        yield
    finally:
        if descriptor in _held:  # not in a process that was forked in the block
            _remove_and_unlock(descriptor, path)


def _open_and_lock(path):
    """Return the descriptor of the file, opened and locked, or None if another process has it."""
    descriptor, locked = os.open(path, os.O_RDWR | os.O_CREAT, 0o666), False
    try:
        _lock(descriptor, path)
        # The process that had the lock may have removed the file since it was opened here.
        locked = os.path.samestat(os.fstat(descriptor), os.stat(path))
    except (BlockingIOError, PermissionError, FileNotFoundError):
        pass
    finally:
        if not locked:
            os.close(descriptor)
    return descriptor if locked else None


def _lock(descriptor, path):
    """Lock an open file. Warn if its file system has no locks."""
    try:
        if fcntl:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        logger.warning('%s: this file system has no locks (%s), so nothing keeps a second process '
                       'out: do not start two that write to this folder', path, error.strerror)


def _remove_and_unlock(descriptor, path):
    """Remove a locked file before its lock ends, so that a waiting process makes a new one."""
    _held.remove(descriptor)
    with contextlib.suppress(OSError):  # Windows removes no open file
        os.unlink(path)
    os.close(descriptor)
    if not fcntl:
        with contextlib.suppress(OSError):
            os.unlink(path)


@functools.cache
def _let_go_in_forked_processes():
    """Let no forked process keep a lock: dataloader workers outlive a killed parent by seconds."""
    def let_go():
        while _held:
            os.close(_held.pop())

    if hasattr(os, 'register_at_fork'):
        os.register_at_fork(after_in_child=let_go)
