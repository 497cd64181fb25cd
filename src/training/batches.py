"""Batches of samples: their order in an epoch, the processes that share them, the workers."""
import atexit
import functools
import itertools
import logging
import multiprocessing
import signal
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Sampler

from audio.fbank import count_frames, fbank, window_samples
from dataloader import AudiosetDataset, SampleKey
from training import processes
from training.devices import move
from training.interrupt import STOP_SIGNALS
from utilities.parallel import available_cores, may_start_processes, worker_context

logger = logging.getLogger(__name__)


class Waveforms(NamedTuple):
    """A batch before its fbank. waveforms: (B, samples), padded; frames: how many of each one's frames are real.

    augmentations: a list; noise: (B, frames, bins), or None.
    """
    waveforms: torch.Tensor
    frames: list
    augmentations: list
    noise: torch.Tensor | None


class WaveformDataset(AudiosetDataset):
    """An AudiosetDataset that leaves the fbank, and all that follows it, to `features`, for a whole batch on a GPU.

    Its samples are (waveform (samples of target_length frames,), real frames, Augmentation, noise or None, labels).
    """

    def sample(self, index, augmentation):
        waveform = self.waveform(index, augmentation)
        waveform = waveform - waveform.mean()  # as fbank does, but over what is cut away here, too
        padding = window_samples(self.conf.target_length) - len(waveform)
        return (torch.nn.functional.pad(waveform, (0, padding)), count_frames(len(waveform)), augmentation,
                self.noise(augmentation), self.targets(index, augmentation))

    def collate(self, samples):
        """Make (Waveforms, labels (B, classes), replaced) of samples."""
        waveforms, frames, augmentations, noise, labels = map(list, zip(*samples))
        noise = None if any(one is None for one in noise) else torch.stack(noise)
        waveforms = Waveforms(torch.stack(waveforms), frames, augmentations, noise)
        return waveforms, torch.stack(labels), self._take_replaced()

    def features(self, batch, device):
        """The fbanks (B, target_length, num_mel_bins) of Waveforms, computed on a device: those of AudiosetDataset."""
        fbanks = fbank(move(batch.waveforms, device), self.conf.num_mel_bins)
        noise = [None] * len(fbanks) if batch.noise is None else move(batch.noise, device)
        return torch.stack([self.finish(one[:frames], *how)
                            for one, frames, *how in zip(fbanks, batch.frames, batch.augmentations, noise)])


class EpochSampler(Sampler):
    """The order of one epoch, from (seed, epoch) alone: a permutation, or with weights as many draws with replacement.

    Call set_epoch before iterating. weights: (samples,) or None. Yields SampleKeys.
    """

    def __init__(self, samples, seed, weights=None):
        self.samples, self.seed, self.weights = samples, seed, weights
        self.epoch = self.start = 0

    def set_epoch(self, epoch, start=0):
        """Choose the epoch that the next iteration orders and augments, and the position in its order to begin at."""
        self.epoch, self.start = epoch, start

    def __len__(self):
        return self.samples - self.start

    def __iter__(self):
        rng = np.random.default_rng((self.seed, self.epoch))
        if self.weights is None:
            order = rng.permutation(self.samples)
        else:
            order = rng.choice(self.samples, size=self.samples, p=self.weights / self.weights.sum())
        for position in range(self.start, self.samples):
            yield SampleKey(int(order[position]), self.seed, self.epoch, position)


class SharedBatches(BatchSampler):
    """The part of each batch of batch_size that falls to this process. Its part of the last one may be empty.

    An empty part holds the batch's first sample instead, for a pass through the model in step with the others; `sizes`
    says what counts.
    """

    def __init__(self, sampler, batch_size):
        super().__init__(sampler, batch_size, drop_last=False)

    def __iter__(self):
        for batch in super().__iter__():
            part = processes.own_part(len(batch))
            yield batch[part.start:part.stop] or batch[:1]

    def sizes(self):
        """For each batch to come, how many of its samples fall to this process, and how many it has."""
        for left in range(len(self.sampler), 0, -self.batch_size):
            size = min(left, self.batch_size)
            yield len(processes.own_part(size)), size


def count_workers(num_workers, processes=1):
    """Return how many processes load data: num_workers, or one per core for -1.

    The cores are shared by `processes` that train. 0 if this process must not start any.
    """
    if num_workers == 0 or not may_start_processes():
        return 0
    return max(1, available_cores() // processes) if num_workers < 0 else num_workers


def make_loader(dataset, batch_size, num_workers, pin_memory, sampler=None, batches=None):
    """Batches of a dataset in the sampler's order, or in its own. num_workers: -1 for as many as there are cores.

    Several processes share every batch of a sampler (SharedBatches), or the dataset.
    batches: an iterable of lists of indices, read a few batches ahead, which says all itself.
    """
    workers = count_workers(num_workers, processes.local_size())
    _end_workers_at_exit()
    options = {'num_workers': workers, 'pin_memory': pin_memory, 'persistent_workers': workers > 0,
               'worker_init_fn': _leave_signals_to_parent,
               'multiprocessing_context': worker_context() if workers else None}
    if batches is not None:
        options['batch_sampler'] = batches
    elif sampler is not None:
        options['batch_sampler'] = SharedBatches(sampler, batch_size)
    else:
        options |= {'sampler': processes.own_part(len(dataset)), 'batch_size': batch_size}
    if isinstance(dataset, AudiosetDataset):
        return AudioLoader(dataset, **options)
    return DataLoader(dataset, **options)


class AudioLoader(DataLoader):
    """A DataLoader of an AudiosetDataset. Yields (fbanks (B, target_length, num_mel_bins), labels (B, classes)).

    Those of a WaveformDataset are Pending. bad_audio: what was replaced meanwhile.
    """

    def __init__(self, dataset, **options):
        super().__init__(dataset, collate_fn=dataset.collate, **options)
        self.bad_audio = BadAudio()

    def __iter__(self):
        shared = isinstance(self.batch_sampler, SharedBatches)
        sizes = self.batch_sampler.sizes() if shared else itertools.repeat((1, 1))
        for (batch, labels, replaced), (own, _) in zip(super().__iter__(), sizes):
            if own:  # else it stands in for an empty part, and is another process's
                self.bad_audio.note(replaced)
            yield (Pending(self.dataset, batch) if isinstance(batch, Waveforms) else batch), labels


class Pending(NamedTuple):
    """Fbanks that are computed where they are wanted: a batch's `to`, as a tensor has it, makes the tensor."""
    dataset: WaveformDataset
    batch: Waveforms

    def to(self, device, non_blocking=True):
        """The fbanks (B, target_length, num_mel_bins) on a device."""
        return self.dataset.features(self.batch, device)


class BadAudio:
    """The training samples that others replaced, since recordings could not be read. Logs each recording once.

    count: how many in the epoch under way, in this process; reasons: one for each recording, of all epochs, as keys.
    """

    def __init__(self):
        self.count, self.reasons = 0, {}

    def total(self):
        """The count of all processes, which all call this."""
        return int(processes.gather_numbers(self.count).sum())

    def state_dict(self):
        """What a checkpoint keeps of it. All processes call this."""
        return {'count': self.total()}

    def load_state_dict(self, state):
        """Go back to a state of state_dict, of any number of processes."""
        self.count = state['count'] if processes.is_main() else 0

    def note(self, replaced):
        """replaced: for each sample the reasons, a list."""
        self.count += len(replaced)
        for reason in (reason for reasons in replaced for reason in reasons):
            if reason not in self.reasons:
                self.reasons[reason] = None
                logger.warning('%s: another sample takes its place', reason)


def _leave_signals_to_parent(_):
    """Let a worker live through signals that a terminal or Slurm sends to the whole job: the main process ends it."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@functools.cache
def _end_workers_at_exit():
    atexit.register(end_workers)  # runs before multiprocessing's own, which was registered earlier


def end_workers():
    """Kill the workers that are left: multiprocessing would send them SIGTERM at exit, and wait for ever."""
    if hasattr(signal, 'SIGCHLD'):  # not on Windows
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's own handler would call it a failure
    for worker in multiprocessing.active_children():
        if worker.daemon:
            worker.kill()
            worker.join()
