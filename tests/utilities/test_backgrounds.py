"""Recordings of background noise: which there are, and what is read of them."""
import os
import sys

import numpy as np
import pytest
import soundfile
import torch

from utilities.backgrounds import Backgrounds
from utilities.errors import DataError


@pytest.fixture
def noise_dir(tmp_path):
    """A folder of recordings of 1 s, each of one constant; and of other files."""
    folder = tmp_path / 'noise'
    (folder / 'deep').mkdir(parents=True)
    for name, value in (('b.wav', 0.2), ('a.flac', 0.1), ('deep/c.ogg', 0.3)):
        soundfile.write(folder / name, np.full(16000, value), 16000)
    (folder / 'LICENSE.txt').write_text('free')
    return folder


def heard(noise):
    """Return the constant of a recording."""
    return round(float(noise.mean()), 1)


def test_every_recording_below_the_folder_has_its_share_in_the_order_of_the_paths(noise_dir):
    backgrounds = Backgrounds(str(noise_dir))
    choices = (0.0, 0.33, 0.34, 0.66, 0.67, 0.999)
    assert [heard(backgrounds.load(choice, 0.0, 4000)) for choice in choices] == [
        0.1, 0.1, 0.2, 0.2, 0.3, 0.3]


def test_a_window_has_the_length_that_is_asked_for_or_that_of_a_shorter_recording(noise_dir):
    backgrounds = Backgrounds(str(noise_dir))
    assert len(backgrounds.load(0.0, 0.5, 4000)) == 4000
    assert len(backgrounds.load(0.0, 0.5, 40000)) == 16000


@pytest.mark.skipif(sys.platform != 'linux', reason='other systems have no such names')
def test_a_name_that_is_not_utf_8_is_a_sentence(noise_dir):
    (noise_dir / os.fsdecode(b'Ger\xe4usch.wav')).write_bytes((noise_dir / 'a.flac').read_bytes())
    with pytest.raises(DataError, match='--noise_dir: the name .*Ger.*is not UTF-8: rename it'):
        Backgrounds(str(noise_dir))


def test_windows_are_all_over_a_recording(noise_dir):
    rising = np.linspace(0, 1, 16000)
    soundfile.write(noise_dir / 'a.flac', rising, 16000)
    backgrounds = Backgrounds(str(noise_dir))
    firsts = [float(backgrounds.load(0.0, place, 4000)[0]) for place in (0, 0.5, 1)]
    assert firsts == pytest.approx([0, 6000 / 16000, 12000 / 16000], abs=1e-3)


def test_the_next_recording_takes_the_place_of_one_that_cannot_be_read(noise_dir, caplog):
    (noise_dir / 'a.flac').write_text('no sound')
    backgrounds = Backgrounds(str(noise_dir))
    assert [heard(backgrounds.load(0.0, 0.0, 4000)) for _ in range(3)] == [0.2] * 3
    assert len([text for text in caplog.messages if 'a.flac' in text]) == 1
    (noise_dir / 'deep' / 'c.ogg').unlink()
    assert heard(backgrounds.load(0.99, 0.0, 4000)) == 0.2  # after the last comes the first


def test_a_folder_that_is_missing_or_has_no_readable_recording_is_one_sentence(tmp_path, noise_dir):
    with pytest.raises(DataError, match='--noise_dir: cannot read the folder .*gone: No such file'):
        Backgrounds(str(tmp_path / 'gone'))
    for path in list(noise_dir.rglob('*.*')):
        path.write_text('no sound')
    with pytest.raises(DataError, match='--noise_dir: none of the 3 recordings in .*c.ogg'):
        Backgrounds(str(noise_dir))
    for path in list(noise_dir.rglob('*.*')):
        path.unlink()
    with pytest.raises(DataError, match='--noise_dir: the folder .* holds no recordings: .*wav'):
        Backgrounds(str(noise_dir))


def test_the_same_numbers_give_the_same_noise(noise_dir):
    first, again = (Backgrounds(str(noise_dir)).load(0.4, 0.3, 4000) for _ in range(2))
    assert torch.equal(first, again)
