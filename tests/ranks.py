"""Start run.py as several processes that train together, forked from a server that has imported everything already."""
import functools
import multiprocessing
import os
import socket
import sys
from multiprocessing import forkserver

import run


@functools.cache
def make_context():
    """The server, which finds what it is to import on PYTHONPATH alone."""
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['run'])
    before = os.environ.get('PYTHONPATH')
    os.environ['PYTHONPATH'] = os.pathsep.join(sys.path)
    forkserver.ensure_running()
    if before is None:
        del os.environ['PYTHONPATH']
    else:
        os.environ['PYTHONPATH'] = before
    return context


def start_ranks(size, options, folder, log='log.txt'):
    """Start `size` processes in a folder, as torchrun would; returns them. What they print is appended to `log`."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    words = [str(word) for word in options]
    ranks = [make_context().Process(target=_run, args=(rank, size, port, str(folder), words, log))
             for rank in range(size)]
    for process in ranks:
        process.start()
    return ranks


def _run(rank, size, port, folder, options, log):
    """Be one of them; alone, an ordinary process."""
    os.chdir(folder)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if size > 1:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(size),
                          MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    run.main(options)


def finish_ranks(ranks, seconds=90):
    """Wait for the processes; returns their exit codes, negative for a signal. Kills those that take too long."""
    for process in ranks:
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in ranks]
