"""Label files (index,mid,display_name), datafiles ({"data": [{"wav": ..., "labels": "mid,mid"}]}), weight files.

An entry of a datafile may say which part of its recording it is: "start" and "seconds".
"""
import csv
import json
import math
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utilities.errors import DataError, error_reason
from utilities.formatting import quoted
from utilities.tables import quote_cells, read_table, read_text

STRINGS = np.dtypes.StringDType()
WHOLE_RECORDING = 0.0, math.inf  # the window of an entry that has neither start nor length
MAX_SECONDS = 10 ** 9  # that an entry may name; larger ones would overflow as numbers of samples
SURROGATES = re.compile(r'[\ud800-\udfff]')
LABEL_COLUMNS = {'index', 'mid', 'display_name'}
WEIGHT_RULE = ('the sum over its labels of 1000 / (samples with that label + 0.01), having no '
               'label being one more label')


@dataclass(frozen=True)
class Labels:
    """The classes of a label file, in the order of their indices: machine ids and names that people read."""
    mids: tuple[str, ...]
    names: tuple[str, ...]

    def __len__(self):
        return len(self.mids)

    def index(self):
        """Class index of each mid."""
        return {mid: i for i, mid in enumerate(self.mids)}


def read_labels(path):
    """Read a label file. Raises DataError if it is missing or malformed, or its indices are not 0, 1, 2, ..."""
    try:
        columns, rows, _ = read_table(read_text(path), LABEL_COLUMNS.issubset)
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f'cannot read the label file {path}: {error_reason(error)}') from None
    if not LABEL_COLUMNS.issubset(columns):
        raise DataError(f'the label file {path} must begin with the line index,mid,display_name')
    if not rows:
        raise DataError(f'the label file {path} lists no classes')
    for i, (line, row) in enumerate(rows):
        if row['index'] != str(i) or not row['mid'] or row['display_name'] is None or None in row:
            raise DataError(f'the label file {path}, line {line}: expected index {i}, a mid and a '
                            f'name, in quotes if it has commas, got {quote_cells(row)}')
    mids = tuple(row['mid'] for _, row in rows)
    if len(set(mids)) < len(mids):
        repeated = next(mid for i, mid in enumerate(mids) if mid in mids[:i])
        raise DataError(f'the label file {path} lists {quoted(repeated)} twice')
    return Labels(mids, tuple(row['display_name'] for _, row in rows))


def format_labels(labels: Labels) -> str:
    """Return the text of a label file, names in quotes as in the published ones.

    Scripts that were written for those take the quotes for granted.
    """
    def quote(text):
        return '"' + text.replace('"', '""') + '"'

    lines = ['index,mid,display_name']
    for i, (mid, name) in enumerate(zip(labels.mids, labels.names)):
        plain = not set(mid) & set(',"\r\n')
        lines.append(f'{i},{mid if plain else quote(mid)},{quote(name)}')
    return '\n'.join(lines) + '\n'


@dataclass(frozen=True)
class Datafile:
    """The entries of a datafile, packed: two million are two arrays that worker processes share, not Python objects.

    wavs: paths as written; labels: mids joined by commas, '' for a negative. Both numpy
    StringDType, (entries,).
    windows: what `entry_window` returns for each entry, (entries, 2) float64, or None if no entry
    has a start or a length.
    """
    path: Path
    wavs: np.ndarray
    labels: np.ndarray
    windows: np.ndarray | None = None

    def __len__(self):
        return len(self.wavs)

    def window(self, index: int) -> tuple[float, float]:
        """Return where in its recording an entry begins, and its greatest length, in seconds."""
        return WHOLE_RECORDING if self.windows is None else tuple(self.windows[index].tolist())

    @property
    def negatives(self) -> int:
        """How many entries are negatives: clips on which none of the classes is heard."""
        return int((self.labels == '').sum())


def split_labels(labels: str) -> list[str]:
    """Return the mids in the "labels" of a datafile's entry; of a negative, none."""
    return labels.split(',') if labels else []


def read_entries(path):
    """The list under "data" of a datafile, as it is. Raises DataError if the file is missing, malformed or empty."""
    try:
        entries = json.loads(read_text(path))['data']
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f'cannot read the datafile {path}, expected {{"data": [{{"wav": ..., "labels": ...}}, ...]}}: '
                        f'{error_reason(error)}') from None
    if not isinstance(entries, list) or not entries:
        raise DataError(f'the datafile {path} lists no samples under "data"')
    return entries


def entry_problem(entry, known_mids):
    """What is wrong with one entry of a datafile, as text, or None."""
    values = (entry.get('wav'), entry.get('labels')) if isinstance(entry, dict) else (None,)
    if not is_text(values[0]) or not (values[1] == '' or is_text(values[1])):
        return (f'expected "wav" and "labels", both non-empty text ("labels": "" if no class is '
                f'heard), got {quoted(str(entry))}')
    for mid in split_labels(entry['labels']):
        if mid not in known_mids:
            return f'{quoted(entry["wav"])}: the label {quoted(mid)} is not in the label file'
    return window_problem(entry)


def window_problem(entry: dict) -> str | None:
    """Return what is wrong with the start and the length of an entry, if anything is."""
    start, seconds = entry_window(entry)
    if not (_is_number(start) and 0 <= start <= MAX_SECONDS):
        return (f'{quoted(entry["wav"])}: "start" is where the sample begins in its recording, in '
                f'seconds from 0 on, got {quoted(str(start))}')
    if 'seconds' in entry and not (_is_number(seconds) and 0 < seconds <= MAX_SECONDS):
        return (f'{quoted(entry["wav"])}: "seconds" is how long the sample is, in seconds above '
                f'0, got {quoted(str(seconds))}')
    return None


def entry_window(entry: dict) -> tuple[float, float]:
    """Return where in its recording an entry begins, and its greatest length, in seconds."""
    return entry.get('start', WHOLE_RECORDING[0]), entry.get('seconds', WHOLE_RECORDING[1])


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_text(value):
    """Whether a value is text that may name a file; JSON's "\\ud800" is half a character, which UTF-8 does not have."""
    return isinstance(value, str) and bool(value) and '\0' not in value and (
        value.isascii() or not SURROGATES.search(value))


def read_datafile(path, known_mids):
    """Read a datafile whose labels must all be among known_mids.

    Raises DataError for a missing, malformed or empty file, for an entry without wav or labels, for an unknown label.
    """
    entries = read_entries(path)
    for i, entry in enumerate(entries):
        if problem := entry_problem(entry, known_mids):
            raise DataError(f'the datafile {path}, entry {i}: {problem}')
    windows = None
    if any('start' in entry or 'seconds' in entry for entry in entries):
        windows = np.array(list(map(entry_window, entries)), dtype=np.float64)
    return Datafile(Path(path), np.array([entry['wav'] for entry in entries], dtype=STRINGS),
                    np.array([entry['labels'] for entry in entries], dtype=STRINGS), windows)


def read_sample_weights(path, samples):
    """Return the weights (samples,) float64 of a weight file, one number per sample. Raises DataError."""
    try:
        weights = read_numbers(path, ndmin=1)
    except (OSError, ValueError) as error:
        raise DataError(f'cannot read the weight file {path}: {error_reason(error)}; it holds, '
                        f'for each sample, {WEIGHT_RULE}') from None
    if weights.shape != (samples,) or not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise DataError(f'the weight file {path} must hold {samples} non-negative numbers, one for each sample of its '
                        f'datafile ({WEIGHT_RULE}), got shape {weights.shape}')
    return weights


def read_numbers(path, ndmin):
    """The numbers of a comma-separated file, float64, without a warning where there are none. OSError, ValueError."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)  # of an empty file
        return np.loadtxt(path, dtype=np.float64, ndmin=ndmin, delimiter=',')


def weight_file(datafile):
    """Path of the weight file that belongs to a datafile: `<datafile without .json>_weight.csv`."""
    return Path(str(datafile).removesuffix('.json') + '_weight.csv')
