"""Evaluation of checkpoints, alone and together: the numbers, what is kept, what is refused."""
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score

import ensemble
import run
from audio.fbank import fbank, fit_frames, normalise
from audio.reading import load_waveform
from models import ASTModel, load_model, save_checkpoint
from utilities.parallel import one_thread

RUN = ('--n_class 3 --model_size tiny224 --imagenet_pretrain False --num_mel_bins 32 '
       '--audio_length 32 --lr 1e-4 --batch_size 4 --num_workers 0 --device cpu --dataset_mean -6 '
       '--dataset_std 3').split()


@pytest.fixture
def data(tmp_path, monkeypatch, make_tone, make_labels, make_datafile):
    """Work on one thread in a folder with twelve recordings of three classes, some with two."""
    monkeypatch.chdir(tmp_path)
    make_labels(3)
    labels = ['/m/0', '/m/1,/m/2', '/m/2', '/m/1']  # which the sounds do not tell
    tones = [make_tone(f'{i}.wav', 400 * (1 + i % 3), seconds=0.4, seed=i) for i in range(12)]
    make_datafile([(tone, labels[i * i % 7 % 4]) for i, tone in enumerate(tones)])
    with one_thread():
        yield tmp_path


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A folder for runs that several tests use. The first test trains them."""
    return tmp_path_factory.mktemp('trained')


@pytest.fixture
def checkpoints(data, trained):
    """Best models of three tiny runs of different strides."""
    for stride in (8, 12, 16):
        exp_dir = trained / f'run{stride}'
        if not (exp_dir / 'finished').exists():
            run.main([*RUN, '--data_train', 'data.json', '--data_val', 'data.json',
                      '--label_csv', 'labels.csv', '--exp_dir', str(exp_dir),
                      '--fstride', str(stride), '--tstride', str(stride)])
        os.symlink(exp_dir, exp_dir.name)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return [f'run{stride}/models/best_audio_model.pth' for stride in (8, 12, 16)]


def make_model():
    """Make a small model of three classes, with random weights."""
    return ASTModel(3, input_fdim=32, input_tdim=32, imagenet_pretrain=False, model_size='tiny224',
                    verbose=False)


@pytest.fixture
def untrained(data):
    """A checkpoint of random weights."""
    torch.manual_seed(0)
    save_checkpoint(make_model(), 'a.pth')
    return 'a.pth'


def options(*checkpoints):
    """Return a command line."""
    return ['--data_eval', 'data.json', '--label_csv', 'labels.csv', '--exp_dir', 'exp',
            '--num_workers', '0', '--device', 'cpu', '--checkpoints', *checkpoints]


def plain(predictions, targets):
    """Compute mAP, AUC and d-prime with one call per class."""
    columns = range(targets.shape[1])
    area = np.mean([roc_auc_score(targets[:, k], predictions[:, k]) for k in columns])
    precision = np.mean([average_precision_score(targets[:, k], predictions[:, k])
                         for k in columns])
    return [precision, area, np.sqrt(2) * norm.ppf(area)]


def test_single_and_ensemble_numbers_are_those_of_scikit_learn(data, checkpoints, capsys):
    ensemble.main(options(*checkpoints))
    each = outputs()
    targets = np.load('run8/predictions/target.npy')
    expected = [*(plain(p, targets) for p in each), plain(np.mean(each, axis=0), targets)]
    written = np.loadtxt('exp/ensemble_result.csv', delimiter=',')
    assert written == pytest.approx(np.array(expected), abs=1e-9)
    assert np.load('run12/predictions/predictions_1.npy') == pytest.approx(each[1], abs=1e-6)
    assert 'ensemble of 3' in capsys.readouterr().out


def test_an_ensemble_that_was_killed_goes_on(root, data, checkpoints, capsys):
    command = [sys.executable, root / 'egs' / 'audioset' / 'ensemble.py', *options(*checkpoints)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    for line in process.stdout:
        if line.startswith('run8'):
            break
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    done = len(list((data / 'exp' / 'predictions').glob('*.npy')))
    assert 1 <= done and not (data / 'exp' / 'ensemble_result.csv').exists()
    ensemble.main(options(*checkpoints))
    assert 'run8/models/best_audio_model.pth: its predictions are in' in capsys.readouterr().err
    broken_off = np.loadtxt('exp/ensemble_result.csv', delimiter=',')
    ensemble.main([*options(*checkpoints), '--exp_dir', 'afresh'])
    assert (np.loadtxt('afresh/ensemble_result.csv', delimiter=',') == broken_off).all()


def test_with_one_checkpoint_it_is_the_evaluation_of_that_one(untrained):
    ensemble.main(options(untrained))
    rows = np.loadtxt('exp/ensemble_result.csv', delimiter=',')
    assert rows.shape == (2, 3) and (rows[0] == rows[1]).all()


def test_other_weights_under_the_same_name_are_evaluated_anew(data, untrained):
    ensemble.main(options(untrained))
    before = (data / 'exp' / 'ensemble_result.csv').read_text()
    model, _ = load_model(untrained)
    torch.nn.init.normal_(model.mlp_head[1].weight)
    save_checkpoint(model, untrained)
    ensemble.main(options(untrained))
    assert (data / 'exp' / 'ensemble_result.csv').read_text() != before


def test_predictions_that_were_kept_and_are_damaged_are_named_with_what_to_do(untrained):
    ensemble.main(options(untrained))
    [kept] = Path('exp/predictions').iterdir()
    kept.write_bytes(kept.read_bytes()[:200])
    with pytest.raises(SystemExit, match=f'cannot read .*{kept.name}.*delete it'):
        ensemble.main(options(untrained))
    kept.unlink()
    ensemble.main(options(untrained))


def test_a_checkpoint_of_other_classes_is_refused(untrained, make_labels, make_datafile):
    make_labels(2)
    make_datafile([('a.wav', '/m/0')])
    with pytest.raises(SystemExit, match='a.pth has 3 classes, but --label_csv lists 2'):
        ensemble.main(options(untrained))


def test_a_checkpoint_that_is_not_there_is_refused(data):
    with pytest.raises(SystemExit, match='nowhere.pth does not exist'):
        ensemble.main(options('nowhere.pth'))


def test_classes_in_another_order_are_refused(data):
    labels = {'mids': ['/m/2', '/m/1', '/m/0'], 'names': ['c', 'b', 'a']}
    save_checkpoint(make_model(), 'a.pth', labels=labels)
    with pytest.raises(SystemExit, match='in another order'):
        ensemble.main(options('a.pth'))


def outputs():
    """Return the predictions that were kept, in the order in which they were made."""
    paths = sorted(Path('exp/predictions').glob('*.npy'),
                   key=lambda path: path.stat().st_mtime_ns)
    return [np.load(path).astype(np.float64) for path in paths]


def test_outputs_are_sigmoids_whatever_the_loss_and_softmax_if_asked_for(data, untrained):
    model, _ = load_model(untrained)
    save_checkpoint(model, 'a.pth', mean=-6.0, std=3.0, loss='CE')
    for loss in ([], ['--loss', 'BCE'], ['--loss', 'CE']):
        ensemble.main([*options('a.pth'), *loss])
    sigmoids, softmax = outputs()  # the second was the first again
    assert softmax.sum(axis=1) == pytest.approx(1, abs=1e-5)
    odds = sigmoids / (1 - sigmoids)  # of a sigmoid, the exponential of the logit
    assert odds / odds.sum(axis=1, keepdims=True) == pytest.approx(softmax, abs=1e-5)


def test_loss_and_statistics_of_a_checkpoint_without_description_are_options(data, untrained,
                                                                             capsys):
    model, _ = load_model(untrained)
    save_checkpoint(model, 'a.pth', mean=-6.0, std=3.0)
    torch.save(torch.load('a.pth', weights_only=True), 'bare.pth')
    strides = ['--fstride', '10', '--tstride', '10', '--num_mel_bins', '32', '--audio_length', '32']
    ensemble.main(options('a.pth'))
    assert 'assumed' not in capsys.readouterr().err
    ensemble.main([*options('bare.pth'), *strides])
    [line] = [line for line in capsys.readouterr().err.splitlines() if 'assumed' in line]
    assert 'bare.pth' in line and '--dataset_mean' in line and '--dataset_std' in line
    assert '--loss' not in line
    ensemble.main([*options('bare.pth'), *strides, '--dataset_mean', '-6', '--dataset_std', '3'])
    assert 'assumed: model_size' in capsys.readouterr().err
    described, assumed, given = outputs()
    assert (described == given).all() and np.abs(described - assumed).max() > 1e-4


def test_a_checkpoint_in_safetensors_is_evaluated(data, untrained):
    model, _ = load_model(untrained)
    for name in ('a.pth', 'b.safetensors'):
        save_checkpoint(model, name, mean=-6.0, std=3.0)
    ensemble.main(options('a.pth', 'b.safetensors'))
    rows = np.loadtxt('exp/ensemble_result.csv', delimiter=',')
    assert (rows[0] == rows[1]).all()


def test_a_checkpoint_is_evaluated_at_its_rate_and_without_its_padding(data):
    torch.manual_seed(0)
    save_checkpoint(make_model(), 'b.pth', sample_rate=8000, mask_padding=True)
    ensemble.main([*options('b.pth'), '--amp', 'off', '--fstride', '10', '--tstride', '10'])
    model, description = load_model('b.pth')
    paths = [entry['wav'] for entry in json.loads(Path('data.json').read_text())['data']]
    fbanks = [fbank(load_waveform(path, 8000), 32, 8000) for path in paths]
    inputs = torch.stack([fit_frames(one, 32) for one in fbanks])
    lengths = torch.tensor([min(len(one), 32) for one in fbanks])
    with torch.inference_mode():
        logits = model(normalise(inputs, description['mean'], description['std']), lengths)
    np.testing.assert_allclose(outputs()[0], logits.sigmoid(), atol=1e-5)
