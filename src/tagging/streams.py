"""Sound that comes in on standard input: a WAV file or raw samples, with or without an end."""
import math
import os
import select
import stat
import struct
import sys

import numpy as np
import soundfile

from audio import MAX_RATE, MIN_RATE
from audio.fbank import SAMPLE_RATE
from audio.reading import AudioError, first_second_to_read
from audio.sndfile import STREAMED_BYTES
from tagging.sounds import Sound
from utilities.errors import DataError

try:
    import fcntl
    import termios
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FILTER_SECONDS = 0.25  # read past a window; the longest resampling filter is shorter
BLOCK_SECONDS = 0.25  # read at once, at most
ROUNDING_SAMPLES = 1e-3  # tolerance, in samples, for rounding errors of seconds * rate
# Bytes of a sample, of the codings that have a fixed size.
SAMPLE_BYTES = {'PCM_U8': 1, 'PCM_16': 2, 'PCM_24': 3, 'PCM_32': 4, 'FLOAT': 4, 'DOUBLE': 8,
                'ULAW': 1, 'ALAW': 1}


class Stream:
    """The sound on standard input.

    It is a WAV file, also one of unknown length, as ffmpeg writes it to a pipe; or raw samples of
    16 bits, little endian, mono. A file that is redirected (`< FILE`) may have any format that
    libsndfile reads. Only what the next window needs is kept in memory.

    Args:
        raw_rate: sample rate of raw samples in Hz, or None for a WAV file.

    Raises:
        DataError: nothing is piped into the program.
        AudioError: what comes in is not such a sound.
    """
    name = '-'  # in results, as on the command line

    def __init__(self, raw_rate: int | None = None):
        if sys.stdin is None or sys.stdin.isatty():
            raise DataError('standard input is a terminal: pipe a sound into the program')
        self.descriptor = sys.stdin.fileno()
        self.is_file = stat.S_ISREG(os.fstat(self.descriptor).st_mode)
        if sys.platform == 'win32':  # or it would change line ends and stop at Ctrl-Z
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
        self.kept = np.zeros((0, self.audio.channels), np.float32)  # (samples, channels)
        self.skipped = 0  # whole seconds before what is kept

    def _open_wav(self):
        audio = soundfile.SoundFile(self.descriptor, closefd=False)
        if self.is_file:  # libsndfile can seek in it, so it reads every format
            return audio
        # In a pipe it cannot seek, and loses samples of other formats and codings.
        if audio.format not in ('WAV', 'WAVEX') or audio.subtype not in SAMPLE_BYTES:
            raise AudioError(f'standard input is {audio.format} ({audio.subtype_info}): convert it '
                             f'to a plain WAV file with `ffmpeg -i ... -f wav -`')
        promised = audio.frames * audio.channels * SAMPLE_BYTES[audio.subtype]
        if 0 < promised < STREAMED_BYTES:
            return audio
        # The writer did not know the length. What follows the header, which has been read, are
        # samples up to the end of the input.
        audio.close()
        return self._open_raw(audio.samplerate, audio.channels, audio.subtype)

    def _open_raw(self, rate, channels, subtype):
        return soundfile.SoundFile(self.descriptor, samplerate=rate, channels=channels,
                                   format='RAW', subtype=subtype, endian='LITTLE', closefd=False)

    @property
    def seconds(self) -> float:
        """The seconds of sound that have come in so far."""
        return self.skipped + len(self.kept) / self.rate

    def window(self, start: float, seconds: float, sample_rate: int = SAMPLE_RATE
               ) -> tuple[Sound, float]:
        """Wait for a window; return its sound, and where in that sound `start` is.

        Ask for windows in the order of their starts. If the input ends before, the sound is
        shorter. sample_rate: of the model, in Hz.
        """
        if self.rate != sample_rate:  # the filter that resamples looks a little past the window
            seconds += FILTER_SECONDS
        while (missing := (start + seconds - self.seconds) * self.rate) > ROUNDING_SAMPLES:
            block = self._read(math.ceil(missing - ROUNDING_SAMPLES))
            if not len(block):
                break
            self.kept = np.concatenate([self.kept, block])
            self._forget_before(start)
        kept = Sound(self.kept.T, self.rate, 'standard input')
        return kept.cut(start - self.skipped, seconds)

    def _forget_before(self, start):
        """Drop the whole seconds that Sound.cut does not need for a window from `start` on."""
        unused = min(first_second_to_read(start), math.floor(self.seconds)) - self.skipped
        if unused > 0:
            self.kept = self.kept[unused * self.rate:]
            self.skipped += unused

    def _read(self, samples):
        """Return what is there, at most `samples` samples, and none at the end."""
        if fcntl and not self.is_file:
            # Wait here, and then read what is there: inside libsndfile, Ctrl-C is not heard.
            select.select([self.descriptor], [], [])
            samples = min(samples, self._count_waiting_samples(samples))
        block = min(samples, math.ceil(BLOCK_SECONDS * self.rate))
        try:
            return self.audio.read(block, dtype='float32', always_2d=True)
        except soundfile.LibsndfileError as error:
            raise AudioError(f'cannot read standard input: {error.error_string}') from None

    def _count_waiting_samples(self, unknown):
        """Return how many samples can be read without waiting; `unknown` if nobody can say."""
        try:
            answer = fcntl.ioctl(self.descriptor, termios.FIONREAD, struct.pack('i', 0))
        except OSError:  # /dev/null has no number of bytes
            return unknown
        waiting = struct.unpack('i', answer)[0]
        sample_bytes = self.audio.channels * SAMPLE_BYTES[self.audio.subtype]
        return max(1, waiting // sample_bytes)
