"""Windows of recordings that are longer than the model's input."""
import math
import zipfile

import numpy as np
import pytest
import soundfile
import torch

import formats
from audio import crops
from audio.crops import load_windows
from audio.reading import AudioError, load_waveform

RATE, SECONDS, WINDOW = 16000, 5, 8000
THREE = (0.0, 0.5, 1.0)
MOST_UNSEEN = 700  # samples at the end of an AAC that its header does not count


@pytest.fixture
def recording(tmp_path):
    """Write noise that gets louder; return the path."""
    def make(name, rate=RATE, seconds=SECONDS):
        samples = np.random.default_rng(0).uniform(-0.3, 0.3, rate * seconds)
        soundfile.write(tmp_path / name, samples * np.linspace(0, 1, len(samples)), rate)
        return str(tmp_path / name)
    return make


def require_window(window, whole, start, tolerance=1e-6):
    """Fail if a window is not that of the whole waveform from a sample on."""
    assert len(window) >= WINDOW
    expected = whole[start:start + WINDOW]
    torch.testing.assert_close(window[:WINDOW], expected, atol=tolerance, rtol=0)


def find_start(window, whole):
    """Return where a window begins, given that it is one of the last of a waveform."""
    last = len(whole) - WINDOW
    return next((start for start in range(last, last - MOST_UNSEEN, -1)
                 if torch.allclose(window[:WINDOW], whole[start:start + WINDOW], atol=1e-5)), None)


@pytest.mark.parametrize('rate, tolerance', [(16000, 1e-6), (44100, 1e-3)])
@pytest.mark.parametrize('suffix', ['wav', 'flac', 'ogg'])
def test_windows_are_spread_from_the_beginning_to_the_end(recording, suffix, rate, tolerance):
    path = recording(f'a.{suffix}', rate)
    whole = load_waveform(path)
    for window, start in zip(load_windows(path, WINDOW, THREE), (0, 36000, 72000), strict=True):
        require_window(window, whole, start, tolerance)


@pytest.mark.parametrize('name', formats.KINDS)
def test_whatever_a_header_says_the_windows_are_in_the_sound_that_is_there(name, tmp_path):
    pytest.importorskip('av')
    path = formats.make(name, tmp_path)
    if path is None:
        pytest.skip('this PyAV has no such encoder')
    whole = load_waveform(path)
    first, middle, last = load_windows(str(path), WINDOW, THREE)
    require_window(first, whole, 0)
    assert len(middle) >= WINDOW
    assert find_start(last, whole) is not None


def test_the_first_window_is_what_is_read_without_windows(recording):
    path = recording('a.flac', 44100)
    for start, seconds in ((0.0, math.inf), (1.234, 3.0), (0.7, 2.0)):
        expected = load_waveform(path, start=start, seconds=min(seconds, WINDOW / RATE + 1))
        assert torch.equal(load_windows(path, WINDOW, THREE, start, seconds)[0], expected)


def test_windows_stay_within_the_part_that_is_asked_for(recording):
    path = recording('a.wav')
    whole = load_waveform(path)
    windows = load_windows(path, WINDOW, THREE, start=1.0, seconds=2.0)
    for window, start in zip(windows, (16000, 28000, 40000), strict=True):
        require_window(window, whole, start)
    assert len(windows[-1]) == WINDOW  # nothing of what follows the part


@pytest.mark.parametrize('start, seconds', [(0, 0.5), (0, 0.2), (4.5, 60), (4.8, 10)])
def test_what_is_not_longer_than_a_window_is_one_window(recording, start, seconds):
    path = recording('a.wav')
    [window] = load_windows(path, WINDOW, THREE, start, seconds)
    assert torch.equal(window, load_waveform(path, start=start, seconds=seconds))


@pytest.mark.parametrize('more', range(6))
def test_a_start_between_two_samples_leaves_the_last_window_whole(tmp_path, more):
    path, window = str(tmp_path / 'a.wav'), 132300
    soundfile.write(path, np.full(441000 + more, 0.1), 44100)
    windows = load_windows(path, window, THREE, start=0.005, sample_rate=44100)
    assert len(windows) == 3 and all(len(one) >= window for one in windows)


def test_only_the_window_is_read_if_the_format_can_seek(recording, monkeypatch):
    path, read = recording('long.wav', seconds=60), []
    plain = crops.WindowReader._read

    def note(self, reader, first, count):
        samples = plain(self, reader, first, count)
        read.append(len(samples))
        return samples
    monkeypatch.setattr(crops.WindowReader, '_read', note)
    load_windows(path, WINDOW, [0.5])
    assert len(read) == 1 and read[0] < 4 * RATE


def test_the_length_of_a_recording_that_does_not_say_it_is_found_once(tmp_path, monkeypatch):
    path = tmp_path / 'a.flac'
    path.write_bytes(formats.flac_of_unknown_length())
    measured, inspect = [], crops.inspect_audio

    def note(file):
        measured.append(file)
        return inspect(file)
    monkeypatch.setattr(crops, 'inspect_audio', note)
    for _ in range(3):
        load_windows(str(path), WINDOW, [0.5])
    assert measured == [str(path)]


def test_windows_of_a_member_of_a_shard_are_those_of_the_file(recording, tmp_path):
    path = recording('a.flac')
    with zipfile.ZipFile(tmp_path / 's.zip', 'w') as archive:
        archive.write(path, 'a.flac')
    packed = load_windows(f'{tmp_path}/s.zip/a.flac', WINDOW, THREE)
    for window, other in zip(load_windows(path, WINDOW, THREE), packed, strict=True):
        assert torch.equal(window, other)


def test_a_recording_that_became_shorter_since_its_length_was_found_is_an_error(tmp_path):
    path, data = tmp_path / 'a.flac', formats.flac_of_unknown_length()
    path.write_bytes(data)
    assert len(load_windows(str(path), WINDOW, [1.0])) == 1
    path.write_bytes(data[:len(data) // 4])
    with pytest.raises(AudioError, match='a.flac holds no samples'):
        load_windows(str(path), WINDOW, [1.0])


def test_a_missing_recording_and_a_part_after_the_end_are_errors(tmp_path, recording):
    with pytest.raises(AudioError, match='gone.wav does not exist'):
        load_windows(str(tmp_path / 'gone.wav'), WINDOW, [0.0])
    with pytest.raises(AudioError, match='a.wav holds no samples after 9 s'):
        load_windows(recording('a.wav'), WINDOW, THREE, start=9)
