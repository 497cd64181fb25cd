"""Read a dataset from folders: one folder per class, with or without a split above them."""
import logging
import os
from collections import Counter
from pathlib import Path

from audio.formats import AUDIO_SUFFIXES
from own_clips import LabelledClip
from utilities.errors import DataError
from utilities.folders import files_below
from utilities.formatting import shortened

# What people call the parts of a split -> what we call them.
PARTS = {'train': 'train', 'val': 'val', 'valid': 'val', 'validation': 'val', 'dev': 'val',
         'test': 'test', 'eval': 'test'}

logger = logging.getLogger(__name__)


def read_folders(root: Path) -> list[LabelledClip]:
    """Return the clips below a folder.

    It holds one folder per class; or train, val and perhaps test, each with such folders.

    Raises:
        DataError: it is neither, or holds no audio files.
    """
    clips: list[LabelledClip] = []
    left_out: Counter[str] = Counter()  # files, by kind
    for part, top in _parts_of(root).items():
        beside = [entry for entry in top.iterdir() if entry.is_file() and _is_visible(entry)]
        left_out['beside the class folders'] += len(beside)
        for folder in _subfolders(top):
            paths = _audio_files(folder, left_out)
            if not paths:
                logger.warning('%s holds no audio files and is left out', folder)
            clips += [LabelledClip(path, (folder.name,), part) for path in paths]
    if left_out.total():
        kinds = shortened(f'{n} {kind}' for kind, n in left_out.most_common() if n)
        logger.info('files left out: %d (%s)', left_out.total(), kinds)
    if not clips:
        others = ', '.join(sorted(AUDIO_SUFFIXES - {'.wav'}))
        raise DataError(f'{root} holds no audio files in folders, one per class: expected '
                        f'{root}/<class>/*.wav (or {others}), or give a CSV file')
    return clips


def _parts_of(root):
    """Return {part: the folder of its class folders}. Without a split: {'': root}."""
    folders = _subfolders(root)
    named = [(PARTS[folder.name.lower()], folder) for folder in folders
             if folder.name.lower() in PARTS]
    parts = dict(named)
    if 'train' not in parts or len(parts) < 2:
        return {'': root}
    if 'val' not in parts or len(named) > len(parts) or len(folders) > len(named):
        raise DataError(f'{root} holds {shortened(folder.name for folder in folders)}: a split in '
                        f'folders is exactly train, val and perhaps test, with one folder per '
                        f'class in each')
    return parts


def _is_visible(path):
    return not path.name.startswith('.')


def _subfolders(folder):
    """Return the sorted subfolders, without hidden ones."""
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and _is_visible(entry))


def _audio_files(folder, left_out):
    """Return the sorted absolute paths of the audio files below a folder, as text.

    Other files are counted in left_out, by their suffix.
    """
    paths = []
    for path in map(Path, files_below(folder)):
        suffix = path.suffix.lower()
        if suffix in AUDIO_SUFFIXES:
            paths.append(os.path.abspath(path))
        elif _is_visible(path):
            left_out[suffix or 'without suffix'] += 1
    return sorted(paths)
