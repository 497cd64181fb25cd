"""Prepare a dataset of your own: from one folder per class or a CSV, make a label file, datafiles and run options."""
import csv
import functools
import hashlib
import itertools
import logging
import os
import re
import sys
from collections import Counter
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'src'))
from audio import shards
from audio.fbank import FRAME_SHIFT_MS
from audio.formats import AUDIO_SUFFIXES
from audio.reading import AudioError, measure
from models.files import WriteError
from own_split import Clip, SplitConf, shortened, split_clips, warn_of_rare, warn_of_shared_groups
from utilities.cli import OptionParser, exit_on, number, seed, setup_logging, whole
from utilities.errors import DataError, error_reason
from utilities.folders import files_below
from utilities.formatting import quoted
from utilities.labels import Labels, format_labels, read_labels
from utilities.parallel import parallel_map
from utilities.preparation import check_names, check_not_mixed, only_one
from utilities.tables import find_file, read_table
from utilities.texts import read_text, write_json, write_text

# Our names of a CSV's columns, and the headers that they go by; the first that is there counts.
COLUMNS = {'path': ('path', 'file', 'filename', 'wav', 'filepath'), 'labels': ('labels', 'label', 'class', 'category'),
           'fold': ('fold',), 'split': ('split',), 'group': ('group',)}
NEEDED_COLUMNS = ('path', 'labels')
# Names of a given split's parts.
PARTS = {'train': 'train', 'val': 'val', 'valid': 'val', 'validation': 'val', 'dev': 'val',
         'test': 'test', 'eval': 'test'}
LENGTH_PERCENTILE = 95  # of the durations, which the model's input is as long as
MIN_FRAMES, MAX_FRAMES = 16, 1024  # one patch; the input of the published AudioSet weights
MAX_SHARE = 0.45  # of the validation and of the test set: something must be left to train on

logger = logging.getLogger(__name__)


def read_source(data):
    """The Clips of a folder or a CSV. Raises DataError if it is neither or cannot be understood."""
    if data.is_dir():
        clips = read_tree(data)
    elif data.is_file():
        clips = read_csv(data)
    else:
        raise DataError(f'--data {data} does not exist')
    check_names(clip.wav for clip in clips)
    return clips


def read_tree(root):
    """The Clips of a tree with one folder per class, or with train, val and perhaps test above such folders."""
    clips, left_out = [], Counter()
    for part, top in parts_of(root).items():
        count_left_out(left_out, (entry for entry in top.iterdir() if entry.is_file()), 'beside the class folders')
        for folder in subfolders(top):
            paths = audio_files(folder, left_out)
            if not paths:
                logger.warning('%s holds no audio files and is left out', folder)
            clips += [Clip(path, (folder.name,), part) for path in paths]
    if left_out:
        logger.info('files left out: %d (%s)', left_out.total(),
                    shortened(f'{n} {kind}' for kind, n in left_out.most_common()))
    if not clips:
        raise DataError(f'{root} holds no audio files in folders, one per class: expected {root}/<class>/*.wav (or '
                        f'{", ".join(sorted(AUDIO_SUFFIXES - {".wav"}))}), or give a CSV file')
    return clips


def parts_of(root):
    """{part: folder of class folders}, where the root is split so; else the root itself, as part ''."""
    folders = subfolders(root)
    named = [(PARTS[folder.name.lower()], folder) for folder in folders if folder.name.lower() in PARTS]
    parts = dict(named)
    if 'train' not in parts or len(parts) < 2:
        return {'': root}
    if 'val' not in parts or len(named) > len(parts) or len(folders) > len(named):
        raise DataError(f'{root} holds {shortened(folder.name for folder in folders)}: a split in folders is exactly '
                        f'train, val and perhaps test, with one folder per class in each')
    return parts


def subfolders(folder):
    """Sorted subfolders, without hidden ones."""
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith('.'))


def audio_files(folder, left_out):
    """Sorted absolute paths, as text, of the audio files below a folder; others are counted in left_out, by suffix."""
    paths = []
    for path in map(Path, files_below(folder)):
        if path.suffix.lower() in AUDIO_SUFFIXES:
            paths.append(os.path.abspath(path))
        else:
            count_left_out(left_out, [path])
    return sorted(paths)


def count_left_out(left_out, paths, kind=None):
    """Count files that are not hidden, by kind or suffix."""
    left_out.update(kind or path.suffix.lower() or 'without suffix' for path in paths if not path.name.startswith('.'))


def read_csv(path):
    """Return the Clips of a CSV; an empty cell of labels makes a negative.

    Paths in it are relative to its folder. Raises DataError with the line that is wrong.
    """
    rows = read_rows(path)
    # A comma may be part of a name where another separator is in use.
    separator = '[;|]' if any(re.search('[;|]', cells['labels']) for _, cells in rows) else ','
    if separator == ',' and any(',' in cells['labels'] for _, cells in rows):
        logger.warning('%s: labels with a comma are read as several; to keep commas in names, separate with ;', path)
    clips, lines = [], {}
    for line, cells in rows:
        labels = tuple(label for text in re.split(separator, cells['labels']) if (label := text.strip()))
        part = PARTS.get(cells.get('split', '').lower(), '')
        wav = find_file(path.parent, cells['path'], functools.partial(is_file, path))
        if cells['labels'] and not labels:
            raise DataError(f'{path}, line {line}: there is no label in {quoted(cells["labels"])}')
        if 'split' in cells and not part:
            raise DataError(f'{path}, line {line}: the split {quoted(cells["split"])} is none of {", ".join(PARTS)}')
        if wav in lines:
            raise DataError(f'{path}, lines {lines[wav]} and {line}: {quoted(cells["path"])} is listed twice; several '
                            f'labels of a file belong in one cell, separated by ;')
        lines[wav] = line
        clips.append(Clip(wav, labels, part, cells.get('fold', ''), cells.get('group', '')))
    missing = [clip.wav for clip in clips if not is_file(path, clip.wav)]
    if missing:
        raise DataError(f'{path}: {len(missing)} of {len(clips)} audio files do not exist, the first is '
                        f'{quoted(missing[0])}; paths are relative to the folder of the CSV')
    return clips


def is_file(path, wav):
    """Tell whether an audio file of the CSV at `path` is there; for a broken shard, DataError."""
    try:
        return shards.is_file(wav)
    except shards.ShardError as error:
        raise DataError(f'{path}: {" ".join(str(error).split())}') from None


def read_rows(path):
    """Return the rows of a CSV as (line, {our name of a column: cell}); raises DataError.

    Only cells of labels may be empty.
    """
    try:
        header, rows, separator = read_table(read_text(path), has_needed_columns)
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f'cannot read {path} as a CSV: {error_reason(error)}') from None
    columns = find_columns(path, header)
    for line, row in rows:
        if None in row or None in row.values():
            raise DataError(f'{path}, line {line}: there are not as many cells as in the header; '
                            f'a cell with {separator!r} in it needs quotes')
        for name, column in columns.items():
            if name != 'labels' and not row[column].strip():
                raise DataError(f'{path}, line {line}: the column {quoted(column)} is empty')
    if not rows:
        raise DataError(f'{path} lists no files')
    return [(line, {name: row[column].strip() for name, column in columns.items()}) for line, row in rows]


def name_columns(header):
    """Return {our name of a column: its cell in the header} of the columns that we know."""
    by_name = {cell.strip().lower(): cell for cell in reversed(header)}
    return {name: next(by_name[word] for word in words if word in by_name)
            for name, words in COLUMNS.items() if not by_name.keys().isdisjoint(words)}


def has_needed_columns(header):
    """Tell whether a header names the columns that every CSV needs."""
    return name_columns(header).keys() >= set(NEEDED_COLUMNS)


def find_columns(path, header):
    """Return what name_columns does. Raises DataError if columns are missing, or one too many."""
    columns = name_columns(header)
    if {'fold', 'split'} <= columns.keys():
        raise DataError(f'{path} has the columns fold and split: leave one of them out')
    if not has_needed_columns(header):
        wanted = '; '.join(f'{name}: {" or ".join(words)}' for name, words in COLUMNS.items())
        raise DataError(f'{path} begins with the columns {quoted(", ".join(header))}, but '
                        f'{" and ".join(NEEDED_COLUMNS)} are needed; '
                        f'columns are known by these names: {wanted}')
    return columns


def make_labels(clips, label_csv):
    """The Labels of the clips, sorted by name, or those of a label file; and the clips with mids for labels.

    Raises DataError for a label that is not in the label file, and if there is nothing to tell
    apart: less than two classes, and of one, no negatives.
    """
    if label_csv:
        labels = read_labels(label_csv)
        repeated = Counter(labels.names)
        mid_of = {name: mid for name, mid in zip(labels.names, labels.mids) if repeated[name] == 1}
        mid_of |= zip(labels.mids, labels.mids)
    else:
        names = sorted({label for clip in clips for label in clip.labels})
        labels = Labels(make_mids(names), tuple(names))
        mid_of = dict(zip(names, labels.mids))
    for clip in clips:
        for label in clip.labels:
            if label not in mid_of:
                raise DataError(f'{clip.wav}: the label {quoted(label)} is neither a mid nor the name of a single '
                                f'class in {label_csv}; several labels are separated by ;, or all through a CSV by ,')
    if not labels:
        raise DataError('no clip has a label: there is no class to learn')
    if len(labels) < 2 and all(clip.labels for clip in clips):
        raise DataError(f'there is but one class, {labels.names[0]}: expected at least two (or, in '
                        f'a CSV, clips without a label); of a tree, give the folder that holds the '
                        f'class folders')
    # A class counts once, though a clip may give both its name and its mid.
    return labels, [replace(clip, labels=tuple(dict.fromkeys(map(mid_of.get, clip.labels)))) for clip in clips]


def make_mids(names):
    """A mid for each name: the name itself, in which a comma, as it separates mids, becomes _; numbered where taken."""
    taken = {name for name in names if ',' not in name}
    mids = []
    for name in names:
        mid = name.replace(',', '_')
        if mid != name:
            numbered = (f'{mid}_{n}' for n in itertools.count(2))
            mid = next(new for new in itertools.chain([mid], numbered) if new not in taken)
            taken.add(mid)
        mids.append(mid)
    return tuple(mids)


def read_durations(clips, datafiles, label_csv):
    """Seconds of each clip. Raises AudioError that names the first of those that cannot be read."""
    answers = list(parallel_map(read_length, [clip.wav for clip in clips], 'reading lengths'))
    broken = [answer for answer in answers if isinstance(answer, str)]
    if broken:
        raise AudioError(f'{len(broken)} of {len(clips)} audio files cannot be used, the first of them: {broken[0]}; '
                         f'remove or replace them and start again; python src/check_data.py '
                         f'{" ".join(map(str, datafiles))} --label_csv {label_csv} looks into all of them')
    incomplete = [clip.wav for clip, length in zip(clips, answers)
                  if length.incomplete_from is not None]
    if incomplete:
        logger.warning('%d audio files end before their header says, or are damaged, and are used '
                       'up to there; the first: %s', len(incomplete), incomplete[0])
    return np.array([length.seconds for length in answers])


def read_length(wav):
    """Return the Length of an audio file, found by reading all of it, or as text why it cannot be used."""
    try:
        return measure(wav, trust_header=False)
    except AudioError as error:
        return str(error)


def choose_options(clips, labels, seconds):
    """Options for src/run.py that follow from the data: {name: value}."""
    single = all(len(clip.labels) == 1 for clip in clips)
    frames = round(float(np.percentile(seconds, LENGTH_PERCENTILE)) * 1000 / FRAME_SHIFT_MS)
    return {'n_class': len(labels), 'loss': 'CE' if single else 'BCE', 'metrics': 'acc' if single else 'mAP',
            'audio_length': min(max(frames, MIN_FRAMES), MAX_FRAMES)}


def describe(clips, labels, files, seconds, options):
    """The lines of the summary."""
    longer = int((seconds * 1000 / FRAME_SHIFT_MS > options['audio_length'] + 1).sum())
    negatives = sum(not clip.labels for clip in clips)
    return [f'{len(clips)} clips of {len(labels)} classes, {seconds.min():.2f} to {seconds.max():.2f} s long, median '
            f'{np.median(seconds):.2f} s',
            *([f'{negatives} clips have no label (negatives)'] if negatives else []),
            ', '.join(f'{name}: {len(chosen)} clips' for name, chosen in files.items()),
            ' '.join(f'--{name}={value}' for name, value in options.items())
            + f' (clips longer than these frames of 10 ms, which are cut: {longer})']


def fingerprint(clips, labels):
    """A few letters that are others as soon as a clip or a class is."""
    digest = hashlib.sha256(repr(labels).encode())
    for clip in clips:
        digest.update(repr(clip).encode())
    return digest.hexdigest()[:8]


def prepare(data, prep_dir, conf=SplitConf(), label_csv=None):
    """Prepare the dataset at data, a folder or a CSV, into prep_dir, or do nothing where that is done already."""
    data, prep_dir = Path(os.path.abspath(data)), Path(os.path.abspath(prep_dir))
    clips = read_source(data)
    labels, clips = make_labels(clips, label_csv)
    source = (f'{data} ({len(clips)} clips, val_share {conf.val_share}, test_share {conf.test_share}, '
              f'n_folds {conf.n_folds}, seed {conf.seed}, contents {fingerprint(clips, labels)})')
    folder, marker = prep_dir / 'datafiles', prep_dir / 'run_options.txt'
    if folder.exists() and any(folder.iterdir()) and not (prep_dir / 'source.json').exists():
        raise DataError(f'{folder} holds files of another origin: give another folder with --prep_dir')
    with only_one(prep_dir):
        check_not_mixed(prep_dir, source, marker)
        if marker.exists():
            print(f'{prep_dir} is prepared already')
            return
        for path in folder.glob('*_data*'):
            path.unlink()
        files = split_clips(clips, conf)
        warn_of_rare(files, labels)
        warn_of_shared_groups(files)
        folder.mkdir(exist_ok=True)
        write_text(prep_dir / 'labels.csv', format_labels(labels))
        for name, chosen in files.items():
            entries = [{'wav': clip.wav, 'labels': ','.join(clip.labels)} for clip in chosen]
            write_json(folder / f'{name}.json', {'data': entries})
        # Of folds, the two datafiles of the first list every clip.
        everything = [folder / f'{name}.json' for name in files if name.endswith(('_data', '_data_1'))]
        seconds = read_durations(clips, everything, prep_dir / 'labels.csv')
        options = choose_options(clips, labels, seconds)
        write_text(marker, ''.join(f'--{name}={value}\n' for name, value in options.items()))
    print('\n'.join(describe(clips, labels, files, seconds, options)))
    print(f'ready in {prep_dir}')


def main(argv=None):
    """Entry point."""
    parser = OptionParser(prog='prep_own.py', description=__doc__)
    add = parser.add_argument
    add('--data', type=Path, required=True,
        help='folder with one folder per class, or CSV with columns path and labels')
    add('--prep_dir', type=Path, required=True, help='where the prepared data go')
    add('--val_share', type=number(above=0, maximum=MAX_SHARE), default=SplitConf.val_share,
        help='share of the validation set')
    add('--test_share', type=number(0, MAX_SHARE), default=SplitConf.test_share, help='share of the test set')
    add('--n_folds', type=whole(0), default=SplitConf.n_folds, help='make so many folds instead; 0 for none')
    add('--seed', type=seed, default=SplitConf.seed, help='fixes the split')
    add('--label_csv', help='label file that fixes the classes and their order; without it, they come from the data')
    args = parser.parse_args(argv)
    if args.n_folds == 1 or (args.n_folds and args.test_share):
        parser.error('--n_folds wants at least two folds, and no --test_share beside it')
    setup_logging()
    with exit_on(AudioError, BrokenProcessPool, DataError, WriteError, OSError):
        prepare(args.data, args.prep_dir, SplitConf(args.val_share, args.test_share, args.n_folds, args.seed),
                args.label_csv)


if __name__ == '__main__':
    main()
