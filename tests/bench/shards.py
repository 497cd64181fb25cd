"""Read small clips as files and packed into shards: the same batches, how fast, and how many files are opened.

python tests/bench/shards.py [--clips 20000] [--folder DIR]: exits 0 where the batches are the same in every bit and
shards reach 0.9 of the speed of files. DIR is on the file system to be measured.
"""
import argparse
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'src'))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'egs' / 'audioset'))
from audio.fbank import SAMPLE_RATE
from audio.reading import load_waveform, window_seconds
from dataloader import AudiosetDataset
from measure import HEADER, faster, machine, seconds_of
from packing import pack
from training.bad_audio import ReplaceUnreadable
from training.loaders import make_loader
from training.sampler import EpochSampler

CONF = {'num_mel_bins': 128, 'target_length': 100, 'mode': 'train', 'mixup': 0.5, 'freqm': 48, 'timem': 20,
        'noise': True}
CLASSES = 10
BATCH = 100
SHARDS = 20
BAR = 0.9  # of the speed of files
COUNTED = 1000  # samples


class Opens:
    """Counts the files below a folder that this process opens.

    Python reports its own openings to an audit hook; libsndfile opens in C, once for every SoundFile of a path.
    """

    def __init__(self, folder):
        self.folder, self.count = str(folder), 0
        sys.addaudithook(lambda event, arguments: self.note(arguments[0]) if event == 'open' else None)
        start = soundfile.SoundFile.__init__

        def started(sound, file, *arguments, **options):
            self.note(file)
            start(sound, file, *arguments, **options)
        soundfile.SoundFile.__init__ = started

    def note(self, file):
        """Count a path that lies below the folder."""
        if isinstance(file, (str, os.PathLike)):
            self.count += os.fspath(file).startswith(self.folder)

    def during(self, function):
        """How many files a call opens."""
        before = self.count
        function()
        return self.count - before


def make_clips(folder, count):
    """Write FLAC clips of a second, a tone in noise each; returns name -> path."""
    rng = np.random.default_rng(0)
    t = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    paths = {f'{i:05d}.flac': folder / f'{i:05d}.flac' for i in range(count)}
    for path in paths.values():
        tone = 0.3 * np.sin(2 * np.pi * rng.uniform(100, 4000) * t)
        soundfile.write(path, tone + 0.05 * rng.standard_normal(len(t)), SAMPLE_RATE)
    return paths


def make_dataset(folder, name, wavs):
    """A dataset of these recordings, labelled in turn."""
    labels = ''.join(f'{i},/m/{i},class {i}\n' for i in range(CLASSES))
    (folder / 'labels.csv').write_text(f'index,mid,display_name\n{labels}')
    (folder / name).write_text(json.dumps({'data': [{'wav': str(wav), 'labels': f'/m/{i % CLASSES}'}
                                                    for i, wav in enumerate(wavs)]}))
    return AudiosetDataset(folder / name, CONF, folder / 'labels.csv')


def batches(dataset, workers=0, samples=None):
    """Batches of an epoch of balanced sampling, or of its last samples."""
    sampler = EpochSampler(len(dataset), 0, np.linspace(1, 2, len(dataset)))
    sampler.set_epoch(1, 0 if samples is None else max(0, len(dataset) - samples))
    return make_loader(ReplaceUnreadable(dataset), BATCH, workers, pin_memory=False, sampler=sampler)


def digest(dataset, workers):
    """A checksum of all batches of an epoch."""
    checksum = hashlib.sha256()
    for features, labels in batches(dataset, workers):
        checksum.update(features.numpy())
        checksum.update(labels.numpy())
    return checksum.hexdigest()


def run_through(dataset, samples=None):
    """Make the samples of an epoch, or its last ones, in this process."""
    for _ in batches(dataset, samples=samples):
        pass


def read_all(dataset):
    """Decode every recording once, in random order."""
    for i in np.random.default_rng(0).permutation(len(dataset)):
        load_waveform(dataset.datafile.wavs[i], seconds=window_seconds(CONF['target_length']))


def forget(folder):
    """Let the operating system drop what it keeps in memory of the files in a folder."""
    for path in folder.iterdir():
        with open(path, 'rb') as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds(datasets, function, rounds, before=lambda name: None):
    """Call function(dataset) for each in turn, before(name) first: the median of each one's seconds."""
    times = {name: [] for name in datasets}
    for _ in range(rounds):
        for name, dataset in datasets.items():
            before(name)
            times[name].append(seconds_of(lambda: function(dataset)))
    return {name: statistics.median(values) for name, values in times.items()}


def prepare(folder, clips):
    """Make the clips and pack them; returns a dataset of the files and one of the shards."""
    (folder / 'files').mkdir()
    paths = make_clips(folder / 'files', clips)
    size = sum(path.stat().st_size for path in paths.values())
    start = time.monotonic()
    wavs = pack(paths, folder / 'shards', size / SHARDS)
    print(f'{clips} clips, {size / 1e6:.0f} MB, packed into {len(list((folder / "shards").glob("*.zip")))} shards in '
          f'{time.monotonic() - start:.1f} s', flush=True)
    return {name: make_dataset(folder, f'{name}.json', listed)
            for name, listed in (('files', paths.values()), ('shards', wavs.values()))}


def same_batches(datasets):
    """Whether all datasets give the same batches, with and without workers; prints it."""
    answers = []
    for workers in (0, 2):
        answers.append(len({digest(dataset, workers) for dataset in datasets.values()}) == 1)
        print(f'batches of an epoch, {workers} workers: {"the same" if answers[-1] else "DIFFERENT"}', flush=True)
    return all(answers)


def measure(datasets, folder, rounds):
    """Print how fast the datasets are; returns whether the bars are met."""
    print(HEADER)
    met = []
    for what, function, before in (
            ('samples, everything on', run_through, lambda name: None),
            ('decoding alone', read_all, lambda name: None),
            ('decoding alone, nothing in memory', read_all, lambda name: forget(folder / name))):
        times = seconds(datasets, function, rounds, before)
        row = faster(f'{len(datasets["files"])} clips of 1 s, {what}, shards against files', times['shards'],
                     times['files'], BAR)
        print(row, flush=True)
        met.append(row.met)
    return all(met)


def main():
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--clips', type=int, default=20_000)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--folder', type=Path, help='where to make the clips; by default for temporary files')
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(', '.join(f'{name} {value}' for name, value in machine().items()))
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        opens = Opens(folder)
        datasets = prepare(Path(folder), args.clips)
        for name, dataset in datasets.items():
            first, then = (opens.during(lambda: run_through(dataset, COUNTED)) for _ in range(2))
            print(f'{name} opened by {COUNTED} samples, mixup {CONF["mixup"]}: {first}, by the next {COUNTED}: {then}')
        same = same_batches(datasets)
        met = measure(datasets, Path(folder), args.rounds)
    sys.exit(0 if same and met else 1)


if __name__ == '__main__':
    main()
