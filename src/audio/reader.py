"""What the readers of recordings have in common, whatever library they use."""
import abc
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

BLOCK_SAMPLES = 2 ** 16  # of each channel, read at once


class Reader(abc.ABC):
    """An open recording. It is read forward to where its sound ends.

    Attributes:
        source: the file that is read, a path or an open file.
        samplerate: in Hz.
        channels: number of channels.
        length: samples of each channel that the header promises, or None if it does not say.
        seek_is_exact: whether `seek` finds exactly that sample. If not, only reading forward does.
        damaged: whether reading has ended at something that cannot be decoded.
        encoding: (container, codec), in the words of the library that reads it.
    """
    source: str | BinaryIO
    samplerate: int
    channels: int
    length: int | None = None
    seek_is_exact = False
    damaged = False
    encoding: tuple[str, str]

    @abc.abstractmethod
    def read(self, size: int) -> np.ndarray:
        """Return the next (samples, channels) as float32: `size` of them, fewer only at the end.

        Full scale is 1.
        """

    @abc.abstractmethod
    def is_incomplete(self, samples: int) -> bool:
        """Return whether sound is missing at the end. Call it after the last sample was read.

        Args:
            samples: how many samples of each channel there were.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Close what the reader has opened."""

    def seek(self, sample: int) -> None:
        """Go to a sample, or to the end if there are fewer. Call it only if seek_is_exact."""
        raise NotImplementedError

    def has_last_sample(self) -> bool:
        """Return whether the last sample that the header promises can be read.

        Call it only if seek_is_exact.
        """
        raise NotImplementedError

    def raise_file_error(self) -> None:
        """Raise the read error that a member of a shard has kept, if there is one.

        libsndfile and FFmpeg cannot pass it on: to them, the file seems to end.
        """
        if error := getattr(self.source, 'error', None):
            raise error

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield all that is left, as blocks (samples, channels) of float32."""
        while len(block := self.read(BLOCK_SAMPLES)):
            yield block

    def skip(self, samples: int) -> None:
        """Read and forget `samples` samples."""
        while samples > 0 and len(block := self.read(min(samples, BLOCK_SAMPLES))):
            samples -= len(block)
