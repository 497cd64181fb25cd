"""The players of a report: what they play, and that a browser plays it."""
import io
import json
import os
import shutil
import zipfile
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import soundfile

import inference
import report
import run
from audio.reading import load_waveform
from browser import PHONE, wait_for_sound
from reports.experiments import read_settings
from reports.players import Clip, address, flac, media_type, write_flac
from reports.predictions import read_evaluated
from small_experiment import TRAINING, one_label, write_experiment
from small_tagger import make_noise

SECONDS = 3  # of the recordings
HEARD = 0.32  # seconds of the model's input


class Players(HTMLParser):
    """Collects the addresses of the players of a page, by what their labels say."""

    def __init__(self, page):
        super().__init__()
        self.sources = {}
        self.feed(Path(page).read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attributes):
        if tag == 'audio':
            found = dict(attributes)
            assert found['preload'] == 'none' and 'controls' in found
            self.sources[Path(found['aria-label']).name] = found['src']


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Work in a folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def reported(folder):
    """Write the report of an experiment in which every clip is a mistake.

    Takes entries of a datafile without labels, and options of report.py. Returns the page and the
    addresses of its players.
    """
    def make(entries, *options):
        count = len(entries)
        confidence = np.linspace(0.9, 0.6, count)[:, None]  # the mistakes keep their order
        predictions = confidence * one_label([1] * count)
        write_experiment(folder / 'exp', one_label([0] * count), predictions, entries=entries)
        report.main(['--exp_dir', 'exp', *options])
        return folder / 'exp' / 'report.html', Players('exp/report.html').sources
    return make


def write_noise(path, rate=16000, **options):
    """Write a recording; return its entry of a datafile."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, make_noise(SECONDS, rate), rate, **options)
    return {'wav': str(path)}


NAMES = ['a.wav', 'b#1?c%41&amp;.flac', 'it\'s "ü" <日本>.wav', 'c:d.ogg']


def test_players_lead_to_the_files_and_a_browser_plays_what_the_model_heard(
        reported, folder, tabs):
    page, sources = reported([write_noise(folder / 'in' / name) for name in NAMES]
                             + [{**write_noise('in/later.wav'), 'start': 1.5, 'seconds': 0.2}])
    assert list(sources) == [*(f'{name} from 0 s' for name in NAMES), 'later.wav from 1.5 s']
    tab = tabs.open(page)
    assert tab.evaluate('document.querySelectorAll("audio").length') == len(NAMES) + 1
    assert not [url for url in tabs.asked if 'in/' in url]  # nothing is loaded at once
    for number, source in enumerate(sources.values()):
        assert source.startswith('file:///') and Path(unquote(source[7:].split('#')[0])).exists()
        tab.evaluate('n => document.querySelectorAll("audio")[n].load()', number)
        tab.evaluate('n => document.querySelectorAll("audio")[n].play()', number)
        assert wait_for_sound(tab, number) == pytest.approx(SECONDS, abs=0.1)
        tab.wait_for_function('n => document.querySelectorAll("audio")[n].paused', arg=number)
        end = tab.evaluate('n => document.querySelectorAll("audio")[n].currentTime', number)
        start, seconds = (1.5, 0.2) if 'later' in source else (0, HEARD)
        assert end == pytest.approx(start + seconds, abs=0.3)
        assert source.endswith(f'#t={start:g},{start + seconds:g}')
    assert not tabs.errors


def test_embedded_players_hold_what_the_model_heard_and_play(reported, folder, tabs):
    write_noise('in/a.wav')
    with zipfile.ZipFile('shard.zip', 'w') as shard:
        shard.write('in/a.wav', 'a.wav')
    page, sources = reported([write_noise('in/a.aiff', 44100), {'wav': 'shard.zip/a.wav'},
                              {**write_noise('in/later.wav'), 'start': 1.5, 'seconds': 0.2},
                              {**write_noise('in/rest.wav'), 'start': 2}], '--embed_audio')
    assert all(source.startswith('data:audio/flac;base64,') for source in sources.values())
    shutil.rmtree('in')
    os.remove('shard.zip')
    tab = tabs.open(page)
    for number, name in enumerate(sources):
        tab.evaluate('n => document.querySelectorAll("audio")[n].load()', number)
        tab.evaluate('n => document.querySelectorAll("audio")[n].play()', number)
        assert wait_for_sound(tab, number) == (0.2 if 'later' in name else HEARD)
    assert len(sources) == 4 and not tabs.errors


def test_a_clip_of_several_windows_is_played_to_its_end(folder):
    entries = [write_noise('in/a.wav'), {**write_noise('in/b.wav'), 'start': 1.5, 'seconds': 0.7}]
    labels = one_label([0, 1])
    for windows, ends in ((1, [HEARD, 1.5 + HEARD]), (3, [np.inf, 2.2])):
        write_experiment(folder / f'exp{windows}', labels, labels, entries=entries,
                         eval_windows=windows)
        settings = read_settings(folder / f'exp{windows}')
        clips = read_evaluated(folder / f'exp{windows}', settings, 'data_val', 'predictions_2',
                               'target').clips
        assert [clip.start + clip.seconds for clip in clips] == pytest.approx(ends)


def test_a_report_with_players_fits_a_phone(reported, tabs):
    page, _ = reported([write_noise(f'{"in/" * 20}a{i}.wav') for i in range(4)])
    tab = tabs.open(page, PHONE)
    assert tab.evaluate('document.documentElement.scrollWidth') == PHONE['width']


@pytest.mark.parametrize('option', [[], ['--embed_audio']])
def test_a_clip_that_cannot_be_played_is_shown_by_its_name_alone(reported, option):
    names = ['gone.wav', 'broken.wav', 'law.wav', 'good.wav']
    entries = [write_noise(name, subtype='ALAW' if name == 'law.wav' else None) for name in names]
    os.remove('gone.wav')
    Path('broken.wav').write_text('no sound')
    page, sources = reported(entries, *option)
    text = page.read_text()
    assert all(name in text for name in names) and 'Not known' not in text
    assert set(sources) == ({'law.wav', 'good.wav'} if option else {'good.wav'})


def test_a_link_to_a_file_below_the_page_is_relative(folder):
    assert address('exp/in/a b.wav', 'exp') == 'in/a%20b.wav'
    assert address('http:/x.wav', '.') == 'http%3A/x.wav'
    assert address('exp/a.wav', 'experiment') == (folder / 'exp' / 'a.wav').as_uri()
    if os.name == 'posix':
        assert address(os.fsdecode(b'\xff.wav'), '.') == '%FF.wav'


def test_browsers_play_what_is_said_to_be_played(folder, tabs):
    """Every file of which media_type gives a type loads in Chromium."""
    for rate in (4000, 8000, 192000):
        write_noise(f'{rate}.wav', rate)
    for name, subtype in (('u8', 'PCM_U8'), ('24', 'PCM_24'), ('float', 'FLOAT'),
                          ('double', 'DOUBLE'), ('law', 'ULAW'), ('adpcm', 'IMA_ADPCM')):
        write_noise(f'{name}.wav', subtype=subtype)
    for name in ('a.flac', 'a.ogg', 'a.mp3', 'a.aiff', 'a.au', 'a.caf'):
        write_noise(name)
    soundfile.write('eight.wav', np.tile(make_noise(1), 8), 16000)
    write_noise('opus.ogg', subtype='OPUS')
    types = {path.name: media_type(path) for path in sorted(folder.iterdir())}
    assert {name for name, its_type in types.items() if not its_type} == {
        '4000.wav', 'double.wav', 'law.wav', 'adpcm.wav', 'a.aiff', 'a.au', 'a.caf'}
    played = [name for name, its_type in types.items() if its_type]
    Path('page.html').write_text('<!DOCTYPE html><title>a</title>' + ''.join(
        f'<audio src="{address(name, ".")}"></audio>' for name in played))
    tab = tabs.open('page.html')
    for number, name in enumerate(played):
        assert wait_for_sound(tab, number) > 0, name


def test_flac_of_a_long_recording_is_written_piece_by_piece_and_without_seams(
        folder, monkeypatch):
    monkeypatch.setattr('reports.players.BLOCK_SECONDS', 2)
    for name in ('a.wav', 'a.ogg'):
        soundfile.write(name, make_noise(7.3, 44100), 44100)
        for start, seconds in ((0, np.inf), (0.7, np.inf), (0, 4), (1.3, 3.1), (6, 5)):
            samples, rate = soundfile.read(io.BytesIO(flac(name, start, seconds)))
            whole = load_waveform(name, start=start).numpy()
            expected = whole[:round(min(seconds, 10) * 16000)]
            assert rate == 16000 and np.allclose(samples, expected, atol=1e-4)


def test_flac_that_cannot_be_written_is_an_error_of_the_file(folder):
    write_noise('a.wav')
    with pytest.raises(OSError, match='libsndfile cannot write FLAC'):
        write_flac('a.wav', 'no/such/folder.flac')


def test_scores_of_cross_entropy_are_those_of_inference(folder, make_labels):
    make_labels(2)
    entries = [{**write_noise(f'{i}.wav', 8000 + 1000 * i), 'labels': f'/m/{i % 2}'}
               for i in range(6)]
    Path('data.json').write_text(json.dumps({'data': entries}))
    run.main([*TRAINING, '--loss', 'CE', '--metrics', 'acc', '--amp', 'off'])
    exp_dir = Path('exp')
    found = read_evaluated(exp_dir, read_settings(exp_dir), 'data_val', 'predictions_1', 'target')
    inference.main([*(entry['wav'] for entry in entries), '--checkpoint',
                    'exp/models/best_audio_model.pth', '--window', 'first', '--csv', 'scores.csv',
                    '--device', 'cpu', '--amp', 'off', '--num_workers', '0'])
    scores = np.loadtxt('scores.csv', delimiter=',', skiprows=1, usecols=(3, 4))
    assert np.allclose(scores.sum(axis=1), 1, atol=1e-5)
    assert np.allclose(found.scores, scores, atol=1e-4)
    assert found.clips[0] == Clip('0.wav', '0.wav', 0, HEARD)
