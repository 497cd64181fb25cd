"""Load batches with worker processes."""
import atexit
import contextlib
import functools
import multiprocessing
import signal
from collections.abc import Iterable
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, default_collate

from training import processes
from training.bad_audio import BadAudio, ReplaceUnreadable
from training.interrupt import STOP_SIGNALS
from training.sampler import DistributedBatchSampler, EpochSampler
from utilities.parallel import available_cores, one_thread
from utilities.workers import may_start_processes, worker_context


class Loaders(NamedTuple):
    """The loaders of an experiment."""
    train: Any  # TrainingLoader
    val: Any  # AudioLoader
    test: Any  # AudioLoader of --data_eval, or None


def make_loader(dataset: Any, batch_size: int | None, num_workers: int, pin_memory: bool,
                sampler: EpochSampler | None = None, batches: Iterable | None = None) -> DataLoader:
    """Make a loader of the batches of a dataset, which come in the order of the sampler.

    If there are several processes, this one loads its part of every batch of the sampler, or
    without a sampler its part of the dataset.

    Args:
        dataset: a Dataset with a length; a ReplaceUnreadable makes the loader a TrainingLoader.
        batch_size: of all processes together if there is a sampler.
        num_workers: worker processes, -1 for as many as there are cores.
        pin_memory: whether batches wait for a GPU in pinned memory.
        sampler: None for the order of the dataset.
        batches: instead of batch_size and sampler: an iterable of lists of keys, each a batch.
    """
    workers = count_workers(num_workers, processes.local_size())
    _end_workers_at_exit()
    options: dict[str, Any] = {
        'num_workers': workers, 'pin_memory': pin_memory, 'persistent_workers': workers > 0,
        'worker_init_fn': _leave_signals_to_parent,
        'multiprocessing_context': worker_context() if workers else None,
        'collate_fn': getattr(dataset, 'collate', default_collate)}
    if batches is not None:
        options['batch_sampler'] = batches
    elif sampler is not None:
        options['batch_sampler'] = DistributedBatchSampler(sampler, batch_size or 1)
    else:
        options |= {'sampler': processes.own_part(len(dataset)), 'batch_size': batch_size}
    if isinstance(dataset, ReplaceUnreadable):
        return TrainingLoader(dataset, **options)
    return AudioLoader(dataset, **options)


class AudioLoader(DataLoader):
    """A DataLoader whose batches have the same numbers for any number of workers.

    Without workers, this process computes on one thread, as a worker does: a sum over several
    threads rounds differently.
    """

    def __iter__(self):
        with _signals_blocked():  # a signal would end a worker that is starting
            batches = super().__iter__()
        while True:
            with contextlib.nullcontext() if self.num_workers else one_thread():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch


class TrainingLoader(AudioLoader):
    """A loader for training, of a ReplaceUnreadable. It yields batches (inputs, labels).

    Attributes:
        bad_audio: counts the samples that were replaced because their audio cannot be read.
    """

    def __init__(self, dataset: ReplaceUnreadable, **options):
        super().__init__(dataset, **options)
        self.bad_audio = BadAudio()

    def __iter__(self):
        sizes = self.batch_sampler.sizes()
        for (batch, replaced), (own, _) in zip(super().__iter__(), sizes, strict=True):
            if own:  # else the sample only stands in for an empty part; another process counts it
                self.bad_audio.note(replaced)
            yield batch


def count_workers(num_workers: int, sharing: int = 1) -> int:
    """Return how many worker processes load data.

    Args:
        num_workers: the number that was asked for; -1 means one per core.
        sharing: how many processes train on this machine and share its cores.

    Returns:
        0 if this process must not start any.
    """
    if num_workers == 0 or not may_start_processes():
        return 0
    return max(1, available_cores() // sharing) if num_workers < 0 else num_workers


def _leave_signals_to_parent(_):
    """Let a worker ignore the signals that a terminal or Slurm sends to the whole job.

    The main process ends its workers once it has written a checkpoint.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, 'pthread_sigmask'):  # not on Windows
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


@contextlib.contextmanager
def _signals_blocked():
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
def _end_workers_at_exit():
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
