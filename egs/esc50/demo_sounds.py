"""Sounds of the demo, synthesised: ten classes in the layout of ESC-50. make_demo_data.py writes them.

A sound is a function of a random generator and of t, the times of its samples in seconds; pitches are in Hz, rates
a second.
"""
import csv
import io
import itertools
from dataclasses import astuple, dataclass, fields

import numpy as np
import scipy.signal
import soundfile
from tqdm import tqdm

from esc50 import FOLDS, LABEL_FILE
from models.files import atomic_write
from utilities.errors import DataError
from utilities.labels import read_labels

SAMPLE_RATE = 44100  # Hz, as in ESC-50
SHORTEST, LONGEST = 1.0, 1.5  # seconds; ESC-50's clips last 5
LOUDEST_BACKGROUND, SOFTEST_BACKGROUND = -20, -40  # dB below the sound
LOUDEST_PEAK, SOFTEST_PEAK = -3, -15  # dB below full scale


def noise(rng, t, low, high):
    """Noise between low and high (Hz), of root mean square 1."""
    band = scipy.signal.butter(2, (low, high), 'bandpass', fs=SAMPLE_RATE, output='sos')
    samples = scipy.signal.sosfilt(band, rng.standard_normal(len(t)))
    return samples / rms(samples)


def coloured_noise(rng, t, slope):
    """Noise whose power falls as frequency ** slope: 0 is white, 1 pink, 2 brown. Root mean square 1."""
    spectrum = np.fft.rfft(rng.standard_normal(len(t)))
    spectrum[1:] /= np.arange(1, len(spectrum)) ** (slope / 2)
    samples = np.fft.irfft(spectrum, len(t))
    return samples / rms(samples)


def rms(samples):
    """Root mean square."""
    return np.sqrt(np.mean(samples ** 2))


def phase(t, pitch):
    """The phase (radians) of an oscillation of a pitch (Hz): a number, or one for each sample."""
    return 2 * np.pi * np.cumsum(np.broadcast_to(pitch, t.shape)) / SAMPLE_RATE


def sine(t, pitch):
    """A sine of a pitch (Hz, see phase)."""
    return np.sin(phase(t, pitch))


def harmonics(t, pitch, slope, highest=8000):
    """Sines at the multiples of a pitch (Hz, see phase) up to `highest`, the k-th of amplitude k ** -slope."""
    first = phase(t, pitch)
    return sum(np.sin(k * first) * k ** -slope for k in range(1, int(highest / np.max(pitch)) + 1))


def decay(t, onset, seconds):
    """An envelope that jumps to 1 at the onset and falls to 1/e in so many seconds."""
    return np.where(t < onset, 0, np.exp(-np.maximum(t - onset, 0) / seconds))


def onsets(rng, t, rate, jitter=0.0):
    """Times of events, `rate` a second, each off the beat by up to `jitter` beats."""
    beats = np.arange(rng.uniform(0, 0.5), t[-1] * rate)
    return (beats + rng.uniform(-jitter, jitter, len(beats))) / rate


def rain(rng, t):
    """A steady hiss, and on it the crackle of drops at random times."""
    drops = rng.poisson(rng.uniform(50, 200) / SAMPLE_RATE, len(t)) * rng.exponential(size=len(t))
    crackle = scipy.signal.lfilter([1], [1, -0.97], drops * rng.standard_normal(len(t)))
    return noise(rng, t, rng.uniform(200, 800), 15000) + rng.uniform(2, 6) * crackle


def crickets(rng, t):
    """One very high, pure tone in chirps of a few quick pulses."""
    pulse_rate, pulses, chirp_rate = rng.uniform(25, 40), rng.integers(3, 6), rng.uniform(2.5, 4.5)
    since = (t + rng.uniform()) % (1 / chirp_rate)
    chirping = since < pulses / pulse_rate
    return chirping * np.sin(np.pi * pulse_rate * since) ** 2 * sine(t, rng.uniform(4500, 6500))


def chirping_birds(rng, t):
    """Short whistles whose pitch sweeps up or down, no two alike."""
    voice = rng.uniform(1800, 3500)
    song = np.zeros_like(t)
    for onset in onsets(rng, t, rng.uniform(4, 8), jitter=0.4):
        part = np.clip((t - onset) / rng.uniform(0.06, 0.15), 0, 1)  # of the whistle that is over
        song += np.sin(np.pi * part) * sine(t, voice * rng.uniform(0.8, 1.25) * 2 ** (rng.uniform(-0.7, 0.7) * part))
    return song


def door_wood_knock(rng, t):
    """Quick dull thuds: a few low resonances of the panel that die off at once."""
    resonances = rng.uniform(100, 900, size=5)
    thuds = np.zeros_like(t)
    for onset in onsets(rng, t, rng.uniform(4, 7), jitter=0.1):
        panel = sum(sine(t, pitch) for pitch in resonances) + noise(rng, t, 100, 1500)
        thuds += rng.uniform(0.5, 1) * decay(t, onset, rng.uniform(0.015, 0.03)) * panel
    return thuds


def clock_tick(rng, t):
    """Bright clicks, evenly spaced, every other one a little lower: tick, tock."""
    pitches = rng.uniform(2500, 5000) * np.array([1, rng.uniform(0.6, 0.9)])
    ticks = np.zeros_like(t)
    for i, onset in enumerate(onsets(rng, t, rng.uniform(2.5, 5))):
        click = noise(rng, t, 1000, 12000) + sine(t, pitches[i % 2])
        ticks += decay(t, onset, rng.uniform(0.003, 0.006)) * click
    return ticks


def helicopter(rng, t):
    """Low noise, chopped by the blades of the rotor, over the whine of the turbine."""
    blades = sine(t, rng.uniform(9, 18)) * 0.5 + 0.5
    return blades ** 3 * noise(rng, t, 40, rng.uniform(400, 1200)) + 0.02 * harmonics(t, rng.uniform(1000, 2000), 1)


def siren(rng, t):
    """One loud voice whose pitch rises and falls without a break."""
    sweep = np.sin(2 * np.pi * (rng.uniform(0.7, 2.5) * t + rng.uniform()))
    return harmonics(t, rng.uniform(700, 1100) * 2 ** (rng.uniform(0.4, 0.7) * sweep), 1.5)


def car_horn(rng, t):
    """Two reeds a third apart, rich in overtones, held at one pitch and let go now and then."""
    low = rng.uniform(320, 480)
    blasts = (t * rng.uniform(0.8, 2.5) + rng.uniform()) % 1 < rng.uniform(0.6, 0.9)
    return blasts * (harmonics(t, low, 0.7) + harmonics(t, low * rng.uniform(1.19, 1.27), 0.7))


def engine(rng, t):
    """A growl: a sawtooth at the firing rate, which wavers, and exhaust noise."""
    firing_rate = rng.uniform(35, 90) * (1 + 0.05 * sine(t, rng.uniform(0.5, 3)))
    return scipy.signal.sawtooth(phase(t, firing_rate)) + 0.3 * noise(rng, t, 50, 1000)


def church_bells(rng, t):
    """Strokes that ring on: partials of a bell, which are no multiples of one pitch, the high ones dying first."""
    prime = rng.uniform(250, 500)
    ringing = np.zeros_like(t)
    for onset in onsets(rng, t, rng.uniform(1.2, 2.2), jitter=0.1):
        pitch = prime * rng.choice([1, 1.125, 1.25, 1.5])  # bells of one peal
        # Hum, prime, tierce, quint, nominal and the partials above, as bells are tuned.
        for ratio in (0.5, 1, 1.2, 1.5, 2, 2.5, 3, 4, 5.3, 6.7):
            ringing += decay(t, onset, 1.2 / (1 + ratio)) * sine(t, pitch * ratio) / np.sqrt(ratio)
    return ringing


# ESC-50's name of a class -> what synthesises it from a numpy Generator and the times of the samples (seconds).
SOUNDS = {'rain': rain, 'crickets': crickets, 'chirping_birds': chirping_birds, 'door_wood_knock': door_wood_knock,
          'clock_tick': clock_tick, 'helicopter': helicopter, 'siren': siren, 'car_horn': car_horn, 'engine': engine,
          'church_bells': church_bells}


@dataclass(frozen=True)
class Clip:
    """One row of meta/esc50.csv, its columns in their order."""
    filename: str
    fold: int
    target: int
    category: str
    esc10: bool
    src_file: int
    take: str


def list_clips(clips_per_fold, seed, labels):
    """The clips of the dataset, each with a random number for its src_file, from which alone synthesise draws.

    File names hold that number, so that a clip of another seed is never taken for one of these.
    """
    clips = []
    for fold, category, number in itertools.product(FOLDS, SOUNDS, range(clips_per_fold)):
        target = labels.names.index(category)
        src_file = int(np.random.SeedSequence((seed, fold, target, number)).generate_state(1)[0])
        clips.append(Clip(f'{fold}-{src_file}-A-{target}.wav', fold, target, category, False, src_file, 'A'))
    return clips


def synthesise(clip):
    """The samples of a clip, (samples,) within -1 and 1: the sound of its class before a background, at some level."""
    rng = np.random.default_rng(clip.src_file)
    t = np.arange(int(rng.uniform(SHORTEST, LONGEST) * SAMPLE_RATE)) / SAMPLE_RATE
    sound = SOUNDS[clip.category](rng, t)
    background = coloured_noise(rng, t, slope=rng.uniform(0.5, 2)) * rms(sound)
    mixed = sound + background * amplitude(rng.uniform(SOFTEST_BACKGROUND, LOUDEST_BACKGROUND))
    return mixed / np.abs(mixed).max() * amplitude(rng.uniform(SOFTEST_PEAK, LOUDEST_PEAK))


def amplitude(decibels):
    """The factor that a level in dB stands for."""
    return 10 ** (decibels / 20)


def meta_bytes(clips):
    """What meta/esc50.csv holds."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(field.name for field in fields(Clip))
    writer.writerows(map(astuple, clips))
    return text.getvalue().encode()


def make(out_dir, clips_per_fold, seed):
    """Write the dataset to out_dir, but for what is there already. Raises DataError if out_dir holds another one."""
    clips = list_clips(clips_per_fold, seed, read_labels(LABEL_FILE))
    audio_dir, meta = out_dir / 'audio', out_dir / 'meta' / 'esc50.csv'
    if meta.exists() and meta.read_bytes() != meta_bytes(clips):
        raise DataError(f'{meta} lists other clips than these options make: take another folder, or remove {out_dir}')
    for folder in (audio_dir, meta.parent):
        folder.mkdir(parents=True, exist_ok=True)
    for clip in tqdm(clips, desc='synthesising', unit='clip', disable=None):
        if not (audio_dir / clip.filename).exists():
            with atomic_write(audio_dir / clip.filename) as partial:
                soundfile.write(partial, synthesise(clip), SAMPLE_RATE, subtype='PCM_16', format='WAV')
    if not meta.exists():  # written last: where it is, all clips are
        with atomic_write(meta) as partial:
            partial.write_bytes(meta_bytes(clips))
    print(f'{len(clips)} clips of {len(SOUNDS)} classes in {out_dir}')
