"""Read recordings as waveforms: mono, and at the sample rate of the model."""
import contextlib
import functools
import logging
import math
import mmap
import os

import numpy as np
import torch
import torchaudio

from audio.fbank import SAMPLE_RATE, window_samples
from audio.formats import AudioError, AudioFile, open_audio
from audio.reader import Reader

# The largest kernel of torchaudio's resampler, in elements. Two rates that have no large common
# divisor would take gigabytes; scipy resamples them.
MAX_RESAMPLE_KERNEL = 10_000_000
# What to read before and after a window: the resampler looks at the neighbours of a sample.
RESAMPLER_MARGIN_SECONDS = 1
RESAMPLE_ZEROS = 6  # torchaudio's lowpass_filter_width
# Times full scale. Lossy codecs overshoot it by less, 16-bit numbers stored as floats by far more.
TOO_LOUD = 4.0

logger = logging.getLogger(__name__)
_warned_of_loudness = mmap.mmap(-1, 1)  # 0 or 1, in memory that forked workers share


def load_waveform(file: AudioFile, sample_rate: int = SAMPLE_RATE,
                  name: str | os.PathLike | None = None, start: float = 0.0,
                  seconds: float | None = None) -> torch.Tensor:
    """Read a recording as a mono waveform, to where its sound really ends.

    Args:
        file: a path or an open binary file.
        sample_rate: rate of the result in Hz, to which the recording is resampled.
        name: what to call the file in messages.
        start: seconds to skip.
        seconds: how much to read at most from there on; None for all.

    Returns:
        (samples,) float32, the mean of the channels. Full scale is 1.

    Raises:
        AudioError: The file is missing, is not audio, holds no samples (from `start` on), or holds
            NaN or infinite samples.
    """
    with WindowReader() as reader:
        waveform, _ = reader.load(file, sample_rate, name, start, seconds)
    if not len(waveform):
        after = f' after {start} s' if start else ''
        raise AudioError(f'the audio file {name or file} holds no samples{after}')
    return waveform


def window_seconds(target_frames: int, sample_rate: int = SAMPLE_RATE) -> float:
    """Return how many seconds to read for an fbank of `target_frames`, with the margin after it."""
    return window_samples(target_frames, sample_rate) / sample_rate + RESAMPLER_MARGIN_SECONDS


def first_second_to_read(start: float) -> int:
    """Return the second from which on samples are needed for a window that begins at `start`.

    The resampling filter looks at what comes before a sample. At a whole second, a sample begins
    whatever the rate is.
    """
    return max(0, math.floor(start) - RESAMPLER_MARGIN_SECONDS)


class WindowReader:
    """Read windows of recordings, one after the other.

    If seeking in a recording is not exact, it stays open for its next window. So if its windows
    come in ascending order, it is decoded only once, in little memory.
    """

    def __init__(self) -> None:
        self._opened = contextlib.ExitStack()  # closes the recording that is open
        self._file: AudioFile | None = None  # the recording that is open
        self._reader: Reader | None = None
        # The mono samples of the last window, and the position of the first in the recording.
        self._samples, self._first = np.zeros(0, np.float32), 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._opened.close()

    def promised_seconds(self, file: AudioFile) -> float | None:
        """Return how long the header of a recording says it is, or None if it does not say.

        The header may be wrong. The recording stays open for `load`.
        """
        reader = self._open(file, file, 0)
        self._file = file
        return reader.length / reader.samplerate if reader.length else None

    def load(self, file: AudioFile, sample_rate: int = SAMPLE_RATE,
             name: AudioFile | None = None, start: float = 0.0,
             seconds: float | None = None) -> tuple[torch.Tensor, float | None]:
        """Read a window, with the arguments of load_waveform.

        Returns:
            The waveform (samples,), empty if the recording ends before `start`; and the second at
            which the recording has ended, or None if it continues after the window.
        """
        name = name or file
        first_second = first_second_to_read(start)
        skipped = start - first_second  # seconds to cut off once they were resampled
        reader = self._open(file, name, first_second)
        rate = reader.samplerate
        count = None if seconds is None else math.ceil((skipped + seconds) * rate)
        # The file is closed at the end of this block, unless pop_all keeps it open.
        with self._opened as opened:
            mono = self._read(reader, first_second * rate, count)
            reader.raise_file_error()
            if not reader.seek_is_exact:
                self._opened, self._file = opened.pop_all(), file

        has_ended = count is None or len(mono) < count
        end = first_second + len(mono) / rate if has_ended else None
        if len(mono) <= skipped * rate:
            return torch.zeros(0), end
        waveform = resample(torch.from_numpy(mono), rate, sample_rate)
        waveform = waveform[round(skipped * sample_rate):]
        if len(waveform):
            _check_samples(name, waveform.numpy())  # not what was read before the window
        return waveform, end

    def _open(self, file, name, first_second):
        """Return the Reader of a file. Keep the open one if it can give what is at first_second.

        It can if its last window does not begin later: the samples of that window are still there.
        """
        is_open = self._reader is not None and file == self._file
        if not is_open or first_second * self._reader.samplerate < self._first:
            self._opened.close()
            self._reader = self._opened.enter_context(open_audio(file, name))
            self._samples, self._first = np.zeros(0, np.float32), 0
        self._file = None  # the caller sets it again if the recording stays open
        return self._reader

    def _read(self, reader, first, count):
        """Return `count` mono samples from sample `first` on, fewer at the end; None for all."""
        if reader.seek_is_exact:
            reader.seek(first)
            kept = self._samples[:0]
        else:
            # Go on to this window. If the last one reaches into it, the number is 0 or less, and
            # nothing is skipped.
            reader.skip(first - self._first - len(self._samples))
            kept = self._samples[first - self._first:]  # what the last window has read already

        if count is None:
            new = np.concatenate([kept[:0], *map(to_mono, reader.blocks())])
        else:
            new = to_mono(reader.read(max(0, count - len(kept))))
        self._samples = np.concatenate([kept, new]) if len(kept) else new
        self._first = first
        return self._samples[:count]


def to_mono(block: np.ndarray) -> np.ndarray:
    """Return what the model hears of a block (samples, channels): the mean of the channels."""
    return block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)


def _check_samples(name, mono):
    """Raise AudioError if samples are NaN or infinite.

    Log a warning if they are far past full scale, but only for the first such recording of a run.
    """
    peak = max(mono.max(), -mono.min())  # NaN if a sample is
    if not np.isfinite(peak):
        raise AudioError(f'the audio file {name} holds NaN or infinite samples')
    if peak > TOO_LOUD and not _warned_of_loudness[0]:
        _warned_of_loudness[0] = 1
        logger.warning('the audio file %s has samples of %.3g times full scale, as if 16-bit '
                       'numbers were stored as floats: models are trained on samples from -1 to 1 '
                       '(src/check_data.py lists such files)', name, peak)


def resample(waveform: torch.Tensor, old_rate: int, new_rate: int) -> torch.Tensor:
    """Resample a waveform (samples,) float32 from old_rate to new_rate, both in Hz."""
    if old_rate == new_rate or not len(waveform):
        return waveform
    divisor = math.gcd(old_rate, new_rate)
    up, down = new_rate // divisor, old_rate // divisor
    kernel = up * (down + 2 * RESAMPLE_ZEROS * max(1, down // up))  # elements
    if kernel > MAX_RESAMPLE_KERNEL:
        from scipy.signal import resample_poly  # slow to import, and rarely needed
        return torch.from_numpy(resample_poly(waveform.numpy(), up, down).astype(np.float32))
    return _resampler(old_rate, new_rate)(waveform)


@functools.lru_cache(maxsize=8)
def _resampler(old_rate, new_rate):
    """Return torchaudio's resampler. Its kernel is built once for a pair of rates."""
    return torchaudio.transforms.Resample(old_rate, new_rate, lowpass_filter_width=RESAMPLE_ZEROS)
