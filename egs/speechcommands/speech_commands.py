"""Speech Commands (Warden, arXiv:1804.03209): read it, split it, write datafiles. prep_sc.py starts it."""
import contextlib
import gzip
import logging
import os
import shutil
import tarfile
import zlib
from pathlib import Path

from tqdm import tqdm

from models.files import Url, WriteError
from utilities.archives import BLOCK, LimitedStream, extract_members
from utilities.errors import DataError, error_reason
from utilities.labels import read_labels
from utilities.preparation import check_names, check_not_mixed, fetch, find_published, is_prepared
from utilities.texts import read_text, write_json

SC_URL = 'https://storage.googleapis.com/download.tensorflow.org/data/speech_commands_v0.02.tar.gz'
PUBLISHED_FOLDER = 'speech_commands_v0.02'  # in which the published recipe unpacks the dataset
HERE = Path(__file__).resolve().parent
LABEL_FILE = HERE / 'data' / 'speechcommands_class_labels_indices.csv'
LISTS = {'valid': 'validation_list.txt', 'eval': 'testing_list.txt'}  # what neither lists is for training
OFFICIAL_SIZES = {'train': 84843, 'valid': 9981, 'eval': 11005}
# What tells other archives from the dataset: folders of the 12-class task's test archive, and the
# words that version 1 lacks.
TEST_ARCHIVE = ('_silence_', '_unknown_')
NEW_IN_VERSION_2 = {'backward', 'follow', 'forward', 'learn', 'visual'}
BACKGROUND = '_background_noise_'  # long recordings of no word
SUFFIXES = ('.wav', '.ogg', '.flac')  # of a clip that is there in several formats, the last is taken

logger = logging.getLogger(__name__)


def find_dataset(source, unpacked):
    """The folder with the words and the official lists in `source`, a folder or a tar.gz, which is unpacked."""
    if not source.is_dir():
        unpack(source, unpacked)
        source = unpacked
    for folder in (source, *sorted(entry for entry in source.iterdir() if entry.is_dir())):
        if all((folder / name).is_file() for name in LISTS.values()):
            return folder
    folders = (source, *source.iterdir())
    if any((folder / name).is_dir() for folder in folders for name in TEST_ARCHIVE):
        raise DataError(
            f'{source} is the test archive of the 12-class task (speech_commands_test_set: ten '
            f'words, {" and ".join(TEST_ARCHIVE)}), which has nothing to train on: give the '
            f'whole dataset, {PUBLISHED_FOLDER}, or leave --data_dir out to download it')
    raise DataError(f"{source} is not in Speech Commands' layout: the two official files "
                    f'{" and ".join(LISTS.values())} are needed beside the folders of the words')


def unpack(archive, folder):
    """Unpack a tar.gz into `folder`, which appears when it is whole; one that is there is kept."""
    if folder.is_dir():
        return
    if not archive.exists():
        raise DataError(f'--data_dir {archive} does not exist')
    partial = folder.with_name(f'.{folder.name}.partial')
    shutil.rmtree(partial, ignore_errors=True)  # of a start that was killed
    try:
        partial.mkdir()
        extract(archive, partial)
        partial.rename(folder)
    except OSError as error:
        raise WriteError(f'cannot unpack {archive} into {folder}: {error.strerror or error}') from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def extract(archive, folder):
    """Write what a tar.gz holds into `folder`. Raises DataError if it is broken, or not to be trusted."""
    if not hasattr(tarfile, 'data_filter'):
        raise DataError(f'Python before 3.11.4 cannot unpack {archive} safely: unpack it yourself and give its folder '
                        f'as --data_dir')
    with whole_gzip(archive) as stream:
        for _ in tqdm(extract_members(archive, stream, folder), desc='unpacking', unit='file', disable=None):
            pass


@contextlib.contextmanager
def whole_gzip(path):
    """Give a stream of the contents of a gzip file, a tar. Raises DataError if it is not whole, or too much."""
    try:
        with gzip.open(path) as file:
            stream = LimitedStream(path, file)
            yield stream
            while stream.read(BLOCK):  # to the end, where the checksum is
                pass
    except (EOFError, gzip.BadGzipFile, tarfile.TarError, zlib.error) as error:
        raise DataError(f'{path} is neither a folder nor a whole tar.gz ({error}): download it again') from None


def check_download(path, _):
    """Raise DataError if a download is not a whole gzip file."""
    with whole_gzip(path):
        pass


def list_words(root, known):
    """The folders in `root` that are named after known words, sorted; others are left out and named."""
    with os.scandir(root) as entries:
        folders = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith('.'))
    unknown = [folder for folder in folders if folder not in known and folder != BACKGROUND]
    if unknown:
        logger.warning('left out, since they are none of the %d words: %s', len(known), ', '.join(unknown))
    words = [folder for folder in folders if folder in known]
    if not words:
        raise DataError(f'{root} has no folder named after one of the {len(known)} words: {", ".join(known)}')
    return words


def list_clips(root, words):
    """{word/name without suffix: path} of every clip of these words."""
    clips = {}
    for word in words:
        with os.scandir(root / word) as entries:
            files = [(Path(entry.name), entry.path) for entry in entries if entry.is_file()]
        for suffix in SUFFIXES:
            clips.update((f'{word}/{name.stem}', path) for name, path in files
                         if name.suffix.lower() == suffix and not name.name.startswith('.'))
    return clips


def read_list(path):
    """The clips of an official list, lines like bed/0a1b_nohash_0.wav: a set of word/name without suffix."""
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


def split_clips(clips, root):
    """{'train', 'valid', 'eval': the clips of each, sorted} by the official lists in root."""
    listed = {split: read_list(root / name) for split, name in LISTS.items()}
    if both := listed['valid'] & listed['eval']:
        raise DataError(f'{len(both)} clips are in both {" and ".join(LISTS.values())} of {root}, {min(both)} for one')
    listed_at_all = listed['valid'] | listed['eval']
    if absent := listed_at_all - clips.keys():
        print(f'{len(absent):,} of the {len(listed_at_all):,} listed clips are not there, as is normal for a subset')
    splits = {'train': sorted(clips.keys() - listed_at_all),
              **{split: sorted(names & clips.keys()) for split, names in listed.items()}}
    for split, names in splits.items():
        if not names:
            reason = f'no clip that {LISTS[split]} lists' if split in LISTS else 'no clip that neither list names'
            raise DataError(f'{root} has {reason}: the {split} split would be empty')
    return splits


def is_version_1(root, labels):
    """Tell whether the official lists in root are version 1's: five words came with version 2."""
    listed = set().union(*(read_list(root / name) for name in LISTS.values()))
    return {name.partition('/')[0] for name in listed} == set(labels.names) - NEW_IN_VERSION_2


def report(splits, labels):
    """Say how many clips of how many words there are, and whether that is the official dataset."""
    sizes = {split: len(names) for split, names in splits.items()}
    words = {name.partition('/')[0] for names in splits.values() for name in names}
    print(f'{describe(sizes)} of {len(words)} words')
    if len(words) < len(labels):
        print(f'this is a subset: {len(words)} of {len(labels)} words')
    elif sizes == OFFICIAL_SIZES:
        print('these are the official numbers')
    else:
        logger.warning('these are not the official numbers: expected %s, found %s', describe(OFFICIAL_SIZES),
                       describe(sizes))


def describe(sizes):
    """The sizes of the splits in words."""
    return f'{sizes["train"]:,} training, {sizes["valid"]:,} validation and {sizes["eval"]:,} test clips'


def prepare(data_dir, out_dir):
    """Write the datafiles of a dataset into out_dir, unless they are there.

    It is the one at data_dir, else the one that the published recipe left in out_dir, else a
    download.
    """
    labels = read_labels(LABEL_FILE)
    out_dir.mkdir(parents=True, exist_ok=True)
    archive, unpacked, datafile_dir = out_dir / SC_URL.rpartition('/')[2], out_dir / 'audio', out_dir / 'datafiles'
    published = None if data_dir else find_published(out_dir, PUBLISHED_FOLDER, LISTS.values(),
                                                     [archive, unpacked])
    source = Path(data_dir or published or archive).resolve()
    check_names([source if source.is_dir() else unpacked])
    check_not_mixed(out_dir, str(source), unpacked, datafile_dir)
    datafiles = {split: datafile_dir / f'speechcommand_{split}_data.json' for split in OFFICIAL_SIZES}
    if is_prepared(datafiles.values()):
        print(f'{out_dir} is prepared already')
        return
    if published:
        print(f'taking Speech Commands from {published}, which was there before')
    elif data_dir is None and not unpacked.is_dir():
        fetch(Url(SC_URL, archive), check_download)
    root = find_dataset(source, unpacked)
    mids = dict(zip(labels.names, labels.mids))
    clips = list_clips(root, list_words(root, mids))
    check_names(clips.values())
    splits = split_clips(clips, root)
    datafile_dir.mkdir(exist_ok=True)
    for split, names in splits.items():
        write_json(datafiles[split], {'data': [{'wav': clips[name], 'labels': mids[name.partition('/')[0]]}
                                               for name in names]})
    report(splits, labels)
    if is_version_1(root, labels):
        logger.warning('this is version 1 of Speech Commands, with 30 words: five classes have no '
                       'clips, and the published results are of version 2; for that, give '
                       '%s or leave --data_dir out to download it', PUBLISHED_FOLDER)
