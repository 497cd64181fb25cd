"""The processes of this machine that train, by torchrun's agent. launch.py starts it."""
import contextlib
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from training.interrupt import EXIT_CODE, STOP_SIGNALS
from training.processes import DistributedError, Place, find_place

PROCESSES = Path('/proc')  # where Linux shows them
POLL_SECONDS = 0.2  # how long a signal waits to be passed on


def choose_processes(processes, without_gpus):
    """How many processes to start: what was asked for, or one per GPU, or `without_gpus` if there is no GPU."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0  # the count comes from the driver alone
    return processes or gpus or without_gpus


def find_machines(nodes, node_rank):
    """The Place of the machines: this one's number and how many there are, as given, or as srun says."""
    return find_place() if node_rank is None else Place(node_rank, nodes)


def make_config(machines, processes, timeout_minutes):
    """What torchrun's agent needs to know. Machines meet at MASTER_ADDR and MASTER_PORT. Raises DistributedError."""
    if machines.size == 1:
        meeting = {'rdzv_backend': 'c10d', 'rdzv_endpoint': 'localhost:0', 'local_addr': 'localhost'}
    else:
        address, port = map(os.environ.get, ('MASTER_ADDR', 'MASTER_PORT'))
        if not address or not port:
            raise DistributedError(f'{machines.size} machines meet at MASTER_ADDR and MASTER_PORT: set both')
        meeting = {'rdzv_backend': 'static', 'rdzv_endpoint': f'{address}:{port}',
                   'rdzv_configs': {'rank': machines.rank, 'timeout': round(60 * timeout_minutes)}}
    return LaunchConfig(machines.size, machines.size, processes, run_id='ast', max_restarts=0,
                        logs_specs=DefaultLogsSpecs(os.devnull), **meeting)


def processes_started():
    """The processes that this one has started and that still run."""
    found = set()
    for path in PROCESSES.glob('[0-9]*/stat'):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            state, parent = path.read_bytes().rpartition(b') ')[2].split()[:2]  # before it, any name
            if int(parent) == os.getpid() and state != b'Z':
                found.add(int(path.parent.name))
    return found


def listen():
    """Collect the numbers of the signals that ask to stop, from now on, in the list returned."""
    came = []
    for stop_signal in (*STOP_SIGNALS, signal.SIGHUP):
        if signal.getsignal(stop_signal) != signal.SIG_IGN:  # as under nohup
            signal.signal(stop_signal, lambda came_now, _: came.append(came_now))
    return came


def pass_on(came, told):
    """Ask the processes that have not been told yet to stop; a second SIGINT kills them.

    came: signals. told: processes, in which this notes whom it told.
    """
    running = processes_started()
    if not running and not told:
        os._exit(EXIT_CODE)  # nothing has begun, and a thread may be waiting for other machines
    impatient = came.count(signal.SIGINT) > 1
    for process in running if impatient else running - told:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL if impatient else signal.SIGUSR1)
    told |= running


def launch(config, command):
    """Run the command in all processes and return the exit code: the first that is not 0. Raises DistributedError.

    torchrun's agent runs in a thread, where it leaves signals alone.
    """
    came, told = listen(), set()
    with ThreadPoolExecutor(1) as pool:
        agent = pool.submit(elastic_launch(config, command[0]), *command[1:])
        while not agent.done():
            wait([agent], POLL_SECONDS)
            if came:
                pass_on(came, told)
        try:
            agent.result()
            return 0
        except ChildFailedError as error:
            return exit_code(*error.get_first_failure(), bool(came))
        except (RendezvousError, RuntimeError, TimeoutError) as error:
            raise DistributedError(f'the machines did not meet at {config.rdzv_endpoint}, or lost each other: '
                                   f'{(str(error).strip() or type(error).__name__).splitlines()[0]}') from None


def exit_code(rank, failure, asked_to_stop):
    """The exit code of a process that failed; says so if it could not itself."""
    if failure.exitcode >= 0:
        return failure.exitcode
    if asked_to_stop and failure.exitcode == -signal.SIGUSR1:
        return EXIT_CODE  # it was not listening yet
    print(f'error: process {rank} was ended by {signal.Signals(-failure.exitcode).name}; started again, the run goes '
          f'on from its checkpoint', file=sys.stderr)
    return 128 - failure.exitcode
