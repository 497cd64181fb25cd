"""Augment training samples: mixup, SpecAugment, noise and roll. Draw first, then apply."""
from dataclasses import dataclass

import numpy as np
import torch

MIXUP_ALPHA = 10  # lambda ~ Beta(10, 10): PSLA (Gong et al., 2021), section III-C
MAX_NOISE = 0.1  # the loudest noise, in units of the normalised fbank
MAX_ROLL = 10  # frames


def mix(first, second, lam):
    """Mixup of two waveforms: lam * first + (1 - lam) * second, the second padded or cut to the first's length.

    first, second: (samples,), each loses its own mean before and the mix its mean after. Returns (samples of first,).
    """
    first, second = first - first.mean(), second - second.mean()
    second = torch.nn.functional.pad(second, (0, len(first) - len(second)))  # a negative length cuts
    mixed = lam * first + (1 - lam) * second
    return mixed - mixed.mean()


@dataclass(frozen=True)
class Augmentation:
    """The randomness of one training sample, drawn before anything is decoded; the defaults change nothing.

    partner: index of the mixup partner in the dataset, or None. lam: weight of the sample itself in the mix.
    freq_mask, time_mask: (start, width) in mel bins and frames. noise: loudness of the noise, drawn from noise_seed.
    roll: frames by which the sample is rolled.
    """
    partner: int | None = None
    lam: float = 1.0
    freq_mask: tuple[int, int] = (0, 0)
    time_mask: tuple[int, int] = (0, 0)
    noise: float = 0.0
    noise_seed: int = 0
    roll: int = 0


def draw_augmentation(rng, *, samples, mixup, freqm, timem, noise, num_mel_bins, target_frames):
    """Draw one sample's Augmentation from a numpy Generator.

    samples: size of the dataset that partners come from; mixup: probability of a mix; freqm, timem: widest masks, in
    mel bins and frames (SpecAugment, Park et al. 2019); noise: whether to add noise and roll.
    """
    mixed = rng.random() < mixup
    return Augmentation(
        partner=int(rng.integers(samples)) if mixed else None,
        lam=float(rng.beta(MIXUP_ALPHA, MIXUP_ALPHA)) if mixed else 1.0,
        freq_mask=_draw_mask(rng, freqm, num_mel_bins),
        time_mask=_draw_mask(rng, timem, target_frames),
        noise=rng.random() * MAX_NOISE if noise else 0.0,
        noise_seed=int(rng.integers(2 ** 63)) if noise else 0,
        roll=int(rng.integers(-MAX_ROLL, MAX_ROLL)) if noise else 0)


def _draw_mask(rng, max_width, size):
    """(start, width) of a mask of at most max_width on an axis of that size, distributed as torchaudio's masks are."""
    width = min(rng.random() * max_width, size)
    return int(rng.random() * (size - width)), int(width)


def spec_augment(fbank, augmentation):
    """Fill one band of mel bins and one stretch of frames of (frames, bins) with 0. Returns a new tensor."""
    fbank = fbank.clone()
    start, width = augmentation.freq_mask
    fbank[:, start:start + width] = 0
    start, width = augmentation.time_mask
    fbank[start:start + width] = 0
    return fbank


def draw_noise(augmentation, shape):
    """The uniform noise (float32 of that shape, a tensor) that an Augmentation adds to a normalised fbank."""
    rng = np.random.default_rng(augmentation.noise_seed)
    return augmentation.noise * torch.from_numpy(rng.random(shape, dtype=np.float32))


def add_noise_and_roll(fbank, noise, roll):
    """Add noise (frames, bins), or None, to a normalised (frames, bins), then roll it by so many frames."""
    if noise is not None:
        fbank = fbank + noise
    return fbank.roll(roll, dims=0) if roll else fbank
