"""What inference writes, recording by recording, so that the same line goes on after a kill.

While a job runs, each file grows as <name>.partial and gets its name at the end. A journal beside
the first one, <name>.progress, has a line for every recording, written after its results: it says
how large each file was then. A line that is there counts, however the process ended; what the
files hold beyond it is cut off when the job goes on.
"""
import contextlib
import csv
import io
import json
import logging
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from models.atomic import atomic_write, write_errors
from models.locks import LockedError, hold_lock
from tagging.tagger import Done, Tagging
from utilities.errors import DataError

logger = logging.getLogger(__name__)


def as_json(tagging: Tagging, top_k: int) -> dict:
    """Return a Tagging for programs: path, seconds, windows, and mean and max over them.

    Each has the top_k best classes.
    """
    if tagging.error:
        return {'path': tagging.path, 'error': tagging.error}

    def tags(scores):
        # By way of text: the shortest number that is this float32.
        return [{'label': tagging.labels.names[i], 'mid': tagging.labels.mids[i],
                 'score': float(str(score))} for i, score in tagging.top(scores, top_k)]
    windows = [{'start': _rounded(start), 'end': _rounded(end), 'tags': tags(scores)}
               for start, end, scores in zip(tagging.starts, tagging.ends, tagging.scores)]
    return {'path': tagging.path, 'seconds': _rounded(tagging.seconds),
            'incomplete_from': _rounded(tagging.incomplete_from), 'windows': windows,
            'mean': tags(tagging.mean), 'max': tags(tagging.max)}


def _rounded(seconds):
    """Return seconds, or None, to the microsecond, without what multiplication leaves."""
    return None if seconds is None else round(float(seconds), 6)


class GrowingFile:
    """A file that grows by a piece for each recording; `head` and `tail` are around the pieces.

    Args:
        path: its name in the end.
        in_place: whether it has that name from the beginning, for those who read along.
    """
    head = tail = b''

    def __init__(self, path: Path, in_place: bool = False):
        self.path, self.file, self.size = path, None, 0
        self.partial = path if in_place else path.with_name(f'{path.name}.partial')

    def open(self, size: int = 0):
        """Open it, cut to so many bytes that an earlier start has written."""
        with write_errors(self.path):
            self.file = open(self.partial, 'ab', buffering=0)
            self.size = self.file.truncate(size)
        if not size:
            self.write(self.head)

    def write(self, data: bytes):
        """Write data at the end."""
        with write_errors(self.path):
            left = memoryview(data)
            while left:  # a disk that gets full takes a part, and refuses the next
                left = left[self.file.write(left):]
        self.size += len(data)

    def piece(self, tagging: Tagging) -> bytes:
        """Return what the file says about a recording."""
        raise NotImplementedError

    def close(self):
        """Close it as it is."""
        if self.file:
            self.file.close()

    def complete(self):
        """Write what follows the last whole piece; the file still has its partial name."""
        with write_errors(self.path):
            self.file.truncate(self.size)
        self.write(self.tail)
        with write_errors(self.path):
            os.fsync(self.file.fileno())
        self.close()

    def publish(self):
        """Give the complete file its name, if that was not done."""
        if self.partial != self.path and self.partial.exists():
            os.replace(self.partial, self.path)


class Csv(GrowingFile):
    """All scores: one row per window, with path, start, end, one column per class, and incomplete_from."""

    def __init__(self, path, names, in_place=False):
        super().__init__(path, in_place)
        self.head = self._rows([['path', 'start', 'end', *names, 'incomplete_from']])

    def piece(self, tagging):
        incomplete_from = _rounded(tagging.incomplete_from)  # csv writes None as nothing
        return self._rows(
            [tagging.path, _rounded(start), _rounded(end), *map(str, scores), incomplete_from]
            for start, end, scores in zip(tagging.starts, tagging.ends, tagging.scores))

    @staticmethod
    def _rows(rows):
        text = io.StringIO()
        csv.writer(text).writerows(rows)
        return text.getvalue().encode('utf-8', 'surrogateescape')  # a name need not be UTF-8


class JsonLines(GrowingFile):
    """The best classes of each recording: one JSON object per line."""

    def __init__(self, path, top_k, in_place=False):
        super().__init__(path, in_place)
        self.top_k = top_k

    def piece(self, tagging):
        return json.dumps(as_json(tagging, self.top_k)).encode() + b'\n'


class Json(JsonLines):
    """The same as a list of objects."""
    head, tail = b'[', b'\n]\n'

    def piece(self, tagging):
        text = json.dumps([as_json(tagging, self.top_k)], indent=1)
        first = self.size == len(self.head)
        return (b'' if first else b',') + text.encode()[len(b'['):-len(b'\n]')]


class Embeddings(GrowingFile):
    """The embeddings (windows, dim), and of each window the path of its recording and its start.

    The pieces are records of fixed size. In the end they become an .npz, and are not all in memory
    for that.
    """

    def __init__(self, path, dim, longest_path):
        super().__init__(path)
        self.record = np.dtype([('embeddings', np.float32, dim), ('paths', 'U', longest_path),
                                ('starts', np.float64)])

    def piece(self, tagging):
        records = np.zeros(len(tagging.starts), self.record)
        if not tagging.error:
            records['embeddings'], records['paths'] = tagging.embeddings, tagging.path
            records['starts'] = tagging.starts
        return records.tobytes()

    def complete(self):
        self.close()
        if not self.size:
            records = np.zeros(0, self.record)
        else:
            records = np.memmap(self.partial, self.record, 'r')
        with atomic_write(self.path) as partial, open(partial, 'wb') as file:
            np.savez(file, **{name: records[name] for name in self.record.names})

    def publish(self):
        self.partial.unlink(missing_ok=True)


class State(NamedTuple):
    """A line of a journal: how far the job was, and how large its files were then.

    windows: of all recordings, those that could not be read among them.
    """
    files: int = 0
    windows: int = 0
    failed: int = 0
    sizes: list = []
    finished: bool = False


class Results:
    """The files of a job, and the journal with which the same job goes on. A context manager.

    Args:
        files: the GrowingFiles.
        beside: the file or folder that the journal is beside; None for a job that cannot go on.
        job: what the results depend on, by names that the user knows.
        total: how many recordings there are.

    Raises:
        DataError: what an unfinished job of another kind has left is in the way.
    """

    def __init__(self, files: list[GrowingFile], beside: Path | None = None,
                 job: dict | None = None, total: int = 0):
        self.files, self.job, self.total, self.journal = files, job, total, None
        self.path = beside and beside.with_name(f'{beside.name}.progress')
        self.state = State(sizes=[0] * len(files))
        self.stack = contextlib.ExitStack()

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            if self.path:
                stack.enter_context(self._lock())
                self._read_journal()
            stack.push(self._leave)
            for file, size in zip(self.files, self.state.sizes):
                if not self.state.finished:
                    file.open(size)
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *error):
        return self.stack.__exit__(*error)

    @contextlib.contextmanager
    def _lock(self):
        """Keep out a second process that would write the same files."""
        try:
            with hold_lock(f'{self.path}.lock', wait=False):
                yield
        except LockedError:
            raise DataError(f'another process is writing what {self.path} is about') from None

    def _read_journal(self):
        """Go back to the last state whose files are there, if this job has begun already."""
        *lines, _ = self.path.read_bytes().split(b'\n') if self.path.exists() else [b'']
        if len(lines) > 1:  # of a job that did nothing yet, there is nothing to lose
            before = json.loads(lines[0])
            self._refuse_if([name for name in self.job if before.get(name) != self.job[name]])
        if not lines and any(file.partial.exists() for file in self.files):
            self._refuse_if(['outputs'])
        while len(lines) > 1 and not self._can_go_on(State(*json.loads(lines[-1]))):
            lines.pop()
        self.journal = GrowingFile(self.path, in_place=True)
        self.journal.head = json.dumps(self.job).encode() + b'\n'
        if len(lines) > 1:
            self.state = State(*json.loads(lines[-1]))
            logger.info('%d of %d recordings are tagged already', self.state.files, self.total)
        self.journal.open(sum(len(line) + 1 for line in lines) if len(lines) > 1 else 0)

    def _refuse_if(self, differences):
        if differences:
            paths = self.path, *(file.partial for file in self.files)
            left = ' '.join(str(path) for path in paths if path.exists())
            raise DataError(f'there is an unfinished job with other {", ".join(differences)}: give '
                            f'its command line to go on with it, or remove {left}')

    def _can_go_on(self, state):
        """Whether the files have all that a state says."""
        return state.finished or all(file.partial.exists() and file.partial.stat().st_size >= size
                                     for file, size in zip(self.files, state.sizes))

    @property
    def done(self) -> Done:
        """How much of the job is done."""
        return Done(self.state.files, self.state.windows)

    def add(self, tagging: Tagging):
        """Write what the files say about the next recording."""
        for file in self.files:
            file.write(file.piece(tagging))
        self._note(self.state._replace(
            files=self.state.files + 1, windows=self.state.windows + tagging.planned,
            failed=self.state.failed + bool(tagging.error),
            sizes=[file.size for file in self.files]))

    def _note(self, state):
        if self.path:
            self.journal.write(json.dumps(state).encode() + b'\n')
        self.state = state

    def finish(self):
        """Complete the files, give them their names, and remove the journal."""
        if not self.state.finished:
            for file in self.files:
                file.complete()
            self._note(self.state._replace(finished=True))
        for file in self.files:
            file.publish()
        if self.path:
            self.journal.close()
            self.path.unlink()

    def _leave(self, *_):
        """Close what is open. If the job can go on, the partial files and the journal stay."""
        for file in (*self.files, *filter(None, [self.journal])):
            file.close()
        if self.state.finished or not self.path:
            return
        if self.state.files:
            logger.info('%d of %d recordings are tagged: the same command line goes on from there',
                        self.state.files, self.total)
        else:
            for path in (self.path, *(file.partial for file in self.files)):
                path.unlink(missing_ok=True)
