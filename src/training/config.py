"""Read the settings of an earlier run: run.py --config args.json."""
import sys
from collections.abc import Sequence

from training.options import PER_START_OPTIONS, make_parser
from utilities.cli import OptionParser, with_underscores
from utilities.errors import DataError
from utilities.formatting import quoted
from utilities.texts import read_json


def expand_config(parser: OptionParser, argv: Sequence[str] | None = None) -> list[str]:
    """Replace --config in a command line by the settings of the file that it names.

    The settings come first. The last value of an option counts, so the command line's own win.

    Args:
        parser: ends the program with a sentence if the file cannot be used.
        argv: the command line without the program's name; None: sys.argv[1:].
    """
    finder = OptionParser(prog=parser.prog, add_help=False)
    finder.add_argument('--config')
    words = with_underscores(sys.argv[1:] if argv is None else argv)
    found, others = finder.parse_known_args(words)
    if found.config is None:
        return words
    try:
        settings = read_json(found.config)
    except DataError as error:
        parser.error(f'--config: {error}')
    return [*_as_words(settings, found.config), *others]


def _as_words(settings, path):
    """Return settings {name: value} as words of a command line, checked: the errors name `path`."""
    checker = make_parser()
    checker.prog += f': --config {path}'
    words = []
    for name, value in settings.items():
        if name in PER_START_OPTIONS or value is None:  # None: not given, and the default
            continue
        if f'--{name}' not in checker._option_string_actions:
            checker.error(f'there is no option --{name} in this version of the code; delete it '
                          f'from the file, or use the version that wrote the file')
        if not isinstance(value, (bool, int, float, str)):
            checker.error(f'expected a number or a text for {name}, got {quoted(str(value))}')
        words.append(f'--{name}={value}')

    for action in checker._actions:
        action.required = False  # the command line may give what the file lacks
    checker.parse_args(words)
    return words
