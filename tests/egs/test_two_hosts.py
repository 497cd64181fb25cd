"""Two machines that train one model: two network namespaces of this one, with a cable between them."""
import os
import subprocess
import sys

import numpy as np
import pytest

ADDRESSES = ('10.213.7.1', '10.213.7.2')
OPTIONS = ('--model_size tiny224 --imagenet_pretrain False --num_mel_bins 32 --audio_length 32 --fstride 16 '
           '--tstride 16 --n_epochs 2 --batch_size 4 --lr 1e-4 --mixup 0.5 --num_workers 0 --amp off '
           '--device cpu --timeout_minutes 1').split()


def ip(*words):
    """Run a command of ip; returns whether it worked."""
    try:
        return subprocess.run(['ip', *words], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture
def hosts():
    """The names of two namespaces whose interfaces `cable` are joined."""
    names = [f'ast{os.getpid()}{end}' for end in 'ab']
    commands = [('netns', 'add', names[0]), ('netns', 'add', names[1]),
                ('-n', names[0], 'link', 'add', 'cable', 'type', 'veth', 'peer', 'cable', 'netns', names[1]),
                *(('-n', name, 'address', 'add', f'{address}/24', 'dev', 'cable')
                  for name, address in zip(names, ADDRESSES)),
                *(('-n', name, 'link', 'set', device, 'up') for name in names for device in ('lo', 'cable'))]
    try:
        if not all(ip(*command) for command in commands):
            pytest.skip('network namespaces cannot be made here: root and iproute2 are needed')
        yield names
    finally:
        for name in names:
            ip('netns', 'delete', name)


@pytest.fixture
def clips(tmp_path, make_tone, make_labels, make_datafile):
    """Make eight recordings of two classes, and their datafiles."""
    make_labels(2)
    entries = [(make_tone(f'{i}.wav', 400 * (1 + i % 2), seconds=0.4, seed=i), f'/m/{i % 2}') for i in range(8)]
    make_datafile(entries, 'train.json')
    make_datafile(entries[:5], 'val.json')


@pytest.fixture
def run_on_hosts(hosts, terminal, tmp_path):
    """Run a command on each host, and end them together; returns what each has said. All must succeed."""
    def run(commands):
        running = [subprocess.Popen(['ip', 'netns', 'exec', host, *map(str, command)], cwd=tmp_path, text=True,
                                    env=terminal(GLOO_SOCKET_IFNAME='cable', MASTER_ADDR=ADDRESSES[0],
                                                 NODE_RANK=str(rank)),
                                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
                   for rank, (host, command) in enumerate(zip(hosts, commands))]
        said = [process.communicate()[0] for process in running]
        assert [process.returncode for process in running] == [0] * len(running), '\n'.join(said)
        return said
    return run


def assert_same_results(one, two):
    """Both experiments have the same numbers in result.csv, up to rounding."""
    one, two = (np.loadtxt(folder / 'result.csv', delimiter=',') for folder in (one, two))
    np.testing.assert_allclose(two, one, atol=1e-5)


def test_a_torchrun_on_each_of_two_hosts_trains_as_one_process_does(run_on_hosts, clips, root, tmp_path):
    run = [root / 'src' / 'run.py', '--data_train', 'train.json', '--data_val', 'val.json', '--label_csv', 'labels.csv',
           '--n_class', '2', *OPTIONS]
    subprocess.run([sys.executable, *map(str, run), '--exp_dir', 'one'], cwd=tmp_path, check=True, capture_output=True)
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--nnodes', '2', '--nproc_per_node', '1',
                '--master_addr', ADDRESSES[0], '--master_port', '29500']
    said = run_on_hosts([[*torchrun, '--node_rank', rank, *run, '--exp_dir', 'two'] for rank in (0, 1)])
    assert 'in each of 2 processes' in said[0]
    assert_same_results(tmp_path / 'one', tmp_path / 'two')


def test_the_recipe_started_on_two_hosts_trains_as_on_one(run_on_hosts, root, run_shell, make_esc, tmp_path):
    words = [root / 'egs' / 'esc50' / 'run_esc50.sh', '--data_dir', make_esc(), '--prep_dir', 'prep', '--folds', '1',
             '--audioset_pretrain', 'False', '--freqm', '8', '--timem', '8', *OPTIONS]
    single = run_shell([*words, '--exp_dir', 'one'])
    assert single.returncode == 0, single.stderr
    said = run_on_hosts([[*words, '--exp_dir', 'two', '--nodes', '2', '--processes', '1']] * 2)
    assert 'in each of 2 processes' in said[0] and 'the best of the mean' in said[0]
    assert 'the best of the mean' not in said[1] and 'prepared' not in said[1]
    for folder in ('.', 'fold1'):
        assert_same_results(tmp_path / 'one' / folder, tmp_path / 'two' / folder)
