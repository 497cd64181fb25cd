"""Measure functions side by side; say how they compare, and on which machine."""
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

CPU_FLAGS = ('avx2', 'avx512f', 'avx512_bf16', 'amx_bf16')  # those that decide how fast a matrix product is
WHAT_WIDTH = 86


@dataclass(frozen=True)
class Scale:
    """How much to measure. rounds: turns of every function; predictions: (samples, classes); batches: on a GPU.

    model_size, frames: of the model; files: tagged end to end; samples: of the dataset, a turn; matrix: rows of a
    square matrix on a CPU, doubled on a GPU.
    """
    rounds: int = 5
    model_size: str = 'base384'
    frames: int = 1024
    files: int = 64
    samples: int = 100
    predictions: tuple[int, int] = (20371, 527)
    matrix: int = 4096
    batches: tuple[int, ...] = (12, 24, 48, 96)


QUICK = Scale(rounds=1, model_size='tiny224', frames=512, files=4, samples=4, predictions=(500, 20), matrix=512,
              batches=(2, 4))


@dataclass(frozen=True)
class Row:
    """A line of the table. ours, reference: in `unit`; ratio: what the bar is held against, the more the better.

    bar: None for a line that only informs. towards: whether the bar is a direction and not a promise.
    """
    what: str
    ours: float
    reference: float
    unit: str
    ratio: float
    bar: float | None = None
    towards: bool = False

    @property
    def met(self):
        """Whether the bar is met, None where there is none."""
        return None if self.bar is None else self.ratio >= self.bar

    def __str__(self):
        bar = '' if self.bar is None else f'{"towards " if self.towards else ""}{self.bar:g}'
        met = {None: '', True: 'yes', False: 'NO'}[self.met]
        ours, reference = shown(self.ours, self.unit), shown(self.reference, self.unit)
        return f'| {self.what:<{WHAT_WIDTH}} | {ours:>13} | {reference:>13} | {self.ratio:6.2f} | {bar:>11} | {met:3} |'


HEADER = (f'| {"what, against what":<{WHAT_WIDTH}} | {"ours":>13} | {"reference":>13} |  ratio |         bar | met |\n'
          f'|{"-" * (WHAT_WIDTH + 2)}|{"-" * 14}:|{"-" * 14}:|{"-" * 7}:|{"-" * 12}:|{"-" * 5}|')


def shown(value, unit):
    """A measured value as the table prints it: seconds below a tenth in ms."""
    return f'{1000 * value:.2f} ms' if unit == 's' and value < 0.1 else f'{value:.4g} {unit}'


def faster(what, ours, reference, bar=None):
    """The Row of two times in seconds: how many times as fast ours is."""
    return Row(what, ours, reference, 's', reference / ours, bar)


def share(what, ours, limit, unit, bar=None, towards=False):
    """The Row of two rates: which share of the limit ours reaches."""
    return Row(what, ours, limit, unit, ours / limit, bar, towards)


def at_most(what, value, limit, unit):
    """The Row of a value that is to stay below a limit: how often it fits."""
    return Row(what, value, limit, unit, limit / value, bar=1.0)


def alternate(functions, rounds, settle=True):
    """Call functions in turn, A B A B ...: the median of each one's seconds, a dict by name like `functions`.

    settle: before each call that counts, one that does not: caches and allocators are then this function's own.
    """
    times = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            if settle:
                function()
            times[name].append(seconds_of(function))
    return {name: statistics.median(values) for name, values in times.items()}


def seconds_of(function):
    """How long a call takes, to the end of what it leaves running on a GPU."""
    synchronise()
    start = time.perf_counter()
    function()
    synchronise()
    return time.perf_counter() - start


def repeat(function, *arguments, times):
    """Call a function that is too short to be timed alone."""
    for _ in range(times):
        function(*arguments)


def synchronise():
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextlib.contextmanager
def threads(count):
    """Compute on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def require_close(what, ours, reference, tolerance):
    """Stop where two results differ: the time of a wrong one means nothing."""
    difference = float(np.abs(np.asarray(ours, dtype=np.float64) - np.asarray(reference, dtype=np.float64)).max())
    if not difference <= tolerance:
        raise SystemExit(f'{what}: ours differs from the reference by {difference:.2g}, more than {tolerance:g}')


def matrix_product(size, dtype, device='cpu'):
    """A function that multiplies two square matrices, and its floating-point operations."""
    first, second = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return lambda: first @ second, 2 * size ** 3


def forward_operations(model, frames, bins):
    """Floating-point operations of one clip's way through a model whose attention is plain matrix products.

    Counted on the meta device, on which nothing is computed. The model is left there.
    """
    model = model.to('meta')
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, frames, bins, device='meta'))
    return counter.get_total_flops()


def machine():
    """What the figures depend on: processor, cores, libraries, GPU."""
    cpuinfo = Path('/proc/cpuinfo')
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(':') for line in lines)}
    flags = fields.get('flags', '').split()
    return {'cpu': fields.get('model name', platform.processor()), 'cores': available_cores(),
            'flags': [flag for flag in CPU_FLAGS if flag in flags], 'python': platform.python_version(),
            'torch': torch.__version__, 'gpu': torch.cuda.get_device_name() if torch.cuda.is_available() else None}
