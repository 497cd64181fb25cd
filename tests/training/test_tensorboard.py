"""What TensorBoard's own reader finds in the log of a run: every epoch once, with result.csv's numbers."""
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import run
from reports.experiments import read_further_metrics
from training.evaluation import Evaluation
from training.results import Results, read_rows, result_columns
from training.tensorboard_log import TensorBoardLog

BASE = ('--data_train data.json --data_val data.json --label_csv labels.csv --n_class 2 --num_mel_bins 16 '
        '--audio_length 32 --fstride 16 --tstride 16 --model_size tiny224 --imagenet_pretrain False --batch_size 4 '
        '--lr 1e-4 --num_workers 0 --device cpu --metrics acc --loss CE --save_model True --exp_dir exp').split()
LOG = ['--tensorboard', 'True']


@pytest.fixture
def folder(tmp_path, monkeypatch, make_tone, make_labels, make_datafile):
    """Work in a folder of eight recordings of two classes."""
    monkeypatch.chdir(tmp_path)
    make_labels(2)
    make_datafile([(make_tone(f'{i}.wav', 400 * (1 + i % 2), seconds=0.4, seed=i), f'/m/{i % 2}') for i in range(8)])
    return tmp_path


def start(epochs, *options):
    """Train up to an epoch, in this process."""
    run.main([*BASE, '--n_epochs', str(epochs), *options])


def read_log(exp_dir):
    """Return {name: {step: value}} that TensorBoard reads. No step may come twice, or out of order."""
    log = EventAccumulator(str(exp_dir / 'tensorboard'), size_guidance={'scalars': 0}).Reload()
    read = {}
    for name in log.Tags()['scalars']:
        steps = [event.step for event in log.Scalars(name)]
        assert steps == sorted(set(steps)), name
        read[name] = {event.step: event.value for event in log.Scalars(name)}
    return read


def check_log(exp_dir, epochs, metric='acc'):
    """Compare the log with result.csv and metrics.csv; return {epoch: samples a second}."""
    log, rows = read_log(exp_dir), read_rows(exp_dir / 'result.csv')
    assert len(rows) == epochs
    expected = {**dict(zip(result_columns(metric), rows.T)), **read_further_metrics(exp_dir)}
    assert set(log) - {'samples per second'} == set(expected) and len(expected) > 10
    for name, values in expected.items():
        assert list(log[name]) == list(range(1, epochs + 1))
        np.testing.assert_allclose(list(log[name].values()), values, rtol=1e-6, err_msg=name)
    return log.get('samples per second', {})


def test_the_log_has_every_epoch_with_the_numbers_of_the_tables_and_the_speed(folder):
    start(2, *LOG)
    speeds = check_log(folder / 'exp', 2)
    assert list(speeds) == [1, 2] and all(speed > 0 for speed in speeds.values())


def test_a_run_that_goes_on_adds_its_epochs_and_keeps_the_speeds_of_the_earlier(folder):
    start(1, *LOG)
    [first] = check_log(folder / 'exp', 1).values()
    start(3, *LOG)
    speeds = check_log(folder / 'exp', 3)
    assert list(speeds) == [1, 2, 3] and speeds[1] == first


def test_switched_on_later_the_log_has_the_earlier_epochs_too(folder):
    start(2)
    assert not (folder / 'exp' / 'tensorboard').exists()
    start(3, *LOG)
    assert list(check_log(folder / 'exp', 3)) == [3]  # how fast the earlier ones were is not known
    start(4)
    start(5, *LOG)
    assert list(check_log(folder / 'exp', 5)) == [3, 5]


def test_resume_none_begins_a_new_log(folder):
    start(2, *LOG)
    start(1, *LOG, '--resume', 'none')
    check_log(folder / 'exp', 1)
    start(1, '--resume', 'none')
    assert not (folder / 'exp' / 'tensorboard').exists()


def test_without_the_option_there_is_no_log_and_no_need_of_the_package(folder, root):
    code = "import sys; sys.modules['tensorboard'] = None; sys.path.insert(0, sys.argv.pop(1)); import run; run.main()"
    command = [sys.executable, '-c', code, root / 'src', *BASE]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and not (folder / 'exp' / 'tensorboard').exists()
    shutil.rmtree(folder / 'exp')
    done = subprocess.run([*command, *LOG], capture_output=True, text=True)
    [sentence] = done.stderr.splitlines()
    assert done.returncode == 2 and 'python -m pip install tensorboard' in sentence
    assert not (folder / 'exp').exists()


def test_a_log_that_cannot_be_written_is_a_warning(folder, capsys):
    (folder / 'exp').mkdir()
    (folder / 'exp' / 'tensorboard').write_text('in the way')
    start(2, *LOG)
    said = capsys.readouterr().err
    assert said.count('tensorboard was not written: ') == 2 and 'Traceback' not in said
    assert (folder / 'exp' / 'finished').exists() and len(read_rows(folder / 'exp' / 'result.csv')) == 2


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
