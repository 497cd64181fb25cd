"""The page to listen to a recording in a real browser: clicks, keyboard, sound, a phone."""
import os
import re

import pytest
import soundfile

from browser import DESKTOP, PHONE, wait_for_sound
from small_tagger import LONG_SECONDS


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
        labels = tab.locator('.times span:visible').all()
        assert max(label.bounding_box()['height'] for label in labels) < 20  # on one line
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
        tab = tabs.open(listen(path, LONG_SECONDS, page=page))
        assert wait_for_sound(tab) == LONG_SECONDS
    assert not tabs.errors


def test_embedded_and_converted_sounds_play(tabs, listen, long_sound):
    samples, rate = soundfile.read(long_sound)
    soundfile.write('long.aiff', samples, rate)
    soundfile.write('short.aiff', samples[:5 * rate], rate)
    soundfile.write('short.ogg', samples[:5 * rate], rate)
    for name, seconds in (('long.aiff', LONG_SECONDS), ('short.aiff', 5), ('short.ogg', 5)):
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
    page = listen('linked.wav', LONG_SECONDS)
    os.remove('linked.wav')
    tab = tabs.open(page)
    tab.get_by_text('This browser cannot play the sound').wait_for()


def test_the_page_of_thousands_of_windows_can_be_used(tabs, listen, long_sound):
    tab = tabs.open(listen(long_sound, LONG_SECONDS, hop=0.035, window=0.35))
    wait_for_sound(tab)
    click(tab, 'svg.over-time', 0.75, number=2)
    assert time_of(tab) == pytest.approx(0.75 * LONG_SECONDS, abs=0.2)
    assert not tabs.errors
