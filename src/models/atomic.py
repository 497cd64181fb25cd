"""Write files so that they are whole or not there: under a temporary name first, then renamed."""
import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class WriteError(OSError):
    """A file that cannot be written; the message names it. What was at its path before stays."""


@contextlib.contextmanager
def write_errors(path: str | Path) -> Iterator[None]:
    """Turn an error in writing a file into a WriteError that names `path`.

    The message says if the disk is full.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, OSError):
            is_full = error.errno in DISK_FULL
        else:
            is_full = 'inline_container' in str(error)  # torch.save that fails to write
            if not is_full:
                raise
        hint = '; is the disk full?' if is_full else ''
        raise WriteError(f'cannot write {path}: {str(error).splitlines()[0]}{hint}') from error


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Give a temporary path to write to; on success, it is synced and takes the place of `path`.

    On an error, the temporary file is removed, and what was at `path` stays. Several processes may
    write the same path at once: it is always a whole file, in the end that of the last one.
    """
    path = Path(path)
    # torch.save writes the file's name into the file, up to its last dot. The random part comes
    # after that dot, so that the same weights give the same bytes.
    partial = path.with_name(f'.{path.name}.part-{secrets.token_hex(3)}')
    try:
        with write_errors(path):
            yield partial
            with open(partial, 'rb+') as file:  # Windows cannot sync a file opened for reading only
                os.fsync(file.fileno())
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def remove_leftovers(folder: str | Path, name: str = '*') -> None:
    """Remove the partial files that killed processes left in a folder.

    Call it only if no other process writes there: its partial files would be removed, too. `name`
    is that of the files that they were writing. It may have wildcards.
    """
    for partial in Path(folder).glob(f'.{name}.part-*'):
        partial.unlink(missing_ok=True)
