"""The options of an entry point, for tests that try them all."""
import pytest

from utilities.cli import OptionParser


class Captured(Exception):
    """Carries a parser out of a main()."""


def parser_of(main):
    """The parser that the main() of an entry point makes."""
    def capture(self, *_):
        raise Captured(self)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Captured) as captured:
        patch.setattr(OptionParser, 'parse_args', capture)
        main()
    return captured.value.args[0]
