"""Times as people read them."""


def clock(seconds, tenths=False):
    """Return seconds as text: 1:05, or 1:00:05 from an hour on, or 1:05.0 with tenths."""
    minutes, seconds = divmod(round(float(seconds), int(tenths)), 60)
    hours, minutes = divmod(int(minutes), 60)
    text = f'{seconds:04.1f}' if tenths else f'{seconds:02.0f}'
    return f'{hours}:{minutes:02}:{text}' if hours else f'{minutes}:{text}'
