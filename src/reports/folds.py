"""Summarise a cross-validation: scores of the best and the last epoch, curves, confusions."""
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from reports.experiments import (
    epoch_or_last,
    finished_folds,
    may_stop_early,
    read_further_metrics,
    read_results,
    repeat_last,
)
from reports.pages import fold_page
from training.result_files import (
    best_of,
    hardest_classes,
    read_array,
    write_confusion,
    write_curves,
    write_metrics,
    write_rows,
)
from utilities.errors import DataError, warn_only
from utilities.stats import is_single_label
from utilities.texts import read_json, write_text


def summarise_folds(exp_dir: Path) -> list[str]:
    """Write tables, pictures and report.html of the folds in exp_dir.

    Returns:
        Lines to print.

    Raises:
        DataError: there is no finished fold, or the folds do not belong together.
    """
    folds, settings = finished_folds(exp_dir)
    metric = settings['metrics']
    rows = read_results(folds)
    mean = rows.mean(axis=0)
    best = best_of(mean)
    write_rows(exp_dir / 'result.csv', mean)
    write_rows(exp_dir / 'best_result.csv', mean[best])
    write_rows(exp_dir / 'acc_fold.csv', np.append(rows[:, best, 0], mean[best, 0]))
    write_mean_metrics(exp_dir, folds)
    write_curves(exp_dir, mean, metric, f'{settings["dataset"]}, mean of {len(folds)} folds')
    lines = [scores_line(folds, rows[:, best, 0], metric,
                         f'epoch {best + 1}, the best of the mean'),
             scores_line(folds, rows[:, -1, 0], metric, f'epoch {len(mean)}, the last')]
    predictions, targets = read_predictions(folds, best + 1)
    if is_single_label(targets):
        accuracies = write_confusion(exp_dir, read_names(folds[0]), predictions, targets)
        lines.append(hardest_classes(accuracies))
    else:
        remove(exp_dir / 'confusion_matrix.png', exp_dir / 'class_accuracy.csv')
    with warn_only('report.html'):
        write_text(exp_dir / 'report.html', fold_page(exp_dir, folds))
    return lines


def write_mean_metrics(exp_dir: Path, folds: Sequence[Path]) -> None:
    """Write metrics.csv, the mean of that of the folds. Remove it if their metrics differ."""
    metrics = [read_further_metrics(fold) for fold in folds]
    names = list(metrics[0])
    if not names or any(list(one) != names for one in metrics):
        remove(exp_dir / 'metrics.csv')
        return
    epochs = {len(values) for one in metrics for values in one.values()}
    if may_stop_early(folds):
        metrics = [{name: repeat_last(np.array(values), max(epochs)).tolist()
                    for name, values in one.items()} for one in metrics]
    elif len(epochs) > 1:
        raise DataError(f'the metrics.csv of the folds in {exp_dir} have different numbers of '
                        f'epochs: {", ".join(map(str, sorted(epochs)))}')
    table = np.array([list(one.values()) for one in metrics])  # (folds, metrics, epochs)
    rows = [{'epoch': epoch, **dict(zip(names, row))}
            for epoch, row in enumerate(table.mean(axis=0).T.tolist(), 1)]
    write_metrics(exp_dir / 'metrics.csv', rows)


def remove(*paths: Path) -> None:
    """Remove what an earlier summary of other folds may have left."""
    for path in paths:
        path.unlink(missing_ok=True)


def scores_line(folds: Sequence[Path], scores: np.ndarray, metric: str, title: str) -> str:
    """Return a line with the folds' scores (folds,), their mean and standard deviation."""
    each = ', '.join(f'{fold.name} {score:.4f}' for fold, score in zip(folds, scores))
    spread = f', standard deviation {scores.std():.4f}' if len(scores) > 1 else ''
    return f'{title}: mean {metric} {scores.mean():.4f}{spread} ({each})'


def read_predictions(folds: Sequence[Path], epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return predictions of an epoch and labels of the clips of all folds, (clips, classes).

    Of a fold that stopped before that epoch, they are those of its last one.
    """
    predictions = []
    for fold in folds:
        file = f'predictions_{epoch_or_last(fold, epoch)}.npy'
        predictions.append(read_array(fold / 'predictions' / file))
    targets = [read_array(fold / 'predictions' / 'target.npy') for fold in folds]
    return np.concatenate(predictions), np.concatenate(targets)


def read_names(fold: Path) -> list[str]:
    """Return the names of the classes. Raises DataError."""
    path = fold / 'models' / 'best_audio_model.json'
    try:
        return read_json(path)['labels']['names']
    except (KeyError, TypeError):
        raise DataError(f'cannot read {path}: it does not name the classes') from None
