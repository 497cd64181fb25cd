"""Tag audio files with trained models: what is heard in each recording, and when."""
import csv
import logging
import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from audio import AUDIO_SUFFIXES
from features import FRAME_SHIFT_MS
from hardware import choose_device
from models import WeightsError
from models.files import atomic_write
from tagging import load_tagger, tag
from trainer import TrainingError
from utilities.cli import (MAX_BATCH, OptionParser, add_checkpoint_options, exit_on, number,
                           setup_logging, whole)
from utilities.folders import files_below, making
from utilities.labels import DataError
from utilities.parallel import limit_threads
from utilities.plots import clock, plot_tags
from utilities.results import write_figure
from utilities.texts import write_json

SHOWN_NAMES = 3  # of files that are left out
TIMELINE_SCORE = 0.1  # what a class must reach to be in the timeline, but for the first one

logger = logging.getLogger(__name__)


def find_audio(paths):
    """The files among paths, and the audio files in the folders among them, sorted; each once, as Paths.

    Raises DataError where there are none.
    """
    files = [file for path in map(Path, paths) for file in (_audio_below(path) if path.is_dir() else [path])]
    if not files:
        raise DataError(f'there are no audio files in {" ".join(map(str, paths)) or "the command line"}: give files or '
                        f'folders, before the options or after --audio_path')
    return list(dict.fromkeys(files))


def _audio_below(folder):
    """Return the audio files below a folder, without hidden ones; log how many others there are."""
    files = [path for path in sorted(map(Path, files_below(folder))) if path.is_file()]
    others = [path.name for path in files if path.suffix.lower() not in AUDIO_SUFFIXES]
    if others:
        examples = ', '.join(others[:SHOWN_NAMES]) + (', ...' if len(others) > SHOWN_NAMES else '')
        logger.info('%s: left out %d files that are not audio by their suffix: %s', folder,
                    len(others), examples)
    return [path for path in files if path.suffix.lower() in AUDIO_SUFFIXES]


def as_text(tagging, top_k):
    """A Tagging for people: the best classes of the whole recording and, where there are several, of every window."""
    several = len(tagging.starts) > 1
    short = tagging.seconds < 10 or (several and tagging.starts[1] < 5)
    times = [(clock(start, short), clock(end, short)) for start, end in zip(tagging.starts, tagging.ends)]
    names, mean, highest = tagging.labels.names, tagging.mean, tagging.max
    heard = '' if several or tagging.ends[0] == tagging.seconds else f', of which {times[0][0]}-{times[0][1]}'
    best = tagging.top(mean, top_k)
    width = max(len(names[i]) for i, _ in best)
    lines = [f'{tagging.path}  {clock(tagging.seconds, short)}{heard}']
    if tagging.incomplete_from is not None:
        lines.append(f'  incomplete: what follows {tagging.incomplete_from:.2f} s is missing or '
                     f'damaged')
    if several:
        lines += [f'  {"":<{width}}  mean  max']
    lines += [f'  {names[i]:<{width}}  {score:.2f}' + (f'  {highest[i]:.2f}' if several else '') for i, score in best]
    for (start, end), scores in zip(times if several else (), tagging.scores):
        best = tagging.top(scores, top_k)
        heard = [pair for pair in best if pair[1] >= TIMELINE_SCORE] or best[:1]
        lines.append(f'  {start}-{end}  ' + ', '.join(f'{names[i]} {score:.2f}' for i, score in heard))
    return '\n'.join(lines) + '\n'


def as_json(tagging, top_k):
    """A Tagging for programs: a dict of path, seconds, windows, and mean and max over them; top_k classes of each."""
    if tagging.error:
        return {'path': tagging.path, 'error': tagging.error}

    def tags(scores):
        return [{'label': tagging.labels.names[i], 'mid': tagging.labels.mids[i], 'score': float(str(score))}
                for i, score in tagging.top(scores, top_k)]  # by way of text: the shortest number that is this float32
    windows = [{'start': _rounded(start), 'end': _rounded(end), 'tags': tags(scores)}
               for start, end, scores in zip(tagging.starts, tagging.ends, tagging.scores)]
    incomplete_from = None if tagging.incomplete_from is None else _rounded(tagging.incomplete_from)
    return {'path': tagging.path, 'seconds': _rounded(tagging.seconds),
            'incomplete_from': incomplete_from, 'windows': windows,
            'mean': tags(tagging.mean), 'max': tags(tagging.max)}


def write_csv(path, taggings):
    """Write all scores as a table, a row a window: path, times, classes, incomplete_from."""
    with atomic_write(path) as partial, open(partial, 'w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file)
        writer.writerow(['path', 'start', 'end', *taggings[0].labels.names, 'incomplete_from'])
        for tagging in taggings:
            end_of_sound = tagging.incomplete_from
            incomplete_from = '' if end_of_sound is None else _rounded(end_of_sound)
            for start, end, scores in zip(tagging.starts, tagging.ends, tagging.scores):
                writer.writerow([tagging.path, _rounded(start), _rounded(end), *map(str, scores),
                                 incomplete_from])


def write_embeddings(path, taggings):
    """Write embeddings (windows, dim), and of each window the path of its file and its start, as .npz."""
    read = [tagging for tagging in taggings if not tagging.error]
    arrays = {'embeddings': np.concatenate([tagging.embeddings for tagging in read]) if read else np.zeros((0, 0)),
              'paths': np.array([tagging.path for tagging in read for _ in tagging.starts], dtype=str),
              'starts': np.concatenate([np.zeros(0), *(tagging.starts for tagging in read)])}
    with atomic_write(path) as partial, open(partial, 'wb') as file:
        np.savez(file, **arrays)


def _rounded(seconds):
    """Seconds to the microsecond, without what multiplication leaves."""
    return round(float(seconds), 6)


def picture_paths(plot, files):
    """Where the picture of each file goes: `plot` itself, a .png of one file, else <name of the file>.png in it.

    Raises DataError for a .png and several files.
    """
    if plot.suffix.lower() == '.png':
        if len(files) > 1:
            raise DataError(f'--plot {plot} names one picture, but there are {len(files)} files: give a folder')
        return [plot]
    seen, paths = Counter(), []
    for name in (file.name for file in files):
        seen[name] += 1
        paths.append(plot / (f'{name}.png' if seen[name] == 1 else f'{name}-{seen[name]}.png'))
    return paths


def make_parser():
    """All options."""
    parser = OptionParser(prog='inference.py', description=__doc__)
    add = parser.add_argument
    add('audio', nargs='*', metavar='AUDIO', help='audio files, and folders of them')
    add('--audio_path', nargs='+', default=[], metavar='AUDIO', help='the same, after options')
    add('--checkpoint', '--model_path', required=True, nargs='+', metavar='CHECKPOINT',
        help='paths, names of published checkpoints, folders of transformers or ids on Hugging Face; the scores of '
             'several are averaged')
    add('--label_csv', help='label file: index,mid,display_name; without it the names that the checkpoint knows')
    add('--window', choices=['all', 'first'], default='all',
        help='all: the whole recording, window by window; first: the first window alone, as in validation')
    add('--hop_seconds', type=number(FRAME_SHIFT_MS / 1000),
        help='seconds from the beginning of a window to the next; without it a window')
    add('--top_k', type=whole(1), default=5, help='classes to show')
    add('--json', type=Path, metavar='FILE', help='write the top classes of every recording and window')
    add('--csv', type=Path, metavar='FILE', help='write the scores of all classes, a row a window')
    add('--plot', type=Path, metavar='PNG', help='draw spectrogram and tags: a .png, or a folder for several files')
    add('--embeddings', type=Path, metavar='NPZ', help='write the embedding of every window')
    add('-b', '--batch_size', type=whole(1, MAX_BATCH), help='windows in a batch; by default 16, or 4 on a CPU')
    add_checkpoint_options(parser, loss="BCE: scores are sigmoids; CE: softmax; without it what each "
                                        "checkpoint says, else BCE, or CE in transformers' layout")
    return parser


def check_options(parser, args):
    """Stop with a sentence where options contradict each other."""
    if args.window == 'first' and args.hop_seconds:
        parser.error('--window first has one window: --hop_seconds does not go with it')
    if args.embeddings and len(args.checkpoint) > 1:
        parser.error(f'--embeddings wants one checkpoint, got {len(args.checkpoint)}')
    try:
        choose_device(args.device)
    except ValueError as error:
        parser.error(str(error))


def check_writable(paths):
    """Raise DataError where files cannot be written, before the work."""
    for path in paths:
        if path.is_dir() or not os.access(path.parent, os.W_OK):
            raise DataError(f'{path} cannot be written: it is a folder, or is in one that must not be written to')


def infer(args):
    """Tag what the options name; print, draw and write what they ask for.

    Returns how many files there were and how many of them could not be read.
    """
    files = find_audio([*args.audio, *args.audio_path])
    pictures = picture_paths(args.plot, files) if args.plot else [None] * len(files)
    written = [path for path in (args.json, args.csv, args.embeddings, pictures[0]) if path]
    with making(*(path.parent for path in written)):
        check_writable(written)
        return tag_all(args, files, pictures)


def tag_all(args, files, pictures):
    """Tag files and write what the options ask for, a picture of each to the path in `pictures`, or None.

    Returns how many files there were and how many of them could not be read.
    """
    tagger = load_tagger(args.checkpoint, args.device, args.amp, args.label_csv, args.dataset_mean,
                         args.dataset_std, args.loss, fstride=args.fstride, tstride=args.tstride,
                         input_fdim=args.num_mel_bins, input_tdim=args.audio_length)
    taggings = []
    results = tag(tagger, files, args.window, args.hop_seconds, batch_size=args.batch_size,
                  num_workers=args.num_workers, embeddings=bool(args.embeddings), spectrograms=bool(args.plot))
    for tagging, picture in zip(results, pictures):
        if tagging.error:
            logger.error('%s', tagging.error)
        else:
            tqdm.write(as_text(tagging, args.top_k))  # which print would do into the middle of a progress bar
            if picture:
                write_figure(picture, plot_tags(tagging.spectrogram, tagging.ends[-1], tagging.starts, tagging.ends,
                                                tagging.scores, tagging.labels.names, Path(tagging.path).name))
        taggings.append(replace(tagging, spectrogram=None))  # an hour's are megabytes
    write_results(args, taggings)
    return len(taggings), sum(tagging.error is not None for tagging in taggings)


def write_results(args, taggings):
    """Write the files that the options ask for."""
    if args.json:
        write_json(args.json, [as_json(tagging, args.top_k) for tagging in taggings])
    if args.csv:
        write_csv(args.csv, taggings)
    if args.embeddings:
        write_embeddings(args.embeddings, taggings)


def main(argv=None):
    """Entry point."""
    parser = make_parser()
    args = parser.parse_args(argv)
    check_options(parser, args)
    setup_logging()
    limit_threads()
    with exit_on(DataError, TrainingError, WeightsError, OSError):
        try:
            files, failed = infer(args)
        except KeyboardInterrupt:
            sys.exit('stopped')
    if failed:
        sys.exit(f'error: {failed} of {files} files could not be read; what is wrong with them is said above')


if __name__ == '__main__':
    main()
