"""Sounds that are not files: arrays of samples, and what comes in on standard input."""
import contextlib
import math
import os
import select
import stat
import struct
import sys
from dataclasses import dataclass, replace

import numpy as np
import soundfile
import torch

from audio.fbank import SAMPLE_RATE
from audio.formats import MAX_RATE, MIN_RATE
from audio.reading import AudioError, resample
from utilities.errors import DataError

try:
    import fcntl
    import termios
except ImportError:  # Windows
    fcntl = None

# Integers as they are in WAV files: (what is silence, what is full scale).
SCALES = {'int16': (0, 2 ** 15), 'int32': (0, 2 ** 31), 'uint8': (2 ** 7, 2 ** 7)}
MARGIN = 0.25  # seconds that are read past a window, more than the longest resampling filter
ROUNDING = 1e-3  # of a sample, when seconds are counted in samples
BLOCK = 0.25  # seconds that are read at once, at most
SAMPLE_BYTES = {'PCM_U8': 1, 'PCM_16': 2, 'PCM_24': 3, 'PCM_32': 4, 'FLOAT': 4, 'DOUBLE': 8,
                'ULAW': 1, 'ALAW': 1}  # of the codings that have a fixed size
# A writer that does not know the length of a WAV file leaves 0, or a number near the limit.
UNKNOWN_BYTES = 2 ** 31 - 2 ** 16


def is_array(value) -> bool:
    """Return whether a value is an array or a tensor."""
    return isinstance(value, (np.ndarray, torch.Tensor))


@dataclass(frozen=True, eq=False)
class Sound:
    """Samples in memory. They are read as a file with the same samples would be.

    samples: an array or a tensor (channels, samples); name: what to call it in messages.
    """
    samples: np.ndarray | torch.Tensor
    rate: int
    name: str

    @classmethod
    def of_array(cls, array, rate, name) -> 'Sound':
        """Check an array (samples,) or (channels, samples); raise DataError if it is no sound."""
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
            raise DataError(f'{name} has shape {shape}: give (samples,) or (channels, samples), and '
                            f'several recordings as a list')
        if len(shape) == 2 and shape[0] > shape[1] > 0:
            raise DataError(f'{name} has shape {shape}, more channels than samples: give (channels, '
                            f'samples), the transpose')
        return cls(array[None] if len(shape) == 1 else array, int(rate), name)

    @property
    def seconds(self) -> float:
        """The duration. Raises AudioError if there are no samples."""
        if 0 in self.samples.shape:
            raise AudioError(f'{self.name} holds no samples')
        return self.samples.shape[1] / self.rate

    def cut(self, start: float, seconds: float) -> tuple['Sound', float]:
        """Return the part that `load_window` would read, as floats, and where in it `start` is."""
        # Whole seconds begin with a sample at every rate; the first is the resampling filter's past.
        skipped = max(0, math.floor(start) - 1)
        end = math.ceil((start + seconds) * self.rate)
        part = _as_floats(self.samples[:, skipped * self.rate:end])
        return replace(self, samples=part), start - skipped

    def waveform(self, start: float = 0.0) -> torch.Tensor:
        """Return floats from `start` seconds on as `load_waveform` does: mono, at 16 kHz.

        Raises AudioError if they hold NaN or infinite samples.
        """
        mono = self.samples[0] if len(self.samples) == 1 else self.samples.mean(axis=0)
        if not np.isfinite(mono).all():
            raise AudioError(f'{self.name} holds NaN or infinite samples')
        return resample(torch.from_numpy(mono), self.rate, SAMPLE_RATE)[round(start * SAMPLE_RATE):]


def _type_name(array):
    """Return the name of the type of an array's or a tensor's samples, such as int16."""
    return getattr(array.dtype, 'name', str(array.dtype)).removeprefix('torch.')


def _as_floats(samples):
    """Return a float32 copy of samples, with full scale 1."""
    silence, full_scale = SCALES.get(_type_name(samples), (0, 1))
    if isinstance(samples, torch.Tensor):
        samples = samples.detach().to('cpu', torch.float64).numpy()  # exact for every type
    return ((samples.astype(np.float64) - silence) / full_scale).astype(np.float32, order='C')


class Stream:
    """The sound that comes in on standard input.

    It is a WAV file, also one of unknown length, as ffmpeg writes it to a pipe, or raw samples (16
    bits, little endian, mono). Only what the next window needs is kept of it.
    """
    name = '-'  # the path in the results

    def __init__(self, raw_rate: int | None = None):
        """raw_rate: sample rate of raw samples in Hz, or None for a WAV file."""
        if sys.stdin is None or sys.stdin.isatty():
            raise DataError('standard input is a terminal: pipe a sound into the program')
        self.descriptor = sys.stdin.fileno()
        self.is_file = stat.S_ISREG(os.fstat(self.descriptor).st_mode)
        if os.name == 'nt':  # or Windows would change line ends and stop at Ctrl-Z
            import msvcrt
            msvcrt.setmode(self.descriptor, os.O_BINARY)
        try:
            self.audio = self._open_raw(raw_rate, 1, 'PCM_16') if raw_rate else self._open_wav()
        except soundfile.LibsndfileError as error:
            raise AudioError(f'standard input is no WAV file ({error.error_string.strip(" .")}): '
                             f'convert it with `ffmpeg -i ... -f wav -`, or give '
                             f'--raw_rate') from None
        self.rate = self.audio.samplerate
        if not MIN_RATE <= self.rate <= MAX_RATE:
            raise AudioError(f'standard input says that its sample rate is {self.rate:,} Hz, '
                             f'expected {MIN_RATE:,} to {MAX_RATE:,} Hz')
        self.skipped = 0  # whole seconds before what is kept
        self.kept = np.zeros((0, self.audio.channels), np.float32)

    def _open_wav(self):
        audio = soundfile.SoundFile(self.descriptor, closefd=False)
        if self.is_file:  # of which libsndfile reads every format
            return audio
        # Of other formats and codings, libsndfile loses samples if it cannot seek.
        if audio.format not in ('WAV', 'WAVEX') or audio.subtype not in SAMPLE_BYTES:
            raise AudioError(f'standard input is {audio.format} ({audio.subtype_info}): convert it '
                             f'to a plain WAV file with `ffmpeg -i ... -f wav -`')
        if 0 < audio.frames * audio.channels * SAMPLE_BYTES[audio.subtype] < UNKNOWN_BYTES:
            return audio
        audio.close()  # the header has been read: what follows are samples, to the end of the input
        return self._open_raw(audio.samplerate, audio.channels, audio.subtype)

    def _open_raw(self, rate, channels, subtype):
        return soundfile.SoundFile(self.descriptor, samplerate=rate, channels=channels, format='RAW',
                                   subtype=subtype, endian='LITTLE', closefd=False)

    @property
    def seconds(self) -> float:
        """How much has come in so far."""
        return self.skipped + len(self.kept) / self.rate

    def window(self, start: float, seconds: float) -> tuple[Sound, float]:
        """Return the sound of a window, and where in it `start` is; windows come in order.

        Returns as soon as the window is complete, or the input has ended before.
        """
        # The filter that resamples looks a little past the window.
        seconds += 0 if self.rate == SAMPLE_RATE else MARGIN
        while (missing := (start + seconds - self.seconds) * self.rate) > ROUNDING:
            block = self._read(math.ceil(missing - ROUNDING))
            if not len(block):
                break
            self.kept = np.concatenate([self.kept, block])
            unused = min(math.floor(start) - 1, math.floor(self.seconds)) - self.skipped
            if unused > 0:
                self.kept, self.skipped = self.kept[unused * self.rate:], self.skipped + unused
        return Sound(self.kept.T, self.rate, 'standard input').cut(start - self.skipped, seconds)

    def _read(self, samples):
        """Read at most so many samples, as many as are there. Returns none at the end."""
        if fcntl and not self.is_file:  # in libsndfile, a program that waits does not hear Ctrl-C
            select.select([self.descriptor], [], [])
            with contextlib.suppress(OSError):  # /dev/null has no number of bytes
                answer = fcntl.ioctl(self.descriptor, termios.FIONREAD, struct.pack('i', 0))
                waiting = struct.unpack('i', answer)[0]
                width = self.audio.channels * SAMPLE_BYTES[self.audio.subtype]
                samples = min(samples, max(1, waiting // width))
        try:
            return self.audio.read(min(samples, math.ceil(BLOCK * self.rate)), dtype='float32',
                                   always_2d=True)
        except soundfile.LibsndfileError as error:
            raise AudioError(f'cannot read standard input: {error.error_string}') from None
