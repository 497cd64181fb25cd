"""Folders: made for what a program writes, and walked for their files."""
import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from utilities.errors import DataError


@contextlib.contextmanager
def output_folders(*folders: str | Path) -> Iterator[None]:
    """Make folders and the folders above them; at the end, remove those that stayed empty.

    Only folders that were made here are removed.

    Raises:
        DataError: if one cannot be made; names it.
    """
    made: list[Path] = []
    try:
        for folder in map(Path, folders):
            new = (one for one in (folder, *folder.parents) if not os.path.lexists(one))
            made += [one for one in new if one not in made]
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DataError(f'the folder {folder} cannot be made: {error.strerror}') from None
        yield
    finally:
        for folder in sorted(made, key=lambda one: len(one.parts), reverse=True):
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()


def require_new_folder(path: Path) -> None:
    """Raise DataError if there is something at a path other than an empty folder."""
    if path.is_dir():
        if any(path.iterdir()):
            raise DataError(f'the folder {path} is not empty: name another one, or remove it first')
    elif os.path.lexists(path):
        raise DataError(f'{path} is no folder: name another one')


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give a folder to write to; on success, it takes the place of `path`.

    On an error it is removed, and nothing is left.

    Raises:
        DataError: if there is something at `path` other than an empty folder.
    """
    require_new_folder(path)
    path = Path(os.path.realpath(path))
    partial = path.with_name(f'.{path.name}.part-{secrets.token_hex(3)}')
    with output_folders(path.parent):
        partial.mkdir()
        try:
            yield partial
            if path.exists():  # Windows does not rename over an empty folder
                path.rmdir()
            partial.rename(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def files_below(folder: str | Path) -> Iterator[str]:
    """Yield the paths of all files in a folder and in the folders in it.

    Hidden files and folders are left out. Links are followed, and each folder is walked once.

    Raises:
        DataError: if a folder cannot be read.
    """
    seen = set()
    for parent, folders, files in os.walk(folder, onerror=_raise_unreadable, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link leads back to it
            folders.clear()
            continue
        seen.add(real)
        folders[:] = _visible(folders)
        yield from (os.path.join(parent, name) for name in _visible(files))


def _visible(names):
    return [name for name in names if not name.startswith('.')]


def _raise_unreadable(error):
    raise DataError(f'cannot read the folder {error.filename}: {error.strerror}')
