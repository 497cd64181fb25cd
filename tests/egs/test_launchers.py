"""The recipe in several processes on one machine (--launcher torchrun), and what it refuses."""
import os
import re
import signal
import subprocess

import numpy as np
import pytest

OPTIONS = ('--model_size tiny224 --imagenet_pretrain False --audioset_pretrain False --fstride 16 '
           '--tstride 16 --num_mel_bins 32 --freqm 8 --audio_length 32 --timem 8 --mixup 0.5 '
           '--n_epochs 3 --batch_size 4 --lr 1e-4 --num_workers 0 --amp off --device cpu '
           '--folds 1 --n_print_steps 1 --prep_dir prep --stage 2').split()


@pytest.fixture
def recipe(root):
    return root / 'egs' / 'esc50' / 'run_esc50.sh'


@pytest.fixture
def prepared(make_tone, make_datafile, tmp_path):
    """Make what the recipe's first stage leaves for fold 1, of ten recordings of two classes."""
    (tmp_path / 'prep' / 'datafiles').mkdir(parents=True)
    clips = [(make_tone(f'{i}.wav', 400 * (1 + i % 2), seconds=0.4, seed=i), f'/m/07rwj{i % 2}0')
             for i in range(10)]
    make_datafile(clips[:8], 'prep/datafiles/esc_train_data_1.json')
    make_datafile(clips[5:], 'prep/datafiles/esc_eval_data_1.json')


@pytest.fixture
def start(recipe, terminal, tmp_path):
    """Start the recipe in two processes; return the process of the recipe itself.

    Nobody says how many threads they have: they share the cores.
    """
    words = [str(recipe), '--exp_dir', 'two', *OPTIONS, '--launcher', 'torchrun',
             '--processes', '2']
    return lambda: subprocess.Popen(words, cwd=tmp_path, env=terminal(OMP_NUM_THREADS=None),
                                    stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
                                    start_new_session=True)


def read_until(process, words):
    """Read what a process prints until a line contains these words."""
    for line in process.stderr:
        if words in line:
            return
    pytest.fail(f'it ended and has not said {words!r}')


def workers(process):
    """Return the processes that train for a recipe: the children of its only child."""
    parents = {}
    for name in filter(str.isdigit, os.listdir('/proc')):
        try:
            with open(f'/proc/{name}/stat') as file:
                parents[int(name)] = int(file.read().rpartition(')')[2].split()[1])
        except OSError:
            continue  # it has ended meanwhile
    return [child for child, parent in parents.items() if parents.get(parent) == process.pid]


def wait_for_the_end(process):
    """Return the exit code of a recipe, and what it printed since the last look at it."""
    said = process.stderr.read()
    return process.wait(), said


def test_two_processes_stop_at_a_signal_go_on_and_end_as_one_process_does(
        prepared, recipe, run_shell, start, tmp_path):
    single = run_shell([recipe, '--exp_dir', 'one', *OPTIONS, '--stop_stage', '2'])
    assert single.returncode == 0, single.stderr
    process = start()
    read_until(process, 'epoch 2 of 3, step 1 of 2')
    os.kill(process.pid, signal.SIGUSR1)
    code, said = wait_for_the_end(process)
    assert code == 75 and 'the same command continues' in said and 'Traceback' not in said
    assert (tmp_path / 'two' / 'fold1' / 'interrupted').exists()
    code, said = wait_for_the_end(start())
    assert code == 0 and re.search('continuing in epoch [23]', said), said
    assert 'in each of 2 processes' in said
    expected = np.loadtxt(tmp_path / 'one' / 'fold1' / 'result.csv', delimiter=',')
    for name in ('result.csv', 'fold1/result.csv'):  # the mean of one fold is that fold
        results = np.loadtxt(tmp_path / 'two' / name, delimiter=',')
        np.testing.assert_allclose(results, expected, atol=1e-5)


@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='the test finds processes in /proc')
def test_a_process_that_is_killed_ends_the_recipe_with_a_sentence(prepared, start):
    process = start()
    read_until(process, 'epoch 1 of 3, step 1 of 2')
    os.kill(max(workers(process)), signal.SIGKILL)
    code, said = wait_for_the_end(process)
    assert code not in (0, 75) and 'ended by SIGKILL' in said and 'Traceback' not in said


def test_a_mistake_has_the_exit_code_and_the_words_of_run_py(prepared, recipe, run_shell):
    done = run_shell([recipe, '--exp_dir', 'exp', *OPTIONS, '--processes', '2',
                      '--batch_size', '5'])
    assert done.returncode == 2 and 'cannot be split over 2 processes' in done.stderr
    assert 'Traceback' not in done.stderr and 'ChildFailedError' not in done.stderr


JOB = {'SLURM_JOB_ID': '1', 'SLURM_NNODES': '2', 'SLURM_NTASKS': '2'}


@pytest.mark.parametrize('words, environment, code, reason', [
    (['--launcher', 'mpi'], {}, 2, "--launcher: invalid choice: 'mpi'"),
    (['--nodes', 'two'], {}, 2, '--nodes: expected a whole number'),
    (['--processes', '0'], {}, 2, '--processes: expected a whole number'),
    (['--launcher', 'single', '--processes', '2'], {}, 2, 'single is one process'),
    (['--nodes', '2'], {}, 1, 'MASTER_ADDR='),
    (['--nodes', '2'], {'MASTER_ADDR': 'here', 'NODE_RANK': '2'}, 1, '1 to 1 on the others'),
    (['--launcher', 'slurm'], {}, 1, 'inside of a Slurm job'),
    (['--nodes', '3'], JOB, 1, 'sbatch --nodes=3'),
    ([], {**JOB, 'SLURM_STEP_ID': '0', 'SLURM_STEP_NUM_TASKS': '2'}, 1,
     'srun starts this recipe 2 times'),
])
def test_what_a_launcher_lacks_is_one_sentence_before_anything_runs(
        recipe, run_shell, words, environment, code, reason):
    done = run_shell([recipe, *words], **environment)
    assert done.returncode == code and reason in done.stderr and not done.stdout
    assert len(done.stderr.splitlines()) == 1


def test_the_other_machines_only_train(recipe, run_shell, tmp_path):
    done = run_shell([recipe, '--nodes', '2', '--data_dir', tmp_path / 'nowhere', '--prep_dir',
                      tmp_path / 'prep', '--stop_stage', '1'],
                     MASTER_ADDR='localhost', NODE_RANK='1')
    assert done.returncode == 0 and not (tmp_path / 'prep').exists()


def test_machines_that_do_not_meet_are_one_sentence_at_the_end(prepared, recipe, run_shell):
    done = run_shell([recipe, '--exp_dir', 'exp', *OPTIONS, '--nodes', '2', '--processes', '1',
                      '--timeout_minutes', '0.01'],
                     MASTER_ADDR='localhost', MASTER_PORT='1', NODE_RANK='1')  # nobody is there
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert done.stderr.splitlines()[-1].startswith('error: the machines did not meet')
