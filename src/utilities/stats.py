"""Metrics of audio classification: per class, and their means as the AST and PSLA papers report them."""
import math
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

# The published results thinned every curve to each 1000th point, and report the middle of what is left.
CURVE_STEP = 1000


def d_prime(area):
    """Sensitivity index d' of an area under the ROC curve: sqrt(2) * the standard normal quantile (AST paper, PSLA)."""
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
        the ROC curve). Of the curves, each 1000th point. A class without positives has NaN for AP
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
    """Compute AP, auc and the thinned curves of one class: scores and labels (samples,)."""
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
    # scikit-learn ended the curve at the first full recall when the results were published; it
    # runs on since 1.1.
    end = np.searchsorted(tps, tps[-1]) + 1
    fpr, fnr = roc_curve(tps, fps)
    return {'AP': average_precision, 'auc': area,
            'precisions': np.r_[precision[:end][::-1], 1][::CURVE_STEP],
            'recalls': np.r_[recall[:end][::-1], 0][::CURVE_STEP],
            'fpr': fpr[::CURVE_STEP], 'fnr': fnr[::CURVE_STEP]}


def roc_curve(tps: np.ndarray, fps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return false positive and false negative rates, from counts as counts_at_thresholds has them.

    The curve begins where nothing counts as positive, and keeps its corners alone, as that of
    scikit-learn does; every 1000th point is then that of the published results. Without negatives,
    the false positive rate is NaN.
    """
    # A point on the straight line between its neighbours is no corner: both counts go on as before.
    corners = np.r_[True, (np.diff(fps, 2) != 0) | (np.diff(tps, 2) != 0), True]
    tps, fps = (np.r_[0, counts[corners] if len(counts) > 2 else counts] for counts in (tps, fps))
    fpr = fps / fps[-1] if fps[-1] else np.full(len(fps), math.nan)
    return fpr, 1 - tps / tps[-1]


def counts_at_thresholds(scores, labels):
    """True and false positives where all samples from a score on count as positive, for each distinct score.

    scores, labels: (samples,). Returns two int arrays (distinct scores,), the highest score first. What scikit-learn
    has for it takes three times as long, which at 527 classes is felt in every epoch.
    """
    order = np.argsort(scores)[::-1]
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)  # of the samples with equal scores
    tps = np.cumsum(labels[order] > 0)[last]
    return tps, last + 1 - tps


@dataclass(frozen=True)
class Metrics:
    """Means over the classes that have positives (mAP, mAUC, precision, recall), accuracy, d' of mAUC.

    classes: how many there are; classes_without_positives: how many of them the means leave out.
    """
    mAP: float
    mAUC: float
    acc: float
    precision: float
    recall: float
    d_prime: float
    classes: int
    classes_without_positives: int


def summarise(stats):
    """Metrics of the per-class statistics that calculate_stats returns."""
    present = [s for s in stats if not math.isnan(s['AP'])]
    area = mean_of(s['auc'] for s in present)
    return Metrics(
        mAP=mean_of(s['AP'] for s in present), mAUC=area, acc=stats[0]['acc'],
        precision=mean_of(middle(s['precisions']) for s in present),
        recall=mean_of(middle(s['recalls']) for s in present),
        d_prime=float(d_prime(area)), classes=len(stats), classes_without_positives=len(stats) - len(present))


def is_single_label(target):
    """Tell whether all samples of target (samples, classes) have one label, but for negatives.

    A single class is no choice: then there is nothing to confuse, and the answer is no.
    """
    return bool(target.shape[1] > 1 and target.any() and target.sum(axis=1).max() == 1)


def single_label_scores(output, target):
    """Macro F1 over the classes that occur in target, and top-5 accuracy, of one label a sample.

    output: scores (samples, classes); target: labels (samples, classes) of 0 and 1. Negatives do
    not count. Top-5 is NaN for up to 5 classes.
    """
    from sklearn.metrics import f1_score, top_k_accuracy_score
    (truth, predicted), classes = classes_of(output, target), target.shape[1]
    f1 = f1_score(truth, predicted, labels=np.unique(truth), average='macro', zero_division=0)
    if classes <= 5:
        return float(f1), math.nan
    top5 = top_k_accuracy_score(truth, output[target.any(axis=1)], k=5, labels=np.arange(classes))
    return float(f1), float(top5)


def middle(curve):
    """The middle point of a thinned curve."""
    return curve[len(curve) // 2]


def mean_of(values):
    """Mean of the values that are not NaN; NaN where there are none."""
    values = [value for value in values if not math.isnan(value)]
    return float(np.mean(values)) if values else math.nan
