"""Measure functions in turns; say how they compare, and on which machine."""
import contextlib
import platform
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from utilities.parallel import available_cores

# What decides how fast a processor multiplies matrices.
CPU_FLAGS = ('avx2', 'avx512f', 'avx512_bf16', 'amx_bf16')
WHAT_WIDTH = 86  # characters


@dataclass(frozen=True)
class Scale:
    """How much to measure.

    Attributes:
        rounds: how often each function is timed.
        model_size: size of the model.
        frames: length of the model's input.
        files: files tagged in one timing.
        samples: dataset samples per timing.
        predictions: (samples, classes) of an epoch's predictions.
        matrix: rows of the square matrix on a CPU; a GPU gets twice as many.
        batches: batch sizes to try on a GPU; the first is the recipe's.
    """
    rounds: int = 5
    model_size: str = 'base384'
    frames: int = 1024
    files: int = 64
    samples: int = 100
    predictions: tuple[int, int] = (20371, 527)
    matrix: int = 4096
    batches: tuple[int, ...] = (12, 24, 48, 96)


QUICK = Scale(rounds=1, model_size='tiny224', frames=512, files=4, samples=4,
              predictions=(500, 20), matrix=512, batches=(2, 4))


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        what: what was measured, and against what.
        ours, reference: the two measured values, in `unit`.
        ratio: how much better ours is.
        bar: the least ratio that counts as met, or None if the line only informs.
        is_goal: whether the bar is something to work towards, and not a promise.
    """
    what: str
    ours: float
    reference: float
    unit: str
    ratio: float
    bar: float | None = None
    is_goal: bool = False

    @property
    def met(self):
        """Whether the bar is met; None if there is none."""
        return None if self.bar is None else self.ratio >= self.bar

    def __str__(self):
        bar = '' if self.bar is None else f'{"goal " if self.is_goal else ""}{self.bar:g}'
        met = {None: '', True: 'yes', False: 'NO'}[self.met]
        ours, reference = (format_value(value, self.unit) for value in (self.ours, self.reference))
        return (f'| {self.what:<{WHAT_WIDTH}} | {ours:>13} | {reference:>13} | {self.ratio:6.2f} '
                f'| {bar:>8} | {met:3} |')


HEADER = (f'| {"what, against what":<{WHAT_WIDTH}} | {"ours":>13} | {"reference":>13} |  ratio '
          f'|      bar | met |\n'
          f'|{"-" * (WHAT_WIDTH + 2)}|{"-" * 14}:|{"-" * 14}:|{"-" * 7}:|{"-" * 9}:|{"-" * 5}|')


def format_value(value, unit):
    """Return a measured value as the table prints it: seconds below a tenth in ms."""
    return f'{1000 * value:.2f} ms' if unit == 's' and value < 0.1 else f'{value:.4g} {unit}'


def faster(what, ours, reference, bar=None):
    """Return the Row of two times in seconds. Its ratio says how many times as fast ours is."""
    return Row(what, ours, reference, 's', reference / ours, bar)


def share(what, ours, limit, unit, bar=None, is_goal=False):
    """Return the Row of two rates. Its ratio is the share of the limit that ours reaches."""
    return Row(what, ours, limit, unit, ours / limit, bar, is_goal)


def at_most(what, value, limit, unit):
    """Return the Row of a value that must stay below a limit. Its ratio is limit / value."""
    return Row(what, value, limit, unit, limit / value, bar=1.0)


def alternate(functions, rounds, settle=True, before=lambda name: None):
    """Call functions in turns, A B A B ..., so that a busy moment of the machine hits all of them.

    Args:
        functions: {name: function without arguments}.
        rounds: how often each is timed.
        settle: call a function once more before each timing, so that caches and allocators hold
            what this function needs.
        before: before(name) is called before each timing.

    Returns:
        {name: median seconds of a call}.
    """
    times = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            if settle:
                function()
            before(name)
            times[name].append(time_call(function))
    return {name: statistics.median(values) for name, values in times.items()}


def time_call(function):
    """Return the seconds that a call takes, with the work that it leaves running on a GPU."""
    synchronise()
    start = time.perf_counter()
    function()
    synchronise()
    return time.perf_counter() - start


def repeat(function, *arguments, times):
    """Call a function several times: one call may be too short to be timed."""
    for _ in range(times):
        function(*arguments)


def synchronise():
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextlib.contextmanager
def threads(count):
    """Compute on this number of threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def require_close(what, ours, reference, tolerance):
    """Stop if two results differ: the time of a wrong result means nothing."""
    ours, reference = (np.asarray(values, dtype=np.float64) for values in (ours, reference))
    difference = float(np.abs(ours - reference).max())
    if not difference <= tolerance:
        raise SystemExit(f'{what}: ours differs from the reference by {difference:.2g}, more than '
                         f'{tolerance:g}')


def matrix_product(size, dtype, device='cpu'):
    """Return a function that multiplies two square matrices, and its floating-point operations."""
    first, second = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return lambda: first @ second, 2 * size ** 3


def forward_operations(model, frames, bins):
    """Count the floating-point operations of one clip in a model with plain attention.

    They are counted on the device `meta`, which computes nothing. The model stays there.
    """
    model = model.to('meta')
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, frames, bins, device='meta'))
    return counter.get_total_flops()


def describe_machine():
    """Return what the figures depend on: processor, cores, libraries, GPU."""
    path = Path('/proc/cpuinfo')
    lines = path.read_text().splitlines() if path.is_file() else []
    pairs = (line.partition(':') for line in lines)
    cpuinfo = {name.strip(): value.strip() for name, _, value in pairs}
    flags = cpuinfo.get('flags', '').split()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {'cpu': cpuinfo.get('model name', platform.processor()), 'cores': available_cores(),
            'flags': [flag for flag in CPU_FLAGS if flag in flags],
            'python': platform.python_version(), 'torch': torch.__version__, 'gpu': gpu}


def print_machine():
    """Print a line with what the figures depend on."""
    print(', '.join(f'{name} {value}' for name, value in describe_machine().items()))
