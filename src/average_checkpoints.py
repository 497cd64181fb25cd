"""Average the weights of several checkpoints of one model, as --wa does at the end of a run.

    python average_checkpoints.py --checkpoints exp/X/models/audio_model.{1..5}.pth --out mean.pth
"""
from collections.abc import Sequence
from pathlib import Path

from utilities.cli import OptionParser, add_checkpoint_options, exit_on, run_program, setup_logging


def make_parser() -> OptionParser:
    """Return the parser of average_checkpoints.py."""
    parser = OptionParser(prog='average_checkpoints.py', description=__doc__)
    parser.add_argument('--checkpoints', required=True, nargs='+',
                        help='checkpoints of one model')
    parser.add_argument('--out', required=True, type=Path,
                        help='the averaged checkpoint, .pth or .safetensors')
    add_checkpoint_options(parser, loss='BCE: scores are sigmoids; CE: softmax; without it what '
                                        'the first checkpoint says')
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Read the options and write the averaged checkpoint."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.out.suffix not in ('.pth', '.safetensors'):
        parser.error(f'--out must end in .pth or .safetensors, got {args.out}')
    # After the options: see utilities/cli.py.
    from models import WeightsError, load_model, mean_state_dict, save_checkpoint
    from models.weights import locate
    from utilities.errors import DataError
    from utilities.folders import output_folders
    setup_logging()
    with exit_on(DataError, WeightsError, OSError):
        paths = [locate(source) for source in args.checkpoints]
        model, description = load_model(  # the mean is described as the first one is
            paths[0], fstride=args.fstride, tstride=args.tstride, input_fdim=args.num_mel_bins,
            input_tdim=args.audio_length, mean=args.dataset_mean, std=args.dataset_std,
            loss=args.loss)
        model.load_state_dict(mean_state_dict(paths))
        with output_folders(args.out.parent):
            save_checkpoint(model, args.out, **description)
    print(f'mean of {len(args.checkpoints)} checkpoints: {args.out}')


if __name__ == '__main__':
    run_program(main)
