"""Fixtures of the tests of tagging: an empty folder, a small checkpoint, the command line."""
import numpy as np
import pytest
import soundfile

import inference
from inference import load_tagger
from small_tagger import LONG_SECONDS, make_noise, make_tagging, save_model
from tagging.listening import write_listening_page
from utilities.parallel import one_thread


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Work in an empty folder, on one thread."""
    monkeypatch.chdir(tmp_path)
    with one_thread():
        yield tmp_path


@pytest.fixture
def make_checkpoint():
    """Write a small checkpoint; return its name. Takes the arguments of save_model."""
    def make(name='model.pth', **options):
        save_model(name, **options)
        return name
    return make


@pytest.fixture
def checkpoint(make_checkpoint):
    """Write a small checkpoint; return its name."""
    return make_checkpoint()


@pytest.fixture
def tagger(checkpoint):
    """Load the tagger of a small checkpoint."""
    return load_tagger(checkpoint, device='cpu', amp='off')


@pytest.fixture
def infer(capsys):
    """Run inference.py in this process; return what it printed."""
    def start(*words):
        here = ['--device', 'cpu', '--amp', 'off', '--num_workers', '0']
        inference.main([*map(str, words), *here])
        return capsys.readouterr().out
    return start


@pytest.fixture
def broken(folder, make_tone):
    """Write three good recordings and some broken ones; return the names, and one that is missing.

    The header of one of the good ones does not say how long it is.
    """
    nan_inside = np.r_[np.zeros(16000), np.full(16000, np.nan)]
    soundfile.write('nan.wav', nan_inside, 16000, subtype='FLOAT')
    soundfile.write('empty.wav', np.zeros(0), 16000)
    (folder / 'text.wav').write_text('not audio')
    make_tone('length.flac')
    flac = bytearray((folder / 'length.flac').read_bytes())
    flac[21], flac[22:26] = flac[21] & 0xF0, bytes(4)  # as `ffmpeg -f flac -` leaves it
    (folder / 'length.flac').write_bytes(flac)
    make_tone('good.wav')
    make_tone('well.wav')
    return ['empty.wav', 'good.wav', 'gone.wav', 'length.flac', 'nan.wav', 'text.wav', 'well.wav']


@pytest.fixture(scope='module')
def long_sound(tmp_path_factory):
    """Write a long recording that browsers can play; return its path."""
    path = tmp_path_factory.mktemp('long') / 'long.wav'
    soundfile.write(path, make_noise(LONG_SECONDS), 16000)
    return path


@pytest.fixture
def listen(folder):
    """Write the listening page of a recording, with random tags; return its path."""
    def make(path, seconds, page='page.html', **options):
        write_listening_page(folder / page, make_tagging(path, seconds, **options), 2, 'model')
        return folder / page
    return make
