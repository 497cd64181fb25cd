"""Summarise a cross-validation: best and last epoch, accuracy by class, confusion matrix."""
from collections.abc import Sequence
from pathlib import Path

from utilities.cli import OptionParser, exit_on, run_program, setup_logging


def main(argv: Sequence[str] | None = None) -> None:
    """Read the options, write the summary and print the scores."""
    parser = OptionParser(prog='summarise_folds.py', description=__doc__)
    parser.add_argument('--exp_dir', type=Path, required=True,
                        help='directory with fold1, fold2, ...')
    args = parser.parse_args(argv)
    # After the options: see utilities/cli.py.
    from reports.folds import summarise_folds
    from utilities.errors import DataError
    setup_logging()
    with exit_on(DataError, OSError):
        print('\n'.join(summarise_folds(args.exp_dir)))
        print(f'tables and pictures are in {args.exp_dir}, all on one page in '
              f'{args.exp_dir / "report.html"}')


if __name__ == '__main__':
    run_program(main)
