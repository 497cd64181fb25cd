"""Recordings to waveforms: any rate and number of channels, whole or in windows."""
import numpy as np
import pytest
import scipy.signal
import soundfile
import torch

from audio.fbank import SAMPLE_RATE
from audio.reading import AudioError, load_waveform, resample

RATES = (8000, 22050, 44100, 48000)


def tone(hertz, seconds, rate):
    """Return a sine (samples,) of amplitude 0.4."""
    return 0.4 * torch.sin(2 * torch.pi * hertz * torch.arange(int(seconds * rate)) / rate)


def peak_hertz(waveform):
    """Return the frequency of a 16 kHz waveform that carries most energy."""
    spectrum = torch.fft.rfft(waveform * torch.hann_window(len(waveform))).abs()
    return float(spectrum.argmax()) * SAMPLE_RATE / len(waveform)


@pytest.mark.parametrize('channels', [1, 2, 6])
@pytest.mark.parametrize('rate', RATES)
@pytest.mark.parametrize('suffix', ['wav', 'flac', 'ogg'])
def test_a_tone_keeps_pitch_length_and_loudness_in_any_format(make_tone, suffix, rate, channels):
    path = make_tone(f'tone.{suffix}', 1000, seconds=0.5, rate=rate, channels=channels)
    waveform = load_waveform(path)
    assert waveform.dtype == torch.float32 and waveform.dim() == 1
    assert len(waveform) == pytest.approx(0.5 * SAMPLE_RATE, abs=2)
    assert peak_hertz(waveform) == pytest.approx(1000, abs=4)
    # Not closer, because one channel of 5.1 Vorbis is for the bass.
    assert float(waveform.std()) == pytest.approx(0.4 / 2 ** 0.5, rel=0.2)


def test_an_open_file_is_read_as_its_path_is(make_tone):
    path = make_tone('tone.flac', rate=44100)
    with open(path, 'rb') as file:
        assert torch.equal(load_waveform(file, name='upload'), load_waveform(path))


def test_nothing_is_resampled_to_nothing():
    assert len(resample(torch.zeros(0), 44100, 16000)) == 0


def test_a_silent_channel_halves_the_waveform(tmp_path):
    sound = tone(440, 0.5, SAMPLE_RATE).numpy()
    channels = np.stack([sound, np.zeros_like(sound)], axis=1)
    soundfile.write(tmp_path / 'stereo.wav', channels, SAMPLE_RATE, 'FLOAT')
    np.testing.assert_allclose(load_waveform(tmp_path / 'stereo.wav'), sound / 2, atol=1e-7)
    assert len(sound) == 8000


def test_opposite_channels_cancel(tmp_path):
    sound = tone(440, 0.5, SAMPLE_RATE).numpy()
    channels = np.stack([sound, -sound], axis=1)
    soundfile.write(tmp_path / 'stereo.wav', channels, SAMPLE_RATE, 'FLOAT')
    assert not load_waveform(tmp_path / 'stereo.wav').any()


@pytest.mark.parametrize('rate', [*RATES, 44099])
def test_resampling_gives_what_recording_at_16_khz_would_have_given(rate):
    edge = 200  # samples that the filter's ends disturb
    resampled = resample(tone(1000, 1, rate), rate, SAMPLE_RATE)
    recorded = tone(1000, 1, SAMPLE_RATE)
    assert len(resampled) == len(recorded)
    assert float((resampled - recorded)[edge:-edge].abs().max()) < 0.005


@pytest.mark.parametrize('rate', [*RATES, 44099])
def test_resampling_agrees_with_scipy(rate):
    sound = tone(440, 0.3, rate) + tone(2500, 0.3, rate)
    divisor = np.gcd(rate, SAMPLE_RATE)
    other = scipy.signal.resample_poly(sound.numpy(), SAMPLE_RATE // divisor, rate // divisor)
    resampled = resample(sound, rate, SAMPLE_RATE).numpy()
    assert len(resampled) == len(other)
    assert np.abs(resampled - other)[200:-200].max() < 0.01


def test_what_16_khz_cannot_hold_is_filtered_out_and_not_folded_back():
    assert float(resample(tone(12000, 0.5, 48000), 48000, SAMPLE_RATE)[200:-200].abs().max()) < 0.01


def test_coprime_rates_resample_in_bounded_memory():
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
        resample(tone(440, 0.1, 11027), 11027, SAMPLE_RATE)
    assert max(event.self_cpu_memory_usage for event in profile.key_averages()) < 100e6  # bytes


def write_text(path):
    path.write_text('no sound at all')


def write_nothing(path):
    soundfile.write(path, np.zeros(0), SAMPLE_RATE)


def write_nan(path):
    soundfile.write(path, np.array([0.1, np.nan, 0.2]), SAMPLE_RATE, 'FLOAT')


def write_infinite(path):
    soundfile.write(path, np.array([0.1, np.inf, 0.2]), SAMPLE_RATE, 'FLOAT')


def leave_out(path):
    path.unlink(missing_ok=True)


@pytest.mark.parametrize('write, reason', [
    (leave_out, '(?i)no such file|does not exist|not found'), (write_text, None),
    (lambda path: path.mkdir(), None), (write_nothing, 'no samples'), (write_nan, 'NaN'),
    (write_infinite, 'infinite')],
    ids=['missing', 'text', 'directory', 'empty', 'nan', 'infinite'])
def test_an_unusable_recording_is_named_with_the_reason(tmp_path, write, reason):
    path = tmp_path / 'recording.wav'
    write(path)
    with pytest.raises(AudioError, match=reason) as error:
        load_waveform(path)
    assert str(path) in str(error.value) and '\n' not in str(error.value)


def test_an_unusable_upload_is_called_by_the_name_it_was_given(tmp_path):
    (tmp_path / 'scratch').write_text('no sound')
    with open(tmp_path / 'scratch', 'rb') as file, pytest.raises(AudioError) as error:
        load_waveform(file, name='dog.wav')
    assert 'dog.wav' in str(error.value) and 'scratch' not in str(error.value)


@pytest.mark.parametrize('rate', [8000, 16000, 22050, 44100])
@pytest.mark.parametrize('start', [0.0, 0.5, 3.0, 7.37])
def test_a_window_is_a_piece_of_the_whole(make_tone, rate, start):
    path = make_tone('long.wav', seconds=12, rate=rate)
    whole = load_waveform(path)
    piece = load_waveform(path, start=start, seconds=2)[:16000]
    offset = round(start * SAMPLE_RATE)
    assert piece == pytest.approx(whole[offset:offset + 16000], abs=1e-3)


@pytest.mark.parametrize('rate', [16000, 44100])
def test_damage_before_a_window_does_not_matter(tmp_path, rate):
    samples = np.full(5 * rate, 0.1)
    samples[round(1.6 * rate)] = np.nan  # it is read, for the resampler
    soundfile.write(tmp_path / 'a.wav', samples, rate, 'FLOAT')
    assert load_waveform(tmp_path / 'a.wav', start=2.0, seconds=2).isfinite().all()
    with pytest.raises(AudioError, match='NaN'):
        load_waveform(tmp_path / 'a.wav', start=1.5, seconds=2)


@pytest.mark.parametrize('start', [3.0, 3.5, 30.0])
def test_a_window_past_the_end_is_refused(make_tone, start):
    with pytest.raises(AudioError, match=f'short.wav holds no samples after {start} s'):
        load_waveform(make_tone('short.wav', seconds=3), start=start, seconds=2)
