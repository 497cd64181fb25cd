"""Compute log mel filterbank features (fbanks) of waveforms, as Kaldi does."""
import contextlib
import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torchaudio

from models.published_data import SAMPLE_RATE

FRAME_LENGTH_MS = 25
FRAME_SHIFT_MS = 10
PREEMPHASIS = 0.97  # Kaldi's default
LOWEST_HERTZ, HIGHEST_HERTZ = 20.0, 0.0  # Kaldi's defaults; 0 stands for half the sample rate
VOCAL_TRACT = (100.0, -500.0, 1.0)  # no warping of the frequency axis, Kaldi's default
FILTERS_A_PIECE = 32  # see fbank_tables


class FrameSize(NamedTuple):
    """The samples of a frame of an fbank.

    Attributes:
        length: length of the window.
        shift: from the beginning of a frame to that of the next.
        fft: length of the Fourier transform. Kaldi pads a window to the next power of two.
    """
    length: int
    shift: int
    fft: int


def frame_size(sample_rate: int) -> FrameSize:
    """Return the samples of a frame at a sample rate in Hz, rounded down, as in torchaudio."""
    length = sample_rate * FRAME_LENGTH_MS // 1000
    return FrameSize(length, sample_rate * FRAME_SHIFT_MS // 1000, 1 << (length - 1).bit_length())


class FbankTables(NamedTuple):
    """What an fbank is computed with.

    Attributes:
        size: the FrameSize.
        window: (size.length,).
        filters: the mel filters in pieces. Each has the slice of FFT bins that it uses, and its
            weights (those FFT bins, mel bins).
    """
    size: FrameSize
    window: torch.Tensor
    filters: list[tuple[slice, torch.Tensor]]


def fbank(waveform: torch.Tensor, num_mel_bins: int, sample_rate: int = SAMPLE_RATE
          ) -> torch.Tensor:
    """Return the log mel filterbank energies of waveforms, as Kaldi computes them.

    Hanning windows of 25 ms begin every 10 ms. There is no dither. The mel bins reach from 20 Hz to
    half the sample rate. The mean of the whole waveform is subtracted first. The numbers are those
    of torchaudio.compliance.kaldi.fbank, up to rounding. This function takes a third of its time,
    and works on any device and for batches.

    Args:
        waveform: (..., samples).
        num_mel_bins: number of mel filters.
        sample_rate: rate of the waveform, in Hz.

    Returns:
        (..., frames, num_mel_bins). There are no frames if the waveform is shorter than a window.
    """
    if waveform.shape[-1] < frame_size(sample_rate).length:
        return waveform.new_zeros(*waveform.shape[:-1], 0, num_mel_bins)
    return compute_fbank(waveform, fbank_tables(num_mel_bins, waveform.device, sample_rate))


def compute_fbank(waveform: torch.Tensor, tables: FbankTables) -> torch.Tensor:
    """Return the fbank of waveforms that are at least one frame long.

    Args:
        waveform: (..., samples).
        tables: what fbank_tables returns. torch.export can trace this function, but not the
            making of tables.

    Returns:
        (..., frames, mel bins).
    """
    size, window, filters = tables
    waveform = waveform - waveform.mean(dim=-1, keepdim=True)
    frames = waveform.unfold(-1, size.length, size.shift)  # (..., frames, size.length)
    frames = frames - frames.mean(dim=-1, keepdim=True)

    # A Hanning window begins with 0, so the first sample of a frame needs no pre-emphasis. The
    # pre-emphasised frames get no variable, so that their memory is free for what follows: else
    # this takes 1.5 times as long.
    padded = frames.new_zeros(*frames.shape[:-1], size.fft)
    torch.mul(frames[..., 1:] - PREEMPHASIS * frames[..., :-1], window[1:],
              out=padded[..., 1:size.length])

    spectrum = torch.fft.rfft(padded)
    power = spectrum.real.square() + spectrum.imag.square()  # (..., frames, FFT bins)
    with _without_tf32() if power.is_cuda else contextlib.nullcontext():
        energies = torch.cat([power[..., fft_bins] @ weights for fft_bins, weights in filters],
                             dim=-1)  # (..., frames, num_mel_bins)
    return energies.clamp_min_(torch.finfo(torch.float32).eps).log_()


@contextlib.contextmanager
def _without_tf32() -> Iterator[None]:
    """Multiply float32 matrices in full precision on a GPU, whatever the caller has chosen.

    TF32 keeps 10 bits of a number. In a logarithm, that would be an error of 5e-4.
    """
    matmul = torch.backends.cuda.matmul
    # PyTorch has two settings for this, and refuses the older one if the newer one was used.
    is_newer = False
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:
        is_newer, before = True, matmul.fp32_precision

    def choose(precision: str) -> None:
        if is_newer:
            matmul.fp32_precision = precision
        else:
            torch.set_float32_matmul_precision(precision)

    choose('ieee' if is_newer else 'highest')
    try:
        yield
    finally:
        choose(before)


@functools.lru_cache(maxsize=8)
def fbank_tables(num_mel_bins: int, device: torch.device, sample_rate: int = SAMPLE_RATE
                 ) -> FbankTables:
    """Return the window and the mel filters of an fbank.

    Only 1.5 % of the whole table of filters is not zero. So it is cut into pieces of a few mel
    bins, and each piece is only as wide as the FFT bins that its filters use.
    """
    size = frame_size(sample_rate)
    window = torch.hann_window(size.length, periodic=False, device=device)
    table, _ = torchaudio.compliance.kaldi.get_mel_banks(
        num_mel_bins, size.fft, sample_rate, LOWEST_HERTZ, HIGHEST_HERTZ, *VOCAL_TRACT)
    filters = []
    for piece in table.split(FILTERS_A_PIECE):  # (mel bins, FFT bins)
        used = piece.any(dim=0).nonzero()
        first, end = (int(used.min()), int(used.max()) + 1) if len(used) else (0, 1)
        filters.append((slice(first, end), piece[:, first:end].T.contiguous().to(device)))
    return FbankTables(size, window, filters)


def count_frames(samples: int, sample_rate: int = SAMPLE_RATE) -> int:
    """Return the number of frames of an fbank, given the samples of the waveform."""
    size = frame_size(sample_rate)
    return 0 if samples < size.length else 1 + (samples - size.length) // size.shift


def window_samples(target_frames: int, sample_rate: int = SAMPLE_RATE) -> int:
    """Return the number of samples that give `target_frames` frames."""
    size = frame_size(sample_rate)
    return (target_frames - 1) * size.shift + size.length


def frames_to_seconds(frames: int, sample_rate: int = SAMPLE_RATE) -> float:
    """Return how many seconds a number of frames take: that number times the frame shift.

    The shift is 10 ms, rounded down to whole samples at this rate.
    """
    return frames * frame_size(sample_rate).shift / sample_rate


def fit_frames(fbank: torch.Tensor, target_frames: int) -> torch.Tensor:
    """Cut an fbank (frames, bins) to its first target_frames, or append frames of zeros."""
    missing = target_frames - len(fbank)
    return torch.nn.functional.pad(fbank, (0, 0, 0, missing))  # a negative number cuts


def normalise(fbank: torch.Tensor, mean: float, std: float) -> torch.Tensor:
    """Return (fbank - mean) / (2 * std).

    The result has a mean of about 0 and a standard deviation of about 0.5, as the published
    weights expect.
    """
    return (fbank - mean) / (2 * std)
