"""Standard input as a stream: raw samples and WAV, tagged while they come in."""
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

import inference
from inference import load_tagger
from small_tagger import RATE, make_noise, save_model, tag_here

WINDOW, READ = 0.32, 0.335  # seconds: from window to window, and what its last frame reaches
MODEL = ['--checkpoint', 'model.pth', '--device', 'cpu', '--amp', 'off']


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """Write a small checkpoint for all tests; return its path."""
    path = tmp_path_factory.mktemp('model') / 'model.pth'
    save_model(path)
    return path


@pytest.fixture(scope='module')
def tagger(checkpoint):
    return load_tagger(checkpoint, 'cpu', 'off')


@pytest.fixture(autouse=True)
def copies(checkpoint, folder):
    """Put the checkpoint into the folder of the test."""
    for path in (checkpoint, checkpoint.with_suffix('.json')):
        shutil.copy(path, folder)


@pytest.fixture
def listen(root):
    """Start inference.py on a pipe. Its processes end with the test, or after two minutes."""
    started = []

    def start(*words):
        process = subprocess.Popen(
            [sys.executable, root / 'src' / 'inference.py', '-', *MODEL, *words], bufsize=0,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, 'OMP_NUM_THREADS': '1'})
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
    """Run inference.py here, with bytes or an open file as its standard input.

    Returns what it says if it ends with an error, else None.
    """
    def run(source, *words):
        if isinstance(source, bytes):
            end, start = os.pipe()
            thread = threading.Thread(target=feed, args=(start, source))
            thread.start()
            source = open(end, 'rb')
        with source, monkeypatch.context() as patch:
            patch.setattr('sys.stdin', source)
            try:
                inference.main(['-', *MODEL, *words])
            except SystemExit as stop:
                return f'{capsys.readouterr().err}{stop.code}'
    return run


def feed(descriptor, data):
    """Write data to a pipe and close it; its reader may not want all."""
    with contextlib.suppress(BrokenPipeError), open(descriptor, 'wb') as file:
        file.write(data)


def read_csv(path):
    """Return the rows of a CSV after the path, as numbers (windows, start + end + scores)."""
    with open(path, newline='') as file:
        return np.array([[float(cell) for cell in row[1:-1]] for row in list(csv.reader(file))[1:]])


def as_pcm(samples):
    """Return samples (samples, channels) as raw 16-bit samples."""
    return (samples * 2 ** 15).astype('<i2').tobytes()


def wav_header(size, rate, channels, kind=1, width=2):
    """Return the header of a WAV file as ffmpeg writes it, with a chunk before the samples.

    Args:
        size: bytes of samples, as the header is to say.
        rate, channels: of the samples.
        kind: 1 for integers, 3 for floats.
        width: bytes of a sample.
    """
    frame = channels * width
    form = struct.pack('<HHIIHH', kind, channels, rate, rate * frame, frame, 8 * width)
    extra = chunk(b'LIST', b'INFO' + chunk(b'ISFT', b'Lavf60.16.100\0'))
    return (b'RIFF' + struct.pack('<I', size) + b'WAVE' + chunk(b'fmt ', form) + extra
            + b'data' + struct.pack('<I', size))


def chunk(name, data):
    """Return a chunk of a WAV file."""
    return name + struct.pack('<I', len(data)) + data


def assert_rows_are(expected, rows):
    """Compare rows of a CSV with the Tagging of a file that has the same sound."""
    assert rows[:, 0] == pytest.approx(expected.starts)
    assert rows[:, 1] == pytest.approx(expected.ends)
    assert rows[:, 2:] == pytest.approx(expected.scores, abs=1e-4)


def test_a_minute_of_raw_sound_is_tagged_while_it_comes_in(listen, tagger):
    samples = make_noise(60)
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
    assert_rows_are(expected, read_csv('stream.csv'))
    entries = [json.loads(line) for line in open('stream.jsonl')]
    assert [entry['windows'][0]['start'] for entry in entries] == pytest.approx(expected.starts)


@pytest.mark.parametrize('size', [None, 0, 2 ** 32 - 1])
@pytest.mark.parametrize('rate, channels', [(16000, 1), (44100, 2)])
def test_wav_is_read_whatever_its_header_says_about_its_length(hear, tagger, size, rate, channels):
    data = as_pcm(make_noise(1.5, rate, channels))
    header = wav_header(len(data) if size is None else size, rate, channels)
    after = chunk(b'LIST', bytes(4000)) if size is None else b''  # is no sound
    assert hear(header + data + after, '--csv', 'stream.csv', '--hop_seconds', '0.25') is None
    soundfile.write('file.wav', np.frombuffer(data, '<i2').reshape(-1, channels), rate)
    [expected] = tag_here(tagger, 'file.wav', hop_seconds=0.25)
    assert_rows_are(expected, read_csv('stream.csv'))


def test_floats_and_24_bits_of_unknown_length_are_read(hear, tagger):
    floats = make_noise(0.5).astype('<f4')
    whole = np.round(make_noise(0.5) * 2 ** 31).astype('<i4')
    whole24 = whole.view(np.uint8).reshape(-1, 4)[:, 1:].tobytes()
    for kind, width, data, samples in ((3, 4, floats.tobytes(), floats), (1, 3, whole24, whole)):
        assert hear(wav_header(0, RATE, 1, kind, width) + data, '--csv', 'stream.csv') is None
        [expected] = tag_here(tagger, samples[:, 0], rate=RATE)
        assert read_csv('stream.csv')[:, 2:] == pytest.approx(expected.scores, abs=1e-4)


def test_a_redirected_file_is_read_as_well(hear, tagger):
    soundfile.write('a.flac', make_noise(1), RATE)
    assert hear(open('a.flac', 'rb'), '--csv', 'stream.csv') is None
    [expected] = tag_here(tagger, 'a.flac')
    assert read_csv('stream.csv')[:, 2:] == pytest.approx(expected.scores, abs=1e-4)


@pytest.mark.skipif(os.name == 'nt', reason='there is no SIGINT for one process')
def test_ctrl_c_ends_with_what_was_heard(listen):
    process = listen('--raw_rate', str(RATE), '--csv', 'a.csv', '--json', 'a.json',
                     '--embeddings', 'a.npz')
    process.stdin.write(as_pcm(make_noise(1)))
    lines = [process.stdout.readline() for _ in range(3)]
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0 and all(lines)
    with open('a.json') as file:
        assert [entry['path'] for entry in json.load(file)] == ['-'] * 3
    assert len(read_csv('a.csv')) == 3 and np.load('a.npz')['embeddings'].shape == (3, 192)
    left = sorted(name for name in os.listdir() if name.startswith('a.'))
    assert left == ['a.csv', 'a.json', 'a.npz']


@pytest.mark.parametrize('data, words, reason', [
    (b'', [], 'standard input is no WAV file'),
    (b'', ['--raw_rate', '16000'], 'standard input holds no samples'),
    (b'ID3 not a WAV file' * 100, [], 'give --raw_rate'),
    (wav_header(0, 16000, 1), [], 'standard input holds no samples'),
    (wav_header(0, 16, 1) + bytes(99), [], 'sample rate is 16 Hz'),
])
def test_what_is_no_sound_ends_with_a_sentence(hear, data, words, reason):
    with open('a.csv', 'w') as file:
        file.write('of an earlier sound')
    assert reason in hear(data, *words, '--csv', 'a.csv')
    with open('a.csv') as file:
        assert file.read() == 'of an earlier sound'


def test_other_formats_are_refused_and_not_read_in_part(hear):
    for name in ('a.mp3', 'a.ogg', 'a.rf64'):
        soundfile.write(name, make_noise(1), RATE)
        with open(name, 'rb') as file:
            assert 'convert it to a plain WAV file' in hear(file.read())


def test_a_window_of_broken_samples_is_an_error_and_the_rest_is_tagged(hear):
    samples = make_noise(4).astype('<f4')
    samples[8000] = np.nan  # also in the past of the windows that begin in the second after it
    said = hear(wav_header(0, RATE, 1, 3, 4) + samples.tobytes(), '--csv', 'a.csv')
    assert '6 of 13 windows could' in said
    assert read_csv('a.csv')[:, 0] == pytest.approx([0, *(0.32 * np.arange(7, 13))])


def test_of_a_stream_only_the_first_window_is_taken_on_request(hear):
    data = wav_header(0, RATE, 1) + as_pcm(make_noise(2))
    assert hear(data, '--window', 'first', '--csv', 'a.csv') is None
    assert len(read_csv('a.csv')) == 1


@pytest.mark.parametrize('words, reason', [
    (['a.wav'], 'give no files beside it'), (['--plot', 'a.png'], '--plot does not go with'),
    (['--batch_size', '4'], '--batch_size does not go with')])
def test_what_does_not_go_with_standard_input_is_refused(capsys, words, reason):
    with pytest.raises(SystemExit):
        inference.main(['-', *words, '--checkpoint', 'model.pth', '--device', 'cpu'])
    assert reason in capsys.readouterr().err


def test_a_stream_is_heard_at_the_rate_of_the_checkpoint(hear):
    save_model('high.pth', sample_rate=44100)
    samples = make_noise(1.0, 48000)
    soundfile.write('noise.wav', samples, 48000, 'PCM_16')
    other = ['--checkpoint', 'high.pth']
    assert hear(as_pcm(samples), '--raw_rate', '48000', '--csv', 'stream.csv', *other) is None
    [tagging] = tag_here(load_tagger('high.pth', 'cpu', 'off'), 'noise.wav')
    scores = read_csv('stream.csv')[:, 2:]
    assert np.allclose(scores, tagging.scores[:len(scores)], atol=1e-3) and len(scores) >= 3
