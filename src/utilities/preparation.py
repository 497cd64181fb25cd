"""Prepared data: whether a folder holds a finished preparation, and which source it was made from."""
import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from models.files import DownloadError, download, hold_lock
from utilities.datafiles import is_text
from utilities.errors import DataError
from utilities.folders import output_folders
from utilities.texts import read_json, write_json

MARKER = 'source.json'  # says which source a folder was prepared from


@contextlib.contextmanager
def only_one(out_dir):
    """Make the folder of a preparation and keep other processes out of it: jobs of one dataset may start together.

    A folder in which nothing came to be is removed again.
    """
    def has_data():
        return not {entry.name for entry in out_dir.iterdir()} <= {'lock', MARKER}

    with output_folders(out_dir), hold_lock(out_dir / 'lock', keep=has_data):
        try:
            yield
        finally:
            if not has_data():
                (out_dir / MARKER).unlink(missing_ok=True)


def fetch(url, check):
    """Download a dataset into the folder of only_one; raises DataError that says how to do without a network."""
    try:
        download([url], check)
    except DownloadError as error:
        raise DataError(f'the dataset could not be downloaded:\n{error}\nGet {url} on a machine with network, and give '
                        f'the file with --data_dir') from None
    finally:
        Path(f'{url.destination}.lock').unlink(missing_ok=True)  # of `download`, for which nobody else can wait here


def is_prepared(datafiles):
    """Tell whether all these datafiles are there, and every recording that they list.

    A recording with a relative path, as the published code lists them, does not count: it is there
    in one working directory alone. Raises DataError if a datafile is damaged.
    """
    return all(map(Path.exists, datafiles)) and all(
        Path(wav).is_absolute() and Path(wav).exists()
        for datafile in datafiles for wav in read_wavs(datafile))


def find_published(out_dir: Path, name: str, needed: Iterable[str], made: Iterable[Path]
                   ) -> Path | None:
    """Return the folder in which the published recipe left its dataset, if it is to be used.

    Args:
        out_dir: folder of the preparation, as which the published recipe has its `data`.
        name: of the folder in it.
        needed: files that the folder must hold; one that was broken off is not used.
        made: what a download leaves in out_dir, the archive first. If any of it is there, or
            out_dir was prepared from the archive, the download is used instead.
    """
    folder, made = out_dir / name, list(made)
    if not all((folder / file).is_file() for file in needed) or any(path.exists() for path in made):
        return None
    marker = out_dir / MARKER
    advice = f'remove {marker}'
    if marker.exists() and read_json(marker, advice).get('source') == str(made[0].resolve()):
        return None
    return folder


def read_wavs(datafile):
    """The recordings that a prepared datafile lists: none, where no clip of a subset fell to it. Raises DataError."""
    advice = 'delete it to have it made again, or give another folder with --prep_dir'
    entries = read_json(datafile, advice).get('data')
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and is_text(entry.get('wav'))
                                                for entry in entries):
        raise DataError(f'cannot read {datafile}: it is no datafile; {advice}')
    return [entry['wav'] for entry in entries]


def check_names(paths):
    """Raise DataError for the first of some paths that is not UTF-8, as no datafile can list it."""
    for path in map(str, paths):
        if not is_text(path):
            raise DataError(f'the name {os.fsencode(path)!r} is not UTF-8: rename it')


def check_not_mixed(out_dir, source, *made):
    """Raise DataError if out_dir was prepared from another source, whose recordings may have the same names.

    made: what a preparation leaves in out_dir, besides the mark of its source, which this writes.
    """
    marker = out_dir / MARKER
    left = [str(path) for path in made if path.exists()]
    advice = f'give another folder with --prep_dir, or remove {" and ".join([*left, str(marker)])}'
    before = read_json(marker, advice).get('source', '') if marker.exists() else None
    if before not in (None, source) and left:
        raise DataError(f'{out_dir} was prepared from {before or "an unknown source"}, not from {source}: {advice}')
    if before != source:
        write_json(marker, {'source': source})
