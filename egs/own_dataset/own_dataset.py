"""Prepare a dataset of one's own: label file, datafiles and the options of src/run.py."""
import hashlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from audio.fbank import FRAME_SHIFT_MS
from audio.info import Duration, read_duration
from audio.reading import AudioError
from own_clips import LabelledClip, SplitConf
from own_csv import read_csv
from own_folders import read_folders
from own_labels import make_labels
from own_split import split_clips, warn_of_rare_classes, warn_of_shared_groups
from utilities.errors import DataError
from utilities.labels import Labels, format_labels
from utilities.parallel import parallel_map
from utilities.preparation import check_names, locked_folder, record_source
from utilities.texts import write_json, write_text

LENGTH_PERCENTILE = 95  # of the durations: the length of the model's input
MIN_FRAMES, MAX_FRAMES = 16, 1024  # one patch; the input of the published AudioSet weights

Files = Mapping[str, Sequence[LabelledClip]]  # name of a datafile -> its clips

logger = logging.getLogger(__name__)


def prepare(data: str | PathLike[str], prep_dir: str | PathLike[str], conf: SplitConf = SplitConf(),
            label_csv: str | PathLike[str] | None = None) -> None:
    """Prepare a dataset, unless that is done already.

    Args:
        data: a folder or a CSV.
        prep_dir: where the prepared data go.
        conf: how to split clips that come without a split.
        label_csv: a label file that fixes the classes.

    Raises:
        DataError: the dataset cannot be understood, or prep_dir holds another one.
        AudioError: recordings cannot be read.
    """
    data, prep_dir = Path(os.path.abspath(data)), Path(os.path.abspath(prep_dir))
    clips = read_source(data)
    labels, clips = make_labels(clips, label_csv)
    source = (f'{data} ({len(clips)} clips, val_share {conf.val_share}, test_share '
              f'{conf.test_share}, n_folds {conf.n_folds}, seed {conf.seed}, contents '
              f'{fingerprint(clips, labels)})')
    folder, marker = prep_dir / 'datafiles', prep_dir / 'run_options.txt'
    has_files = folder.exists() and any(folder.iterdir())
    if has_files and not (prep_dir / 'source.json').exists():
        raise DataError(f'{folder} holds files, and nothing says what they were made from: give '
                        f'another folder with --prep_dir, or remove {folder} if nobody needs it')
    with locked_folder(prep_dir):
        record_source(prep_dir, source, marker)
        if marker.exists():
            print(f'{prep_dir} is prepared already')
            return
        files = split_clips(clips, conf)
        warn_of_rare_classes(files, labels)
        warn_of_shared_groups(files)
        datafiles = write_files(prep_dir, files, labels)
        seconds = read_durations(clips, datafiles, prep_dir / 'labels.csv')
        options = choose_options(clips, labels, seconds)
        write_text(marker, ''.join(f'--{name}={value}\n' for name, value in options.items()))
    print('\n'.join(summary_lines(clips, labels, files, seconds, options)))
    print(f'ready in {prep_dir}')


def read_source(data: Path) -> list[LabelledClip]:
    """Return the clips of a folder or a CSV. Raises DataError if it is neither."""
    if data.is_dir():
        clips = read_folders(data)
    elif data.is_file():
        clips = read_csv(data)
    else:
        raise DataError(f'--data {data} does not exist')
    check_names(clip.wav for clip in clips)
    return clips


def fingerprint(clips: Iterable[LabelledClip], labels: Labels) -> str:
    """Return a few letters that change if a clip or a class does."""
    digest = hashlib.sha256(repr(labels).encode())
    for clip in clips:
        digest.update(repr(clip).encode())
    return digest.hexdigest()[:8]


def write_files(prep_dir: Path, files: Files, labels: Labels) -> list[Path]:
    """Write the label file and the datafiles. Return datafiles that together list every clip."""
    folder = prep_dir / 'datafiles'
    for path in folder.glob('*_data*'):  # of an earlier start that was interrupted
        path.unlink()
    folder.mkdir(exist_ok=True)
    write_text(prep_dir / 'labels.csv', format_labels(labels))
    for name, clips in files.items():
        entries = [{'wav': clip.wav, 'labels': ','.join(clip.labels)} for clip in clips]
        write_json(folder / f'{name}.json', {'data': entries})
    # The two datafiles of the first fold list every clip.
    return [folder / f'{name}.json' for name in files if name.endswith(('_data', '_data_1'))]


def read_durations(clips: Sequence[LabelledClip], datafiles: Iterable[Path], label_csv: Path
                   ) -> np.ndarray:
    """Return the seconds of each clip (clips,).

    Args:
        datafiles, label_csv: for the command of check_data.py in the error message.

    Raises:
        AudioError: recordings cannot be read. The message names the first of them, and the command
            that lists all.
    """
    answers = list(parallel_map(read_length, [clip.wav for clip in clips], 'reading lengths'))
    lengths = [answer for answer in answers if isinstance(answer, Duration)]
    if broken := [answer for answer in answers if isinstance(answer, str)]:
        command = ['python src/check_data.py', *datafiles, '--label_csv', label_csv]
        raise AudioError(f'{len(broken)} of {len(clips)} audio files cannot be used, the first of '
                         f'them: {broken[0]}; remove or replace them and start again; '
                         f'{" ".join(map(str, command))} checks all of them')
    incomplete = [clip.wav for clip, length in zip(clips, lengths)
                  if length.incomplete_from is not None]
    if incomplete:
        logger.warning('%d audio files end before their header says, or are damaged, and are used '
                       'up to there; the first: %s', len(incomplete), incomplete[0])
    return np.array([length.seconds for length in lengths])


def read_length(wav: str) -> Duration | str:
    """Read all of an audio file. Return its Duration, or a text that says why it cannot be used."""
    try:
        return read_duration(wav, trust_header=False)
    except AudioError as error:
        return str(error)


def choose_options(clips: Sequence[LabelledClip], labels: Labels, seconds: np.ndarray
                   ) -> dict[str, Any]:
    """Return the options of src/run.py that follow from the data, {name: value}."""
    single = all(len(clip.labels) == 1 for clip in clips)
    usual_length = float(np.percentile(seconds, LENGTH_PERCENTILE))
    frames = round(usual_length * 1000 / FRAME_SHIFT_MS)
    return {'n_class': len(labels), 'loss': 'CE' if single else 'BCE',
            'metrics': 'acc' if single else 'mAP',
            'audio_length': min(max(frames, MIN_FRAMES), MAX_FRAMES)}


def summary_lines(clips: Sequence[LabelledClip], labels: Labels, files: Files,
                  seconds: np.ndarray, options: Mapping[str, Any]) -> list[str]:
    """Return the lines that say what was prepared."""
    lines = [f'{len(clips)} clips of {len(labels)} classes, {seconds.min():.2f} to '
             f'{seconds.max():.2f} s long, median {np.median(seconds):.2f} s']
    if negatives := sum(not clip.labels for clip in clips):
        lines.append(f'{negatives} clips have no label (negatives)')
    lines.append(', '.join(f'{name}: {len(chosen)} clips' for name, chosen in files.items()))
    longer = int((seconds * 1000 / FRAME_SHIFT_MS > options['audio_length'] + 1).sum())
    chosen = ' '.join(f'--{name}={value}' for name, value in options.items())
    lines.append(f'{chosen} (an input of {options["audio_length"] * FRAME_SHIFT_MS / 1000:g} s; '
                 f'clips that are longer and are cut: {longer})')
    return lines
