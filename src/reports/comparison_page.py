"""compare.html: curves, scores and differing settings of several experiments on one page."""
import logging
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from reports.comparison_data import METRICS, Experiment, read_experiment, short_names
from reports.html import page, picture, report_link, section, table
from training.options import PER_START_OPTIONS, make_parser
from training.result_files import EpochRow, best_of
from utilities.errors import DataError, error_reason
from utilities.folders import output_folders
from utilities.formatting import now
from utilities.plots import CURVE_STYLES, plot_comparison, png_of
from utilities.texts import write_text

logger = logging.getLogger(__name__)


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


def describe_differences(experiments: Sequence[Experiment], names: Sequence[str]) -> list[str]:
    """Return sentences about what makes curves and scores hard to compare."""
    def values(setting):
        return list(dict.fromkeys(str(one.settings.get(setting)) for one in experiments))

    sentences = []
    if len(values('dataset')) > 1:
        sentences.append(f'The datasets are different ({", ".join(values("dataset"))}): scores '
                         f'on one cannot be compared with scores on another.')
    elif len({one.validation_files for one in experiments}) > 1:
        sentences.append('The experiments do not have the same validation files (--data_val): '
                         'their paths or their folds differ. Scores can only be compared if the '
                         'files list the same clips.')
    for setting, title in (('metrics', 'main metrics'), ('loss', 'loss functions')):
        if len(values(setting)) > 1:
            sentences.append(f'The {title} are different ({", ".join(values(setting))}): each is '
                             f'drawn in a panel of its own.')
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
            # This EpochRow is made of columns: each field has the values of all epochs.
            values = getattr(EpochRow(*experiment.rows.T), column)
            panels.setdefault(title, {})[name] = values
    figure = plot_comparison(panels, names)
    return picture(png_of(figure), 'metric, losses and learning rate over the epochs') + (
        '<p class="soft">Where curves are equal, the last one covers the others.</p>\n')


def scores_tables(experiments: Sequence[Experiment], names: Sequence[str],
                  page_folder: Path) -> str:
    """Return a table of scores for each main metric as HTML.

    The best is bold if all have the same validation set.
    """
    tables = ''
    metrics = list(dict.fromkeys(one.metric for one in experiments))
    validation_sets = {(str(one.settings['dataset']), one.validation_files)
                       for one in experiments}
    for metric in metrics:
        shown = [(one, name) for one, name in zip(experiments, names) if one.metric == metric]
        columns = [column for column in shown[0][0].scores
                   if any(one.scores[column] is not None for one, _ in shown)]
        rows = [[report_link(one.folder, name, page_folder), *map(one.scores.get, columns)]
                for one, name in shown]
        highest = [one.rows[best_of(one.rows)] for one, _ in shown]
        if len(metrics) > 1:
            tables += f'<h3>{METRICS[metric]}</h3>\n'
        can_compare = len(validation_sets) == 1 and len(shown) > 1
        tables += table(['', *columns], rows, marked=[best_of(highest)] if can_compare else [])
    return tables


def settings_table(experiments: Sequence[Experiment], names: Sequence[str]) -> str:
    """Return an HTML table of the settings in which experiments differ.

    An option that an experiment's version did not have shows its default.
    """
    default = make_parser().get_default
    rows = []
    for name in dict.fromkeys(name for one in experiments for name in one.settings):
        values = [one.settings.get(name, default(name)) for one in experiments]
        if name not in PER_START_OPTIONS and any(value != values[0] for value in values):
            rows.append([f'--{name}', *(None if value is None else str(value)
                                        for value in values)])
    return table(['', *names], rows) if rows else '<p>There are none.</p>\n'
