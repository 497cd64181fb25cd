"""Get the option parser of a program, for tests that try all its options."""
import pytest

from utilities.cli import OptionParser


class Captured(Exception):
    """Carries the parser out of main(), which it ends."""


def parser_of(main):
    """Return the parser that the main() of a program makes."""
    def capture(self, *_):
        raise Captured(self)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Captured) as captured:
        patch.setattr(OptionParser, 'parse_args', capture)
        main()
    return captured.value.args[0]
