"""The page to listen to a recording: what it holds, and what it does in a browser."""
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
from browser import DESKTOP, PHONE, wait_for_sound
from small_tagger import make_noise
from tagging.listening import MAX_CELLS, merge_windows, write_listening_page
from tagging.result import Tagging
from utilities.labels import Labels

NAMES = ('dog', 'rain', 'sea, waves')
LONG = 70  # seconds; more than a page holds, as WAV and as FLAC


@pytest.fixture(scope='module')
def long_sound(tmp_path_factory):
    """Write a long recording that browsers play; return its path."""
    path = tmp_path_factory.mktemp('long') / 'long.wav'
    soundfile.write(path, make_noise(LONG), 16000)
    return path


def make_tagging(path, seconds, hop=1.0, window=1.0, names=NAMES):
    """Return a Tagging with random scores, as if a recording was tagged."""
    rng = np.random.default_rng(0)
    starts = np.arange(0, seconds, hop)
    scores = rng.random((len(starts), len(names))).astype(np.float32)
    mids = tuple(f'/m/{k}' for k in range(len(names)))
    spectrogram = rng.normal(-6, 3, (round(min(1500, 100 * seconds)), 32)).astype(np.float32)
    return Tagging(str(path), seconds, starts, np.minimum(starts + window, seconds), scores,
                   Labels(mids, tuple(names)), spectrogram=spectrogram, planned=len(starts))


@pytest.fixture
def listen(folder):
    """Write the page of a recording that is not tagged for real; return its path."""
    def make(path, seconds, page='page.html', **options):
        write_listening_page(folder / page, make_tagging(path, seconds, **options), 2, 'model')
        return folder / page
    return make


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


# What a page holds.

def test_a_page_of_a_short_recording_holds_all_that_it_shows(infer, checkpoint, make_tone, folder):
    path = make_tone('a.wav', seconds=2)
    infer('a.wav', '--checkpoint', checkpoint, '--html', 'deep/er/a.html')
    assert os.listdir('deep/er') == ['a.html']
    read = Reader('deep/er/a.html')
    sources = [attributes[name] for _, attributes in read.tags for name in ('src', 'href')
               if name in attributes]
    assert len(sources) == 2 and all(source.startswith('data:') for source in sources)
    assert embedded('deep/er/a.html') == ('audio/wav', path.read_bytes())
    assert {'a.wav', 'mean score', *NAMES} <= set(read.texts)
    assert '7 windows of 0.32 s, tagged by model.pth.' in ' '.join(read.texts)


def test_several_recordings_have_a_page_each_in_a_folder(infer, checkpoint, make_tone):
    for name in ('a.wav', 'b.wav'):
        make_tone(name)
    infer('a.wav', 'b.wav', '--checkpoint', checkpoint, '--html', 'pages')
    assert sorted(os.listdir('pages')) == ['a.wav.html', 'b.wav.html']


def test_a_long_recording_is_linked(listen, long_sound, folder):
    page = listen(long_sound, LONG)
    assert page.stat().st_size < 2e6 and os.listdir(folder) == ['page.html']
    read = Reader(page)
    assert read.attribute('audio', 'src') == long_sound.as_uri()
    assert 'This page plays the file of the recording from where it is now.' in read.texts


def test_a_link_to_a_recording_below_the_page_goes_with_them(listen, long_sound, folder):
    (folder / 'in').mkdir()
    shutil.copy(long_sound, folder / 'in' / 'a: b#1.wav')
    page = listen('in/a: b#1.wav', LONG)
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
    page = listen('long.aiff', LONG, page='out.html')
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


# What it does in a browser.

def time_of(tab):
    return tab.evaluate('document.querySelector("audio").currentTime')


def line_of(tab):
    """Return where the line is, as a share of the width of the spectrogram."""
    return tab.evaluate('''() => {
        const line = document.getElementById('position').getBoundingClientRect();
        const picture = document.querySelector('img.over-time').getBoundingClientRect();
        return (line.left + line.width / 2 - picture.left) / picture.width }''')


def click(tab, selector, share, number=0):
    """Click in a picture, at a share of its width."""
    picture = tab.locator(selector).nth(number)
    box = picture.bounding_box()
    picture.click(position={'x': share * box['width'], 'y': box['height'] / 2})


@pytest.fixture
def tagged_page(infer, checkpoint, make_tone, folder):
    """Tag a recording of 20 s, and write its page."""
    make_tone('20 s.wav', seconds=20)
    infer('20 s.wav', '--checkpoint', checkpoint, '--hop_seconds', '0.5', '--html', 'page.html')
    return folder / 'page.html'


def test_a_click_moves_the_player_and_the_line_and_the_keyboard_works(tabs, tagged_page):
    tab = tabs.open(tagged_page)
    assert wait_for_sound(tab) == pytest.approx(20, abs=0.1)
    assert line_of(tab) == pytest.approx(0, abs=0.005)

    click(tab, 'img.over-time', 0.51)
    assert time_of(tab) == pytest.approx(10.2, abs=0.1)
    assert line_of(tab) == pytest.approx(0.51, abs=0.005)
    assert tab.locator('#now').inner_text().startswith('0:10.0–0:10.3')

    click(tab, 'svg.over-time', 0.25, number=1)
    assert time_of(tab) == pytest.approx(5, abs=0.1)
    assert line_of(tab) == pytest.approx(0.25, abs=0.005)

    tab.keyboard.press('Space')  # the click has given the player the focus
    tab.wait_for_function('document.querySelector("audio").currentTime > 5.4')
    tab.keyboard.press('Space')
    tab.wait_for_function('document.querySelector("audio").paused')
    assert line_of(tab) == pytest.approx(time_of(tab) / 20, abs=0.005)
    before = time_of(tab)
    tab.keyboard.press('ArrowRight')
    assert time_of(tab) > before
    assert not tabs.errors


# Plays for 60 frames; returns by how much the line was most wrong, as a share of the recording.
PLAY = '''async () => {
    const audio = document.querySelector('audio');
    await audio.play();
    let most = 0;
    for (let frame = 0; frame < 60; frame++) {
        await new Promise(requestAnimationFrame);
        const left = parseFloat(document.getElementById('position').style.left) / 100;
        most = Math.max(most, Math.abs(left - audio.currentTime / 20));
    }
    return most }'''


def test_playing_moves_the_line_in_every_frame_and_over_all_rows(tabs, tagged_page):
    tab = tabs.open(tagged_page)
    wait_for_sound(tab)
    assert tab.evaluate(PLAY) < 0.002 and line_of(tab) > 0.02
    line, last = (tab.locator(name).last.bounding_box() for name in ('#position', 'svg.over-time'))
    assert line['y'] < tab.locator('img.over-time').bounding_box()['y'] + 1
    assert line['y'] + line['height'] > last['y'] + last['height'] - 1
    assert not tabs.errors


def test_what_is_under_the_pointer_is_told_in_words(tabs, tagged_page):
    tab = tabs.open(tagged_page)
    tab.locator('svg.over-time').first.hover()
    assert re.match(r'0:(09\.5|10\.0)–0:\d\d\.\d  \w+', tab.locator('#now').inner_text())
    tab.locator('h1').hover()
    assert tab.locator('#now').inner_text().startswith('0:00.0–')


def test_the_table_leads_to_its_windows_by_keyboard_alone(tabs, tagged_page):
    tab = tabs.open(tagged_page)
    wait_for_sound(tab)
    tab.locator('summary').press('Enter')
    tab.locator('details button').nth(6).press('Enter')
    assert time_of(tab) == pytest.approx(3, abs=0.01)


@pytest.mark.parametrize('size', [DESKTOP, PHONE])
def test_rows_are_as_high_for_a_short_recording_as_for_a_long_one(tabs, listen, make_tone, size):
    make_tone('a.wav')
    heights = set()
    for seconds in (0.2, 12.3, 4000):
        tab = tabs.open(listen('a.wav', seconds), size)
        heights |= {row.bounding_box()['height'] for row in tab.locator('svg.over-time').all()}
        times = {label.bounding_box()['height'] for label in tab.locator('.times span:visible').all()}
        assert len(times) == 1 and max(times) < 20  # on one line
    assert len(heights) == 1 and max(heights) < 30


def test_the_page_fits_a_phone(tabs, listen, make_tone):
    name = 'a_very_long_name_of_a_recording_without_any_spaces_in_it_at_all_' * 3 + '.wav'
    names = ['a class of which the name goes on and on', 'x' * 80, 'dog']
    tab = tabs.open(listen(make_tone(name, seconds=3), 3, names=names), PHONE)
    tab.locator('summary').click()
    assert tab.evaluate('document.documentElement.scrollWidth') == PHONE['width']
    labels = tab.locator('.times span:visible').all()
    edges = [(box['x'], box['x'] + box['width'])
             for box in (label.bounding_box() for label in labels)]
    assert all(end < start for (_, end), (start, _) in zip(edges, edges[1:]))


@pytest.mark.skipif(os.name == 'nt', reason='Windows has no such names')
@pytest.mark.parametrize('name', [
    b'a#b?c%41&amp;.wav', b'q\'u"o<te>.wav', '日本 ünï.wav'.encode(), b'\xff\xfe.wav',
    b'javascript:a.wav', b'back\\slash.wav'])
def test_linked_recordings_of_any_name_play(tabs, listen, long_sound, folder, name):
    path = folder / os.fsdecode(name)
    os.link(long_sound, path)
    (folder / 'pages').mkdir()
    for page in ('page.html', 'pages/page.html'):  # above the recording, and beside its folder
        tab = tabs.open(listen(path, LONG, page=page))
        assert wait_for_sound(tab) == LONG
    assert not tabs.errors


def test_embedded_and_converted_sounds_play(tabs, listen, long_sound):
    samples, rate = soundfile.read(long_sound)
    soundfile.write('long.aiff', samples, rate)
    soundfile.write('short.aiff', samples[:5 * rate], rate)
    soundfile.write('short.ogg', samples[:5 * rate], rate)
    for name, seconds in (('long.aiff', LONG), ('short.aiff', 5), ('short.ogg', 5)):
        tab = tabs.open(listen(name, seconds, page=f'{name}.html'))
        assert wait_for_sound(tab) == pytest.approx(seconds, abs=0.1)
    assert not tabs.errors


def test_names_of_classes_are_no_html(tabs, listen, make_tone):
    attack = '<img src=x onerror=alert(1)>"\'&<script>alert(2)</script></script>'
    tab = tabs.open(listen(make_tone('a.wav'), 1, names=[attack, 'dog']))
    tab.locator('svg.over-time').first.hover()
    assert attack in tab.locator('#now').inner_text()
    assert attack in tab.locator('.label').all_inner_texts()
    assert not tabs.errors


def test_a_sound_that_has_gone_is_said(tabs, listen, long_sound, folder):
    os.link(long_sound, 'linked.wav')
    page = listen('linked.wav', LONG)
    os.remove('linked.wav')
    tab = tabs.open(page)
    tab.get_by_text('This browser cannot play the sound').wait_for()


def test_the_page_of_thousands_of_windows_can_be_used(tabs, listen, long_sound):
    tab = tabs.open(listen(long_sound, LONG, hop=0.035, window=0.35))
    wait_for_sound(tab)
    click(tab, 'svg.over-time', 0.75, number=2)
    assert time_of(tab) == pytest.approx(0.75 * LONG, abs=0.2)
    assert not tabs.errors
