"""Folders for what is about to be written: made with those above them, and removed again where nothing came of it."""
import contextlib
import os
from pathlib import Path

from utilities.labels import DataError


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
