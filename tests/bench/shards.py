"""Compare small clips in files with the same clips in shards: batches, speed, files opened.

python tests/bench/shards.py [--clips 20000] [--folder DIR]

DIR is a folder on the file system to be measured. Exits with 0 if both give the same batches, bit
for bit, and shards reach 0.9 times the speed of files.
"""
import argparse
import hashlib
import itertools
import json
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'src'))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'egs' / 'audioset'))
from audio.fbank import SAMPLE_RATE
from audio.reading import load_waveform, window_seconds
from dataloader import AudiosetDataset
from measure import HEADER, alternate, faster, print_machine
from packing import pack
from training.bad_audio import ReplaceUnreadable
from training.loaders import make_loader
from training.sampler import EpochSampler

CONF = {'num_mel_bins': 128, 'target_length': 100, 'mode': 'train', 'mixup': 0.5, 'freqm': 48,
        'timem': 20, 'noise': True}
CLASSES = 10
BATCH = 100
SHARDS = 20
BAR = 0.9  # of the speed of files
COUNTED = 1000  # samples, whose opened files are counted


class OpenCounter:
    """Counts the files below a folder that this process opens.

    Python reports what it opens to an audit hook. libsndfile opens files in C, one for each
    SoundFile that is made from a path.
    """

    def __init__(self, folder):
        self.folder, self.count = str(folder), 0
        sys.addaudithook(
            lambda event, arguments: self.note(arguments[0]) if event == 'open' else None)
        start = soundfile.SoundFile.__init__

        def note_and_start(sound, file, *arguments, **options):
            self.note(file)
            start(sound, file, *arguments, **options)
        soundfile.SoundFile.__init__ = note_and_start

    def note(self, file):
        """Count a file if it is a path below the folder."""
        if isinstance(file, (str, bytes, os.PathLike)):  # and not a descriptor
            self.count += os.fsdecode(file).startswith(self.folder)

    def count_during(self, function):
        """Call a function; return how many files it opened."""
        before = self.count
        function()
        return self.count - before


def make_clips(folder, count):
    """Write FLAC clips of a second, each a tone in noise; return {name: path}."""
    rng = np.random.default_rng(0)
    t = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    paths = {f'{i:05d}.flac': folder / f'{i:05d}.flac' for i in range(count)}
    for path in paths.values():
        tone = 0.3 * np.sin(2 * np.pi * rng.uniform(100, 4000) * t)
        soundfile.write(path, tone + 0.05 * rng.standard_normal(len(t)), SAMPLE_RATE)
    return paths


def make_dataset(folder, name, wavs):
    """Write the datafile `name` of these recordings, with the classes in turn; load it."""
    labels = ''.join(f'{i},/m/{i},class {i}\n' for i in range(CLASSES))
    (folder / 'labels.csv').write_text(f'index,mid,display_name\n{labels}')
    data = [{'wav': str(wav), 'labels': f'/m/{i % CLASSES}'} for i, wav in enumerate(wavs)]
    (folder / name).write_text(json.dumps({'data': data}))
    return AudiosetDataset(folder / name, CONF, folder / 'labels.csv')


def load_batches(dataset, workers=0, start=0):
    """Return the batches of an epoch with balanced sampling, from the sample `start` on."""
    sampler = EpochSampler(len(dataset), 0, np.linspace(1, 2, len(dataset)))
    sampler.set_epoch(1, start)
    return make_loader(ReplaceUnreadable(dataset), BATCH, workers, pin_memory=False,
                       sampler=sampler)


def digest(dataset, workers):
    """Return a checksum of all batches of an epoch."""
    checksum = hashlib.sha256()
    for features, labels in load_batches(dataset, workers):
        checksum.update(features.numpy())
        checksum.update(labels.numpy())
    return checksum.hexdigest()


def make_samples(dataset, start=0, count=None):
    """Make samples of an epoch in this process: `count`, or all, from the sample `start` on."""
    batches = load_batches(dataset, start=start)
    for _ in itertools.islice(batches, count and count // BATCH):
        pass


def read_all(dataset):
    """Decode every recording once, in random order."""
    for i in np.random.default_rng(0).permutation(len(dataset)):
        load_waveform(dataset.datafile.wavs[i], seconds=window_seconds(CONF['target_length']))


def drop_from_memory(folder):
    """Let the operating system forget what it keeps in memory of the files in a folder."""
    for path in folder.iterdir():
        with open(path, 'rb') as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def prepare(folder, clips):
    """Make the clips and pack them; return the datasets of the files and of the shards."""
    (folder / 'files').mkdir()
    paths = make_clips(folder / 'files', clips)
    size = sum(path.stat().st_size for path in paths.values())
    start = time.monotonic()
    packed = pack(paths, folder / 'shards', size / SHARDS)
    shards = len(list((folder / 'shards').glob('*.zip')))
    print(f'{clips} clips, {size / 1e6:.0f} MB, packed into {shards} shards in '
          f'{time.monotonic() - start:.1f} s', flush=True)
    return {name: make_dataset(folder, f'{name}.json', wavs)
            for name, wavs in (('files', paths.values()), ('shards', packed.values()))}


def print_opened(datasets, counter):
    """Print how many files the first samples of an epoch open, and how many the next ones."""
    for name, dataset in datasets.items():
        first, second = (
            counter.count_during(partial(make_samples, dataset, start=start, count=COUNTED))
            for start in (0, COUNTED))
        print(f'{name}: {COUNTED} samples (mixup {CONF["mixup"]}) opened {first} files, the next '
              f'{COUNTED} opened {second}', flush=True)


def compare_batches(datasets):
    """Print and return whether all datasets give the same batches, without and with workers."""
    is_same = []
    for workers in (0, 2):
        is_same.append(len({digest(dataset, workers) for dataset in datasets.values()}) == 1)
        print(f'batches of an epoch, {workers} workers: '
              f'{"the same" if is_same[-1] else "DIFFERENT"}', flush=True)
    return all(is_same)


def compare_speed(datasets, folder, rounds):
    """Print how fast the datasets are; return whether the bars are met."""
    print(HEADER)
    met = []
    for what, function, before in (
            ('samples, everything on', make_samples, lambda name: None),
            ('decoding alone', read_all, lambda name: None),
            ('decoding alone, nothing in memory', read_all,
             lambda name: drop_from_memory(folder / name))):
        functions = {name: partial(function, dataset) for name, dataset in datasets.items()}
        times = alternate(functions, rounds, settle=False, before=before)
        row = faster(f'{len(datasets["files"])} clips of 1 s, {what}, shards against files',
                     times['shards'], times['files'], BAR)
        print(row, flush=True)
        met.append(row.met)
    return all(met)


def main():
    """Read the options, make the clips, compare."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--clips', type=int, default=20_000, help='how many clips to make')
    parser.add_argument('--rounds', type=int, default=3, help='how often each thing is timed')
    parser.add_argument('--folder', type=Path,
                        help='where to make the clips; by default for temporary files')
    args = parser.parse_args()
    torch.set_num_threads(1)
    print_machine()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        counter = OpenCounter(folder)
        datasets = prepare(Path(folder), args.clips)
        print_opened(datasets, counter)
        is_same = compare_batches(datasets)
        is_fast = compare_speed(datasets, Path(folder), args.rounds)
    sys.exit(0 if is_same and is_fast else 1)


if __name__ == '__main__':
    main()
