"""Read recordings with libsndfile: WAV, FLAC, Ogg and their like."""
import contextlib
import os
import re
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import soundfile

from audio.reader import BLOCK_SAMPLES, Reader

# Samples that are read at once to find where damage begins. The blocks of a FLAC file are multiples
# of it.
SALVAGE_SAMPLES = 64

# Beginnings of the names of codecs in which seeking is exact. In these, a decoder can begin at any
# sample; in FLAC, whose codecs libsndfile calls PCM_16 and the like, at any frame. In others, a
# decoder that begins in the middle gives other samples, or none.
SEEKABLE = re.compile('PCM_|FLOAT|DOUBLE|ULAW|ALAW')
UNKNOWN_LENGTH = 2 ** 62  # samples; what libsndfile says if the header does not

# What libsndfile's log says if a file has less audio than its header announces. The second pattern
# is for RF64.
SHORTER = (
    re.compile(r'^ *(?:data|SSND|BODY|Data Size|riff) *: (?P<said>\d+) '
               r'\(should be (?P<found>\d+)\)', re.MULTILINE),
    re.compile(r"frame count (?P<found>\d+) does not match value from 'ds64' chunk "
               r"of (?P<said>\d+)"))
# A program that writes to a pipe does not know the size: its header announces this or more.
STREAMED_BYTES = 2 ** 31 - 2 ** 16
NO_END = 'lacks an end-of-stream bit', 'Junk after the last page'  # in the log of an Ogg

# If a recorder loses power, the header of its WAV counts only some of the samples, or none.
# libsndfile takes the rest for a chunk of another kind, and its log says where that begins.
AFTER_DATA = re.compile(r'(?:Unknown chunk|Have 0) marker.* at position (0x[0-9A-F]+|\d+)')
FILE_LENGTH = re.compile(r'^Length : (\d+)', re.MULTILINE)
MAX_JUNK = 2 ** 12  # bytes after the data that are no sound: some editors append tags

OGG_PAGE = b'OggS'  # the beginning of a page
OGG_SERIAL = slice(14, 18)  # where a page has the number of its stream
MAX_OGG_PAGE = 2 ** 16  # bytes


class _ForwardSoundFile(soundfile.SoundFile):
    """A SoundFile that says that it is not seekable.

    Else soundfile would seek after every read, which some codecs cannot do.
    """

    def seekable(self):
        return False


class SndfileReader(Reader):
    """A recording that libsndfile reads.

    Args:
        source: a path or an open file.

    Raises:
        soundfile.LibsndfileError: libsndfile does not know the format.
    """

    def __init__(self, source: str | BinaryIO):
        self.source = source
        self.file = self._open()
        self.samplerate, self.channels = self.file.samplerate, self.file.channels
        self.length = self.file.frames if self.file.frames < UNKNOWN_LENGTH else None
        self.encoding = self.file.format, self.file.subtype
        is_exact = SEEKABLE.match(self.file.subtype) is not None
        self.seek_is_exact = self.length is not None and is_exact
        self.position = 0

    def _open(self):
        source = self.source
        if isinstance(source, str) and os.name == 'posix':
            source = os.fsencode(source)  # soundfile would refuse names that are not UTF-8
        return _ForwardSoundFile(source)

    def close(self):
        self.file.close()

    def reads_to_the_end(self) -> bool:
        """Return whether libsndfile reads this file to where its sound ends.

        It takes the length of an MP3 from a header that may be missing. It takes the length of a
        WAV from a header that a recorder could not correct when it lost power. If several Ogg
        streams follow each other, as radio stations send them, it reads the first one only.
        """
        if self.file.format == 'MP3' or self.length == 0:
            return False
        if self.file.format == 'OGG':
            return not self._has_several_streams()
        if self.file.format in ('WAV', 'WAVEX', 'RF64'):
            return not self._has_sound_after_data()
        return True

    def _has_sound_after_data(self):
        """Return whether a WAV has more after its data than tags."""
        log = self.file.extra_info
        after, length = AFTER_DATA.search(log), FILE_LENGTH.search(log)
        if after is None or length is None or int(length[1]) - int(after[1], 0) <= MAX_JUNK:
            return False
        with self._raw_file() as file:
            file.seek(int(after[1], 0))
            blocks = iter(lambda: file.read(MAX_JUNK), b'')
            return any(block.strip(b'\0') for block in blocks)  # zeros may be padding

    def _has_several_streams(self):
        """Return whether the last page of an Ogg belongs to another stream than the first."""
        with self._raw_file() as file:
            file.seek(0)
            first = file.read(OGG_SERIAL.stop)
            size = file.seek(0, os.SEEK_END)
            file.seek(-min(MAX_OGG_PAGE, size), os.SEEK_END)
            _, mark, rest = file.read(MAX_OGG_PAGE).rpartition(OGG_PAGE)
        last = mark + rest
        return len(last) >= OGG_SERIAL.stop and last[OGG_SERIAL] != first[OGG_SERIAL]

    @contextlib.contextmanager
    def _raw_file(self) -> Iterator[BinaryIO]:
        """Open the file to read its bytes. Afterwards, libsndfile continues from where it was."""
        if isinstance(self.source, str):
            with open(self.source, 'rb') as file:
                yield file
        else:
            position = self.source.tell()
            yield self.source
            self.source.seek(position)

    def has_last_sample(self):
        try:
            self.file.seek(self.length - 1)
            return len(self.file.read(1)) == 1
        except soundfile.LibsndfileError:
            return False

    def seek(self, sample):
        self.position = min(sample, self.length)
        try:
            self.file.seek(self.position)
        except soundfile.LibsndfileError:  # after damage in a FLAC, it does not find every sample
            with contextlib.suppress(soundfile.LibsndfileError):
                self._read_from_the_beginning(self.position)

    def read(self, size):
        if self.damaged:
            size = 0
        elif self.length is not None:
            size = max(0, min(size, self.length - self.position))
        block = np.empty((size, self.channels), np.float32)
        try:
            block = self.file.read(out=block)
        except soundfile.LibsndfileError as error:
            if 'System error' in error.error_string:  # of the disk or the network, not of the file
                raise
            self.damaged = True
            block = self._salvage(block)
        self.position += len(block)
        return block

    def _salvage(self, block):
        """Return the part of a block that comes before the damage that reading it has met.

        libsndfile reports damage only after it has filled the block with what follows it. So the
        block is read again in small pieces, up to the one that fails.
        """
        good = 0
        with contextlib.suppress(soundfile.LibsndfileError):
            self._read_from_the_beginning(self.position)
            size = SALVAGE_SAMPLES - self.position % SALVAGE_SAMPLES
            while piece := len(self.file.read(out=block[good:good + size])):
                good, size = good + piece, SALVAGE_SAMPLES
        return block[:good]

    def _read_from_the_beginning(self, sample):
        """Open the file again and read up to a sample: libsndfile cannot seek after an error."""
        self.file.close()
        if not isinstance(self.source, str):
            self.source.seek(0)
        self.file = self._open()
        whole_blocks, rest = divmod(sample, BLOCK_SAMPLES)
        for size in [BLOCK_SAMPLES] * whole_blocks + [rest]:
            self.file.read(size)

    def is_incomplete(self, samples):
        if self.damaged or samples < (self.length or 0):
            return True
        log = self.file.extra_info
        for pattern in SHORTER:
            if shorter := pattern.search(log):
                return int(shorter['found']) < int(shorter['said']) < STREAMED_BYTES
        return any(words in log for words in NO_END)
