"""The sounds of the demo, synthesised: ten classes, in the layout of ESC-50.

make_demo_data.py is the program for it. Each class has a function that returns its sound
(samples,), which may have any level. Its arguments are a numpy Generator and t (samples,), the time
of each sample in seconds. Pitches are in Hz, rates per second.
"""
import csv
import io
import itertools
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np
import scipy.signal
import soundfile
from tqdm import tqdm

from esc50 import FOLDS, LABEL_FILE
from models.atomic import atomic_write
from utilities.errors import DataError
from utilities.labels import Labels, read_labels

SAMPLE_RATE = 44100  # Hz, as in ESC-50
SHORTEST, LONGEST = 1.0, 1.5  # seconds; those of ESC-50 have 5
LOUDEST_BACKGROUND, SOFTEST_BACKGROUND = -20, -40  # dB below the sound
LOUDEST_PEAK, SOFTEST_PEAK = -3, -15  # dB below full scale

Generator, Array = np.random.Generator, np.ndarray


def noise(rng: Generator, t: Array, low: float, high: float) -> Array:
    """Return noise between two frequencies (Hz). Its root mean square is 1."""
    band = scipy.signal.butter(2, (low, high), 'bandpass', fs=SAMPLE_RATE, output='sos')
    samples = scipy.signal.sosfilt(band, rng.standard_normal(len(t)))
    return samples / rms(samples)


def coloured_noise(rng: Generator, t: Array, slope: float) -> Array:
    """Return noise whose power is proportional to 1 / frequency ** slope.

    Slope 0 is white noise, 1 pink, 2 brown. Its root mean square is 1.
    """
    spectrum = np.fft.rfft(rng.standard_normal(len(t)))
    spectrum[1:] /= np.arange(1, len(spectrum)) ** (slope / 2)
    samples = np.fft.irfft(spectrum, len(t))
    return samples / rms(samples)


def rms(samples: Array) -> float:
    """Return the root mean square."""
    return np.sqrt(np.mean(samples ** 2))


def phase(t: Array, pitch: float | Array) -> Array:
    """Return the phase (radians) of an oscillation, given its pitch (Hz), which may vary."""
    return 2 * np.pi * np.cumsum(np.broadcast_to(pitch, t.shape)) / SAMPLE_RATE


def sine(t: Array, pitch: float | Array) -> Array:
    """Return a sine of a pitch (Hz), which may vary."""
    return np.sin(phase(t, pitch))


def harmonics(t: Array, pitch: float | Array, slope: float, highest: float = 8000) -> Array:
    """Return the sum of sines at the multiples of a pitch (Hz) up to the highest.

    The amplitude of the k-th sine is k ** -slope.
    """
    first = phase(t, pitch)
    count = int(highest / np.max(pitch))
    return sum(np.sin(k * first) * k ** -slope for k in range(1, count + 1))


def decay(t: Array, onset: float, seconds: float) -> Array:
    """Return an envelope that jumps to 1 at the onset and then falls to 1/e in `seconds`."""
    return np.where(t < onset, 0, np.exp(-np.maximum(t - onset, 0) / seconds))


def onsets(rng: Generator, t: Array, rate: float, jitter: float = 0.0) -> Array:
    """Return the times of regular events, each moved at random by up to `jitter` of a period."""
    beats = np.arange(rng.uniform(0, 0.5), t[-1] * rate)
    return (beats + rng.uniform(-jitter, jitter, len(beats))) / rate


def rain(rng: Generator, t: Array) -> Array:
    """Return a steady hiss and the crackle of drops at random times."""
    drops = rng.poisson(rng.uniform(50, 200) / SAMPLE_RATE, len(t)) * rng.exponential(size=len(t))
    crackle = scipy.signal.lfilter([1], [1, -0.97], drops * rng.standard_normal(len(t)))
    return noise(rng, t, rng.uniform(200, 800), 15000) + rng.uniform(2, 6) * crackle


def crickets(rng: Generator, t: Array) -> Array:
    """Return a very high, pure tone in chirps of a few quick pulses."""
    pulse_rate, pulses, chirp_rate = rng.uniform(25, 40), rng.integers(3, 6), rng.uniform(2.5, 4.5)
    since = (t + rng.uniform()) % (1 / chirp_rate)
    chirping = since < pulses / pulse_rate
    return chirping * np.sin(np.pi * pulse_rate * since) ** 2 * sine(t, rng.uniform(4500, 6500))


def chirping_birds(rng: Generator, t: Array) -> Array:
    """Return short whistles, each with another pitch that rises or falls."""
    voice = rng.uniform(1800, 3500)
    song = np.zeros_like(t)
    for onset in onsets(rng, t, rng.uniform(4, 8), jitter=0.4):
        done = np.clip((t - onset) / rng.uniform(0.06, 0.15), 0, 1)  # 0 before it, 1 after it
        start, octaves = voice * rng.uniform(0.8, 1.25), rng.uniform(-0.7, 0.7)
        song += np.sin(np.pi * done) * sine(t, start * 2 ** (octaves * done))
    return song


def door_wood_knock(rng: Generator, t: Array) -> Array:
    """Return quick dull thuds: a few low resonances of the door, which end at once."""
    resonances = rng.uniform(100, 900, size=5)
    thuds = np.zeros_like(t)
    for onset in onsets(rng, t, rng.uniform(4, 7), jitter=0.1):
        panel = sum(sine(t, pitch) for pitch in resonances) + noise(rng, t, 100, 1500)
        thuds += rng.uniform(0.5, 1) * decay(t, onset, rng.uniform(0.015, 0.03)) * panel
    return thuds


def clock_tick(rng: Generator, t: Array) -> Array:
    """Return bright clicks at equal distances, every second one a little lower: tick, tock."""
    pitches = rng.uniform(2500, 5000) * np.array([1, rng.uniform(0.6, 0.9)])
    ticks = np.zeros_like(t)
    for i, onset in enumerate(onsets(rng, t, rng.uniform(2.5, 5))):
        click = noise(rng, t, 1000, 12000) + sine(t, pitches[i % 2])
        ticks += decay(t, onset, rng.uniform(0.003, 0.006)) * click
    return ticks


def helicopter(rng: Generator, t: Array) -> Array:
    """Return low noise, interrupted by the blades of the rotor, and the whine of the turbine."""
    blades = sine(t, rng.uniform(9, 18)) * 0.5 + 0.5
    air = blades ** 3 * noise(rng, t, 40, rng.uniform(400, 1200))
    return air + 0.02 * harmonics(t, rng.uniform(1000, 2000), 1)


def siren(rng: Generator, t: Array) -> Array:
    """Return a tone whose pitch rises and falls without a break."""
    sweep = np.sin(2 * np.pi * (rng.uniform(0.7, 2.5) * t + rng.uniform()))
    return harmonics(t, rng.uniform(700, 1100) * 2 ** (rng.uniform(0.4, 0.7) * sweep), 1.5)


def car_horn(rng: Generator, t: Array) -> Array:
    """Return two tones a third apart, rich in overtones, with short breaks."""
    low = rng.uniform(320, 480)
    blasts = (t * rng.uniform(0.8, 2.5) + rng.uniform()) % 1 < rng.uniform(0.6, 0.9)
    return blasts * (harmonics(t, low, 0.7) + harmonics(t, low * rng.uniform(1.19, 1.27), 0.7))


def engine(rng: Generator, t: Array) -> Array:
    """Return a growl: a sawtooth whose pitch varies a little, and the noise of the exhaust."""
    firing_rate = rng.uniform(35, 90) * (1 + 0.05 * sine(t, rng.uniform(0.5, 3)))
    return scipy.signal.sawtooth(phase(t, firing_rate)) + 0.3 * noise(rng, t, 50, 1000)


def church_bells(rng: Generator, t: Array) -> Array:
    """Return strokes of bells, whose high partials end before the low ones."""
    prime = rng.uniform(250, 500)
    ringing = np.zeros_like(t)
    for onset in onsets(rng, t, rng.uniform(1.2, 2.2), jitter=0.1):
        pitch = prime * rng.choice([1, 1.125, 1.25, 1.5])  # bells of one peal
        # The partials of a tuned bell: hum, prime, tierce, quint, nominal and those above.
        for ratio in (0.5, 1, 1.2, 1.5, 2, 2.5, 3, 4, 5.3, 6.7):
            ringing += decay(t, onset, 1.2 / (1 + ratio)) * sine(t, pitch * ratio) / np.sqrt(ratio)
    return ringing


# ESC-50's name of a class -> the function of its sound.
SOUNDS = {'rain': rain, 'crickets': crickets, 'chirping_birds': chirping_birds,
          'door_wood_knock': door_wood_knock, 'clock_tick': clock_tick, 'helicopter': helicopter,
          'siren': siren, 'car_horn': car_horn, 'engine': engine, 'church_bells': church_bells}


@dataclass(frozen=True)
class DemoClip:
    """A clip of the demo: all columns of its row in meta/esc50.csv, in their order."""
    filename: str
    fold: int
    target: int
    category: str
    esc10: bool
    src_file: int
    take: str


def list_clips(clips_per_fold: int, seed: int, labels: Labels) -> list[DemoClip]:
    """List the clips of the dataset.

    src_file of a clip is a random number, which fixes its sound. It is in the file name too, so
    that a clip of another seed is never mistaken for this one.
    """
    clips = []
    for fold, category, number in itertools.product(FOLDS, SOUNDS, range(clips_per_fold)):
        target = labels.names.index(category)
        seeds = np.random.SeedSequence((seed, fold, target, number))
        src_file = int(seeds.generate_state(1)[0])
        filename = f'{fold}-{src_file}-A-{target}.wav'
        clips.append(DemoClip(filename, fold, target, category, False, src_file, 'A'))
    return clips


def synthesise(clip: DemoClip) -> Array:
    """Return the samples (samples,) of a clip, between -1 and 1.

    It is the sound of its class with noise in the background; length and levels are random.
    """
    rng = np.random.default_rng(clip.src_file)
    t = np.arange(int(rng.uniform(SHORTEST, LONGEST) * SAMPLE_RATE)) / SAMPLE_RATE
    sound = SOUNDS[clip.category](rng, t)
    background = coloured_noise(rng, t, slope=rng.uniform(0.5, 2)) * rms(sound)
    mixed = sound + background * amplitude(rng.uniform(SOFTEST_BACKGROUND, LOUDEST_BACKGROUND))
    return mixed / np.abs(mixed).max() * amplitude(rng.uniform(SOFTEST_PEAK, LOUDEST_PEAK))


def amplitude(decibels: float) -> float:
    """Return the factor of a level in dB."""
    return 10 ** (decibels / 20)


def format_meta(clips: list[DemoClip]) -> bytes:
    """Return the contents of meta/esc50.csv."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(field.name for field in fields(DemoClip))
    writer.writerows(map(astuple, clips))
    return text.getvalue().encode()


def make(out_dir: Path, clips_per_fold: int, seed: int) -> None:
    """Write the dataset. Files that exist are kept. Raises DataError if they are of another one.

    Args:
        clips_per_fold: clips of each class in each fold.
    """
    clips = list_clips(clips_per_fold, seed, read_labels(LABEL_FILE))
    audio_dir, meta = out_dir / 'audio', out_dir / 'meta' / 'esc50.csv'
    if meta.exists() and meta.read_bytes() != format_meta(clips):
        raise DataError(f'{meta} lists other clips than these options make: take another folder '
                        f'(for run_esc50.sh: another --prep_dir and --exp_dir)')
    for folder in (audio_dir, meta.parent):
        folder.mkdir(parents=True, exist_ok=True)
    for clip in tqdm(clips, desc='synthesising', unit='clip', disable=None):
        if not (audio_dir / clip.filename).exists():
            with atomic_write(audio_dir / clip.filename) as partial:
                soundfile.write(partial, synthesise(clip), SAMPLE_RATE, subtype='PCM_16',
                                format='WAV')
    if not meta.exists():  # written last: if it exists, all clips do
        with atomic_write(meta) as partial:
            partial.write_bytes(format_meta(clips))
    print(f'{len(clips)} clips of {len(SOUNDS)} classes in {out_dir}')
