"""Draw the picture of the model in README.md: python colab/draw_model.py writes colab/ast.png."""
import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'src'))
from audio.fbank import SAMPLE_RATE, fbank
from models.ast_models import PATCH_SIZE, patch_grid
from models.published_data import AUDIOSET_INPUT

HERE = Path(__file__).resolve().parent

# The published AudioSet model.
FRAMES, MEL_BINS, STRIDE = AUDIOSET_INPUT['input_tdim'], AUDIOSET_INPUT['input_fdim'], 10
DIM, BLOCKS, CLASSES = 768, 12, 527
SCORES = {'Speech': 0.93, 'Bird': 0.64, 'Animal': 0.27, 'Music': 0.05}  # an example
ROWS, COLUMNS = patch_grid(STRIDE, STRIDE, MEL_BINS, FRAMES)
PICTURE = HERE / 'ast.png'

# Places are inches from the upper left corner.
WIDTH, HEIGHT, DPI = 10, 6.45, 168
LEFT, RIGHT, PATCHES_LEFT = 0.75, 9.45, 3.0  # of the rows, and of what belongs to the patches
TOKENS = {1.06: '[CLS]', 1.9: '[DIST]'}  # places and names
SHOWN = (0, 1, 2, 3, None, ROWS * COLUMNS - 2, ROWS * COLUMNS - 1)  # patches; None is an ellipsis
STEP = 0.96  # from a patch to the next
CORNER = STRIDE + PATCH_SIZE  # cells that are magnified
CORNER_TOP, ZOOM = 1.85, 0.04  # where they are, and inches a cell
INK, GREY = '#24292f', '#6e7781'
FONTS = ['Helvetica', 'Arial', 'Liberation Sans', 'DejaVu Sans']  # the first that is there
# Okabe and Ito's palette
BLUE, ORANGE, GREEN, SKY, YELLOW = '#0072B2', '#D55E00', '#009E73', '#56B4E9', '#F0E442'
PALE = {BLUE: '#e6f1f8', ORANGE: '#fcebe1', GREEN: '#e1f4ee', GREY: '#f3f4f6'}


def synthesise() -> torch.Tensor:
    """Return 10.24 s of something like speech, with birds and a hiss behind it, (samples,)."""
    rng = np.random.default_rng(3)
    # Frames are 10 ms apart, but the window of the last one is 25 ms long.
    t = np.arange(SAMPLE_RATE * (FRAMES + 2) // 100) / SAMPLE_RATE
    hiss = rng.standard_normal(len(t))
    return torch.from_numpy(speech(rng, t) + 0.1 * birdsong(rng, t) + 0.0025 * hiss).float()


def speech(rng: np.random.Generator, t: np.ndarray) -> np.ndarray:
    """Return syllables at the times t (seconds): harmonics that are loud near three formants."""

    def wander(low, high, rate):  # between random values, `rate` of them a second
        return np.interp(t * rate, np.arange(100), rng.uniform(low, high, 100))

    pitch = wander(140, 260, 1.5)  # Hz, as the formants
    formants = wander(300, 900, 3), wander(1000, 2200, 3), wander(2500, 3200, 3)
    loudness = np.clip(wander(-0.7, 1.2, 5), 0, 1)
    sound = np.zeros_like(t)
    for k in range(1, 25):
        near = sum(np.exp(-((k * pitch - formant) / 250) ** 2) for formant in formants)
        sound += (near + 0.15) / k * sine(k * pitch)
    return loudness * sound


def birdsong(rng: np.random.Generator, t: np.ndarray) -> np.ndarray:
    """Return short whistles that rise or fall, at the times t (seconds)."""
    song = np.zeros_like(t)
    for onset in rng.uniform(0.2, 9.9, 30):
        done = np.clip((t - onset) / 0.14, 0, 1)  # 0 before the whistle, 1 after it
        pitch = rng.uniform(4500, 6500) * 2 ** (rng.uniform(-0.3, 0.3) * done)
        song += np.sin(np.pi * done) * sine(pitch)
    return song


def sine(pitch: np.ndarray) -> np.ndarray:
    """Return a sine whose pitch (Hz) may change from sample to sample."""
    return np.sin(2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE)


def log_mel_spectrogram(waveform: torch.Tensor) -> np.ndarray:
    """Return the fbank that the model reads, (mel bins, frames), the lowest bin first."""
    return fbank(waveform, MEL_BINS)[:FRAMES].T.numpy()


class Canvas:
    """A page on which shapes are placed in inches, y downwards."""

    def __init__(self):
        self.figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI)
        self.axes: Axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, WIDTH), ylim=(HEIGHT, 0))
        self.axes.axis('off')

    def text(self, x, y, text, size=10.0, colour=INK, align='center', **style):
        """Write a text whose middle, left or right end is at (x, y)."""
        self.axes.text(x, y, text, size=size, color=colour, ha=align, va='center', **style)

    def box(self, x, y, width, height, text='', colour=BLUE, size=10.0):
        """Draw a box with round corners and a text in it."""
        self.axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle='round,pad=0,'
                            'rounding_size=0.05', facecolor=PALE[colour], edgecolor=colour))
        self.text(x + width / 2, y + height / 2, text, size)

    def outline(self, x, y, size, colour, width=1.2):
        """Draw the outline of a square patch."""
        self.axes.add_patch(Rectangle((x, y), size, size, fill=False, edgecolor=colour,
                                      linewidth=width))

    def arrow(self, x, y, to_x, to_y, style='-|>', colour=GREY):
        """Draw an arrow, or for '<->' a measure."""
        self.axes.annotate('', (to_x, to_y), (x, y), arrowprops={
            'arrowstyle': style, 'color': colour, 'lw': 1, 'shrinkA': 0, 'shrinkB': 0,
            'mutation_scale': 9})

    def picture(self, x, y, scale, part, whole):
        """Show a part of the spectrogram (bins, frames), `scale` inches a cell, in its colours."""
        height, width = part.shape
        self.axes.imshow(part, cmap='magma', origin='lower', aspect='auto', interpolation='nearest',
                         vmin=whole.max() - 13, vmax=whole.max(),
                         extent=(x, x + width * scale, y + height * scale, y))


def draw_spectrogram(page: Canvas, cells: np.ndarray) -> None:
    """Draw the input with its first patches and its last one."""
    scale = (RIGHT - LEFT) / FRAMES
    top, bottom = 0.36, 0.36 + MEL_BINS * scale
    page.picture(LEFT, top, scale, cells, cells)
    page.text(LEFT, top - 0.17, 'log mel spectrogram', align='left', weight='bold')
    page.text(RIGHT, top - 0.17, f'{FRAMES:,} frames of 10 ms', 9, GREY, 'right')
    page.text(LEFT - 0.16, (top + bottom) / 2, f'{MEL_BINS} mel bins', 9, GREY, rotation=90)
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1), (ROWS - 1, COLUMNS - 1)):
        page.outline(LEFT + column * STRIDE * scale, bottom - (row * STRIDE + PATCH_SIZE) * scale,
                     PATCH_SIZE * scale, 'white', 0.8)
    for x, to_x in ((0, 0), (CORNER * scale, CORNER * ZOOM)):  # of the corner that is magnified
        page.axes.plot([LEFT + x, LEFT + to_x], [bottom, CORNER_TOP], color=GREY, linewidth=0.8,
                       linestyle=(0, (3, 2)))


def draw_corner(page: Canvas, cells: np.ndarray) -> None:
    """Draw the lower left corner of the spectrogram, large, to show how patches overlap."""
    bottom = CORNER_TOP + CORNER * ZOOM
    page.picture(LEFT, CORNER_TOP, ZOOM, cells[:CORNER, :CORNER], cells)
    for row, column, colour in ((1, 1, 'white'), (1, 0, 'white'), (0, 1, SKY), (0, 0, YELLOW)):
        page.outline(LEFT + column * STRIDE * ZOOM, bottom - (row * STRIDE + PATCH_SIZE) * ZOOM,
                     PATCH_SIZE * ZOOM, colour, 1.8)
    right = LEFT + CORNER * ZOOM
    for x, length, name in ((0.1, STRIDE, 'stride'), (0.28, PATCH_SIZE, 'patch')):
        page.arrow(right + x, bottom, right + x, bottom - length * ZOOM, '<->')
        page.text(right + 0.36, bottom - (length - 5) * ZOOM, f'{name} {length}', 9, GREY, 'left')


def draw_patches(page: Canvas, cells: np.ndarray) -> None:
    """Draw patches, and what becomes of each; before them, the two tokens that are no patches."""
    size = 0.5
    page.text(PATCHES_LEFT, CORNER_TOP + 0.02,
              f'{ROWS} × {COLUMNS} = {ROWS * COLUMNS:,} overlapping patches '
              f'of {PATCH_SIZE} × {PATCH_SIZE}', align='left', weight='bold')
    page.box(PATCHES_LEFT, 2.83, RIGHT - PATCHES_LEFT, 0.3,
             f'linear projection of each patch to {DIM} numbers')
    for place, number in enumerate(SHOWN):
        x = PATCHES_LEFT + 0.35 + place * STEP
        if number is None:
            for y in (2.29, 3.52, 5.3):
                page.text(x, y, '· · ·', 11, GREY)
            continue
        row, column = divmod(number, COLUMNS)
        patch = cells[row * STRIDE:, column * STRIDE:][:PATCH_SIZE, :PATCH_SIZE]
        page.picture(x - size / 2, 2.04, size / PATCH_SIZE, patch, cells)
        page.arrow(x, 2.58, x, 2.81)
        page.arrow(x, 3.13, x, 3.35)
        draw_token(page, x, f'{number + 1:,}', BLUE)
        if number < 2:  # as in the magnified corner
            page.outline(x - size / 2, 2.04, size, (YELLOW, SKY)[number], 1.8)


def draw_token(page: Canvas, x: float, name: str, colour: str) -> None:
    """Draw a token on its way through the transformer."""
    page.box(x - 0.31, 3.37, 0.62, 0.3, name, colour, 9)
    page.arrow(x, 3.67, x, 3.84)
    page.arrow(x, 4.12, x, 4.29)
    page.arrow(x, 4.99, x, 5.17)
    page.box(x - 0.31, 5.19, 0.62, 0.22, colour=ORANGE if colour == ORANGE else GREY)


def draw_transformer(page: Canvas) -> None:
    """Draw the two learned tokens, the positional embedding and the transformer."""
    for x, name in TOKENS.items():
        draw_token(page, x, name, ORANGE)
    middle, width = (LEFT + RIGHT) / 2, RIGHT - LEFT
    page.box(LEFT, 3.86, width, 0.26, '+ a learned positional embedding for each token', GREY, 9)
    page.box(LEFT, 4.31, width, 0.68)
    page.text(middle, 4.52, f'{BLOCKS} transformer blocks of DeiT, then LayerNorm', weight='bold')
    page.text(middle, 4.78, f'a block: LayerNorm, self-attention among all {ROWS * COLUMNS + 2:,} '
              f'tokens, LayerNorm, MLP; residual connections', 9, GREY)


def draw_head(page: Canvas) -> None:
    """Draw how the two tokens become scores."""
    first, second = TOKENS
    middle = 6.02
    for x in TOKENS:
        page.arrow(x, 5.41, x, middle - 0.17)
    page.box(first - 0.31, middle - 0.15, second - first + 0.62, 0.3, 'mean', ORANGE)
    page.arrow(second + 0.31, middle, PATCHES_LEFT - 0.02, middle)
    page.box(PATCHES_LEFT, middle - 0.15, 1.7, 0.3, 'LayerNorm, Linear', GREEN)
    page.arrow(PATCHES_LEFT + 1.7, middle, 5.4, middle)
    page.text(5.5, middle, f'{CLASSES} label scores', align='left', weight='bold')
    for place, (name, score) in enumerate(SCORES.items()):
        y = middle + 0.2 * (place - (len(SCORES) - 1) / 2)
        page.text(7.75, y, name, 9, align='right')
        page.axes.add_patch(Rectangle((7.85, y - 0.06), 1.6 * score, 0.12, facecolor=GREEN))


def main() -> None:
    """Draw the picture. It has few colours, so that the file in the repository is small."""
    matplotlib.rcParams['font.sans-serif'] = FONTS
    cells = log_mel_spectrogram(synthesise())
    page = Canvas()
    draw_spectrogram(page, cells)
    draw_corner(page, cells)
    draw_patches(page, cells)
    draw_transformer(page)
    draw_head(page)
    page.figure.savefig(PICTURE, facecolor='white')
    picture = Image.open(PICTURE).convert('RGB')
    picture.quantize(64, dither=Image.Dither.NONE).save(PICTURE, optimize=True)
    print(PICTURE)


if __name__ == '__main__':
    main()
