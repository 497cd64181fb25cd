"""Sounds that are not files: arrays of every kind, and standard input."""
import contextlib
import csv
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading

import numpy as np
import pytest
import soundfile
import torch

import inference
from models import ASTModel, save_checkpoint
from tagging import load_tagger, sounds, tag
from utilities.errors import DataError
from utilities.parallel import one_thread

WINDOW, READ = 0.32, 0.335  # seconds: from window to window, and what its last frame reaches
RATE = 16000


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """A checkpoint with windows of 0.32 s."""
    path = tmp_path_factory.mktemp('model') / 'model.pth'
    torch.manual_seed(0)
    model = ASTModel(2, 16, 16, 16, 32, imagenet_pretrain=False, model_size='tiny224')
    torch.nn.init.normal_(model.mlp_head[1].weight, std=0.1)
    save_checkpoint(model, path, labels={'mids': ['/m/0', '/m/1'], 'names': ['dog', 'rain']},
                    mean=-6.0, std=3.0, loss='BCE')
    return path


@pytest.fixture(scope='module')
def tagger(checkpoint):
    return load_tagger(checkpoint, 'cpu', 'off')


@pytest.fixture(autouse=True)
def folder(checkpoint, tmp_path, monkeypatch):
    """Work in a folder with the checkpoint, on one thread."""
    monkeypatch.chdir(tmp_path)
    for path in (checkpoint, checkpoint.with_suffix('.json')):
        shutil.copy(path, tmp_path)
    with one_thread():
        yield tmp_path


def tag_here(tagger, files, **options):
    """Tag without worker processes."""
    return list(tag(tagger, files, num_workers=0, **options))


def noise(seconds, rate=RATE, channels=1):
    """Noise (samples, channels) that changes with time."""
    samples = np.random.default_rng(0).standard_normal((round(seconds * rate), channels))
    return 0.2 * samples * np.sin(np.arange(len(samples)) / rate)[:, None]


KINDS = {'int16': 'PCM_16', 'int32': 'PCM_32', 'uint8': 'PCM_U8', 'float32': 'FLOAT', 'float64': 'DOUBLE'}


@pytest.mark.parametrize('rate, channels', [(16000, 1), (44100, 2), (8000, 3)])
@pytest.mark.parametrize('kind', KINDS)
def test_an_array_is_tagged_like_a_file_with_its_samples(tagger, kind, rate, channels):
    samples = noise(1.5, rate, channels)
    if kind == 'uint8':
        array = np.clip(np.round(samples * 128) + 128, 0, 255).astype(kind)
    else:
        array = (samples * (2 ** 31 if kind == 'int32' else 2 ** 15 if kind == 'int16' else 1)).astype(kind)
    if kind == 'uint8':  # soundfile does not write this type
        soundfile.write('a.wav', (array.astype(float) - 128) / 128, rate, KINDS[kind])
    else:
        soundfile.write('a.wav', array, rate, KINDS[kind])
    arrays = [array.T, np.ascontiguousarray(array.T), torch.from_numpy(array.T.copy()), torch.from_numpy(array).T]
    if channels == 1:
        arrays += [array[:, 0], torch.from_numpy(array[:, 0])]
    expected, *found = tag_here(tagger, ['a.wav', *arrays], rate=rate, batch_size=1)
    assert [tagging.path for tagging in found] == [f'array {i}' for i in range(1, 1 + len(arrays))]
    for tagging in found:
        assert tagging.error is None and (tagging.starts == expected.starts).all()
        assert (tagging.ends == expected.ends).all() and tagging.seconds == expected.seconds
        assert tagging.scores == pytest.approx(expected.scores, abs=1e-6)


def test_other_floats_and_other_layouts_in_memory_are_taken(tagger):
    array = (noise(1).T * 2 ** 15).astype(np.int16)
    floats = array / 2 ** 15
    [expected] = tag_here(tagger, floats, rate=RATE)
    frozen = floats.copy()
    frozen.flags.writeable = False
    for same in (frozen, array.astype('>i2'), floats[:, ::-1].copy()[:, ::-1], torch.tensor(floats, requires_grad=True)):
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
    found = tag_here(tagger, [*broken, noise(1)[:, 0]], rate=RATE)
    assert [tagging.error for tagging in found] == [
        'array 0 holds no samples', 'array 1 holds no samples', 'array 2 holds NaN or infinite samples',
        'array 3 holds NaN or infinite samples', None]


def test_workers_read_arrays_and_files_alike(tagger, make_tone):
    sources = [make_tone('a.wav'), noise(2)[:, 0], torch.from_numpy(noise(3).T), 'a.wav']
    alone, spread = (list(tag(tagger, sources, rate=RATE, num_workers=workers)) for workers in (0, 2))
    for one, other in zip(alone, spread):
        assert one.scores == pytest.approx(other.scores, abs=1e-6)


def test_only_the_window_of_a_long_array_is_copied(tagger, monkeypatch):
    longest = []
    convert = sounds._as_floats
    monkeypatch.setattr(sounds, '_as_floats', lambda samples: longest.append(samples.size) or convert(samples))
    tag_here(tagger, np.zeros((2, 60 * RATE), np.int16), rate=RATE)
    assert 0 < max(longest) <= 2 * 4 * RATE


@pytest.fixture
def listen(root):
    """Start inference.py on a pipe; its processes are ended with the test, or after two minutes."""
    started = []

    def start(*words):
        process = subprocess.Popen(
            [sys.executable, root / 'src' / 'inference.py', '-', '--checkpoint', 'model.pth', '--device', 'cpu',
             '--amp', 'off', *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            bufsize=0, env={**os.environ, 'OMP_NUM_THREADS': '1'})
        timer = threading.Timer(120, process.kill)  # a test waits for lines that may never come
        timer.start()
        started.append((process, timer))
        return process
    yield start
    for process, timer in started:
        timer.cancel()
        with process:
            process.kill()


@pytest.fixture
def hear(monkeypatch, capsys):
    """Run inference.py here, with bytes or an open file as its standard input; return what it says in the end."""
    def run(source, *words):
        if isinstance(source, bytes):
            end, start = os.pipe()
            thread = threading.Thread(target=feed, args=(start, source))
            thread.start()
            source = open(end, 'rb')
        with source, monkeypatch.context() as patch:
            patch.setattr('sys.stdin', source)
            try:
                inference.main(['-', '--checkpoint', 'model.pth', '--device', 'cpu', '--amp', 'off', *words])
            except SystemExit as stop:
                return f'{capsys.readouterr().err}{stop.code}'
    return run


def feed(descriptor, data):
    """Write data to a pipe and close it; its reader may not want all."""
    with contextlib.suppress(BrokenPipeError), open(descriptor, 'wb') as file:
        file.write(data)


def read_csv(path):
    """The rows of a CSV after the path, as numbers (windows, start, end and scores)."""
    with open(path, newline='') as file:
        return np.array([[float(cell) for cell in row[1:-1]] for row in list(csv.reader(file))[1:]])


def as_pcm(samples):
    """Raw 16-bit samples (samples, channels)."""
    return (samples * 2 ** 15).astype('<i2').tobytes()


def wav_header(size, rate, channels, kind=1, width=2):
    """The header of a WAV file of so many bytes as ffmpeg writes it, with a chunk before the samples."""
    form = struct.pack('<HHIIHH', kind, channels, rate, rate * channels * width, channels * width, 8 * width)
    extra = b'LIST' + struct.pack('<I', 26) + b'INFOISFT' + struct.pack('<I', 14) + b'Lavf60.16.100\0'
    return (b'RIFF' + struct.pack('<I', size) + b'WAVEfmt ' + struct.pack('<I', len(form)) + form + extra
            + b'data' + struct.pack('<I', size))


def test_a_minute_of_raw_sound_is_tagged_while_it_comes_in(listen, tagger):
    samples = noise(60)
    process = listen('--raw_rate', str(RATE), '--csv', 'stream.csv', '--json', 'stream.jsonl')
    printed, sent = 0, 0
    for end in (READ, 20.0, 40.0, 60.0):  # the first window needs not a sample more
        process.stdin.write(as_pcm(samples[sent:round(end * RATE)]))
        sent = round(end * RATE)
        complete = 1 + int((end - READ + 1e-9) / WINDOW)
        while printed < complete:  # waits for ever if a window waits for the sound after it
            assert process.stdout.readline().split()[0].count(b':') == 2
            printed += 1
            assert len(read_csv('stream.csv')) >= printed - 1
    process.stdin.close()
    assert len(process.stdout.readlines()) + printed == 188 and process.wait() == 0
    soundfile.write('file.wav', (samples * 2 ** 15).astype(np.int16), RATE)
    [expected] = tag_here(tagger, 'file.wav')
    rows = read_csv('stream.csv')
    assert rows[:, 0] == pytest.approx(expected.starts) and rows[:, 1] == pytest.approx(expected.ends)
    assert rows[:, 2:] == pytest.approx(expected.scores, abs=1e-4)
    entries = [json.loads(line) for line in open('stream.jsonl')]
    assert [entry['windows'][0]['start'] for entry in entries] == pytest.approx(expected.starts)


@pytest.mark.parametrize('size', [None, 0, 2 ** 32 - 1])
@pytest.mark.parametrize('rate, channels', [(16000, 1), (44100, 2)])
def test_wav_is_read_whatever_its_header_says_about_its_length(hear, tagger, size, rate, channels):
    data = as_pcm(noise(1.5, rate, channels))
    header = wav_header(len(data) if size is None else size, rate, channels)
    after = b'LIST' + struct.pack('<I', 4000) + bytes(4000) if size is None else b''  # is no sound
    assert hear(header + data + after, '--csv', 'stream.csv', '--hop_seconds', '0.25') is None
    soundfile.write('file.wav', np.frombuffer(data, '<i2').reshape(-1, channels), rate)
    [expected] = tag_here(tagger, 'file.wav', hop_seconds=0.25)
    rows = read_csv('stream.csv')
    assert rows[:, 0] == pytest.approx(expected.starts) and rows[:, 1] == pytest.approx(expected.ends)
    assert rows[:, 2:] == pytest.approx(expected.scores, abs=1e-4)


def test_floats_and_24_bits_of_unknown_length_are_read(hear, tagger):
    floats = noise(0.5).astype('<f4')
    whole = np.round(noise(0.5) * 2 ** 31).astype('<i4')
    whole24 = whole.view(np.uint8).reshape(-1, 4)[:, 1:].tobytes()
    for kind, width, data, samples in ((3, 4, floats.tobytes(), floats), (1, 3, whole24, whole)):
        assert hear(wav_header(0, RATE, 1, kind, width) + data, '--csv', 'stream.csv') is None
        [expected] = tag_here(tagger, samples[:, 0], rate=RATE)
        assert read_csv('stream.csv')[:, 2:] == pytest.approx(expected.scores, abs=1e-4)


def test_a_redirected_file_is_read_as_well(hear, tagger):
    soundfile.write('a.flac', noise(1), RATE)
    assert hear(open('a.flac', 'rb'), '--csv', 'stream.csv') is None
    [expected] = tag_here(tagger, 'a.flac')
    assert read_csv('stream.csv')[:, 2:] == pytest.approx(expected.scores, abs=1e-4)


@pytest.mark.skipif(os.name == 'nt', reason='there is no SIGINT for one process')
def test_ctrl_c_ends_with_what_was_heard(listen):
    process = listen('--raw_rate', str(RATE), '--csv', 'a.csv', '--json', 'a.json', '--embeddings', 'a.npz')
    process.stdin.write(as_pcm(noise(1)))
    lines = [process.stdout.readline() for _ in range(3)]
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0 and all(lines)
    with open('a.json') as file:
        assert [entry['path'] for entry in json.load(file)] == ['-'] * 3
    assert len(read_csv('a.csv')) == 3 and np.load('a.npz')['embeddings'].shape == (3, 192)
    assert sorted(name for name in os.listdir() if name.startswith('a.')) == ['a.csv', 'a.json', 'a.npz']


@pytest.mark.parametrize('data, words, reason', [
    (b'', [], 'standard input is no WAV file'),
    (b'', ['--raw_rate', '16000'], 'standard input holds no samples'),
    (b'ID3 not a WAV file' * 100, [], 'give --raw_rate'),
    (wav_header(0, 16000, 1), [], 'standard input holds no samples'),
    (wav_header(0, 16, 1) + bytes(99), [], 'sample rate is 16 Hz'),
])
def test_what_is_no_sound_ends_with_a_sentence(hear, data, words, reason):
    assert reason in hear(data, *words)


def test_other_formats_are_refused_and_not_read_in_part(hear):
    for name in ('a.mp3', 'a.ogg', 'a.rf64'):
        soundfile.write(name, noise(1), RATE)
        with open(name, 'rb') as file:
            assert 'convert it to a plain WAV file' in hear(file.read())


def test_a_window_of_broken_samples_is_an_error_and_the_rest_is_tagged(hear):
    samples = noise(4).astype('<f4')
    samples[8000] = np.nan  # also in the past of the windows that begin in the second after it
    assert '6 of 13 windows could' in hear(wav_header(0, RATE, 1, 3, 4) + samples.tobytes(), '--csv', 'a.csv')
    assert read_csv('a.csv')[:, 0] == pytest.approx([0, *(0.32 * np.arange(7, 13))])


def test_of_a_stream_only_the_first_window_is_taken_on_request(hear):
    assert hear(wav_header(0, RATE, 1) + as_pcm(noise(2)), '--window', 'first', '--csv', 'a.csv') is None
    assert len(read_csv('a.csv')) == 1


@pytest.mark.parametrize('words, reason', [
    (['a.wav'], 'give no files beside it'), (['--plot', 'a.png'], '--plot does not go with'),
    (['--batch_size', '4'], '--batch_size does not go with')])
def test_what_does_not_go_with_standard_input_is_refused(capsys, words, reason):
    with pytest.raises(SystemExit):
        inference.main(['-', *words, '--checkpoint', 'model.pth', '--device', 'cpu'])
    assert reason in capsys.readouterr().err
