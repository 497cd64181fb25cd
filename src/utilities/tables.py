"""Tables that people bring: CSV files from any editor, spreadsheet or operating system."""
import csv
import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np

from utilities.formatting import quoted

SEPARATORS = ',;\t'  # Excel writes semicolons if the decimal mark is a comma


def read_table(text: str, fits: Callable[[list[str]], bool]
               ) -> tuple[list[str], list[tuple[int, dict]], str]:
    """Read a CSV that begins with a header.

    Args:
        text: text of the whole file.
        fits: tells whether a header, a list of cells, is the expected one. It chooses the
            separator among SEPARATORS. If no header fits, the separator that finds the most cells
            is taken.

    Returns:
        The header's cells, the rows as (line number, row of csv.DictReader), and the separator.
        Rows whose cells are all blank, which spreadsheets write, are left out.

    Raises:
        csv.Error: if the text is no CSV.
    """
    headers = {separator: next(csv.reader(io.StringIO(text), delimiter=separator), [])
               for separator in SEPARATORS}
    separator = max(headers, key=lambda one: (fits(headers[one]), len(headers[one])))
    reader = csv.DictReader(io.StringIO(text), delimiter=separator)
    # A cell is a text, None if the row is too short, or a list of the cells beyond the header.
    rows = [(reader.line_num, row) for row in reader
            if any(cell and ''.join(cell).strip() for cell in row.values())]
    return headers[separator], rows, separator


def quote_cells(row: dict) -> str:
    """Quote the cells of a row of csv.DictReader, with those beyond the header, for a message."""
    return quoted(','.join(','.join(cell) if isinstance(cell, list) else cell or ''
                           for cell in row.values()))


def find_file(folder: str | Path, name: str, exists: Callable[[str], bool]) -> str:
    r"""Return the absolute path of a file that a table in `folder` names.

    The table may come from Windows: audio\dog.wav is dog.wav in the folder audio, unless `exists`
    knows a file of that very name.
    """
    as_written, with_slashes = (os.path.abspath(os.path.join(folder, path))
                                for path in (name, name.replace('\\', '/')))
    return as_written if as_written == with_slashes or exists(as_written) else with_slashes


def read_numbers(path: str | Path, ndmin: Literal[1, 2]) -> np.ndarray:
    """Read a comma-separated file of numbers, without a header, as float64.

    Args:
        ndmin: least number of dimensions of the result.

    Raises:
        OSError, ValueError: if it cannot be read. An empty file has no numbers, and no warning.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)
        return np.loadtxt(path, dtype=np.float64, ndmin=ndmin, delimiter=',')
