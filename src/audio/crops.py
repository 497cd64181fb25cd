"""Read windows of recordings that are longer than the model's input."""
import functools
import math
from collections.abc import Sequence

import torch

from audio.fbank import SAMPLE_RATE
from audio.formats import AudioError
from audio.info import inspect_audio
from audio.reading import RESAMPLER_MARGIN_SECONDS, WindowReader


def load_windows(file: str, samples: int, positions: Sequence[float], start: float = 0.0,
                 seconds: float = math.inf, sample_rate: int = SAMPLE_RATE) -> list[torch.Tensor]:
    """Read windows of a recording, or of a part of it.

    If the header says how long the recording is, reading ends at most one second after the last
    window. If the format can also seek, only the windows and a little around each are read. If the
    header does not say the length, or is wrong, all of the recording is read first, to find its
    real length.

    Args:
        file: a path.
        samples: number of samples of a window, at sample_rate.
        positions: where windows are, in ascending order: 0 is the first possible one, 1 the last.
        start: second at which the part begins.
        seconds: how long it is at most.
        sample_rate: rate of the result, in Hz.

    Returns:
        One waveform per position: the window (samples,) and up to one second after it. A part that
        is no longer than a window gives a single waveform, the whole part.

    Raises:
        AudioError: as load_waveform.
    """
    longest = samples / sample_rate + RESAMPLER_MARGIN_SECONDS

    def read(reader, length):
        """Return the windows if the recording lasts `length` seconds; [] if one ends too early."""
        end = math.floor(min(start + seconds, length) * sample_rate)
        # Samples from the beginning of the first possible window to that of the last one. A `start`
        # between two samples may be rounded up or down: there is room for both.
        room = end - math.ceil(start * sample_rate) - samples
        offsets = [0.0]
        if room > 0:
            offsets = [round(position * room) / sample_rate for position in positions]
        windows = [reader.load(file, sample_rate, start=start + offset,
                               seconds=min(seconds - offset, longest))[0] for offset in offsets]
        return [] if room > 0 and min(map(len, windows)) < samples else windows

    with WindowReader() as reader:
        promised = reader.promised_seconds(file)
        windows = [] if promised is None else read(reader, promised)
    if not windows:
        with WindowReader() as reader:
            windows = read(reader, _real_seconds(file))
    if not windows or not all(map(len, windows)):
        raise AudioError(f'the audio file {file} holds no samples after {start} s')
    return windows


@functools.lru_cache(maxsize=2 ** 14)
def _real_seconds(path):
    """Return how long a recording is. All of it is read, unless the cache still has its length."""
    return inspect_audio(path).seconds
