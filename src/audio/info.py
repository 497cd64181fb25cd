"""Find out about recordings: how long they are, how loud, and whether they are whole."""
import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from audio.formats import AudioError, AudioFile, open_audio
from audio.reading import to_mono


class AudioInfo(NamedTuple):
    """The properties of a recording, found by reading all of it. The peaks may be of a part."""
    sample_rate: int  # Hz
    channels: int
    samples: int  # of each channel, as many as are really there
    peak: float  # largest absolute sample; 1 is full scale; NaN or infinite if a sample is
    mono_peak: float  # the same of the mean of the channels, which is what the model hears
    # The second at which damage begins, or at which the sound ends although its header announces
    # more. None if neither is found: a cut does not always show, since not every format says how
    # long the sound is.
    incomplete_from: float | None

    @property
    def seconds(self) -> float:
        """The duration."""
        return self.samples / self.sample_rate


def inspect_audio(file: AudioFile, name: str | os.PathLike | None = None) -> AudioInfo:
    """Read a whole recording, a block at a time, and return what there is to know about it.

    Args:
        file: a path or an open binary file.
        name: what to call the file in messages.

    Raises:
        AudioError: The file cannot be opened.
    """
    return inspect_parts(file, [(0.0, math.inf)], name)[0]


def inspect_parts(file: AudioFile, parts: Sequence[tuple[float, float]],
                  name: str | os.PathLike | None = None) -> list[AudioInfo]:
    """Read a whole recording once, and return an AudioInfo with the peaks of each of its parts.

    Args:
        file: a path or an open binary file.
        parts: at which second each begins, and how many it lasts. They may overlap.
        name: what to call the file in messages.

    Raises:
        AudioError: The file cannot be opened.
    """
    samples, peaks, mono_peaks = 0, [0.0] * len(parts), [0.0] * len(parts)
    with open_audio(file, name) as reader:
        starts, lengths = np.array(parts).T
        firsts = np.floor(starts * reader.samplerate)
        ends = np.ceil((starts + lengths) * reader.samplerate)  # may be infinite
        for block in reader.blocks():
            block_end = samples + len(block)
            for i in np.flatnonzero((firsts < block_end) & (ends > samples)):
                first, end = int(max(firsts[i], samples)), int(min(ends[i], block_end))
                part = block[first - samples:end - samples]
                peaks[i] = float(np.maximum(peaks[i], np.abs(part).max()))  # np.maximum keeps NaN
                mono_peaks[i] = float(np.maximum(mono_peaks[i], np.abs(to_mono(part)).max()))
            samples = block_end
        incomplete_from = samples / reader.samplerate if reader.is_incomplete(samples) else None
    return [AudioInfo(reader.samplerate, reader.channels, samples, peak, mono_peak, incomplete_from)
            for peak, mono_peak in zip(peaks, mono_peaks)]


class Duration(NamedTuple):
    """The real length of the sound of a recording."""
    seconds: float
    incomplete_from: float | None  # as in AudioInfo


def read_duration(file: AudioFile, name: str | os.PathLike | None = None,
                  trust_header: bool = True) -> Duration:
    """Return how long a recording is.

    Args:
        file: a path or an open binary file.
        name: what to call the file in messages.
        trust_header: believe the header if seeking is exact and the last sample that it promises is
            there; else read the whole recording. libsndfile counts the samples of WAV and its like
            by the size of the file, and a FLAC that was cut off has no last sample. But damage in
            the middle of a FLAC does not show.

    Raises:
        AudioError: None of it can be read.
    """
    if trust_header:
        with open_audio(file, name) as reader:
            if reader.seek_is_exact and reader.length and reader.has_last_sample():
                seconds = reader.length / reader.samplerate
                is_incomplete = reader.is_incomplete(reader.length)
                return Duration(seconds, seconds if is_incomplete else None)
    info = inspect_audio(file, name)
    if not info.samples:
        raise AudioError(f'the audio file {name or file} holds no samples')
    return Duration(info.seconds, info.incomplete_from)
