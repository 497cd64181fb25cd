"""How torchrun or srun has started this process: its number among the others, its GPU."""
import os
import subprocess
from typing import NamedTuple

import torch

FIRST_PORT, PORTS = 15000, 15000  # a Slurm job takes one of these ports, by its number


class DistributedError(RuntimeError):
    """Processes did not find each other, or lost each other. The message says what to do."""


class Launch(NamedTuple):
    """What torchrun or srun says of this process."""
    rank: int = 0  # its number, from 0 to size - 1
    size: int = 1  # how many processes there are
    local_rank: int = 0  # its number among the processes of its machine
    # How many processes torchrun has started on this machine; 1 with srun, which does not say it.
    # If a recipe has started srun, processes.local_size() knows the number, too.
    torchrun_local_size: int = 1


def read_launch() -> Launch:
    """Return the Launch that torchrun or srun has written into the environment.

    With srun, this sets MASTER_ADDR and MASTER_PORT, where the processes meet.

    Raises:
        DistributedError: if the environment is incomplete.
    """
    found = _read_numbers('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'LOCAL_WORLD_SIZE')
    if found is None and 'SLURM_STEP_ID' in os.environ:  # of srun; the job's script has none
        found = _read_numbers('SLURM_PROCID', 'SLURM_STEP_NUM_TASKS', 'SLURM_LOCALID')
        if found and found[1] > 1:
            _set_meeting_point_of_slurm()
    if found is None:
        return Launch()

    launch = Launch(*found)
    if not 0 <= launch.rank < launch.size:
        raise DistributedError(f'this process is number {launch.rank} of {launch.size}: the '
                               f'environment is not that of torchrun or srun')
    if launch.size > 1 and not {'MASTER_ADDR', 'MASTER_PORT'} <= set(os.environ):
        raise DistributedError(f'there are {launch.size} processes, but MASTER_ADDR and '
                               f'MASTER_PORT do not say where they meet: start them with torchrun '
                               f'or srun')
    return launch


def _read_numbers(*names):
    """Return the numbers in these environment variables, or None if the first one is not set."""
    if names[0] not in os.environ:
        return None
    try:
        return [int(os.environ[name]) for name in names]
    except (KeyError, ValueError):
        raise DistributedError(f'the environment has {names[0]}, but not all of {", ".join(names)} '
                               f'as numbers: start the processes with torchrun or srun') from None


def _set_meeting_point_of_slurm():
    """Let the processes of a Slurm step meet on its first node, at a port of its own."""
    if 'MASTER_ADDR' not in os.environ:
        try:
            command = ['scontrol', 'show', 'hostnames', os.environ['SLURM_STEP_NODELIST']]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            nodes = done.stdout.split()
            # The name of a single node need not resolve.
            os.environ['MASTER_ADDR'] = nodes[0] if len(nodes) > 1 else 'localhost'
        except (OSError, KeyError, IndexError, subprocess.CalledProcessError):
            raise DistributedError(
                'Slurm does not say on which nodes this step runs: set MASTER_ADDR') from None
    step = int(os.environ['SLURM_JOB_ID']) * 10 + int(os.environ['SLURM_STEP_ID'])
    os.environ.setdefault('MASTER_PORT', str(FIRST_PORT + step % PORTS))


def own_device(launch: Launch, device: torch.device) -> torch.device:
    """Return the device of this process.

    If several processes train on `cuda`, each has a GPU of its own. Otherwise, it is `device`.

    Raises:
        ValueError: if there are not enough GPUs, or `device` is a single GPU.
    """
    if launch.size == 1 or device.type != 'cuda':
        return device
    if device.index is not None:
        raise ValueError(f'--device {device} is one GPU, but there are {launch.size} processes: '
                         f'give --device cuda, for a GPU each')
    visible = torch.cuda.device_count()
    own = launch.local_rank if visible > 1 else 0  # Slurm may show each process its own GPU alone
    if visible < launch.torchrun_local_size or own >= visible:
        count = max(launch.torchrun_local_size, launch.local_rank + 1)
        raise ValueError(f'{count} processes share a machine on which they see {visible} GPUs: '
                         f'start one per GPU')
    return torch.device('cuda', own)
