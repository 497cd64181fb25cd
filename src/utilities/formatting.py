"""Write quotations and times as messages, pages and pictures show them."""

MAX_QUOTED = 200  # characters


def quoted(text: str) -> str:
    """Quote a text from a file or a command line: on one line, and shortened if it is long."""
    return repr(text if len(text) <= MAX_QUOTED else f'{text[:MAX_QUOTED]}...')


def clock(seconds: float, tenths: bool = False) -> str:
    """Write seconds as 1:05, from an hour on as 1:00:05, and with tenths as 1:05.0."""
    minutes, seconds = divmod(round(float(seconds), int(tenths)), 60)
    hours, minutes = divmod(int(minutes), 60)
    text = f'{seconds:04.1f}' if tenths else f'{seconds:02.0f}'
    return f'{hours}:{minutes:02}:{text}' if hours else f'{minutes}:{text}'
