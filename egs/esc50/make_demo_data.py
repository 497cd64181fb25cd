"""Synthesise a small dataset in ESC-50's layout, of ten classes, for the recipe's --demo True."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'src'))
from utilities.cli import OptionParser, exit_on, run_program, seed_type, setup_logging, whole


def main(argv: list[str] | None = None) -> None:
    """Make the dataset that the command line describes."""
    parser = OptionParser(prog='make_demo_data.py', description=__doc__)
    parser.add_argument('--out_dir', type=Path, required=True, help='where meta/ and audio/ go')
    parser.add_argument('--clips_per_fold', type=whole(1, 1000), default=8,
                        help='clips of a class in each of the five folds')
    parser.add_argument('--seed', type=seed_type, default=0, help='fixes the clips')
    args = parser.parse_args(argv)
    # After the options: see src/utilities/cli.py.
    from demo_sounds import make
    from utilities.errors import DataError
    setup_logging()
    with exit_on(DataError, OSError):
        make(args.out_dir.resolve(), args.clips_per_fold, args.seed)


if __name__ == '__main__':
    run_program(main)
