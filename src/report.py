"""Write report.html of an experiment, or of its folds, again."""
from collections.abc import Sequence
from pathlib import Path

from utilities.cli import OptionParser, exit_on, setup_logging


def main(argv: Sequence[str] | None = None) -> None:
    """Read the options and write the report."""
    parser = OptionParser(prog='report.py', description=__doc__)
    parser.add_argument('--exp_dir', type=Path, required=True,
                        help='directory of an experiment, or of fold1, fold2, ...')
    parser.add_argument('--embed_audio', action='store_true',
                        help='put the sounds of the players into the page, as the model hears '
                             'them; without it, the page leads to the files')
    args = parser.parse_args(argv)
    # After the options: see utilities/cli.py.
    from reports.pages import write_report
    from utilities.errors import DataError
    setup_logging()
    with exit_on(DataError, OSError):
        write_report(args.exp_dir, args.embed_audio)
    print(args.exp_dir / 'report.html')


if __name__ == '__main__':
    main()
