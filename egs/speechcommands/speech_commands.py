"""Speech Commands (Warden, arXiv:1804.03209): read it, split it, write the datafiles.

prep_sc.py is the program for it.
"""
import gzip
import logging
import os
import shutil
from collections.abc import Collection
from pathlib import Path

from models.atomic import WriteError
from models.downloads import Url
from utilities.archives import read_to_end, unpack_tar
from utilities.errors import DataError, error_reason
from utilities.labels import Labels, read_labels
from utilities.preparation import (
    changed_error,
    check_names,
    download_dataset,
    find_published,
    is_prepared,
    record_source,
)
from utilities.texts import read_json, read_text, write_json

SC_URL = 'https://storage.googleapis.com/download.tensorflow.org/data/speech_commands_v0.02.tar.gz'
PUBLISHED_FOLDER = 'speech_commands_v0.02'  # the published recipe unpacks the dataset into it
HERE = Path(__file__).resolve().parent
LABEL_FILE = HERE / 'data' / 'speechcommands_class_labels_indices.csv'
# The official lists of two splits. All other clips are for training.
LISTS = {'valid': 'validation_list.txt', 'eval': 'testing_list.txt'}
OFFICIAL_SIZES = {'train': 84843, 'valid': 9981, 'eval': 11005}
TEST_ARCHIVE = ('_silence_', '_unknown_')  # folders of the test archive of the 12-class task
NEW_IN_VERSION_2 = {'backward', 'follow', 'forward', 'learn', 'visual'}
BACKGROUND = '_background_noise_'  # a folder of long recordings without words
SUFFIXES = ('.wav', '.ogg', '.flac')  # if a clip is there in several formats, the last one counts

Splits = dict[str, list[dict[str, str]]]  # 'train', 'valid', 'eval' -> entries of a datafile

logger = logging.getLogger(__name__)


def find_root(source: Path, unpacked: Path) -> Path:
    """Return the folder with the words and the official lists.

    Args:
        source: that folder, the folder above it, or a tar.gz.
        unpacked: the folder into which a tar.gz is unpacked.

    Raises:
        DataError: if there is no dataset, or the tar.gz cannot be used.
    """
    if not source.is_dir():
        unpack(source, unpacked)
        source = unpacked
    folders = [source, *sorted(entry for entry in source.iterdir() if entry.is_dir())]
    for folder in folders:
        if all((folder / name).is_file() for name in LISTS.values()):
            return folder
    if any((folder / name).is_dir() for folder in folders for name in TEST_ARCHIVE):
        raise DataError(
            f'{source} is the test archive of the 12-class task (speech_commands_test_set: ten '
            f'words, {" and ".join(TEST_ARCHIVE)}), which has nothing to train on: give the '
            f'whole dataset, {PUBLISHED_FOLDER}, or leave --data_dir out to download it')
    raise DataError(f"{source} is not in Speech Commands' layout: the two official files "
                    f'{" and ".join(LISTS.values())} are needed beside the folders of the words')


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar.gz, unless that is done. The folder appears when all of it is unpacked."""
    if folder.is_dir():
        return
    if not archive.exists():
        raise DataError(f'--data_dir {archive} does not exist')
    partial = folder.with_name(f'.{folder.name}.partial')
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    try:
        partial.mkdir()
        unpack_tar(archive, partial)
        partial.rename(folder)
    except OSError as error:
        raise WriteError(f'cannot unpack {archive} into {folder}: '
                         f'{error.strerror or error}') from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_gzip(path: Path) -> None:
    """Raise an error if a gzip file is not whole."""
    with gzip.open(path) as file:
        read_to_end(file)


def list_words(root: Path, known: Collection[str]) -> list[str]:
    """Return the known words that have a folder in root, sorted. Warn of other folders."""
    with os.scandir(root) as entries:
        folders = sorted(entry.name for entry in entries
                         if entry.is_dir() and not entry.name.startswith('.'))
    unknown = [folder for folder in folders if folder not in known and folder != BACKGROUND]
    if unknown:
        logger.warning('left out, since they are none of the %d words: %s', len(known),
                       ', '.join(unknown))
    words = [folder for folder in folders if folder in known]
    if not words:
        raise DataError(f'{root} has no folder named after one of the {len(known)} words: '
                        f'{", ".join(known)}')
    return words


def list_clips(root: Path, words: list[str]) -> dict[str, str]:
    """Return the path of every clip of these words, under the name word/file without suffix."""
    clips = {}
    for word in words:
        with os.scandir(root / word) as entries:
            files = [(Path(entry.name), entry.path) for entry in entries if entry.is_file()]
        for suffix in SUFFIXES:
            for name, path in files:
                if name.suffix.lower() == suffix and not name.name.startswith('.'):
                    clips[f'{word}/{name.stem}'] = path
    return clips


def read_list(path: Path) -> set[str]:
    """Return the clips in an official list, as word/file without suffix.

    The list has lines like bed/0a1b_nohash_0.wav.
    """
    listed = set()
    try:
        lines = read_text(path).split('\n')
    except ValueError as error:
        raise DataError(f'cannot read {path}: {error_reason(error)}') from None
    for number, line in enumerate(lines, start=1):
        name, _ = os.path.splitext(line.strip().replace('\\', '/'))
        if name and name.count('/') != 1:
            raise DataError(f'{path}, line {number}: expected word/file.wav, got {line[:200]}')
        listed.add(name)
    return listed - {''}


def split_clips(clips: Collection[str], root: Path) -> dict[str, list[str]]:
    """Split the names of clips by the official lists in root.

    Returns:
        The sorted names for 'train', 'valid' and 'eval'.

    Raises:
        DataError: if a clip is in both lists, or a split is empty.
    """
    listed = {split: read_list(root / name) for split, name in LISTS.items()}
    if both := listed['valid'] & listed['eval']:
        raise DataError(f'{len(both)} clips are in both {" and ".join(LISTS.values())} of {root}, '
                        f'for example {min(both)}')
    in_lists, there = listed['valid'] | listed['eval'], set(clips)
    if missing := in_lists - there:
        print(f'{len(missing):,} of the {len(in_lists):,} listed clips are not there, as is normal '
              f'for a subset')
    splits = {'train': sorted(there - in_lists)}
    splits |= {split: sorted(names & there) for split, names in listed.items()}
    for split, names in splits.items():
        if not names:
            reason = ('no clips besides those in the two lists' if split == 'train' else
                      f'no clip that {LISTS[split]} lists')
            raise DataError(f'{root} has {reason}: the {split} split would be empty')
    return splits


def is_version_1(root: Path, labels: Labels) -> bool:
    """Return whether the official lists are those of version 1, which lacks five words."""
    listed = set().union(*(read_list(root / name) for name in LISTS.values()))
    return {word_of(name) for name in listed} == set(labels.names) - NEW_IN_VERSION_2


def word_of(name: str) -> str:
    """Return the word of a clip, given its name word/file."""
    return name.partition('/')[0]


def report(splits: Splits, labels: Labels) -> None:
    """Print how many clips and words there are, and whether that is the official dataset."""
    sizes = {split: len(entries) for split, entries in splits.items()}
    words = {entry['labels'] for entries in splits.values() for entry in entries}
    print(f'{sizes_text(sizes)} of {len(words)} words')
    if len(words) < len(labels):
        print(f'this is a subset: {len(words)} of {len(labels)} words')
    elif sizes == OFFICIAL_SIZES:
        print('these are the official numbers')
    else:
        logger.warning('these are not the official numbers: expected %s, found %s',
                       sizes_text(OFFICIAL_SIZES), sizes_text(sizes))


def sizes_text(sizes: dict[str, int]) -> str:
    """Return the sizes of the splits as text."""
    return (f'{sizes["train"]:,} training, {sizes["valid"]:,} validation and {sizes["eval"]:,} '
            f'test clips')


def prepare(data_dir: str | Path | None, out_dir: Path) -> None:
    """Write the datafiles of a dataset, unless that is done.

    Args:
        data_dir: the dataset, a folder or a tar.gz. If it is None, the dataset that the published
            recipe left in out_dir is used; if there is none, the dataset is downloaded.
        out_dir: folder for the datafiles, and for what a tar.gz holds.

    Raises:
        DataError: if the dataset cannot be used.
    """
    labels = read_labels(LABEL_FILE)
    out_dir.mkdir(parents=True, exist_ok=True)
    archive = out_dir / SC_URL.rpartition('/')[2]
    unpacked, datafile_dir = out_dir / 'audio', out_dir / 'datafiles'
    published = None
    if not data_dir:
        published = find_published(out_dir, PUBLISHED_FOLDER, LISTS.values(), [archive, unpacked])
    source = Path(data_dir or published or archive).resolve()
    check_names([source if source.is_dir() else unpacked])
    record_source(out_dir, str(source), unpacked, datafile_dir)
    datafiles = {split: datafile_dir / f'speechcommand_{split}_data.json'
                 for split in OFFICIAL_SIZES}
    if is_prepared(datafiles.values()):
        if data_dir and source.is_dir():
            check_unchanged(make_entries(find_root(source, unpacked), labels), datafiles)
        print(f'{out_dir} is prepared already')
        return
    if published:
        print(f'taking Speech Commands from {published}, which was there before')
    elif not data_dir and not unpacked.is_dir():
        download_dataset(Url(SC_URL, archive), check_gzip)
    write_datafiles(find_root(source, unpacked), labels, datafiles)


def make_entries(root: Path, labels: Labels) -> Splits:
    """Return the entries of the datafile of each split."""
    mids = dict(zip(labels.names, labels.mids, strict=True))
    clips = list_clips(root, list_words(root, mids))
    check_names(clips.values())
    splits = split_clips(clips, root)
    return {split: [{'wav': clips[name], 'labels': mids[word_of(name)]} for name in names]
            for split, names in splits.items()}


def check_unchanged(entries: Splits, datafiles: dict[str, Path]) -> None:
    """Raise DataError if the datafiles list other clips than the dataset has by now."""
    for split, path in datafiles.items():
        if read_json(path)['data'] != entries[split]:
            raise changed_error(path.parent, 'the dataset')


def write_datafiles(root: Path, labels: Labels, datafiles: dict[str, Path]) -> None:
    """Write the datafile of each split, and say what is in them."""
    entries = make_entries(root, labels)
    for split, path in datafiles.items():
        path.parent.mkdir(exist_ok=True)
        write_json(path, {'data': entries[split]})
    report(entries, labels)
    if is_version_1(root, labels):
        logger.warning('this is version 1 of Speech Commands, with 30 words: five classes have no '
                       'clips, and the published results are of version 2; for that, give '
                       '%s or leave --data_dir out to download it', PUBLISHED_FOLDER)
