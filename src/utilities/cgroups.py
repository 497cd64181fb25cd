"""What Linux's control groups leave this process: containers and batch systems set such limits.

Control groups of both versions are read. A process may use no more than its own group and every
group around that one. Without control groups, as on macOS and Windows, there are no limits.
"""
import contextlib
import math
from pathlib import Path, PurePosixPath

FOLDER = Path('/sys/fs/cgroup')
OWN_GROUPS = Path('/proc/self/cgroup')  # lines HIERARCHY:CONTROLLERS:GROUP


def cpu_limit():
    """Return how many CPU cores this process may keep busy, a float; math.inf without a limit."""
    # Microseconds of computing, of all cores together, in a period.
    names = ('cpu.max', 'cpu.cfs_quota_us', 'cpu.cfs_period_us')
    quotas = (_numbers(*(folder / name for name in names)) for folder in _folders('cpu'))
    return min((quota[0] / quota[1] for quota in quotas if len(quota) == 2 and quota[1]),
               default=math.inf)


def memory_limit():
    """Return how many bytes of memory this process may use; math.inf without a limit."""
    return min((limit for folder in _folders('memory')
                for limit in _numbers(folder / 'memory.max', folder / 'memory.limit_in_bytes')),
               default=math.inf)


def _folders(controller):
    """Yield the folders of this process's control group and of all groups around it."""
    lines = []
    with contextlib.suppress(OSError):
        lines = OWN_GROUPS.read_text(encoding='utf-8', errors='replace').splitlines()
    for line in lines:
        _, controllers, group = line.split(':', 2)
        if not controllers:  # version 2
            tops = {FOLDER}
        elif controller in controllers.split(','):
            tops = {FOLDER / controllers, FOLDER / controller}
        else:
            continue
        # A container sees its own group as the top one, whatever it is called outside.
        group = PurePosixPath(group.lstrip('/'))
        for one in (group, *group.parents) if '..' not in group.parts else (PurePosixPath(),):
            yield from (top / one for top in tops)


def _numbers(*files):
    """Return the numbers in those of some files that are there; no limit is infinite."""
    words = []
    for file in files:
        with contextlib.suppress(OSError):
            words += file.read_text(encoding='ascii').split()
    return [math.inf if word in ('max', '-1') else float(word) for word in words]
