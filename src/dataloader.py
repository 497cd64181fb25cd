"""Datafile -> (fbank, labels) samples, the order in which an epoch visits them, and the batches made of them."""
import atexit
import contextlib
import functools
import itertools
import logging
import multiprocessing
import signal
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler, default_collate, get_worker_info

from audio import AudioError, load_window
from distributed import World
from features import (Augmentation, add_noise_and_roll, count_frames, draw_augmentation, draw_noise,
                      fbank, fit_frames, mix, normalise, spec_augment, window_samples)
from hardware import move
from models.weights import AUDIOSET_INPUT
from utilities.interrupt import STOP_SIGNALS
from utilities.labels import DataError, read_datafile, read_labels, split_labels
from utilities.parallel import available_cores, may_start_processes, worker_context

MOST_ATTEMPTS = 20  # at a sample whose recording cannot be read, with others in its place
# The words for both modes of a dataset in scripts that were written for the published code.
TRAINING, EVALUATION = 'train', 'evaluation'
MODES = {**dict.fromkeys(('train', 'training'), TRAINING),
         **dict.fromkeys(('val', 'valid', 'validation', 'eval', 'evaluation', 'test'), EVALUATION)}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AudioConf:
    """How audio becomes samples: the keys of `audio_conf`.

    num_mel_bins, target_length (frames): size of a sample. mean, std: statistics of the fbank, of AudioSet by default.
    skip_norm: leave the fbank as it is, to compute such statistics.
    mode: 'train' augments, 'evaluation' does not; other words for them, in any case, become these
    two (see MODES).
    freqm, timem: widest SpecAugment masks, in mel bins and frames. mixup: probability of mixing a sample with another.
    noise: add noise and roll. dataset: a name for messages.
    """
    num_mel_bins: int
    target_length: int
    mode: str
    mean: float = AUDIOSET_INPUT['mean']
    std: float = AUDIOSET_INPUT['std']
    freqm: int = 0
    timem: int = 0
    mixup: float = 0.0
    noise: bool = False
    skip_norm: bool = False
    dataset: str = 'dataset'

    def __post_init__(self):
        mode = MODES.get(self.mode.lower()) if isinstance(self.mode, str) else None
        if mode is None:
            raise DataError(f'audio_conf: mode must be one of {", ".join(MODES)}, '
                            f'got {self.mode!r}')
        object.__setattr__(self, 'mode', mode)

    @classmethod
    def from_dict(cls, audio_conf):
        """Check the keys of a dict and make an AudioConf of it. Raises DataError for unknown or missing ones."""
        known = [field.name for field in fields(cls)]
        unknown = [key for key in audio_conf if key not in known]
        if unknown:
            raise DataError(f'audio_conf does not know {", ".join(map(str, unknown))}; its keys are {", ".join(known)}')
        missing = [key for key in ('num_mel_bins', 'target_length', 'mode') if key not in audio_conf]
        if missing:
            raise DataError(f'audio_conf lacks {", ".join(missing)}')
        return cls(**audio_conf)


class SampleKey(NamedTuple):
    """Which sample, and the three numbers that its randomness depends on; the sampler sends it to the workers."""
    index: int
    seed: int
    epoch: int
    position: int  # in the epoch's order, so that a clip drawn twice is augmented twice differently


class AudiosetDataset(Dataset):
    """Samples (fbank (target_length, num_mel_bins) float32, labels (classes,) float32) of a datafile.

    A recording is heard from the start of its entry on, for so many seconds, if the entry has them.
    dataset_json_file: a datafile; audio_conf: a dict with the fields of AudioConf; label_csv: a label file.
    Labels are 1 for each of a sample's classes, of which a negative has none; mixed samples carry
    lam and 1 - lam instead, added where they meet.
    In training, dataset[SampleKey] is the same wherever it is made, and made of another recording where one cannot be
    read; dataset[int] draws from torch's generator.
    Raises DataError for files that cannot be used, and AudioError on reading a missing or broken recording.
    """

    def __init__(self, dataset_json_file, audio_conf, label_csv):
        self.conf = AudioConf.from_dict(audio_conf)
        self.labels = read_labels(label_csv)
        self._class_index = self.labels.index()
        self.datafile = read_datafile(dataset_json_file, self._class_index)
        self._replaced = []  # of the batch under way

    def __len__(self):
        return len(self.datafile)

    def __getitem__(self, key):
        with one_thread():
            if self.conf.mode != TRAINING or not isinstance(key, SampleKey):
                return self.sample(_index(key), self.augmentation(key))
            failures = []
            for attempt in range(MOST_ATTEMPTS):
                try:
                    sample = self.sample(*self.draw(key, attempt))
                except AudioError as error:
                    failures.append(str(error))
                    continue
                if failures:
                    self._replaced.append(failures)
                return sample
            raise AudioError(f'{MOST_ATTEMPTS} recordings in a row could not be read, the last one: {failures[-1]}; '
                             f'src/check_data.py looks into all of them')

    def sample(self, index, augmentation):
        """The sample of a recording under an Augmentation."""
        features = self.finish(self.fbank(index, augmentation), augmentation, self.noise(augmentation))
        return features, self.targets(index, augmentation)

    def draw(self, key, attempt):
        """The index and Augmentation of a sample; after an attempt that met an unreadable recording, of another one."""
        if attempt == 0:
            return key.index, self.augmentation(key)
        rng = np.random.default_rng(np.random.SeedSequence((key.seed, key.epoch), spawn_key=(key.position, attempt)))
        return int(rng.integers(len(self))), self._draw_augmentation(rng)

    def augmentation(self, key):
        """Draw the Augmentation of a sample: from its SampleKey, or from torch's generator for a bare index."""
        if self.conf.mode != TRAINING:
            return Augmentation()
        if isinstance(key, SampleKey):
            seed = np.random.SeedSequence((key.seed, key.epoch), spawn_key=(key.position,))
        else:
            seed = int(torch.randint(2 ** 63 - 1, ()))
        return self._draw_augmentation(np.random.default_rng(seed))

    def _draw_augmentation(self, rng):
        return draw_augmentation(
            rng, samples=len(self), mixup=self.conf.mixup, freqm=self.conf.freqm, timem=self.conf.timem,
            noise=self.conf.noise, num_mel_bins=self.conf.num_mel_bins, target_frames=self.conf.target_length)

    def collate(self, samples):
        """Make a batch (fbanks, labels, replaced) of samples; replaced: for each that took another's place, why."""
        return *default_collate(samples), self._take_replaced()

    def _take_replaced(self):
        replaced, self._replaced = self._replaced, []
        return replaced

    def fbank(self, index, augmentation):
        """The fbank (frames, num_mel_bins) of a recording, mixed with its partner; not fitted, masked or normalised.

        Of a long recording, little more than the first target_length frames.
        """
        return fbank(self.waveform(index, augmentation), self.conf.num_mel_bins)

    def waveform(self, index, augmentation):
        """The waveform (samples,) of which `fbank` is made."""
        waveform = self._load(index)
        if augmentation.partner is not None:
            waveform = mix(waveform, self._load(augmentation.partner), augmentation.lam)
        return waveform

    def noise(self, augmentation):
        """The noise (target_length, num_mel_bins) of a sample, or None without."""
        shape = self.conf.target_length, self.conf.num_mel_bins
        return draw_noise(augmentation, shape) if augmentation.noise else None

    def finish(self, fbank, augmentation, noise):
        """Make the sample (target_length, num_mel_bins) of an fbank (frames, num_mel_bins), on whichever device."""
        features = spec_augment(fit_frames(fbank, self.conf.target_length), augmentation)
        if not self.conf.skip_norm:
            features = normalise(features, self.conf.mean, self.conf.std)
        return add_noise_and_roll(features, noise, augmentation.roll)

    def _load(self, index):
        start, seconds = self.datafile.window(index)
        return load_window(self.datafile.wavs[index], self.conf.target_length, start, seconds)

    def targets(self, index, augmentation=Augmentation()):
        """Labels (classes,) float32 of a sample, shared with its mixup partner's."""
        targets = self._multi_hot(index)
        if augmentation.partner is None:
            return targets
        return augmentation.lam * targets + (1 - augmentation.lam) * self._multi_hot(augmentation.partner)

    def _multi_hot(self, index):
        targets = torch.zeros(len(self.labels))
        targets[[self._class_index[mid] for mid in split_labels(self.datafile.labels[index])]] = 1
        return targets


def _index(key):
    return key.index if isinstance(key, SampleKey) else key


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
    """The part of each batch of batch_size that falls to a process of a World. Its part of the last one may be empty.

    An empty part holds the batch's first sample instead, for a pass through the model in step with the others; `sizes`
    says what counts.
    """

    def __init__(self, sampler, batch_size, world):
        super().__init__(sampler, batch_size, drop_last=False)
        self.world = world

    def __iter__(self):
        for batch in super().__iter__():
            part = self.world.part(len(batch))
            yield batch[part.start:part.stop] or batch[:1]

    def sizes(self):
        """For each batch to come, how many of its samples fall to this process, and how many it has."""
        for left in range(len(self.sampler), 0, -self.batch_size):
            size = min(left, self.batch_size)
            yield len(self.world.part(size)), size


def count_workers(num_workers, processes=1):
    """Return how many processes load data: num_workers, or one per core for -1.

    The cores are shared by `processes` that train. 0 if this process must not start any.
    """
    if num_workers == 0 or not may_start_processes():
        return 0
    return max(1, available_cores() // processes) if num_workers < 0 else num_workers


def make_loader(dataset, batch_size, num_workers, pin_memory, sampler=None, world=World(), batches=None):
    """Batches of a dataset in the sampler's order, or in its own. num_workers: -1 for as many as there are cores.

    world: with several processes, this one's part of every batch of a sampler (SharedBatches), or of the dataset.
    batches: an iterable of lists of indices, read a few batches ahead, which says all itself.
    """
    workers = count_workers(num_workers, world.local_size)
    _end_workers_at_exit()
    options = {'num_workers': workers, 'pin_memory': pin_memory, 'persistent_workers': workers > 0,
               'worker_init_fn': _leave_signals_to_parent,
               'multiprocessing_context': worker_context() if workers else None}
    if batches is not None:
        options['batch_sampler'] = batches
    elif sampler is not None:
        options['batch_sampler'] = SharedBatches(sampler, batch_size, world)
    else:
        options |= {'sampler': world.part(len(dataset)), 'batch_size': batch_size}
    if isinstance(dataset, AudiosetDataset):
        return AudioLoader(dataset, world, **options)
    return DataLoader(dataset, **options)


class AudioLoader(DataLoader):
    """A DataLoader of an AudiosetDataset. Yields (fbanks (B, target_length, num_mel_bins), labels (B, classes)).

    Those of a WaveformDataset are Pending. bad_audio: what was replaced meanwhile.
    """

    def __init__(self, dataset, world, **options):
        super().__init__(dataset, collate_fn=dataset.collate, **options)
        self.bad_audio = BadAudio(world)

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

    def __init__(self, world=World()):
        self.world, self.count, self.reasons = world, 0, {}

    def total(self):
        """The count of all processes, which all call this."""
        return int(self.world.gather_numbers(self.count).sum())

    def state_dict(self):
        """What a checkpoint keeps of it. All processes call this."""
        return {'count': self.total()}

    def load_state_dict(self, state):
        """Go back to a state of state_dict, of any number of processes."""
        self.count = state['count'] if self.world.is_main else 0

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
