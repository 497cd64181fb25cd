"""compare.html: curves, scores and differing settings of several experiments on one page."""
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from reports.experiments import (
    Settings,
    finished_folds,
    list_folds,
    read_devices,
    read_seconds,
    read_settings,
)
from reports.folds import read_results
from reports.html import Html, page, picture, section, table
from training.config import OF_ONE_START
from training.environment import now
from training.options import make_parser
from training.result_files import EpochRow, best_of
from utilities.errors import DataError, error_reason
from utilities.folders import output_folders
from utilities.formatting import clock
from utilities.plots import CURVE_STYLES, plot_comparison, png_of
from utilities.tables import read_numbers
from utilities.texts import write_text

METRICS = {'acc': 'accuracy', 'mAP': 'mAP'}  # --metrics -> name of the axis
BY_FOLD = 'different in each fold'  # instead of the value of a setting in which folds differ
LONG_NAME = 20  # characters, from which on a name is made shorter

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Experiment:
    """An experiment to compare: a single one, or the mean of its folds.

    Attributes:
        folder: as the user named it.
        runs: the folder itself, or those of the finished folds.
        all_folds: how many folds there are, finished or not; 0 for a single experiment.
        settings: if folds differ in one, it is BY_FOLD.
        rows: of result.csv (epochs, columns), or their mean.
        scores: {column of the table of scores: number, text, or None if there is none}.
    """
    folder: Path
    runs: list[Path]
    all_folds: int
    settings: Settings
    rows: np.ndarray
    scores: dict[str, Any]

    @property
    def metric(self) -> str:
        """The main metric, 'acc' or 'mAP'."""
        return self.settings['metrics']

    @property
    def is_finished(self) -> bool:
        """Whether all epochs and what follows them are done."""
        return all((run / 'finished').exists() for run in self.runs)


def write_comparison(folders: Sequence[Path], out: Path) -> None:
    """Write a page that compares experiments.

    A folder that cannot be shown becomes a sentence on the page and in the log.

    Raises:
        DataError: none can be shown, or they are too many to tell apart.
    """
    folders = list({os.path.abspath(folder): folder for folder in folders}.values())
    if len(folders) > len(CURVE_STYLES):
        raise DataError(f'--compare shows at most {len(CURVE_STYLES)} experiments, since nobody '
                        f'can tell more curves apart, got {len(folders)}')
    experiments, problems = [], []
    for folder in folders:
        try:
            experiments.append(read_experiment(folder))
        except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
            sentence = str(error) if isinstance(error, DataError) else (
                f'{folder} cannot be read: {error_reason(error)}')
            problems.append(sentence)
            logger.warning('not on the page: %s', sentence)
    if not experiments:
        raise DataError('; '.join(problems))
    with output_folders(out.parent):
        write_text(out, comparison_page(experiments, problems, out.parent))


def read_experiment(folder: Path) -> Experiment:
    """Read an experiment, or the finished folds in a folder.

    Raises:
        DataError: it is none, or has no epoch yet. This and errors of all kinds: it is broken.
    """
    folds: list[Path] = []
    if (folder / 'args.json').exists():
        runs = [folder]
    elif folds := list_folds(folder):
        runs = finished_folds(folder)[0]
    else:
        raise DataError(f'{folder} holds no experiment: there is neither args.json nor fold1 in it'
                        if folder.is_dir() else f'there is no folder {folder}')
    settings = common_settings([read_settings(run) for run in runs])
    if settings['metrics'] not in METRICS:
        raise DataError(f'{folder}: its main metric is {settings["metrics"]!r}, expected one of '
                        f'{", ".join(METRICS)}')
    if not all((run / 'result.csv').exists() for run in runs):
        raise DataError(f'{folder} has no epoch yet')
    rows = read_results(runs)
    return Experiment(folder, runs, len(folds), settings, rows.mean(axis=0),
                      read_scores(runs, rows, settings))


def common_settings(settings: Sequence[Settings]) -> Settings:
    """Return the settings of all folds, with BY_FOLD for those in which they differ."""
    first = settings[0]
    return {name: value if all(one.get(name) == value for one in settings) else BY_FOLD
            for name, value in first.items()}


def read_scores(runs: Sequence[Path], rows: np.ndarray, settings: Settings) -> dict[str, Any]:
    """Return the cells of an experiment in the table of scores.

    Of folds they are the mean, and ± is the standard deviation.

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
        'averaged, mAP': read_mean(runs, 'wa_result.csv', 0),
        'evaluation set': read_mean(runs, 'eval_result.csv', 2),
        'time': clock(sum(known)) if len(known) == len(runs) else None,
        'device': ', '.join(dict.fromkeys(name for run in runs for name in read_devices(run)))
                  or None}


def read_mean(runs: Sequence[Path], name: str, line: int) -> float | None:
    """Return the number in a line of a file of each run, as the mean over the runs.

    Without the file it is None.

    Raises:
        DataError: a file holds something else.
    """
    paths = [run / name for run in runs]
    if not all(path.exists() for path in paths):
        return None
    numbers = []
    for path in paths:
        try:
            numbers.append(float(read_numbers(path, ndmin=1)[line]))
        except (OSError, ValueError, IndexError):
            raise DataError(f'cannot read {path}: expected a number in each of at least '
                            f'{line + 1} lines') from None
    return float(np.mean(numbers))


def comparison_page(experiments: Sequence[Experiment], problems: Sequence[str],
                    page_folder: Path) -> str:
    """Return the page as HTML.

    Args:
        experiments: at least one.
        problems: sentences about others that are not shown.
        page_folder: where the page will be, for its links.
    """
    names = short_names([experiment.folder for experiment in experiments])
    sentences = [*describe_differences(experiments, names),
                 *(f'Not shown: {problem}.' for problem in problems)]
    notes = ''.join(f'<p>{escape(sentence)}</p>\n' for sentence in sentences)
    folders = ', '.join(str(experiment.folder) for experiment in experiments)
    return page('Comparison of experiments', folders, [
        notes,
        section('Curves', draw_curves, experiments, names),
        section('Scores', scores_tables, experiments, names, page_folder),
        section('Settings in which they differ', settings_table, experiments, names)], now())


def short_names(folders: Sequence[Path]) -> list[str]:
    """Return names that tell folders apart: their paths without what all have in common.

    Recipes name a folder after its settings, as in esc50-base384-f10-t10-audioset-b48-lr1e-5-seed0.
    Of such long names, the settings that all have in common are left out, too.
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


def describe_differences(experiments: Sequence[Experiment], names: Sequence[str]) -> list[str]:
    """Return sentences about what makes curves and scores hard to compare."""
    def values(setting):
        return list(dict.fromkeys(str(one.settings.get(setting)) for one in experiments))

    sentences = []
    if len(values('dataset')) > 1:
        sentences.append(f'The datasets are different ({", ".join(values("dataset"))}): scores '
                         f'on one cannot be compared with scores on another.')
    elif len(values('data_val')) > 1:
        sentences.append('The validation files (--data_val) have different paths: scores can only '
                         'be compared if the files list the same clips.')
    for setting, title in (('metrics', 'main metrics'), ('loss', 'loss functions')):
        if len(values(setting)) > 1:
            sentences.append(f'The {title} are different ({", ".join(values(setting))}): each has '
                             f'axes of its own.')
    for experiment, name in zip(experiments, names):
        if experiment.all_folds:
            finished, folds = len(experiment.runs), experiment.all_folds
            which = f'{folds}' if finished == folds else f'the {finished} finished of {folds}'
            sentences.append(f'{name} is the mean of {which} folds.')
        elif not experiment.is_finished:
            sentences.append(f'{name} is not finished: {experiment.scores["epochs"]} epochs.')
    return sentences


def draw_curves(experiments: Sequence[Experiment], names: Sequence[str]) -> str:
    """Return a picture of the curves as HTML."""
    has_losses = len({one.settings.get('loss') for one in experiments}) > 1
    panels: dict[str, dict[str, np.ndarray]] = {}
    for column in ('metric', 'valid_loss', 'train_loss', 'lr'):
        for experiment, name in zip(experiments, names):
            loss = f' ({experiment.settings.get("loss")})' if has_losses else ''
            title = {'metric': METRICS[experiment.metric], 'valid_loss': f'validation loss{loss}',
                     'train_loss': f'training loss{loss}', 'lr': 'learning rate'}[column]
            values = getattr(EpochRow(*experiment.rows.T), column)
            panels.setdefault(title, {})[name] = values
    figure = plot_comparison(panels, names)
    return picture(png_of(figure), 'metric, losses and learning rate over the epochs') + (
        '<p class="soft">Where curves are equal, the last one covers the others.</p>\n')


def scores_tables(experiments: Sequence[Experiment], names: Sequence[str],
                  page_folder: Path) -> str:
    """Return a table of scores for each main metric as HTML. On one dataset the best is bold."""
    tables = ''
    metrics = list(dict.fromkeys(one.metric for one in experiments))
    is_one_dataset = len({str(one.settings['dataset']) for one in experiments}) == 1
    for metric in metrics:
        shown = [(one, name) for one, name in zip(experiments, names) if one.metric == metric]
        columns = [column for column in shown[0][0].scores
                   if any(one.scores[column] is not None for one, _ in shown)]
        rows = [[link(one.folder, name, page_folder), *map(one.scores.get, columns)]
                for one, name in shown]
        best = best_of([[one.rows[best_of(one.rows), 0]] for one, _ in shown])
        if len(metrics) > 1:
            tables += f'<h3>{METRICS[metric]}</h3>\n'
        tables += table(['', *columns], rows,
                        marked=[best] if is_one_dataset and len(shown) > 1 else [])
    return tables


def link(folder: Path, name: str, page_folder: Path) -> str:
    """Return a link to an experiment's report.html, or the name alone if there is none."""
    report = folder / 'report.html'
    if not report.exists():
        return name
    address = quote(os.fsencode(Path(os.path.relpath(report, page_folder)).as_posix()))
    return Html(f'<a href="{address}">{escape(name)}</a>')


def settings_table(experiments: Sequence[Experiment], names: Sequence[str]) -> str:
    """Return the settings in which experiments differ as an HTML table.

    An option that an experiment's version did not have shows its default.
    """
    default = make_parser().get_default
    rows = []
    for name in dict.fromkeys(name for one in experiments for name in one.settings):
        values = [one.settings.get(name, default(name)) for one in experiments]
        if name not in OF_ONE_START and any(value != values[0] for value in values):
            rows.append([f'--{name}', *(None if value is None else str(value)
                                        for value in values)])
    return table(['', *names], rows) if rows else '<p>There are none.</p>\n'
