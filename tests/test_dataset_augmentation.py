"""What an AudiosetDataset makes of its samples with the augmentation that is not the published one."""
import json

import numpy as np
import pytest
import soundfile
import torch

from audio.augmentation import add_background
from audio.fbank import fbank, fit_frames, window_samples
from audio.reading import load_waveform
from dataloader import AudiosetDataset, SampleKey
from small_dataset import CONF, FURTHER_AUGMENTATION, equal
from training.gpu_fbanks import WaveformDataset, inputs_on
from utilities.errors import DataError

FRAMES, BINS = CONF['target_length'], CONF['num_mel_bins']
WINDOW = window_samples(FRAMES)
KEYS = [SampleKey(0, 3, 1, position) for position in range(12)]
PLAIN = {'mode': 'train', 'skip_norm': True}
BOTH_KINDS = pytest.mark.parametrize('kind', [AudiosetDataset, WaveformDataset])


def input_of(dataset, key):
    """Return the input and the labels of a sample of either kind of dataset."""
    inputs, labels = dataset.collate([dataset[key]])
    return inputs_on(inputs, torch.device('cpu'))[0], labels[0]


@pytest.fixture
def rising(tmp_path):
    """A recording of 3 s in which every window differs: a tone that rises."""
    t = np.arange(48000) / 16000
    soundfile.write(tmp_path / 'rising.wav', 0.4 * np.sin(2 * np.pi * (300 + 500 * t) * t), 16000)
    return tmp_path / 'rising.wav'


@pytest.fixture
def noise_dir(tmp_path, make_tone):
    """A folder of two recordings of noise, a short and a long one."""
    (tmp_path / 'noise').mkdir()
    make_tone('noise/a.wav', 3000, seconds=0.1)
    make_tone('noise/b.flac', 5000, seconds=2)
    return tmp_path / 'noise'


@BOTH_KINDS
def test_a_random_crop_is_a_window_of_the_recording(make_dataset, rising, kind):
    dataset = make_dataset([(rising, '/m/0')], kind, crop='random', **PLAIN)
    waveform, starts = load_waveform(rising), []
    for key in KEYS:
        start = round(dataset.draw_augmentation(key).crop * (len(waveform) - WINDOW))
        expected = fbank(waveform[start:start + WINDOW], BINS)
        torch.testing.assert_close(input_of(dataset, key)[0], expected, atol=2e-2, rtol=0)
        starts.append(start)
    assert min(starts) < 16000 and max(starts) > 24000 and len(set(starts)) == len(KEYS)


def test_a_random_crop_is_cut_before_its_mean_is_removed(make_dataset, tmp_path):
    steps = np.repeat([0.1, 0.5], 24000) + 0.01 * np.random.default_rng(0).standard_normal(48000)
    soundfile.write(tmp_path / 'steps.wav', steps, 16000)
    dataset = make_dataset([(tmp_path / 'steps.wav', '/m/0')], crop='random', **PLAIN)
    for key in KEYS:
        augmentation = dataset.draw_augmentation(key)
        waveform = dataset.make_waveform(0, augmentation)
        start = round(augmentation.crop * (48000 - WINDOW))
        assert len(waveform) == WINDOW
        np.testing.assert_allclose(waveform, steps[start:start + WINDOW], atol=1e-4)


def test_a_random_crop_stays_within_the_part_of_its_recording(make_labels, rising, tmp_path):
    entry = {'wav': str(rising), 'labels': '/m/0', 'start': 1.0, 'seconds': 0.6}
    (tmp_path / 'parts.json').write_text(json.dumps({'data': [entry]}))
    conf = {**CONF, **PLAIN, 'crop': 'random'}
    dataset = AudiosetDataset(tmp_path / 'parts.json', conf, make_labels(4))
    waveform = load_waveform(rising)
    for key in KEYS:
        augmentation = dataset.draw_augmentation(key)
        start = 16000 + round(augmentation.crop * (9600 - WINDOW))
        found = dataset.make_waveform(0, augmentation)
        torch.testing.assert_close(found, waveform[start:start + WINDOW])


def test_both_partners_of_a_mix_are_cropped(make_dataset, rising):
    for setting in ('mixup', 'spec_mixup'):
        dataset = make_dataset([(rising, '/m/0')], crop='random', **{setting: 1.0}, **PLAIN)
        waveform = load_waveform(rising)
        for key in KEYS:
            one = dataset.draw_augmentation(key)
            own, other = (waveform[start:start + WINDOW] for start in (
                round(crop * (48000 - WINDOW)) for crop in (one.crop, one.partner_crop)))
            if setting == 'mixup':
                expected = fbank(one.lam * (own - own.mean())
                                 + (1 - one.lam) * (other - other.mean()), BINS)
            else:
                expected = one.lam * fbank(own, BINS) + (1 - one.lam) * fbank(other, BINS)
            torch.testing.assert_close(dataset[key][0], expected, atol=2e-2, rtol=0)


@BOTH_KINDS
def test_a_recording_that_is_not_longer_than_the_input_stays_as_it_is(make_dataset, tones, kind):
    cropped, plain = (make_dataset(tones, kind, crop=crop, **PLAIN) for crop in ('random', 'first'))
    for index in range(len(tones)):
        key = SampleKey(index, 0, 1, 0)
        assert equal(input_of(cropped, key), input_of(plain, key))


@BOTH_KINDS
def test_a_mix_of_fbanks_shares_labels_as_a_mix_of_waveforms(make_dataset, make_tone, kind):
    clips = [(make_tone('a.wav', 400, seconds=0.45), '/m/0'),
             (make_tone('b.wav', 2000, seconds=0.2, seed=1), '/m/1')]
    dataset = make_dataset(clips, kind, spec_mixup=1.0, **PLAIN)
    fbanks = [fit_frames(fbank(load_waveform(path), BINS), FRAMES) for path, _ in clips]
    for key in KEYS:
        one = dataset.draw_augmentation(key)
        mixed, labels = input_of(dataset, key)
        expected = one.lam * fbanks[0] + (1 - one.lam) * fbanks[one.partner]
        torch.testing.assert_close(mixed, expected, atol=5e-3, rtol=0)
        shares = np.zeros(4)
        shares[0] += one.lam
        shares[one.partner] += 1 - one.lam
        assert labels.tolist() == pytest.approx(shares)


@BOTH_KINDS
def test_a_shift_rolls_the_normalised_spectrogram_without_noise(make_dataset, rising, kind):
    shifted = make_dataset([(rising, '/m/0')], kind, mode='train', shift_frames=15)
    plain, _ = input_of(make_dataset([(rising, '/m/0')], kind, mode='train'), KEYS[0])
    shifts = [shifted.draw_augmentation(key).shift for key in KEYS]
    assert len(set(shifts)) > 5
    for key, shift in zip(KEYS, shifts):
        assert torch.equal(input_of(shifted, key)[0], plain.roll(shift, dims=0))


def test_a_shift_comes_on_top_of_the_roll_of_the_published_noise(make_dataset, rising):
    noisy, both = (make_dataset([(rising, '/m/0')], mode='train', noise=True, shift_frames=frames)
                   for frames in (0, 15))
    for key in KEYS:
        shift = both.draw_augmentation(key).shift
        assert torch.equal(both[key][0], noisy[key][0].roll(shift, dims=0))


@BOTH_KINDS
def test_every_training_sample_gets_noise_at_its_ratio(make_dataset, rising, noise_dir, kind):
    dataset = make_dataset([(rising, '/m/0')], kind, noise_dir=str(noise_dir), snr_db=(0.0, 20.0),
                           **PLAIN)
    window, chosen = load_waveform(rising)[:WINDOW], set()
    for key in KEYS:
        one = dataset.draw_augmentation(key)
        name = ('a.wav', 'b.flac')[int(2 * one.background)]
        noise = load_waveform(noise_dir / name)
        start = round(one.background_crop * max(0, len(noise) - WINDOW))
        expected = add_background(window, noise[start:start + WINDOW], one.snr_db)
        found = dataset.make_waveform(0, one)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        added = found - (window - window.mean())
        assert float(10 * (window.var() / added.var()).log10()) == pytest.approx(one.snr_db, abs=0.1)
        chosen.add(name)
    assert len(chosen) == 2
    assert input_of(dataset, KEYS[0])[0].shape == (FRAMES, BINS)


def test_evaluation_needs_no_noise(make_dataset, rising, tmp_path):
    plain = make_dataset([(rising, '/m/0')])
    dataset = make_dataset([(rising, '/m/0')], noise_dir=str(tmp_path / 'gone'), **FURTHER_AUGMENTATION)
    assert equal(dataset[0], plain[0])
    with pytest.raises(DataError, match='--noise_dir.*gone'):
        make_dataset([(rising, '/m/0')], mode='train', noise_dir=str(tmp_path / 'gone'))
