"""Datafiles, which list the samples: {"data": [{"wav": path, "labels": "mid,mid"}, ...]}.

An entry may say which part of its recording it is: "start" and "seconds".
"""
import json
import math
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from utilities.errors import DataError, error_reason
from utilities.formatting import quoted
from utilities.texts import read_text

STRINGS = np.dtypes.StringDType()
WHOLE_RECORDING = 0.0, math.inf  # the part of an entry that has neither start nor length
MAX_SECONDS = 10 ** 9  # that an entry may name; larger ones would overflow as numbers of samples


@dataclass(frozen=True)
class Datafile:
    """The entries of a datafile, packed into arrays.

    Worker processes share arrays with their parent. They would copy two million Python objects.

    Attributes:
        wavs: paths as written, numpy StringDType (entries,).
        labels: mids joined by commas, '' for a negative, numpy StringDType (entries,).
        parts: what `entry_part` returns for each entry, float64 (entries, 2), or None if no entry
            has a start or a length.
    """
    path: Path
    wavs: np.ndarray
    labels: np.ndarray
    parts: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.wavs)

    def part(self, index: int) -> tuple[float, float]:
        """Return where in its recording an entry begins, and its greatest length, in seconds."""
        if self.parts is None:
            return WHOLE_RECORDING
        start, seconds = self.parts[index].tolist()
        return start, seconds

    @property
    def negatives(self) -> int:
        """How many entries are negatives: clips on which none of the classes is heard."""
        return int((self.labels == '').sum())


def read_datafile(path: str | Path, known_mids: Container[str]) -> Datafile:
    """Read a datafile whose labels must all be among known_mids.

    Raises:
        DataError: if the file is missing, malformed or empty, if an entry has no wav or no labels,
            or if a label is unknown.
    """
    entries = read_entries(path)
    for i, entry in enumerate(entries):
        if problem := entry_problem(entry, known_mids):
            raise DataError(f'the datafile {path}, entry {i}: {problem}')
    parts = None
    if any('start' in entry or 'seconds' in entry for entry in entries):
        parts = np.array(list(map(entry_part, entries)), dtype=np.float64)
    return Datafile(Path(path), np.array([entry['wav'] for entry in entries], dtype=STRINGS),
                    np.array([entry['labels'] for entry in entries], dtype=STRINGS), parts)


def read_entries(path: str | Path) -> list[Any]:
    """Return the list under "data" of a datafile, its entries unchecked.

    Raises:
        DataError: if the file is missing, malformed or empty.
    """
    try:
        entries = json.loads(read_text(path))['data']
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        form = '{"data": [{"wav": ..., "labels": ...}, ...]}'
        raise DataError(f'cannot read the datafile {path}, expected {form}: '
                        f'{error_reason(error)}') from None
    if not isinstance(entries, list) or not entries:
        raise DataError(f'the datafile {path} lists no samples under "data"')
    return entries


def entry_problem(entry: Any, known_mids: Container[str]) -> str | None:
    """Return what is wrong with one entry of a datafile, if anything is."""
    wav, labels = None, None
    if isinstance(entry, dict):
        wav, labels = entry.get('wav'), entry.get('labels')
    if not is_text(wav) or not (is_text(labels) or labels == ''):
        return (f'expected "wav" and "labels", each a non-empty text, or "labels": "" if no class '
                f'is heard, got {quoted(str(entry))}')
    for mid in split_labels(labels):
        if mid not in known_mids:
            return f'{quoted(wav)}: the label {quoted(mid)} is not in the label file'
    return part_problem(entry)


def part_problem(entry: dict[str, Any]) -> str | None:
    """Return what is wrong with the start and the length of an entry, if anything is."""
    start, seconds = entry_part(entry)
    if not (_is_number(start) and 0 <= start <= MAX_SECONDS):
        return (f'{quoted(entry["wav"])}: "start" is where the sample begins in its recording, in '
                f'seconds from 0 on, got {quoted(str(start))}')
    if 'seconds' in entry and not (_is_number(seconds) and 0 < seconds <= MAX_SECONDS):
        return (f'{quoted(entry["wav"])}: "seconds" is how long the sample is, in seconds above '
                f'0, got {quoted(str(seconds))}')
    return None


def entry_part(entry: dict[str, Any]) -> tuple[float, float]:
    """Return where in its recording an entry begins, and its greatest length, in seconds."""
    return entry.get('start', WHOLE_RECORDING[0]), entry.get('seconds', WHOLE_RECORDING[1])


def split_labels(labels: str) -> list[str]:
    """Return the mids in the "labels" of a datafile's entry, each once: [] for a negative."""
    return list(dict.fromkeys(labels.split(','))) if labels else []


def is_text(value: Any) -> TypeGuard[str]:
    """Return whether a value is text that may name a file."""
    if not isinstance(value, str) or not value or '\0' in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half a character, as JSON's "\ud800"
        return False
    return True


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)
