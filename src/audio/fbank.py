"""Compute log mel filterbank features (fbanks) of waveforms, as Kaldi does."""
import contextlib
import functools

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
