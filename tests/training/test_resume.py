"""Runs that are stopped, killed or fail, and continue."""
import argparse
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import termios

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

import run
from models.locks import hold_lock
from training.errors import TrainingError, as_training_errors
from training.folder import FILES, FOLDERS, ExperimentFolder
from training.interrupt import Interrupt
from training.loaders import make_loader
from training.supervisor import Interrupted
from training.worker_signals import end_workers

BASE = ('--data_train train.json --data_val val.json --label_csv labels.csv --n_class 2 '
        '--dataset demo --num_mel_bins 16 --audio_length 32 --fstride 16 --tstride 16 '
        '--model_size test_vit --imagenet_pretrain False --batch_size 4 --lr 1e-4 --num_workers 0 '
        '--device cpu --save_model True').split()


@pytest.fixture
def folder(tmp_path, monkeypatch, make_tone, make_labels, make_datafile):
    """Work in a folder of eight recordings of two classes."""
    monkeypatch.chdir(tmp_path)
    make_labels(2)
    clips = [(make_tone(f'{i}.wav', 400 * (1 + i % 2), seconds=0.4, seed=i), f'/m/{i % 2}')
             for i in range(8)]
    make_datafile(clips, 'train.json')
    make_datafile(clips, 'val.json')
    return tmp_path


def start(*options):
    """Run an experiment in this process."""
    run.main([*BASE, *options])


@pytest.fixture(scope='module')
def kept(tmp_path_factory):
    """A folder for the experiments that several tests begin with."""
    return tmp_path_factory.mktemp('kept')


@pytest.fixture
def train(folder, kept):
    """Train an experiment of so many epochs. What a test before has trained is copied."""
    def make(exp_dir, epochs):
        if not (kept / exp_dir).exists():
            start('--exp_dir', exp_dir, '--n_epochs', str(epochs))
            shutil.copytree(exp_dir, kept / exp_dir)
        elif not (folder / exp_dir).exists():
            shutil.copytree(kept / exp_dir, exp_dir)
        return folder / exp_dir
    return make


@pytest.fixture
def straight(train):
    """The folder of an experiment of two epochs that was never stopped."""
    return train('straight', 2)


@pytest.fixture
def exp_dir(train):
    """The folder of an experiment of one epoch."""
    return train('exp', 1)


def stopped(capsys, *options):
    """Run an experiment that must stop with a mistake; return what it says."""
    with pytest.raises(SystemExit) as stop:
        start(*options)
    assert 'Traceback' not in capsys.readouterr().err
    return str(stop.value.code)


def test_a_run_that_is_stopped_at_random_moments_ends_as_if_undisturbed(root):
    script = root / 'tests' / 'kill_and_resume.py'
    done = subprocess.run([sys.executable, script, 'SIGKILL=8', 'SIGTERM=4'], capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    for hits in ('8 times SIGKILL', '4 times SIGTERM'):
        assert re.search(f'{hits} in .*: identical to the undisturbed run', done.stdout)


def test_more_epochs_extend_a_run_as_if_it_had_been_longer(straight, exp_dir):
    start('--exp_dir', 'exp', '--n_epochs', '2')
    for name in ('result.csv', 'metrics.csv', 'models/best_audio_model.pth',
                 'models/audio_model.2.pth'):
        assert (straight / name).read_bytes() == (exp_dir / name).read_bytes()


def test_further_augmentation_is_the_same_in_a_run_that_continues(folder):
    options = ['--mixup', '0.3', '--spec_mixup', '0.5', '--freqm', '4', '--freq_masks', '2',
               '--timem', '4', '--time_masks', '2', '--gain_db', '6', '--shift_frames', '5',
               '--crop', 'random', '--eval_windows', '2', '--noise_dir', '.', '--snr_db', '5', '20']
    start('--exp_dir', 'whole', '--n_epochs', '2', *options)
    for epochs in ('1', '2'):
        start('--exp_dir', 'continued', '--n_epochs', epochs, *options)
    start('--exp_dir', 'plain', '--n_epochs', '2')
    whole, continued, plain = ((folder / name / 'result.csv').read_bytes()
                               for name in ('whole', 'continued', 'plain'))
    assert whole == continued != plain


def test_a_run_that_kept_no_checkpoint_says_why_it_cannot_be_extended(folder, capsys):
    start('--exp_dir', 'exp', '--n_epochs', '1', '--save_model', 'False')
    assert not (folder / 'exp' / 'checkpoint.pth').exists()
    said = stopped(capsys, '--exp_dir', 'exp', '--n_epochs', '2', '--save_model', 'False')
    assert '--save_model True' in said


def test_a_full_disk_stops_the_run_and_the_checkpoint_before_still_resumes(straight, exp_dir, root):
    checkpoint = exp_dir / 'checkpoint.pth'
    before = checkpoint.read_bytes()
    limit = len(before) // 2
    done = subprocess.run(
        [sys.executable, root / 'src' / 'run.py', *BASE, '--exp_dir', 'exp', '--n_epochs', '2'],
        capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert 'cannot write exp/checkpoint.pth' in done.stderr and 'disk full' in done.stderr
    assert checkpoint.read_bytes() == before
    start('--exp_dir', 'exp', '--n_epochs', '2')
    assert (exp_dir / 'result.csv').read_bytes() == (straight / 'result.csv').read_bytes()


@pytest.mark.parametrize('broken', ['checkpoint.pth', 'predictions/predictions_1.npy'])
def test_a_broken_checkpoint_says_what_to_do(exp_dir, capsys, broken):
    (exp_dir / broken).write_bytes(b'half')
    said = stopped(capsys, '--exp_dir', 'exp', '--n_epochs', '2')
    assert 'cannot continue from exp/checkpoint.pth' in said and '--resume none' in said


def test_a_signal_to_the_whole_job_with_data_workers_exits_with_75(folder, root):
    process = subprocess.Popen(
        [sys.executable, root / 'src' / 'run.py', *BASE, '--exp_dir', 'exp', '--n_epochs', '500',
         '--num_workers', '2', '--n_print_steps', '1'],
        stderr=subprocess.PIPE, text=True, start_new_session=True)
    for line in process.stderr:
        if 'step 1 of' in line:
            os.killpg(process.pid, signal.SIGTERM)
            break
    said = process.stderr.read()
    assert process.wait() == 75 and 'Traceback' not in said
    assert (folder / 'exp' / 'interrupted').exists()
    assert (folder / 'exp' / 'checkpoint.pth').exists()


def test_a_signal_while_the_datafile_is_read_ends_a_dry_run_with_75(folder, root):
    os.mkfifo('slow.json')
    process = subprocess.Popen(
        [sys.executable, root / 'src' / 'run.py', *BASE, '--exp_dir', 'exp', '--dry_run',
         '--data_train', 'slow.json'], stderr=subprocess.PIPE, text=True)
    with open('slow.json', 'w'):  # waits until the process reads it
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 75
    assert 'Traceback' not in process.stderr.read() and not (folder / 'exp').exists()


def test_a_signal_while_embeddings_are_computed_ends_the_run_with_75(folder, root, make_datafile):
    make_datafile([(folder / '0.wav', '/m/0'), (folder / '1.wav', '/m/1')] * 3000, 'train.json')
    terminal, side_of_process = os.openpty()  # shows how far the embeddings are
    termios.tcsetwinsize(terminal, (24, 80))
    process = subprocess.Popen(
        [sys.executable, root / 'src' / 'run.py', *BASE, '--exp_dir', 'exp', '--freeze', 'backbone',
         '--cache_embeddings', 'True'], stderr=side_of_process)
    os.close(side_of_process)
    said = b''
    while b'embeddings of the training set' not in said:
        said += os.read(terminal, 10_000)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(30) == 75 and b'Traceback' not in said
    os.close(terminal)
    assert not (folder / 'exp').exists()


def test_a_read_only_data_directory_works(folder, root, tmp_path):
    for name in ('train.json', 'val.json', 'labels.csv'):
        (folder / name).chmod(0o444)
    (folder / 'out').mkdir()
    folder.chmod(0o555)
    # A superuser may write anywhere, unless that capability is taken away.
    plain = ['setpriv', '--bounding-set=-dac_override'] if os.geteuid() == 0 else []
    try:
        assert subprocess.run([*plain, 'touch', 'new'], capture_output=True).returncode
        done = subprocess.run(
            [*plain, sys.executable, root / 'src' / 'run.py', *BASE, '--exp_dir', 'out/exp'],
            capture_output=True, text=True)
    finally:
        folder.chmod(0o755)
    assert done.returncode == 0, done.stderr


def test_a_second_process_on_the_same_exp_dir_is_refused(folder, capsys):
    (folder / 'exp').mkdir()
    with hold_lock(folder / 'exp' / 'lock'):
        assert 'another process runs in exp' in stopped(capsys, '--exp_dir', 'exp')
    start('--exp_dir', 'exp')
    assert (folder / 'exp' / 'finished').exists()


def test_changed_settings_are_named_and_forced(exp_dir, capsys):
    said = stopped(capsys, '--exp_dir', 'exp', '--n_epochs', '2', '--lr', '2e-4')
    assert '--lr 0.0001 -> 0.0002' in said and '--force continues' in said
    start('--exp_dir', 'exp', '--n_epochs', '2', '--lr', '2e-4', '--force')
    assert np.loadtxt(exp_dir / 'result.csv', delimiter=',').shape == (2, 10)


@pytest.mark.parametrize('changes', [['--loss', 'CE'], ['--dataset_mean', '-6'],
                                     ['--mask_padding', 'True']])
def test_what_describes_the_best_model_cannot_change_even_with_force(exp_dir, capsys, changes):
    said = stopped(capsys, '--exp_dir', 'exp', '--n_epochs', '2', '--force', *changes)
    assert f'cannot change {changes[0]}, even with --force' in said


def test_a_longer_run_leaves_no_scores_or_report_of_an_earlier_end(exp_dir, monkeypatch):
    for name in ('eval_result.csv', 'wa_result.csv'):
        (exp_dir / name).write_text('0.5\n')

    def report(*_):  # as report.py does while the run is under way
        (exp_dir / 'report.html').write_text('under way')
    monkeypatch.setattr('experiment.log_best', report)
    start('--exp_dir', 'exp', '--n_epochs', '2')
    assert not (exp_dir / 'eval_result.csv').exists() and not (exp_dir / 'wa_result.csv').exists()
    assert (exp_dir / 'report.html').read_text() != 'under way'


def test_a_finished_run_stays_as_it_is_with_other_settings_and_says_so(exp_dir, capsys):
    before = {path: path.read_bytes() for path in exp_dir.rglob('*') if path.is_file()}
    changed = '--exp_dir', 'exp', '--n_epochs', '1', '--lr', '2e-4'
    assert 'it is finished: --resume none begins again there' in stopped(capsys, *changed)
    start(*changed, '--force')
    assert re.search('finished with other settings .*--lr 0.0001 -> 0.0002.* stays as it is',
                     capsys.readouterr().err)
    assert {path: path.read_bytes() for path in exp_dir.rglob('*') if path.is_file()} == before


def test_resume_none_starts_again(exp_dir):
    start('--exp_dir', 'exp', '--n_epochs', '1', '--lr', '2e-4', '--resume', 'none')
    assert np.loadtxt(exp_dir / 'result.csv', delimiter=',')[-1] == pytest.approx(2e-4)


def test_resume_none_removes_every_file_that_a_run_can_leave(folder):
    start('--exp_dir', 'exp', '--n_epochs', '1', '--loss', 'CE', '--metrics', 'acc',
          '--data_eval', 'val.json', '--wa', 'True', '--wa_end', '1', '--tensorboard', 'True')
    ExperimentFolder(argparse.Namespace(exp_dir='exp')).mark_interrupted()
    left = {path.name for path in (folder / 'exp').iterdir()}
    assert {*FILES, *FOLDERS} <= left
    ExperimentFolder(argparse.Namespace(exp_dir='exp')).clear()
    assert not list((folder / 'exp').iterdir())


def test_a_dry_run_says_whether_the_folder_would_be_refused_or_is_finished(exp_dir, capsys):
    start('--exp_dir', 'exp', '--n_epochs', '1', '--dry_run')
    said = capsys.readouterr().err
    assert 'is finished already' in said and 'samples:' not in said
    assert '--lr 0.0001 -> 0.0002' in stopped(capsys, '--exp_dir', 'exp', '--lr', '2e-4',
                                              '--n_epochs', '1', '--dry_run')
    start('--exp_dir', 'exp', '--n_epochs', '2', '--dry_run')
    assert 'samples:' in capsys.readouterr().err


def test_a_run_that_is_marked_begins_again_once(exp_dir, capsys):
    (exp_dir / 'begin_again').touch()
    words = '--exp_dir', 'exp', '--n_epochs', '1', '--lr', '2e-4'
    start(*words)
    assert np.loadtxt(exp_dir / 'result.csv', delimiter=',')[-1] == pytest.approx(2e-4)
    assert not (exp_dir / 'begin_again').exists()
    start(*words)
    assert 'is finished already' in capsys.readouterr().err


def test_activations_may_be_recomputed_without_changing_the_result(folder):
    start('--exp_dir', 'stored', '--amp', 'off')
    start('--exp_dir', 'recomputed', '--amp', 'off', '--grad_checkpointing', 'True')
    stored, recomputed = (np.loadtxt(folder / name / 'result.csv', delimiter=',')
                          for name in ('stored', 'recomputed'))
    assert recomputed == pytest.approx(stored, rel=1e-4)


class Deadly(Dataset):
    """A dataset whose reader is killed, as the system kills one that takes too much memory."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_was_killed_is_explained():
    with pytest.raises(TrainingError, match='killed.*memory.*--num_workers'), as_training_errors():
        list(make_loader(Deadly(), 2, 1, pin_memory=False))
    end_workers()


def test_a_gpu_out_of_memory_is_explained():
    advice = '--batch_size.*--grad_accum.*--grad_checkpointing'
    with pytest.raises(TrainingError, match=advice), as_training_errors():
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.')


def test_an_experiment_is_not_forgotten_for_one_that_cannot_start(exp_dir, capsys):
    stopped(capsys, '--exp_dir', 'exp', '--resume', 'none', '--data_train', 'nowhere.json')
    assert (exp_dir / 'result.csv').exists()
    assert (exp_dir / 'models' / 'best_audio_model.pth').exists()


def test_another_number_of_validation_samples_is_refused_before_training(exp_dir, capsys,
                                                                         make_datafile):
    clips = [(exp_dir.parent / f'{i}.wav', f'/m/{i % 2}') for i in range(4)]
    make_datafile(clips, 'val.json')
    said = stopped(capsys, '--exp_dir', 'exp', '--n_epochs', '2')
    assert 'evaluated on 8 samples, but the validation set has 4' in said


def test_validation_samples_with_other_labels_are_refused_and_the_run_still_continues(
        exp_dir, capsys, make_datafile):
    clips = [(exp_dir.parent / f'{i}.wav', f'/m/{i % 2}') for i in range(8)]
    make_datafile(clips[::-1], 'other.json')
    (exp_dir / 'interrupted').touch()
    other = ['--exp_dir', 'exp', '--n_epochs', '2', '--data_val', 'other.json']
    assert '--data_val val.json -> other.json' in stopped(capsys, *other)
    assert (exp_dir / 'interrupted').exists()
    assert 'their labels differ' in stopped(capsys, *other, '--force')
    start('--exp_dir', 'exp', '--n_epochs', '2')  # the settings are still those of the checkpoint
    assert np.loadtxt(exp_dir / 'result.csv', delimiter=',').shape == (2, 10)


def test_a_smaller_training_set_in_the_middle_of_an_epoch_is_refused(
        folder, capsys, make_datafile, monkeypatch):
    def stop_after_a_step(supervisor):
        supervisor._save()
        raise Interrupted
    with monkeypatch.context() as patch:
        patch.setattr('training.supervisor.Supervisor.after_step', stop_after_a_step)
        stopped(capsys, '--exp_dir', 'exp', '--n_epochs', '2')
    make_datafile([(folder / '0.wav', '/m/0'), (folder / '1.wav', '/m/1')], 'smaller.json')
    said = stopped(capsys, '--exp_dir', 'exp', '--n_epochs', '2', '--data_train', 'smaller.json',
                   '--force')
    assert 'has trained on 4 samples of epoch 1, but the training set has 2: choose' in said


def test_what_a_run_that_was_killed_at_its_end_left_is_tidied_up_by_the_next_start(
        folder, monkeypatch):
    options = ['--exp_dir', 'exp', '--n_epochs', '2', '--save_model', 'False', '--wa', 'True',
               '--wa_end', '2']

    def kill(_):
        raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr('experiment.tidy_up', kill)
        with pytest.raises(KeyboardInterrupt):
            start(*options)
    left = [folder / 'exp' / name for name in ('checkpoint.pth', 'models/audio_model.1.pth',
                                               'models/audio_model.2.json')]
    assert all(path.exists() for path in left) and (folder / 'exp' / 'finished').exists()
    start(*options)
    assert not any(path.exists() for path in left) and (folder / 'exp' / 'report.html').exists()
    assert (folder / 'exp' / 'models' / 'audio_model_wa.pth').exists()


def test_a_gpu_that_fails_is_explained_and_a_bug_is_not():
    AcceleratorError = type('AcceleratorError', (RuntimeError,), {})  # torch 2.6 has no such class
    sentence = 'the GPU failed .*ECC.*started again, training continues from its checkpoint'
    with pytest.raises(TrainingError, match=sentence), as_training_errors():
        raise AcceleratorError('CUDA error: uncorrectable ECC error encountered\n'
                               'CUDA kernel errors might be ...')
    with pytest.raises(AcceleratorError, match='device-side assert'), as_training_errors():
        raise AcceleratorError('CUDA error: device-side assert triggered')


def test_a_missing_compiler_is_explained():
    sentence = r'needs a C\+\+ compiler.*apt-get install g'
    with pytest.raises(TrainingError, match=sentence), as_training_errors():
        raise RuntimeError('InvalidCxxCompiler: No working C++ compiler found in '
                           'torch._inductor.config.cpp.cxx')


def test_a_pinning_thread_that_ended_is_explained():
    with pytest.raises(TrainingError, match='a process that loads data died'), as_training_errors():
        raise RuntimeError('Pin memory thread exited unexpectedly')


def test_a_signal_that_comes_while_a_line_is_written_counts(monkeypatch):
    def write(*_):
        raise RuntimeError('reentrant call inside <_io.BufferedWriter>')
    monkeypatch.setattr('training.interrupt.logger.info', write)
    interrupt = Interrupt()
    interrupt._note(signal.SIGTERM, None)
    assert interrupt.requested
