"""Read and write the result files of an experiment, and name their columns."""
import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from models.atomic import atomic_write
from utilities.errors import DataError, error_reason
from utilities.stats import classes_of
from utilities.tables import read_numbers
from utilities.texts import write_text

MATRIX_CLASSES = 100  # no confusion matrix of more classes is drawn: nobody could read it


class EpochRow(NamedTuple):
    """A row of result.csv. The metric is the main one, --metrics.

    The columns cum_ are those of the ensemble of epochs: predictions averaged over all epochs so
    far. lr: of the last step.
    """
    metric: float
    mAUC: float
    precision: float
    recall: float
    d_prime: float
    train_loss: float
    valid_loss: float
    cum_metric: float
    cum_mAUC: float
    lr: float


class AverageRow(NamedTuple):
    """The numbers of wa_result.csv: the averaged model on the validation set."""
    mAP: float
    mAUC: float
    precision: float
    recall: float
    d_prime: float


class BestModelRow(NamedTuple):
    """The numbers of eval_result.csv: the best epoch's model on the validation and the test set."""
    validation_metric: float
    validation_mAUC: float
    test_metric: float
    test_mAUC: float


class ClassAccuracy(NamedTuple):
    """A row of class_accuracy.csv."""
    name: str
    clips: int
    accuracy: float


def result_columns(metric: str) -> tuple[str, ...]:
    """Return the published names of the columns of result.csv. metric: 'acc' or 'mAP'."""
    return tuple(name.replace('metric', metric) for name in EpochRow._fields)


def best_of(rows: Sequence[Sequence[float]] | np.ndarray) -> int:
    """Return the index of the row with the best main metric, the earliest of equals.

    Args:
        rows: (epochs, columns) of result.csv.
    """
    return int(np.nan_to_num(np.asarray(rows)[:, 0], nan=-np.inf).argmax())


def write_rows(path: Path, rows: Sequence | np.ndarray) -> None:
    """Write rows of numbers, comma-separated, for numpy.loadtxt.

    A flat list gives one number per line.
    """
    with atomic_write(path) as partial:
        np.savetxt(partial, rows, delimiter=',', fmt='%.10g')


def read_rows(path: Path) -> np.ndarray:
    """Read a result.csv: (epochs, columns).

    Raises:
        DataError: if it is not there, or is something else.
    """
    try:
        rows = read_numbers(path, ndmin=2)
    except (OSError, ValueError) as error:
        raise DataError(f'cannot read {path}: {error_reason(error)}') from None
    columns = len(EpochRow._fields)
    if not len(rows) or rows.shape[1] != columns:
        raise DataError(f'cannot read {path}: expected {columns} numbers for each epoch, got shape '
                        f'{rows.shape}')
    return rows


def read_average(exp_dir: Path) -> AverageRow | None:
    """Return the numbers of wa_result.csv, or None if there is none. Raises DataError."""
    numbers = _read_lines(exp_dir / 'wa_result.csv', 5)
    return AverageRow(*numbers) if numbers else None


def read_best_model(exp_dir: Path) -> BestModelRow | None:
    """Return the numbers of eval_result.csv, or None if there is none. Raises DataError."""
    numbers = _read_lines(exp_dir / 'eval_result.csv', 4)
    return BestModelRow(*numbers) if numbers else None


def _read_lines(path, count):
    """Return the numbers of a file with one per line, [] without the file."""
    if not path.exists():
        return []
    try:
        numbers = read_numbers(path, ndmin=1).tolist()
    except (OSError, ValueError) as error:
        raise DataError(f'cannot read {path}: {error_reason(error)}') from None
    if len(numbers) != count:
        raise DataError(f'cannot read {path}: expected {count} lines with a number each, got '
                        f'{len(numbers)}')
    return numbers


def write_metrics(path: Path, rows: list[dict[str, float]]) -> None:
    """Write a metrics.csv: a header, and a row for each epoch."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    write_table(path, names, [[f'{row.get(name, math.nan):.10g}' for name in names]
                              for row in rows])


def write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence]) -> None:
    """Write a CSV with a header."""
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows([header, *rows])
    write_text(path, text.getvalue())


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an array as .npy."""
    with atomic_write(path) as partial, open(partial, 'wb') as file:
        np.save(file, array)


def read_array(path: Path, advice: str = '') -> np.ndarray:
    """Read a .npy file.

    Args:
        path: path of the file.
        advice: what the error tells the user to do.

    Raises:
        DataError: if the file is not there, or is something else.
    """
    end = f'; {advice}' if advice else ''
    try:
        return np.load(path)
    except (EOFError, OSError, ValueError) as error:
        raise DataError(f'cannot read {path}: {error_reason(error)}{end}') from None


def write_curves(exp_dir: Path, rows: Sequence[Sequence[float]] | np.ndarray, metric: str,
                 title: str) -> None:
    """Write curves.png of the rows of result.csv, (epochs, columns).

    Args:
        exp_dir: the folder to write to.
        rows: at least one.
        metric: the main metric, 'acc' or 'mAP'.
        title: title of the figure.
    """
    from utilities.plots import plot_curves, write_figure  # here: matplotlib is slow to import
    columns = dict(zip(result_columns(metric), np.array(rows).T))
    write_figure(exp_dir / 'curves.png', plot_curves(columns, metric, title))


def write_confusion(folder: Path, names: Sequence[str], predictions: np.ndarray,
                    targets: np.ndarray) -> list[ClassAccuracy]:
    """Write confusion_matrix.png and class_accuracy.csv of predictions with single labels.

    They are over the classes that occur, without negatives, which have no class. For more than
    MATRIX_CLASSES classes, there is no picture.

    Args:
        folder: the folder to write to.
        names: names of all classes.
        predictions: scores (samples, classes).
        targets: labels (samples, classes) of 0 and 1.

    Returns:
        The rows of class_accuracy.csv.
    """
    from sklearn.metrics import confusion_matrix
    truth, predicted = classes_of(predictions, targets)
    classes = np.union1d(truth, predicted)
    matrix = confusion_matrix(truth, predicted, labels=classes)
    if len(classes) <= MATRIX_CLASSES:
        _draw_confusion(folder, names, classes, matrix)

    clips = matrix.sum(axis=1)
    rows = [ClassAccuracy(names[k], clips[i], matrix[i, i] / clips[i])
            for i, k in enumerate(classes) if clips[i]]
    write_table(folder / 'class_accuracy.csv', ['class', 'clips', 'accuracy'],
                [(row.name, row.clips, f'{row.accuracy:.4f}') for row in rows])
    return rows


def hardest_classes(rows: Sequence[ClassAccuracy]) -> str:
    """Return a line that names the five classes with the lowest accuracy."""
    hardest = sorted(rows, key=lambda row: row.accuracy)[:5]
    return 'hardest classes: ' + ', '.join(f'{row.name} {row.accuracy:.2f}' for row in hardest)


def _draw_confusion(folder, names, classes, matrix):
    """Draw the confusion matrix of some classes, given by their indices."""
    from utilities.fonts import drawable_names  # here, since matplotlib is slow to import
    from utilities.plots import plot_confusion, write_figure
    shown = drawable_names(tuple(names))
    clips = matrix.sum()
    title = f'{clips} clips, accuracy {matrix.trace() / clips:.3f}'
    figure = plot_confusion(matrix, [shown[k] for k in classes], title)
    write_figure(folder / 'confusion_matrix.png', figure)
