"""What TensorBoard's own reader finds in the log of a run: every epoch once, with result.csv's numbers."""
import resource
import shutil
import sys

import numpy as np
import pytest
import torch
from tensorboard.summary.writer import event_file_writer

import run
from tensorboard_reader import check_log, read_log
from training.evaluation import Evaluation
from training.result_files import read_rows
from training.results import Results
from training.tensorboard_log import TensorBoardLog
from utilities.parallel import one_thread

BASE = ('--data_train data.json --data_val data.json --label_csv labels.csv --n_class 2 --num_mel_bins 16 '
        '--audio_length 32 --fstride 16 --tstride 16 --model_size tiny224 --imagenet_pretrain False --batch_size 4 '
        '--lr 1e-4 --num_workers 0 --device cpu --metrics acc --loss CE --save_model True --exp_dir exp').split()
LOG = ['--tensorboard', 'True']


class Killed(BaseException):
    """Ends a run where it is, as a kill does: nobody catches it."""


@pytest.fixture(autouse=True)
def few_files(monkeypatch):
    """Begin the numbers in the names of logs at 0.

    Readers sort the files of one process and one second by them, as texts: 10 would be before 9.
    """
    monkeypatch.setattr(event_file_writer, '_global_uid', event_file_writer.AtomicCounter(0))


@pytest.fixture
def folder(tmp_path, monkeypatch, make_tone, make_labels, make_datafile):
    """Work in a folder of eight recordings of two classes."""
    monkeypatch.chdir(tmp_path)
    make_labels(2)
    make_datafile([(make_tone(f'{i}.wav', 400 * (1 + i % 2), seconds=0.4, seed=i), f'/m/{i % 2}') for i in range(8)])
    return tmp_path


def start(epochs, *options):
    """Train up to an epoch, in this process."""
    with one_thread():
        run.main([*BASE, '--n_epochs', str(epochs), *options])


@pytest.fixture(scope='module')
def kept(tmp_path_factory):
    """A folder for the experiment that several tests begin with."""
    return tmp_path_factory.mktemp('kept')


@pytest.fixture
def logged(folder, kept):
    """An experiment of one epoch with a log. What a test before has trained is copied."""
    if not (kept / 'exp').exists():
        start(1, *LOG)
        shutil.copytree('exp', kept / 'exp')
    else:
        shutil.copytree(kept / 'exp', 'exp')
    return folder / 'exp'


def test_a_run_that_goes_on_adds_its_epochs_and_keeps_the_speeds_of_the_earlier(logged, capsys):
    [first] = check_log(logged, 1, 'acc').values()
    start(3, *LOG)
    assert 'tfevents' not in capsys.readouterr().err  # TensorBoard's reader names its files in the log
    speeds = check_log(logged, 3, 'acc')
    assert list(speeds) == [1, 2, 3] and speeds[1] == first and all(speed > 0 for speed in speeds.values())


def test_switched_on_later_the_log_has_the_earlier_epochs_too(logged):
    shutil.rmtree(logged / 'tensorboard')
    start(2, *LOG)
    assert list(check_log(logged, 2, 'acc')) == [2]  # how fast the earlier one was is not known


@pytest.mark.parametrize('values', [0, 7])
def test_a_run_that_is_killed_after_the_checkpoint_and_so_many_values_goes_on_without_a_gap(logged, monkeypatch, values):
    from torch.utils.tensorboard import SummaryWriter
    add_scalar, left = SummaryWriter.add_scalar, iter(range(values))

    def add_some(writer, *args):
        if next(left, None) is None:
            writer.flush()  # its thread would not outlive the process
            raise Killed
        add_scalar(writer, *args)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(SummaryWriter, 'add_scalar', add_some)
        start(2, *LOG)
    assert sum(2 in steps for steps in read_log(logged).values()) == values
    start(2, *LOG)
    assert list(check_log(logged, 2, 'acc')) == [1]


def test_resume_none_removes_the_log(logged):
    start(1, '--resume', 'none')
    assert not (logged / 'tensorboard').exists()


def test_without_the_package_a_run_with_a_log_does_not_begin(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'tensorboard', None)
    monkeypatch.delitem(sys.modules, 'torch.utils.tensorboard', raising=False)
    monkeypatch.delattr(torch.utils, 'tensorboard', raising=False)
    with pytest.raises(SystemExit) as stop:
        start(1, *LOG)
    [sentence] = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and f'{sys.executable} -m pip install tensorboard' in sentence
    assert not (folder / 'exp').exists()
    start(1, '--dry_run')


def test_a_log_that_cannot_be_written_is_a_warning(folder, capsys):
    (folder / 'exp').mkdir()
    (folder / 'exp' / 'tensorboard').write_text('in the way')
    start(1, *LOG)
    said = capsys.readouterr().err
    assert 'exp/tensorboard was not written: ' in said and 'Traceback' not in said
    assert (folder / 'exp' / 'finished').exists() and len(read_rows(folder / 'exp' / 'result.csv')) == 1


@pytest.fixture
def make_results(tmp_path):
    """Return results of so many epochs, also as tables."""
    def make(epochs, seed=0):
        rng = np.random.default_rng(seed)
        results = Results(tmp_path / 'exp', 'mAP', 'my run')
        targets = np.eye(3)[[0, 1, 2, 0]]
        for epoch in range(1, epochs + 1):
            results.add(1 / epoch, Evaluation(rng.random((4, 3)), targets, 0.5), 1e-5 * epoch)
        results.write()
        return results
    return make


@pytest.fixture
def exp_dir(tmp_path):
    return tmp_path / 'exp'


def log_file(exp_dir):
    """Return the newest file of the log."""
    return max((exp_dir / 'tensorboard').iterdir())


@pytest.mark.parametrize('share', [0, 0.3, 0.5, 0.7, 0.9, 0.99, 1])
def test_a_log_that_was_cut_off_anywhere_is_completed(make_results, exp_dir, share):
    TensorBoardLog(exp_dir).write(make_results(3))
    path = log_file(exp_dir)
    data = path.read_bytes()
    path.write_bytes(data[:int(share * len(data))])
    TensorBoardLog(exp_dir).write(make_results(4))
    check_log(exp_dir, 4, 'mAP')


def test_a_log_that_was_off_for_a_while_has_no_gap(make_results, exp_dir):
    for epochs in (2, 5):
        TensorBoardLog(exp_dir).write(make_results(epochs), speed=float(epochs))
    assert check_log(exp_dir, 5, 'mAP') == {2: 2, 5: 5}


def test_one_start_writes_one_file(make_results, exp_dir):
    log = TensorBoardLog(exp_dir)
    for epochs in (1, 2, 3):
        log.write(make_results(epochs))
    assert len(list((exp_dir / 'tensorboard').iterdir())) == 1
    check_log(exp_dir, 3, 'mAP')


def test_an_epoch_that_the_checkpoint_does_not_know_is_forgotten(make_results, exp_dir):
    TensorBoardLog(exp_dir).write(make_results(3))
    log = TensorBoardLog(exp_dir)
    log.write(make_results(2))
    check_log(exp_dir, 2, 'mAP')


def test_epochs_of_another_run_are_replaced(make_results, exp_dir):
    TensorBoardLog(exp_dir).write(make_results(3, seed=1))
    TensorBoardLog(exp_dir).write(make_results(3))
    check_log(exp_dir, 3, 'mAP')


def test_metrics_that_are_no_numbers_are_logged_once(tmp_path):
    results = Results(tmp_path, 'mAP', 'my run')
    for _ in range(2):
        results.add(0.5, Evaluation(np.ones((2, 2)), np.zeros((2, 2)), 0.5), 1e-5)
        TensorBoardLog(tmp_path).write(results)
    results.write()
    check_log(tmp_path, 2, 'mAP')
    assert len(list((tmp_path / 'tensorboard').iterdir())) == 2
    assert np.isnan(read_log(tmp_path)['mAP'][1])


def test_a_full_disk_is_a_sentence_and_the_log_is_completed_when_there_is_room(make_results, exp_dir, capfd, caplog):
    log = TensorBoardLog(exp_dir)
    log.write(make_results(1), speed=100.0)
    size = log_file(exp_dir).stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    results = make_results(3)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 300, before[1]))
    try:
        log.write(results)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    [record] = caplog.records
    assert 'tensorboard was not written' in record.getMessage() and 'File too large' in record.getMessage()
    assert 'Traceback' not in capfd.readouterr().err
    log.write(results, speed=50.0)
    assert check_log(exp_dir, 3, 'mAP') == {1: 100.0, 3: 50.0}
