"""Load batches with worker processes."""
import contextlib
from collections.abc import Iterable
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, default_collate

from training import processes
from training.bad_audio import BadAudio, ReplaceUnreadable
from training.sampler import DistributedBatchSampler, EpochSampler
from training.worker_signals import block_stop_signals, end_workers_at_exit, leave_signals_to_parent
from utilities.parallel import available_cores, one_thread
from utilities.workers import may_start_processes, worker_context

# Evaluation batches are this many times as large as training batches: without gradients, there is
# room for more.
EVALUATION_BATCH_FACTOR = 2


class Loaders(NamedTuple):
    """The loaders of an experiment."""
    train: Any  # a TrainingLoader
    val: Any  # an AudioLoader
    test: Any  # an AudioLoader of --data_eval, or None


def make_loader(dataset: Any, batch_size: int | None, num_workers: int, pin_memory: bool,
                sampler: EpochSampler | None = None, batches: Iterable | None = None) -> DataLoader:
    """Make a loader of the batches of a dataset, which come in the order of the sampler.

    With several processes, this one loads its part of each batch if there is a sampler, all batches
    if `batches` are given, and its part of the dataset if there is neither.

    Args:
        dataset: a Dataset with a length; a ReplaceUnreadable makes the loader a TrainingLoader.
        batch_size: size of a batch; if there is a sampler, of all processes together.
        num_workers: worker processes, -1 for as many as there are cores.
        pin_memory: whether batches wait for a GPU in pinned memory.
        sampler: None for the order of the dataset.
        batches: instead of batch_size and sampler: an iterable of lists of keys, each a batch.
    """
    workers = count_workers(num_workers, processes.local_size())
    end_workers_at_exit()
    options: dict[str, Any] = {
        'num_workers': workers, 'pin_memory': pin_memory, 'persistent_workers': workers > 0,
        'worker_init_fn': leave_signals_to_parent,
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


def make_evaluation_loader(dataset: Any, batch_size: int, num_workers: int, pin_memory: bool
                           ) -> DataLoader:
    """Make a loader of this process's part of a dataset, in larger batches than those of training.

    Args:
        dataset: a Dataset with a length.
        batch_size: size of a training batch, of all processes together.
        num_workers: worker processes, -1 for as many as there are cores.
        pin_memory: whether batches wait for a GPU in pinned memory.
    """
    own = EVALUATION_BATCH_FACTOR * batch_size // processes.size()
    return make_loader(dataset, own, num_workers, pin_memory)


class AudioLoader(DataLoader):
    """A DataLoader whose batches have the same numbers for any number of workers.

    Without workers, this process computes on one thread, as a worker does: a sum over several
    threads rounds differently.
    """

    def __iter__(self):
        with block_stop_signals():  # a signal would end a worker that is starting
            batches = super().__iter__()
        while True:
            with contextlib.nullcontext() if self.num_workers else one_thread():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch


class TrainingLoader(AudioLoader):
    """A loader for training, of a ReplaceUnreadable. Trainer.train_epoch describes its batches.

    Attributes:
        bad_audio: counts the samples that were replaced because their audio cannot be read.
    """

    def __init__(self, dataset: ReplaceUnreadable, **options):
        super().__init__(dataset, **options)
        self.bad_audio = BadAudio()

    @property
    def recordings(self) -> Any:
        """The dataset within the ReplaceUnreadable, such as an AudiosetDataset."""
        return self.dataset.dataset  # type: ignore[attr-defined]

    @property
    def epoch_sampler(self) -> EpochSampler:
        """The sampler that orders each epoch."""
        return self.batch_sampler.sampler  # type: ignore[union-attr]

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
