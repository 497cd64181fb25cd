"""Whether this process may start worker processes, and how they start."""
import ast
import functools
import logging
import multiprocessing
import sys
from multiprocessing.context import BaseContext
from pathlib import Path

logger = logging.getLogger(__name__)


def may_start_processes() -> bool:
    """Return whether this process may start others to share its work.

    A daemonic process may not: for example a worker of multiprocessing.Pool or Celery. A script
    without the line `if __name__ == '__main__':` may not either if new processes are not forked:
    each of them would run the script again.
    """
    if multiprocessing.current_process().daemon:
        return False
    script = _script_without_guard()
    if script:
        _warn_of_guard(script)
    return not script


def worker_context() -> BaseContext:
    """Return the multiprocessing context in which worker processes start.

    It is the one that the user has chosen. Without a choice, and also if the choice is Python's
    default, Linux forks. Python 3.14 would start workers from a server process instead. Those end
    if a signal reaches the whole job, import everything again, and hold a copy of the datafile
    each.
    """
    # multiprocessing.get_start_method() without allow_none would fix the method for good.
    chosen = multiprocessing.get_start_method(allow_none=True)
    default = multiprocessing.get_all_start_methods()[0]
    if sys.platform == 'linux' and chosen in (None, default):
        return multiprocessing.get_context('fork')
    return multiprocessing.get_context(chosen or default)


def starts_by_fork() -> bool:
    """Return whether a worker process is a copy of this one (fork).

    If not (spawn, forkserver), it starts empty and imports the script that is running.
    """
    return worker_context().get_start_method() == 'fork'


def _script_without_guard():
    """Return the path of the running script if a new process would run it again, else None.

    A new process does not run it again if it is forked, or if there is no script to import. Nor
    does it if the line that the script has reached stands below `if __name__ == '__main__':`.
    """
    main = sys.modules['__main__']
    path, spec = getattr(main, '__file__', None), getattr(main, '__spec__', None)
    is_package = spec and spec.name.split('.')[-1] == '__main__'
    if starts_by_fork() or path is None or is_package:
        return None
    line = _running_line_of(main)
    if line is None:
        return None
    try:
        nodes = ast.walk(ast.parse(Path(path).read_bytes()))
    except (OSError, SyntaxError, ValueError):
        # Such as <stdin>, the lines of a prompt: a new process would try to run it, and fail.
        return path
    is_guarded = any(isinstance(node, ast.If) and '__name__' in ast.unparse(node.test)
                     and node.lineno <= line <= node.end_lineno for node in nodes)
    return None if is_guarded else path


def _running_line_of(module):
    """Return the number of the line that runs at a module's top level, or None if none does."""
    frame = sys._getframe()
    while frame:
        if frame.f_globals is vars(module) and frame.f_code.co_name == '<module>':
            return frame.f_lineno
        frame = frame.f_back
    return None


@functools.cache
def _warn_of_guard(script):
    """Say once why there are no worker processes, and what to do."""
    logger.warning("%s: recordings are read without worker processes, since each of them would run "
                   "it again; in a script, put what it does below `if __name__ == '__main__':`",
                   script)
