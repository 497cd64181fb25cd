"""Datafile -> (fbank, labels) samples, the order in which an epoch visits them, and the batches made of them."""
import logging
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from audio.augmentation import (
    Augmentation,
    add_noise_and_roll,
    draw_augmentation,
    draw_noise,
    mix,
    spec_augment,
)
from audio.fbank import fbank, fit_frames, normalise
from audio.reading import AudioError, load_window
from models.weights import AUDIOSET_INPUT
from utilities.datafiles import read_datafile, split_labels
from utilities.errors import DataError
from utilities.labels import read_labels
from utilities.parallel import one_thread

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
