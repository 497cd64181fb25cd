"""What the programs share at the command line: options, logging, and mistakes as one sentence.

A program reads its options first, with the standard library alone. It imports what does the work
after that, in main(): torch takes seconds to import, and neither --help nor a mistyped option
should wait for it. The recipes read their options before there is an environment, so this file
must work in any Python from 3.8 on.
"""
from __future__ import annotations

import argparse
import contextlib
import io
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from audio import MAX_RATE
from models.published_data import AUDIOSET_INPUT, SAMPLE_RATE
from utilities.formatting import quoted

LOSSES = ('BCE', 'CE')  # --loss; training/losses.py computes them
NEGATIVE_NUMBER = re.compile(r'-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$')


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Show an option with its default, if it has one, and the description as it is written."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34)

    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)

    def _get_default_metavar_for_optional(self, action):
        return 'VALUE'


class OptionParser(argparse.ArgumentParser):
    """argparse, but stricter about names and texts.

    `--a-b` and `--a_b` are the same option, and no name can be abbreviated. A negative number is a
    value. Texts and paths must not be empty: an empty path would be taken for the folder that
    the program was started in.

    Args:
        old_names: old option name -> its name here, which the error message gives.
    """

    def __init__(self, old_names: dict[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=HelpFormatter, **kwargs)
        self.old_names = old_names or {}
        self.register('type', None, _nonempty)
        self.register('type', Path, lambda text: Path(_nonempty(text)))
        # Before Python 3.14, argparse takes -4e-1 for the name of an option.
        self._negative_number_matcher = NEGATIVE_NUMBER

    def parse_args(self, args=None, namespace=None):  # type: ignore[override]
        """Parse a command line; without one, that of the program."""
        words = with_underscores(sys.argv[1:] if args is None else args)
        self._refuse_old_names(words)
        return super().parse_args(words, namespace)

    def _refuse_old_names(self, words):
        # argparse would first ask for required options, by names that the user does not know.
        for word in words:
            name = word.split('=')[0][2:] if word.startswith('--') else None
            if name in self.old_names and f'--{name}' not in self._option_string_actions:
                self.error(f'--{name} is called --{self.old_names[name]} here')

    def error(self, message: str) -> NoReturn:
        """End the program with one line that says what is wrong."""
        line = ' '.join(message.split())  # what the user typed may have line breaks
        self.exit(2, f'{self.prog}: {line} (--help lists the options)\n')


def with_underscores(words: Sequence[str]) -> list[str]:
    """Write the names of options with underscores: --batch-size=8 becomes --batch_size=8."""
    end = words.index('--') if '--' in words else len(words)  # what follows are no options
    normal = []
    for word in words[:end]:
        name, equals, value = word.partition('=')
        if name.startswith('--'):
            word = '--' + name[2:].replace('-', '_') + equals + value
        normal.append(word)
    return normal + list(words[end:])


def _nonempty(text):
    if not text.strip():
        raise argparse.ArgumentTypeError(f'expected some text, got {quoted(text)}')
    return text


def boolean(text: str) -> bool:
    """Read True or False, as the recipes write them."""
    try:
        return {'true': True, 'false': False}[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f'expected True or False, got {quoted(text)}') from None


def whole(minimum: int, maximum: int = 2 ** 31 - 1) -> Callable[[str], int]:
    """Return an option type: whole numbers from minimum to maximum.

    Every library takes numbers up to the default maximum, and some fail above it.
    """
    return _number_type('a whole number', int, minimum, maximum)


def number(minimum: float = -math.inf, maximum: float = math.inf, above: float = -math.inf
           ) -> Callable[[str], float]:
    """Return an option type: finite numbers from minimum to maximum, greater than `above`."""
    return _number_type('a number', float, minimum, maximum, above)


def _number_type(kind, convert, minimum, maximum, above=-math.inf):
    lower = f' of at least {minimum}' if minimum > -math.inf else ''
    if above > -math.inf:
        lower = f' above {above}'

    def parse(text):
        try:
            value = convert(text)
        except ValueError:
            value = math.nan
        if not (minimum <= value <= maximum and value > above and abs(value) < math.inf):
            bound = f' of at most {maximum}' if value > maximum else lower
            raise argparse.ArgumentTypeError(f'expected {kind}{bound}, got {quoted(text)}')
        return value
    return parse


def numbers(minimum: float, maximum: float) -> Callable[[str], str]:
    """Return the option type of a Range: text of one or several numbers within these limits."""
    check = number(minimum, maximum)

    def parse(text):
        for word in text.split() or ['']:
            check(word)
        return text
    return parse


class Range(argparse.Action):
    """Keep the lowest and the highest number of a range, or one number for both, as one text.

    As a text, `--snr_db 5 20` goes through recipes and args.json as every other option does, and
    comes back as `--snr_db='5 20'`. read_range makes numbers of it.
    """

    def __call__(self, parser, namespace, values, option_string=None):
        words = ' '.join(values).split()
        if len(words) > 2 or float(words[0]) > float(words[-1]):
            raise argparse.ArgumentError(self, f'expected one number, or the lowest and the '
                                               f'highest, got {quoted(" ".join(words))}')
        setattr(namespace, self.dest, ' '.join(words))


def read_range(text: str) -> tuple[float, float]:
    """Return the lowest and the highest number of a Range."""
    words = text.split()
    return float(words[0]), float(words[-1])


seed_type = whole(0, 2 ** 32 - 1)  # scikit-learn takes no larger one
mel_bins_type = whole(16, 256)  # one patch to half of the FFT at 16 kHz (audio.fbank.frame_size)
sample_rate_type = whole(1000, MAX_RATE)  # Hz; below, a window of 25 ms has too few samples
frames_type = whole(16, 360_000)  # of 10 ms: one patch to an hour; more would fill the memory
# The logarithm of a float32 energy is between -104 and 89, and so is the mean of an fbank. A
# standard deviation of nearly 0 would magnify rounding errors.
fbank_mean_type = number(-100, 100)
fbank_std_type = number(above=0.001, maximum=100)


def add_num_workers(parser: argparse._ActionsContainer) -> None:
    """Add the option of all programs that load data."""
    parser.add_argument('-w', '--num_workers', type=whole(-1, 256), default=-1,
                        help='processes that load data, -1 for one per core')


def add_computing_options(parser: argparse._ActionsContainer) -> None:
    """Add the options of programs that compute with a model: workers, device, precision."""
    add_num_workers(parser)
    add = parser.add_argument
    add('--device', default='auto', help='auto, cpu, cuda (all GPUs), cuda:N or mps')
    add('--amp', choices=['auto', 'bf16', 'fp16', 'off'], default='auto', help='mixed precision')


def add_input_options(parser: argparse._ActionsContainer, length_help: str) -> None:
    """Add the options of programs that read a datafile: its label file, rate and length.

    Args:
        length_help: help of --audio_length.
    """
    add = parser.add_argument
    add('--label_csv', required=True, help='label file: index,mid,display_name')
    add('--sample_rate', type=sample_rate_type, default=SAMPLE_RATE,
        help='Hz, to which recordings are resampled')
    add('--audio_length', type=frames_type, default=AUDIOSET_INPUT['input_tdim'], help=length_help)


def add_mel_bins(parser: argparse._ActionsContainer) -> None:
    """Add the option of programs that compute fbanks of a datafile."""
    parser.add_argument('--num_mel_bins', type=mel_bins_type, default=AUDIOSET_INPUT['input_fdim'],
                        help='mel bins of the fbank, from 20 Hz to half of --sample_rate')


def add_checkpoint_options(parser: argparse.ArgumentParser, loss: str) -> None:
    """Add the options that say what a checkpoint itself does not say, such as its strides.

    Args:
        loss: help of --loss.
    """
    add = parser.add_argument
    add('--fstride', type=whole(1),
        help='stride in frequency, for checkpoints that do not store it')
    add('--tstride', type=whole(1), help='stride in time, for checkpoints that do not store it')
    add('--num_mel_bins', type=mel_bins_type,
        help='mel bins, for checkpoints that do not store them')
    add('--audio_length', type=frames_type,
        help='frames of 10 ms, for checkpoints that do not store them')
    add('--dataset_mean', type=fbank_mean_type,
        help="mean of the fbank; without it each checkpoint's own, or AudioSet's")
    add('--dataset_std', type=fbank_std_type, help='standard deviation of the fbank, likewise')
    add('--loss', choices=LOSSES, help=loss)


def let_threads_sleep() -> None:
    """Let the threads of OpenMP sleep soon when they wait. Call this before torch is imported.

    Threads that wait in a loop slow each other down on a busy machine: a tiny model beside two busy
    processes trained on 49 samples/s with this setting, and on 9 to 21 without. On an idle machine
    there was no difference.
    """
    os.environ.setdefault('GOMP_SPINCOUNT', '1000')


def setup_logging(rank: int = 0) -> None:
    """Log to standard error, one line per message, with the time.

    If there are several processes, all but the first (rank 0) log only warnings.
    """
    prefix = f'process {rank}: ' if rank else ''
    logging.basicConfig(level=logging.WARNING if rank else logging.INFO, datefmt='%H:%M:%S',
                        format=f'%(asctime)s {prefix}%(message)s', force=True)
    # A user who trains does not want to read about every request of huggingface_hub, or every file
    # and restart that TensorBoard's reader finds.
    logging.getLogger('httpx').setLevel(logging.WARNING)
    logging.getLogger('tensorboard').setLevel(logging.ERROR)
    # Standard output: names of files may have characters that a terminal's encoding lacks.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors='backslashreplace')


def run_program(main: Callable[[], object]) -> None:
    """Run the main function of a program. On Ctrl-C, print one word in place of a traceback.

    Python then ends by SIGINT, so that a shell ends the loop or the script that called the program.
    """
    try:
        main()
    except KeyboardInterrupt:
        sys.excepthook = lambda *_: print('stopped', file=sys.stderr)
        raise


@contextlib.contextmanager
def exit_on(*errors: type[BaseException]) -> Iterator[None]:
    """End the program on these errors: with the error's message, no traceback, and exit code 1."""
    try:
        yield
    except errors as error:
        # An error from a dataloader's worker has the worker's traceback before its own message.
        message = str(error).rpartition(f'{type(error).__name__}: ')[2].strip()
        sys.exit(f'error: {message}')
