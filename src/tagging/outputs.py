"""The files that inference writes: scores as CSV, best classes as JSON, embeddings as NPZ.

They grow recording by recording, under the name <name>.partial until the job is done.
"""
import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.atomic import atomic_write, write_errors
from tagging.result import Tagging


def as_json(tagging: Tagging, top_k: int) -> dict:
    """Return a Tagging for other programs: path, seconds, windows, and mean and max over them.

    Windows, mean and max each have the top_k best classes.
    """
    if tagging.error:
        return {'path': tagging.path, 'error': tagging.error}

    def tags(scores):
        # Through text, since a float32 has fewer digits than the float64 that JSON would write.
        return [{'label': tagging.labels.names[i], 'mid': tagging.labels.mids[i],
                 'score': float(str(score))} for i, score in tagging.top(scores, top_k)]

    windows = [{'start': _rounded(start), 'end': _rounded(end), 'tags': tags(scores)}
               for start, end, scores in zip(tagging.starts, tagging.ends, tagging.scores)]
    return {'path': tagging.path, 'seconds': _rounded(tagging.seconds),
            'incomplete_from': _rounded(tagging.incomplete_from), 'windows': windows,
            'mean': tags(tagging.mean), 'max': tags(tagging.max)}


def _rounded(seconds: float | None) -> float | None:
    """Return seconds, or None, to the microsecond: multiples of a hop have rounding errors."""
    return None if seconds is None else round(float(seconds), 6)


class GrowingFile:
    """A file that grows by a piece for each recording.

    Args:
        path: its name when it is complete.
        in_place: give it that name at once, for programs that read it while it grows.

    Attributes:
        head: bytes before the first piece.
        tail: bytes after the last one.
        size: how many bytes are written.
    """
    head = tail = b''

    def __init__(self, path: Path, in_place: bool = False):
        self.path, self.size = path, 0
        self.file: Any = None  # an unbuffered binary file, once it is open
        self.partial = path if in_place else path.with_name(f'{path.name}.partial')

    def open(self, size: int = 0) -> None:
        """Open the file. Keep the first `size` bytes, which an earlier start has written."""
        with write_errors(self.path):
            self.file = open(self.partial, 'ab', buffering=0)
            self.size = self.file.truncate(size)
        if not size:
            self.write(self.head)

    def write(self, data: bytes) -> None:
        """Append data."""
        with write_errors(self.path):
            left = memoryview(data)
            while left:  # a disk that gets full takes a part, and refuses the next
                left = left[self.file.write(left):]
        self.size += len(data)

    def piece(self, tagging: Tagging) -> bytes:
        """Return what the file says about a recording."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the file as it is."""
        if self.file:
            self.file.close()

    def complete(self) -> None:
        """Write what follows the last piece. The file still has its partial name."""
        with write_errors(self.path):
            self.file.truncate(self.size)
        self.write(self.tail)
        with write_errors(self.path):
            os.fsync(self.file.fileno())
        self.close()

    def publish(self) -> None:
        """Give the complete file its name, if it does not have it yet."""
        if self.partial != self.path and self.partial.exists():
            os.replace(self.partial, self.path)


class Csv(GrowingFile):
    """All scores, one row per window: path, start, end, one column per class, incomplete_from.

    Args:
        names: names of the classes.
    """

    def __init__(self, path: Path, names: Sequence[str], in_place: bool = False):
        super().__init__(path, in_place)
        self.head = _csv_lines([['path', 'start', 'end', *names, 'incomplete_from']])

    def piece(self, tagging):
        incomplete_from = _rounded(tagging.incomplete_from)  # csv writes None as an empty cell
        return _csv_lines(
            [tagging.path, _rounded(start), _rounded(end), *map(str, scores), incomplete_from]
            for start, end, scores in zip(tagging.starts, tagging.ends, tagging.scores))


def _csv_lines(rows: Iterable[Sequence]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode('utf-8', 'surrogateescape')  # a path need not be UTF-8


class JsonLines(GrowingFile):
    """The best classes of each recording: one JSON object per line.

    Args:
        top_k: how many classes.
    """

    def __init__(self, path: Path, top_k: int, in_place: bool = False):
        super().__init__(path, in_place)
        self.top_k = top_k

    def piece(self, tagging):
        return json.dumps(as_json(tagging, self.top_k)).encode() + b'\n'


class Json(JsonLines):
    """The best classes of each recording: a JSON list of objects."""
    head, tail = b'[', b'\n]\n'

    def piece(self, tagging):
        # The text of a list of one object has the right indent; it loses its brackets.
        text = json.dumps([as_json(tagging, self.top_k)], indent=1).encode()
        is_first = self.size == len(self.head)
        return (b'' if is_first else b',') + text[len(b'['):-len(b'\n]')]


class Embeddings(GrowingFile):
    """The embeddings (windows, dim), and of each window its recording's path and its start.

    The pieces are records of fixed size. At the end they become an .npz without being all in
    memory.

    Args:
        dim: size of an embedding.
        longest_path: length of the longest path.
    """

    def __init__(self, path: Path, dim: int, longest_path: int):
        super().__init__(path)
        self.record = np.dtype([('embeddings', np.float32, dim), ('paths', 'U', longest_path),
                                ('starts', np.float64)])

    def piece(self, tagging):
        records = np.zeros(len(tagging.starts), self.record)
        if not tagging.error:
            records['embeddings'] = tagging.embeddings
            records['paths'] = tagging.path
            records['starts'] = tagging.starts
        return records.tobytes()

    def complete(self):
        self.close()
        if self.size:
            records = np.memmap(self.partial, self.record, 'r')
        else:
            records = np.zeros(0, self.record)
        with atomic_write(self.path) as partial, open(partial, 'wb') as file:
            np.savez(file, **{name: records[name] for name in self.record.names})

    def publish(self):
        """Remove the records. complete() has written the .npz under its name."""
        self.partial.unlink(missing_ok=True)
