"""The CPU cores of a job, and work on many files with all of them."""
import os
from concurrent.futures import ProcessPoolExecutor

import torch
from tqdm import tqdm

FILES_A_TASK = 16  # few enough to keep the bar moving, enough to make a task worth sending


def available_cores():
    """CPU cores that this process may use: what a job scheduler left it, not what the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def parallel_map(function, items, title, unit='file'):
    """Yield function(item) for every item of a list, in order, computed by one process a core; show a progress bar.

    function and its results are pickled: a module's function, or functools.partial of one. An error in it is raised
    here; BrokenProcessPool where a process was killed.
    """
    with ProcessPoolExecutor(available_cores(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        results = pool.map(function, items, chunksize=FILES_A_TASK)
        yield from tqdm(results, total=len(items), desc=title, unit=unit, disable=None)
