"""Metrics of audio classification: of each class, and their means as in the AST and PSLA papers.

To add a metric to the log, metrics.csv, report.html and TensorBoard, write a function of (output,
target) and name it in FURTHER_METRICS, at the end of this file.
"""
import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

# The published code keeps every 1000th point of a curve, and reports the middle of those.
CURVE_STEP = 1000

Metric = Callable[[np.ndarray, np.ndarray], float]


def d_prime(area: float) -> float:
    """Return the sensitivity index d' of an area under the ROC curve (AST paper, PSLA).

    It is sqrt(2) times the standard normal quantile of the area.
    """
    return math.sqrt(2) * ndtri(area)


def calculate_stats(output: np.ndarray, target: np.ndarray) -> list[dict]:
    """Compute statistics of predictions, class by class.

    Args:
        output: scores (samples, classes), on any monotone scale.
        target: labels (samples, classes) of 0 and 1; all 0 for a negative.

    Returns:
        A list with one dict per class: AP (average precision), auc (area under the ROC curve), acc
        (accuracy of the arg-max without the negatives, the same for every class), precisions and
        recalls (the precision-recall curve), fpr and fnr (false positive and false negative rate,
        the ROC curve). The curves keep each 1000th point. A class without positives has NaN for AP
        and auc and empty curves; one without negatives has NaN for auc and fpr. acc is NaN if
        there are only negatives.

    Raises:
        ValueError: if the shapes differ, or output holds NaN.
    """
    output, target = np.asarray(output), np.asarray(target)
    if output.shape != target.shape or output.ndim != 2:
        raise ValueError(f'output and target must both be (samples, classes), got {output.shape} '
                         f'and {target.shape}')
    if np.isnan(output).any():
        raise ValueError('output holds NaN: no threshold can sort it')
    truth, predicted = classes_of(output, target)
    acc = float(np.mean(truth == predicted)) if len(truth) else math.nan
    return [{**class_stats(output[:, k], target[:, k]), 'acc': acc}
            for k in range(target.shape[1])]


def classes_of(output: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the true and the predicted class of each sample that has a label, by arg-max.

    A negative has no class: the arg-max of its labels would be class 0.
    """
    labelled = target.any(axis=1)
    return target[labelled].argmax(axis=1), output[labelled].argmax(axis=1)


def class_stats(scores: np.ndarray, labels: np.ndarray) -> dict:
    """Compute AP, auc and the thinned curves of one class.

    Args:
        scores: (samples,).
        labels: (samples,) of 0 and 1.
    """
    if not labels.any():
        curves = ('precisions', 'recalls', 'fpr', 'fnr')
        return {'AP': math.nan, 'auc': math.nan, **{name: np.empty(0) for name in curves}}

    tps, fps = counts_at_thresholds(scores, labels)
    recall = tps / tps[-1]
    precision = tps / (tps + fps)
    average_precision = float(np.sum(np.diff(recall, prepend=0) * precision))
    negatives = fps[-1]
    area = math.nan
    if negatives:
        area = float(np.trapezoid(np.r_[0, recall], np.r_[0, fps / negatives]))

    # When the results were published, scikit-learn ended the curve at the first full recall. Since
    # version 1.1 the curve runs on.
    end = np.searchsorted(tps, tps[-1]) + 1
    fpr, fnr = roc_curve(tps, fps)
    return {'AP': average_precision, 'auc': area,
            'precisions': np.r_[precision[:end][::-1], 1][::CURVE_STEP],
            'recalls': np.r_[recall[:end][::-1], 0][::CURVE_STEP],
            'fpr': fpr[::CURVE_STEP], 'fnr': fnr[::CURVE_STEP]}


def roc_curve(tps: np.ndarray, fps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return false positive and false negative rates, from counts of counts_at_thresholds.

    The curve begins at the threshold above all scores. It keeps only its corners, as scikit-learn's
    curve does, so that every 1000th point is that of the published results. Without negatives, the
    false positive rate is NaN.
    """
    if len(tps) > 2:
        # A point on the straight line between its neighbours is no corner: both counts continue as
        # before.
        is_corner = (np.diff(fps, 2) != 0) | (np.diff(tps, 2) != 0)
        corners = np.r_[True, is_corner, True]
        tps, fps = tps[corners], fps[corners]
    tps, fps = np.r_[0, tps], np.r_[0, fps]
    fpr = fps / fps[-1] if fps[-1] else np.full(len(fps), math.nan)
    return fpr, 1 - tps / tps[-1]


def counts_at_thresholds(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count true and false positives, with each distinct score as the threshold.

    A sample counts as positive if its score is at least the threshold. scikit-learn's function
    takes three times as long, which is felt in every epoch of 527 classes.

    Args:
        scores: (samples,).
        labels: (samples,) of 0 and 1.

    Returns:
        True positives and false positives, both integers (distinct scores,), highest score first.
    """
    order = np.argsort(scores)[::-1]
    # The last of the samples that have the same score.
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    tps = np.cumsum(labels[order] > 0)[last]
    return tps, last + 1 - tps


@dataclass(frozen=True)
class Metrics:
    """The metrics of all classes together.

    Attributes:
        mAP, precision, recall: means over the classes that have positives.
        mAUC: mean over the classes that have positives and negatives.
        acc: accuracy of the arg-max.
        d_prime: d' of mAUC.
        classes: how many there are.
        classes_without_positives: how many have no positives. The means leave them out.
    """
    mAP: float
    mAUC: float
    acc: float
    precision: float
    recall: float
    d_prime: float
    classes: int
    classes_without_positives: int


def summarise(stats: list[dict]) -> Metrics:
    """Return the Metrics of the per-class statistics that calculate_stats returns."""
    present = [s for s in stats if not math.isnan(s['AP'])]
    area = mean_of(s['auc'] for s in present)
    return Metrics(
        mAP=mean_of(s['AP'] for s in present),
        mAUC=area,
        acc=stats[0]['acc'],
        precision=mean_of(middle(s['precisions']) for s in present),
        recall=mean_of(middle(s['recalls']) for s in present),
        d_prime=float(d_prime(area)),
        classes=len(stats),
        classes_without_positives=len(stats) - len(present))


def middle(curve: np.ndarray) -> float:
    """Return the middle point of a thinned curve, as the published results have it."""
    return curve[len(curve) // 2]


def mean_of(values: Iterable[float]) -> float:
    """Return the mean of the values that are not NaN, or NaN if there are none."""
    values = [value for value in values if not math.isnan(value)]
    return float(np.mean(values)) if values else math.nan


def is_single_label(target: np.ndarray) -> bool:
    """Return whether no sample of target (samples, classes) has several labels.

    Negatives have none. If all samples are negatives, or if there is only one class, there is
    nothing to confuse: the answer is no.
    """
    return bool(target.shape[1] > 1 and target.any() and target.sum(axis=1).max() == 1)


def for_single_labels(metric: Metric) -> Metric:
    """Make a metric of (output, target) from one of (scores, truth), which needs single labels.

    The metric gets the samples that have a label: their scores (samples, classes) and their classes
    (samples,). If samples have several labels, the result is NaN.
    """
    @functools.wraps(metric)
    def of_labelled(output: np.ndarray, target: np.ndarray) -> float:
        if not is_single_label(target):
            return math.nan
        labelled = target.any(axis=1)
        return metric(output[labelled], target[labelled].argmax(axis=1))
    return of_labelled


@for_single_labels
def macro_f1(scores: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean F1 of the classes that occur in the labels."""
    from sklearn.metrics import f1_score
    return float(f1_score(truth, scores.argmax(axis=1), labels=np.unique(truth), average='macro',
                          zero_division=0))


@for_single_labels
def top5_accuracy(scores: np.ndarray, truth: np.ndarray) -> float:
    """Return how often the label is among the five highest scores; NaN for up to 5 classes."""
    classes = scores.shape[1]
    if classes <= 5:
        return math.nan
    from sklearn.metrics import top_k_accuracy_score
    return float(top_k_accuracy_score(truth, scores, k=5, labels=np.arange(classes)))


# What the log, metrics.csv, report.html and TensorBoard show besides the published metrics:
# functions of (output, target), both (samples, classes). If a metric has no meaning for the labels,
# it returns NaN, as macro F1 does if samples have several labels. The output is sigmoids, as
# published, for --loss CE, too.
FURTHER_METRICS: dict[str, Metric] = {
    'macro F1': macro_f1,
    'top-5 accuracy': top5_accuracy,
}


def further_metrics(output: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """Return the FURTHER_METRICS that have a meaning for these labels, by name.

    Args:
        output: scores (samples, classes).
        target: labels (samples, classes) of 0 and 1.
    """
    values = {name: metric(output, target) for name, metric in FURTHER_METRICS.items()}
    return {name: value for name, value in values.items() if not math.isnan(value)}
