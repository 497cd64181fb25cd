"""Recordings as waveforms: mono, at the rate of the model; how long they are, and how loud."""
import contextlib
import functools
import logging
import math
import mmap
import os
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
import torchaudio

from audio.fbank import SAMPLE_RATE, window_samples
from audio.formats import AudioError, open_audio

# Elements of torchaudio's resampling kernel past which scipy resamples: near-coprime rates would
# take gigabytes.
MAX_RESAMPLE_KERNEL = 10_000_000
RESAMPLE_ZEROS = 6  # torchaudio's lowpass_filter_width
# Times full scale. Lossy codecs overshoot it by less, 16-bit numbers stored as floats by far more.
TOO_LOUD = 4.0

logger = logging.getLogger(__name__)
_warned = mmap.mmap(-1, 1)  # of loud samples, 0 or 1: memory that forked workers share


def _mono(block):
    """Return what the model hears of a block (samples, channels): the mean of the channels."""
    return block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)


class Survey(NamedTuple):
    """What reading a recording whole has shown.

    sample_rate: in Hz; samples: of each channel, as many as are really there; peak: the largest
    absolute sample, 1 is full scale; heard: that of the mean of the channels, which the model
    hears; NaN or infinite if there are such samples. incomplete_from: the second at which the
    sound ends before its header says, or is damaged; None if it is whole.
    """
    sample_rate: int
    channels: int
    samples: int
    peak: float
    heard: float
    incomplete_from: float | None

    @property
    def seconds(self) -> float:
        """The duration."""
        return self.samples / self.sample_rate


def survey(file, name=None, start: float = 0.0, seconds: float = math.inf) -> Survey:
    """Read a recording whole, a block at a time. Raises AudioError if it cannot be opened.

    peak and heard are of what comes from `start` on, in at most so many seconds.
    """
    samples, peak, heard = 0, 0.0, 0.0
    with open_audio(file, name) as audio:
        first, end = start * audio.samplerate, (start + seconds) * audio.samplerate
        for block in audio.blocks():
            part = block[max(0, math.floor(first) - samples):
                         None if end == math.inf else max(0, math.ceil(end) - samples)]
            samples += len(block)
            if len(part):
                peak = float(np.maximum(peak, np.abs(part).max()))  # which keeps NaN
                heard = float(np.maximum(heard, np.abs(_mono(part)).max()))
        incomplete_from = samples / audio.samplerate if audio.ends_early(samples) else None
    return Survey(audio.samplerate, audio.channels, samples, peak, heard, incomplete_from)


class Length(NamedTuple):
    """How long the sound of a recording really is; incomplete_from: as of a Survey."""
    seconds: float
    incomplete_from: float | None


def measure(file, name=None, trust_header: bool = True) -> Length:
    """Return how long a recording is.

    Args:
        file: a path or an open binary file.
        name: what to call it in messages.
        trust_header: whether the header is enough if the last sample that it promises is there.
            libsndfile counts the samples of WAV and its like by the size of the file, and a FLAC
            that was cut off has no last one; but damage in the middle of a FLAC does not show.

    Raises:
        AudioError: if nothing of it can be read.
    """
    if trust_header:
        with open_audio(file, name) as audio:
            if audio.seeks and audio.has_last_sample():
                seconds = audio.frames / audio.samplerate
                return Length(seconds, seconds if audio.ends_early(audio.frames) else None)
    found = survey(file, name)
    if not found.samples:
        raise AudioError(f'the audio file {name or file} holds no samples')
    return Length(found.seconds, found.incomplete_from)


class WindowReader:
    """Read windows of recordings, one after the other.

    A recording in which seeking is not exact stays open for its next window: if they come in
    ascending order, it is decoded once, in flat memory.
    """

    def __init__(self):
        self._stack = contextlib.ExitStack()
        self._file = self._audio = None  # what is open
        self._first, self._tail = 0, np.zeros(0, np.float32)  # what was read last, mono, and where

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stack.close()

    def load(self, file, sample_rate=SAMPLE_RATE, name=None, start=0.0, seconds=None):
        """Read a window as load_waveform does.

        Returns (waveform (samples,), the second at which the recording ended in there, or None).
        The waveform is empty if it ended before.
        """
        name = name or file
        # Whole seconds begin with a sample at every rate; one before gives the resampler its past.
        skipped = max(0, math.floor(start) - 1)
        self._open(file, name, skipped)
        with self._stack as opened:
            audio, rate = self._audio, self._audio.samplerate
            count = None if seconds is None else math.ceil((start - skipped + seconds) * rate)
            mono = self._read(skipped * rate, count)
            audio.check()
            if not audio.seeks:
                self._stack, self._file = opened.pop_all(), file
        end = skipped + len(mono) / rate if count is None or len(mono) < count else None
        if len(mono) <= (start - skipped) * rate:
            return torch.zeros(0), end
        _check_samples(name, mono)
        waveform = resample(torch.from_numpy(mono), rate, sample_rate)
        return waveform[round((start - skipped) * sample_rate):], end

    def _open(self, file, name, skipped):
        """Open a file, unless it is open and was not read further than so many seconds."""
        if file != self._file or skipped * self._audio.samplerate < self._first:
            self._stack.close()
            self._audio = self._stack.enter_context(open_audio(file, name))
            self._first, self._tail = 0, np.zeros(0, np.float32)
        self._file = None  # until it was read without an error

    def _read(self, first, count):
        """Return `count` mono samples from this one on, fewer at the end; all if that is None."""
        if self._audio.seeks:
            self._audio.seek(first)
        else:
            self._audio.skip(first - self._first - len(self._tail))
            self._tail = self._tail[first - self._first:]
        if count is None:
            pieces = [np.zeros(0, np.float32), *map(_mono, self._audio.blocks())]
            new = np.concatenate(pieces)
        else:
            new = _mono(self._audio.read(max(0, count - len(self._tail))))
        self._tail = np.concatenate([self._tail, new]) if len(self._tail) else new
        self._first = first
        return self._tail[:count]


def load_waveform(file: str | os.PathLike | BinaryIO, sample_rate: int = SAMPLE_RATE, name=None,
                  start: float = 0.0, seconds: float | None = None) -> torch.Tensor:
    """Read an audio file: mono (mean of the channels), resampled, to where its sound really ends.

    Args:
        file: a path or an open binary file.
        sample_rate: of the result, in Hz.
        name: what to call the file in messages.
        start: seconds to skip.
        seconds: read no more than so much from there; None for all.
    Returns:
        (samples,) float32.
    Raises:
        AudioError: if the file is missing, not audio, empty (from there on), or holds NaN or
            infinite samples.
    """
    with WindowReader() as reader:
        waveform, _ = reader.load(file, sample_rate, name, start, seconds)
    if not len(waveform):
        after = f' after {start} s' if start else ''
        raise AudioError(f'the audio file {name or file} holds no samples{after}')
    return waveform


def load_window(file, target_frames: int, start: float = 0.0, seconds: float = math.inf
                ) -> torch.Tensor:
    """Return the waveform (samples,) of a window of target_frames from `start` on, and a second.

    What follows the window gives the resampler its future. What comes more than `seconds` after
    the start is not heard.
    """
    return load_waveform(file, start=start, seconds=min(window_seconds(target_frames), seconds))


def window_seconds(target_frames: int) -> float:
    """Return how many seconds of a recording are read for a window of target_frames."""
    return window_samples(target_frames) / SAMPLE_RATE + 1


def _check_samples(name, mono):
    """Raise AudioError for NaN or infinite samples; warn once a run of those past full scale."""
    peak = max(mono.max(), -mono.min())  # either is NaN if a sample is
    if not np.isfinite(peak):
        raise AudioError(f'the audio file {name} holds NaN or infinite samples')
    if peak > TOO_LOUD and not _warned[0]:
        _warned[0] = 1
        logger.warning('the audio file %s has samples of %.3g times full scale, as if 16-bit '
                       'numbers were stored as floats: models are trained on samples from -1 to 1 '
                       '(src/check_data.py lists such files)', name, peak)


def resample(waveform, old_rate, new_rate):
    """Resample (samples,) float32 from old_rate to new_rate, both in Hz and whole."""
    if old_rate == new_rate or not len(waveform):
        return waveform
    divisor = math.gcd(old_rate, new_rate)
    up, down = new_rate // divisor, old_rate // divisor
    if up * (down + 2 * RESAMPLE_ZEROS * max(1, down // up)) > MAX_RESAMPLE_KERNEL:
        from scipy.signal import resample_poly  # slow to import, and rarely needed
        return torch.from_numpy(resample_poly(waveform.numpy(), up, down).astype(np.float32))
    return _resampler(old_rate, new_rate)(waveform)


@functools.lru_cache(maxsize=8)
def _resampler(old_rate, new_rate):
    """Return torchaudio's resampler, its kernel built once for a pair of rates."""
    return torchaudio.transforms.Resample(old_rate, new_rate, lowpass_filter_width=RESAMPLE_ZEROS)
