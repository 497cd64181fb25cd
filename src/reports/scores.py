"""Tables of a report: the scores of an experiment, of its epochs and of its folds."""
from pathlib import Path

import numpy as np

from reports.experiments import Settings, read_further_metrics, read_seconds
from reports.html import report_link, table
from training.result_files import best_of, read_average, read_best_model, read_rows, result_columns
from utilities.formatting import clock


def scores_table(exp_dir: Path, settings: Settings) -> str:
    """Return the main scores of an experiment as an HTML table.

    They are those of the best and the last epoch, of the ensemble of the epochs, of the averaged
    model and of the test set, if there are such.
    """
    metric = settings['metrics']
    rows = read_rows(exp_dir / 'result.csv')
    best, last = best_of(rows), len(rows) - 1
    epochs = read_epochs(exp_dir, metric)
    scores = {
        f'best epoch ({best + 1})': epochs[best],
        f'last epoch ({last + 1})': epochs[last],
        f'ensemble of the {len(rows)} epochs': {metric: epochs[last][f'cum_{metric}'],
                                                'mAUC': epochs[last]['cum_mAUC']}}
    if average := read_average(exp_dir):
        title = f'average of epochs {settings["wa_start"]} to {settings["wa_end"]}'
        scores[title] = average._asdict()
    if best_model := read_best_model(exp_dir):
        scores['best epoch, test set'] = {metric: best_model.test_metric,
                                          'mAUC': best_model.test_mAUC}
    # Columns 1 to 4 of result.csv, counted from 0: mAUC, precision, recall, d_prime.
    main = ('acc', 'mAP', *result_columns(metric)[1:5], *read_further_metrics(exp_dir))
    names = [name for name in main if any(name in row for row in scores.values())]
    return table(['', *names], [[title, *(row.get(name) for name in names)]
                                for title, row in scores.items()], marked=[0])


def read_epochs(exp_dir: Path, metric: str) -> list[dict[str, float]]:
    """Return {name: value} of every epoch: the columns of result.csv, then those of metrics.csv."""
    epochs = [dict(zip(result_columns(metric), row))
              for row in read_rows(exp_dir / 'result.csv').tolist()]
    for name, values in read_further_metrics(exp_dir).items():
        for epoch, value in zip(epochs, values):
            epoch[name] = value
    return epochs


def epochs_table(exp_dir: Path, settings: Settings) -> str:
    """Return all numbers of every epoch, as an HTML table."""
    epochs = read_epochs(exp_dir, settings['metrics'])
    names = list(dict.fromkeys(name for epoch in epochs for name in epoch))
    rows = [[number, *map(epoch.get, names)] for number, epoch in enumerate(epochs, 1)]
    best = best_of(read_rows(exp_dir / 'result.csv'))
    return table(['epoch', *names], rows, marked=[best])


def folds_table(folds: list[Path], metric: str, epoch: int) -> str:
    """Return the main metric and the time of every fold, their mean and standard deviation.

    Args:
        folds: their directories, to whose own reports the table links.
        metric: name of the main metric.
        epoch: the best epoch of the mean, from 1.
    """
    columns = [read_rows(fold / 'result.csv')[:, 0] for fold in folds]
    # A fold that stopped early has no such epoch: then its last one stands there.
    scores = np.array([(column[:epoch][-1], column[-1], column.max()) for column in columns])
    seconds = [read_seconds(fold) or 0.0 for fold in folds]
    rows = [[report_link(fold, fold.name, fold.parent), *row, clock(time)]
            for fold, row, time in zip(folds, scores.tolist(), seconds)]
    rows += [['mean', *scores.mean(axis=0).tolist(), f'{clock(sum(seconds))} in all'],
             ['standard deviation', *scores.std(axis=0).tolist(), '']]
    return table(['fold', f'{metric}, epoch {epoch}', 'last epoch', "fold's own best", 'time'],
                 rows, marked=[len(folds)])
