"""Check that the libraries for exports are installed, and silence their messages."""
import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence

from utilities.errors import DataError

FOR_ONNX = ('onnx', 'onnxscript', 'onnxruntime')


def require_packages(what: str, packages: Sequence[str]) -> None:
    """Raise DataError if a package is not installed.

    Args:
        what: what needs them, for the message.
        packages: their names, for Python and for pip.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise DataError(f'{what} needs packages that are not installed: {", ".join(missing)}. '
                        f'Install them with: pip install {" ".join(packages)}')


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Leave out messages and warnings, of which the libraries log hundreds for one file."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(before)
