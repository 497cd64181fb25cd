"""Summarise the folds of a cross-validation: the best epoch of their mean and the last, by class, confusion matrix."""
import numpy as np

from reports.pages import finished_folds, fold_page
from training.results import (
    best_of,
    read_rows,
    result_columns,
    write_confusion,
    write_figure,
    write_rows,
)
from utilities.errors import DataError, warn_only
from utilities.stats import is_single_label
from utilities.texts import read_json, write_text


def read_predictions(folds, epoch):
    """Predictions at an epoch and labels of every clip of the folds' evaluation sets, both (clips, classes)."""
    return (np.concatenate([np.load(fold / 'predictions' / f'predictions_{epoch}.npy') for fold in folds]),
            np.concatenate([np.load(fold / 'predictions' / 'target.npy') for fold in folds]))


def read_results(folds):
    """The tables of the folds' epochs, (folds, epochs, columns). Raises DataError if one has fewer epochs."""
    rows = [read_rows(fold / 'result.csv') for fold in folds]
    for fold, own in zip(folds, rows):
        if len(own) < max(map(len, rows)):
            raise DataError(f'{fold / "result.csv"} has {len(own)} epochs, but that of another fold has '
                            f'{max(map(len, rows))}: train that fold again with --resume none')
    return np.stack(rows)


def read_names(fold):
    """The names of the classes. Raises DataError."""
    path = fold / 'models' / 'best_audio_model.json'
    try:
        return read_json(path)['labels']['names']
    except (KeyError, TypeError):
        raise DataError(f'cannot read {path}: it does not name the classes') from None


def describe(folds, scores, metric, title):
    """A line with the folds' scores, their mean and standard deviation."""
    each = ', '.join(f'{fold.name} {score:.4f}' for fold, score in zip(folds, scores))
    return f'{title}: mean {metric} {scores.mean():.4f}, standard deviation {scores.std():.4f} ({each})'


def summarise_folds(exp_dir):
    """Write three CSVs, curves and, for single labels, confusion and accuracy by class; return lines to print."""
    folds, settings = finished_folds(exp_dir)
    metric = settings['metrics']
    rows = read_results(folds)
    mean = rows.mean(axis=0)
    best = best_of(mean)
    write_rows(exp_dir / 'result.csv', mean)
    write_rows(exp_dir / 'best_result.csv', mean[best])
    write_rows(exp_dir / 'acc_fold.csv', np.append(rows[:, best, 0], mean[best, 0]))
    columns = dict(zip(result_columns(metric), mean.T))
    from utilities.plots import plot_curves  # matplotlib
    title = f'{settings["dataset"]}, mean of {len(folds)} folds'
    write_figure(exp_dir / 'curves.png', plot_curves(columns, metric, title))
    lines = [describe(folds, rows[:, best, 0], metric, f'epoch {best + 1}, the best of the mean'),
             describe(folds, rows[:, -1, 0], metric, f'epoch {len(mean)}, the last')]
    predictions, targets = read_predictions(folds, best + 1)
    if is_single_label(targets):
        lines.append(write_confusion(exp_dir, read_names(folds[0]), predictions, targets))
    with warn_only('report.html'):
        write_text(exp_dir / 'report.html', fold_page(exp_dir, folds))
    return lines
