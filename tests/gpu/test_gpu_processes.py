"""Processes that share a training, each with a GPU of its own: over NCCL, killed and resumed.

On the CPU, test_processes.py tries the same and more over gloo; here it shows that the kit works.
"""
import copy
import os
import signal
import subprocess
import sys

import pytest
import torch
from torch import distributed as dist

from kit import GRADIENTS, golden_ast, on_a_gpu_only, one_hot, relative_error, require_gpus, weights
from ranks import (
    OPTIONS,
    finish_ranks,
    log_of,
    make_context,
    require_same,
    start_ranks,
    wait_for,
    write_data,
)
from small_model import settings
from training.processes import exit_without_waiting
from training.trainer import Trainer, average_gradients

# Processes multiply in float32, as the numbers are compared, although run.py switches TF32 on.
EXACT = {'NVIDIA_TF32_OVERRIDE': '0'}
ALONE = {'RANK': '0', **EXACT}  # one process, but as torchrun starts it
START = 120  # seconds that processes on a GPU may take to come to their first steps
# How long a process waits for one that is gone, and the seconds in which it must have ended then.
TIMEOUT_MINUTES, END = 0.5, 180


@pytest.fixture(scope='module')
def data(tmp_path_factory, device):
    """A folder with tiny recordings, and the experiment of one ordinary process: exp1."""
    folder = tmp_path_factory.mktemp('ranks')
    write_data(folder)
    ranks = start_ranks(1, [*OPTIONS, '--device', device, '--exp_dir', 'exp1'], folder, **EXACT)
    assert finish_ranks(ranks, START) == [0], log_of(folder, 'log.txt')
    return folder


def tolerances(device):
    """How the numbers of several processes may differ from those of one."""
    return {'tolerance': 1e-3, 'metrics': False} if device.type == 'cuda' else {}


@pytest.mark.parametrize('device, size', [('cpu', 2), ('cuda', 1), ('cuda', 2)],
                         indirect=['device'])  # one on the CPU is killed in test_resume.py
def test_processes_of_which_one_is_killed_go_on_to_the_same_numbers(data, device, size):
    if device.type == 'cuda':
        require_gpus(size)
    name, log, environment = f'killed{size}', f'killed{size}.txt', ALONE if size == 1 else EXACT
    place = device if size == 1 else device.type  # one process with `cuda` would take all GPUs
    options = [*OPTIONS, '--device', place, '--exp_dir', name, '--checkpoint_minutes', '0']
    ranks = start_ranks(size, [*options, '--timeout_minutes', TIMEOUT_MINUTES], data, log,
                        **environment)
    wait_for('epoch 2 of 2, step 2 of 6', ranks, data, log, START)
    os.kill(ranks[-1].pid, signal.SIGKILL)
    codes = finish_ranks(ranks, END)
    assert codes.pop() == -signal.SIGKILL
    if device.type == 'cpu':
        assert codes == [1] * (size - 1)
    else:  # NCCL may end a process by a signal, but must not let it hang until it is killed here
        assert not {0, -signal.SIGKILL} & set(codes)
    ranks = start_ranks(size, options, data, log, **environment)
    assert finish_ranks(ranks, START) == [0] * size, log_of(data, log)
    assert 'continuing in epoch 2' in log_of(data, log)
    require_same(data, name, **tolerances(device))


@on_a_gpu_only
def test_two_processes_train_to_the_numbers_of_one(two_gpus, data, device):
    options = [*OPTIONS, '--device', 'cuda', '--exp_dir', 'two', '--grad_accum', '3',
               '--num_workers', '1']
    ranks = start_ranks(2, options, data, 'two.txt', **EXACT)
    assert finish_ranks(ranks, START) == [0, 0], log_of(data, 'two.txt')
    require_same(data, 'two', **tolerances(device))


@on_a_gpu_only
@pytest.mark.parametrize('processes', [1, 2])
def test_the_launcher_starts_a_process_a_gpu(data, root, device, processes):
    require_gpus(processes)
    name, place = f'launched{processes}', str(device) if processes == 1 else device.type
    done = subprocess.run(
        [sys.executable, root / 'egs' / 'torchrun.py', '--standalone', '--local-addr', 'localhost',
         '--nproc-per-node', str(processes), root / 'src' / 'run.py', *OPTIONS,
         '--device', place, '--exp_dir', name],
        cwd=data, env={**os.environ, **EXACT}, capture_output=True, text=True, timeout=2 * START)
    assert done.returncode == 0, done.stderr
    require_same(data, name, **tolerances(device))


def train_in_a_group_of_one(device, folder):
    """Be a process that averages its gradients with nobody: by NCCL on a GPU, by gloo on the CPU.

    A run of one process forms no group. This one is formed by hand, as processes.join forms one, and
    its model is wrapped as Trainer wraps one: that NCCL works on this machine, and that buckets,
    no_sync and the fused optimizer go together on its GPU, needs no second one.
    """
    sys.stderr = open(folder / 'said', 'w', buffering=1)
    torch.set_num_threads(1)
    on_gpu = device.type == 'cuda'
    if on_gpu:
        torch.cuda.set_device(device)
    with exit_without_waiting():
        dist.init_process_group('cpu:gloo,cuda:nccl' if on_gpu else 'gloo', rank=0, world_size=1,
                                init_method=f'file://{folder}/meeting')
        torch.backends.cudnn.allow_tf32 = False
        changes, losses = [], []
        for joined in (False, True):
            model = copy.deepcopy(golden_ast()).to(device).train()
            trainer = Trainer(model, device, settings(lr=0.05, grad_accum=2), 1)
            before = weights(model)
            if joined:
                trainer.training_model = average_gradients(model)
            inputs = torch.rand(4, 64, 32, generator=torch.Generator().manual_seed(0))
            losses.append([float(trainer.step(inputs, one_hot(4))) for _ in range(2)])
            changes.append([new - old for new, old in zip(weights(model), before)])
        assert losses[1] == pytest.approx(losses[0], abs=1e-4)
        assert relative_error(changes[1], changes[0]) < GRADIENTS[None]
        for place in {torch.device('cpu'), device}:
            number = torch.ones((), device=place)
            dist.all_reduce(number)
            assert float(number) == 1


def test_gradients_averaged_with_nobody_are_ones_own(tmp_path, device):
    process = make_context().Process(target=train_in_a_group_of_one, args=(device, tmp_path))
    process.start()
    assert finish_ranks([process], START) == [0], (tmp_path / 'said').read_text()
