"""Tables that people bring: CSV and text files from any editor, spreadsheet or operating system."""
import codecs
import csv
import io
import os
import re
from collections.abc import Callable
from pathlib import Path

from utilities.formatting import quoted

SEPARATORS = ',;\t'  # Excel writes semicolons where the decimal mark is a comma


def read_text(path: str | Path) -> str:
    """Read a text file as decode does. Raises OSError, and ValueError for other encodings."""
    return decode(Path(path).read_bytes())


def decode(data: bytes) -> str:
    r"""Return the text of a file's bytes, with \n at the end of every line.

    Args:
        data: UTF-8, or UTF-16 with a byte order mark, as Excel's "Unicode Text" and PowerShell
            write it.

    Raises:
        ValueError: for any other encoding. There are many, and a guess could be wrong without
            a word, so the message names the place and what to do.
    """
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode('utf-16' if is_utf16 else 'utf-8-sig')
    except UnicodeDecodeError as error:
        if is_utf16:
            raise ValueError(f'it is no whole UTF-16 text: byte {error.start} does not '
                             f'fit; save it as UTF-8') from None
        raise ValueError(_not_utf8(error)) from None
    if '\0' in text:
        raise ValueError('it holds NUL characters, as UTF-16 without a byte order mark does; '
                         'save it as UTF-8')
    return text.replace('\r\n', '\n').replace('\r', '\n')


def _not_utf8(error: UnicodeDecodeError) -> str:
    """Say where a text stops being UTF-8, and how to convert it."""
    lines = re.split('\r\n|\r|\n', error.object[:error.start].decode())
    byte = error.object[error.start:error.start + 1]
    return (f'line {len(lines)}, character {len(lines[-1]) + 1} is not UTF-8 (byte '
            f'0x{byte[0]:02X}, in code page 1252 of Windows '
            f'{byte.decode("cp1252", errors="replace")!r}); '
            f'save the file as UTF-8 (in Excel: "CSV UTF-8"), or convert it, from that code page '
            f'with: iconv -f WINDOWS-1252 -t UTF-8 OLD.csv > NEW.csv')


def read_table(text: str, fits: Callable[[list[str]], bool]
               ) -> tuple[list[str], list[tuple[int, dict]], str]:
    """Read a CSV that begins with a header.

    Args:
        text: of the whole file.
        fits: tells whether a header, a list of cells, is the expected one. It chooses the
            separator among SEPARATORS; without a fitting one, the separator that finds the most
            cells is taken.

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
    rows = [(reader.line_num, row) for row in reader
            if any(cell and ''.join(cell).strip() for cell in row.values())]
    return headers[separator], rows, separator


def find_file(folder: str | Path, name: str, exists: Callable[[str], bool]) -> str:
    r"""Return the absolute path that a table in `folder`, perhaps from Windows, means by a name.

    audio\dog.wav is dog.wav in the folder audio, unless `exists` knows a file of that very name.
    """
    as_written, with_slashes = (os.path.abspath(os.path.join(folder, path))
                                for path in (name, name.replace('\\', '/')))
    return as_written if as_written == with_slashes or exists(as_written) else with_slashes


def quote_cells(row: dict) -> str:
    """Quote the cells of a row of csv.DictReader, with those beyond the header, for a message."""
    return quoted(','.join(','.join(cell) if isinstance(cell, list) else cell or ''
                           for cell in row.values()))
