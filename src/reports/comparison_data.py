"""Read the experiments to compare: single ones, and the means of folds."""
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reports.experiments import (
    Settings,
    common_settings,
    finished_folds,
    list_folds,
    read_devices,
    read_results,
    read_seconds,
    read_settings,
)
from training.folder import is_finished
from training.result_files import EpochRow, best_of, read_average, read_best_model
from utilities.errors import DataError
from utilities.formatting import clock

METRICS = {'acc': 'accuracy', 'mAP': 'mAP'}  # --metrics -> name of the axis
BY_FOLD = 'different in each fold'  # in place of a setting's value, if the folds differ in it
LONG_NAME = 20  # characters; longer names are made shorter


@dataclass(frozen=True)
class Experiment:
    """An experiment to compare: a single one, or the mean of its folds.

    Attributes:
        folder: as the user named it.
        runs: the folder itself, or those of the finished folds.
        all_folds: how many folds there are, finished or not; 0 for a single experiment.
        settings: if folds differ in one, it is BY_FOLD.
        validation_files: --data_val of each of the runs.
        rows: of result.csv (epochs, columns), or their mean.
        scores: {column of the table of scores: number, text, or None if there is none}.
    """
    folder: Path
    runs: list[Path]
    all_folds: int
    settings: Settings
    validation_files: tuple[str, ...]
    rows: np.ndarray
    scores: dict[str, Any]

    @property
    def metric(self) -> str:
        """The main metric, 'acc' or 'mAP'."""
        return self.settings['metrics']

    @property
    def is_finished(self) -> bool:
        """Whether all epochs and what follows them are done."""
        return all(map(is_finished, self.runs))


def read_experiment(folder: Path) -> Experiment:
    """Read an experiment, or the finished folds in a folder.

    Raises:
        DataError: the folder is no experiment, or has no epoch yet. Files that are broken may raise
            other errors.
    """
    folds: list[Path] = []
    if (folder / 'args.json').exists():
        runs = [folder]
    elif folds := list_folds(folder):
        runs = finished_folds(folder)[0]
    else:
        raise DataError(f'{folder} holds no experiment: there is neither args.json nor fold1 in it'
                        if folder.is_dir() else f'there is no folder {folder}')
    of_runs = [read_settings(run) for run in runs]
    settings = {**dict.fromkeys(of_runs[0], BY_FOLD), **common_settings(of_runs)}
    if settings['metrics'] not in METRICS:
        raise DataError(f'{folder}: its main metric is {settings["metrics"]!r}, expected one of '
                        f'{", ".join(METRICS)}')
    if not all((run / 'result.csv').exists() for run in runs):
        raise DataError(f'{folder} has no epoch yet')
    rows = read_results(runs)
    validation_files = tuple(str(one.get('data_val')) for one in of_runs)
    return Experiment(folder, runs, len(folds), settings, validation_files, rows.mean(axis=0),
                      read_scores(runs, rows, settings))


def read_scores(runs: Sequence[Path], rows: np.ndarray, settings: Settings) -> dict[str, Any]:
    """Return the cells of an experiment in the table of scores.

    If there are folds, a score is their mean, and ± is their standard deviation.

    Args:
        runs: the experiment itself, or its folds.
        rows: of their result.csv, (runs, epochs, columns).
        settings: of the experiment.
    """
    mean = rows.mean(axis=0)
    best = best_of(mean)
    metric = METRICS[settings['metrics']]
    seconds = [read_seconds(run) for run in runs]
    known = [number for number in seconds if number is not None]
    return {
        'epochs': f'{len(mean)} of {settings["n_epochs"]}',
        'best epoch': best + 1,
        f'its {metric}': (float(mean[best, 0]) if len(runs) == 1 else
                          f'{mean[best, 0]:.4f} ± {rows[:, best, 0].std():.4f}'),
        'last epoch': float(mean[-1, 0]),
        'ensemble': float(EpochRow(*mean[-1]).cum_metric),
        'averaged, mAP': mean_of_all([row and row.mAP for row in map(read_average, runs)]),
        'test set': mean_of_all([row and row.test_metric
                                 for row in map(read_best_model, runs)]),
        'time': clock(sum(known)) if len(known) == len(runs) else None,
        'device': ', '.join(dict.fromkeys(name for run in runs for name in read_devices(run)))
                  or None}


def mean_of_all(numbers: Sequence[float | None]) -> float | None:
    """Return the mean of the numbers of all runs, or None if one is missing."""
    known = [number for number in numbers if number is not None]
    return float(np.mean(known)) if len(known) == len(numbers) else None


def short_names(folders: Sequence[Path]) -> list[str]:
    """Return names that tell folders apart: their paths without common beginnings and ends.

    Recipes name a folder after its settings, as in esc50-base384-f10-t10-audioset-b48-lr1e-5-seed0.
    If a name is longer than LONG_NAME, the settings with which all names begin or end are left out,
    too.
    """
    paths = [list(Path(os.path.abspath(folder)).parts) for folder in folders]
    names = ['/'.join(parts) for parts in without_common(paths)]
    if len(names) > 1 and max(map(len, names)) > LONG_NAME:
        settings = [re.split(r'(?<!\de)-', name) for name in names]  # 1e-5 stays whole
        names = ['-'.join(parts) for parts in without_common(settings)]
    return names


def without_common(lists: Sequence[list[str]]) -> list[list[str]]:
    """Return lists without the beginning and the end that all share. Something stays of each."""
    shortest = min(map(len, lists))
    start = end = 0
    while start < shortest - 1 and len({one[start] for one in lists}) == 1:
        start += 1
    while end < shortest - start - 1 and len({one[-1 - end] for one in lists}) == 1:
        end += 1
    return [one[start:len(one) - end] for one in lists]
