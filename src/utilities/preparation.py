"""Prepared data: folders that hold the datafiles of a dataset, and the source they came from."""
import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from models.downloads import Url, download
from models.locks import hold_lock
from utilities.datafiles import is_text
from utilities.errors import DataError
from utilities.folders import output_folders
from utilities.texts import read_json, write_json

MARKER = 'source.json'  # says which source a folder was prepared from


@contextlib.contextmanager
def locked_folder(out_dir: Path) -> Iterator[None]:
    """Make a folder, and keep other processes out of it.

    Several jobs may begin with the preparation of the same dataset. If nothing was written, the
    folder is removed at the end.
    """
    with output_folders(out_dir), hold_lock(out_dir / 'lock'):
        try:
            yield
        finally:
            if {entry.name for entry in out_dir.iterdir()} <= {'lock', MARKER}:
                (out_dir / MARKER).unlink(missing_ok=True)


def download_dataset(url: Url, check: Callable[[Path], Any]) -> None:
    """Download a dataset.

    Args:
        check: raises an error for a file that is not the dataset.

    Raises:
        DataError: if it cannot be downloaded. The message says how to do without a network.
    """
    try:
        download([url], check)
    except OSError as error:
        raise DataError(f'the dataset could not be downloaded:\n{error}\nGet {url} on a machine '
                        f'with network, and give the file with --data_dir') from None


def is_prepared(datafiles: Iterable[Path]) -> bool:
    """Return whether all these datafiles exist, and every recording that they list.

    A recording with a relative path, as the published code lists them, does not count: it exists
    in one working directory only.

    Raises:
        DataError: if a datafile is damaged.
    """
    datafiles = list(datafiles)
    if not all(datafile.exists() for datafile in datafiles):
        return False
    wavs = (Path(wav) for datafile in datafiles for wav in read_wavs(datafile))
    return all(wav.is_absolute() and wav.exists() for wav in wavs)


def read_wavs(datafile: Path) -> list[str]:
    """Return the recordings in a datafile, none if it has no clips. Raises DataError."""
    advice = 'delete it to have it made again, or give another folder with --prep_dir'
    entries: Any = read_json(datafile, advice).get('data')
    is_datafile = isinstance(entries, list) and all(
        isinstance(entry, dict) and is_text(entry.get('wav')) for entry in entries)
    if not is_datafile:
        raise DataError(f'cannot read {datafile}: it is no datafile; {advice}')
    return [entry['wav'] for entry in entries]


def find_published(out_dir: Path, name: str, needed: Iterable[str], made: Iterable[Path]
                   ) -> Path | None:
    """Return the folder in which the published recipe left its dataset, if it can be used.

    Args:
        out_dir: folder of the preparation; the published recipe calls its own `data`.
        name: name of the dataset's folder in out_dir.
        needed: files that the dataset's folder must hold. If some are missing, its preparation was
            interrupted, and it cannot be used.
        made: what a download leaves in out_dir, the archive first. If any of it exists, or
            out_dir was prepared from the archive, the download is used instead.
    """
    folder, made = out_dir / name, list(made)
    if not all((folder / file).is_file() for file in needed) or any(path.exists() for path in made):
        return None
    marker = out_dir / MARKER
    if marker.exists() and _read_source(marker, f'remove {marker}') == str(made[0].resolve()):
        return None
    return folder


def check_names(paths: Iterable[str | Path]) -> None:
    """Raise DataError if a path is not UTF-8: no datafile can list it."""
    for path in map(str, paths):
        if not is_text(path):
            raise DataError(f'the name {os.fsencode(path)!r} is not UTF-8: rename it')


def record_source(out_dir: Path, source: str, *made: Path) -> None:
    """Write down which source out_dir is prepared from, and refuse to mix two sources.

    Recordings of two sources may have the same names.

    Args:
        made: what a preparation leaves in out_dir.

    Raises:
        DataError: if out_dir holds some of it, prepared from another source.
    """
    marker = out_dir / MARKER
    left = [str(path) for path in made if path.exists()]
    advice = 'give another folder with --prep_dir, or remove '
    everything = advice + ' and '.join([*left, str(marker)])  # if the marker is damaged
    before = _read_source(marker, everything) if marker.exists() else None
    if left and before not in (None, source):
        raise DataError(f'{out_dir} was prepared from other data or with other settings: {before}; '
                        f'now it is {source}: {advice}{" and ".join(left)}; take another '
                        f'--exp_dir in either case')
    if before != source:
        write_json(marker, {'source': source})


def changed_error(datafiles: Path, source: str) -> DataError:
    """Return the error for datafiles that no longer list the clips of their source."""
    return DataError(f'{datafiles} lists other clips than {source}, which has changed: give '
                     f'another folder with --prep_dir, or remove {datafiles} to have it made '
                     f'again; take another --exp_dir in either case')


def _read_source(marker, advice):
    """Return the source in a marker. Raises DataError with advice if it does not say one."""
    source = read_json(marker, advice).get('source')
    if not source:
        raise DataError(f'{marker} does not say what the folder was prepared from: {advice}')
    return source
