"""Several processes that train one model together (torch.distributed).

torch.distributed keeps one group of processes for the whole program, so rank(), size(), is_main()
and the other functions here need no object: before `join`, and in a run of one process, this
process is number 0 of 1 and talks to nobody.
"""
import atexit
import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

import torch
from torch import distributed as dist

from training.launch import DistributedError, Launch
from utilities.parallel import available_cores

# Words in the messages of gloo and NCCL if another process is gone. Some messages name neither.
LOST_SIGNS = ('gloo', 'nccl', 'connection', 'pair closure', 'by peer', 'broken pipe', 'timed out')
# What NCCL says if all processes are there, but it cannot work: two processes share a GPU, or a GPU
# has no free memory.
REFUSALS = ('invalid usage', 'unhandled cuda error', 'invalid argument')
P = ParamSpec('P')
T = TypeVar('T')


def join(launch: Launch, device: torch.device, timeout_minutes: float) -> None:
    """Join the other processes: over NCCL between GPUs, over gloo between CPUs.

    A GPU with a number becomes the current one, so that this process puts nothing on the first.

    Raises:
        DistributedError: if the processes do not meet.
    """
    if device.type == 'cuda' and device.index is not None:
        torch.cuda.set_device(device)
    if launch.size == 1:
        return
    if not dist.is_available():
        raise DistributedError('this build of PyTorch has no torch.distributed: start one process')
    backend = 'cpu:gloo,cuda:nccl' if device.type == 'cuda' else 'gloo'
    try:
        dist.init_process_group(backend, rank=launch.rank, world_size=launch.size,
                                timeout=timedelta(minutes=timeout_minutes))
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DistributedError(
            f'process {launch.rank} of {launch.size} did not meet the others at '
            f'{os.environ["MASTER_ADDR"]}:{os.environ["MASTER_PORT"]}: {reason}') from None
    if 'OMP_NUM_THREADS' not in os.environ:
        torch.set_num_threads(max(1, available_cores() // local_size()))


def has_joined() -> bool:
    """Return whether this process has joined others. Some builds of PyTorch cannot."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if has_joined() else 0


def size() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if has_joined() else 1


def local_size() -> int:
    """Return how many processes train on this machine: what torchrun or the recipe says, else 1.

    srun does not say this number, so the recipe puts it into LOCAL_WORLD_SIZE, as torchrun does.
    """
    return int(os.environ.get('LOCAL_WORLD_SIZE', 1))


def is_main() -> bool:
    """Return whether this is the process that writes and logs."""
    return rank() == 0


def own_part(count: int) -> range:
    """Return the consecutive part of `count` things that falls to this process.

    The first processes take one more if the parts are not equal. With fewer things than processes,
    the last processes have none.
    """
    share, rest = divmod(count, size())
    first = rank() * share + min(rank(), rest)
    return range(first, first + share + (rank() < rest))


def on_main(function: Callable[[], Any]) -> Any:
    """Call function() in the main process, and return its result in every process.

    All processes call this, in the same order.

    Raises:
        DistributedError: in the other processes, if the function raised an error in the main one.
    """
    if size() == 1:
        return function()
    answer: list = [None, None]  # result, error
    try:
        if is_main():
            answer = [function(), None]
    except BaseException as error:
        answer = [None, str(error)]
        raise
    finally:
        with catch_lost_processes():
            dist.broadcast_object_list(answer, src=0, device=torch.device('cpu'))
    if answer[1] is not None:
        raise DistributedError(f'the main process stopped: {answer[1]}')
    return answer[0]


def main_process_only(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function: it runs in the main process alone, and all processes get its result.

    All processes must call it, in the same order: each waits until the main one has finished. So a
    call inside `if is_main():` would wait for ever.
    """
    @functools.wraps(function)
    def run_on_main(*args: P.args, **kwargs: P.kwargs) -> T:
        return on_main(lambda: function(*args, **kwargs))
    return run_on_main


def gather_rows(rows: torch.Tensor) -> torch.Tensor | None:
    """Join the rows of all processes, in their order, in the main one. The others get None.

    All processes call this, in the same order.

    Args:
        rows: (own rows, ...) on the CPU; a process other than the main one may have 0.
    """
    if size() == 1:
        return rows
    counts = gather_numbers(len(rows)).flatten().int().tolist()
    with catch_lost_processes():
        if not is_main():
            if len(rows):
                dist.send(rows.contiguous(), dst=0)
            return None
        parts = [rows.new_empty(count, *rows.shape[1:]) for count in counts]
        parts[0] = rows
        for other in range(1, size()):
            if counts[other]:
                dist.recv(parts[other], src=other)
        return torch.cat(parts)


def gather_numbers(*numbers: float) -> torch.Tensor:
    """Return the numbers of all processes: (processes, numbers) float64 on the CPU.

    All processes call this, in the same order.
    """
    own = torch.tensor(numbers, dtype=torch.float64)
    if size() == 1:
        return own[None]
    with catch_lost_processes():
        everybodys = [torch.empty_like(own) for _ in range(size())]
        dist.all_gather(everybodys, own)
    return torch.stack(everybodys)


class DelayedSum:
    """Sum whole numbers over all processes without making training wait.

    Each call starts a new sum and returns the previous one: the numbers travel while the processes
    compute. All processes call it equally often. A single process gets its own numbers at once.
    """

    def __init__(self):
        self._under_way = None  # the numbers, which become their sums, and the work to wait for

    def __call__(self, *numbers: int | bool) -> tuple[int, ...]:
        """Give numbers and return the sums of the call before, zeros at the first call."""
        if size() == 1:
            return numbers
        given = torch.tensor(numbers, dtype=torch.int64)
        with catch_lost_processes():
            before = self._under_way
            self._under_way = given, dist.all_reduce(given, async_op=True)
            if before is None:
                return (0,) * len(numbers)
            before[1].wait()
        return tuple(before[0].tolist())

    def reset(self) -> None:
        """Drop, in all processes, what was given and not returned yet."""
        if self._under_way:
            with catch_lost_processes():
                self._under_way[1].wait()
        self._under_way = None


@contextlib.contextmanager
def catch_lost_processes(signs: tuple[str, ...] = ('',)) -> Iterator[None]:
    """Raise a DistributedError in place of what torch.distributed raises if a process is gone.

    Args:
        signs: a RuntimeError counts only if its message contains one of these words. Give them if
            the block may raise others. By default, each counts. Errors of torch.distributed's own
            class (DistError) always count, those of other subclasses never.
    """
    try:
        yield
    except RuntimeError as error:
        said = str(error).lower()
        is_lost = has_joined() and (isinstance(error, dist.DistError) or (
            type(error) is RuntimeError and any(sign in said for sign in signs)))
        if not is_lost or 'out of memory' in said:  # NCCL needs some of a GPU's memory, too
            raise
        raise DistributedError(_explain_lost_process(error)) from None


def _explain_lost_process(error):
    """Return a sentence about an error of torch.distributed, and what to do."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = lines or [type(error).__name__]
    if any(sign in str(error) for sign in REFUSALS):
        return (f'process {rank()} cannot exchange gradients with the others: {lines[-1]}; each '
                f'process needs a GPU of its own, with enough free memory')
    reason = lines[-1] if 'NCCL' in lines[0] else lines[0]  # NCCL says last what happened
    return (f'process {rank()} lost contact with another one, which died or did not answer within '
            f'--timeout_minutes ({reason}); started again, the run continues from its checkpoint')


@contextlib.contextmanager
def exit_without_waiting() -> Iterator[None]:
    """End a process that has joined others as soon as the block ends, with the block's exit code.

    A normal exit can deadlock: Python waits for gloo's threads while it holds the GIL, and they may
    wait for the GIL.
    """
    end: BaseException = SystemExit(0)
    try:
        yield
    except BaseException as error:
        if not has_joined():
            raise
        end = error
    if has_joined():
        try:
            for step in (lambda: _report(end), atexit._run_exitfuncs, sys.stdout.flush,
                         sys.stderr.flush):
                with contextlib.suppress(Exception):  # the reader of what this prints may be gone
                    step()
        finally:
            code = end.code if isinstance(end, SystemExit) else 1
            os._exit(1 if isinstance(code, str) else code or 0)


def _report(end):
    """Print what Python prints about an exception that ends it."""
    if not isinstance(end, SystemExit):
        sys.excepthook(type(end), end, end.__traceback__)
    elif isinstance(end.code, str):
        print(end.code, file=sys.stderr)
