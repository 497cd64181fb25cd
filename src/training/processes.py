"""Several processes that train one model (torch.distributed): who they are, and what they tell each other."""
import atexit
import contextlib
import os
import subprocess
import sys
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed as dist

from utilities.parallel import available_cores

FIRST_PORT, PORTS = 15000, 15000  # from which a Slurm job takes one, by its number
# What gloo and NCCL say where the other end of a connection is gone, some of it without their names.
LOST_SIGNS = ('gloo', 'nccl', 'connection', 'pair closure', 'by peer', 'broken pipe', 'timed out')

# What NCCL says if nobody is gone, but it cannot work here: two processes on one GPU, a GPU without free memory.
REFUSALS = ('invalid usage', 'unhandled cuda error', 'invalid argument')


class DistributedError(RuntimeError):
    """Processes that cannot find each other, or have lost each other; the message says what to do."""


@dataclass(frozen=True)
class World:
    """The processes of a run, of which this one is number `rank` of `size`; by default it is alone.

    local_rank, local_size: the same on its machine. on_main, gather_rows and gather_numbers are called by all processes
    in the same order; alone, a process talks to nobody.
    """
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_main(self):
        """Whether this is the process that writes and logs."""
        return self.rank == 0

    def device(self, device):
        """The device of this process: its own GPU of those that `device` stands for. Raises ValueError."""
        if self.size == 1 or device.type != 'cuda':
            return device
        if device.index is not None:
            raise ValueError(f'--device {device} is one GPU, but there are {self.size} processes: --device cuda')
        visible = torch.cuda.device_count()
        own = self.local_rank if visible > 1 else 0  # Slurm may show each process its own
        if visible < self.local_size or own >= visible:
            raise ValueError(f'{max(self.local_size, self.local_rank + 1)} processes share a machine on which they see '
                             f'{visible} GPUs: start one per GPU')
        return torch.device('cuda', own)

    def start(self, device, timeout_minutes):
        """Meet the other processes: NCCL between GPUs, gloo between CPUs. Raises DistributedError.

        A GPU with a number becomes the current one, so that nothing of this process lands on the first.
        """
        if device.type == 'cuda' and device.index is not None:
            torch.cuda.set_device(device)
        if self.size == 1:
            return
        if not dist.is_available():
            raise DistributedError('this build of PyTorch has no torch.distributed: start one '
                                   'process')
        if 'OMP_NUM_THREADS' not in os.environ:
            torch.set_num_threads(max(1, available_cores() // self.local_size))
        backend = 'cpu:gloo,cuda:nccl' if device.type == 'cuda' else 'gloo'
        try:
            dist.init_process_group(backend, rank=self.rank, world_size=self.size,
                                    timeout=timedelta(minutes=timeout_minutes))
        except (RuntimeError, ValueError) as error:
            raise DistributedError(f'process {self.rank} of {self.size} did not meet the others at '
                                   f'{os.environ["MASTER_ADDR"]}:{os.environ["MASTER_PORT"]}: '
                                   f'{str(error).strip().splitlines()[0]}') from None

    def part(self, count):
        """The consecutive part of `count` things, a range, that falls to this process.

        The first ones take one more where it does not divide; with fewer things than processes, the last have none.
        """
        share, rest = divmod(count, self.size)
        first = self.rank * share + min(self.rank, rest)
        return range(first, first + share + (self.rank < rest))

    def on_main(self, function):
        """Call function() in the main process, and return there and in all others what it returns.

        An error in it is raised there, and a DistributedError in the others.
        """
        if self.size == 1:
            return function()
        answer = [None, None]
        try:
            if self.is_main:
                answer = [function(), None]
        except BaseException as error:
            answer = [None, str(error)]
            raise
        finally:
            with in_contact():
                dist.broadcast_object_list(answer, src=0, device=torch.device('cpu'))
        if answer[1] is not None:
            raise DistributedError(f'the main process stopped: {answer[1]}')
        return answer[0]

    def gather_rows(self, rows):
        """Join the rows of all processes, in their order, in the main one; the others get None.

        rows: (own rows, ...) tensor on the CPU; own rows may be 0, but not in the main process.
        """
        if self.size == 1:
            return rows
        counts = self.gather_numbers(len(rows)).flatten().int().tolist()
        with in_contact():
            if self.is_main:
                parts = [rows.new_empty(count, *rows.shape[1:]) for count in counts]
                parts[0] = rows
                for rank in range(1, self.size):
                    if counts[rank]:
                        dist.recv(parts[rank], src=rank)
                return torch.cat(parts)
            if len(rows):
                dist.send(rows.contiguous(), dst=0)

    def gather_numbers(self, *numbers):
        """The numbers of all processes, (size, numbers) float64 on the CPU."""
        own = torch.tensor(numbers, dtype=torch.float64)
        if self.size == 1:
            return own[None]
        with in_contact():
            everybodys = [torch.empty_like(own) for _ in range(self.size)]
            dist.all_gather(everybodys, own)
        return torch.stack(everybodys)


class Agreement:
    """Sums of whole numbers that every process gives, and that all see at the same call; all call it equally often.

    Several processes see the sums of the call before: they travel while the processes compute, and no step waits.
    """

    def __init__(self, world):
        self.world, self.pending = world, None

    def forget(self):
        """Drop what was given and not seen yet, in all processes: who still means it gives it again."""
        if self.pending:
            with in_contact():
                self.pending[1].wait()
        self.pending = None

    def __call__(self, *numbers):
        """numbers: whole, or booleans. Returns as many sums."""
        if self.world.size == 1:
            return numbers
        given = torch.tensor(numbers, dtype=torch.int64)
        with in_contact():
            before, self.pending = self.pending, (given, dist.all_reduce(given, async_op=True))
            if before is None:
                return (0,) * len(numbers)
            before[1].wait()
        return tuple(before[0].tolist())


def has_met_others():
    """Return whether this process has met others; some builds of PyTorch know of none."""
    return dist.is_available() and dist.is_initialized()


@contextlib.contextmanager
def in_contact(signs=('',)):
    """Turn what torch.distributed says where a process is gone or does not answer into a DistributedError.

    signs: words of which such a message has one, where other things may fail as well; without them, all count.
    """
    try:
        yield
    except RuntimeError as error:
        said = str(error).lower()
        lost = has_met_others() and (isinstance(error, dist.DistError) or (
            type(error) is RuntimeError and any(sign in said for sign in signs)))
        if not lost or 'out of memory' in said:  # NCCL needs some of a GPU's memory, too
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        if any(sign in str(error) for sign in REFUSALS):
            raise DistributedError(f'process {dist.get_rank()} cannot exchange gradients with the others: {lines[-1]}; '
                                   f'each process needs a GPU of its own, with enough free memory') from None
        reason = lines[-1] if 'NCCL' in lines[0] else lines[0]  # NCCL says last what happened
        raise DistributedError(f'process {dist.get_rank()} lost contact with another one, which died or did not answer '
                               f'within --timeout_minutes ({reason}); started again, the run goes on from its '
                               f'checkpoint') from None


@contextlib.contextmanager
def ended_at_once():
    """End a process that has met others where the block ends, with its exit code, but not by Python's own end.

    That would wait, with Python's lock held, for threads of gloo's that may wait for the lock.
    """
    end = SystemExit(0)
    try:
        yield
    except BaseException as error:
        if not has_met_others():
            raise
        end = error
    if has_met_others():
        try:
            for step in (lambda: _report(end), atexit._run_exitfuncs, sys.stdout.flush, sys.stderr.flush):
                with contextlib.suppress(Exception):  # whoever read what this prints may be gone
                    step()
        finally:
            code = end.code if isinstance(end, SystemExit) else 1
            os._exit(1 if isinstance(code, str) else code or 0)


def _report(end):
    """Print what Python does about an exception that ends it."""
    if not isinstance(end, SystemExit):
        sys.excepthook(type(end), end, end.__traceback__)
    elif isinstance(end.code, str):
        print(end.code, file=sys.stderr)


def find_world():
    """The World that torchrun or srun has put this process into. Raises DistributedError if it is incomplete."""
    found = _find('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'LOCAL_WORLD_SIZE')
    if found is None and 'SLURM_STEP_ID' in os.environ:  # srun, and not the script of the job
        found = _find('SLURM_PROCID', 'SLURM_STEP_NUM_TASKS', 'SLURM_LOCALID')
        if found and found[1] > 1:
            _meet_by_slurm()
    if found is None:
        return World()
    world = World(*found)
    if not 0 <= world.rank < world.size:
        raise DistributedError(f'this process is number {world.rank} of {world.size}: the environment is not that of '
                               f'torchrun or srun')
    if world.size > 1 and not {'MASTER_ADDR', 'MASTER_PORT'} <= set(os.environ):
        raise DistributedError(f'there are {world.size} processes, but MASTER_ADDR and MASTER_PORT do not say where '
                               f'they meet: start them with torchrun or srun')
    return world


def _find(*names):
    """The numbers that variables of the environment hold, or None where the first of them is not there."""
    if names[0] not in os.environ:
        return None
    try:
        return [int(os.environ[name]) for name in names]
    except (KeyError, ValueError):
        raise DistributedError(f'the environment has {names[0]}, but not all of {", ".join(names)} as numbers: start '
                               f'the processes with torchrun or srun') from None


def _meet_by_slurm():
    """Say where the processes of a job step meet: on its first node, at a port that its number gives."""
    if 'MASTER_ADDR' not in os.environ:
        try:
            nodes = subprocess.run(['scontrol', 'show', 'hostnames', os.environ['SLURM_STEP_NODELIST']], check=True,
                                   capture_output=True, text=True).stdout.split()
            os.environ['MASTER_ADDR'] = nodes[0] if len(nodes) > 1 else 'localhost'  # a name need not resolve
        except (OSError, KeyError, IndexError, subprocess.CalledProcessError):
            raise DistributedError('Slurm does not say on which nodes this step runs: set MASTER_ADDR') from None
    step = int(os.environ['SLURM_JOB_ID']) * 10 + int(os.environ['SLURM_STEP_ID'])
    os.environ.setdefault('MASTER_PORT', str(FIRST_PORT + step % PORTS))
