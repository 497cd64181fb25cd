"""Metrics of predictions of AudioSet's size: held against scikit-learn and timed beside it; then their files.

python tests/benchmark_metrics.py [--samples 20371] [--classes 527]
"""
import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from sklearn.metrics import accuracy_score, average_precision_score, precision_recall_curve, roc_auc_score

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'src'))
from utilities.results import write_array  # noqa: E402
from utilities.stats import calculate_stats  # noqa: E402


def timed(function):
    """What a function returns, and the seconds that it took."""
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def class_by_class(predictions, targets):
    """AP and AUC of every class by one call a class of each of four functions."""
    accuracy_score(targets.argmax(axis=1), predictions.argmax(axis=1))
    scores = []
    for k in range(targets.shape[1]):
        precision_recall_curve(targets[:, k], predictions[:, k])
        scores.append((average_precision_score(targets[:, k], predictions[:, k]),
                       roc_auc_score(targets[:, k], predictions[:, k])))
    return np.array(scores)


def save_average_load(folder, predictions):
    """What an epoch does with its predictions: save them, load them, take them into the mean of two epochs."""
    write_array(folder / 'predictions.npy', predictions)
    return (np.load(folder / 'predictions.npy').astype(np.float64) + predictions) / 2


def main():
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--samples', type=int, default=20371)
    parser.add_argument('--classes', type=int, default=527)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    frequency = np.geomspace(0.3, 0.002, args.classes)
    targets = (rng.random((args.samples, args.classes)) < frequency).astype(np.float32)
    predictions = 1 / (1 + np.exp(-(2 * targets - 3 + rng.standard_normal(targets.shape, dtype=np.float32))))
    predictions = predictions.astype(np.float32)
    stats, ours = timed(lambda: calculate_stats(predictions, targets))
    expected, theirs = timed(lambda: class_by_class(predictions, targets))
    error = np.abs(np.array([(one['AP'], one['auc']) for one in stats]) - expected).max()
    print(f'{args.samples} x {args.classes}: calculate_stats {ours:.1f} s, scikit-learn class by class {theirs:.1f} s '
          f'({theirs / ours:.1f} times as long), largest difference {error:.1e}')
    with tempfile.TemporaryDirectory() as folder:
        _, seconds = timed(lambda: save_average_load(Path(folder), predictions))
    print(f'predictions saved, loaded and averaged in {seconds:.2f} s')


if __name__ == '__main__':
    main()
