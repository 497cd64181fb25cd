"""Arrays and tensors of every kind are tagged as a file with the same samples."""
import numpy as np
import pytest
import soundfile
import torch

from inference import load_tagger, tag
from small_tagger import RATE, make_noise, save_model, tag_here
from tagging import sounds
from utilities.errors import DataError

KINDS = {'int16': 'PCM_16', 'int32': 'PCM_32', 'uint8': 'PCM_U8', 'float32': 'FLOAT',
         'float64': 'DOUBLE'}
FULL_SCALE = {'int16': 2 ** 15, 'int32': 2 ** 31}


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """Write a small checkpoint for all tests; return its path."""
    path = tmp_path_factory.mktemp('model') / 'model.pth'
    save_model(path)
    return path


@pytest.fixture(scope='module')
def tagger(checkpoint):
    return load_tagger(checkpoint, 'cpu', 'off')


@pytest.mark.parametrize('rate, channels', [(16000, 1), (44100, 2), (8000, 3)])
@pytest.mark.parametrize('kind', KINDS)
def test_an_array_is_tagged_like_a_file_with_its_samples(tagger, kind, rate, channels):
    samples = make_noise(1.5, rate, channels)
    if kind == 'uint8':
        array = np.clip(np.round(samples * 128) + 128, 0, 255).astype(kind)
        as_floats = (array.astype(float) - 128) / 128  # soundfile does not write uint8
        soundfile.write('a.wav', as_floats, rate, KINDS[kind])
    else:
        array = (samples * FULL_SCALE.get(kind, 1)).astype(kind)
        soundfile.write('a.wav', array, rate, KINDS[kind])
    arrays = [array.T, np.ascontiguousarray(array.T), torch.from_numpy(array.T.copy()),
              torch.from_numpy(array).T]
    if channels == 1:
        arrays += [array[:, 0], torch.from_numpy(array[:, 0])]
    expected, *found = tag_here(tagger, ['a.wav', *arrays], rate=rate, batch_size=1)
    assert [tagging.path for tagging in found] == [f'array {i}' for i in range(1, 1 + len(arrays))]
    for tagging in found:
        assert tagging.error is None and (tagging.starts == expected.starts).all()
        assert (tagging.ends == expected.ends).all() and tagging.seconds == expected.seconds
        assert tagging.scores == pytest.approx(expected.scores, abs=1e-6)


def test_other_floats_and_other_layouts_in_memory_are_taken(tagger):
    array = (make_noise(1).T * 2 ** 15).astype(np.int16)
    floats = array / 2 ** 15
    [expected] = tag_here(tagger, floats, rate=RATE)
    frozen = floats.copy()
    frozen.flags.writeable = False
    for same in (frozen, array.astype('>i2'), floats[:, ::-1].copy()[:, ::-1],
                 torch.tensor(floats, requires_grad=True)):
        [found] = tag_here(tagger, same, rate=RATE)
        assert found.scores == pytest.approx(expected.scores, abs=1e-6)
    for rough in (floats.astype(np.float16), torch.tensor(floats, dtype=torch.bfloat16)):
        [found] = tag_here(tagger, [rough], rate=float(RATE))
        assert found.scores == pytest.approx(expected.scores, abs=0.05)


@pytest.mark.parametrize('array, rate, reason', [
    (np.zeros(9), None, 'give rate='),
    (np.zeros(9), 16000.5, 'rate is a whole number of Hz'),
    (np.zeros(9), 10, 'rate is a whole number of Hz from 100'),
    (np.zeros((16000, 2)), RATE, r'shape \(16000, 2\), more channels than samples.*transpose'),
    (torch.zeros(2, 1, 16000), RATE, r'shape \(2, 1, 16000\).*as a list'),
    (np.ones(()), RATE, 'shape'),
    (np.zeros(9, np.int64), RATE, 'samples of type int64: give floats'),
    (torch.zeros(9, dtype=torch.bool), RATE, 'samples of type bool'),
    (np.zeros(9, complex), RATE, 'samples of type complex128'),
    (0.5, RATE, 'expected paths, numpy arrays or torch tensors, got float'),
])
def test_an_array_that_is_no_sound_is_refused_at_once(tagger, array, rate, reason):
    with pytest.raises(DataError, match=reason):
        tag(tagger, [array], rate=rate)


def test_a_broken_array_is_an_error_like_that_of_a_file(tagger):
    broken = [np.zeros(0), torch.zeros(2, 0), np.r_[np.zeros(RATE), np.nan], np.full(400, np.inf)]
    found = tag_here(tagger, [*broken, make_noise(1)[:, 0]], rate=RATE)
    assert [tagging.error for tagging in found] == [
        'array 0 holds no samples', 'array 1 holds no samples',
        'array 2 holds NaN or infinite samples', 'array 3 holds NaN or infinite samples', None]


def test_workers_read_arrays_and_files_alike(tagger, make_tone):
    sources = [make_tone('a.wav'), make_noise(2)[:, 0], torch.from_numpy(make_noise(3).T), 'a.wav']
    alone, spread = (list(tag(tagger, sources, rate=RATE, num_workers=workers))
                     for workers in (0, 2))
    for one, other in zip(alone, spread, strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-6)


def test_only_the_window_of_a_long_array_is_copied(tagger, monkeypatch):
    convert, sizes = sounds._as_floats, []

    def spy(samples):
        sizes.append(samples.size)
        return convert(samples)

    monkeypatch.setattr(sounds, '_as_floats', spy)
    tag_here(tagger, np.zeros((2, 60 * RATE), np.int16), rate=RATE)
    assert 0 < max(sizes) <= 2 * 4 * RATE
