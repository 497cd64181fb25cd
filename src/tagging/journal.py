"""A long job of tagging that can be interrupted: the same command line continues where it stopped.

While a job runs, its files grow under the name <name>.partial. A journal beside the first of them,
<name>.progress, gets a line for every recording, after the recording's results are written. The
line says how large each file was then. To continue, the job takes the last undamaged line and cuts
each file to the size written there.
"""
import contextlib
import json
import logging
from pathlib import Path
from typing import NamedTuple

from models.locks import LockedError, hold_lock
from tagging.outputs import GrowingFile
from tagging.result import Done, Tagging
from utilities.errors import DataError

logger = logging.getLogger(__name__)


class State(NamedTuple):
    """A line of a journal: how far the job was.

    Attributes:
        files: how many recordings are done.
        windows: how many windows they have, those that could not be read among them.
        failed: how many recordings could not be read.
        sizes: the size of each output file in bytes.
        finished: whether all output files are complete.
    """
    files: int = 0
    windows: int = 0
    failed: int = 0
    sizes: list[int] = []
    finished: bool = False


def _read_line(line):
    """Return the value in a line of a journal, or None if the line is damaged."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def _read_state(line):
    """Return the State in a line of a journal, or None if the line is damaged."""
    fields = _read_line(line)
    is_whole = isinstance(fields, list) and len(fields) == len(State._fields)
    return State(*fields) if is_whole else None


@contextlib.contextmanager
def _lock(journal):
    """Keep out a second process that would write the same files."""
    try:
        with hold_lock(f'{journal}.lock', wait=False):
            yield
    except LockedError:
        raise DataError(f'another process is writing the files of the job {journal}') from None


class Job:
    """The output files of a job and the journal with which it continues. Use as a context manager.

    Args:
        files: the output files.
        beside: the file or folder that the journal is beside; None for a job that cannot continue.
        settings: all that the results depend on, {name that the user knows: value}.
        total: how many recordings there are.

    Raises:
        DataError: an unfinished job with other settings is in the way.
    """

    def __init__(self, files: list[GrowingFile], beside: Path | None = None,
                 settings: dict | None = None, total: int = 0):
        self.files, self.settings, self.total = files, settings or {}, total
        self.journal: GrowingFile | None = None
        if beside:
            self.journal = GrowingFile(beside.with_name(f'{beside.name}.progress'), in_place=True)
            self.journal.head = json.dumps(self.settings).encode() + b'\n'
        self.state = State(sizes=[0] * len(files))
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> 'Job':
        with contextlib.ExitStack() as stack:
            if self.journal:
                stack.enter_context(_lock(self.journal.path))
                self._open_journal(self.journal)
            stack.callback(self._close)
            if not self.state.finished:
                for file, size in zip(self.files, self.state.sizes):
                    file.open(size)
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *error) -> bool | None:
        return self.stack.__exit__(*error)

    @property
    def done(self) -> Done:
        """How much of the job is done."""
        return Done(self.state.files, self.state.windows)

    def add(self, tagging: Tagging) -> None:
        """Write what the files say about the next recording, then a line of the journal."""
        for file in self.files:
            file.write(file.piece(tagging))
        self._note(self.state._replace(
            files=self.state.files + 1, windows=self.state.windows + tagging.planned,
            failed=self.state.failed + bool(tagging.error),
            sizes=[file.size for file in self.files]))

    def finish(self) -> None:
        """Complete the files, give them their names, and remove the journal."""
        if not self.state.finished:
            for file in self.files:
                file.complete()
            self._note(self.state._replace(finished=True))
        for file in self.files:
            file.publish()
        if self.journal:
            self.journal.close()
            self.journal.path.unlink()

    def _note(self, state):
        if self.journal:
            self.journal.write(json.dumps(state).encode() + b'\n')
        self.state = state

    def _open_journal(self, journal):
        """Open the journal. If this job has begun already, go back to its last good state."""
        lines = self._good_lines(journal.path)
        if len(lines) < 2:  # nothing is done
            journal.open()
            return
        self.state = _read_state(lines[-1])
        logger.info('%d of %d recordings are tagged already', self.state.files, self.total)
        journal.open(sum(len(line) + 1 for line in lines))

    def _good_lines(self, path):
        """Return a journal's lines, settings first, up to the last state whose files are there.

        Raises DataError if they are of a job with other settings.
        """
        text = path.read_bytes() if path.exists() else b''
        *lines, _ = text.split(b'\n')  # what follows the last newline is no whole line
        if len(lines) > 1:
            before = _read_line(lines[0])
            before = before if isinstance(before, dict) else {}
            self._refuse_if([name for name in self.settings
                             if before.get(name) != self.settings[name]])
        if not lines and any(file.partial.exists() for file in self.files):
            self._refuse_if(['outputs'])
        while len(lines) > 1 and not self._can_go_on(_read_state(lines[-1])):
            lines.pop()
        return lines

    def _refuse_if(self, differences):
        """Raise DataError if settings, whose names are given, differ from the unfinished job's."""
        if differences:
            paths = [file.partial for file in (self.journal, *self.files)]
            left = ' '.join(str(path) for path in paths if path.exists())
            raise DataError(f'there is an unfinished job with other {", ".join(differences)}: give '
                            f'its command line to continue with it, or remove {left}')

    def _can_go_on(self, state):
        """Return whether the files hold all that a state says; no if its line is damaged."""
        if state is None:
            return False
        return state.finished or all(
            file.partial.exists() and file.partial.stat().st_size >= size
            for file, size in zip(self.files, state.sizes))

    def _close(self):
        """Close the files. If the job can continue, the partial files and the journal stay."""
        for file in self.files:
            file.close()
        if not self.journal:
            return
        self.journal.close()
        if self.state.finished:
            return
        if self.state.files:
            logger.info('%d of %d recordings are tagged: the same command line continues from '
                        'there', self.state.files, self.total)
        else:
            for file in (self.journal, *self.files):
                file.partial.unlink(missing_ok=True)
