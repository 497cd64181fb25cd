"""Read a dataset from a CSV: paths, labels and, if the user likes, a split, folds or groups."""
import csv
import functools
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from audio import shards
from own_clips import LabelledClip
from own_folders import PARTS
from utilities.errors import DataError, error_reason
from utilities.formatting import quoted
from utilities.tables import find_file, read_table
from utilities.texts import read_text

# Our name of a column -> the headers that mean it. If a CSV has several of them, the first counts.
COLUMNS = {'path': ('path', 'file', 'filename', 'wav', 'filepath'),
           'labels': ('labels', 'label', 'class', 'category'),
           'fold': ('fold',), 'split': ('split',), 'group': ('group',)}
NEEDED_COLUMNS = ('path', 'labels')

Row = tuple[int, dict[str, str]]  # its line, and {our name of a column: cell}

logger = logging.getLogger(__name__)


def read_csv(path: Path) -> list[LabelledClip]:
    """Return the clips of a CSV. An empty cell of labels makes a negative.

    Paths in it are relative to its folder.

    Raises:
        DataError: something is wrong; the message says in which line.
    """
    rows = read_rows(path)
    separator = _label_separator(path, rows)
    clips: list[LabelledClip] = []
    lines: dict[str, int] = {}  # of the files that were listed before
    for line, cells in rows:
        clip = _clip_of(path, line, cells, separator)
        if clip.wav in lines:
            raise DataError(f'{path}, lines {lines[clip.wav]} and {line}: {quoted(cells["path"])} '
                            f'is listed twice; several labels of a file belong in one cell, '
                            f'separated by ;')
        lines[clip.wav] = line
        clips.append(clip)
    missing = [clip.wav for clip in clips if not is_file(path, clip.wav)]
    if missing:
        raise DataError(f'{path}: {len(missing)} of {len(clips)} audio files do not exist, the '
                        f'first is {quoted(missing[0])}; paths are relative to the folder of the '
                        f'CSV')
    return clips


def _label_separator(path, rows):
    """Return what separates labels in a cell, as a regular expression."""
    if any(re.search('[;|]', cells['labels']) for _, cells in rows):
        return '[;|]'  # a comma may then be part of a name
    if any(',' in cells['labels'] for _, cells in rows):
        logger.warning('%s: labels with a comma are read as several; to keep commas in names, '
                       'separate with ;', path)
    return ','


def _clip_of(path, line, cells, separator):
    """Return the clip of a row. Raises DataError."""
    names = [text.strip() for text in re.split(separator, cells['labels'])]
    labels = tuple(name for name in names if name)
    if cells['labels'] and not labels:
        raise DataError(f'{path}, line {line}: there is no label in {quoted(cells["labels"])}')
    part = PARTS.get(cells.get('split', '').lower(), '')
    if 'split' in cells and not part:
        raise DataError(f'{path}, line {line}: the split {quoted(cells["split"])} is none of '
                        f'{", ".join(PARTS)}')
    wav = find_file(path.parent, cells['path'], functools.partial(is_file, path))
    return LabelledClip(wav, labels, part, cells.get('fold', ''), cells.get('group', ''))


def is_file(csv_path: Path, wav: str) -> bool:
    """Return whether an audio file that a CSV lists is there.

    Raises:
        DataError: it is in a shard that is broken.
    """
    try:
        return shards.is_file(wav)
    except shards.ShardError as error:
        raise DataError(f'{csv_path}: {" ".join(str(error).split())}') from None


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a CSV. Only cells of labels may be empty.

    Raises:
        DataError: it is not such a CSV.
    """
    try:
        header, rows, separator = read_table(read_text(path), has_needed_columns)
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f'cannot read {path} as a CSV: {error_reason(error)}') from None
    columns = find_columns(path, header)
    for line, row in rows:
        if None in row or None in row.values():
            raise DataError(f'{path}, line {line}: there are not as many cells as in the header; '
                            f'a cell with {separator!r} in it needs quotes')
        for name, column in columns.items():
            if name != 'labels' and not row[column].strip():
                raise DataError(f'{path}, line {line}: the column {quoted(column)} is empty')
    if not rows:
        raise DataError(f'{path} lists no files')
    return [(line, {name: row[column].strip() for name, column in columns.items()})
            for line, row in rows]


def name_columns(header: Sequence[str]) -> dict[str, str]:
    """Return {our name of a column: its cell in the header} of the columns that we know."""
    by_name = {cell.strip().lower(): cell for cell in reversed(header)}
    return {name: next(by_name[word] for word in words if word in by_name)
            for name, words in COLUMNS.items() if not by_name.keys().isdisjoint(words)}


def has_needed_columns(header: Sequence[str]) -> bool:
    """Return whether a header names the columns that every CSV needs."""
    return name_columns(header).keys() >= set(NEEDED_COLUMNS)


def find_columns(path: Path, header: Sequence[str]) -> Mapping[str, str]:
    """Return what name_columns does.

    Raises:
        DataError: if columns are missing, or if there are both fold and split.
    """
    columns = name_columns(header)
    if {'fold', 'split'} <= columns.keys():
        raise DataError(f'{path} has the columns fold and split: leave one of them out')
    if not has_needed_columns(header):
        wanted = '; '.join(f'{name}: {" or ".join(words)}' for name, words in COLUMNS.items())
        raise DataError(f'{path} begins with the columns {quoted(", ".join(header))}, but '
                        f'{" and ".join(NEEDED_COLUMNS)} are needed; '
                        f'columns are known by these names: {wanted}')
    return columns
