"""What an experiment leaves in exp_dir: the tables of its epochs, predictions, pictures."""
import csv
import io
import logging
import math
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from models.atomic import atomic_write
from training.checkpoint import CheckpointError
from training.errors import TrainingError
from training.evaluation import Evaluation
from training.losses import NOT_FINITE_ADVICE
from training.processes import is_main, main_process_only
from utilities.errors import DataError, error_reason
from utilities.stats import calculate_stats, classes_of, further_metrics, is_single_label, summarise
from utilities.tables import read_numbers
from utilities.texts import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MATRIX_CLASSES = 100  # up to which a confusion matrix can be read, and is drawn

logger = logging.getLogger(__name__)


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


def result_columns(metric: str) -> tuple[str, ...]:
    """Return the published names of the columns of result.csv. metric: 'acc' or 'mAP'."""
    return tuple(name.replace('metric', metric) for name in EpochRow._fields)


def best_of(rows: Sequence[Sequence[float]] | np.ndarray) -> int:
    """Return the index of the row with the best main metric, the earliest of equals.

    Args:
        rows: (epochs, columns) of result.csv.
    """
    return int(np.nan_to_num(np.asarray(rows)[:, 0], nan=-np.inf).argmax())


class Results:
    """The epochs of an experiment so far: their rows, their predictions, the best of them.

    In several processes, all have the rows, and the main one has the rest.

    Args:
        exp_dir: folder of the experiment.
        metric: the main metric, 'acc' or 'mAP'.
        title: of the curves.

    Attributes:
        rows: of result.csv.
        further: rows of metrics.csv.
        predictions_sum: (samples, classes), over the epochs.
    """

    def __init__(self, exp_dir: str | Path, metric: str, title: str):
        self.exp_dir = Path(exp_dir)
        self.metric = metric
        self.title = title
        self.rows: list[EpochRow] = []
        self.further: list[dict[str, float]] = []
        self.predictions_sum: Any = 0.0
        self.folder = self.exp_dir / 'predictions'
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def best_epoch(self) -> int:
        """The epoch, from 1, with the best main metric, the earliest of equals."""
        return 1 + best_of(self.rows)

    def add(self, train_loss: float, evaluation: Evaluation, learning_rate: float) -> EpochRow:
        """Add an epoch, write its predictions and return its row. `write` writes the rest.

        Raises:
            TrainingError: if the validation loss is not a finite number.
        """
        row = self._compute_row(train_loss, evaluation, learning_rate)
        self.rows.append(row)
        return row

    @main_process_only
    def _compute_row(self, train_loss, evaluation, learning_rate) -> EpochRow:
        epoch = len(self.rows) + 1
        if not math.isfinite(evaluation.loss):
            raise TrainingError(f'epoch {epoch}: the validation loss is no longer a finite number; '
                                f'{NOT_FINITE_ADVICE}')
        single = evaluation.summary()
        self._add_predictions(evaluation.predictions, evaluation.targets)
        mean = self.predictions_sum / epoch
        ensemble = summarise(calculate_stats(mean, evaluation.targets))

        write_array(self.folder / 'target.npy', evaluation.targets)
        write_array(self._predictions_file(epoch), evaluation.predictions)
        return EpochRow(getattr(single, self.metric), single.mAUC, single.precision, single.recall,
                        single.d_prime, train_loss, evaluation.loss,
                        getattr(ensemble, self.metric), ensemble.mAUC, learning_rate)

    def _add_predictions(self, predictions, targets):
        """Add an epoch to the sum of the predictions and to metrics.csv."""
        self.predictions_sum = self.predictions_sum + predictions.astype(np.float64)
        absent = int((~targets.any(axis=0)).sum())
        self.further.append({'epoch': len(self.further) + 1,
                             **further_metrics(predictions, targets),
                             'classes without positives': absent})

    def _predictions_file(self, epoch):
        return self.folder / f'predictions_{epoch}.npy'

    @main_process_only
    def write(self) -> None:
        """Write the tables, the curves and the ensemble's predictions of the epochs so far."""
        from utilities.plots import plot_curves  # matplotlib
        mean = self.predictions_sum / len(self.rows)
        write_array(self.folder / 'cum_predictions.npy', mean.astype(np.float32))
        write_rows(self.exp_dir / 'result.csv', self.rows)
        write_metrics(self.exp_dir / 'metrics.csv', self.further)

        columns = dict(zip(result_columns(self.metric), np.array(self.rows).T))
        figure = plot_curves(columns, self.metric, self.title)
        write_figure(self.exp_dir / 'curves.png', figure)

    @main_process_only
    def log_epoch(self, title: str, seconds: float, replaced: int) -> None:
        """Log the last epoch.

        Args:
            title: which epoch it is.
            seconds: how long it took.
            replaced: how many training samples could not be read.
        """
        row, further = self.rows[-1], dict(self.further[-1])
        absent = further.pop('classes without positives')
        classes = self.predictions_sum.shape[1]
        bad = f', {replaced} samples replaced whose audio could not be read' if replaced else ''
        logger.info(
            '%s: %s %.4f (ensemble of epochs %.4f), mAUC %.4f, training loss %.4f, validation loss '
            '%.4f, lr %.3g, %s, best so far epoch %d%s%s', title, self.metric, row.metric,
            row.cum_metric, row.mAUC, row.train_loss, row.valid_loss, row.lr,
            timedelta(seconds=round(seconds)), self.best_epoch, left_out(absent, classes), bad)

        further.pop('epoch')
        if further:
            values = ', '.join(f'{name} {value:.4f}' for name, value in further.items())
            logger.info('%s: %s', title, values)

    @main_process_only
    def write_average(self, evaluation: Evaluation, epochs: range) -> None:
        """Write wa_result.csv, and log it: how good the average of some epochs' weights is."""
        result = evaluation.summary()
        write_rows(self.exp_dir / 'wa_result.csv', [
            result.mAP, result.mAUC, result.precision, result.recall, result.d_prime])
        logger.info('average of epochs %d to %d: %s %.4f, mAUC %.4f, d-prime %.4f%s', epochs[0],
                    epochs[-1], self.metric, getattr(result, self.metric), result.mAUC,
                    result.d_prime, left_out(result.classes_without_positives, result.classes))

    @main_process_only
    def write_best(self, evaluations: dict[str, Evaluation], class_names: Sequence[str]) -> None:
        """Write eval_result.csv, and log it: evaluations of the best model.

        The predictions of the evaluation set are kept. If its samples have one label, its confusion
        matrix is drawn.

        Args:
            evaluations: on the set `validation` and on the set `evaluation`, by name.
            class_names: of all classes.
        """
        numbers: list[float] = []
        for name, evaluation in evaluations.items():
            result = evaluation.summary()
            score = getattr(result, self.metric)
            numbers += [score, result.mAUC]
            logger.info('best model on the %s set: %s %.4f, mAUC %.4f%s', name, self.metric, score,
                        result.mAUC, left_out(result.classes_without_positives, result.classes))
        write_rows(self.exp_dir / 'eval_result.csv', numbers)

        evaluation = evaluations['evaluation']
        write_array(self.folder / 'eval_predictions.npy', evaluation.predictions)
        write_array(self.folder / 'eval_targets.npy', evaluation.targets)
        if is_single_label(evaluation.targets):
            logger.info(write_confusion(self.exp_dir, class_names, evaluation.predictions,
                                        evaluation.targets))

    @main_process_only
    def require_samples(self, samples: int) -> None:
        """Raise CheckpointError if the epochs so far were evaluated on more or fewer samples."""
        if self.rows and len(self.predictions_sum) != samples:
            raise CheckpointError(f'{self.exp_dir}: its epochs so far were evaluated on '
                                  f'{len(self.predictions_sum)} samples, but the validation set '
                                  f'has {samples}: choose another --exp_dir, or --resume none')

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps. The predictions are in their files already."""
        return {'rows': [list(row) for row in self.rows]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state that state_dict returned, and read the predictions of its epochs."""
        self.rows = [EpochRow(*row) for row in state['rows']]
        self.further = []
        self.predictions_sum = 0.0
        if self.rows and is_main():
            targets = np.load(self.folder / 'target.npy')
            for epoch in range(1, len(self.rows) + 1):
                self._add_predictions(np.load(self._predictions_file(epoch)), targets)


def left_out(absent: float, classes: int) -> str:
    """Return what a line about metrics adds if some classes have no positives, else ''."""
    return (f', {absent} of {classes} classes without positives left out of the means'
            if absent else '')


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


def write_figure(path: Path, figure: 'Figure') -> None:
    """Write a figure of matplotlib as .png."""
    with atomic_write(path) as partial:
        figure.savefig(partial, format='png', dpi=120)


def write_confusion(folder: Path, names: Sequence[str], predictions: np.ndarray,
                    targets: np.ndarray) -> str:
    """Write confusion_matrix.png and class_accuracy.csv of predictions with single labels.

    They are over the classes that occur, without negatives, which have no class. The picture is
    left out for more than 100 classes.

    Args:
        folder: the folder to write to.
        names: of all classes.
        predictions: scores (samples, classes).
        targets: labels (samples, classes) of 0 and 1.

    Returns:
        A line that names the classes with the lowest accuracy.
    """
    from sklearn.metrics import confusion_matrix
    truth, predicted = classes_of(predictions, targets)
    classes = np.union1d(truth, predicted)
    matrix = confusion_matrix(truth, predicted, labels=classes)
    if len(classes) <= MATRIX_CLASSES:
        _draw_confusion(folder, names, classes, matrix)

    clips = matrix.sum(axis=1)
    accuracies = [(names[k], clips[i], matrix[i, i] / clips[i])
                  for i, k in enumerate(classes) if clips[i]]
    write_table(folder / 'class_accuracy.csv', ['class', 'clips', 'accuracy'],
                [(name, count, f'{accuracy:.4f}') for name, count, accuracy in accuracies])
    hardest = sorted(accuracies, key=lambda row: row[2])[:5]
    return 'hardest classes: ' + ', '.join(f'{name} {accuracy:.2f}'
                                           for name, _, accuracy in hardest)


def _draw_confusion(folder, names, classes, matrix):
    """Draw the confusion matrix of some classes, given by their indices."""
    from utilities.plots import drawable_names, plot_confusion  # matplotlib
    shown = drawable_names(tuple(names))
    clips = matrix.sum()
    title = f'{clips} clips, accuracy {matrix.trace() / clips:.3f}'
    figure = plot_confusion(matrix, [shown[k] for k in classes], title)
    write_figure(folder / 'confusion_matrix.png', figure)
