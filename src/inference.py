"""Tag audio files with trained models: what is heard in each recording, and when.

In Python: from inference import load_tagger, tag
"""
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from audio import MAX_RATE, MIN_RATE
from utilities.cli import (
    OptionParser,
    add_checkpoint_options,
    add_computing_options,
    exit_on,
    let_threads_sleep,
    number,
    run_program,
    setup_logging,
    whole,
)

if __name__ != '__main__':  # the program itself imports them after its options: utilities/cli.py
    from tagging import Tagger, Tagging, load_tagger, tag

    __all__ = ['Tagger', 'Tagging', 'load_tagger', 'main', 'tag']


def make_parser() -> OptionParser:
    """Return the parser of all options."""
    parser = OptionParser(prog='inference.py', description=__doc__)
    add_input_options(parser)
    add_output_options(parser)
    parser.add_argument('-b', '--batch_size', type=whole(1),
                        help='windows in a batch; by default 16, or 4 on a CPU')
    add_checkpoint_options(
        parser, loss='BCE: scores are sigmoids; CE: softmax; by default what the checkpoint says; '
                     'if it says nothing, CE for a folder of transformers, else BCE')
    add_computing_options(parser)
    return parser


def add_input_options(parser: OptionParser) -> None:
    """Add the options of recordings and models."""
    add = parser.add_argument
    add('audio', nargs='*', metavar='AUDIO',
        help='audio files, and folders of them; - reads standard input')
    add('--audio_path', nargs='+', default=[], metavar='AUDIO',
        help='the same as AUDIO, for files that you name after --checkpoint, which would take them '
             'for checkpoints')
    add('--checkpoint', '--model_path', required=True, nargs='+', metavar='CHECKPOINT',
        help='paths, names of published checkpoints, folders of transformers or ids on Hugging '
             'Face; the scores of several are averaged')
    add('--label_csv',
        help='label file: index,mid,display_name; without it the names that the checkpoint knows')
    add('--window', choices=['all', 'first'], default='all',
        help='all: the whole recording, window by window; first: the first window alone, as in '
             'validation')
    add('--hop_seconds', type=number(0.01),  # one frame
        help='seconds from the beginning of a window to the next; by default the length of '
             'a window')
    add('--raw_rate', type=whole(MIN_RATE, MAX_RATE), metavar='HZ',
        help='standard input is no WAV file but samples at this rate: 16 bits, little endian, mono')


def add_output_options(parser: OptionParser) -> None:
    """Add the options of output."""
    add = parser.add_argument
    add('--top_k', type=whole(1), default=5, help='classes to show')
    add('--json', type=Path, metavar='FILE',
        help='write the top classes of every recording and window; FILE.jsonl: one object per line')
    add('--csv', type=Path, metavar='FILE',
        help='write the scores of all classes, one row per window')
    add('--plot', type=Path, metavar='PNG',
        help='draw spectrogram and tags: a .png, or a folder for several files')
    add('--html', type=Path, metavar='PAGE',
        help='write a page to listen to a recording, with its spectrogram and tags over time: a '
             '.html, or a folder for several files')
    add('--embeddings', type=Path, metavar='NPZ', help='write the embedding of every window')


def reads_standard_input(args: Namespace) -> bool:
    """Return whether the sound comes in on standard input."""
    return '-' in (*args.audio, *args.audio_path)


def check_options(parser: OptionParser, args: Namespace) -> None:
    """End the program with a sentence if options contradict each other."""
    if args.window == 'first' and args.hop_seconds:
        parser.error('--window first has one window: --hop_seconds does not go with it')
    if args.raw_rate and not reads_standard_input(args):
        parser.error('--raw_rate is the sample rate of standard input: give - in the place of '
                     'files')
    if reads_standard_input(args):
        if len(args.audio) + len(args.audio_path) > 1:
            parser.error('- is standard input, which is tagged alone: give no files beside it')
        for name in ('plot', 'html', 'batch_size'):
            if getattr(args, name):
                parser.error(f'--{name} does not go with standard input, which is tagged window by '
                             f'window')
    for name in ('json', 'csv', 'plot', 'html', 'embeddings'):
        if str(getattr(args, name)) == '-':
            parser.error(f'--{name} wants the name of a file: standard output has the text')
    if args.embeddings and len(args.checkpoint) > 1:
        parser.error(f'--embeddings wants one checkpoint, got {len(args.checkpoint)}')


def main(argv: Sequence[str] | None = None) -> None:
    """Read the options, and tag what they name."""
    parser = make_parser()
    args = parser.parse_args(argv)
    check_options(parser, args)
    let_threads_sleep()
    # After the options: see utilities/cli.py.
    from audio.reading import AudioError
    from models import WeightsError
    from tagging.command import infer
    from training.devices import choose_device
    from training.errors import TrainingError
    from utilities.errors import DataError
    from utilities.parallel import limit_threads
    try:
        choose_device(args.device)
    except ValueError as error:
        parser.error(str(error))
    setup_logging()
    limit_threads()
    from_standard_input = reads_standard_input(args)
    with exit_on(DataError, AudioError, TrainingError, WeightsError, OSError):
        try:
            count, failed = infer(args, from_standard_input)
        except KeyboardInterrupt:
            sys.exit('stopped')
    if failed:
        kind = 'windows' if from_standard_input else 'files'
        sys.exit(f'error: {failed} of {count} {kind} could not be read; the lines above say why')


if __name__ == '__main__':
    run_program(main)
