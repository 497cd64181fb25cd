"""Summarise the folds of ESC-50: accuracy at the best mean epoch and at the last, by class, confusion matrix."""
import json
import logging
import re
import sys
from pathlib import Path

import numpy as np
from sklearn.metrics import confusion_matrix

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / 'src'))
from prep_esc50 import LABEL_FILE  # noqa: E402
from utilities.cli import OptionParser, exit_on, setup_logging  # noqa: E402
from utilities.labels import DataError, read_labels  # noqa: E402
from utilities.plots import plot_confusion, plot_curves  # noqa: E402
from utilities.results import read_rows, result_columns, write_figure, write_rows, write_text  # noqa: E402

logger = logging.getLogger(__name__)


def finished_folds(exp_dir):
    """The directories fold1 to fold5 of exp_dir whose runs are finished, and their common settings.

    Raises DataError where there is none, and where their settings differ in more than the data.
    """
    folds = sorted(path for path in exp_dir.glob('fold*') if re.fullmatch(r'fold\d+', path.name))
    finished = [fold for fold in folds if (fold / 'finished').exists()]
    if not finished:
        raise DataError(f'there is no finished fold in {exp_dir}')
    for fold in folds:
        if fold not in finished:
            logger.warning('%s is not finished and is left out', fold)
    settings = [json.loads((fold / 'args.json').read_text()) for fold in finished]
    for name in ('metrics', 'n_epochs', 'dataset'):
        if len({one[name] for one in settings}) > 1:
            raise DataError(f'the folds in {exp_dir} differ in --{name}: they do not belong together')
    return finished, settings[0]


def read_predictions(folds, epoch):
    """Predicted and true class of every clip of the folds' evaluation sets at an epoch, each (clips,)."""
    predictions = np.concatenate([np.load(fold / 'predictions' / f'predictions_{epoch}.npy') for fold in folds])
    targets = np.concatenate([np.load(fold / 'predictions' / 'target.npy') for fold in folds])
    return predictions.argmax(axis=1), targets.argmax(axis=1)


def describe(folds, scores, metric, title):
    """A line with the folds' scores, their mean and standard deviation."""
    each = ', '.join(f'{fold.name} {score:.4f}' for fold, score in zip(folds, scores))
    return f'{title}: mean {metric} {scores.mean():.4f}, standard deviation {scores.std():.4f} ({each})'


def summarise_folds(exp_dir):
    """Write the three CSVs, the curves, the confusion matrix and the accuracy by class; return lines to print."""
    folds, settings = finished_folds(exp_dir)
    metric = settings['metrics']
    rows = np.stack([read_rows(fold / 'result.csv') for fold in folds])  # (folds, epochs, columns)
    mean = rows.mean(axis=0)
    best = int(mean[:, 0].argmax())
    write_rows(exp_dir / 'result.csv', mean)
    write_rows(exp_dir / 'best_result.csv', mean[best])
    write_rows(exp_dir / 'acc_fold.csv', np.append(rows[:, best, 0], mean[best, 0]))
    columns = dict(zip(result_columns(metric), mean.T))
    title = f'{settings["dataset"]}, mean of {len(folds)} folds'
    write_figure(exp_dir / 'curves.png', plot_curves(columns, metric, title))
    lines = [describe(folds, rows[:, best, 0], metric, f'epoch {best + 1}, the best of the mean'),
             describe(folds, rows[:, -1, 0], metric, f'epoch {len(mean)}, the last')]
    return lines + write_confusion(exp_dir, *read_predictions(folds, best + 1))


def write_confusion(exp_dir, predicted, truth):
    """Write confusion_matrix.png and class_accuracy.csv over the classes that occur; return the hardest as a line."""
    names = read_labels(LABEL_FILE).names
    classes = np.union1d(truth, predicted)
    matrix = confusion_matrix(truth, predicted, labels=classes)
    title = f'{len(truth)} clips, accuracy {np.mean(predicted == truth):.3f}'
    write_figure(exp_dir / 'confusion_matrix.png', plot_confusion(matrix, [names[k] for k in classes], title))
    clips = matrix.sum(axis=1)
    accuracy = [(names[k], n, matrix[i, i] / n) for i, (k, n) in enumerate(zip(classes, clips)) if n]
    write_text(exp_dir / 'class_accuracy.csv',
               'class,clips,accuracy\n' + ''.join(f'{name},{n},{score:.4f}\n' for name, n, score in accuracy))
    hardest = ', '.join(f'{name} {score:.2f}' for name, _, score in sorted(accuracy, key=lambda row: row[2])[:5])
    return [f'hardest classes: {hardest}']


def main():
    """Entry point."""
    parser = OptionParser(prog='get_esc_result.py', description=__doc__)
    parser.add_argument('--exp_dir', type=Path, required=True, help='directory with fold1 to fold5')
    args = parser.parse_args()
    setup_logging()
    with exit_on(DataError, OSError):
        print('\n'.join(summarise_folds(args.exp_dir)))
        print(f'tables and pictures are in {args.exp_dir}')


if __name__ == '__main__':
    main()
