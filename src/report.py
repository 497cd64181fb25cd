"""Write the report of an experiment or of its folds again, or compare several experiments."""
from collections.abc import Sequence
from pathlib import Path

from utilities.cli import OptionParser, exit_on, run_program, setup_logging


def main(argv: Sequence[str] | None = None) -> None:
    """Read the options and write the report, or the comparison."""
    parser = OptionParser(prog='report.py', description=__doc__)
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument('--exp_dir', type=Path,
                       help='directory of an experiment, or of fold1, fold2, ...: write its '
                            'report.html')
    group.add_argument('--compare', type=Path, nargs='+', metavar='DIR',
                       help='directories of experiments to show on one page')
    parser.add_argument('--embed_audio', action='store_true',
                        help='with --exp_dir: put the sounds of the players into the page, as the '
                             'model hears them; without it, the page leads to the files')
    parser.add_argument('--out', type=Path, metavar='PAGE',
                        help='page of --compare; without it compare.html in the working directory')
    args = parser.parse_args(argv)
    if args.out and args.exp_dir:
        parser.error('--out is for --compare: the report of --exp_dir is its report.html')
    if args.embed_audio and args.compare:
        parser.error('--embed_audio is for --exp_dir: a comparison has no players')
    # After the options: see utilities/cli.py.
    from utilities.errors import DataError
    setup_logging()
    with exit_on(DataError, OSError):
        if args.compare:
            from reports.comparison_page import write_comparison
            out = args.out or Path('compare.html')
            write_comparison(args.compare, out)
        else:
            from reports.pages import write_report
            out = args.exp_dir / 'report.html'
            write_report(args.exp_dir, args.embed_audio)
    print(out)


if __name__ == '__main__':
    run_program(main)
