"""Pack recordings into shards: uncompressed zip archives, which src/audio/shards.py reads."""
import collections
import contextlib
import logging
import os
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from tqdm import tqdm

from models.atomic import atomic_write, remove_leftovers
from utilities.errors import DataError
from utilities.preparation import locked_folder

logger = logging.getLogger(__name__)


def pack(files: Mapping[str, str | Path], folder: Path, shard_bytes: float,
         scratch: Path | None = None) -> dict[str, str]:
    """Pack files into the shards folder/0001.zip, 0002.zip, ..., except those packed before.

    A shard appears once it is whole and was read back. If a run is interrupted, the next one packs
    what is in no shard.

    Args:
        files: name in its shard -> path.
        folder: of the shards; made if it is not there.
        shard_bytes: size of a shard, about.
        scratch: a folder from which files of these names are removed once they are packed, and
            which is removed if it is empty then.

    Returns:
        name -> path into the shard, for all of them.
    """
    with locked_folder(folder):
        remove_leftovers(folder, '*.zip')
        packed, count = packed_before(folder)
        _remove(packed.keys() & files, scratch)  # what a run left that was killed
        left = collections.deque((name, path) for name, path in files.items() if name not in packed)
        with tqdm(total=len(left), desc='packing shards', unit='clip', disable=None) as bar:
            while left:
                count += 1
                shard = folder / f'{count:04d}.zip'
                with atomic_write(shard) as partial:
                    names = write_shard(partial, left, shard_bytes, bar)
                    check_shard(partial)
                packed.update(dict.fromkeys(names, shard))
                _remove(names, scratch)
                logger.info('%s: %d clips, %d left to pack', shard, len(names), len(left))
    if scratch:
        with contextlib.suppress(OSError):
            scratch.rmdir()
    return {name: f'{packed[name]}/{name}' for name in files}


def _remove(names: Iterable[str], folder: Path | None) -> None:
    """Remove files of these names from a folder, if there is one."""
    if folder:
        for name in names:
            (folder / name).unlink(missing_ok=True)


def packed_before(folder: Path) -> tuple[dict[str, Path], int]:
    """Return what the shards of a folder hold, name -> shard, and the highest number of a shard."""
    packed: dict[str, Path] = {}
    count = 0
    for shard in sorted(folder.glob('*.zip')):
        try:
            with zipfile.ZipFile(shard) as archive:
                packed.update(dict.fromkeys(archive.namelist(), shard))
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(f'the shard {shard} cannot be read ({error}): delete it, and the same '
                            'command packs its clips again') from None
        count = max(count, int(shard.stem) if shard.stem.isdecimal() else 0)
    return packed, count


def write_shard(path: Path, left: collections.deque[tuple[str, str | Path]], shard_bytes: float,
                bar: tqdm) -> list[str]:
    """Write a zip of about this many bytes.

    Args:
        left: (name, path) of files; those that are written are removed from its front.
        bar: counts the files.

    Returns:
        The names of the files that were written. Raises DataError for one that cannot be read.
    """
    names, size = [], 0
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED) as archive:
        while left and size < shard_bytes:
            name, source = left.popleft()
            try:
                data = Path(source).read_bytes()
            except OSError as error:
                raise DataError(f'cannot read {source}: {error.strerror}') from None
            archive.writestr(zipfile.ZipInfo(name), data)
            names.append(name)
            size += len(data)
            bar.update()
    return names


def check_shard(path: Path) -> None:
    """Read a shard back from the disk and check every file in it. Raises OSError."""
    with open(path, 'rb+') as file:  # Windows syncs no file that is open for reading alone
        os.fsync(file.fileno())
        if hasattr(os, 'posix_fadvise'):  # what is still in memory says nothing of the disk
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            with zipfile.ZipFile(file) as archive:
                damaged = archive.testzip()
        except zipfile.BadZipFile:
            damaged = 'the list of its files'
        if damaged:
            raise OSError(f'{damaged} cannot be read back as it was written')
