"""Prepare a dataset of your own: make a label file, datafiles and run options.

The dataset is a folder with one folder per class, or a CSV.
"""
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'src'))
from own_clips import SplitConf
from utilities.cli import (
    OptionParser,
    exit_on,
    number,
    run_program,
    seed_type,
    setup_logging,
    whole,
)

MAX_SHARE = 0.45  # of the validation and of the test set: something must be left to train on


def make_parser() -> OptionParser:
    """Return the parser of all options."""
    parser = OptionParser(prog='prep_own.py', description=__doc__)
    add = parser.add_argument
    add('--data', type=Path, required=True,
        help='folder with one folder per class, or CSV with columns path and labels')
    add('--prep_dir', type=Path, required=True, help='where the prepared data go')
    add('--val_share', type=number(above=0, maximum=MAX_SHARE), default=SplitConf.val_share,
        help='share of the validation set')
    add('--test_share', type=number(0, MAX_SHARE), default=SplitConf.test_share,
        help='share of the test set')
    add('--n_folds', type=whole(0), default=SplitConf.n_folds,
        help='make this many folds, for a cross-validation, in place of one split; 0: one split')
    add('--seed', type=seed_type, default=SplitConf.seed, help='fixes the split')
    add('--label_csv',
        help='label file that fixes the classes and their order; without it, they come from the '
             'data')
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Read the options and prepare the dataset."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.n_folds == 1 or (args.n_folds and args.test_share):
        parser.error('--n_folds wants at least two folds, and no --test_share beside it')
    # After the options: see src/utilities/cli.py.
    from concurrent.futures.process import BrokenProcessPool

    from audio.reading import AudioError
    from models.atomic import WriteError
    from own_dataset import prepare
    from utilities.errors import DataError
    setup_logging()
    conf = SplitConf(args.val_share, args.test_share, args.n_folds, args.seed)
    with exit_on(AudioError, BrokenProcessPool, DataError, WriteError, OSError):
        prepare(args.data, args.prep_dir, conf, args.label_csv)


if __name__ == '__main__':
    run_program(main)
