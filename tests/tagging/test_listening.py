"""The page to listen to a recording: what it holds, and where its sound is."""
import base64
import io
import os
import re
import shutil
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audio.reading import load_waveform
from small_tagger import LABELS, LONG_SECONDS, make_noise, make_tagging
from tagging.listening import MAX_CELLS, merge_windows


class Reader(HTMLParser):
    """Collects the tags of a page and its texts."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(Path(page).read_text(encoding='utf-8'))
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data.strip())

    def attribute(self, tag, name):
        """Return an attribute of the first such tag."""
        return next(attributes[name] for its_tag, attributes in self.tags if its_tag == tag)


def embedded(page):
    """Return the media type and the bytes of the sound that a page holds."""
    kind, data = re.match('data:(.*);base64,(.*)', Reader(page).attribute('audio', 'src')).groups()
    return kind, base64.b64decode(data)


def test_a_page_of_a_short_recording_holds_all_that_it_shows(infer, checkpoint, make_tone, folder):
    path = make_tone('a.wav', seconds=2)
    infer('a.wav', '--checkpoint', checkpoint, '--html', 'deep/er/a.html')
    assert os.listdir('deep/er') == ['a.html']
    read = Reader('deep/er/a.html')
    sources = [attributes[name] for _, attributes in read.tags for name in ('src', 'href')
               if name in attributes]
    assert len(sources) == 2 and all(source.startswith('data:') for source in sources)
    assert embedded('deep/er/a.html') == ('audio/wav', path.read_bytes())
    assert {'a.wav', 'mean score', *LABELS['names']} <= set(read.texts)
    assert '7 windows of 0.32 s, tagged by model.pth.' in ' '.join(read.texts)


def test_several_recordings_have_a_page_each_in_a_folder(infer, checkpoint, make_tone):
    for name in ('a.wav', 'b.wav'):
        make_tone(name)
    infer('a.wav', 'b.wav', '--checkpoint', checkpoint, '--html', 'pages')
    assert sorted(os.listdir('pages')) == ['a.wav.html', 'b.wav.html']


def test_a_long_recording_is_linked(listen, long_sound, folder):
    page = listen(long_sound, LONG_SECONDS)
    assert page.stat().st_size < 2e6 and os.listdir(folder) == ['page.html']
    read = Reader(page)
    assert read.attribute('audio', 'src') == long_sound.as_uri()
    assert 'This page plays the file of the recording from where it is now.' in read.texts


def test_a_link_to_a_recording_below_the_page_goes_with_them(listen, long_sound, folder):
    (folder / 'in').mkdir()
    shutil.copy(long_sound, folder / 'in' / 'a: b#1.wav')
    page = listen('in/a: b#1.wav', LONG_SECONDS)
    assert Reader(page).attribute('audio', 'src') == 'in/a%3A%20b%231.wav'


@pytest.mark.parametrize('name, options', [
    ('a.aiff', {}), ('a.wav', {'subtype': 'ALAW'}), ('a.au', {}), ('a.w64', {}),
    ('rate.wav', {'samplerate': 4000}), ('nine.wav', {'channels': 9})])
def test_a_short_recording_that_browsers_do_not_play_is_embedded_as_the_model_hears_it(
        listen, name, options):
    rate, channels = options.pop('samplerate', 44100), options.pop('channels', 2)
    soundfile.write(name, make_noise(2.5, rate, channels), rate, **options)
    page = listen(name, 2.5)
    kind, data = embedded(page)
    samples, rate = soundfile.read(io.BytesIO(data))
    assert (kind, rate) == ('audio/flac', 16000)
    assert np.allclose(samples, load_waveform(name).numpy(), atol=1e-4)
    assert 'You hear what the model hears: mono, at 16 kHz.' in Reader(page).texts


def test_a_recording_in_a_shard_is_embedded(listen, make_tone):
    with zipfile.ZipFile('shard.zip', 'w') as shard:
        shard.write(make_tone('a.wav'), 'in/b.wav')
    kind, data = embedded(listen('shard.zip/in/b.wav', 1))
    samples, _ = soundfile.read(io.BytesIO(data))
    assert kind == 'audio/flac'
    assert np.allclose(samples, load_waveform('a.wav').numpy(), atol=1e-4)


def test_a_long_recording_that_browsers_do_not_play_is_converted_beside_the_page(
        listen, long_sound, folder):
    samples, rate = soundfile.read(long_sound)
    soundfile.write('long.aiff', samples, rate)
    page = listen('long.aiff', LONG_SECONDS, page='out.html')
    assert sorted(os.listdir(folder)) == ['long.aiff', 'out.html', 'out.html.flac']
    converted, _ = soundfile.read('out.html.flac')
    assert np.allclose(converted, load_waveform('long.aiff').numpy(), atol=1e-4)
    read = Reader(page)
    assert read.attribute('audio', 'src') == 'out.html.flac'
    assert 'It is in out.html.flac, beside this page' in ' '.join(read.texts)


def test_a_recording_that_has_gone_meanwhile_leaves_a_page_that_says_so(listen):
    read = Reader(listen('gone.wav', 1))
    assert 'There is nothing to play: the audio file gone.wav does not exist.' in read.texts
    assert 'src' not in dict(next(attributes for tag, attributes in read.tags if tag == 'audio'))


def test_the_page_of_thousands_of_windows_stays_small_and_shows_every_peak(listen, long_sound):
    tagging = make_tagging(long_sound, 2000, window=10)
    merged = merge_windows(tagging)
    assert len(merged.starts) == MAX_CELLS and merged.ends[-1] == 2000
    assert np.array_equal(merged.scores, tagging.scores.reshape(MAX_CELLS, 2, 3).max(axis=1))
    page = listen(long_sound, 2000, window=10, names=[f'class {k}' for k in range(50)])
    assert page.stat().st_size < 2e6
    assert 'As a table (2 windows a row, with their highest scores)' in Reader(page).texts


def test_a_cell_ends_where_the_next_window_begins_and_gaps_stay_blank(listen, make_tone):
    def shapes(**windows):
        page = listen(make_tone('a.wav', seconds=3), 3, names=['dog'], **windows)
        return [attributes['d'] for tag, attributes in Reader(page).tags if tag == 'path']

    assert shapes(hop=1, window=2) == [f'M{k} 0H{k + 1}V1H{k}z' for k in range(3)]
    assert shapes(hop=1, window=0.5) == [f'M{k} 0H{k + 0.5:g}V1H{k}z' for k in range(3)]


def test_a_job_that_was_interrupted_writes_the_pages_that_are_missing(
        infer, checkpoint, make_tone, monkeypatch):
    for name in 'abc':
        make_tone(f'{name}.wav')
    line = ['a.wav', 'b.wav', 'c.wav', '--checkpoint', checkpoint]
    with monkeypatch.context() as patch:
        def stop(path, *_):
            if path.name == 'b.wav.html':
                raise KeyboardInterrupt
            path.touch()
        patch.setattr('tagging.listening.write_listening_page', stop)
        with pytest.raises(SystemExit, match='stopped'):
            infer(*line, '--html', 'pages')
    with pytest.raises(SystemExit, match='unfinished job with other --plot, --html'):
        infer(*line, '--plot', 'pages')
    infer(*line, '--html', 'pages')
    sizes = [os.path.getsize(f'pages/{name}.wav.html') for name in 'abc']
    assert sizes[0] == 0 and min(sizes[1:]) > 0


@pytest.mark.parametrize('words, reason', [
    (['-', '--html', 'a.html'], '--html does not go with standard input'),
    (['a.wav', 'a.wav', 'b.wav', '--html', 'a.html'], 'names one page, but there are 2 files'),
    (['a.wav', '--html', 'b.wav/a.html'], 'the folder b.wav cannot be made')])
def test_a_page_that_cannot_be_written_is_said_before_the_work(
        infer, checkpoint, make_tone, capsys, words, reason):
    for name in ('a.wav', 'b.wav'):
        make_tone(name)
    with pytest.raises(SystemExit) as stop:
        infer(*words, '--checkpoint', checkpoint)
    assert reason in f'{stop.value.code} {capsys.readouterr().err}'
