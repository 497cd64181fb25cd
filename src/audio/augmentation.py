"""Augment training samples: mixup, SpecAugment, noise, loudness, rolls in time, random windows.

`draw_augmentation` draws the random numbers of a sample; the other functions apply them. What is
drawn is a small record of numbers, so a data worker, a GPU and a run that continues from its
checkpoint make the same sample.

To add an augmentation of the waveform, add a setting to AugmentationConf, an option of that name to
training/options.py, a number to Augmentation, its draw to the end of _draw_more, and a line to
augment_waveform that applies it. Before the mixup there, the line changes only the sample's own
sound; after it, the mix. A partner of --spec_mixup does not go through augment_waveform.
"""
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torchaudio

MIXUP_ALPHA = 10  # lambda ~ Beta(10, 10): PSLA (Gong et al., 2021), section III-C
MAX_NOISE = 0.1  # the loudest noise, in units of the normalised fbank
MAX_ROLL = 10  # frames
CROPS = 'first', 'random'  # windows of recordings that are longer than the input
SNR_DB = 3.0, 30.0  # lowest and highest signal-to-noise ratio with --noise_dir, in dB


@dataclass(frozen=True, kw_only=True)
class AugmentationConf:
    """How strongly training samples are augmented, and their size.

    Each field with a default is an option of run.py of the same name; experiment_data.make_dataset
    copies them. draw_augmentation reads them.
    """
    num_mel_bins: int
    target_length: int  # frames
    mixup: float = 0.0  # probability that a sample is mixed with another
    freqm: int = 0  # frequency masks are narrower than this, in mel bins (SpecAugment, Park 2019)
    timem: int = 0  # time masks are shorter than this, in frames (SpecAugment)
    noise: bool = False  # whether to add noise and roll the sample in time
    freq_masks: int = 1  # how many frequency masks
    time_masks: int = 1  # how many time masks
    gain_db: float = 0.0  # largest change of the loudness, in dB
    shift_frames: int = 0  # farthest roll in time, in frames, beside that of `noise`
    spec_mixup: float = 0.0  # probability that a sample that is not mixed yet is mixed as an fbank
    crop: str = 'first'  # which window of a longer recording: one of CROPS
    noise_dir: str | None = None  # folder of recordings of background noise
    snr_db: tuple[float, float] | None = None  # lowest and highest ratio; None for SNR_DB


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
    gain_db: float = 0.0
    shift: int = 0  # a further roll, in frames
    more_freq_masks: tuple[tuple[int, int], ...] = ()  # after the first, like freq_mask
    more_time_masks: tuple[tuple[int, int], ...] = ()
    mixes_fbanks: bool = False  # mix with the partner's fbank instead of its waveform
    crop: float | None = None  # from 0, the first window, to 1, the last; None: the beginning
    partner_crop: float | None = None  # the same, of the partner
    background: float | None = None  # from 0, the first recording of noise_dir, to 1; or None
    background_crop: float = 0.0  # which window of it, like crop
    snr_db: float = 0.0  # how much louder the sample is than the background


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
    drawn = Augmentation(
        partner=int(rng.integers(samples)) if is_mixed else None,
        lam=float(rng.beta(MIXUP_ALPHA, MIXUP_ALPHA)) if is_mixed else 1.0,
        freq_mask=_draw_mask(rng, conf.freqm, conf.num_mel_bins),
        time_mask=_draw_mask(rng, conf.timem, conf.target_length),
        noise=rng.random() * MAX_NOISE if conf.noise else 0.0,
        noise_seed=int(rng.integers(2 ** 63)) if conf.noise else 0,
        roll=int(rng.integers(-MAX_ROLL, MAX_ROLL)) if conf.noise else 0)
    return replace(drawn, **_draw_more(rng, conf, samples, is_mixed))


def _draw_more(rng, conf, samples, is_mixed) -> dict[str, Any]:
    """Draw the other fields of an Augmentation. A setting that is off draws nothing."""
    more: dict[str, Any] = {}
    if conf.gain_db:
        more['gain_db'] = float(rng.uniform(-conf.gain_db, conf.gain_db))
    if conf.shift_frames:
        more['shift'] = int(rng.integers(-conf.shift_frames, conf.shift_frames, endpoint=True))
    more['more_freq_masks'] = tuple(_draw_mask(rng, conf.freqm, conf.num_mel_bins)
                                    for _ in range(conf.freq_masks - 1))
    more['more_time_masks'] = tuple(_draw_mask(rng, conf.timem, conf.target_length)
                                    for _ in range(conf.time_masks - 1))
    if conf.spec_mixup and rng.random() < conf.spec_mixup and not is_mixed:
        more |= {'mixes_fbanks': True, 'partner': int(rng.integers(samples)),
                 'lam': float(rng.beta(MIXUP_ALPHA, MIXUP_ALPHA))}
    if conf.crop == 'random':
        more |= {'crop': rng.random(), 'partner_crop': rng.random()}
    if conf.noise_dir:
        more |= {'background': rng.random(), 'background_crop': rng.random(),
                 'snr_db': float(rng.uniform(*(conf.snr_db or SNR_DB)))}
    return more


def _draw_mask(rng, max_width, size):
    """Return (start, width) of a mask on an axis, distributed as torchaudio's masks are."""
    width = min(rng.random() * max_width, size)
    start = rng.random() * (size - width)
    return int(start), int(width)


def augment_waveform(waveform: torch.Tensor, augmentation: Augmentation,
                     partner: torch.Tensor | None = None,
                     background: torch.Tensor | None = None) -> torch.Tensor:
    """Apply the augmentations of waveforms to a waveform (samples,).

    Args:
        waveform: the sample's own.
        augmentation: the sample's.
        partner: the waveform (samples,) of its mixup partner, if it has one.
        background: a waveform of noise, if it gets any.
    """
    if partner is not None:
        waveform = mix(waveform, partner, augmentation.lam)
    if background is not None:
        waveform = add_background(waveform, background, augmentation.snr_db)
    if augmentation.gain_db:
        waveform = waveform * 10 ** (augmentation.gain_db / 20)
    return waveform


def mix(first: torch.Tensor, second: torch.Tensor, lam: float) -> torch.Tensor:
    """Return the mixup of two waveforms (samples,): lam * first + (1 - lam) * second.

    The mean of each waveform is subtracted first. Then the second is padded with zeros or cut to
    the length of the first. At the end, the mean of the mix is subtracted.
    """
    first, second = first - first.mean(), second - second.mean()
    missing = len(first) - len(second)
    second = torch.nn.functional.pad(second, (0, missing))  # a negative number cuts
    mixed = lam * first + (1 - lam) * second
    return mixed - mixed.mean()


def add_background(waveform: torch.Tensor, background: torch.Tensor, snr_db: float
                   ) -> torch.Tensor:
    """Add noise to a waveform (samples,), as loud as a signal-to-noise ratio says.

    Args:
        waveform: the signal. If it is silent, no noise is added.
        background: the noise (any number of samples,). It is repeated if it is too short.
        snr_db: power of the signal over that of the noise, both without their mean, in dB.
    """
    times = math.ceil(len(waveform) / len(background))
    background = background.repeat(times)[:len(waveform)]
    background = background - background.mean()
    if not background.any():
        return waveform
    waveform = waveform - waveform.mean()
    return torchaudio.functional.add_noise(waveform, background, torch.tensor(snr_db))


def mix_fbanks(fbank: torch.Tensor, partner: torch.Tensor, lam: float) -> torch.Tensor:
    """Return the mixup of two fbanks (frames, bins): lam * fbank + (1 - lam) * partner.

    The weights add up to 1, so it makes no difference whether fbanks are normalised before or after
    mixing.
    """
    return lam * fbank + (1 - lam) * partner


def spec_augment(fbank: torch.Tensor, augmentation: Augmentation) -> torch.Tensor:
    """Return a copy of (frames, bins) in which bands of bins and stretches of frames are 0."""
    fbank = fbank.clone()
    for start, width in (augmentation.freq_mask, *augmentation.more_freq_masks):
        fbank[:, start:start + width] = 0
    for start, width in (augmentation.time_mask, *augmentation.more_time_masks):
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
