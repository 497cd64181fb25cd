"""What an experiment leaves in exp_dir: the table of its epochs, predictions, curves, and single rows of numbers."""
import csv
import io
from pathlib import Path

import numpy as np

from models.atomic import atomic_write
from utilities.errors import DataError, error_reason
from utilities.stats import calculate_stats, classes_of, summarise
from utilities.tables import read_numbers
from utilities.texts import write_text

MATRIX_CLASSES = 100  # of a confusion matrix that can still be read, and drawn


def result_columns(metric):
    """Names of the columns of result.csv; metric is 'acc' or 'mAP'."""
    return (metric, 'mAUC', 'precision', 'recall', 'd_prime', 'train_loss', 'valid_loss',
            f'cum_{metric}', 'cum_mAUC', 'lr')


def write_rows(path, rows):
    """Write rows of numbers, comma-separated, for numpy.loadtxt; a flat list becomes one number per line."""
    with atomic_write(path) as partial:
        np.savetxt(partial, rows, delimiter=',', fmt='%.10g')


def read_rows(path):
    """Read a result.csv: (epochs, columns). Raises DataError if it is not there, or something else by now."""
    try:
        rows = read_numbers(path, ndmin=2)
    except (OSError, ValueError) as error:
        raise DataError(f'cannot read {path}: {error_reason(error)}') from None
    columns = len(result_columns(''))
    if not len(rows) or rows.shape[1] != columns:
        raise DataError(f'cannot read {path}: expected {columns} numbers for each epoch, got shape {rows.shape}')
    return rows


def best_of(rows):
    """Index of the row with the best main metric, the first column of (epochs, columns); the earliest of equals."""
    return int(np.nan_to_num(np.asarray(rows)[:, 0], nan=-np.inf).argmax())


def write_array(path, array):
    """Write an array as .npy."""
    with atomic_write(path) as partial, open(partial, 'wb') as file:
        np.save(file, array)


def write_figure(path, figure):
    """Write a matplotlib Figure as .png."""
    with atomic_write(path) as partial:
        figure.savefig(partial, format='png', dpi=120)


def write_confusion(folder, names, predictions, targets):
    """Write confusion_matrix.png and class_accuracy.csv of single-label predictions, over the classes that occur.

    Negatives, which have no class, are left out, and the picture above 100 classes. names: of all;
    predictions, targets: (samples, classes). Returns the hardest classes as a line to print.
    """
    from sklearn.metrics import confusion_matrix

    from utilities.plots import drawable_names, plot_confusion  # matplotlib
    truth, predicted = classes_of(predictions, targets)
    classes = np.union1d(truth, predicted)
    matrix = confusion_matrix(truth, predicted, labels=classes)
    if len(classes) <= MATRIX_CLASSES:
        title = f'{len(truth)} clips, accuracy {np.mean(predicted == truth):.3f}'
        shown = drawable_names(tuple(names))
        figure = plot_confusion(matrix, [shown[k] for k in classes], title)
        write_figure(folder / 'confusion_matrix.png', figure)
    clips = matrix.sum(axis=1)
    accuracy = [(names[k], n, matrix[i, i] / n) for i, (k, n) in enumerate(zip(classes, clips)) if n]
    table = io.StringIO()
    rows = ((name, n, f'{score:.4f}') for name, n, score in accuracy)
    csv.writer(table, lineterminator='\n').writerows([('class', 'clips', 'accuracy'), *rows])
    write_text(folder / 'class_accuracy.csv', table.getvalue())
    return 'hardest classes: ' + ', '.join(f'{name} {score:.2f}' for name, _, score in
                                           sorted(accuracy, key=lambda row: row[2])[:5])


class Results:
    """The epochs of an experiment so far: rows of result.csv, the ensemble of their predictions, the best of them.

    exp_dir: where result.csv, curves.png and predictions/ go; metric: 'acc' or 'mAP', the main one.
    """

    def __init__(self, exp_dir, metric, title):
        self.exp_dir, self.metric, self.title = Path(exp_dir), metric, title
        self.rows = []
        self.predictions_sum = 0.0
        self.folder = self.exp_dir / 'predictions'
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def best_epoch(self):
        """The epoch (from 1) with the best main metric, the earliest of equals."""
        return 1 + best_of(self.rows)

    def state_dict(self):
        """What a checkpoint keeps of it; the predictions are on the disk already."""
        return {'rows': self.rows}

    def load_state_dict(self, state):
        """Go back to the rows of a checkpoint, and read the predictions of their epochs."""
        self.rows = state['rows']
        self.predictions_sum = 0.0
        for epoch in range(1, len(self.rows) + 1):
            self.predictions_sum = self.predictions_sum + np.load(self._file(epoch)).astype(np.float64)

    def _file(self, epoch):
        return self.folder / f'predictions_{epoch}.npy'

    def add(self, train_loss, evaluation, learning_rate):
        """Take in an epoch and write its predictions; `write` writes the rest.

        Returns the Metrics of its predictions and of the ensemble of all epochs so far.
        """
        single = summarise(calculate_stats(evaluation.predictions, evaluation.targets))
        self.predictions_sum = self.predictions_sum + evaluation.predictions.astype(np.float64)
        ensemble_predictions = self.predictions_sum / (len(self.rows) + 1)
        ensemble = summarise(calculate_stats(ensemble_predictions, evaluation.targets))
        self.rows.append([getattr(single, self.metric), single.mAUC, single.precision, single.recall, single.d_prime,
                          train_loss, evaluation.loss, getattr(ensemble, self.metric), ensemble.mAUC, learning_rate])
        write_array(self.folder / 'target.npy', evaluation.targets)
        write_array(self._file(len(self.rows)), evaluation.predictions)
        return single, ensemble

    def write(self):
        """Write result.csv, curves.png and the ensemble's predictions of the epochs so far."""
        from utilities.plots import plot_curves  # matplotlib
        write_array(self.folder / 'cum_predictions.npy', (self.predictions_sum / len(self.rows)).astype(np.float32))
        write_rows(self.exp_dir / 'result.csv', self.rows)
        columns = dict(zip(result_columns(self.metric), np.array(self.rows).T))
        write_figure(self.exp_dir / 'curves.png', plot_curves(columns, self.metric, self.title))
