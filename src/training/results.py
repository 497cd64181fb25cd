"""The epochs of an experiment: their metrics, their predictions and the best of them.

    Evaluation (predictions, labels) -> metrics of utilities.stats -> EpochRow -> result.csv
                                     -> FURTHER_METRICS -> metrics.csv
                                     -> predictions_N.npy, and their mean, the ensemble of epochs
"""
import logging
import math
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from training.checkpoint import CheckpointError
from training.errors import TrainingError
from training.evaluation import Evaluation
from training.losses import NOT_FINITE_ADVICE
from training.processes import is_main, main_process_only
from training.result_files import (
    AverageRow,
    BestModelRow,
    EpochRow,
    best_of,
    hardest_classes,
    read_array,
    write_array,
    write_confusion,
    write_curves,
    write_metrics,
    write_rows,
)
from utilities.stats import calculate_stats, further_metrics, is_single_label, summarise

SECONDS_BETWEEN_CURVES = 5

logger = logging.getLogger(__name__)


class Results:
    """The epochs of an experiment so far: their rows, their predictions, the best of them.

    If there are several processes, all have the rows, and only the main one has the rest.

    Args:
        exp_dir: folder of the experiment.
        metric: the main metric, 'acc' or 'mAP'.
        title: the title of the curves.

    Attributes:
        rows: rows of result.csv.
        further_rows: rows of metrics.csv.
        predictions_sum: (samples, classes), over the epochs.
        targets: labels (samples, classes) of the validation set, as an earlier start wrote them.
    """

    def __init__(self, exp_dir: str | Path, metric: str, title: str):
        self.exp_dir = Path(exp_dir)
        self.metric = metric
        self.title = title
        self.rows: list[EpochRow] = []
        self.further_rows: list[dict[str, float]] = []
        self.predictions_sum: Any = 0.0
        self.targets = np.zeros((0, 0))
        self.drawn_at = -math.inf  # the time at which the curves were drawn last
        self.predictions_folder = self.exp_dir / 'predictions'
        self.predictions_folder.mkdir(parents=True, exist_ok=True)

    @property
    def best_epoch(self) -> int:
        """The epoch, from 1, with the best main metric, the earliest of equals."""
        return 1 + best_of(self.rows)

    def add(self, train_loss: float, evaluation: Evaluation, learning_rate: float) -> EpochRow:
        """Add an epoch, write its predictions and return its row. `write` writes the rest.

        Raises:
            TrainingError: if the validation loss is not a finite number.
        """
        row = self._add_evaluation(train_loss, evaluation, learning_rate)
        self.rows.append(row)
        return row

    @main_process_only
    def _add_evaluation(self, train_loss: float, evaluation: Evaluation, learning_rate: float
                        ) -> EpochRow:
        """Add an epoch to the ensemble, write its predictions and return its row."""
        epoch = len(self.rows) + 1
        if not math.isfinite(evaluation.loss):
            raise TrainingError(f'epoch {epoch}: the validation loss is no longer a finite number; '
                                f'{NOT_FINITE_ADVICE}')
        self._add_predictions(evaluation.predictions, evaluation.targets)
        write_array(self.predictions_folder / 'target.npy', evaluation.targets)
        write_array(self._predictions_file(epoch), evaluation.predictions)

        single = evaluation.summary()
        mean = self.predictions_sum / epoch
        ensemble = summarise(calculate_stats(mean, evaluation.targets))
        return EpochRow(getattr(single, self.metric), single.mAUC, single.precision, single.recall,
                        single.d_prime, train_loss, evaluation.loss,
                        getattr(ensemble, self.metric), ensemble.mAUC, learning_rate)

    def _add_predictions(self, predictions, targets):
        """Add predictions to their sum, and the epoch's further metrics to further_rows."""
        self.predictions_sum = self.predictions_sum + predictions.astype(np.float64)
        absent = int((~targets.any(axis=0)).sum())
        self.further_rows.append({
            'epoch': len(self.further_rows) + 1,
            **further_metrics(predictions, targets),
            'classes without positives': absent})

    def _predictions_file(self, epoch):
        return self.predictions_folder / f'predictions_{epoch}.npy'

    @main_process_only
    def write(self) -> None:
        """Write the tables and the ensemble's predictions of the epochs so far, and the curves.

        Epochs may take less time than drawing, so the curves are not drawn every time. Call
        finish_curves at the end.
        """
        mean = self.predictions_sum / len(self.rows)
        write_array(self.predictions_folder / 'cum_predictions.npy', mean.astype(np.float32))
        write_rows(self.exp_dir / 'result.csv', self.rows)
        write_metrics(self.exp_dir / 'metrics.csv', self.further_rows)
        if time.monotonic() - self.drawn_at >= SECONDS_BETWEEN_CURVES:
            self._draw_curves()  # finish_curves would wait for the other processes for ever

    @main_process_only
    def finish_curves(self) -> None:
        """Draw the curves of all epochs, if there are any."""
        self._draw_curves()

    def _draw_curves(self):
        if self.rows:
            write_curves(self.exp_dir, self.rows, self.metric, self.title)
            self.drawn_at = time.monotonic()

    @main_process_only
    def log_epoch(self, title: str, seconds: float, replaced: int) -> None:
        """Log the last epoch.

        Args:
            title: which epoch it is.
            seconds: how long it took.
            replaced: how many training samples could not be read.
        """
        row, further = self.rows[-1], dict(self.further_rows[-1])
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
        write_rows(self.exp_dir / 'wa_result.csv', AverageRow(
            result.mAP, result.mAUC, result.precision, result.recall, result.d_prime))
        logger.info('average of epochs %d to %d: %s %.4f, mAUC %.4f, d-prime %.4f%s', epochs[0],
                    epochs[-1], self.metric, getattr(result, self.metric), result.mAUC,
                    result.d_prime, left_out(result.classes_without_positives, result.classes))

    @main_process_only
    def write_best(self, evaluations: dict[str, Evaluation], class_names: Sequence[str]) -> None:
        """Write eval_result.csv, and log it: evaluations of the best model.

        The predictions and labels of the test set are kept. If its samples have one label,
        write_confusion writes its confusions.

        Args:
            evaluations: of the `validation` set and of the `test` set, by name.
            class_names: names of all classes.
        """
        numbers: list[float] = []
        for name, evaluation in evaluations.items():
            result = evaluation.summary()
            score = getattr(result, self.metric)
            numbers += [score, result.mAUC]
            logger.info('best model on the %s set: %s %.4f, mAUC %.4f%s', name, self.metric, score,
                        result.mAUC, left_out(result.classes_without_positives, result.classes))
        write_rows(self.exp_dir / 'eval_result.csv', BestModelRow(*numbers))

        evaluation = evaluations['test']
        write_array(self.predictions_folder / 'eval_predictions.npy', evaluation.predictions)
        write_array(self.predictions_folder / 'eval_targets.npy', evaluation.targets)
        if is_single_label(evaluation.targets):
            rows = write_confusion(self.exp_dir, class_names, evaluation.predictions,
                                   evaluation.targets)
            logger.info(hardest_classes(rows))

    @main_process_only
    def require_same_samples(self, dataset: Any) -> None:
        """Raise CheckpointError if the epochs so far were evaluated on samples with other labels.

        Args:
            dataset: the validation set.
        """
        if not self.rows:
            return
        advice = 'choose another --exp_dir, or --resume none'
        if len(self.targets) != len(dataset):
            raise CheckpointError(f'{self.exp_dir}: its epochs so far were evaluated on '
                                  f'{len(self.targets)} samples, but the validation set has '
                                  f'{len(dataset)}: {advice}')
        if not np.array_equal(self.targets, dataset.all_targets()):
            raise CheckpointError(f'{self.exp_dir}: its epochs so far were evaluated on other '
                                  f'samples than those of the validation set, or in another order: '
                                  f'their labels differ; {advice}')

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps. The predictions are in their files already."""
        return {'rows': [list(row) for row in self.rows]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state that state_dict returned, and read the predictions of its epochs."""
        self.rows = [EpochRow(*row) for row in state['rows']]
        self.further_rows = []
        self.predictions_sum = 0.0
        if self.rows and is_main():
            self.targets = read_array(self.predictions_folder / 'target.npy')
            for epoch in range(1, len(self.rows) + 1):
                self._add_predictions(read_array(self._predictions_file(epoch)), self.targets)


def left_out(absent: float, classes: int) -> str:
    """Return what a line about metrics adds if some classes have no positives, else ''."""
    return (f', {absent} of {classes} classes without positives left out of the means'
            if absent else '')
