"""Folders: made for what is about to be written, removed again where nothing came of it, and walked for their files."""
import contextlib
import os
from pathlib import Path

from utilities.errors import DataError


@contextlib.contextmanager
def making(*folders):
    """Make folders, and those above them; in the end, those of them in which nothing came to be are removed again.

    Raises DataError that names the first one that cannot be made.
    """
    made = []
    try:
        for folder in map(Path, folders):
            made += [one for one in (folder, *folder.parents) if not os.path.lexists(one) and one not in made]
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DataError(f'the folder {folder} cannot be made: {error.strerror}') from None
        yield
    finally:
        for folder in sorted(made, key=lambda one: len(one.parts), reverse=True):
            with contextlib.suppress(OSError):
                folder.rmdir()  # where it is empty


def files_below(folder):
    """Yield the paths, as text, of all files in a folder and in those in it; hidden ones are left out.

    Links are followed, and each folder is walked once. Raises DataError if one cannot be read.
    """
    seen = set()
    for parent, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        real = os.path.realpath(parent)
        folders[:] = [] if real in seen else _visible(folders)
        if real not in seen:  # no link to where the walk has been
            yield from (os.path.join(parent, name) for name in _visible(files))
        seen.add(real)


def _visible(names):
    return [name for name in names if not name.startswith('.')]


def _refuse(error):
    raise DataError(f'cannot read the folder {error.filename}: {error.strerror}')
