"""Evaluation by several windows of each clip."""
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from audio.fbank import fbank, fit_frames, normalise, window_samples
from audio.reading import load_waveform
from dataloader import AudiosetDataset
from small_dataset import CONF
from small_model import CPU
from training.eval_windows import SpreadWindows
from training.gpu_fbanks import WaveformDataset
from training.loaders import make_loader
from traintest import validate

BOTH_KINDS = pytest.mark.parametrize('kind', [AudiosetDataset, WaveformDataset])
FRAMES, BINS = CONF['target_length'], CONF['num_mel_bins']
WINDOW = window_samples(FRAMES)
CONF_MEAN, CONF_STD = -5.0, 3.0


@pytest.fixture
def model():
    """A linear model with random weights."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(FRAMES * BINS, 4))


@pytest.fixture
def clips(make_tone):
    """Clips that are longer than the input, and two that are not."""
    lengths = (2.0, 0.3, 1.2, WINDOW / 16000, 3.0)
    return [(make_tone(f'{i}.wav', 300 * (i + 1), seconds=seconds, seed=i), f'/m/{i % 4}')
            for i, seconds in enumerate(lengths)]


def logits_by_hand(model, path, count):
    """Return the logits (windows, 4) of a clip."""
    waveform = load_waveform(path)
    room = len(waveform) - WINDOW
    starts = np.linspace(0, room, count).round().astype(int) if room > 0 else [0]
    inputs = [normalise(fit_frames(fbank(waveform[start:start + WINDOW], BINS), FRAMES),
                        CONF_MEAN, CONF_STD) for start in starts]
    return model(torch.stack(inputs))


def evaluate(dataset, model, count, loss='BCE', workers=0, batch=3):
    """Evaluate a model on a dataset."""
    if count > 1:
        dataset = SpreadWindows(dataset, count)
    loader = make_loader(dataset, batch, workers, pin_memory=False)
    return validate(model, loader, CPU, loss)


@BOTH_KINDS
@pytest.mark.parametrize('count, workers', [(2, 0), (3, 1)])
def test_a_prediction_is_the_mean_of_the_sigmoids_over_windows_spread_over_the_clip(
        make_dataset, clips, model, kind, count, workers):
    dataset = make_dataset(clips, kind, mean=CONF_MEAN, std=CONF_STD)
    evaluation = evaluate(dataset, model, count, workers=workers)
    expected = [logits_by_hand(model, path, count).sigmoid().mean(dim=0) for path, _ in clips]
    np.testing.assert_allclose(evaluation.predictions, torch.stack(expected).detach(), atol=1e-4)
    assert np.array_equal(evaluation.targets, dataset.all_targets())


@BOTH_KINDS
@pytest.mark.parametrize('loss, plain', [('BCE', F.binary_cross_entropy_with_logits),
                                         ('CE', F.cross_entropy)])
def test_the_loss_is_that_of_the_first_windows(make_dataset, clips, model, kind, loss, plain):
    dataset = make_dataset(clips, kind, mean=CONF_MEAN, std=CONF_STD)
    several, one = (evaluate(dataset, model, count, loss) for count in (3, 1))
    assert several.loss == one.loss
    firsts = torch.stack([logits_by_hand(model, path, 1)[0] for path, _ in clips])
    targets = torch.from_numpy(dataset.all_targets())
    assert several.loss == pytest.approx(float(plain(firsts.detach(), targets)), rel=1e-4)


def test_clips_that_are_not_longer_than_the_input_are_evaluated_as_before(make_dataset, clips,
                                                                         model):
    dataset = make_dataset([clips[1], clips[3]])
    several, one = (evaluate(dataset, model, count) for count in (5, 1))
    assert np.array_equal(several.predictions, one.predictions)


def test_windows_stay_within_the_part_of_a_recording(make_labels, make_tone, model, tmp_path):
    long, cut = make_tone('long.wav', seconds=4), tmp_path / 'data.json'
    entry = {'wav': str(long), 'labels': '/m/1', 'start': 1, 'seconds': 2}
    cut.write_text(json.dumps({'data': [entry]}))
    dataset = AudiosetDataset(cut, {**CONF, 'skip_norm': True}, make_labels(4))
    samples = dataset.make_windows(0, 3)
    waveform = load_waveform(long)
    for (features, _), start in zip(samples, (16000, 16000 + (32000 - WINDOW) // 2,
                                              48000 - WINDOW), strict=True):
        expected = fbank(waveform[start:start + WINDOW], BINS)
        torch.testing.assert_close(features, expected, atol=2e-3, rtol=0)


def test_several_processes_evaluate_their_parts(make_dataset, clips, model, be_process):
    dataset = make_dataset(clips)
    whole = evaluate(dataset, model, 3)
    parts = []
    for rank in range(2):
        be_process(rank, 2)
        parts.append(evaluate(dataset, model, 3))
    predictions = np.concatenate([part.predictions for part in parts])
    np.testing.assert_allclose(predictions, whole.predictions, atol=1e-6)
