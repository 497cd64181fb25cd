"""--sample_rate of run.py: what is trained, described, warned of and refused."""
import json
import signal

import numpy as np
import pytest
import soundfile
import torch

import run
from audio.fbank import fbank, fit_frames, normalise
from audio.reading import load_waveform
from models import load_model, save_checkpoint
from models.ast_models import ASTModel
from utilities.parallel import one_thread

BASE = ('--data_train data.json --data_val data.json --label_csv labels.csv --n_class 2 '
        '--num_mel_bins 32 --audio_length 32 --fstride 16 --tstride 16 --model_size tiny224 '
        '--imagenet_pretrain False --batch_size 4 --lr 1e-3 --num_workers 0 --device cpu '
        '--amp off --n_epochs 1 --exp_dir exp').split()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, make_labels, make_datafile, make_tone):
    """Work on one thread in a folder of four recordings of 32 kHz."""
    monkeypatch.chdir(tmp_path)
    make_labels(2)
    make_datafile([(make_tone(f'{i}.wav', 1000 + 9000 * (i % 2), 0.4, rate=32000, seed=i),
                    f'/m/{i % 2}') for i in range(4)])
    with one_thread():
        yield tmp_path
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize('features', ['cpu', 'gpu'])
def test_the_model_hears_that_rate_and_its_description_says_so(folder, features):
    run.main([*BASE, '--sample_rate', '32000', '--features', features])
    path = folder / 'exp' / 'models' / 'best_audio_model.pth'
    model, description = load_model(path)
    assert description['sample_rate'] == 32000
    inputs = torch.stack([fit_frames(fbank(load_waveform(f'{i}.wav', 32000), 32, 32000), 32)
                          for i in range(4)])
    with torch.inference_mode():
        expected = model(normalise(inputs, description['mean'], description['std'])).sigmoid()
    predictions = np.load(folder / 'exp' / 'predictions' / 'predictions_1.npy')
    np.testing.assert_allclose(predictions, expected.numpy(), atol=1e-4)


def test_a_run_does_not_go_on_at_another_rate(folder):
    run.main([*BASE, '--save_model', 'True'])
    with pytest.raises(SystemExit, match='--sample_rate 16000 -> 32000'):
        run.main([*BASE, '--sample_rate', '32000', '--n_epochs', '2', '--save_model', 'True'])


@pytest.mark.parametrize('trained_at, wanted, warns', [
    (None, 16000, False), (None, 32000, True), (32000, 32000, False), (32000, 16000, True)])
def test_weights_of_another_rate_are_warned_of(folder, capsys, trained_at, wanted, warns):
    torch.manual_seed(0)
    described = {} if trained_at is None else {'sample_rate': trained_at}
    model = ASTModel(2, 16, 16, 32, 32, imagenet_pretrain=False, model_size='tiny224', verbose=False)
    save_checkpoint(model, 'start.pth', mean=-4.0, std=4.0, loss='BCE', **described)
    run.main([*BASE, '--start', 'start.pth', '--sample_rate', str(wanted)])
    said = capsys.readouterr().err
    assert ('the weights may help less' in said) == warns
    if warns:
        assert f'trained at {trained_at or 16000} Hz, but --sample_rate is {wanted}' in said


def test_weights_that_heard_nothing_are_not_warned_of(capsys):
    run.main([*BASE, '--sample_rate', '32000'])
    said = capsys.readouterr().err
    assert 'help less' not in said


@pytest.mark.parametrize('wanted, warns', [(8000, False), (16000, False), (32000, False),
                                           (48000, True)])
def test_recordings_of_a_lower_rate_are_warned_of(capsys, wanted, warns):
    run.main([*BASE, '--sample_rate', str(wanted)])
    said = capsys.readouterr().err
    assert ('at 32000 Hz: it holds no sound above 16000 Hz' in said) == warns


@pytest.mark.parametrize('options, message', [
    ('--sample_rate 999', 'expected a whole number of at least 1000'),
    ('--sample_rate 16000.5', 'expected a whole number'),
    ('--sample_rate 4000 --num_mel_bins 128',
     '--sample_rate 4000 has room for 64 mel bins at most, got --num_mel_bins 128')])
def test_what_is_no_rate_is_refused(folder, capsys, options, message):
    with pytest.raises(SystemExit) as stop:
        run.main([*BASE, *options.split()])
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not (folder / 'exp').exists()


def test_background_noise_is_heard_at_that_rate(folder):
    (folder / 'noise').mkdir()
    soundfile.write(folder / 'noise' / 'n.wav', np.random.default_rng(0).standard_normal(48000) / 9,
                    48000)
    run.main([*BASE, '--sample_rate', '32000', '--noise_dir', 'noise', '--crop', 'random',
              '--eval_windows', '2'])
    assert json.loads((folder / 'exp' / 'args.json').read_text())['sample_rate'] == 32000
