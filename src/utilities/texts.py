"""Text and JSON files: read in the encodings that people's programs write, and written whole."""
import codecs
import json
import re
from pathlib import Path
from typing import Any

from models.atomic import atomic_write
from utilities.errors import DataError, error_reason


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
            anybody noticing, so the message says where the first wrong byte is and what to do.
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
    in_windows = byte.decode('cp1252', errors='replace')
    return (f'line {len(lines)}, character {len(lines[-1]) + 1} is not UTF-8 (byte '
            f'0x{byte[0]:02X}, in code page 1252 of Windows {in_windows!r}); '
            f'save the file as UTF-8 (in Excel: "CSV UTF-8"), or convert it, from that code page '
            f'with: iconv -f WINDOWS-1252 -t UTF-8 OLD.csv > NEW.csv')


def write_text(path: str | Path, text: str) -> None:
    """Write a text file as UTF-8: after an error, what was there before is still there."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding='utf-8')


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file for people and programs."""
    write_text(path, json.dumps(value, indent=1) + '\n')


def read_json(path: str | Path, advice: str = '') -> dict[str, Any]:
    """Read a JSON object that `write_json` wrote.

    Args:
        advice: what the error tells the user to do.

    Raises:
        DataError: if the file is not there, or holds something else.
    """
    end = f'; {advice}' if advice else ''
    try:
        value = json.loads(Path(path).read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f'cannot read {path}: {error_reason(error)}{end}') from None
    if not isinstance(value, dict):
        raise DataError(f'cannot read {path}: it is no JSON object{end}')
    return value
