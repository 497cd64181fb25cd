"""The CPU cores of a job, and work on many files with all of them."""
import ast
import contextlib
import functools
import logging
import math
import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils.data import get_worker_info
from tqdm import tqdm

from utilities.cgroups import cpu_limit

FILES_A_TASK = 16  # few enough to keep the bar moving, enough to make a task worth sending
THREADS_AHEAD = 8  # of map_ahead: they mostly wait for the disk
ITEMS_AHEAD = 64  # of map_ahead, which keeps the results of so many
MOST_ON_WINDOWS = 61  # processes of a ProcessPoolExecutor, whose wait takes no more handles

logger = logging.getLogger(__name__)


def available_cores():
    """Return how many CPU cores this process may use.

    A job scheduler or a container may leave it fewer than the machine has. A part of a core counts
    as a whole one.
    """
    if hasattr(os, 'sched_getaffinity'):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, math.ceil(min(cores, cpu_limit())))


def limit_threads():
    """Let PyTorch compute on no more threads than this process has cores: it does not look at a container's quota."""
    torch.set_num_threads(min(torch.get_num_threads(), available_cores()))


def may_start_processes():
    """Return whether this process may start others to share its work.

    A daemonic process may not, such as a worker of multiprocessing.Pool or Celery. Neither may a
    script that has no guard, if new processes are not forked: each of them would run it again.
    """
    if multiprocessing.current_process().daemon:
        return False
    script = _script_without_guard()
    if script:
        _warn_of_guard(script)
    return not script


def worker_context():
    """Return the multiprocessing context in which worker processes start.

    It is the one that the user has chosen. Without a choice, Linux forks. Python 3.14 would start
    workers from a server process instead: they end if a signal reaches the whole job, they import
    everything again, and each of them holds a copy of the datafile.
    """
    # multiprocessing.get_start_method() without allow_none would fix the method for good.
    chosen, default = (multiprocessing.get_start_method(allow_none=True),
                       multiprocessing.get_all_start_methods()[0])
    if sys.platform == 'linux' and chosen in (None, default):
        return multiprocessing.get_context('fork')
    return multiprocessing.get_context(chosen or default)


def starts_by_fork():
    """Return whether a worker process is a copy of this one (fork).

    If not (spawn, forkserver), it starts empty and imports the script that is running.
    """
    return worker_context().get_start_method() == 'fork'


def _script_without_guard():
    """Return the path of the script whose top level leads here, and would in every new process.

    None if no new process would come here: it is forked, or imports no script, or the line of the
    script that leads here stands below `if __name__ == '__main__'`.
    """
    main = sys.modules['__main__']
    path, spec = getattr(main, '__file__', None), getattr(main, '__spec__', None)
    if starts_by_fork() or path is None or (spec and spec.name.split('.')[-1] == '__main__'):
        return None
    frame = sys._getframe()
    while frame and not (frame.f_globals is vars(main) and frame.f_code.co_name == '<module>'):
        frame = frame.f_back
    if frame is None:
        return None
    try:
        nodes = ast.walk(ast.parse(Path(path).read_bytes()))
    except (OSError, SyntaxError, ValueError):  # a prompt's <stdin>, which nobody can import
        return path
    guarded = any(isinstance(node, ast.If) and '__name__' in ast.unparse(node.test)
                  and node.lineno <= frame.f_lineno <= node.end_lineno for node in nodes)
    return None if guarded else path


@functools.cache
def _warn_of_guard(script):
    """Say once why there are no worker processes, and what to do."""
    logger.warning("%s: recordings are read without worker processes, since each of them would run "
                   "it again; in a script, put what it does below `if __name__ == '__main__':`",
                   script)


def parallel_map(function, items, title, unit='file', items_a_task=FILES_A_TASK):
    """Yield function(item) for every item of a list, in order, and show a progress bar.

    One process per core computes them. The function and its results are pickled: take a module's
    function, or functools.partial of one. An error in it is raised here; BrokenProcessPool if a
    process was killed.
    """
    bar = functools.partial(tqdm, total=len(items), desc=title, unit=unit, disable=None)
    if not may_start_processes():
        yield from bar(map(function, items))
        return
    processes = available_cores() if os.name != 'nt' else min(available_cores(), MOST_ON_WINDOWS)
    with ProcessPoolExecutor(processes, worker_context(), torch.set_num_threads, (1,)) as pool:
        yield from bar(pool.map(function, items, chunksize=items_a_task))


def map_ahead(function: Callable, items: Iterable) -> Iterator:
    """Yield function(item) for every item, in order, while threads compute the next ones.

    Only a few are computed ahead, however many items there are (Python 3.14 has this as the
    buffersize of Executor.map). The threads start with the first item that is asked for.
    """
    pool = ThreadPoolExecutor(THREADS_AHEAD)
    try:
        pending = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ITEMS_AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def one_thread():
    """Compute as a worker does, on one thread: a sum over several threads rounds differently."""
    threads = torch.get_num_threads()
    if get_worker_info() is None:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
