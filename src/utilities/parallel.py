"""CPU cores and threads, and work on many files with all of them."""
import contextlib
import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import TypeVar

import torch
from tqdm import tqdm

from utilities.workers import may_start_processes, worker_context

ITEMS_PER_TASK = 16  # few enough to keep the bar moving, enough to make a task worth sending
THREADS_AHEAD = 8  # of map_ahead: they mostly wait for the disk
ITEMS_AHEAD = 64  # how many results map_ahead keeps at most

Item = TypeVar('Item')
Result = TypeVar('Result')


def available_cores() -> int:
    """Return how many CPU cores this process may use.

    A job scheduler (by CPU affinity) or a container (by a quota) may leave it fewer than the
    machine has. A part of a core counts as a whole one.
    """
    import joblib  # here: its import takes 0.1 s
    return joblib.cpu_count()


def limit_threads() -> None:
    """Let PyTorch use no more threads than cores: it does not look at a container's quota."""
    torch.set_num_threads(min(torch.get_num_threads(), available_cores()))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread, as a worker does: a sum over several threads rounds differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def parallel_map(function: Callable[[Item], Result], items: Sequence[Item], title: str,
                 unit: str = 'file', items_per_task: int = ITEMS_PER_TASK) -> Iterator[Result]:
    """Yield function(item) for every item, in order, and show a progress bar.

    One process per core computes them, if this process may start others.

    Args:
        function: is pickled, and so are its results: a module's function, or functools.partial of
            one.
        title: title of the progress bar.
        unit: what an item is, for the progress bar.
        items_per_task: how many items a process takes at once.

    Raises:
        BrokenProcessPool: if a process was killed. An error in the function is raised here, too.
    """
    bar = functools.partial(tqdm, total=len(items), desc=title, unit=unit, disable=None)
    if not may_start_processes():
        yield from bar(map(function, items))
        return
    with ProcessPoolExecutor(available_cores(), worker_context(), torch.set_num_threads, (1,)
                             ) as pool:
        yield from bar(pool.map(function, items, chunksize=items_per_task))


def map_ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield function(item) for every item, in order, while threads compute the next ones.

    Only a few are computed ahead, however many items there are. (Python 3.14 has this as the
    buffersize of Executor.map.) The threads start with the first item that is asked for.
    """
    pool = ThreadPoolExecutor(THREADS_AHEAD)
    try:
        pending: deque[Future[Result]] = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ITEMS_AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
