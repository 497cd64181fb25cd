"""The samples of a datafile: each recording becomes (fbank, labels).

    datafile -> recording -> waveform   AudiosetDataset.make_waveform, with the augmentation of
                                        waveforms (audio.augmentation.augment_waveform)
             -> fbank                   audio.fbank.fbank
             -> mixup of fbanks, SpecAugment, normalise, --noise, roll: the model's input
                                        finish_fbank

With --features gpu, training/gpu_fbanks.py does the last two steps, a batch at a time.
"""
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from audio.augmentation import (
    CROPS,
    NO_AUGMENTATION,
    Augmentation,
    AugmentationConf,
    add_noise_and_roll,
    augment_waveform,
    draw_augmentation,
    draw_noise,
    mix_fbanks,
    spec_augment,
)
from audio.crops import load_windows
from audio.fbank import SAMPLE_RATE, fbank, fit_frames, normalise, window_samples
from audio.reading import load_waveform, window_seconds
from models.published_data import AUDIOSET_INPUT
from utilities.backgrounds import Backgrounds
from utilities.datafiles import read_datafile, split_labels
from utilities.errors import DataError
from utilities.labels import read_labels

# Words for the two modes of a dataset. Scripts for the published code use several.
TRAINING, EVALUATION = 'train', 'evaluation'
MODES = {**dict.fromkeys(('train', 'training'), TRAINING),
         **dict.fromkeys(('val', 'valid', 'validation', 'eval', 'evaluation', 'test'), EVALUATION)}


@dataclass(frozen=True, kw_only=True)
class AudioConf(AugmentationConf):
    """How audio becomes samples: the keys of `audio_conf`, those of AugmentationConf included."""
    mode: str  # 'train' augments, 'evaluation' does not; other words of MODES become one of these
    mean: float = AUDIOSET_INPUT['mean']  # of the fbank
    std: float = AUDIOSET_INPUT['std']
    sample_rate: int = SAMPLE_RATE  # Hz, to which recordings are resampled
    mask_padding: bool = False  # give the number of real frames as a third item of each sample
    skip_norm: bool = False  # do not normalise the fbank; scripts for the published code set it
    dataset: str = 'dataset'  # of scripts for the published code; not used

    def __post_init__(self) -> None:
        mode = MODES.get(self.mode.lower()) if isinstance(self.mode, str) else None
        if mode is None:
            raise DataError(f'audio_conf: mode must be one of {", ".join(MODES)}, '
                            f'got {self.mode!r}')
        object.__setattr__(self, 'mode', mode)
        if self.crop not in CROPS:
            raise DataError(f'audio_conf: crop must be one of {", ".join(CROPS)}, got '
                            f'{self.crop!r}')

    @classmethod
    def from_dict(cls, audio_conf: Mapping[str, Any]) -> 'AudioConf':
        """Make an AudioConf of a dict. Raises DataError for keys that are unknown or missing."""
        known = [field.name for field in fields(cls)]
        unknown = [key for key in audio_conf if key not in known]
        if unknown:
            raise DataError(f'audio_conf does not know {", ".join(map(str, unknown))}; its keys '
                            f'are {", ".join(known)}')
        needed = ('num_mel_bins', 'target_length', 'mode')
        missing = [key for key in needed if key not in audio_conf]
        if missing:
            raise DataError(f'audio_conf lacks {", ".join(missing)}')
        return cls(**audio_conf)


class SampleKey(NamedTuple):
    """A training sample: its index, and the numbers that seed its augmentation.

    The sampler sends keys to the data workers.
    """
    index: int  # type: ignore[assignment]  # in the datafile; hides a method of tuple
    seed: int  # of the run
    epoch: int
    position: int  # in the order of the epoch: a clip drawn twice is augmented in two ways

    def make_generator(self, *more: int) -> np.random.Generator:
        """Return the random generator of the sample; with further numbers, an independent one."""
        seed = np.random.SeedSequence((self.seed, self.epoch), spawn_key=(self.position, *more))
        return np.random.default_rng(seed)


class AudiosetDataset(Dataset):
    """The samples of a datafile.

    A sample is (fbank (target_length, num_mel_bins), labels (classes,)), both float32. Labels are 1
    for each class of the recording and 0 elsewhere. A mixed sample has the labels of both of its
    recordings, times lam and 1 - lam, added up. With mask_padding, a third item says how many
    frames are real; the others are padding.

    In training, dataset[SampleKey] is the same wherever it is computed. dataset[int] draws its
    augmentation from torch's random generator.

    Args:
        dataset_json_file: a datafile. If an entry has a start and a length, only that part of its
            recording is heard.
        audio_conf: a dict with the fields of AudioConf.
        label_csv: a label file.

    Raises:
        DataError: One of the files cannot be used.
        AudioError: On access to a sample: its recording is missing or cannot be read.
    """

    collate = staticmethod(default_collate)  # makes a batch (fbanks, labels) of a list of samples

    def __init__(self, dataset_json_file: str | Path, audio_conf: Mapping[str, Any],
                 label_csv: str | Path):
        self.conf = AudioConf.from_dict(audio_conf)
        self.labels = read_labels(label_csv)
        self._class_index = self.labels.index()
        self.datafile = read_datafile(dataset_json_file, self._class_index)
        self._backgrounds: Backgrounds | None = None
        if self.conf.noise_dir and self.conf.mode == TRAINING:
            self._backgrounds = Backgrounds(self.conf.noise_dir, self.conf.sample_rate)

    def __len__(self) -> int:
        return len(self.datafile)

    def __getitem__(self, key: int | SampleKey) -> tuple:
        index = key.index if isinstance(key, SampleKey) else key
        return self.make_sample(index, self.draw_augmentation(key))

    def draw_augmentation(self, key: int | SampleKey) -> Augmentation:
        """Draw the Augmentation of a sample. In evaluation, it changes nothing."""
        if self.conf.mode == EVALUATION:
            return NO_AUGMENTATION
        if isinstance(key, SampleKey):
            rng = key.make_generator()
        else:
            rng = np.random.default_rng(int(torch.randint(2 ** 63 - 1, ())))
        return draw_augmentation(rng, self.conf, len(self))

    def make_sample(self, index: int, augmentation: Augmentation) -> tuple:
        """Return the sample of one recording."""
        partner = None
        if augmentation.mixes_fbanks:
            partner = self._load(augmentation.partner, augmentation.partner_crop)
        waveform = self.make_waveform(index, augmentation)
        return self.finish_sample(index, waveform, augmentation, partner)

    def make_windows(self, index: int, count: int) -> list[tuple]:
        """Return samples of windows that are spread evenly over a recording, without augmentation.

        Args:
            index: index of the recording in the datafile.
            count: number of windows. A recording that is not longer than the input has only one.
        """
        waveforms = self._load_windows(index, np.linspace(0, 1, count).tolist())
        return [self.finish_sample(index, waveform) for waveform in waveforms]

    def finish_sample(self, index: int, waveform: torch.Tensor,
                      augmentation: Augmentation = NO_AUGMENTATION,
                      partner: torch.Tensor | None = None) -> tuple:
        """Return the sample of a waveform.

        Args:
            index: index of the recording in the datafile.
            waveform: (samples,), as make_waveform returns it.
            augmentation: the sample's Augmentation.
            partner: the waveform (samples,) whose fbank is mixed with that of the sample, or None.
        """
        bins, rate = self.conf.num_mel_bins, self.conf.sample_rate
        features, other = fbank(waveform, bins, rate), None
        if partner is not None:
            other = fbank(partner, bins, rate)
        inputs = finish_fbank(features, self.conf, augmentation,
                              draw_noise(augmentation, self.conf), other)
        frames = max(len(features), 0 if other is None else len(other))
        return self.with_labels(inputs, index, augmentation, frames)

    def with_labels(self, inputs: Any, index: int, augmentation: Augmentation, frames: int
                    ) -> tuple:
        """Return the sample (inputs, labels), or with mask_padding (inputs, labels, real frames).

        Args:
            inputs: what the model gets of the sample.
            index: index of the recording in the datafile.
            augmentation: the sample's Augmentation.
            frames: how many the fbank had before it was cut or padded. A mix of waveforms is as
                long as the first of them, a mix of fbanks as long as the longer one. A recording
                shorter than a frame counts as one real frame.
        """
        sample = inputs, self.make_targets(index, augmentation)
        if not self.conf.mask_padding:
            return sample
        return *sample, max(1, min(frames, self.conf.target_length))

    @property
    def _window_samples(self):
        """Return how many audio samples the model's input is long."""
        return window_samples(self.conf.target_length, self.conf.sample_rate)

    def make_waveform(self, index: int, augmentation: Augmentation) -> torch.Tensor:
        """Return the waveform (samples,) of a recording after augment_waveform."""
        waveform, partner, background = self._load(index, augmentation.crop), None, None
        if augmentation.partner is not None and not augmentation.mixes_fbanks:
            partner = self._load(augmentation.partner, augmentation.partner_crop)
        if self._backgrounds and augmentation.background is not None:
            # The SNR refers to the part that the model hears.
            waveform = waveform[:self._window_samples]
            background = self._backgrounds.load(augmentation.background,
                                                augmentation.background_crop, len(waveform))
        return augment_waveform(waveform, augmentation, partner, background)

    def _load(self, index, crop=None):
        """Return the waveform of a recording: its beginning, or the window that `crop` names."""
        start, seconds = self.datafile.part(index)
        if crop is not None:
            return self._load_windows(index, [crop])[0][:self._window_samples]
        rate = self.conf.sample_rate
        seconds = min(seconds, window_seconds(self.conf.target_length, rate))
        return load_waveform(self.datafile.wavs[index], rate, start=start, seconds=seconds)

    def _load_windows(self, index, positions):
        """Return the waveforms of windows of a recording: see load_windows."""
        return load_windows(self.datafile.wavs[index], self._window_samples, positions,
                            *self.datafile.part(index), self.conf.sample_rate)

    def make_targets(self, index: int, augmentation: Augmentation = NO_AUGMENTATION
                     ) -> torch.Tensor:
        """Return the labels (classes,) of a sample, mixed with those of its partner."""
        targets = self._multi_hot(index)
        if augmentation.partner is not None:
            partner = self._multi_hot(augmentation.partner)
            targets = augmentation.lam * targets + (1 - augmentation.lam) * partner
        return targets

    def all_targets(self) -> np.ndarray:
        """Return the labels (samples, classes) of all samples, without mixup."""
        return np.stack([self.make_targets(index).numpy() for index in range(len(self))])

    def count_labels(self) -> np.ndarray:
        """Return how many samples have each class (classes,), without mixup."""
        counts = np.zeros(len(self.labels), np.int64)
        for index in range(len(self)):
            counts[self._classes(index)] += 1
        return counts

    def _multi_hot(self, index):
        targets = torch.zeros(len(self.labels))
        targets[self._classes(index)] = 1
        return targets

    def _classes(self, index):
        """Return the classes of a sample, as numbers."""
        return [self._class_index[mid] for mid in split_labels(self.datafile.labels[index])]


def finish_fbank(features: torch.Tensor, conf: AudioConf, augmentation: Augmentation,
                 noise: torch.Tensor | None, partner: torch.Tensor | None = None) -> torch.Tensor:
    """Turn the fbank of a recording into the input of the model, on whichever device it is.

    Args:
        features: fbank (frames, num_mel_bins).
        conf: the AudioConf of the dataset.
        augmentation: the sample's Augmentation.
        noise: noise to add, (target_length, num_mel_bins), or None.
        partner: fbank (its frames, num_mel_bins) to mix with, or None.

    Returns:
        (target_length, num_mel_bins).
    """
    features = fit_frames(features, conf.target_length)
    if partner is not None:
        partner = fit_frames(partner, conf.target_length)
        features = mix_fbanks(features, partner, augmentation.lam)
    features = spec_augment(features, augmentation)
    if not conf.skip_norm:
        features = normalise(features, conf.mean, conf.std)
    return add_noise_and_roll(features, noise, augmentation.roll + augmentation.shift)
