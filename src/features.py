"""Waveform -> fbank, and the augmentation of both: functions on tensors, without any files."""
import contextlib
import functools
from dataclasses import dataclass

import numpy as np
import torch
import torchaudio

SAMPLE_RATE = 16000  # Hz; what the published weights were trained on
FRAME_LENGTH_MS = 25
FRAME_SHIFT_MS = 10
MIN_SAMPLES = SAMPLE_RATE * FRAME_LENGTH_MS // 1000  # one frame
SHIFT_SAMPLES = SAMPLE_RATE * FRAME_SHIFT_MS // 1000
FFT_SAMPLES = 512  # the next power of two, as Kaldi pads a window
PREEMPHASIS = 0.97  # Kaldi's default
FILTERS_A_PIECE = 32  # of 128 mel filters; see _fbank_tables
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


def fbank(waveform, num_mel_bins):
    """Log mel filterbank energies of 16 kHz waveforms (..., samples), as Kaldi computes them.

    25 ms Hanning windows every 10 ms, no dither; the waveform's mean is subtracted first. The same numbers as
    torchaudio.compliance.kaldi.fbank to rounding, in a third of its time, on any device, for batches too.
    Returns (..., frames, num_mel_bins), without any frames where the waveform is shorter than a window.
    """
    if waveform.shape[-1] < MIN_SAMPLES:
        return waveform.new_zeros(*waveform.shape[:-1], 0, num_mel_bins)
    window, filters = _fbank_tables(num_mel_bins, waveform.device)
    waveform = waveform - waveform.mean(dim=-1, keepdim=True)
    frames = waveform.unfold(-1, MIN_SAMPLES, SHIFT_SAMPLES)  # (..., frames, samples of a window)
    frames = frames - frames.mean(dim=-1, keepdim=True)
    padded = frames.new_zeros(*frames.shape[:-1], FFT_SAMPLES)
    # A Hanning window begins with 0, so the first sample of a frame needs no pre-emphasis.
    torch.mul(frames[..., 1:] - PREEMPHASIS * frames[..., :-1], window[1:], out=padded[..., 1:MIN_SAMPLES])
    spectrum = torch.fft.rfft(padded)
    power = spectrum.real.square() + spectrum.imag.square()  # (..., frames, FFT bins)
    with _without_tf32() if power.is_cuda else contextlib.nullcontext():
        energies = torch.cat([power[..., fft_bins] @ weights for fft_bins, weights in filters], dim=-1)
    return energies.clamp_min_(torch.finfo(torch.float32).eps).log_()


@contextlib.contextmanager
def _without_tf32():
    """Multiply float32 matrices as such on GPUs, too: TF32 keeps 10 bits, an error of 5e-4 in a logarithm."""
    matmul = torch.backends.cuda.matmul
    try:
        before, choose = torch.get_float32_matmul_precision(), torch.set_float32_matmul_precision
    except RuntimeError:  # the caller has chosen in PyTorch's newer way, and the two do not mix
        before, choose = matmul.fp32_precision, lambda precision: setattr(matmul, 'fp32_precision', precision)
    choose('highest' if before in ('highest', 'high', 'medium') else 'ieee')
    try:
        yield
    finally:
        choose(before)


@functools.lru_cache(maxsize=8)
def _fbank_tables(num_mel_bins, device):
    """The window (samples,) and the mel filters: pairs of a slice of FFT bins and weights (those bins, mel bins).

    Of the whole table of filters 1.5 % is not zero: it is cut into pieces of a few mel bins and the FFT bins they use.
    """
    window = torch.hann_window(MIN_SAMPLES, periodic=False, device=device)
    # Kaldi's defaults: from 20 Hz to half the sample rate (0.0), no warping of the vocal tract (the last three).
    table, _ = torchaudio.compliance.kaldi.get_mel_banks(num_mel_bins, FFT_SAMPLES, SAMPLE_RATE, 20.0, 0.0,
                                                         100.0, -500.0, 1.0)
    filters = []
    for piece in table.split(FILTERS_A_PIECE):
        used = piece.any(dim=0).nonzero()
        fft_bins = slice(int(used.min()), int(used.max()) + 1) if len(used) else slice(0, 1)
        filters.append((fft_bins, piece[:, fft_bins].T.contiguous().to(device)))
    return window, filters


def count_frames(samples):
    """How many frames the fbank of so many samples at 16 kHz has."""
    return 0 if samples < MIN_SAMPLES else 1 + (samples - MIN_SAMPLES) // SHIFT_SAMPLES


def fit_frames(fbank, target_frames):
    """Cut (frames, bins) to its first target_frames, or append zero frames."""
    return torch.nn.functional.pad(fbank, (0, 0, 0, target_frames - len(fbank)))  # a negative length cuts


def window_samples(target_frames):
    """How many samples at 16 kHz fill so many frames."""
    return (target_frames - 1) * SHIFT_SAMPLES + MIN_SAMPLES


def normalise(fbank, mean, std):
    """(fbank - mean) / (2 * std): about zero mean and 0.5 standard deviation, as the published weights expect."""
    return (fbank - mean) / (2 * std)


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
