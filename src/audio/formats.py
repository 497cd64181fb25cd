"""Open recordings: any container and codec, read forward to where the sound really ends.

libsndfile reads WAV, FLAC, Ogg and their like; FFmpeg, by way of PyAV, reads the rest (m4a, mp4,
webm, wma, amr, ...) and what libsndfile would not read to its end. `open_audio` is the only place
that chooses between them.
"""
import contextlib
import os
import re
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import soundfile

from audio import MAX_RATE, MIN_RATE, shards

BLOCK_SAMPLES = 2 ** 16  # of each channel, read at once
SALVAGE_SAMPLES = 64  # read at once to find where damage begins; frames of FLAC are multiples of it

# Codecs in which every sample stands for itself, and FLAC, whose frames do: only there is seeking
# exact. In the others a decoder that begins in the middle gives other samples, or none at all.
SEEKABLE = re.compile('PCM_|FLOAT|DOUBLE|ULAW|ALAW')
UNKNOWN_LENGTH = 2 ** 62  # samples; what libsndfile says if the header does not
# What libsndfile's log says if a file has less audio than its header announces, the second in
# RF64. Programs that write to a pipe announce the largest number that there is.
SHORTER = (
    re.compile(r'^ *(?:data|SSND|BODY|Data Size|riff) *: (?P<said>\d+) '
               r'\(should be (?P<found>\d+)\)', re.MULTILINE),
    re.compile(r"frame count (?P<found>\d+) does not match value from 'ds64' chunk "
               r"of (?P<said>\d+)"))
STREAMED = 2 ** 31 - 2 ** 16  # bytes
NO_END = 'lacks an end-of-stream bit', 'Junk after the last page'  # of Ogg
# A recorder that lost power leaves a WAV of which the header counts a part of the samples, or
# none. libsndfile takes what follows for a chunk of another kind, and its log says where.
PAST_THE_DATA = re.compile(r'(?:Unknown chunk|Have 0) marker.* at position (0x[0-9A-F]+|\d+)')
MAX_JUNK = 2 ** 12  # bytes after the data that are left alone: some editors append tags
OGG_PAGE, OGG_SERIAL = b'OggS', slice(14, 18)  # how a page begins, and where its stream's number is
MAX_OGG_PAGE = 2 ** 16  # bytes

# Containers that say how long they are; of others FFmpeg estimates it from the bit rate.
SAYS_LENGTH = 'mov,mp4,m4a,3gp,3g2,mj2', 'matroska,webm', 'asf'
# An MP3's first frame, if it says how many follow.
XING = re.compile(rb'\xff[\xe0-\xff].{11,36}(?:Xing|Info|VBRI)', re.DOTALL)
MAX_FRAME = 2 ** 11  # bytes
# FFmpeg's names of the types of samples, and numpy's.
SAMPLE_TYPES = {'u8': np.uint8, 's16': np.int16, 's32': np.int32, 's64': np.int64,
                'flt': np.float32, 'dbl': np.float64}
# A recording may be shorter by so much than it says: rounding, a codec's delay, gaps in a stream.
TOLERANCE_SECONDS, TOLERANCE = 0.2, 0.01

# Suffixes of the files that folders are searched for.
_NOT_BY_SUFFIX = {'RAW', 'MAT4', 'MAT5'}  # headerless, or the suffix of other things
_OF_LIBSNDFILE = {f'.{name.lower()}' for name in
                  soundfile.available_formats().keys() - _NOT_BY_SUFFIX}
_SYNONYMS = set('.aif .aifc .oga .snd .sph .wave'.split())
_OF_FFMPEG = set('.3gp .aac .ac3 .amr .ape .avi .flv .m4a .m4b .m4v .mka .mkv .mov .mp3 .mp4 .mpeg '
                 '.mpg .opus .ts .weba .webm .wma .wmv .wv'.split())
AUDIO_SUFFIXES = frozenset(_OF_LIBSNDFILE | _SYNONYMS | _OF_FFMPEG)


class AudioError(ValueError):
    """An audio file is missing, cannot be decoded or holds no sound; the message names it."""


class Reader:
    """An open recording, read forward to where the sound ends.

    Attributes:
        samplerate: in Hz.
        channels: how many.
        frames: samples of each channel that the header promises, or None if it does not say.
        seeks: whether `seek` is exact; if not, only reading forward is.
        damaged: whether reading has met something that cannot be decoded, which ended it.
    """
    samplerate: int
    channels: int
    frames: int | None = None
    seeks = False
    damaged = False
    source: str | BinaryIO  # the file that is read

    def read(self, size: int) -> np.ndarray:
        """Return the next (samples, channels) as float32: `size` of them, fewer only at the end."""
        raise NotImplementedError

    def ends_early(self, samples: int) -> bool:
        """Tell whether there should be more, once all samples were read and found to be so many."""
        raise NotImplementedError

    def check(self):
        """Raise what went wrong with the file, which libraries take for the end of it."""
        if error := getattr(self.source, 'error', None):
            raise error

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield all that is left as blocks (samples, channels) of float32."""
        while len(block := self.read(BLOCK_SAMPLES)):
            yield block

    def skip(self, samples: int):
        """Read forward over so many samples."""
        while samples > 0 and len(block := self.read(min(samples, BLOCK_SAMPLES))):
            samples -= len(block)


class _Forward(soundfile.SoundFile):
    """A SoundFile that does not seek after every read, as soundfile does: some codecs cannot."""

    def seekable(self):
        return False


class _Sndfile(Reader):
    """A recording that libsndfile reads."""

    def __init__(self, source):
        self.source, self.file = source, _Forward(source)
        self.samplerate, self.channels = self.file.samplerate, self.file.channels
        self.frames = self.file.frames if self.file.frames < UNKNOWN_LENGTH else None
        self.seeks = self.frames is not None and bool(SEEKABLE.match(self.file.subtype))
        self.position = 0

    def close(self):
        """Close what __init__ has opened."""
        self.file.close()

    def reads_to_the_end(self) -> bool:
        """Tell whether libsndfile reads such a file to where its sound ends.

        It takes the length of an MP3 from a header that may be missing, and the length of a WAV
        from a header that a recorder without power could not correct. Of several Ogg streams in a
        row, as radio stations send them, it reads the first.
        """
        if self.file.format == 'MP3' or self.frames == 0:
            return False
        if self.file.format == 'OGG':
            return not self._is_chained()
        if self.file.format not in ('WAV', 'WAVEX', 'RF64'):
            return True
        log = self.file.extra_info
        beyond, length = PAST_THE_DATA.search(log), re.search(r'^Length : (\d+)', log, re.MULTILINE)
        if not (beyond and length and int(length[1]) - int(beyond[1], 0) > MAX_JUNK):
            return True
        with self._bytes() as file:  # zeros may be sound, or padding
            file.seek(int(beyond[1], 0))
            return not any(block.strip(b'\0') for block in iter(lambda: file.read(MAX_JUNK), b''))

    def _is_chained(self):
        """Tell whether the last page of an Ogg belongs to another stream than the first."""
        with self._bytes() as file:
            file.seek(0)
            first = file.read(OGG_SERIAL.stop)
            file.seek(-min(MAX_OGG_PAGE, file.seek(0, os.SEEK_END)), os.SEEK_END)
            page = b''.join(file.read(MAX_OGG_PAGE).rpartition(OGG_PAGE)[1:])
        return len(page) >= OGG_SERIAL.stop and page[OGG_SERIAL] != first[OGG_SERIAL]

    @contextlib.contextmanager
    def _bytes(self):
        """Open the file itself, in which libsndfile then goes on from where it was."""
        if isinstance(self.source, str):
            with open(self.source, 'rb') as file:
                yield file
        else:
            position = self.source.tell()
            yield self.source
            self.source.seek(position)

    def has_last_sample(self) -> bool:
        """Tell whether the last sample can be read that the header promises."""
        try:
            self.file.seek(self.frames - 1)
            return len(self.file.read(1)) == 1
        except soundfile.LibsndfileError:
            return False

    def seek(self, sample: int):
        """Go to a sample; to the end if there are fewer."""
        self.position = min(sample, self.frames)
        try:
            self.file.seek(self.position)
        except soundfile.LibsndfileError:  # in a FLAC that is damaged, not all of the rest is found
            with contextlib.suppress(soundfile.LibsndfileError):
                self._begin_again(self.position)

    def read(self, size):
        if self.damaged:
            size = 0
        elif self.frames is not None:
            size = max(0, min(size, self.frames - self.position))
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
        """Return what comes before the damage that reading a block has met.

        libsndfile reports it after it has filled the block with samples from behind the damage.
        """
        good = 0
        with contextlib.suppress(soundfile.LibsndfileError):
            self._begin_again(self.position)
            size = SALVAGE_SAMPLES - self.position % SALVAGE_SAMPLES
            while piece := len(self.file.read(out=block[good:good + size])):
                good, size = good + piece, SALVAGE_SAMPLES
        return block[:good]

    def _begin_again(self, sample):
        """Read from the beginning up to a sample: after an error, libsndfile goes nowhere."""
        self.file.close()
        if not isinstance(self.source, str):
            self.source.seek(0)
        self.file = _Forward(self.source)
        for size in [BLOCK_SAMPLES] * (sample // BLOCK_SAMPLES) + [sample % BLOCK_SAMPLES]:
            self.file.read(size)

    def ends_early(self, samples):
        if self.damaged or samples < (self.frames or 0):
            return True
        log = self.file.extra_info
        for shorter in filter(None, (words.search(log) for words in SHORTER)):
            return int(shorter['found']) < int(shorter['said']) < STREAMED
        return any(words in log for words in NO_END)


class _FFmpeg(Reader):
    """A recording that FFmpeg reads: the first sound in a file, whatever else is in there.

    ignore_length: read a WAV to the end of the file, as its header is wrong. Of others, what may
    follow the sound, such as tags, would be noise.
    """

    def __init__(self, av, file: BinaryIO, ignore_length: bool):
        self.av, self.source = av, file
        # A file must not lead to others, as playlists do.
        options = {'protocol_whitelist': 'none', 'ignore_length': str(int(ignore_length))}
        self.container = av.open(file, options=options, metadata_errors='ignore')
        self.close = self.container.close
        if not self.container.streams.audio:
            raise RuntimeError('there is no sound in it')
        self.stream = self.container.streams.audio[0]
        self.stream.codec_context.thread_count = 1  # data workers share the cores
        self.first_packet = 0  # where in the file it is, in bytes
        self.blocks_left = self._decode()
        self.waiting = next(self.blocks_left, None)
        if self.waiting is None:
            raise RuntimeError('none of its sound can be decoded')
        self.frames = self._promised()

    def _decode(self):
        """Yield (samples, channels) of float32 as they are decoded, up to the first damage."""
        self.samplerate = None
        try:
            for packet in self.container.demux(self.stream):
                self.first_packet = self.first_packet or packet.pos or 0
                try:
                    frames = packet.decode()
                except self.av.FFmpegError:
                    if self.samplerate:
                        raise
                    continue  # what was cut out of a stream may begin with half a packet
                for frame in frames:
                    block = _as_floats(frame)
                    if self.samplerate is None:  # the container may say half the rate (HE-AAC)
                        self.samplerate, self.channels = frame.sample_rate, block.shape[1]
                    if frame.sample_rate != self.samplerate:
                        self.damaged = True
                        return
                    yield self._with_channels(block)
        except self.av.FFmpegError:
            self.damaged = True

    def _with_channels(self, block):
        """Return a block with the channels of the first one: broadcasts change to mono and back."""
        if block.shape[1] == self.channels:
            return block
        return np.repeat(block.mean(axis=1, keepdims=True), self.channels, axis=1)

    def _promised(self):
        """Return how many samples the header promises, or None if it only estimates them."""
        container, stream, name = self.container, self.stream, self.container.format.name
        if name not in SAYS_LENGTH and not (name == 'mp3' and self._has_xing()):
            return None
        if stream.duration is not None:
            return round(stream.duration * stream.time_base * self.samplerate)
        if container.duration is None or len(container.streams) > 1:  # that of the pictures?
            return None
        return round(container.duration / self.av.time_base * self.samplerate)

    def _has_xing(self):
        """Tell whether the MP3 begins with a frame that says how many follow."""
        position = self.source.tell()
        self.source.seek(max(0, self.first_packet - MAX_FRAME))
        head = self.source.read(min(self.first_packet, MAX_FRAME))
        self.source.seek(position)
        return XING.search(head) is not None

    def read(self, size):
        blocks = [np.zeros((0, self.channels), np.float32)]
        while size > 0 and self.waiting is not None:
            blocks.append(self.waiting[:size])
            rest = self.waiting[size:]
            self.waiting = rest if len(rest) else next(self.blocks_left, None)
            size -= len(blocks[-1])
        return np.concatenate(blocks)

    def ends_early(self, samples):
        if self.frames is None:
            return self.damaged
        tolerance = max(TOLERANCE_SECONDS * self.samplerate, TOLERANCE * self.frames)
        return samples < self.frames - (0 if self.damaged else tolerance)


def _as_floats(frame):
    """Return a frame of PyAV as (samples, channels) of float32, full scale being 1.

    Not by its AudioResampler, which has threads: a process that is forked while one waits to be
    collected hangs as soon as it collects it. Not by its to_ndarray: of 8 channels and more,
    `planes` has others after them that lead anywhere, and reading those ends the process.
    """
    channels, is_planar = frame.layout.nb_channels, frame.format.is_planar
    count = frame.samples * (1 if is_planar else channels)
    samples = np.stack([np.frombuffer(plane, SAMPLE_TYPES[frame.format.packed.name], count)
                        for plane in frame.planes[:channels if is_planar else 1]])
    samples = samples.T if is_planar else samples.reshape(-1, channels)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    if samples.dtype.kind == 'i':
        return samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)
    return samples.astype(np.float32)


class _Callbacks:
    """A file for libraries that cannot pass on errors: it ends there; its context raises them."""

    def __init__(self, file):
        self.file, self.error, self.seek, self.tell = file, None, file.seek, file.tell

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
def open_audio(file: str | os.PathLike | BinaryIO, name=None) -> Iterator[Reader]:
    """Open a path or an open binary file as a Reader. What fails while it is open is an AudioError.

    So is a sample rate below MIN_RATE or above MAX_RATE. A path may lead into a shard,
    shards/0001.zip/a.flac. name: what to call the file in messages.
    """
    name = name or file
    is_path = isinstance(file, (str, os.PathLike))
    try:
        with contextlib.ExitStack() as stack:
            place = shards.split(file) if is_path else None
            if place:
                source = stack.enter_context(_Callbacks(shards.read(*place)))
            elif is_path:
                source = os.path.abspath(file)  # of '-', libsndfile would read standard input
            else:
                source = file
                file.seek(0)
            audio = _choose_reader(source, stack)
            if not MIN_RATE <= audio.samplerate <= MAX_RATE:
                raise RuntimeError(f'its sample rate is {audio.samplerate:,} Hz, expected '
                                   f'{MIN_RATE:,} to {MAX_RATE:,} Hz: convert it to a new file')
            yield audio
    except (shards.ShardError, soundfile.LibsndfileError, OSError, RuntimeError, TypeError,
            UnicodeError) as error:
        if is_path and not isinstance(error, shards.ShardError) and not shards.is_file(file):
            raise AudioError(f'the audio file {name} does not exist') from None
        raise AudioError(f'cannot read the audio file {name}: {_reason(error)}') from None


def _reason(error):
    """Return what went wrong, in the words of libsndfile, FFmpeg, the system or our own."""
    words = getattr(error, 'error_string', None) or getattr(error, 'strerror', None) or str(error)
    return words.strip(' .')


def _choose_reader(source, stack):
    """Return the Reader for a path or an open file, which an ExitStack closes."""
    sndfile, reason = None, 'it would not read it to its end'
    try:
        sndfile = _Sndfile(source)
        stack.callback(sndfile.close)
        if sndfile.reads_to_the_end():
            return sndfile
    except soundfile.LibsndfileError as error:
        reason = _reason(error)
    try:
        import av
    except ImportError:
        raise RuntimeError(f'libsndfile cannot ({reason}), and PyAV, which reads more formats, is '
                           f'not installed: python -m pip install av') from None
    file = stack.enter_context(open(source, 'rb')) if isinstance(source, str) else source
    file.seek(0)
    try:
        audio = _FFmpeg(av, file, ignore_length=sndfile is not None)
    except (av.FFmpegError, OSError, RuntimeError) as error:
        if sndfile and sndfile.frames == 0:
            return sndfile
        raise RuntimeError(f'neither libsndfile ({reason}) nor FFmpeg ({_reason(error)}) '
                           f'can') from None
    stack.callback(audio.close)
    return audio
