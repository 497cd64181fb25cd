"""ESC-50 (Piczak, ACM MM 2015): read it, copy the clips at 16 kHz, write datafiles. prep_esc50.py starts it."""
import csv
import functools
import io
from dataclasses import dataclass
from pathlib import Path

import soundfile
import zipp

from audio.fbank import SAMPLE_RATE
from audio.reading import AudioError, load_waveform, measure
from models.files import Url, atomic_write
from utilities.archives import open_zip, read_member
from utilities.errors import DataError, error_reason
from utilities.labels import read_labels
from utilities.parallel import parallel_map
from utilities.preparation import check_names, check_not_mixed, fetch, find_published, is_prepared
from utilities.tables import quote_cells, read_table
from utilities.texts import decode, write_json

ESC50_URL = 'https://github.com/karoldvl/ESC-50/archive/master.zip'
PUBLISHED_FOLDER = 'ESC-50-master'  # in which the published recipe unpacks the dataset
HERE = Path(__file__).resolve().parent
LABEL_FILE = HERE / 'data' / 'esc_class_labels_indices.csv'
META_COLUMNS = {'filename', 'fold', 'target', 'category'}
FOLDS = range(1, 6)


@dataclass(frozen=True)
class Clip:
    """One row of meta/esc50.csv: a file below audio/, its fold (1 to 5) and its class index."""
    filename: str
    fold: int
    target: int


def dataset_root(source):
    """The folder with meta/ and audio/ in `source`, a folder or a zip: itself, or the one folder in it.

    Raises DataError if there is none, and for a zip that is not to be trusted.
    """
    source = Path(source)
    if not source.exists():
        raise DataError(f'--data_dir {source} does not exist')
    top = source if source.is_dir() else zipp.Path(open_zip(source))
    for folder in (top, *sorted((entry for entry in top.iterdir() if entry.is_dir()), key=str)):
        if (folder / 'meta' / 'esc50.csv').is_file():
            return folder
    raise DataError(f"{source} is not in ESC-50's layout: there is no meta/esc50.csv in it")


def read_bytes(path):
    """What a file of the dataset holds, a pathlib.Path or a zipp.Path. Raises DataError, of a folder OSError."""
    return read_member(path.root, path.at) if isinstance(path, zipp.Path) else path.read_bytes()


def read_rows(meta):
    """Return the rows of a CSV as a list of (line, dict). Raises DataError if it is none."""
    try:
        return read_table(decode(read_bytes(meta)), META_COLUMNS.issubset)[1]
    except (ValueError, csv.Error) as error:
        raise DataError(f'cannot read {meta} as a CSV: {error_reason(error)}') from None


def read_meta(root, labels):
    """Read meta/esc50.csv and check every row against the label file. Returns a list of Clips; raises DataError."""
    meta = root / 'meta' / 'esc50.csv'
    clips, names = [], set()
    for line, row in read_rows(meta):
        try:
            clip = Clip(row['filename'], int(row['fold']), int(row['target']))
            fits = clip.fold in FOLDS and labels.names[clip.target] == row['category']
        except (KeyError, ValueError, TypeError, IndexError):
            fits = False
        if not fits or not Path(clip.filename).stem or Path(clip.filename).name != clip.filename:
            raise DataError(f'{meta}, line {line}: expected a file name, a fold from 1 to 5, and a target and category '
                            f'as in {LABEL_FILE.name}, got {quote_cells(row)}')
        if wav_path(Path(), clip) in names:
            raise DataError(f'{meta}, line {line}: {clip.filename} is listed twice, or another file of that name but '
                            f'for the suffix')
        names.add(wav_path(Path(), clip))
        clips.append(clip)
    if not clips:
        raise DataError(f'{meta} lists no clips')
    return clips


def convert_all(source, clips, audio_dir):
    """Write a 16 kHz copy of every clip that has none yet, with all cores. Raises AudioError for a broken one."""
    audio_dir.mkdir(parents=True, exist_ok=True)
    to_do = [clip.filename for clip in clips if not wav_path(audio_dir, clip).exists()]
    for _ in parallel_map(functools.partial(convert, source, audio_dir), to_do, 'resampling to 16 kHz', unit='clip'):
        pass


def convert(source, audio_dir, filename):
    """Write one clip as a mono 16 kHz, 16-bit WAV."""
    clip = cached_root(source) / 'audio' / filename
    if not clip.is_file():
        raise AudioError(f'{clip} is listed in meta/esc50.csv but is not there')
    file = io.BytesIO(read_bytes(clip))
    end = measure(file, clip, trust_header=False).incomplete_from
    if end is not None:
        raise AudioError(f'{clip} ends after {end:.2f} s, before its header says, or is damaged: '
                         f'get it again')
    waveform = load_waveform(file, name=clip)
    with atomic_write(audio_dir / Path(filename).with_suffix('.wav')) as partial:
        soundfile.write(partial, waveform.numpy(), SAMPLE_RATE, subtype='PCM_16', format='WAV')


# Opening a zip reads its whole table of contents: once a process, not once a clip.
cached_root = functools.lru_cache(maxsize=1)(dataset_root)


def wav_path(audio_dir, clip):
    """Where the 16 kHz copy of a clip is."""
    return audio_dir / Path(clip.filename).with_suffix('.wav')


def write_datafiles(clips, labels, out_dir):
    """Write esc_train_data_K.json and esc_eval_data_K.json for each fold K: fold K evaluates, the others train."""
    entries = [(clip.fold, {'wav': str(wav_path(out_dir / 'audio_16k', clip)), 'labels': labels.mids[clip.target]})
               for clip in clips]
    (out_dir / 'datafiles').mkdir(exist_ok=True)
    for fold in FOLDS:
        for name, chosen in (('train', [entry for f, entry in entries if f != fold]),
                             ('eval', [entry for f, entry in entries if f == fold])):
            write_json(out_dir / 'datafiles' / f'esc_{name}_data_{fold}.json', {'data': chosen})


def check_zip(path, _):
    """Raise ValueError if a download is not a whole zip file, or not to be trusted."""
    with open_zip(path) as archive:
        if archive.testzip() is not None:
            raise ValueError('the download is not a whole zip file')


def prepare(data_dir, out_dir):
    """Prepare a dataset into out_dir; what is there already is kept.

    It is the one at data_dir, else the one that the published recipe left in out_dir, else a
    download.
    """
    labels = read_labels(LABEL_FILE)
    check_names([out_dir])  # where the copies go that the datafiles list
    out_dir.mkdir(parents=True, exist_ok=True)
    archive = out_dir / 'ESC-50-master.zip'
    published = None if data_dir else find_published(out_dir, PUBLISHED_FOLDER, ['meta/esc50.csv'],
                                                     [archive])
    source = str(Path(data_dir or published or archive).resolve())
    check_not_mixed(out_dir, source, out_dir / 'audio_16k')
    if is_prepared([out_dir / 'datafiles' / f'esc_eval_data_{fold}.json' for fold in FOLDS]):
        print(f'{out_dir} is prepared already')
        return
    if published:
        print(f'taking ESC-50 from {published}, which was there before')
    elif data_dir is None:
        fetch(Url(ESC50_URL, archive), check_zip)
    clips = read_meta(dataset_root(source), labels)
    convert_all(source, clips, out_dir / 'audio_16k')
    write_datafiles(clips, labels, out_dir)
    sizes = [sum(clip.fold == fold for clip in clips) for fold in FOLDS]
    print(f'{len(clips)} clips of {len({clip.target for clip in clips})} classes, folds of '
          f'{", ".join(map(str, sizes))} clips, ready in {out_dir}')
