"""A page to listen to a recording: its spectrogram, its tags over time and a player."""
import math
import os
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np

from audio.formats import AudioError
from models.atomic import atomic_write
from reports.html import data_address, page, table
from reports.players import address, flac, media_type, played_rate, write_flac
from tagging.result import Tagging
from tagging.text import duration, heard, needs_tenths
from utilities.formatting import clock, now
from utilities.plots import (
    MIN_TAG_SCORE,
    frequency_ticks,
    spectrogram_png,
    strongest_classes,
    time_step,
)
from utilities.texts import write_text

MAX_EMBEDDED_BYTES = 2 ** 21  # of a file that browsers play
MAX_EMBEDDED_SECONDS = 60  # of a recording that is converted
MAX_CELLS = 1000  # in a row of the chart; if there are more windows, neighbours share a cell


class PageSound(NamedTuple):
    """The sound of a page: its address, or None if there is none; and a sentence about it."""
    source: str | None
    sentence: str


def write_listening_page(path: Path, tagging: Tagging, top_k: int, models: str) -> None:
    """Write the page of a recording.

    The page holds the sound of a short recording, and links the file of a long one. If browsers
    do not play that file, the sound is converted to <name of the page>.flac beside the page.

    Args:
        path: of the page.
        tagging: of the recording, with its spectrogram.
        top_k: how many tags of the whole recording, and of a window, to show.
        models: the names of the models.
    """
    merged = merge_windows(tagging)
    name = Path(tagging.path).name
    sections = ['<h2>Tags</h2>', tags_table(tagging, top_k),
                '<h2>Over time</h2>', player(name, prepare_sound(tagging, path)),
                chart(merged), timeline_table(merged, top_k, windows_a_cell(tagging)), script()]
    html = page(name, lead(tagging, models), sections, now(), 'inference.py',
                _beside('listening.css'))
    write_text(path, html)


def lead(tagging: Tagging, models: str) -> str:
    """Return the first lines of the page: which recording, which windows, which models."""
    count = len(tagging.starts)
    windows = 'One window' if count == 1 else f'{count} windows'
    text = (f'{tagging.path}, {duration(tagging)}. {windows} of '
            f'{tagging.ends[0] - tagging.starts[0]:.3g} s, tagged by {models}.')
    if tagging.incomplete_from is not None:
        text += f' What follows {tagging.incomplete_from:.2f} s is missing or damaged.'
    return text


def windows_a_cell(tagging: Tagging) -> int:
    """Return how many windows share a cell of the chart."""
    return math.ceil(len(tagging.starts) / MAX_CELLS)


def merge_windows(tagging: Tagging) -> Tagging:
    """Return a Tagging of at most MAX_CELLS windows.

    If there are more, neighbours become one, with the highest score of each class.
    """
    together = windows_a_cell(tagging)
    firsts = np.arange(0, len(tagging.starts), together)
    lasts = np.append(firsts[1:], len(tagging.starts)) - 1
    return Tagging(tagging.path, tagging.seconds, tagging.starts[firsts], tagging.ends[lasts],
                   np.maximum.reduceat(tagging.scores, firsts, axis=0), tagging.labels,
                   spectrogram=tagging.spectrogram, planned=tagging.planned,
                   sample_rate=tagging.sample_rate)


def tags_table(tagging: Tagging, top_k: int) -> str:
    """Return the best classes of the whole recording as an HTML table."""
    names, highest = tagging.labels.names, tagging.max
    best = tagging.top(tagging.mean, top_k)
    if len(tagging.starts) == 1:
        return table(['class', 'score'], [(names[i], float(score)) for i, score in best])
    return table(['class', 'mean score', 'highest score'],
                 [(names[i], float(mean), float(highest[i])) for i, mean in best])


def prepare_sound(tagging: Tagging, page_path: Path) -> PageSound:
    """Return the sound of a recording for its page; convert it if browsers would not play it."""
    path, its_type, rate = tagging.path, media_type(tagging.path), tagging.sample_rate
    as_heard = f'You hear what the model hears: mono, at {played_rate(rate) / 1000:g} kHz.'
    try:
        if its_type and os.path.getsize(path) <= MAX_EMBEDDED_BYTES:
            return PageSound(data_address(Path(path).read_bytes(), its_type), '')
        if tagging.seconds <= MAX_EMBEDDED_SECONDS:
            return PageSound(data_address(flac(path, sample_rate=rate), 'audio/flac'), as_heard)
        if its_type:
            return PageSound(address(path, page_path.parent),
                             'This page plays the file of the recording from where it is now.')
        beside = page_path.with_name(f'{page_path.name}.flac')
        with atomic_write(beside) as partial:
            write_flac(path, partial, sample_rate=rate)
        return PageSound(address(beside, page_path.parent),
                         f'{as_heard} It is in {beside.name}, beside this page, since browsers do '
                         f'not play the format of the recording.')
    except AudioError as error:
        return PageSound(None, f'There is nothing to play: {error}.')


def player(name: str, sound: PageSound) -> str:
    """Return the player as HTML."""
    source = f' src="{escape(sound.source)}"' if sound.source else ''
    return (f'<div class="player"><audio controls preload="metadata" aria-label="{escape(name)}"'
            f'{source}></audio>\n<p id="now"></p></div>\n'
            f'<p class="soft" id="sound">{escape(sound.sentence)}</p>\n'
            '<p class="soft help">Click in a picture to go there. In the player, the space bar '
            'plays and stops, and the arrow keys move.</p>\n')


def chart(tagging: Tagging) -> str:
    """Return the spectrogram, and below it the scores of the strongest classes, as HTML."""
    assert tagging.spectrogram is not None  # it was asked for
    end, rate = float(tagging.ends[-1]), tagging.sample_rate
    picture = data_address(spectrogram_png(tagging.spectrogram), 'image/png')
    rows = ''.join(class_row(tagging, k) for k in strongest_classes(tagging.scores))
    return (f'<div class="chart">\n<div class="axis frequencies">{frequency_labels(rate)}</div>\n'
            f'<img class="over-time" alt="Spectrogram over {clock(end, tenths=True)}, frequencies '
            f'up to {rate / 2000:g} kHz" src="{picture}">\n'
            f'<div class="axis times">{time_labels(end)}</div>\n{rows}'
            f'<div class="track"><div id="position" data-seconds="{end:.8g}"></div></div></div>\n')


def frequency_labels(sample_rate: int) -> str:
    """Return the labels of the spectrogram's frequency axis as HTML."""
    ticks = frequency_ticks(sample_rate)
    return ''.join(f'<span style="bottom:{100 * height:.1f}%">{khz:g}'
                   f'{" kHz" if khz == ticks[-1][0] else ""}</span>' for khz, height in ticks)


def time_labels(end: float) -> str:
    """Return the labels of the time axis as HTML."""
    step = time_step(end)
    unit = ' s' if end < 60 else ''
    return ''.join(
        f'<span style="left:{100 * time / end:.2f}%">'
        f'{f"{time:g}" if end < 60 else clock(time)}{unit}</span>'
        for time in np.arange(0, end, step).round(6))


def class_row(tagging: Tagging, k: int) -> str:
    """Return the name of a class and its scores over time as HTML."""
    name, scores = escape(tagging.labels.names[k]), tagging.scores[:, k]
    best = int(scores.argmax())
    label = f'{name}: highest score {scores[best]:.2f} at {clock(tagging.starts[best], True)}'
    return (f'<div class="label" aria-hidden="true">{name}</div>'
            f'<svg class="over-time" role="img" aria-label="{label}" '
            f'viewBox="0 0 {tagging.ends[-1]:.8g} 1" preserveAspectRatio="none">'
            f'{"".join(cells(tagging, scores))}</svg>\n')


def cells(tagging: Tagging, scores: np.ndarray) -> Iterator[str]:
    """Yield a rectangle for each window, the darker the higher its score.

    If windows overlap, a rectangle ends where the next window begins.
    """
    ends = np.minimum(tagging.ends, np.append(tagging.starts[1:], np.inf))
    for start, end, score in zip(tagging.starts, ends, scores):
        if score >= MIN_TAG_SCORE:
            shape = f'M{start:.8g} 0H{end:.8g}V1H{start:.8g}z'
            yield f'<path d="{shape}" opacity="{score:.2f}"/>'


def timeline_table(tagging: Tagging, top_k: int, together: int) -> str:
    """Return what was heard in each window as an HTML table; the script reads it, too.

    Args:
        tagging: of the windows, after merge_windows.
        top_k: how many classes to show at most.
        together: how many windows share a row.
    """
    tenths = needs_tenths(tagging)
    rows = ''.join(
        f'<tr><td><button data-start="{start:.8g}">{clock(start, tenths)}–{clock(end, tenths)}'
        f'</button></td><td>{escape(heard(tagging, scores, top_k))}</td></tr>\n'
        for start, end, scores in zip(tagging.starts, tagging.ends, tagging.scores))
    note = f' ({together} windows a row, with their highest scores)' if together > 1 else ''
    return (f'<details><summary>As a table{note}</summary>\n<table>\n'
            f'<tr><th>time</th><th>classes</th></tr>\n{rows}</table></details>\n')


def script() -> str:
    """Return the script of the page as HTML."""
    return f'<script>\n{_beside("listening.js")}</script>\n'


def _beside(name):
    """Return the text of a file in this folder."""
    return Path(__file__).with_name(name).read_text(encoding='utf-8')
