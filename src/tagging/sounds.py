"""Sounds in memory: arrays and tensors of samples, which are tagged like files."""
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from audio import MAX_RATE, MIN_RATE
from audio.fbank import SAMPLE_RATE
from audio.reading import AudioError, first_second_to_read, resample
from utilities.errors import DataError

# Types of integers in WAV files: (the value of silence, the distance from it to full scale).
SCALES = {'int16': (0, 2 ** 15), 'int32': (0, 2 ** 31), 'uint8': (2 ** 7, 2 ** 7)}


def is_array(value: Any) -> bool:
    """Return whether a value is an array or a tensor."""
    return isinstance(value, (np.ndarray, torch.Tensor))


@dataclass(frozen=True, eq=False)
class Sound:
    """Samples in memory.

    Attributes:
        samples: an array or a tensor (channels, samples).
        rate: sample rate in Hz.
        name: what messages call it.
    """
    samples: np.ndarray | torch.Tensor
    rate: int
    name: str

    @classmethod
    def of_array(cls, array: np.ndarray | torch.Tensor, rate: float | None, name: str) -> 'Sound':
        """Make a Sound of an array (samples,) or (channels, samples).

        Raises:
            DataError: the array is not a sound, or the rate is missing or impossible.
        """
        if rate is None:
            raise DataError('arrays do not say their sample rate: give rate=, in Hz')
        if not MIN_RATE <= rate <= MAX_RATE or rate != int(rate):
            raise DataError(f'rate is a whole number of Hz from {MIN_RATE:,} to {MAX_RATE:,}, '
                            f'got {rate}')
        kind = _type_name(array)
        if 'float' not in kind and kind not in SCALES:
            raise DataError(f'{name} has samples of type {kind}: give floats with full scale 1, or '
                            f'{", ".join(SCALES)}')
        shape = tuple(array.shape)
        if len(shape) not in (1, 2):
            raise DataError(f'{name} has shape {shape}: give (samples,) or (channels, samples), '
                            f'and several recordings as a list')
        if len(shape) == 2 and shape[0] > shape[1] > 0:
            raise DataError(f'{name} has shape {shape}, more channels than samples: give '
                            f'(channels, samples), the transpose')
        return cls(array[None] if len(shape) == 1 else array, int(rate), name)

    @property
    def seconds(self) -> float:
        """The duration.

        Raises:
            AudioError: there are no samples.
        """
        if 0 in self.samples.shape:
            raise AudioError(f'{self.name} holds no samples')
        return self.samples.shape[1] / self.rate

    def cut(self, start: float, seconds: float) -> tuple['Sound', float]:
        """Return the samples that a window needs, as floats, and where the window starts in them.

        They begin up to two seconds before the window: see first_second_to_read.
        """
        skipped = first_second_to_read(start)
        end = math.ceil((start + seconds) * self.rate)
        part = _as_floats(self.samples[:, skipped * self.rate:end])
        return replace(self, samples=part), start - skipped

    def waveform(self, start: float = 0.0, sample_rate: int = SAMPLE_RATE) -> torch.Tensor:
        """Return what load_waveform would from `start` seconds on: mono, at sample_rate Hz.

        The samples must be floats already, as `cut` returns them.

        Raises:
            AudioError: there are NaN or infinite samples.
        """
        samples = np.asarray(self.samples)
        mono = samples[0] if len(samples) == 1 else samples.mean(axis=0)
        if not np.isfinite(mono).all():
            raise AudioError(f'{self.name} holds NaN or infinite samples')
        resampled = resample(torch.from_numpy(mono), self.rate, sample_rate)
        return resampled[round(start * sample_rate):]


def _type_name(array):
    """Return the name of the type of an array's or a tensor's samples, such as int16."""
    return getattr(array.dtype, 'name', str(array.dtype)).removeprefix('torch.')


def _as_floats(samples):
    """Return a float32 copy of samples, with full scale 1."""
    silence, full_scale = SCALES.get(_type_name(samples), (0, 1))
    if isinstance(samples, torch.Tensor):
        samples = samples.detach().to('cpu', torch.float64).numpy()  # exact for every type
    scaled = (samples.astype(np.float64) - silence) / full_scale
    return scaled.astype(np.float32, order='C')
