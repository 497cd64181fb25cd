"""Broken files of every kind: each is classified, and training lives through a few of them."""
import ctypes
import io
import json
import multiprocessing
import resource
import struct
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import run
from audio import MAX_RATE
from audio.reading import AudioError
from checks.recordings import Excerpt, check_recordings, examine
from dataloader import AudiosetDataset, SampleKey
from utilities.parallel import one_thread

SAMPLES = np.random.default_rng(0).uniform(-0.5, 0.5, 32000)
GIGABYTE = 2 ** 30
CAPABILITIES = 0x20080522  # version 3 of Linux's capset, which takes two times three words


def encoded(suffix, samples=SAMPLES, rate=16000, subtype=None):
    """Return the bytes of an audio file."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=suffix[1:].upper(), subtype=subtype)
    return file.getvalue()


def cut(suffix, share):
    """Return the first share of the bytes of an audio file."""
    data = encoded(suffix)
    return data[:int(share * len(data))]


def with_field(offset, form, value):
    """Return the bytes of a WAV file with another number in its header."""
    data = bytearray(encoded('.wav'))
    struct.pack_into(form, data, offset, value)
    return bytes(data)


CHANNELS, RATE, DATA_SIZE = (22, '<H'), (24, '<I'), (40, '<I')  # of a WAV header
FLOATS = SAMPLES.copy()
FLOATS[777] = np.nan
INFINITE = SAMPLES.copy()
INFINITE[-1] = -np.inf
# A file's name and content, and what check_data.py calls it; None for nothing.
KINDS = {
    **{f'cut at {share}{suffix}': (cut(suffix, share), problem)
       for suffix, problems in {'.wav': ('unreadable', 'incomplete', 'incomplete', 'incomplete'),
                                '.flac': ('unreadable', 'incomplete', 'incomplete', 'incomplete'),
                                '.ogg': ('unreadable', 'empty', 'incomplete', 'incomplete')}.items()
       for share, problem in zip((0.0005, 0.3, 0.7, 0.99), problems, strict=True)},
    'no bytes.wav': (b'', 'unreadable'), 'no bytes.flac': (b'', 'unreadable'),
    'zeros.wav': (bytes(5000), 'unreadable'),
    'announces more.wav': (with_field(*DATA_SIZE, 10 ** 6), 'incomplete'),
    'announces less.wav': (with_field(*DATA_SIZE, 32000), None),
    'announces nothing.wav': (with_field(*DATA_SIZE, 0), None),
    'streamed.wav': (with_field(*DATA_SIZE, 2 ** 32 - 1), None),
    'text.wav': (b'this is no audio\n' * 100, 'unreadable'),
    'text.mp3': (b'this is no audio\n' * 100, 'unreadable'),
    'nan.wav': (encoded('.wav', FLOATS, subtype='FLOAT'), 'non_finite'),
    'infinite.wav': (encoded('.wav', INFINITE, subtype='DOUBLE'), 'non_finite'),
    'no channels.wav': (with_field(*CHANNELS, 0), 'unreadable'),
    '32 channels.wav': (encoded('.wav', SAMPLES.reshape(-1, 32)), None),
    '0 Hz.wav': (with_field(*RATE, 0), 'unreadable'),
    '1 Hz.wav': (with_field(*RATE, 1), 'unreadable'),
    '100 Hz.wav': (with_field(*RATE, 100), None),
    '384 kHz.wav': (encoded('.wav', rate=384000), None),
    'near-coprime.wav': (with_field(*RATE, MAX_RATE - 1), None),
    'too fast.wav': (with_field(*RATE, MAX_RATE + 1), 'unreadable'),
    'too slow.flac': (encoded('.flac', rate=50), 'unreadable'),
    'fastest.wav': (with_field(*RATE, 2 ** 31 - 1), 'unreadable'),
    'one sample.wav': (encoded('.wav', SAMPLES[:1]), 'too_short'),
    'empty.wav': (encoded('.wav', SAMPLES[:0]), 'empty'),
}
USABLE = {None, 'incomplete', 'too_short'}


@pytest.fixture(params=[*KINDS, 'folder.wav', 'locked.wav'])
def kind(request, tmp_path):
    """A file of each kind, and what check_data.py should call it."""
    path = tmp_path / request.param
    if request.param == 'folder.wav':
        path.mkdir()
        return path, 'missing'
    if request.param == 'locked.wav':
        path.write_bytes(encoded('.wav'))
        path.chmod(0)
        return path, 'unreadable'
    content, problem = KINDS[request.param]
    path.write_bytes(content)
    return path, problem


def limited():
    """Leave this forked process a gigabyte more memory, one thread and no privileges of root."""
    torch.set_num_threads(1)
    used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + GIGABYTE, resource.RLIM_INFINITY))
    header, none = (ctypes.c_uint32 * 2)(CAPABILITIES), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(header, none) == 0


def use(path, datafile, labels):
    """Return what check_data.py finds in a file, the shape of its sample, and the error if none."""
    excerpt = Excerpt(path)
    [finding] = examine([excerpt])
    problems = check_recordings({excerpt: finding}, 16000)
    found = [name for name, items in problems.items() if items]
    conf = {'num_mel_bins': 32, 'target_length': 220, 'mode': 'evaluation'}
    dataset = AudiosetDataset(datafile, conf, labels)
    try:
        fbank, _ = dataset[SampleKey(0, 0, 1, 0)]
    except AudioError as error:
        return found, None, str(error)
    assert bool(fbank.isfinite().all())
    return found, tuple(fbank.shape), ''


@pytest.mark.skipif(not Path('/proc/self/statm').exists(),
                    reason='the memory of a process is limited on Linux only')
def test_every_kind_is_classified_and_a_sample_or_an_error(kind, make_datafile, make_labels):
    path, problem = kind
    start = time.monotonic()
    with ProcessPoolExecutor(1, multiprocessing.get_context('fork'), limited) as pool:
        done = pool.submit(use, str(path), make_datafile([(path, '/m/0')]), make_labels(2))
        problems, shape, error = done.result(60)
    assert time.monotonic() - start < 30
    assert problems == ([problem] if problem else [])
    assert shape == (220, 32) if problem in USABLE else path.name in error


@pytest.mark.parametrize('bad, stops', [(1, False), (10, True)])
def test_training_with_one_bad_file_of_200_finishes_and_with_ten_stops(tmp_path, make_tone,
                                                                       make_labels, capsys, bad,
                                                                       stops):
    good = [str(make_tone(f'{i}.wav', 300 * (i + 1), seconds=0.3)) for i in range(5)]
    wavs = [good[i % 5] for i in range(200)]
    broken = [name for name, (_, problem) in KINDS.items() if problem not in USABLE]
    for i in range(bad):
        wavs[20 * i] = str(tmp_path / broken[i])
        (tmp_path / broken[i]).write_bytes(KINDS[broken[i]][0])
    for name, paths in (('train', wavs), ('val', good)):
        entries = [{'wav': wav, 'labels': f'/m/{i % 2}'} for i, wav in enumerate(paths)]
        (tmp_path / f'{name}.json').write_text(json.dumps({'data': entries}))
    options = ('--n_class 2 --num_mel_bins 16 --audio_length 32 --fstride 16 --tstride 16 '
               '--model_size tiny224 --imagenet_pretrain False --batch_size 20 --lr 1e-4 '
               '--num_workers 0 --device cpu --mixup 0.2').split()
    options += ['--data_train', tmp_path / 'train.json', '--data_val', tmp_path / 'val.json',
                '--label_csv', make_labels(2), '--exp_dir', tmp_path / 'exp']
    with one_thread():
        if stops:
            with pytest.raises(SystemExit, match='more than --max_bad_audio 0.01 of an epoch'):
                run.main(list(map(str, options)))
        else:
            run.main(list(map(str, options)))
            assert 'samples replaced whose audio could not be read' in capsys.readouterr().err
            assert (tmp_path / 'exp' / 'finished').exists()
