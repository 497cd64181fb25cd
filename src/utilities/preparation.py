"""Prepared data: whether a folder holds a finished preparation, and which source it was made from."""
import contextlib
import json
from pathlib import Path

from filelock import FileLock

from models.files import DownloadError, download
from utilities.folders import making
from utilities.labels import DataError
from utilities.results import write_json

MARKER = 'source.json'  # says which source a folder was prepared from


@contextlib.contextmanager
def only_one(out_dir):
    """Make the folder of a preparation and keep other processes out of it: jobs of one dataset may start together.

    A folder in which nothing came to be is removed again.
    """
    with making(out_dir), FileLock(out_dir / 'lock'):
        try:
            yield
        finally:
            if {entry.name for entry in out_dir.iterdir()} <= {'lock', MARKER}:
                for name in ('lock', MARKER):  # the lock before its release: who waits for a lost file asks again
                    (out_dir / name).unlink(missing_ok=True)


def fetch(url, check):
    """Download a dataset; raises DataError that says how to do without a network."""
    try:
        download([url], check)
    except DownloadError as error:
        raise DataError(f'the dataset could not be downloaded:\n{error}\nGet {url} on a machine with network, and give '
                        f'the file with --data_dir') from None


def is_prepared(datafiles):
    """Whether all these datafiles are there, and every recording that they list."""
    return all(map(Path.exists, datafiles)) and all(
        Path(entry['wav']).exists() for datafile in datafiles for entry in json.loads(datafile.read_text())['data'])


def check_not_mixed(out_dir, source, *made):
    """Raise DataError where out_dir was prepared from another source, whose recordings may have the same names.

    made: what a preparation leaves in out_dir, besides the mark of its source, which this writes.
    """
    marker = out_dir / MARKER
    before = json.loads(marker.read_text())['source'] if marker.exists() else None
    left = [str(path) for path in made if path.exists()]
    if before not in (None, source) and left:
        raise DataError(f'{out_dir} was prepared from {before}, not from {source}: give another folder with '
                        f'--prep_dir, or remove {" and ".join([*left, str(marker)])}')
    if before != source:
        write_json(marker, {'source': source})
