"""Control groups: what a container or a batch system leaves, by files as Linux shows them."""
import math

import pytest

from training import devices
from utilities import cgroups, parallel
from utilities.cgroups import cpu_limit, memory_limit
from utilities.parallel import available_cores

GB = 2 ** 30
UNLIMITED = 9223372036854771712  # bytes; what version 1 says without a limit
VERSION_1 = ['5:memory:/docker/1', '4:cpu,cpuacct:/docker/1', '3:cpuset:/docker/1', '0::/system']
POD = '0::/kubepods/pod1/own'


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Pretend to be a machine of 64 cores and 1 TB with control groups.

    The function takes the lines of /proc/self/cgroup, and what files below /sys/fs/cgroup hold.
    """
    monkeypatch.setattr(cgroups, 'FOLDER', tmp_path / 'cgroup')
    monkeypatch.setattr(cgroups, 'OWN_GROUPS', tmp_path / 'own')
    monkeypatch.setattr(parallel.os, 'sched_getaffinity', lambda _: range(64), raising=False)
    monkeypatch.setattr(devices.os, 'sysconf', lambda _: 2 ** 20)  # pages, and bytes of a page

    def write(groups, files):
        (tmp_path / 'own').write_text('\n'.join(groups) + '\n')
        for name, value in files.items():
            path = tmp_path / 'cgroup' / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f'{value}\n')
    return write


def quota(folder, microseconds):
    """The files of a group in version 1."""
    return {f'{folder}/cpu.cfs_quota_us': microseconds, f'{folder}/cpu.cfs_period_us': 100000}


@pytest.mark.parametrize('groups, files, cores', [
    (['0::/'], {}, 64),
    (['0::/'], {'cpu.max': 'max 100000'}, 64),
    (['0::/'], {'cpu.max': '200000 100000'}, 2),
    (['0::/'], {'cpu.max': '150000 100000'}, 2),  # of a part of a core, all
    (['0::/'], {'cpu.max': '10000 100000'}, 1),
    (['0::/'], {'cpu.max': '12800000 100000'}, 64),  # more than there are
    ([POD], {'kubepods/cpu.max': '800000 100000', 'kubepods/pod1/cpu.max': '300000 100000',
             'kubepods/pod1/own/cpu.max': 'max 100000'}, 3),
    ([POD], {'kubepods/cpu.max': '900000 100000', 'kubepods/pod1/own/cpu.max': '500000 100000'}, 5),
    (['0::/named/outside'], {'cpu.max': '400000 100000'}, 4),  # a container's own group is the top
    (['0::/../other'], {'cpu.max': '400000 100000', '../other/cpu.max': '100000 100000'}, 4),
    (VERSION_1, quota('cpu,cpuacct', -1), 64),
    (VERSION_1, quota('cpu,cpuacct', 250000), 3),
    (VERSION_1, quota('cpu', 50000), 1),
    (VERSION_1, {**quota('cpu,cpuacct', -1), **quota('cpu,cpuacct/docker/1', 700000)}, 7),
    (['1:name=systemd:/', '2:cpuset:/own'], {'cpuset/own/cpu.max': '100000 100000'}, 64)])
def test_the_tightest_quota_of_the_groups_around_a_process_counts(machine, groups, files, cores):
    machine(groups, files)
    assert available_cores() == cores


@pytest.mark.parametrize('groups, files, memory', [
    (['0::/'], {'memory.max': 'max'}, math.inf),
    (['0::/a/b'], {'a/memory.max': 8 * GB, 'a/b/memory.max': 'max'}, 8 * GB),
    (VERSION_1, {'memory/memory.limit_in_bytes': UNLIMITED}, UNLIMITED),
    (VERSION_1, {'memory/memory.limit_in_bytes': UNLIMITED,
                 'memory/docker/1/memory.limit_in_bytes': 3 * GB}, 3 * GB)])
def test_memory_is_that_of_the_groups_or_of_the_machine(machine, groups, files, memory):
    machine(groups, files)
    assert memory_limit() == memory
    assert devices.memory_bytes() == min(memory, 2 ** 40)


def test_without_control_groups_there_is_no_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(cgroups, 'OWN_GROUPS', tmp_path / 'none')
    assert cpu_limit() == memory_limit() == math.inf
