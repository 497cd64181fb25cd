"""ESC-50 (Piczak, ACM MM 2015): read it, copy its clips at 16 kHz, write the datafiles.

prep_esc50.py is the program for it.
"""
import csv
import functools
import io
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import soundfile
import zipp

from audio.fbank import SAMPLE_RATE
from audio.info import read_duration
from audio.reading import AudioError, load_waveform
from models.atomic import atomic_write
from models.downloads import Url
from utilities.archives import open_zip
from utilities.errors import DataError, error_reason
from utilities.labels import Labels, read_labels
from utilities.parallel import parallel_map
from utilities.preparation import (
    changed_error,
    check_names,
    download_dataset,
    find_published,
    is_prepared,
    record_source,
)
from utilities.tables import quote_cells, read_table
from utilities.texts import decode, read_json, write_json

ESC50_URL = 'https://github.com/karoldvl/ESC-50/archive/master.zip'
PUBLISHED_FOLDER = 'ESC-50-master'  # the published recipe unpacks the dataset into it
HERE = Path(__file__).resolve().parent
LABEL_FILE = HERE / 'data' / 'esc_class_labels_indices.csv'
META_COLUMNS = {'filename', 'fold', 'target', 'category'}
FOLDS = range(1, 6)


@dataclass(frozen=True)
class Clip:
    """A row of meta/esc50.csv: a file in audio/, its fold (one of FOLDS), its class index."""
    filename: str
    fold: int
    target: int


def find_root(source: str | Path) -> Path | zipp.Path:
    """Return the folder of the dataset, with meta/ and audio/ in it.

    Args:
        source: that folder, the folder above it, or a zip file of either.

    Raises:
        DataError: if there is no dataset, or the zip file is broken.
    """
    source = Path(source)
    if not source.exists():
        raise DataError(f'--data_dir {source} does not exist')
    top = source if source.is_dir() else open_zip(source)
    below = sorted((entry for entry in top.iterdir() if entry.is_dir()), key=str)
    for folder in (top, *below):
        if (folder / 'meta' / 'esc50.csv').is_file():
            return folder
    raise DataError(f"{source} is not in ESC-50's layout: there is no meta/esc50.csv in it")


def read_bytes(path: Path | zipp.Path) -> bytes:
    """Return the contents of a file of the dataset. Raises DataError."""
    try:
        return path.read_bytes()
    except Exception as error:  # zipfile raises nearly anything for a broken file
        raise DataError(f'{path} cannot be read: {error}') from None


def read_clips(root: Path | zipp.Path, labels: Labels) -> list[Clip]:
    """Read meta/esc50.csv. Raises DataError for a row that does not go with the label file."""
    meta = root / 'meta' / 'esc50.csv'
    try:
        _, rows, _ = read_table(decode(read_bytes(meta)), META_COLUMNS.issubset)
    except (ValueError, csv.Error) as error:
        raise DataError(f'cannot read {meta} as a CSV: {error_reason(error)}') from None
    clips, copies = [], set()
    for line, row in rows:
        clip = read_row(row, labels)
        if clip is None:
            raise DataError(f'{meta}, line {line}: expected a file name, a fold from {FOLDS[0]} to '
                            f'{FOLDS[-1]}, and a target and category as in {LABEL_FILE.name}, got '
                            f'{quote_cells(row)}')
        if copy_name(clip.filename) in copies:
            raise DataError(f'{meta}, line {line}: {clip.filename} is listed twice, or differs '
                            f'from another file only in the suffix')
        copies.add(copy_name(clip.filename))
        clips.append(clip)
    if not clips:
        raise DataError(f'{meta} lists no clips')
    return clips


def read_row(row: dict, labels: Labels) -> Clip | None:
    """Return the clip of a row of meta/esc50.csv, or None if the row makes no sense."""
    try:
        clip = Clip(row['filename'], int(row['fold']), int(row['target']))
        is_class = labels.names[clip.target] == row['category']
        path = Path(clip.filename)
    except (KeyError, ValueError, TypeError, IndexError):
        return None
    is_name = path.stem and path.name == clip.filename  # not empty, and not a path
    return clip if is_name and is_class and clip.fold in FOLDS else None


def copy_name(filename: str) -> str:
    """Return the name of the 16 kHz copy of a clip."""
    return str(Path(filename).with_suffix('.wav'))


def convert_all(source: str, clips: list[Clip], audio_dir: Path) -> None:
    """Write the 16 kHz copies that are missing, with all cores. Raises AudioError, DataError."""
    audio_dir.mkdir(parents=True, exist_ok=True)
    missing = [clip.filename for clip in clips
               if not (audio_dir / copy_name(clip.filename)).exists()]
    convert_one = functools.partial(convert, source, audio_dir)
    for _ in parallel_map(convert_one, missing, 'resampling to 16 kHz', unit='clip'):
        pass


def convert(source: str, audio_dir: Path, filename: str) -> None:
    """Write the copy of a clip: a mono 16 kHz, 16-bit WAV. Raises AudioError, DataError."""
    clip = _find_root_once(source) / 'audio' / filename
    if not clip.is_file():
        raise AudioError(f'{clip} is listed in meta/esc50.csv but is not there')
    file = io.BytesIO(read_bytes(clip))
    end = read_duration(file, clip, trust_header=False).incomplete_from
    if end is not None:
        raise AudioError(f'{clip} ends after {end:.2f} s, before its header says, or is damaged: '
                         f'get it again')
    waveform = load_waveform(file, name=clip)
    with atomic_write(audio_dir / copy_name(filename)) as partial:
        soundfile.write(partial, waveform.numpy(), SAMPLE_RATE, subtype='PCM_16', format='WAV')


# A zip file is opened once per process: opening reads its whole table of contents. It is not opened
# before the processes are forked: they would share one position in the file.
_find_root_once = functools.lru_cache(maxsize=1)(find_root)


def write_datafiles(clips: list[Clip], labels: Labels, out_dir: Path) -> None:
    """Write two datafiles for each fold K.

    The clips of fold K are in esc_eval_data_K.json, all others in esc_train_data_K.json.
    """
    audio_dir, datafile_dir = out_dir / 'audio_16k', out_dir / 'datafiles'
    datafile_dir.mkdir(exist_ok=True)
    for fold in FOLDS:
        parts = {'train': [], 'eval': []}
        for clip in clips:
            entry = {'wav': str(audio_dir / copy_name(clip.filename)),
                     'labels': labels.mids[clip.target]}
            parts['eval' if clip.fold == fold else 'train'].append(entry)
        for name, entries in parts.items():
            write_json(datafile_dir / f'esc_{name}_data_{fold}.json', {'data': entries})


def check_unchanged(clips: list[Clip], labels: Labels, out_dir: Path) -> None:
    """Raise DataError if the datafiles list other clips, classes or folds than meta/esc50.csv."""
    expected = {(copy_name(clip.filename), labels.mids[clip.target], clip.fold) for clip in clips}
    folder = out_dir / 'datafiles'
    listed = {(Path(entry['wav']).name, entry.get('labels'), fold) for fold in FOLDS
              for entry in read_json(folder / f'esc_eval_data_{fold}.json')['data']}
    if listed != expected:
        raise changed_error(folder, 'meta/esc50.csv')


def check_zip(path: Path) -> None:
    """Raise an error if a zip file is not whole."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise DataError(f'{damaged} in it is damaged')


def prepare(data_dir: str | Path | None, out_dir: Path) -> None:
    """Prepare a dataset. What a broken-off preparation has finished is kept.

    Args:
        data_dir: the dataset, a folder or a zip file. If it is None, the dataset that the published
            recipe left in out_dir is used; if there is none, the dataset is downloaded.
        out_dir: folder for the copies and the datafiles.

    Raises:
        AudioError: if a clip is missing or broken.
        DataError: if the dataset cannot be used.
    """
    labels = read_labels(LABEL_FILE)
    check_names([out_dir])  # the datafiles list the copies in it
    out_dir.mkdir(parents=True, exist_ok=True)
    archive = out_dir / 'ESC-50-master.zip'
    published = None
    if not data_dir:
        published = find_published(out_dir, PUBLISHED_FOLDER, ['meta/esc50.csv'], [archive])
    source = str(Path(data_dir or published or archive).resolve())
    record_source(out_dir, source, out_dir / 'audio_16k')
    if is_prepared(out_dir / 'datafiles' / f'esc_eval_data_{fold}.json' for fold in FOLDS):
        if os.path.exists(source):
            check_unchanged(read_clips(find_root(source), labels), labels, out_dir)
        print(f'{out_dir} is prepared already')
        return
    if published:
        print(f'taking ESC-50 from {published}, which was there before')
    elif not data_dir:
        download_dataset(Url(ESC50_URL, archive), check_zip)
    clips = read_clips(find_root(source), labels)
    convert_all(source, clips, out_dir / 'audio_16k')
    write_datafiles(clips, labels, out_dir)
    report(clips, out_dir)


def report(clips: list[Clip], out_dir: Path) -> None:
    """Print how many clips there are."""
    classes = len({clip.target for clip in clips})
    sizes = ', '.join(str(sum(clip.fold == fold for clip in clips)) for fold in FOLDS)
    print(f'{len(clips)} clips of {classes} classes, folds of {sizes} clips, ready in {out_dir}')
