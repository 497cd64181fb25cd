"""Windows of recordings: where they begin, and how they are read as inputs of a model."""
import functools
import math
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from audio.fbank import SAMPLE_RATE, fbank, fit_frames
from audio.info import inspect_audio, read_duration
from audio.reading import AudioError, WindowReader, window_seconds
from tagging.sounds import Sound
from utilities.parallel import one_thread

Source = str | Sound  # the path of a file, or samples in memory

MIN_WINDOW_SHARE = 0.1  # of a window; a last window that holds less audio is left out
ROUNDING_SECONDS = 1e-3  # by which the end of a recording may differ from its duration
BLANK = 'blank'  # marks a window that only fills up a batch, in place of an error


def window_starts(seconds: float, window_length: float, hop_seconds: float) -> np.ndarray:
    """Return where the windows of a recording begin, in seconds (windows,).

    A window begins every hop, until one reaches the end of the recording. The last one is left out
    if it would hold less than a tenth of a window, unless it is the only one.

    Args:
        seconds: the duration of the recording.
        window_length: of a window, in seconds.
        hop_seconds: from the beginning of a window to the next.
    """
    hops = (seconds - window_length) / hop_seconds - 1e-6  # a rest as small as this is rounding
    count = 1 + max(0, math.ceil(hops))
    in_the_last = seconds - (count - 1) * hop_seconds
    if count > 1 and in_the_last < MIN_WINDOW_SHARE * window_length:
        count -= 1
    return np.arange(count) * hop_seconds


class WindowPlan(NamedTuple):
    """A recording and the windows that it is cut into.

    An unreadable recording gets one window that carries its error. So errors come in the order of
    the files.

    Attributes:
        source: the recording.
        seconds: its duration.
        starts: where its windows begin, in seconds (windows,).
        error: why it cannot be read, or None.
        incomplete_from: the second at which its sound ends too early or is damaged, or None.
    """
    source: Source
    seconds: float = 0.0
    starts: np.ndarray = np.zeros(1)
    error: str | None = None
    incomplete_from: float | None = None

    @property
    def path(self) -> str:
        """The name of the recording in the results."""
        return self.source.name if isinstance(self.source, Sound) else self.source

    def key(self, start: float, seconds: float) -> 'WindowKey':
        """Return the key in Windows of the window of some seconds that begins at `start`."""
        if isinstance(self.source, Sound):  # a worker gets the samples of the window alone
            part, start_in_part = self.source.cut(start, seconds)
            return WindowKey(part, start_in_part, self.seconds)
        return WindowKey(self.source, start, self.seconds)

    def shortened(self, seconds: float, window_length: float) -> 'WindowPlan':
        """Return the plan of a recording of which only `seconds` can be read."""
        if seconds >= self.seconds:
            return self
        starts = self.starts
        if len(starts) > 1:
            left = window_starts(seconds, window_length, hop_seconds=starts[1])
            starts = left[:len(starts)]
        return self._replace(seconds=seconds, starts=starts, incomplete_from=seconds)


def plan_windows(source: Source, window: str, window_length: float, hop_seconds: float
                 ) -> WindowPlan:
    """Plan the windows of a recording. If it cannot be read, the plan has the error.

    Args:
        source: the recording.
        window: 'all' or 'first'.
        window_length: of a window, in seconds.
        hop_seconds: from the beginning of a window to the next.
    """
    try:
        if isinstance(source, Sound):
            seconds, incomplete_from = source.seconds, None
        else:
            seconds, incomplete_from = read_duration(source)
    except AudioError as error:
        return WindowPlan(source, error=str(error))
    starts = window_starts(seconds, window_length, hop_seconds)
    if window == 'first':
        starts = starts[:1]
    return WindowPlan(source, seconds, starts, incomplete_from=incomplete_from)


class WindowKey(NamedTuple):
    """What a data worker needs to read one window."""
    source: Source  # the recording, or the samples of it that the window needs
    start: float  # where the window begins in the source, in seconds
    seconds: float  # the duration of the whole recording


class Window(NamedTuple):
    """A window as a model's input.

    A file that cannot be read must not end the worker that reads it: its error is a value.

    Attributes:
        fbank: (frames, bins), not normalised; zeros after the end of the recording.
        frames: how many of the frames are real.
        seconds: the duration of the recording, shorter than planned if reading has met damage.
        error: why it cannot be read, or ''.
    """
    fbank: torch.Tensor
    frames: int
    seconds: float
    error: str


class Windows(Dataset):
    """Windows as samples of a dataset, indexed by WindowKey. None gives a blank window."""

    def __init__(self, frames: int, mel_bins: int, sample_rate: int = SAMPLE_RATE):
        self.frames, self.mel_bins, self.sample_rate = frames, mel_bins, sample_rate
        self.readable_seconds: dict[str, float] = {}  # of damaged files: reading them whole is slow

    def __getitem__(self, key: WindowKey | None) -> Window:
        if key is None:
            return self._empty(0.0, BLANK)
        seconds = key.seconds
        try:
            with one_thread():
                waveform, end = self._load(key)
                features = fbank(waveform, self.mel_bins, self.sample_rate)
            if end is not None and end < seconds - ROUNDING_SECONDS:  # a file that is damaged
                seconds = self._measure(str(key.source))
                if not seconds:
                    raise AudioError(f'the audio file {key.source} holds no samples')
        except AudioError as error:
            return self._empty(seconds, str(error))
        frames = min(len(features), self.frames)
        return Window(fit_frames(features, self.frames), frames, seconds, error='')

    def _measure(self, path):
        """Return how many seconds of a damaged file can be read."""
        if path not in self.readable_seconds:
            self.readable_seconds[path] = inspect_audio(path).seconds
        return self.readable_seconds[path]

    def _empty(self, seconds, error):
        return Window(torch.zeros(self.frames, self.mel_bins), 0, seconds, error)

    def _load(self, key):
        """Return the waveform of a window, and the second at which its file has ended, or None."""
        if isinstance(key.source, Sound):
            return key.source.waveform(key.start, self.sample_rate), None
        return self.reader.load(key.source, self.sample_rate, start=key.start,
                                seconds=window_seconds(self.frames, self.sample_rate))

    @functools.cached_property
    def reader(self) -> WindowReader:
        """The reader of files in this process. Each worker has its own."""
        return WindowReader()
