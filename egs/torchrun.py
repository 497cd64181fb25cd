"""Run torchrun, but end with the exit code of what it started: egs/torchrun.py OPTIONS OF torchrun

torchrun alone ends with 1 and a traceback if a process fails, whatever the process has said and
returned. torchrun also forwards the Ctrl-C of a terminal, and after 30 seconds it
kills what still runs.
"""
import logging
import os
import signal
import sys

from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.run import main


def exit_code(error: ChildFailedError) -> int:
    """Return the exit code of the first process that failed; report processes that were killed.

    If a signal ended it, that is 128 plus the signal's number, as in a shell.
    """
    for rank, failure in error.failures.items():
        if failure.exitcode < 0:
            print(f'error: process {rank} was ended by {signal.Signals(-failure.exitcode).name}; '
                  f'start the same command again to continue from the checkpoint', file=sys.stderr)
    code = error.get_first_failure()[1].exitcode
    return code if code > 0 else 128 - code


if __name__ == '__main__':
    os.setpgid(0, 0)  # leave Ctrl-C to the recipe, which asks the processes to stop
    if 'LOGLEVEL' not in os.environ:  # torchrun's own variable
        logging.disable()
    try:
        main()
    except ChildFailedError as error:
        sys.exit(exit_code(error))
    except SignalException as error:
        sys.exit(128 + error.sigval)
    except (RendezvousError, DistError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        sys.exit(f'error: the machines did not meet, or lost each other: {reason}')
