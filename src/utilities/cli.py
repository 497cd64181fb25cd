"""What the entry points share: how options are spelled and checked, logging, and mistakes shown as one sentence."""
import argparse
import contextlib
import logging
import math
import sys


class OptionParser(argparse.ArgumentParser):
    """argparse with one form of every name (`--a-b` is `--a_b`), no abbreviations, and negative numbers as values."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter, **kwargs)

    def parse_args(self, args=None, namespace=None):
        return super().parse_args(normalise_options(sys.argv[1:] if args is None else args), namespace)

    def error(self, message):
        self.exit(2, f'{self.prog}: {message} (--help lists the options)\n')


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
        raise argparse.ArgumentTypeError(f'expected True or False, got {text!r}') from None


def whole(minimum):
    """An option type: whole numbers from `minimum` up."""
    def parse(text):
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < minimum:
            raise argparse.ArgumentTypeError(f'expected a whole number of at least {minimum}, got {text!r}')
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
                                             + f', got {text!r}')
        return value
    return parse


def add_checkpoint_options(parser):
    """Options of the tools that load checkpoints: what a checkpoint may not say itself, and how to compute."""
    add = parser.add_argument
    add('--fstride', type=whole(1), help='stride in frequency of checkpoints that do not say theirs')
    add('--tstride', type=whole(1), help='stride in time of checkpoints that do not say theirs')
    add('--num_mel_bins', type=whole(16), help='mel bins of checkpoints that do not say theirs')
    add('--audio_length', type=whole(16), help='frames of 10 ms of checkpoints that do not say theirs')
    add('--dataset_mean', type=number(), help="mean of the fbank; without it each checkpoint's own, or AudioSet's")
    add('--dataset_std', type=number(above=0), help='standard deviation of the fbank, likewise')
    add('-w', '--num_workers', type=whole(-1), default=-1, help='processes that load data, -1 for one a core')
    add('--device', default='auto', help='auto, cpu, cuda (all GPUs), cuda:N or mps')
    add('--amp', choices=['auto', 'bf16', 'fp16', 'off'], default='auto', help='mixed precision')


def setup_logging(rank=0):
    """Log to standard error, a line a message, with the time; of several processes, those but the first only warn."""
    logging.basicConfig(level=logging.WARNING if rank else logging.INFO, datefmt='%H:%M:%S', force=True,
                        format=f'%(asctime)s {f"process {rank}: " if rank else ""}%(message)s')
    # Its requests are no news to somebody who trains a model.
    logging.getLogger('httpx').setLevel(logging.WARNING)


@contextlib.contextmanager
def exit_on(*errors):
    """End the program with the message of one of these errors, without a traceback, and exit code 1."""
    try:
        yield
    except errors as error:
        # An error that crossed from a dataloader's worker carries the worker's traceback before its own message.
        message = str(error).rpartition(f'{type(error).__name__}: ')[2].strip()
        sys.exit(f'error: {message}')
