"""Recordings of every kind: the right sound, length and verdict, the same in every tool."""
import csv
import gc
import io
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import soundfile
import torch

import formats
import inference
import own_dataset
import tagging
from audio import reading as audio
from audio.augmentation import Augmentation
from audio.fbank import SAMPLE_RATE, count_frames
from audio.info import inspect_audio, read_duration
from audio.reading import AudioError, WindowReader, load_waveform
from checks.recordings import Excerpt, check_recordings, count_recordings, examine
from dataloader import AudiosetDataset
from formats import KINDS, SOUND
from models import ASTModel, save_checkpoint
from tagging.windows import window_starts
from training.norm_stats import FbankSums
from utilities.parallel import one_thread

BINS = 32
MAX_DELAY = 2400  # samples that a codec may put before the sound, or swallow


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with a file of every kind."""
    folder = tmp_path_factory.mktemp('kinds')
    for name in KINDS:
        formats.make(name, folder)
    return folder


@pytest.fixture(params=KINDS)
def kind(request, folder):
    """The name of a kind, and a file of it."""
    path = folder / f'a {request.param}'
    if not path.exists():
        pytest.skip(f'this PyAV cannot write {request.param}')
    return request.param, path


@pytest.fixture(scope='module')
def tagger(tmp_path_factory):
    """A small model whose window is a second and a half."""
    path = tmp_path_factory.mktemp('model') / 'model.pth'
    torch.manual_seed(0)
    model = ASTModel(2, 16, 16, BINS, 150, imagenet_pretrain=False, model_size='tiny224')
    save_checkpoint(model, path, labels={'mids': ['/m/0', '/m/1'], 'names': ['a', 'b']}, mean=-6.0,
                    std=3.0, loss='BCE')
    return tagging.load_tagger(str(path), device='cpu', amp='off')


def aligned(waveform):
    """Return a waveform and SOUND without the delay of one against the other, and the delay."""
    size = len(waveform) + len(SOUND)
    spectra = np.fft.rfft(waveform, size), np.fft.rfft(SOUND, size)
    correlation = np.fft.irfft(spectra[0] * spectra[1].conj(), size)
    delay = int(correlation.argmax())
    delay = delay - size if delay > size // 2 else delay
    waveform, sound = waveform[max(0, delay):], SOUND[max(0, -delay):]
    length = min(len(waveform), len(sound))
    return waveform[:length], sound[:length], delay


def test_the_sound_is_the_right_one_for_its_whole_length(kind):
    name, path = kind
    waveform = load_waveform(path).numpy()
    heard, sound, delay = aligned(waveform)
    assert np.corrcoef(heard, sound)[0, 1] > 0.99
    least, most = formats.length_bounds(name)
    if KINDS[name].exact:
        assert delay == 0 and np.abs(heard - sound).max() <= 1e-4
        assert least - 1e-9 <= len(waveform) / SAMPLE_RATE <= most
    else:
        assert abs(delay) <= MAX_DELAY and least - 0.1 <= len(waveform) / SAMPLE_RATE <= most + 0.15


def test_every_tool_agrees_on_the_length_and_the_verdict(kind, tagger, make_labels, make_datafile,
                                                         tmp_path):
    name, path = kind
    found = inspect_audio(path)
    assert (found.incomplete_from is None) is KINDS[name].whole
    excerpt = Excerpt(str(path))
    [finding] = examine([excerpt])
    findings = {excerpt: finding}
    problems = check_recordings(findings, 16000)
    facts = count_recordings(findings.values(), audio_length=1024, sample_rate=16000)
    problems = [problem for problem, items in problems.items() if items]
    assert problems == ([] if KINDS[name].whole else ['incomplete'])
    assert facts['seconds']['max'] == pytest.approx(found.seconds)
    assert len(load_waveform(path)) / SAMPLE_RATE == pytest.approx(found.seconds, abs=1e-4)
    with zipfile.ZipFile(tmp_path / '1.zip', 'w') as shard:
        shard.write(path, path.name)
    packed = tmp_path / '1.zip' / path.name
    assert inspect_audio(packed) == found
    assert torch.equal(load_waveform(packed), load_waveform(path))
    expected = found.seconds, found.incomplete_from
    assert own_dataset.read_length(path) == read_duration(packed, trust_header=False) == expected
    if name != 'damaged.flac':  # of which the header and the last sample tell nothing
        assert read_duration(path) == expected
    datafile = make_datafile([(path, '/m/0'), (packed, '/m/0')])
    dataset = AudiosetDataset(datafile, make_conf(), make_labels(1))
    frames = count_frames(len(load_waveform(path)))
    lengths = [count_frames(len(dataset.make_waveform(i, Augmentation()))) for i in (0, 1)]
    assert lengths == [frames, frames]
    assert [FbankSums(dataset)[i][0] for i in (0, 1)] == [frames * BINS] * 2
    for result in tagging.tag(tagger, [path, packed], num_workers=0):
        assert result.error is None
        assert result.incomplete_from == pytest.approx(found.incomplete_from, abs=0.02)
        assert result.seconds == pytest.approx(found.seconds, abs=0.02)
        assert result.ends[-1] == result.seconds
        assert list(result.starts) == list(window_starts(result.seconds, 1.5, 1.5))


def make_conf():
    """The audio_conf of a dataset whose window holds any of the files."""
    return {'num_mel_bins': BINS, 'target_length': 1024, 'mode': 'evaluation'}


def test_a_window_anywhere_is_a_piece_of_the_whole(kind):
    _, path = kind
    whole = load_waveform(path)
    tolerance = 0 if inspect_audio(path).sample_rate == SAMPLE_RATE else 1e-3  # of resampling
    with WindowReader() as reader:
        for start in (0.0, 0.5, 1.03, 1.7):
            window = load_waveform(path, start=start, seconds=0.6)[:8000]
            expected = whole[round(start * SAMPLE_RATE):][:len(window)]
            assert len(window) == min(8000, len(whole) - round(start * SAMPLE_RATE))
            assert torch.allclose(window, expected, atol=tolerance)
            assert torch.equal(reader.load(path, start=start, seconds=0.6)[0][:8000], window)


@pytest.mark.parametrize('format', (
    'WAV AIFF AU CAF W64 FLAC RF64 WAVEX NIST SVX VOC IRCAM PAF PVF AVR MAT4 MAT5 SDS HTK XI WVE '
    'MPC2K').split())
def test_if_seeking_is_exact_it_finds_the_very_samples(format):
    if format not in soundfile.available_formats():
        pytest.skip(f'this libsndfile knows no {format}')
    for subtype in soundfile.available_subtypes(format):
        file = io.BytesIO()
        try:
            soundfile.write(file, SOUND, 16000, format=format, subtype=subtype)
        except soundfile.LibsndfileError:
            continue  # it reads, but does not write it
        file.seek(0)
        with audio.open_audio(file) as opened:
            whole = np.concatenate(list(opened.blocks()))
            for sample in (1, 20011, 3, 60000) if opened.seek_is_exact else ():
                opened.seek(sample)
                assert np.array_equal(opened.read(500), whole[sample:sample + 500]), subtype


def test_a_recording_without_seeking_is_decoded_once_for_all_its_windows(folder, monkeypatch):
    opened, read = [], audio.open_audio
    monkeypatch.setattr(audio, 'open_audio', lambda *words: opened.append(words) or read(*words))
    with WindowReader() as reader:
        for start in np.arange(0, 4, 0.1):
            reader.load(folder / 'a m4a', start=start, seconds=1.5)
        assert len(opened) == 1
        reader.load(folder / 'a ogg', start=3.0, seconds=0.5)
        reader.load(folder / 'a ogg', start=0.0, seconds=1.5)  # back again
        assert len(opened) == 3


@pytest.fixture
def infer(tagger, tmp_path, monkeypatch, capsys):
    """Run the command line with the small tagger; returns the text, the JSON and the CSV's rows."""
    monkeypatch.setattr('tagging.command.load_tagger', lambda *_, **__: tagger)

    def run(*files):
        words = (f'--checkpoint model.pth --num_workers 0 --device cpu --hop_seconds 0.75 '
                 f'--json {tmp_path}/out.json --csv {tmp_path}/out.csv --plot {tmp_path}/pictures')
        inference.main([*map(str, files), *words.split()])
        with open(tmp_path / 'out.csv', newline='') as file:
            rows = list(csv.DictReader(file))
        return capsys.readouterr().out, json.loads((tmp_path / 'out.json').read_text()), rows
    return run


@pytest.mark.parametrize('name', ['cut.flac', 'cut.mp3', 'cut.m4a', 'damaged.flac'])
def test_what_can_be_read_is_tagged_and_marked_as_incomplete(infer, folder, name):
    text, [entry, other], rows = infer(folder / f'a {name}', folder / 'a wav')
    end = inspect_audio(folder / f'a {name}').incomplete_from
    assert f'incomplete: what follows {end:.2f} s is missing or damaged' in text
    assert text.count('incomplete') == 1
    assert entry['incomplete_from'] == entry['seconds'] == pytest.approx(end, abs=0.02)
    assert other['incomplete_from'] is None and other['seconds'] == 4
    marks = [row['incomplete_from'] for row in rows if name in row['path']]
    assert marks and set(map(float, marks)) == {entry['incomplete_from']}
    assert [row['incomplete_from'] for row in rows if name not in row['path']] == [''] * 5
    assert entry['windows'][-1]['end'] == entry['seconds'] and len(entry['windows']) == len(marks)


def test_recordings_cut_off_are_named_while_a_dataset_is_prepared(folder, tmp_path, capsys, caplog):
    names = 'cut.flac', 'cut.mp3', 'm4a', 'mkv', 'wav', 'size 0.wav'
    lines = [f'{folder}/a {name},{i % 2}' for i, name in enumerate(names)]
    (tmp_path / 'list.csv').write_text('\n'.join(['path,labels', *lines]))
    own_dataset.prepare(tmp_path / 'list.csv', tmp_path / 'prep')
    assert '2 audio files end before their header says, or are damaged' in caplog.text
    assert 'the first: ' in caplog.text and 'a cut.flac' in caplog.text
    assert '6 clips of 2 classes, 2.30 to 4.03 s long' in capsys.readouterr().out


def test_a_video_without_sound_is_a_sentence(tmp_path):
    import av
    with av.open(tmp_path / 'silent.mp4', 'w') as container:
        pictures = container.add_stream('mpeg4', rate=5, width=32, height=32)
        for frame in [av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8)), None]:
            container.mux(pictures.encode(frame))
    with pytest.raises(AudioError, match='cannot read .*silent.mp4: .*there is no sound in it'):
        load_waveform(tmp_path / 'silent.mp4')


def test_a_playlist_leads_to_no_other_file(tmp_path, folder):
    lines = ['#EXTM3U', '#EXT-X-TARGETDURATION:10', '#EXTINF:10,', (folder / 'a ts').as_uri()]
    for name, text in (('a.m3u8', '\n'.join([*lines, '#EXT-X-ENDLIST'])),
                       ('a.wav', f"ffconcat version 1.0\nfile '{folder / 'a m4a'}'\n")):
        (tmp_path / name).write_text(text)
        with pytest.raises(AudioError, match='neither libsndfile'):
            load_waveform(tmp_path / name)


def test_sound_that_changes_its_channels_is_read_on(folder):
    mono, stereo = (formats.encode('aac', 'adts', layout=layout) for layout in ('mono', 'stereo'))
    found = inspect_audio(io.BytesIO(mono + stereo))
    assert found.channels == 1
    assert found.seconds == pytest.approx(2 * inspect_audio(folder / 'a aac').seconds, abs=0.1)
    heard, _, _ = aligned(load_waveform(io.BytesIO(mono + stereo)).numpy()[60000:])
    assert np.abs(heard).max() > 0.2


def test_without_pyav_other_formats_are_refused_with_what_to_do(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, 'av', None)
    monkeypatch.delitem(sys.modules, 'audio.ffmpeg', raising=False)  # which has imported it
    assert len(load_waveform(folder / 'a flac')) == len(load_waveform(folder / 'a wav')) == 64000
    for name in ('m4a', 'mp3', 'size 0.wav'):
        with pytest.raises(AudioError, match=f'a {name}: libsndfile cannot .*pip install av$'):
            load_waveform(folder / f'a {name}')


def test_a_rate_beyond_the_limits_is_refused_in_every_container(tmp_path):
    for rate in (50, 800_000):
        (tmp_path / 'a.mov').write_bytes(formats.encode('pcm_s16le', 'mov', rate=rate))
        with pytest.raises(AudioError, match=f'its sample rate is {rate:,} Hz'):
            load_waveform(tmp_path / 'a.mov')


@pytest.mark.parametrize('workers', [0, 2])
def test_sound_of_16_bit_size_in_floats_is_warned_of_once_a_run(tagger, tmp_path, capfd,
                                                                monkeypatch, workers):
    monkeypatch.setattr(audio, '_warned_of_loudness', audio.mmap.mmap(-1, 1))
    handler = logging.StreamHandler(os.fdopen(os.dup(2), 'w'))  # workers write to the same file
    logging.getLogger().addHandler(handler)  # conftest.py takes it away again
    paths = [tmp_path / f'{i}.wav' for i in range(8)]
    for path in paths:
        soundfile.write(path, 32768 * SOUND, SAMPLE_RATE, 'FLOAT')
    with one_thread():
        assert len(list(tagging.tag(tagger, paths, num_workers=workers, batch_size=2))) == 8
    handler.close()
    assert capfd.readouterr().err.count('times full scale, as if 16-bit numbers were') == 1


@pytest.mark.skipif(sys.platform != 'linux', reason='workers are forked on Linux alone')
def test_a_forked_worker_may_collect_what_its_parent_has_decoded(folder):
    gc.disable()
    try:
        for name in ('m4a', 'size 0.wav', 'flac'):
            load_waveform(folder / f'a {name}')
        worker = multiprocessing.get_context('fork').Process(target=gc.collect)
        worker.start()
        worker.join(20)
        worker.kill()
        assert worker.exitcode == 0
    finally:
        gc.enable()


def test_a_dash_is_a_file_and_not_standard_input(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AudioError, match='the audio file - does not exist'):
        load_waveform('-')


def test_importing_does_not_need_pyav(root):
    code = """if True:
        import sys
        sys.modules['av'] = None
        sys.path.insert(0, 'src')
        import audio.reading
        import inference"""
    subprocess.run([sys.executable, '-c', code], check=True, cwd=root)
