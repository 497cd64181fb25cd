"""Draw curves over the epochs, confusion matrices, spectrograms, tags over time and attention."""
import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage, imsave
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator
from torchaudio.compliance.kaldi import mel_scale_scalar

from audio.fbank import FRAME_SHIFT_MS, LOWEST_HERTZ, SAMPLE_RATE
from models.atomic import atomic_write
from utilities.fonts import drawable_names, font_families, missing_characters
from utilities.formatting import clock

if TYPE_CHECKING:
    from models import ModelConfig

# Okabe and Ito's palette: told apart by the colour-blind too.
BLUE, ORANGE, GREEN = '#0072B2', '#D55E00', '#009E73'
PURPLE, SKY, AMBER, BLACK = '#CC79A7', '#56B4E9', '#E69F00', '#000000'
# Colour, marker and line of several experiments.
CURVE_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, AMBER, BLACK)
CURVE_STYLES = tuple({'color': colour, 'marker': marker, 'linestyle': line}
                     for line in ('-', '--', ':', '-.')
                     for colour, marker in zip(CURVE_COLOURS, 'os^DvPX'))
LEGEND_WIDTH = 110  # characters
LOWEST_TICK_KHZ = 0.25  # on a mel axis; each of the others is twice the one before
DB_PER_LOG_POWER = 10 / np.log(10)  # the fbank is the natural logarithm of a power
DYNAMIC_RANGE_DB = 70  # below the loudest; what is softer has one colour
TAG_ROWS = 10  # classes that are drawn at most
MIN_TAG_SCORE = 0.01  # what a class must reach to be drawn; the strongest is always drawn
CELLS_WITH_NUMBERS = 12  # with more windows, their scores do not fit in as text
# Seconds from tick to tick.
TIME_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)
MAX_TIME_TICKS = 13

Line = tuple[str, str | None, str]  # name of a column, legend, colour


def plain(text: str) -> str:
    """Return a text that matplotlib shows as it is, with ? for characters that no font has."""
    return plain_texts([text])[0]


def plain_texts(texts: Sequence[str]) -> list[str]:
    """Return what `plain` does for each text; fonts are searched once."""
    lost = dict.fromkeys(map(ord, missing_characters(''.join(texts))), '?')
    # Two dollar signs would make a formula.
    return [text.translate(lost).replace('$', r'\$') for text in texts]


def readable_names(names: Sequence[str]) -> list[str]:
    """Return names of classes as texts for matplotlib, with spaces for underscores."""
    return plain_texts([name.replace('_', ' ') for name in names])


def fonts_of(*texts: str) -> dict[str, Any]:
    """Return the argument that lets matplotlib draw texts in fonts that have their characters."""
    return {'family': list(font_families(''.join(texts)))}


def plot_curves(columns: Mapping[str, np.ndarray], metric: str, title: str) -> Figure:
    """Draw loss, main metric and learning rate over the epochs.

    Args:
        columns: name -> (epochs,), with train_loss, valid_loss, <metric>, cum_<metric> and lr.
        metric: the main metric.
        title: title of the figure.
    """
    figure = Figure(figsize=(11, 3.4), layout='constrained')
    epochs = np.arange(1, len(columns['lr']) + 1)
    panels: list[tuple[str, list[Line]]] = [
        ('loss', [('train_loss', 'training', BLUE),
                  ('valid_loss', 'validation', ORANGE)]),
        ('accuracy' if metric == 'acc' else metric,
         [(metric, 'single epoch', BLUE),
          (f'cum_{metric}', 'ensemble of the epochs so far', GREEN)]),
        ('learning rate', [('lr', None, BLUE)])]
    for axes, (label, lines) in zip(figure.subplots(1, 3), panels):
        for name, legend, colour in lines:
            axes.plot(epochs, columns[name], color=colour, label=legend, marker='o', markersize=3)
        _style_curves(axes, label)
        if len(lines) > 1:
            axes.legend(frameon=False, loc='best')
    axes.ticklabel_format(axis='y', style='sci', scilimits=(0, 0))
    figure.suptitle(plain(title), **fonts_of(title))
    return figure


def _style_curves(axes: Axes, label: str) -> None:
    """Label the axes of curves over the epochs, and leave out what only takes space."""
    axes.set(xlabel='epoch', ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    axes.spines[['top', 'right']].set_visible(False)


def plot_comparison(panels: Mapping[str, Mapping[str, np.ndarray]], names: Sequence[str]
                    ) -> Figure:
    """Draw curves of several experiments over the epochs, with one legend.

    Args:
        panels: what a panel shows -> name of an experiment -> (epochs,).
        names: names of all experiments, at most as many as CURVE_STYLES.
    """
    columns = max(1, min(3, LEGEND_WIDTH // (8 + max(map(len, names)))))
    legend_rows = math.ceil(len(names) / columns)
    rows = math.ceil(len(panels) / 2)
    figure = Figure(figsize=(11, 3.3 * rows + 0.23 * legend_rows), layout='constrained')
    grid = figure.subplots(rows, 2, squeeze=False).flatten()
    styles = dict(zip(names, CURVE_STYLES))
    lines = {}
    for axes, (title, curves) in zip(grid, panels.items()):
        for name, values in curves.items():
            epochs = np.arange(1, len(values) + 1)
            [lines[name]] = axes.plot(epochs, values, markersize=4, **styles[name])
        _style_curves(axes, title)
        if title == 'learning rate':
            axes.ticklabel_format(axis='y', style='sci', scilimits=(0, 0))
    for axes in grid[len(panels):]:
        axes.remove()

    labels = [textwrap.fill(plain(name), LEGEND_WIDTH) for name in names]
    figure.legend([lines[name] for name in names], labels, loc='outside upper center',
                  ncols=columns, frameon=False, prop=fonts_of(*names))
    return figure


def png_of(figure: Figure) -> bytes:
    """Return a figure as PNG."""
    file = io.BytesIO()
    figure.savefig(file, format='png', dpi=120)
    return file.getvalue()


def write_figure(path: Path, figure: Figure) -> None:
    """Write a figure as .png."""
    with atomic_write(path) as partial:
        partial.write_bytes(png_of(figure))


def plot_confusion(matrix: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """Draw a confusion matrix (classes, classes) of counts, coloured by share of the row.

    A row is a true class.
    """
    size = max(5, 0.45 * len(names) + 2)
    figure = Figure(figsize=(size + 1, size), layout='constrained')
    axes = figure.subplots()
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(share, cmap='Blues', vmin=0, vmax=1)
    for truth, predicted in zip(*np.nonzero(matrix)):
        axes.text(predicted, truth, matrix[truth, predicted], ha='center', va='center', fontsize=7,
                  color='white' if share[truth, predicted] > 0.5 else 'black')
    readable, fonts = readable_names(names), fonts_of(*names)
    axes.set_xticks(range(len(names)), readable, rotation=45, ha='right', rotation_mode='anchor',
                    **fonts)
    axes.set_yticks(range(len(names)), readable, **fonts)
    axes.set(xlabel='predicted class', ylabel='true class')
    axes.set_title(plain(title), **fonts_of(title))
    figure.colorbar(image, ax=axes, shrink=0.8, label='share of the true class')
    return figure


def plot_tags(spectrogram: np.ndarray, seconds: float, starts: np.ndarray, ends: np.ndarray,
              scores: np.ndarray, names: Sequence[str], title: str,
              sample_rate: int = SAMPLE_RATE) -> Figure:
    """Draw a recording's log mel spectrogram, and below it the scores of its strongest classes.

    The classes are those with the highest scores in any window. If windows overlap, a score is
    drawn up to the next window.

    Args:
        spectrogram: (frames, bins), natural logarithm of the power, from 0 to `seconds`; NaN stays
            blank.
        seconds: how far the time axis goes.
        starts, ends: of the windows, in seconds (windows,).
        scores: from 0 to 1, (windows, classes).
        names: names of all classes.
        title: title of the figure.
        sample_rate: rate of the sound that the spectrogram shows, in Hz.
    """
    strongest = strongest_classes(scores)
    height = 0.27 * len(strongest)
    figure = Figure(figsize=(11, 3.6 + height), layout='constrained')
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2.3, 0.4 + height])
    image = show_spectrogram(upper, spectrogram, seconds, sample_rate=sample_rate)
    upper.set_xlabel('')
    figure.colorbar(image, ax=upper, label='level (dB)', pad=0.01)
    drawable = drawable_names(tuple(names))
    _draw_scores(figure, lower, starts, ends, scores[:, strongest],
                 [drawable[k] for k in strongest])
    _set_time_axis(lower, seconds)
    upper.set_title(plain(title), **fonts_of(title))
    return figure


def strongest_classes(scores: np.ndarray) -> np.ndarray:
    """Return the classes with the highest scores in any window, the strongest first.

    scores: (windows, classes).
    """
    highest = scores.max(axis=0)
    strongest = np.argsort(-highest, kind='stable')[:TAG_ROWS]
    audible = int(np.sum(highest[strongest] >= MIN_TAG_SCORE))
    return strongest[:max(1, audible)]


def _set_time_axis(axes: Axes, seconds: float) -> None:
    """Label the time axis in seconds, or as m:ss from a minute on."""
    axes.xaxis.set_major_locator(MultipleLocator(time_step(seconds)))
    if seconds >= 60:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: clock(value)))
    unit = 's' if seconds < 60 else 'm:ss' if seconds < 3600 else 'h:mm:ss'
    axes.set(xlim=(0, seconds), xlabel=f'time ({unit})')


def time_step(seconds: float) -> float:
    """Return the distance of the ticks on a time axis, given its length; both in seconds."""
    return next((step for step in TIME_STEPS if seconds / step < MAX_TIME_TICKS),
                seconds / MAX_TIME_TICKS)


def mel_range(sample_rate: int) -> tuple[float, float]:
    """Return the mel positions at which the bins of an fbank begin and end."""
    return mel_scale_scalar(LOWEST_HERTZ), mel_scale_scalar(sample_rate / 2)


def ticks_khz(sample_rate: int) -> list[float]:
    """Return the ticks of a mel axis up to half the sample rate (Hz), in kHz."""
    octaves = math.floor(math.log2(sample_rate / 2000 / LOWEST_TICK_KHZ))
    return [LOWEST_TICK_KHZ * 2 ** octave for octave in range(octaves + 1)]


def show_spectrogram(axes: Axes, spectrogram: np.ndarray, seconds: float, cmap: str = 'magma',
                     sample_rate: int = SAMPLE_RATE) -> AxesImage:
    """Draw a log mel spectrogram (frames, bins) in dB below its loudest value.

    Frequencies are at their mel positions, up to half the sample rate (Hz) of the sound. Returns
    the image, for a colour bar.
    """
    low, high = mel_range(sample_rate)
    ticks = ticks_khz(sample_rate)
    axes.set_yticks([mel_scale_scalar(1000 * khz) for khz in ticks],
                    [f'{khz:g}' for khz in ticks])
    axes.set(xlabel='time (s)', ylabel='frequency (kHz)')
    return axes.imshow(levels(spectrogram).T, origin='lower', aspect='auto', cmap=cmap,
                       vmin=-DYNAMIC_RANGE_DB, vmax=0, extent=(0, seconds, low, high),
                       interpolation='nearest')


def levels(spectrogram: np.ndarray) -> np.ndarray:
    """Return a log mel spectrogram in dB below its loudest point."""
    return (spectrogram - np.nanmax(spectrogram)) * DB_PER_LOG_POWER


def spectrogram_png(spectrogram: np.ndarray) -> bytes:
    """Return a PNG of a log mel spectrogram (frames, bins), one pixel each, without axes.

    What is NaN is transparent.
    """
    file = io.BytesIO()
    imsave(file, levels(spectrogram).T, vmin=-DYNAMIC_RANGE_DB, vmax=0, cmap='magma',
           origin='lower', format='png')
    return file.getvalue()


def frequency_ticks(sample_rate: int = SAMPLE_RATE) -> list[tuple[float, float]]:
    """Return the ticks of a mel axis: (kHz, height as a share of the axis)."""
    low, high = mel_range(sample_rate)
    return [(khz, (mel_scale_scalar(1000 * khz) - low) / (high - low))
            for khz in ticks_khz(sample_rate)]


def show_attention(axes: Axes, attention: np.ndarray, config: 'ModelConfig',
                   sample_rate: int = SAMPLE_RATE) -> None:
    """Lay attention over the spectrogram that show_spectrogram has drawn.

    The brighter, the more attention. It ends where the last patch does.

    Args:
        axes: those of the spectrogram.
        attention: one number per patch, (f, t).
        config: settings of the ASTModel.
        sample_rate: rate of the sound, in Hz.
    """
    low, high = mel_range(sample_rate)
    f, t = attention.shape
    patch_bins, patch_frames = config.backbone.patch_size
    bins = (f - 1) * config.fstride + patch_bins
    frames = (t - 1) * config.tstride + patch_frames
    top = low + (high - low) * bins / config.input_fdim
    axes.imshow(attention, cmap='inferno', alpha=0.6, origin='lower', aspect='auto',
                interpolation='bilinear', vmin=0,
                extent=(0, frames * FRAME_SHIFT_MS / 1000, low, top))
    axes.set(xlim=(0, config.input_tdim * FRAME_SHIFT_MS / 1000), ylim=(low, high))


def _draw_scores(figure: Figure, axes: Axes, starts: np.ndarray, ends: np.ndarray,
                 scores: np.ndarray, names: Sequence[str]) -> None:
    """Draw a heat map of scores (windows, rows) over time, with numbers if they are few."""
    # If windows overlap, a score is drawn up to where the next window begins.
    stops = np.minimum(ends, np.append(starts[1:], np.inf))
    edges = np.unique(np.concatenate([starts, stops]))
    window = np.searchsorted(starts, edges[:-1], side='right') - 1
    is_heard = edges[:-1] < stops[window]  # a gap between windows is blank
    cells = np.where(is_heard[:, None], scores[window], np.nan)
    image = axes.pcolormesh(edges, np.arange(len(names) + 1), cells.T, cmap='Blues', vmin=0, vmax=1)
    if len(starts) <= CELLS_WITH_NUMBERS:
        for (i, row), score in np.ndenumerate(scores):
            axes.text((starts[i] + stops[i]) / 2, row + 0.5, f'{score:.2f}', ha='center',
                      va='center', fontsize=8, color='white' if score > 0.5 else 'black',
                      clip_on=True)
    axes.set_yticks(np.arange(len(names)) + 0.5, readable_names(names), **fonts_of(*names))
    axes.tick_params(axis='y', length=0)
    axes.set_ylim(len(names), 0)
    figure.colorbar(image, ax=axes, label='score', pad=0.01)
