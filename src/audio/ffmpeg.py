"""Read recordings with FFmpeg, by way of PyAV: m4a, mp4, webm, wma, amr and many more.

PyAV is optional, so this file is imported only when a recording needs it.
"""
import re
from collections.abc import Iterator
from typing import BinaryIO

import av
import numpy as np

from audio.reader import Reader

# Containers whose length is trusted. That of others may be an estimate of FFmpeg, such as one from
# the bit rate or from the size of the file.
SAYS_LENGTH = 'mov,mp4,m4a,3gp,3g2,mj2', 'matroska,webm', 'asf', 'tta', 'wv'
# The first frame of an MP3, if it says how many follow.
XING = re.compile(rb'\xff[\xe0-\xff].{11,36}(?:Xing|Info|VBRI)', re.DOTALL)
MAX_FRAME = 2 ** 11  # bytes
# FFmpeg's names for types of samples.
SAMPLE_TYPES = {'u8': np.uint8, 's16': np.int16, 's32': np.int32, 's64': np.int64,
                'flt': np.float32, 'dbl': np.float64}
# A recording that is whole may be a little shorter than its header says, because of rounding, the
# delay of a codec or gaps in a stream: by at most these seconds, or by this share of its length.
TOLERANCE_SECONDS, TOLERANCE = 0.2, 0.01


class FFmpegReader(Reader):
    """A recording that FFmpeg reads: the first audio stream of a file, whatever else is in it.

    Args:
        file: an open file.
        ignore_length: whether to read a WAV to the end of the file, because its header is wrong.
            If the header is right, tags that follow the sound would become noise. FFmpeg has this
            option for WAV only.

    Raises:
        RuntimeError: FFmpeg does not know the format, or cannot decode any sound in the file.
    """

    def __init__(self, file: BinaryIO, ignore_length: bool):
        self.source = file
        # The whitelist keeps a file, such as a playlist, from leading to other files.
        options = {'protocol_whitelist': 'none', 'ignore_length': str(int(ignore_length))}
        try:
            self.container = av.open(file, 'r', options=options, metadata_errors='ignore')
        except av.FFmpegError as error:
            raise RuntimeError(error.strerror or str(error)) from None
        if not self.container.streams.audio:
            raise RuntimeError('there is no sound in it')
        self.stream = self.container.streams.audio[0]
        self.stream.codec_context.thread_count = 1  # data workers share the cores
        self.encoding = self.container.format.name, self.stream.codec_context.name

        self.first_packet = 0  # its position in the file, in bytes
        self.decoded = self._decode()
        self.waiting = next(self.decoded, None)  # what read() returns next
        if self.waiting is None:
            raise RuntimeError('none of its sound can be decoded')
        self.length = self._promised_length()

    def close(self):
        self.container.close()

    def _decode(self) -> Iterator[np.ndarray]:
        """Yield (samples, channels) of float32, up to the first damage."""
        started = False
        try:
            for packet in self.container.demux(self.stream):
                self.first_packet = self.first_packet or packet.pos or 0
                try:
                    frames = packet.decode()
                except av.FFmpegError:
                    if started:
                        raise
                    continue  # a piece that was cut out of a stream may begin with half a packet
                for frame in frames:
                    block = _as_floats(frame)
                    if not started:  # the container may say half the rate (HE-AAC)
                        self.samplerate, self.channels = frame.sample_rate, block.shape[1]
                        started = True
                    if frame.sample_rate != self.samplerate:
                        self.damaged = True
                        return
                    yield self._match_channels(block)
        except av.FFmpegError:
            self.damaged = True

    def _match_channels(self, block):
        """Return a block with the channels of the first one: broadcasts change to mono and back."""
        if block.shape[1] == self.channels:
            return block
        return np.repeat(block.mean(axis=1, keepdims=True), self.channels, axis=1)

    def _promised_length(self):
        """Return how many samples the header promises, or None if that may be an estimate.

        A WavPack that was written to a pipe promises 0, which says nothing.
        """
        name = self.container.format.name
        if name not in SAYS_LENGTH and not (name == 'mp3' and self._has_xing()):
            return None
        if self.stream.duration is not None:
            return round(self.stream.duration * self.stream.time_base * self.samplerate) or None
        # The duration of a file with several streams may be that of the pictures.
        if self.container.duration is None or len(self.container.streams) > 1:
            return None
        return round(self.container.duration / av.time_base * self.samplerate)

    def _has_xing(self):
        """Return whether an MP3 begins with a frame that says how many follow."""
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
            self.waiting = rest if len(rest) else next(self.decoded, None)
            size -= len(blocks[-1])
        return np.concatenate(blocks)

    def is_incomplete(self, samples):
        if self.length is None:
            return self.damaged
        tolerance = max(TOLERANCE_SECONDS * self.samplerate, TOLERANCE * self.length)
        return samples < self.length - (0 if self.damaged else tolerance)


def _as_floats(frame):
    """Return a frame of PyAV as (samples, channels) of float32, full scale being 1.

    Two functions of PyAV would do this, but fail. AudioResampler has threads: a data worker that is
    forked hangs when Python collects a resampler made before the fork. to_ndarray crashes with 8 or
    more channels, since it reads memory that does not exist.
    """
    channels, is_planar = frame.layout.nb_channels, frame.format.is_planar
    count = frame.samples * (1 if is_planar else channels)
    dtype = SAMPLE_TYPES[frame.format.packed.name]
    planes = frame.planes[:channels if is_planar else 1]
    samples = np.stack([np.frombuffer(plane, dtype, count) for plane in planes])
    samples = samples.T if is_planar else samples.reshape(-1, channels)  # (samples, channels)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    if samples.dtype.kind == 'i':
        return samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)
    return samples.astype(np.float32)
