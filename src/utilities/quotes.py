"""What files and command lines hold, as messages quote it."""

MAX_QUOTED = 200  # characters


def quoted(text):
    """Text as a message quotes it: on one line, of bearable length."""
    return repr(text if len(text) <= MAX_QUOTED else f'{text[:MAX_QUOTED]}...')
