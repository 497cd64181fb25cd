"""Data workers and signals: a stop signal is for the main process, which ends its workers."""
import atexit
import contextlib
import functools
import multiprocessing
import signal
from collections.abc import Iterator

from training.interrupt import STOP_SIGNALS


def leave_signals_to_parent(worker: int) -> None:
    """Let a worker ignore the signals that a terminal or Slurm sends to the whole job.

    The main process ends its workers once it has written a checkpoint.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, 'pthread_sigmask'):  # not on Windows
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


@contextlib.contextmanager
def block_stop_signals() -> Iterator[None]:
    """Let stop signals wait until the block ends. Processes that start in it inherit this."""
    if not hasattr(signal, 'pthread_sigmask'):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@functools.cache
def end_workers_at_exit() -> None:
    """Kill the workers that are left when the program ends."""
    atexit.register(end_workers)  # runs before multiprocessing's own, which was registered earlier


def end_workers() -> None:
    """Kill the workers that are left.

    At exit, multiprocessing would send them SIGTERM, which they ignore, and wait for ever.
    """
    if hasattr(signal, 'SIGCHLD'):  # not on Windows
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's own handler would call it a failure
    for worker in multiprocessing.active_children():
        if worker.daemon:
            worker.kill()
            worker.join()
