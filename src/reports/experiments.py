"""Read what experiments leave: settings, metrics, time, and which folds belong together."""
import csv
import io
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.environment import read_starts
from training.folder import FINISHED, is_finished
from training.options import PER_FOLD_OPTIONS
from training.result_files import read_rows
from utilities.errors import DataError, error_reason
from utilities.texts import read_json, read_text

NEEDED = ('dataset', 'metrics', 'model_size', 'n_epochs')  # settings that every page shows

Settings = dict[str, Any]  # name of an option of run.py -> value

logger = logging.getLogger(__name__)


def read_settings(exp_dir: Path) -> Settings:
    """Return the settings of an experiment.

    Raises:
        DataError: they cannot be read, or lack what pages need.
    """
    path = exp_dir / 'args.json'
    settings = read_json(path)
    for name in NEEDED:
        if name not in settings:
            raise DataError(f'cannot read {path}: there is no {name!r} among the settings of the '
                            f'experiment')
    return settings


def epoch_or_last(exp_dir: Path, epoch: int) -> int:
    """Return an epoch, or the last one of an experiment that stopped before (--patience)."""
    return min(epoch, len(read_rows(exp_dir / 'result.csv')))


def read_further_metrics(exp_dir: Path) -> dict[str, list[float]]:
    """Return the columns of metrics.csv, {name: values of the epochs}; {} if there is no file.

    The file's first line has the names. So a new metric needs no change here.

    Raises:
        DataError: the file is no table of numbers.
    """
    path = exp_dir / 'metrics.csv'
    if not path.exists():
        return {}
    try:
        lines = csv.reader(io.StringIO(read_text(path)), strict=True)
        header, *rows = [line for line in lines if line] or [[]]
        if any(len(row) != len(header) for row in rows):
            raise ValueError('a row has more or fewer cells than the header')
        columns = dict(zip(header, zip(*rows)))
        return {name: _numbers(cells) for name, cells in columns.items() if name != 'epoch'}
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f'cannot read {path}: {error_reason(error)}') from None


def common_settings(settings: Sequence[Settings]) -> Settings:
    """Return the settings that all of several experiments share."""
    return {name: value for name, value in settings[0].items()
            if all(one.get(name) == value for one in settings)}


def _numbers(cells: Sequence[str]) -> list[float]:
    """Return the numbers of a column. Counts stay whole numbers."""
    return list(map(int if all(map(str.isdigit, cells)) else float, cells))


def read_seconds(exp_dir: Path) -> float | None:
    """Return the time that a finished experiment took, or None."""
    return read_json(exp_dir / FINISHED)['seconds'] if is_finished(exp_dir) else None


def state_of(exp_dir: Path, settings: Settings) -> str:
    """Return how far an experiment has come, as a sentence."""
    table = exp_dir / 'result.csv'
    epochs = len(read_rows(table)) if table.exists() else 0
    state = 'Finished' if is_finished(exp_dir) else 'Not finished (under way or broken off)'
    return f'{state}: {epochs} of {settings["n_epochs"]} epochs.'


def read_devices(exp_dir: Path) -> list[str]:
    """Return the devices of all starts of an experiment, each once; [] if they are not known."""
    return list(dict.fromkeys(start.get('GPUs') or start['device']
                              for start in read_starts(exp_dir)))


def list_folds(exp_dir: Path) -> list[Path]:
    """Return the folders fold1, fold2, ... of an experiment, in this order."""
    return sorted((path for path in exp_dir.glob('fold*') if re.fullmatch(r'fold\d+', path.name)),
                  key=lambda path: int(path.name.removeprefix('fold')))


def finished_folds(exp_dir: Path) -> tuple[list[Path], Settings]:
    """Return the folders fold1, fold2, ... of finished runs, and the settings of the first.

    Raises:
        DataError: there is none, or their settings differ in more than the data.
    """
    folds = list_folds(exp_dir)
    finished = list(filter(is_finished, folds))
    if not exp_dir.is_dir():
        raise DataError(f'there is no folder {exp_dir}')
    if not finished:
        raise DataError(f'there is no finished fold in {exp_dir}')
    for fold in folds:
        if fold not in finished:
            logger.warning('%s is not finished and is left out', fold)
    first, *others = map(read_settings, finished)
    for name in first.keys() - set(PER_FOLD_OPTIONS):
        if any(other.get(name) != first[name] for other in others):
            raise DataError(f'the folds in {exp_dir} differ in --{name}: they do not belong '
                            f'together')
    return finished, first


def may_stop_early(folds: Sequence[Path]) -> bool:
    """Return whether folds may have stopped before the last epoch (--patience)."""
    return bool(read_settings(folds[0]).get('patience'))


def read_results(folds: Sequence[Path]) -> np.ndarray:
    """Return result.csv of all folds, (folds, epochs, columns).

    A fold that stopped early keeps the scores of its last epoch.

    Raises:
        DataError: a fold has fewer epochs than another, and none may stop early.
    """
    rows = [read_rows(fold / 'result.csv') for fold in folds]
    most = max(map(len, rows))
    if may_stop_early(folds):
        return np.stack([repeat_last(its_rows, most) for its_rows in rows])
    for fold, its_rows in zip(folds, rows):
        if len(its_rows) < most:
            raise DataError(f'{fold / "result.csv"} has {len(its_rows)} epochs, but that of '
                            f'another fold has {most}: train {fold.name} again with --resume none')
    return np.stack(rows)


def repeat_last(rows: np.ndarray, epochs: int) -> np.ndarray:
    """Return the rows (epochs of a fold, ...), the last of them repeated up to this many epochs."""
    return np.concatenate([rows, np.repeat(rows[-1:], epochs - len(rows), axis=0)])
