"""Evaluate checkpoints on one dataset, each alone and as an ensemble, the mean of their outputs."""
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'src'))
from utilities.cli import (
    OptionParser,
    add_checkpoint_options,
    add_computing_options,
    exit_on,
    let_threads_sleep,
    run_program,
    setup_logging,
    whole,
)

HERE = Path(__file__).resolve().parent


def make_parser() -> OptionParser:
    """Return the parser of all options."""
    parser = OptionParser(prog='ensemble.py', description=__doc__)
    add = parser.add_argument
    add('--data_eval', required=True, help='datafile to evaluate on')
    add('--checkpoints', required=True, nargs='+', metavar='CHECKPOINT',
        help='paths, names of published checkpoints, folders of transformers or ids on Hugging '
             'Face')
    add('--label_csv', default=HERE / 'data' / 'class_labels_indices.csv',
        help='label file: index,mid,display_name')
    add('--exp_dir', type=Path, default=HERE / 'exp' / 'ensemble',
        help='where results and predictions go')
    add('-b', '--batch_size', type=whole(1), default=24, help='samples in a batch')
    add_checkpoint_options(
        parser, loss='outputs to average: BCE for sigmoids, as published (the default); CE for '
                     'softmax')
    add_computing_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Read the options and evaluate the checkpoints."""
    parser = make_parser()
    args = parser.parse_args(argv)
    let_threads_sleep()
    # After the options: see src/utilities/cli.py.
    from audio.reading import AudioError
    from evaluation import ensemble
    from models import WeightsError
    from training.devices import choose_device
    from training.errors import TrainingError
    from utilities.errors import DataError
    from utilities.folders import output_folders
    setup_logging()
    try:
        choose_device(args.device)
    except ValueError as error:
        parser.error(str(error))
    with exit_on(AudioError, DataError, TrainingError, WeightsError, OSError):
        try:
            with output_folders(args.exp_dir / 'predictions'):
                ensemble(args)
        except KeyboardInterrupt:
            sys.exit('stopped; the same command continues with the checkpoint that was under way')


if __name__ == '__main__':
    run_program(main)
