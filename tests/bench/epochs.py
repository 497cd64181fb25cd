"""Measure what an epoch does with its predictions, on a CPU.

Each function in ROWS takes a Scale and an empty folder, and yields Rows.
"""
from functools import partial

import numpy as np

from measure import alternate, at_most, faster, require_close
from published import PublishedEpochs
from published import calculate_stats as published_stats
from training.result_files import write_array
from training.results import Results
from traintest import Evaluation
from utilities.stats import calculate_stats

ROUNDS = 1  # a minute, whatever the Scale says


def make_predictions(scale):
    """Return random predictions and targets of an epoch, each (samples, classes)."""
    rng = np.random.default_rng(0)
    samples, classes = scale.predictions
    rates = np.geomspace(0.3, 0.002, classes)  # of positives
    targets = (rng.random((samples, classes)) < rates).astype(np.float32)
    targets[0], targets[1] = 1, 0  # every class has positives and negatives
    logits = 2 * targets - 3 + rng.standard_normal(targets.shape, dtype=np.float32)
    return (1 / (1 + np.exp(-logits))).astype(np.float32), targets


def class_stats(scale, folder):
    """Measure AP and AUC of every class."""
    predictions, targets = make_predictions(scale)
    every_class = [[(one['AP'], one['auc']) for one in function(predictions, targets)]
                   for function in (calculate_stats, published_stats)]
    require_close('AP and AUC of every class', *every_class, 1e-9)
    times = alternate({'ours': partial(calculate_stats, predictions, targets),
                       'scikit-learn': partial(published_stats, predictions, targets)},
                      ROUNDS, settle=False)
    samples, classes = scale.predictions
    yield faster(f'calculate_stats of {samples} x {classes}, against four calls a class of '
                 'scikit-learn', times['ours'], times['scikit-learn'], 3)


def prediction_files(scale, folder):
    """Measure how long it takes to save, load and average the predictions of an epoch."""
    predictions, _ = make_predictions(scale)
    path = folder / 'predictions.npy'

    def save_and_average():
        write_array(path, predictions)
        return (np.load(path).astype(np.float64) + predictions) / 2

    seconds = alternate({'ours': save_and_average}, scale.rounds)['ours']
    yield at_most("an epoch's predictions saved, loaded, averaged, against 1 s", seconds, 1.0, 's')


def epoch_metrics(scale, folder):
    """Measure what an epoch does with its predictions: metrics, files, the ensemble of epochs."""
    predictions, targets = make_predictions(scale)
    evaluation = Evaluation(predictions, targets, 0.5)
    results = Results(folder / 'ours', 'mAP', 'benchmark')
    published = PublishedEpochs(folder, targets)

    def ours():
        row = results.add(0.5, evaluation, 1e-5)
        results.write()
        return row.cum_metric, row.cum_mAUC

    def reference():
        _, ensemble = published.add(predictions, targets)
        return [np.mean([one[name] for one in ensemble]) for name in ('AP', 'auc')]

    # This is the first epoch. The second one is timed, whose ensemble has an epoch to read.
    require_close('mAP and mAUC', ours(), reference(), 1e-6)
    times = alternate({'ours': ours, 'published': reference}, ROUNDS, settle=False)
    samples, classes = scale.predictions
    yield faster(f'metrics and epoch ensemble of {samples} x {classes}, against published',
                 times['ours'], times['published'], 10)


ROWS = {function.__name__: function
        for function in (class_stats, prediction_files, epoch_metrics)}
