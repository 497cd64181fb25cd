"""Copies of AudioSet's clips: 16 kHz mono FLAC files, in a folder or packed into shards."""
import io
import os
from pathlib import Path
from typing import NamedTuple

import soundfile
import torch

from audio.fbank import SAMPLE_RATE
from audio.info import read_duration
from audio.reading import AudioError
from models.atomic import atomic_write
from utilities.errors import DataError
from utilities.segments import Segment

COPY_TOLERANCE = 0.1  # seconds by which a copy's length may differ


class CopyConf(NamedTuple):
    """Which clips are copied, and where to.

    Attributes:
        folder: of the copies; None if there are to be none.
        of_all: whether all clips are copied. If not, only clips without a file of their own are
            copied: cuts, and what is packed in gzip and parquet files.
    """
    folder: Path | None
    of_all: bool


def clip_name(segment: Segment, suffix: str = '') -> str:
    """Return the file name of a clip, ID_START, which no other clip has."""
    return f'{segment.video_id}_{segment.start_seconds:.3f}{suffix}'


def suffix_of(path: str) -> str:
    """Return the suffix of a recording, without the .gz that may follow it."""
    return os.path.splitext(path.removesuffix('.gz'))[1].lower()


def write_flac(path: str, waveform: torch.Tensor) -> None:
    """Write a waveform (samples,) as 16 kHz mono 16-bit FLAC."""
    encoded = io.BytesIO()
    soundfile.write(encoded, waveform.numpy(), SAMPLE_RATE, subtype='PCM_16', format='FLAC')
    # Another process that packs into the same shards removes their folder of copies once it is
    # empty.
    Path(path).parent.mkdir(exist_ok=True)
    with atomic_write(path) as partial:
        partial.write_bytes(encoded.getvalue())


def is_copy(path: str, seconds: float, tolerance: float = COPY_TOLERANCE) -> bool:
    """Return whether there is a recording of about this length at a path."""
    try:
        return abs(read_duration(path).seconds - seconds) <= tolerance
    except AudioError:
        return False


def check_packed(path: str, seconds: float) -> None:
    """Raise DataError if what a shard holds under a clip's name is not as long as the clip."""
    if not is_copy(path, seconds):
        folder = os.path.dirname(os.path.dirname(path))
        raise DataError(f'{path} is not the clip of {seconds:.1f} s that is to have this name: '
                        f'delete the folder {folder}, and the same command packs its clips again')
