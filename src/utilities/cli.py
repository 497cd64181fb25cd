"""What the programs share: how options are spelled and checked, logging, mistakes as one sentence.

A program reads its options first, with the standard library alone. What does the work is imported
after that, in main(): torch takes seconds to import, and neither --help nor a mistyped option should.
"""
import argparse
import contextlib
import io
import logging
import math
import sys
from pathlib import Path

from utilities.quotes import quoted

# The largest numbers that options take: what is beyond them is a slip, and would end in an error of some library, or
# fill the memory before anything is said.
MAX_WHOLE = 2 ** 31 - 1  # a 32-bit integer, which every library here takes
MAX_SEED = 2 ** 32 - 1  # scikit-learn's; numpy and torch take larger ones
MAX_BATCH = 2 ** 16  # samples; of the published input 34 GB
MAX_WORKERS = 256  # processes; more than a machine has cores, and each takes memory of its own
MAX_MEL_BINS = 256  # half of features.FFT_SAMPLES: the FFT tells no more frequencies apart
MAX_FRAMES = 360_000  # of 10 ms: an hour
MAX_MINUTES = 60 * 24 * 30  # a month
MAX_MESSAGE = 1000  # characters of a mistake's sentence that quotes what the user gave


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Show an option with its default, if it has one, and the description as it is written."""

    def __init__(self, prog):
        super().__init__(prog, max_help_position=34)

    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)

    def _get_default_metavar_for_optional(self, action):
        return 'VALUE'


class OptionParser(argparse.ArgumentParser):
    """argparse, but stricter about names and texts.

    A name has one form (`--a-b` is `--a_b`) and cannot be abbreviated. A negative number is a value.
    Texts and paths must not be empty: an empty path would be taken for the folder that the program
    was started in.

    Args:
        old_names: options of other programs -> what they are called here, for the error.
    """

    def __init__(self, old_names=None, **kwargs):
        super().__init__(allow_abbrev=False, formatter_class=HelpFormatter, **kwargs)
        self.old_names = old_names or {}
        self.register('type', None, _nonempty)
        self.register('type', Path, lambda text: Path(_nonempty(text)))

    def parse_args(self, args=None, namespace=None):
        words = normalise_options(sys.argv[1:] if args is None else args)
        self._refuse_old_names(words)
        args, unknown = self.parse_known_args(words, namespace)
        if unknown:
            kind = 'unknown option' if unknown[0].startswith('-') else 'unexpected argument'
            self.error(f'{kind}: {unknown[0]}')
        return args

    def _refuse_old_names(self, words):
        # argparse would first ask for required options, under the names that the user does not know.
        for word in words:
            name = word.split('=')[0][2:] if word.startswith('--') else None
            if name in self.old_names and f'--{name}' not in self._option_string_actions:
                self.error(f'--{name} is called --{self.old_names[name]} here')

    def error(self, message):
        self.exit(2, f'{self.prog}: {_one_line(message)} (--help lists the options)\n')


def _one_line(message):
    line = ' '.join(message.split())
    return line if len(line) <= MAX_MESSAGE else f'{line[:MAX_MESSAGE]}...'


def normalise_options(argv):
    """Give option names underscores, and join a negative number to the option before it: argparse would not."""
    normal = []
    for i, token in enumerate(argv):
        if token == '--':  # what follows are no options
            return normal + argv[i:]
        if token.startswith('--') and len(token) > 2:
            name, equals, value = token.partition('=')
            normal.append('--' + name[2:].replace('-', '_') + equals + value)
        elif normal and normal[-1].startswith('-') and '=' not in normal[-1] and _is_negative_number(token):
            normal[-1] += ('=' if normal[-1].startswith('--') else '') + token
        else:
            normal.append(token)
    return normal


def _is_negative_number(token):
    try:
        return token.startswith('-') and float(token) <= 0
    except ValueError:
        return False


def boolean(text):
    """True or False, as the recipes write them."""
    try:
        return {'true': True, 'false': False}[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f'expected True or False, got {quoted(text)}') from None


def _nonempty(text):
    if not text.strip():
        raise argparse.ArgumentTypeError(f'expected some text, got {quoted(text)}')
    return text


def whole(minimum, maximum=MAX_WHOLE):
    """An option type: whole numbers within [minimum, maximum]."""
    def parse(text):
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not minimum <= value <= maximum:
            bound = f'of at most {maximum}' if value is not None and value > maximum else f'of at least {minimum}'
            raise argparse.ArgumentTypeError(f'expected a whole number {bound}, got {quoted(text)}')
        return value
    return parse


def number(minimum=-math.inf, maximum=math.inf, above=-math.inf):
    """An option type: finite numbers within [minimum, maximum], and greater than `above`."""
    bounds = [f'{word} {bound}' for word, bound in (('of at least', minimum), ('above', above), ('of at most', maximum))
              if math.isfinite(bound)]

    def parse(text):
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or not minimum <= value <= maximum or not value > above:
            raise argparse.ArgumentTypeError(' '.join(['expected a number', ' and '.join(bounds)]).strip()
                                             + f', got {quoted(text)}')
        return value
    return parse


# The logarithm of a float32 energy is within -104 and 89, so no mean or standard deviation of an fbank is beyond 100;
# one of nearly 0 would blow rounding up.
fbank_mean = number(-100, 100)
fbank_std = number(above=0.001, maximum=100)


def add_num_workers(parser):
    """The option of all tools that load data."""
    parser.add_argument('-w', '--num_workers', type=whole(-1, MAX_WORKERS), default=-1,
                        help='processes that load data, -1 for one per core')


def add_checkpoint_options(parser, loss):
    """Add the options of tools that load checkpoints: what these may not say, and how to compute.

    Args:
        loss: help of --loss.
    """
    add = parser.add_argument
    add('--fstride', type=whole(1, MAX_MEL_BINS), help='stride in frequency of checkpoints that do not say theirs')
    add('--tstride', type=whole(1, MAX_FRAMES), help='stride in time of checkpoints that do not say theirs')
    add('--num_mel_bins', type=whole(16, MAX_MEL_BINS), help='mel bins of checkpoints that do not say theirs')
    add('--audio_length', type=whole(16, MAX_FRAMES), help='frames of 10 ms of checkpoints that do not say theirs')
    add('--dataset_mean', type=fbank_mean, help="mean of the fbank; without it each checkpoint's own, or AudioSet's")
    add('--dataset_std', type=fbank_std, help='standard deviation of the fbank, likewise')
    add('--loss', choices=['BCE', 'CE'], help=loss)
    add_num_workers(parser)
    add('--device', default='auto', help='auto, cpu, cuda (all GPUs), cuda:N or mps')
    add('--amp', choices=['auto', 'bf16', 'fp16', 'off'], default='auto', help='mixed precision')


def setup_logging(rank=0):
    """Log to standard error, a line a message, with the time; of several processes, those but the first only warn.

    Standard output is made to print any text.
    """
    logging.basicConfig(level=logging.WARNING if rank else logging.INFO, datefmt='%H:%M:%S', force=True,
                        format=f'%(asctime)s {f"process {rank}: " if rank else ""}%(message)s')
    # Its requests are no news to somebody who trains a model.
    logging.getLogger('httpx').setLevel(logging.WARNING)
    if isinstance(sys.stdout, io.TextIOWrapper):  # not every name of a file is text that a terminal takes
        sys.stdout.reconfigure(errors='backslashreplace')


@contextlib.contextmanager
def exit_on(*errors):
    """End the program with the message of one of these errors, without a traceback, and exit code 1."""
    try:
        yield
    except errors as error:
        # An error that crossed from a dataloader's worker carries the worker's traceback before its own message.
        message = str(error).rpartition(f'{type(error).__name__}: ')[2].strip()
        sys.exit(f'error: {message}')
