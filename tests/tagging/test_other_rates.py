"""Checkpoints of other sample rates than 16 kHz: tagged, drawn, exported without being told."""
import json
import shutil

import numpy as np
import pytest
import soundfile
import torch

import export
import inference
from audio.fbank import fbank, fit_frames, frame_size, normalise, window_samples
from audio.reading import load_waveform
from inference import load_tagger
from models import load_model
from models.weights import WeightsError
from small_tagger import FRAMES, MEAN, MEL_BINS, STD, make_noise, save_model, tag_here
from tagging.spectrogram import Spectrogram
from tagging.tagger import Tagger
from utilities.errors import DataError
from utilities.labels import Labels
from utilities.plots import frequency_ticks

RATE = 48000


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A checkpoint of a model that hears 48 kHz, and noise.wav of 0.8 s."""
    monkeypatch.chdir(tmp_path)
    save_model('model.pth', sample_rate=RATE)
    soundfile.write('noise.wav', make_noise(0.8, RATE), RATE, 'FLOAT')
    return tmp_path / 'model.pth'


def scores_by_hand(checkpoint, start, rate=RATE):
    """Return the scores (classes,) of the window of noise.wav that begins at `start` seconds."""
    model, _ = load_model(checkpoint)
    waveform = load_waveform('noise.wav', rate, start=start)
    features = fit_frames(fbank(waveform, MEL_BINS, rate), FRAMES)
    with torch.inference_mode():
        return model(normalise(features, MEAN, STD)[None])[0].sigmoid().numpy()


def test_files_and_arrays_are_heard_at_the_rate_of_the_checkpoint(checkpoint):
    tagger = load_tagger(checkpoint, device='cpu', amp='off')
    assert tagger.sample_rate == RATE
    [of_file] = tag_here(tagger, 'noise.wav')
    [of_array] = tag_here(tagger, soundfile.read('noise.wav')[0], rate=RATE)
    expected = [scores_by_hand(checkpoint, start) for start in of_file.starts]
    assert of_file.starts.tolist() == [0, 0.32, 0.64] and of_file.sample_rate == RATE
    np.testing.assert_allclose(of_file.scores, expected, atol=1e-4)
    np.testing.assert_allclose(of_array.scores, expected, atol=1e-4)
    assert np.abs(expected[0] - scores_by_hand(checkpoint, 0, 16000)).max() > 1e-3


@pytest.mark.parametrize('rate', [11025, 16000, 22050, 48000])
def test_windows_leave_out_nothing_if_a_frame_is_no_whole_number_of_samples(rate):
    tagger = Tagger((), Labels((), ()), 1024, 128, torch.device('cpu'), rate)
    assert tagger.seconds <= window_samples(1024, rate) / rate
    assert tagger.seconds == 10.24 or rate not in (16000, 48000)


@pytest.mark.parametrize('rate', [16000, 22050])
def test_a_frame_is_drawn_at_its_time(rate):
    picture = Spectrogram(20, MEL_BINS, rate)
    features = torch.zeros(1024, MEL_BINS)
    features[1000] = 1
    picture.add(0, features.numpy())
    columns = picture.columns(20)
    time = np.nanargmax(columns[:, 0]) * 20 / len(columns)
    assert time == pytest.approx(1000 * frame_size(rate).shift / rate, abs=0.02)


def test_checkpoints_of_different_rates_are_not_averaged(checkpoint):
    save_model('other.pth')
    with pytest.raises(DataError, match='hears 48000 Hz, but other.pth 16000: .* one sample rate'):
        load_tagger([checkpoint, 'other.pth'], device='cpu')


def test_pages_and_pictures_reach_up_to_half_the_rate(checkpoint):
    inference.main(['noise.wav', '--checkpoint', str(checkpoint), '--html', 'page.html', '--plot',
                    'picture.png', '--device', 'cpu', '--num_workers', '0'])
    page = open('page.html').read()
    assert 'frequencies up to 24 kHz' in page and '16 kHz</span>' in page


def test_a_sound_is_played_as_the_model_hears_it(checkpoint):
    soundfile.write('noise.aiff', make_noise(0.8, RATE), RATE)
    inference.main(['noise.aiff', '--checkpoint', str(checkpoint), '--html', 'page.html',
                    '--device', 'cpu', '--num_workers', '0'])
    assert 'You hear what the model hears: mono, at 48 kHz.' in open('page.html').read()


@pytest.mark.parametrize('rate, ticks', [(8000, [0.25, 0.5, 1, 2, 4]),
                                         (16000, [0.25, 0.5, 1, 2, 4, 8]),
                                         (250_000, [0.25, 0.5, 1, 2, 4, 8, 16, 32, 64])])
def test_the_ticks_of_a_frequency_axis_are_below_half_the_rate(rate, ticks):
    assert [khz for khz, _ in frequency_ticks(rate)] == ticks
    heights = [height for _, height in frequency_ticks(rate)]
    assert 0 < heights[0] and heights == sorted(heights) and heights[-1] <= 1


def test_a_file_of_waveforms_takes_them_at_the_rate_of_the_model(checkpoint):
    try:
        export.main(['--checkpoint', str(checkpoint), '--format', 'torch_export', '--waveform',
                     '--out', 'model.pt2'])
    except SystemExit as error:
        if 'cannot export the FFT' in str(error):  # torch 2.6
            pytest.skip(str(error))
        raise
    content = {'metadata.json': ''}
    program = torch.export.load('model.pt2', extra_files=content).module()
    assert json.loads(content['metadata.json'])['sample_rate'] == RATE
    waveform = load_waveform('noise.wav', RATE)
    assert len(waveform) > window_samples(FRAMES, RATE)
    with torch.inference_mode():
        _, scores = program(torch.stack([waveform, waveform]))
    np.testing.assert_allclose(scores[0].numpy(), scores_by_hand(checkpoint, 0), atol=1e-4)


def test_a_folder_of_transformers_is_refused(checkpoint):
    with pytest.raises(SystemExit, match='takes 16000 Hz, and this model hears 48000.*onnx and '
                                         'torch_export take every rate'):
        export.main(['--checkpoint', str(checkpoint), '--format', 'transformers', '--out', 'out'])


@pytest.mark.parametrize('wrong', ['48000', 48000.0, 0, -1, True])
def test_an_impossible_rate_in_a_description_is_refused(checkpoint, wrong):
    description = json.loads(checkpoint.with_suffix('.json').read_text())
    checkpoint.with_suffix('.json').write_text(json.dumps({**description, 'sample_rate': wrong}))
    with pytest.raises(WeightsError, match='sample_rate .*expected a whole number of Hz'):
        load_model(checkpoint)


def test_an_average_keeps_the_rate(checkpoint):
    import average_checkpoints
    shutil.copy('model.pth', 'copy.pth')
    shutil.copy('model.json', 'copy.json')
    average_checkpoints.main(['--checkpoints', 'model.pth', 'copy.pth', '--out', 'mean.pth'])
    assert load_tagger('mean.pth', device='cpu').sample_rate == RATE
