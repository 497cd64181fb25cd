"""Recordings in parquet files, as agkphysics/AudioSet on Hugging Face has them.

A row has the columns video_id and audio, a struct of bytes and path.
"""
import contextlib
import itertools
import os
from collections.abc import Container, Iterator
from typing import NamedTuple

from utilities.errors import DataError, error_reason

COLUMNS = ('video_id', 'audio.bytes', 'audio.path')
ROWS_AT_ONCE = 8  # a row has about 1.4 MB
BUFFER_BYTES = 2 ** 20  # read at a time; without a buffer, all bytes of a row group are in memory


class Row(NamedTuple):
    """Where in a parquet file a recording is, and what it is called.

    Attributes:
        path: of the parquet file.
        group: number of the row group.
        number: number in the row group.
    """
    path: str
    group: int
    number: int
    name: str


def list_rows(path: str) -> list[Row]:
    """Return the recordings of a parquet file. Raises DataError if it is not one, or has none."""
    with _open(path) as file:
        rows = []
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=['video_id', 'audio.path'])
            names = zip(table['video_id'].to_pylist(), table['audio'].to_pylist())
            rows += [Row(path, group, row, _name(video_id, (audio or {}).get('path')))
                     for row, (video_id, audio) in enumerate(names)]
    return rows


def read_rows(path: str, group: int, wanted: Container[int]) -> Iterator[tuple[int, bytes | None]]:
    """Yield the number and the audio of the wanted rows of a row group.

    Up to two row groups of audio are in memory: a page of a parquet file is decoded whole, and may
    be as large as a row group.
    """
    with _open(path) as file:
        batches = file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=['audio.bytes'])
        rows = itertools.chain.from_iterable(batch['audio'] for batch in batches)
        for row, audio in enumerate(rows):
            if row in wanted:
                yield row, audio['bytes'].as_py() if audio.is_valid else None


@contextlib.contextmanager
def _open(path):
    """Open a parquet file. Any failure in reading it becomes a DataError."""
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise DataError(f'{path} is a parquet file, which takes the package pyarrow: '
                        'pip install pyarrow') from None
    try:
        with ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False) as file:
            columns = {file.schema.column(i).path for i in range(len(file.schema.names))}
            if not columns.issuperset(COLUMNS):
                raise DataError(f'the parquet file {path} has no columns video_id and audio (bytes '
                                'and path), as agkphysics/AudioSet has them: move it elsewhere')
            yield file
    except DataError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(f'cannot read the parquet file {path}: {error_reason(error)}; download it '
                        'again') from None


def _name(video_id, path):
    """Return the name of a recording's file; ID.flac if the file's own name lacks the id."""
    name = os.path.basename(path or '')
    return name if str(video_id) in name else f'{video_id}.flac'
