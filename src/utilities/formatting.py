"""Write quotations, lists of names and times as messages, pages and pictures show them."""
from __future__ import annotations

import time
from collections.abc import Iterable

MAX_QUOTED = 200  # characters


def quoted(text: str) -> str:
    """Quote a text from a file or a command line: on one line, and shortened if it is long."""
    return repr(text if len(text) <= MAX_QUOTED else f'{text[:MAX_QUOTED]}...')


def shortened(names: Iterable[str], most: int = 10, separator: str = ', ') -> str:
    """Join names. If there are more than `most`, join the first and say how many are left."""
    names = list(names)
    rest = f' and {len(names) - most} more' if len(names) > most else ''
    return separator.join(names[:most]) + rest


def now() -> str:
    """Return the time in UTC, to the second."""
    return time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime())


def clock(seconds: float, tenths: bool = False) -> str:
    """Write seconds as 1:05, from an hour on as 1:00:05, and with tenths as 1:05.0."""
    minutes, seconds = divmod(round(float(seconds), int(tenths)), 60)
    hours, minutes = divmod(int(minutes), 60)
    text = f'{seconds:04.1f}' if tenths else f'{seconds:02.0f}'
    return f'{hours}:{minutes:02}:{text}' if hours else f'{minutes}:{text}'
