"""Export a trained model, so that other programs can use it without this repository.

    python export.py --checkpoint exp/X/models/best_audio_model.pth --format transformers --out DIR
    python export.py --checkpoint ... --format onnx --waveform --out model.onnx
    python export.py --checkpoint ... --format torch_export --waveform --out model.pt2
"""
import re
from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path

from utilities.cli import OptionParser, add_checkpoint_options, exit_on, run_program, setup_logging
from utilities.formatting import quoted

FORMATS = ('transformers', 'onnx', 'torch_export')
SUFFIXES = {'onnx': '.onnx', 'torch_export': '.pt2'}  # of files


def license_id(text: str) -> str:
    """Read the identifier of a license: the hub refuses a card with any other text for it."""
    if not re.fullmatch(r'[a-z0-9.+-]+', text):
        raise ArgumentTypeError(f'expected an identifier such as apache-2.0 or cc-by-4.0 '
                                f'(https://huggingface.co/docs/hub/repositories-licenses), '
                                f'got {quoted(text)}')
    return text


def make_parser() -> OptionParser:
    """Return the parser of all options."""
    parser = OptionParser(prog='export.py', description=__doc__)
    add = parser.add_argument
    add('--checkpoint', required=True,
        help='path, name of a published checkpoint, folder of transformers or id on Hugging Face')
    add('--format', required=True, choices=FORMATS,
        help='transformers: a folder for Hugging Face; onnx: a file for ONNX Runtime; '
             'torch_export: a .pt2 for torch.export.load')
    add('--out', required=True, type=Path,
        help='the folder (transformers) or the file (.onnx, .pt2) to write')
    add('--waveform', action='store_true',
        help='onnx, torch_export: the input is a waveform at the rate of the model; without it, an '
             'fbank')
    add('--int8', action='store_true',
        help='onnx: linear layers with 8-bit numbers, for CPUs; says how far the scores move')
    add('--label_csv',
        help='label file: index,mid,display_name; without it the names that the checkpoint knows')
    add('--license', type=license_id,
        help="license of the model by its identifier on Hugging Face, for a folder's card: "
             'apache-2.0, cc-by-4.0, ...')
    add_checkpoint_options(parser, loss='BCE: scores are sigmoids; CE: softmax; without it what '
                                        'the checkpoint says')
    return parser


def check_options(parser: OptionParser, args: Namespace) -> None:
    """End the program with a sentence if options contradict each other."""
    if args.license and args.format != 'transformers':
        parser.error('--license goes into the card that --format transformers writes')
    if args.int8 and args.format != 'onnx':
        parser.error(f'--int8 goes with --format onnx, got {args.format}')
    if args.waveform and args.format == 'transformers':
        parser.error('--waveform goes with --format onnx or torch_export: the model of '
                     'transformers has a feature extractor')
    suffix = SUFFIXES.get(args.format)
    if suffix and args.out.suffix != suffix:
        parser.error(f'--out of --format {args.format} must end in {suffix}, got {args.out}')


def export(args: Namespace) -> None:
    """Write the model that the options name."""
    if args.format == 'onnx':
        from exporting.libraries import FOR_ONNX, require_packages
        require_packages('--format onnx', FOR_ONNX)
    from exporting.trained import load_trained
    trained = load_trained(
        args.checkpoint, args.label_csv, fstride=args.fstride, tstride=args.tstride,
        input_fdim=args.num_mel_bins, input_tdim=args.audio_length, mean=args.dataset_mean,
        std=args.dataset_std, loss=args.loss)
    if args.format == 'transformers':
        from exporting.transformers_folder import write_transformers
        write_transformers(trained, args.out, args.license)
    elif args.format == 'onnx':
        from exporting.onnx_file import write_onnx
        write_onnx(trained, args.out, args.waveform, args.int8)
    else:
        from exporting.pt2_file import write_pt2
        write_pt2(trained, args.out, args.waveform)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the options and write the model."""
    parser = make_parser()
    args = parser.parse_args(argv)
    check_options(parser, args)
    # After the options: see utilities/cli.py.
    from models import WeightsError
    from utilities.errors import DataError
    setup_logging()
    with exit_on(DataError, WeightsError, OSError):
        export(args)
    print(args.out)


if __name__ == '__main__':
    run_program(main)
