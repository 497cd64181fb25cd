"""Other sample rates than 16 kHz: the fbank, recordings, statistics and samples."""
import numpy as np
import pytest
import soundfile
import torch
import torchaudio

import get_norm_stats
from audio.fbank import count_frames, fbank, frame_size, window_samples
from audio.reading import load_waveform
from dataloader import AudiosetDataset
from training.gpu_fbanks import WaveformDataset, inputs_on
from training.loaders import make_loader


def make_sound(rate, seconds=0.5):
    """Return harmonics over noise (samples,) that reach up to half the rate."""
    generator = torch.Generator().manual_seed(rate)
    time = torch.arange(int(rate * seconds)) / rate
    tones = sum(torch.sin(2 * torch.pi * share * rate * time) for share in (0.01, 0.1, 0.3, 0.45))
    return 0.1 * tones + 0.01 * torch.randn(len(time), generator=generator)


@pytest.mark.parametrize('rate', [1000, 8000, 11025, 16000, 22050, 32000, 44100, 48000, 250_000])
def test_the_fbank_at_every_rate_is_that_of_torchaudio(rate):
    bins = min(128, frame_size(rate).fft // 2)
    sound = make_sound(rate)
    theirs = torchaudio.compliance.kaldi.fbank(
        (sound - sound.mean()).unsqueeze(0), htk_compat=True, sample_frequency=rate,
        use_energy=False, window_type='hanning', num_mel_bins=bins, dither=0.0, frame_shift=10)
    ours = fbank(sound, bins, rate)
    assert len(ours) == count_frames(len(sound), rate)
    assert float((ours - theirs).abs().max()) < 1e-4


@pytest.mark.parametrize('rate, size', [
    (8000, (200, 80, 256)), (16000, (400, 160, 512)), (22050, (551, 220, 1024)),
    (32000, (800, 320, 1024)), (250_000, (6250, 2500, 8192))])
def test_a_frame_is_25_ms_long_and_begins_every_10_ms(rate, size):
    assert frame_size(rate) == size
    assert count_frames(window_samples(7, rate), rate) == 7
    assert count_frames(window_samples(7, rate) - 1, rate) == 6


def write_two_tones(path, rate):
    """Write a tone of 1 kHz, with one of 12 kHz if the rate has room for it."""
    time = np.arange(rate // 2) / rate
    tones = [np.sin(2 * np.pi * hertz * time) for hertz in (1000, 12000) if hertz < rate / 2]
    soundfile.write(path, 0.3 * sum(tones), rate, 'FLOAT')
    return path


def highest_hertz(features, rate):
    """Return the frequency of the highest mel bin that is within 30 dB of the loudest."""
    mean = features.mean(dim=0)
    loud = int((mean > mean.max() - 3 * np.log(10)).nonzero().max())
    low, high = (1127 * np.log(1 + hertz / 700) for hertz in (20, rate / 2))
    centre = low + (high - low) * (loud + 1) / (len(mean) + 1)
    return 700 * (np.exp(centre / 1127) - 1)


@pytest.mark.parametrize('kind', [AudiosetDataset, WaveformDataset])
@pytest.mark.parametrize('rate, hertz', [(8000, 1000), (32000, 12000), (48000, 12000)])
def test_samples_reach_as_high_as_the_rate_lets_them(make_dataset, tmp_path, kind, rate, hertz):
    path = write_two_tones(tmp_path / 'tones.wav', 48000)
    dataset = make_dataset([(path, '/m/0')], kind=kind, sample_rate=rate, skip_norm=True)
    loader = make_loader(dataset, 1, 0, pin_memory=False)
    [(inputs, _)] = loader
    [features] = inputs_on(inputs, torch.device('cpu'))
    assert features.shape == (40, 64)
    assert highest_hertz(features, rate) == pytest.approx(hertz, rel=0.1)
    by_hand = fbank(load_waveform(path, rate), 64, rate)[:40]
    assert features == pytest.approx(by_hand, abs=1e-2)


def test_a_sample_holds_the_same_time_at_every_rate(make_dataset, tmp_path):
    path = tmp_path / 'ramp.wav'  # silence, then a tone from 0.2 s on
    time = np.arange(24000) / 48000
    soundfile.write(path, np.sin(2 * np.pi * 440 * time) * (time >= 0.2), 48000)
    for rate in (8000, 16000, 32000, 48000, 250_000):
        features, _ = make_dataset([(path, '/m/0')], sample_rate=rate, skip_norm=True)[0]
        loudness = features.logsumexp(dim=1)
        assert int((loudness > loudness.max() - 2).nonzero().min()) == pytest.approx(19, abs=1)


def test_statistics_are_those_of_the_rate(tmp_path, make_labels, make_datafile, capsys):
    path = write_two_tones(tmp_path / 'tones.wav', 48000)
    found = {}
    for rate in (16000, 48000):
        get_norm_stats.main(['--data_train', str(make_datafile([(path, '/m/0')])), '--label_csv',
                             str(make_labels(1)), '--num_workers', '0', '--num_mel_bins', '64',
                             *([] if rate == 16000 else ['--sample_rate', str(rate)])])
        found[rate] = capsys.readouterr().out
        values = fbank(load_waveform(path, rate), 64, rate).double()
        assert found[rate] == (f'--dataset_mean {values.mean():.7f} '
                               f'--dataset_std {values.std(correction=0):.7f}\n')
    assert found[16000] != found[48000]
