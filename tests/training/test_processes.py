"""Several processes that train one model on the CPU, over gloo: they agree with one, and end and continue together."""
import atexit
import os
import re
import signal
import sys

import numpy as np
import pytest
import torch

import experiment
from dataloader import SampleKey
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
from tensorboard_reader import check_log
from training import processes
from training.launch import DistributedError, Launch, own_device, read_launch
from training.loaders import count_workers
from training.processes import LOST_SIGNS, DelayedSum, catch_lost_processes, exit_without_waiting
from training.sampler import DistributedBatchSampler, EpochSampler
from utilities.parallel import available_cores

TORCHRUN = {'RANK': '1', 'WORLD_SIZE': '4', 'LOCAL_RANK': '1', 'LOCAL_WORLD_SIZE': '2', 'MASTER_ADDR': 'here',
            'MASTER_PORT': '1234'}
SRUN = {'SLURM_JOB_ID': '7', 'SLURM_STEP_ID': '0', 'SLURM_PROCID': '1', 'SLURM_STEP_NUM_TASKS': '4',
        'SLURM_LOCALID': '1', 'MASTER_ADDR': 'here'}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """A folder with tiny recordings of three classes, datafiles, weights and labels, and a run of one process: exp1."""
    folder = tmp_path_factory.mktemp('ranks')
    write_data(folder)
    assert finish_ranks(start_ranks(1, [*OPTIONS, '--exp_dir', 'exp1', '--data_eval', 'few.json'], folder)) == [0]
    return folder


@pytest.mark.parametrize('size, more', [(2, '--grad_accum 3 --num_workers 1 --tensorboard True'), (4, '--features gpu')])
def test_several_processes_train_to_the_numbers_of_one(data, size, more):
    exp_dir, log = f'exp{size}{more[:5]}', f'{size}{more[:5]}.txt'
    options = [*OPTIONS, *more.split(), '--exp_dir', exp_dir, '--data_eval', 'few.json']
    assert finish_ranks(start_ranks(size, options, data, log)) == [0] * size, log_of(data, log)
    require_same(data, exp_dir)
    for name in ('eval_result.csv', 'models/audio_model.1.json'):
        assert (data / exp_dir / name).exists()
    np.testing.assert_allclose(np.load(data / exp_dir / 'predictions' / 'eval_predictions.npy'),
                               np.load(data / 'exp1' / 'predictions' / 'eval_predictions.npy'), atol=1e-5)
    assert log_of(data, log).count('epoch 2 of 2, step 6 of 6') == 1  # one process logs
    if 'tensorboard' in more:
        assert len(list((data / exp_dir / 'tensorboard').iterdir())) == 1
        check_log(data / exp_dir, 2, 'mAP')


FURTHER = [*OPTIONS, *('--spec_mixup 0.5 --freq_masks 2 --time_masks 2 --gain_db 6 --shift_frames 5 --crop random '
                       '--eval_windows 3 --noise_dir . --snr_db 5 20 --grad_accum 2').split()]


def test_several_processes_augment_and_evaluate_windows_as_one_does(data):
    for size, more in (1, ''), (2, '--num_workers 1'), (2, '--features gpu'):
        exp_dir = f'further{size}{more[:5]}'
        options = [*FURTHER, *more.split(), '--exp_dir', exp_dir, '--data_eval', 'few.json']
        assert finish_ranks(start_ranks(size, options, data, 'further.txt')) == [0] * size, log_of(data, 'further.txt')
    for name in ('predictions_1', 'predictions_2', 'cum_predictions', 'eval_predictions'):
        one, *others = (np.load(data / exp_dir / 'predictions' / f'{name}.npy')
                        for exp_dir in ('further1', 'further2--num', 'further2--fea'))
        for other in others:
            np.testing.assert_allclose(other, one, atol=1e-5)


def test_a_run_goes_on_with_another_number_of_processes(data):
    exp_dir, log = 'from2to1to2', 'from2to1to2.txt'
    for size, step in (2, 'epoch 1 of 2, step 2 of 6'), (1, 'epoch 2 of 2, step 2 of 6'):
        ranks = start_ranks(size, [*OPTIONS, '--exp_dir', exp_dir], data, log)
        wait_for(step, ranks, data, log)
        os.kill(ranks[-1].pid, signal.SIGTERM)  # one of them is told, all stop
        assert finish_ranks(ranks) == [75] * size, log_of(data, log)
        assert (data / exp_dir / 'interrupted').exists()
    assert finish_ranks(start_ranks(2, [*OPTIONS, '--exp_dir', exp_dir], data, log)) == [0, 0]
    said = log_of(data, log)
    for epoch in (1, 2):
        assert f'continuing in epoch {epoch}' in said and said.count(f'epoch {epoch} of 2, step 6 of 6') == 1
    require_same(data, exp_dir)


def test_a_process_that_is_gone_ends_the_others_with_a_sentence_and_a_restart_goes_on(data):
    options = [*OPTIONS, '--exp_dir', 'lost', '--checkpoint_minutes', '0']
    for step, number, victim in (2, signal.SIGKILL, 0), (4, signal.SIGSTOP, 1):
        log = f'lost{number}.txt'
        ranks = start_ranks(2, [*options, '--timeout_minutes', '0.2'], data, log)
        wait_for(f'epoch 2 of 2, step {step} of 6', ranks, data, log)
        os.kill(ranks[victim].pid, number)
        assert finish_ranks([ranks[1 - victim]], 60) == [1]
        ranks[victim].kill()
        finish_ranks(ranks)
        assert 'lost contact with another one' in log_of(data, log) and 'Traceback' not in log_of(data, log)
    assert finish_ranks(start_ranks(2, options, data, 'end.txt')) == [0, 0], log_of(data, 'end.txt')
    for log in (f'lost{signal.SIGSTOP}.txt', 'end.txt'):
        assert 'continuing in epoch 2' in log_of(data, log)
    require_same(data, 'lost')


def test_a_signal_before_training_ends_all_processes_with_75(data):
    os.mkfifo(data / 'slow.json')
    ranks = start_ranks(2, [*OPTIONS, '--bal', 'none', '--data_train', 'slow.json', '--exp_dir', 'early'], data, 'early.txt')
    with open(data / 'slow.json', 'w'):  # waits until one of them reads it; they have met before
        for process in ranks:
            os.kill(process.pid, signal.SIGTERM)
        assert finish_ranks(ranks) == [75, 75], log_of(data, 'early.txt')
    assert 'Traceback' not in log_of(data, 'early.txt') and not (data / 'early').exists()


ENDS = {'returns': (lambda: None, 0), 'wants to continue': (lambda: sys.exit(75), 75),
        'refuses': (lambda: sys.exit('why'), 1), 'fails': (lambda: 1 / 0, 1)}


def end_after_a_meeting(how, folder):
    """Be a process that has met others, all none of them, and ends in one of the ENDS."""
    sys.stderr = open(folder / 'said', 'w')
    torch.distributed.init_process_group('gloo', rank=0, world_size=1, init_method=f'file://{folder}/meeting')
    atexit.register((folder / 'cleaned up').touch)
    with exit_without_waiting():
        ENDS[how][0]()
    (folder / 'never').touch()


@pytest.mark.parametrize('how, said', [('returns', ''), ('wants to continue', ''), ('refuses', 'why'),
                                       ('fails', 'ZeroDivisionError')])
def test_a_process_that_has_met_others_ends_at_once_with_its_exit_code(tmp_path, how, said):
    process = make_context().Process(target=end_after_a_meeting, args=(how, tmp_path))
    process.start()
    assert finish_ranks([process]) == [ENDS[how][1]]
    assert said in (tmp_path / 'said').read_text() and bool(said) == bool((tmp_path / 'said').read_text())
    assert (tmp_path / 'cleaned up').exists() and not (tmp_path / 'never').exists()


def end_with_nobody_to_read(folder):
    """Be such a process whose standard error leads nowhere any more."""
    reader, writer = os.pipe()
    os.close(reader)
    sys.stderr = open(writer, 'w', buffering=1)
    torch.distributed.init_process_group('gloo', rank=0, world_size=1, init_method=f'file://{folder}/meeting')
    atexit.register((folder / 'cleaned up').touch)
    with exit_without_waiting():
        sys.exit('a mistake')


def test_a_process_whose_output_nobody_reads_any_more_ends_at_once_too(tmp_path):
    process = make_context().Process(target=end_with_nobody_to_read, args=(tmp_path,))
    process.start()
    assert finish_ranks([process]) == [1] and (tmp_path / 'cleaned up').exists()


@pytest.mark.parametrize('message, signs, lost', [
    ('Application timeout caused pair closure', LOST_SIGNS, True),
    ('[.../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1', LOST_SIGNS, True),
    ('NCCL communicator was aborted on rank 1.', LOST_SIGNS, True), ('Broken pipe', LOST_SIGNS, True),
    ("NCCL error: unhandled cuda error\nCuda failure 2 'out of memory'", LOST_SIGNS, False),
    ('mat1 and mat2 shapes cannot be multiplied', LOST_SIGNS, False), ('whatever', ('',), True), ('', ('',), True)])
def test_the_loss_of_a_process_is_told_from_other_errors(monkeypatch, message, signs, lost):
    monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: True)
    monkeypatch.setattr(torch.distributed, 'get_rank', lambda: 0)
    expected = DistributedError if lost else RuntimeError
    words = 'lost contact with another one' if lost else re.escape(message)
    with pytest.raises(expected, match=words) as raised, catch_lost_processes(signs):
        raise RuntimeError(message)
    assert type(raised.value) is expected


NCCL_SHARED = ('NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, invalid usage (run with '
               'NCCL_DEBUG=WARN for details), NCCL version 2.27.5\nncclInvalidUsage: This usually reflects invalid usage '
               'of NCCL library.\nLast error:\nDuplicate GPU detected : rank 0 and rank 1 both on CUDA device 1000\n')
NCCL_GONE = ('NCCL error in: ProcessGroupNCCL.cpp:1, remote process exited or there was a network error, NCCL version 2\n'
             'ncclRemoteError: A call failed.\nLast error:\nsocketProgress: Connection closed by remote peer\n')


@pytest.mark.parametrize('message, words', [
    (NCCL_SHARED, 'cannot exchange gradients.*Duplicate GPU detected.*a GPU of its own'),
    (NCCL_GONE, r'lost contact.*\(socketProgress: Connection closed by remote peer\)')])
def test_what_nccl_refuses_is_told_from_a_process_that_is_gone(monkeypatch, message, words):
    monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: True)
    monkeypatch.setattr(torch.distributed, 'get_rank', lambda: 0)
    with pytest.raises(DistributedError, match=words), catch_lost_processes(LOST_SIGNS):
        raise torch.distributed.DistBackendError(message)


@pytest.mark.parametrize('chosen, agreed', [
    ([torch.bfloat16, torch.bfloat16], torch.bfloat16), ([None, None], None),
    ([torch.float16, torch.bfloat16], torch.float16), ([torch.bfloat16, torch.float16], torch.float16),
    ([None, torch.bfloat16], None), ([torch.bfloat16, None], None)])
def test_processes_on_gpus_of_different_ages_train_in_one_precision(monkeypatch, chosen, agreed):
    known = [None, torch.float16, torch.bfloat16]
    numbers = torch.tensor([[float(known.index(one))] for one in chosen])
    monkeypatch.setattr(processes, 'gather_numbers', lambda *own: numbers)
    assert experiment.agree_on_precision(chosen[0]) is agreed


def test_what_the_main_process_refuses_ends_all(data):
    ranks = start_ranks(2, [*OPTIONS, '--exp_dir', 'exp1', '--lr', '1'], data, 'refused.txt')
    assert finish_ranks(ranks) == [1, 1]
    said = log_of(data, 'refused.txt')
    assert '--lr 0.0001 -> 1.0' in said and 'error: the main process stopped' in said and 'Traceback' not in said


def test_a_batch_that_does_not_divide_is_refused_with_the_nearest(data):
    ranks = start_ranks(3, [*OPTIONS, '--exp_dir', 'uneven'], data, 'uneven.txt')
    assert finish_ranks(ranks) == [2, 2, 2]
    assert '--batch_size 8 cannot be split over 3 processes; 6 or 9 can' in log_of(data, 'uneven.txt')
    assert not (data / 'uneven').exists()


@pytest.mark.parametrize('count, size, parts', [(7, 2, [4, 3]), (1, 3, [1, 0, 0]), (0, 2, [0, 0]), (6, 3, [2, 2, 2])])
def test_a_part_is_consecutive_and_even(be_process, count, size, parts):
    ranges = []
    for rank in range(size):
        be_process(rank, size)
        ranges.append(processes.own_part(count))
    assert [len(part) for part in ranges] == parts
    assert [i for part in ranges for i in part] == list(range(count))


def test_processes_share_the_batches_of_one_order(be_process):
    def batches(rank, size):
        be_process(rank, size)
        sampler = EpochSampler(9, seed=3)
        sampler.set_epoch(2)
        shared = DistributedBatchSampler(sampler, 4)
        return list(shared), list(shared.sizes())
    whole, _ = batches(0, 1)
    (first, first_sizes), (second, second_sizes) = batches(0, 2), batches(1, 2)
    assert [a + b for a, b in zip(first, second)][:2] == whole[:2] and len(first) == len(second) == 3
    assert first[2] == second[2] == whole[2]  # one sample: the second process computes with it, but it counts once
    assert first_sizes == [(2, 4), (2, 4), (1, 1)] and second_sizes == [(2, 4), (2, 4), (0, 1)]
    assert all(isinstance(key, SampleKey) for batch in second for key in batch)


def test_a_lone_process_needs_nobody():
    assert processes.on_main(lambda: 3) == 3 and processes.is_main()
    assert processes.gather_numbers(1, 2).tolist() == [[1, 2]]
    assert torch.equal(processes.gather_rows(torch.ones(2, 3)), torch.ones(2, 3))
    assert DelayedSum()(True, False) == (True, False)


@pytest.mark.parametrize('environment, expected', [
    ({}, Launch()), (TORCHRUN, Launch(1, 4, 1, 2)), (SRUN, Launch(1, 4, 1)),
    ({**SRUN, 'SLURM_STEP_NUM_TASKS': '1', 'SLURM_PROCID': '0'}, Launch(0, 1, 1)),
    ({'SLURM_JOB_ID': '7', 'SLURM_PROCID': '0', 'SLURM_NTASKS': '4', 'SLURM_LOCALID': '0'}, Launch())])
def test_torchrun_and_srun_say_who_a_process_is_and_the_script_of_a_job_is_alone(monkeypatch, environment, expected):
    for name in {*TORCHRUN, *SRUN, *(name for name in os.environ if name.startswith('SLURM'))}:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert read_launch() == expected


@pytest.mark.parametrize('change, reason', [
    ({'WORLD_SIZE': 'many'}, 'not all of RANK, WORLD_SIZE'), ({'WORLD_SIZE': None}, 'not all of RANK, WORLD_SIZE'),
    ({'RANK': '4'}, 'number 4 of 4'), ({'MASTER_PORT': None}, 'MASTER_ADDR and MASTER_PORT')])
def test_an_incomplete_environment_is_refused(monkeypatch, change, reason):
    for name, value in {**TORCHRUN, **change}.items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(DistributedError, match=reason):
        read_launch()


@pytest.mark.parametrize('place, gpus, asked, expected', [
    (Launch(), 4, 'cuda', 'cuda'), (Launch(5, 8, 1, 4), 4, 'cuda', 'cuda:1'), (Launch(5, 8, 5), 1, 'cuda', 'cuda:0'),
    (Launch(1, 2, 1, 2), 0, 'cpu', 'cpu'), (Launch(5, 8, 1, 4), 2, 'cuda', 'see 2 GPUs'),
    (Launch(1, 2, 1, 2), 1, 'cuda', 'see 1 GPUs'), (Launch(5, 8, 5), 4, 'cuda', 'see 4 GPUs'),
    (Launch(1, 2, 1, 2), 2, 'cuda:0', '--device cuda:0 is one GPU')])
def test_every_process_takes_its_own_gpu(monkeypatch, place, gpus, asked, expected):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: gpus)
    if ' ' in expected:
        with pytest.raises(ValueError, match=expected):
            own_device(place, torch.device(asked))
    else:
        assert str(own_device(place, torch.device(asked))) == expected


@pytest.mark.parametrize('device, current', [('cuda:1', ['cuda:1']), ('cuda', []), ('cpu', [])])
def test_a_gpu_with_a_number_becomes_the_current_one(monkeypatch, device, current):
    chosen = []
    monkeypatch.setattr(torch.cuda, 'set_device', lambda one: chosen.append(str(one)))
    processes.join(Launch(), torch.device(device), timeout_minutes=1)
    assert chosen == current


def test_processes_of_a_machine_share_its_cores():
    assert count_workers(-1, sharing=1) == available_cores()
    assert count_workers(-1, sharing=10 * available_cores()) == 1
    assert count_workers(3, sharing=2) == 3


def test_one_process_needs_no_torch_distributed_and_several_say_that_they_do(monkeypatch):
    for name in ('is_initialized', 'DistError', 'init_process_group'):  # which such a build lacks
        monkeypatch.delattr(torch.distributed, name)
    monkeypatch.setattr(torch.distributed, 'is_available', lambda: False)
    with pytest.raises(RuntimeError, match='connection'), exit_without_waiting(), catch_lost_processes(LOST_SIGNS):
        raise RuntimeError('connection')
    with pytest.raises(DistributedError, match='no torch.distributed: start one process'):
        processes.join(Launch(0, 2), torch.device('cpu'), 1)
