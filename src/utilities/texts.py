"""Text and JSON files, whole or not there, and read back with an error that names them."""
import json
from pathlib import Path

from models.atomic import atomic_write
from utilities.errors import DataError, error_reason


def write_text(path, text):
    """Write a text file."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding='utf-8')


def write_json(path, value):
    """Write a JSON file for people and programs."""
    write_text(path, json.dumps(value, indent=1) + '\n')


def read_json(path, advice=''):
    """Read a JSON object that `write_json` wrote. Raises DataError if it is not there, or something else by now.

    advice: what the error says to do.
    """
    end = f'; {advice}' if advice else ''
    try:
        value = json.loads(Path(path).read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f'cannot read {path}: {error_reason(error)}{end}') from None
    if not isinstance(value, dict):
        raise DataError(f'cannot read {path}: it is no JSON object{end}')
    return value
