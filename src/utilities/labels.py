"""Label files, which list the classes: index,mid,display_name."""
import csv
from dataclasses import dataclass
from pathlib import Path

from utilities.errors import DataError, error_reason
from utilities.formatting import quoted
from utilities.tables import quote_cells, read_table
from utilities.texts import read_text

COLUMNS = {'index', 'mid', 'display_name'}


@dataclass(frozen=True)
class Labels:
    """The classes of a label file, in the order of their indices.

    Attributes:
        mids: ids as datafiles use them ("machine ids" of Freebase, in AudioSet).
        names: what people call the classes.
    """
    mids: tuple[str, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.mids)

    def index(self) -> dict[str, int]:
        """Return the class index of each mid."""
        return {mid: i for i, mid in enumerate(self.mids)}


def read_labels(path: str | Path) -> Labels:
    """Read a label file.

    Raises:
        DataError: if the file is missing or malformed, or its indices are not 0, 1, 2, ...
    """
    try:
        columns, rows, _ = read_table(read_text(path), COLUMNS.issubset)
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f'cannot read the label file {path}: {error_reason(error)}') from None
    if not COLUMNS.issubset(columns):
        raise DataError(f'the label file {path} must begin with the line index,mid,display_name')
    if not rows:
        raise DataError(f'the label file {path} lists no classes')

    for i, (line, row) in enumerate(rows):
        has_cells = row['mid'] and row['display_name'] is not None and None not in row
        if row['index'] != str(i) or not has_cells:
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
        is_plain = not set(mid) & set(',"\r\n')
        lines.append(f'{i},{mid if is_plain else quote(mid)},{quote(name)}')
    return '\n'.join(lines) + '\n'
