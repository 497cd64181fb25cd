"""Open recordings of any container and codec.

libsndfile reads WAV, FLAC, Ogg and their like. FFmpeg, by way of PyAV, reads the rest (m4a, mp4,
webm, wma, amr, ...) and what libsndfile would not read to its end. `open_audio` is the only place
that chooses between them.
"""
import contextlib
import os
from collections.abc import Iterator
from typing import BinaryIO

import soundfile

from audio import MAX_RATE, MIN_RATE, shards
from audio.reader import Reader
from audio.sndfile import SndfileReader

# A path or an open binary file.
AudioFile = str | os.PathLike | BinaryIO

# Suffixes of the files that programs search folders for.
_NOT_BY_SUFFIX = {'RAW', 'MAT4', 'MAT5'}  # no header; any data of Matlab
_OF_LIBSNDFILE = {f'.{name.lower()}' for name in
                  soundfile.available_formats().keys() - _NOT_BY_SUFFIX}
_SYNONYMS = set('.aif .aifc .oga .snd .sph .wave'.split())
_OF_FFMPEG = set('.3gp .aac .ac3 .amr .ape .avi .flv .m4a .m4b .m4v .mka .mkv .mov .mp3 .mp4 .mpeg '
                 '.mpg .opus .ts .weba .webm .wma .wmv .wv'.split())
AUDIO_SUFFIXES = frozenset(_OF_LIBSNDFILE | _SYNONYMS | _OF_FFMPEG)

# What reading may raise.
_ERRORS = (shards.ShardError, soundfile.LibsndfileError, OSError, RuntimeError, TypeError,
           UnicodeError)


class AudioError(ValueError):
    """A recording is missing, cannot be decoded or holds no sound. The message names it."""


class _ShardMember:
    """A member of a shard as a file object that stores read errors.

    libsndfile and FFmpeg cannot pass on an error of Python. After one, the file seems to end, and
    leaving its context raises the error.
    """

    def __init__(self, file: BinaryIO):
        self.file, self.seek, self.tell = file, file.seek, file.tell
        self.error: Exception | None = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.error:
            raise self.error

    def readinto(self, buffer):
        """Read as a file does, for libsndfile."""
        data = self.read(len(buffer))
        buffer[:len(data)] = data
        return len(data)

    def read(self, size):
        """Read as a file does, for FFmpeg."""
        try:
            return self.file.read(size)
        except shards.ShardError as error:
            self.error = error
            return b''


@contextlib.contextmanager
def open_audio(file: AudioFile, name: str | os.PathLike | None = None) -> Iterator[Reader]:
    """Open a recording, and close it at the end of the block.

    Args:
        file: a path, which may lead into a shard (shards/0001.zip/a.flac), or an open file.
        name: what to call the file in messages.

    Raises:
        AudioError: The file is missing or cannot be read, or its sample rate is out of the limits.
            Errors of the file inside the block become AudioErrors, too.
    """
    try:
        with contextlib.ExitStack() as stack:
            reader = _choose_reader(_open_source(file, stack), stack)
            if not MIN_RATE <= reader.samplerate <= MAX_RATE:
                raise RuntimeError(f'its sample rate is {reader.samplerate:,} Hz, expected '
                                   f'{MIN_RATE:,} to {MAX_RATE:,} Hz: convert it to a new file')
            yield reader
    except _ERRORS as error:
        name = name or str(file)
        is_shard = isinstance(error, shards.ShardError)
        if isinstance(file, (str, os.PathLike)) and not is_shard and not shards.is_file(file):
            raise AudioError(f'the audio file {name} does not exist') from None
        raise AudioError(f'cannot read the audio file {name}: {_reason(error)}') from None


def _open_source(file, stack):
    """Return what a Reader takes, a path or an open file. An ExitStack closes it."""
    if not isinstance(file, (str, os.PathLike)):
        file.seek(0)
        return file
    if place := shards.split_path(file):
        return stack.enter_context(_ShardMember(shards.open_member(*place)))
    return os.path.abspath(file)  # libsndfile would take the path '-' for standard input


def _choose_reader(source, stack):
    """Return the Reader of a path or an open file. An ExitStack closes it."""
    sndfile, reason = None, 'it may stop before the end of the sound'
    try:
        sndfile = SndfileReader(source)
        stack.callback(sndfile.close)
        if sndfile.reads_to_the_end():
            return sndfile
    except soundfile.LibsndfileError as error:
        reason = _reason(error)

    file = stack.enter_context(open(source, 'rb')) if isinstance(source, str) else source
    file.seek(0)
    try:
        from audio.ffmpeg import FFmpegReader  # needs PyAV, which is optional
        ffmpeg = FFmpegReader(file, ignore_length=sndfile is not None)
    except ImportError:
        raise RuntimeError(f'libsndfile cannot ({reason}), and PyAV, which reads more formats, is '
                           f'not installed: python -m pip install av') from None
    except (OSError, RuntimeError) as error:
        if sndfile and sndfile.length == 0:
            return sndfile
        raise RuntimeError(f'neither libsndfile ({reason}) nor FFmpeg ({_reason(error)}) '
                           f'can') from None
    stack.callback(ffmpeg.close)
    return ffmpeg


def _reason(error):
    """Return what went wrong in the words of libsndfile, FFmpeg, the system or our own."""
    words = getattr(error, 'error_string', None) or getattr(error, 'strerror', None) or str(error)
    return words.strip(' .')
