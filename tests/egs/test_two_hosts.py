"""Two machines that train one model: two network namespaces of this one, joined by a cable."""
import json
import os
import subprocess
import sys

import numpy as np
import pytest

ADDRESSES = ('10.213.7.1', '10.213.7.2')
OPTIONS = ('--prep_dir prep --folds 1 --model_size tiny224 --imagenet_pretrain False '
           '--audioset_pretrain False --num_mel_bins 32 --audio_length 32 --freqm 8 --timem 8 '
           '--fstride 16 --tstride 16 --n_epochs 2 --batch_size 4 --lr 1e-4 --mixup 0.5 '
           '--num_workers 0 --amp off --device cpu --timeout_minutes 1').split()


def ip(*words):
    """Run a command of ip; return whether it worked."""
    try:
        return subprocess.run(['ip', *words], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture
def hosts():
    """Make two namespaces whose interfaces `cable` are joined; return their names."""
    names = [f'ast{os.getpid()}{end}' for end in 'ab']
    commands = [('netns', 'add', names[0]), ('netns', 'add', names[1]),
                ('-n', names[0], 'link', 'add', 'cable', 'type', 'veth',
                 'peer', 'cable', 'netns', names[1])]
    for name, address in zip(names, ADDRESSES, strict=True):
        commands += [('-n', name, 'address', 'add', f'{address}/24', 'dev', 'cable'),
                     ('-n', name, 'link', 'set', 'lo', 'up'),
                     ('-n', name, 'link', 'set', 'cable', 'up')]
    try:
        if not all(ip(*command) for command in commands):
            pytest.skip('network namespaces cannot be made here: root and iproute2 are needed')
        yield names
    finally:
        for name in names:
            ip('netns', 'delete', name)


@pytest.fixture
def run_on_hosts(hosts, terminal, folder):
    """Run a command on each host at the same time; return what each printed. Both must succeed."""
    def run(commands):
        running = []
        for rank, (host, command) in enumerate(zip(hosts, commands, strict=True)):
            environment = terminal(GLOO_SOCKET_IFNAME='cable', MASTER_ADDR=ADDRESSES[0],
                                   NODE_RANK=str(rank), OMP_NUM_THREADS=None)
            running.append(subprocess.Popen(
                ['ip', 'netns', 'exec', host, *map(str, command)], cwd=folder, env=environment,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        said = [process.communicate()[0] for process in running]
        assert [process.returncode for process in running] == [0] * len(running), '\n'.join(said)
        return said
    return run


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """The folder in which all runs share their data, and leave their results."""
    return tmp_path_factory.mktemp('hosts')


@pytest.fixture(scope='module')
def recipe(root, write_esc, folder):
    """The command that runs the recipe, without the folder of the results."""
    return [str(root / 'egs' / 'esc50' / 'run_esc50.sh'), '--data_dir',
            str(write_esc(folder / 'esc')), *OPTIONS]


@pytest.fixture(scope='module')
def alone(recipe, terminal, folder):
    """The folder with what the recipe trains in one process."""
    done = subprocess.run([*recipe, '--exp_dir', 'one', '--stop_stage', '2'], cwd=folder, env=terminal(),
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / 'one' / 'fold1'


def assert_same_results(one, two):
    """Check that two experiments have the same numbers in result.csv, up to rounding."""
    one, two = (np.loadtxt(folder / 'result.csv', delimiter=',') for folder in (one, two))
    np.testing.assert_allclose(two, one, atol=1e-5)


def test_a_torchrun_on_each_of_two_hosts_trains_as_one_process_does(run_on_hosts, alone, root,
                                                                    folder):
    settings = json.loads((alone / 'args.json').read_text())
    options = [f'--{name}={value}' for name, value in settings.items()
               if name not in ('exp_dir', 'dry_run', 'force') and value is not None]
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--nnodes', '2',
                '--nproc_per_node', '1', '--master_addr', ADDRESSES[0], '--master_port', '29500']
    run = [root / 'src' / 'run.py', *options, '--exp_dir', 'torchrun']
    said = run_on_hosts([[*torchrun, '--node_rank', rank, *run] for rank in (0, 1)])
    assert 'in each of 2 processes' in said[0]
    assert_same_results(alone, folder / 'torchrun')


def test_the_recipe_started_on_two_hosts_trains_as_on_one(run_on_hosts, alone, recipe, folder):
    said = run_on_hosts([[*recipe, '--exp_dir', 'two', '--nodes', '2', '--processes', '1']] * 2)
    assert 'in each of 2 processes' in said[0] and 'the best of the mean' in said[0]
    assert 'the best of the mean' not in said[1] and 'prepared' not in said[1]
    for name in ('.', 'fold1'):  # the mean of one fold is that fold
        assert_same_results(alone, folder / 'two' / name)
