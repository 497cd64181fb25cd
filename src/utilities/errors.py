"""The error of files and settings that cannot be used, and what the system says about errors."""
import contextlib
import logging
from collections.abc import Iterator

logger = logging.getLogger(__name__)


class DataError(ValueError):
    """A label file, datafile or setting of the data that cannot be used.

    The message names what cannot be used.
    """


def error_reason(error: BaseException) -> str:
    """Return on one line what went wrong with a file, for a message that names the file itself."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, KeyError):
        return f'there is no {error}'
    return str(error).split('\n')[0]


@contextlib.contextmanager
def warn_only(name: str) -> Iterator[None]:
    """Log a warning instead of failing if the file `name`, which is optional, cannot be written."""
    try:
        yield
    except Exception as error:
        logger.warning('%s was not written: %s: %s', name, type(error).__name__, error)
