"""Augment training samples: mixup, SpecAugment, noise and a roll in time.

`draw_augmentation` draws the random numbers of a sample; the other functions apply them. What is
drawn is a small record of numbers, so a data worker, a GPU and a run that continues from its
checkpoint make the same sample.

To add an augmentation of the waveform, add a setting to AugmentationConf, an option of that name to
training/options.py, a number to Augmentation, its draw to draw_augmentation, and a line to
augment_waveform that applies it.
"""
from dataclasses import dataclass

import numpy as np
import torch

MIXUP_ALPHA = 10  # lambda ~ Beta(10, 10): PSLA (Gong et al., 2021), section III-C
MAX_NOISE = 0.1  # the loudest noise, in units of the normalised fbank
MAX_ROLL = 10  # frames


@dataclass(frozen=True, kw_only=True)
class AugmentationConf:
    """How strongly training samples are augmented, and their size."""
    num_mel_bins: int
    target_length: int  # frames
    mixup: float = 0.0  # probability that a sample is mixed with another
    freqm: int = 0  # frequency masks are narrower than this, in mel bins (SpecAugment, Park 2019)
    timem: int = 0  # time masks are shorter than this, in frames (SpecAugment)
    noise: bool = False  # whether to add noise and roll the sample in time


@dataclass(frozen=True)
class Augmentation:
    """The random numbers of one training sample. The defaults leave a sample as it is."""
    partner: int | None = None  # index of the mixup partner in the dataset
    lam: float = 1.0  # weight of the sample itself in the mix
    freq_mask: tuple[int, int] = (0, 0)  # first mel bin and width
    time_mask: tuple[int, int] = (0, 0)  # first frame and width
    noise: float = 0.0  # loudness
    noise_seed: int = 0  # what the noise is drawn from
    roll: int = 0  # frames


NO_AUGMENTATION = Augmentation()


def draw_augmentation(rng: np.random.Generator, conf: AugmentationConf, samples: int
                      ) -> Augmentation:
    """Draw the Augmentation of one sample.

    Args:
        rng: the sample's own generator.
        conf: what to draw.
        samples: size of the dataset that mixup partners come from.
    """
    is_mixed = rng.random() < conf.mixup
    # The draws happen in the order of these lines, which fixes what a seed means. New draws come
    # after the old ones: before them, they would change the results of every seed.
    return Augmentation(
        partner=int(rng.integers(samples)) if is_mixed else None,
        lam=float(rng.beta(MIXUP_ALPHA, MIXUP_ALPHA)) if is_mixed else 1.0,
        freq_mask=_draw_mask(rng, conf.freqm, conf.num_mel_bins),
        time_mask=_draw_mask(rng, conf.timem, conf.target_length),
        noise=rng.random() * MAX_NOISE if conf.noise else 0.0,
        noise_seed=int(rng.integers(2 ** 63)) if conf.noise else 0,
        roll=int(rng.integers(-MAX_ROLL, MAX_ROLL)) if conf.noise else 0)


def _draw_mask(rng, max_width, size):
    """Return (start, width) of a mask on an axis, distributed as torchaudio's masks are."""
    width = min(rng.random() * max_width, size)
    start = rng.random() * (size - width)
    return int(start), int(width)


def augment_waveform(waveform: torch.Tensor, augmentation: Augmentation,
                     partner: torch.Tensor | None = None) -> torch.Tensor:
    """Apply the augmentations of waveforms, now only mixup, to a waveform (samples,).

    Args:
        waveform: the sample's own.
        augmentation: the sample's.
        partner: the waveform (samples,) of its mixup partner, if it has one.
    """
    if partner is not None:
        waveform = mix(waveform, partner, augmentation.lam)
    return waveform


def mix(first: torch.Tensor, second: torch.Tensor, lam: float) -> torch.Tensor:
    """Return the mixup of two waveforms (samples,): lam * first + (1 - lam) * second.

    The second is padded with zeros or cut to the length of the first. Both lose their mean before,
    and the mix after.
    """
    first, second = first - first.mean(), second - second.mean()
    missing = len(first) - len(second)
    second = torch.nn.functional.pad(second, (0, missing))  # a negative number cuts
    mixed = lam * first + (1 - lam) * second
    return mixed - mixed.mean()


def spec_augment(fbank: torch.Tensor, augmentation: Augmentation) -> torch.Tensor:
    """Return a copy of (frames, bins) in which one band of bins and one stretch of frames are 0."""
    fbank = fbank.clone()
    start, width = augmentation.freq_mask
    fbank[:, start:start + width] = 0
    start, width = augmentation.time_mask
    fbank[start:start + width] = 0
    return fbank


def draw_noise(augmentation: Augmentation, conf: AugmentationConf) -> torch.Tensor | None:
    """Return the uniform noise (target_length, num_mel_bins) of a sample, or None without noise."""
    if not augmentation.noise:
        return None
    rng = np.random.default_rng(augmentation.noise_seed)
    shape = conf.target_length, conf.num_mel_bins
    return augmentation.noise * torch.from_numpy(rng.random(shape, dtype=np.float32))


def add_noise_and_roll(fbank: torch.Tensor, noise: torch.Tensor | None, roll: int) -> torch.Tensor:
    """Add noise (frames, bins), or none, to a normalised fbank (frames, bins), then roll it.

    A roll moves the fbank by `roll` frames. What leaves it at one end comes back at the other.
    """
    if noise is not None:
        fbank = fbank + noise
    return fbank.roll(roll, dims=0) if roll else fbank
