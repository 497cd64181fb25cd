"""Metrics, against the published numbers and against scikit-learn."""
import math

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score, roc_curve

import golden
from utilities.stats import (
    calculate_stats,
    d_prime,
    further_metrics,
    is_single_label,
    macro_f1,
    summarise,
    top5_accuracy,
)

SEEDS = (7, 8)


@pytest.fixture(params=SEEDS)
def case(request, golden_json):
    """A golden case: what is expected, and the statistics calculated."""
    expected = next(case for case in golden_json('data.json')['stats']
                    if case['seed'] == request.param)
    names = ('seed', 'samples', 'classes', 'rate')
    predictions, targets = golden.stats_case(*(expected[name] for name in names))
    stats = calculate_stats(predictions, targets)
    # In the published accuracy, a sample without a label counted as one of class 0.
    targets[~targets.any(axis=1), 0] = 1
    accuracy = calculate_stats(predictions, targets)[0]['acc']
    return expected, [{**of_class, 'acc': accuracy} for of_class in stats]


@pytest.fixture
def sparse():
    """(predictions, targets), both (300, 5), with ties everywhere.

    Class 2 has no positives, class 4 no negatives.
    """
    predictions, targets = golden.stats_case(3, 300, 5, 0.2)
    targets[:, 2], targets[:, 4] = 0, 1
    return predictions.round(1), targets


@pytest.mark.parametrize('name', ['AP', 'auc'])
def test_per_class_numbers_are_the_published_ones(case, name):
    expected, stats = case
    assert [s[name] for s in stats] == pytest.approx(expected[name], abs=1e-9)


def test_accuracy_is_the_published_one_in_every_class(case):
    expected, stats = case
    assert [s['acc'] for s in stats] == pytest.approx([expected['acc']] * expected['classes'],
                                                      abs=1e-9)


def test_the_middle_of_the_thinned_curves_is_the_published_one(case):
    expected, stats = case
    middles = [[s[name][len(s[name]) // 2] for s in stats] for name in ('precisions', 'recalls')]
    assert middles[0] == pytest.approx(expected['mid_precision'], abs=1e-9)
    assert middles[1] == pytest.approx(expected['mid_recall'], abs=1e-9)


def test_the_summary_is_the_mean_over_the_classes(case):
    expected, stats = case
    summary = summarise(stats)
    means = [np.mean(expected[name]) for name in ('AP', 'auc', 'mid_precision', 'mid_recall')]
    assert [summary.mAP, summary.mAUC, summary.precision, summary.recall] == pytest.approx(
        means, abs=1e-9)
    assert (summary.acc, summary.d_prime) == pytest.approx(
        (expected['acc'], expected['d_prime']), abs=1e-9)
    assert (summary.classes, summary.classes_without_positives) == (expected['classes'], 0)


@pytest.mark.parametrize('decimals', [8, 1, 0])
def test_numbers_equal_scikit_learns_with_and_without_ties(decimals):
    predictions, targets = golden.stats_case(5, 500, 4, 0.1)
    predictions = predictions.round(decimals)
    stats = calculate_stats(predictions, targets)
    for name, score in (('AP', average_precision_score), ('auc', roc_auc_score)):
        assert [s[name] for s in stats] == pytest.approx(
            score(targets, predictions, average=None), abs=1e-9)


@pytest.mark.filterwarnings('ignore:No negative samples')
@pytest.mark.parametrize('samples, decimals', [
    (500, 8), (500, 1), (500, 0), (20000, 8), (20000, 4), (1, 8), (2, 8)])
def test_the_roc_curve_is_scikit_learns_each_1000th_point_as_published(samples, decimals):
    predictions, targets = golden.stats_case(6, samples, 4, 0.3)
    predictions, targets[0] = predictions.round(decimals), 1
    classes = calculate_stats(predictions, targets)
    for k, stats in enumerate(classes):
        fpr, tpr, _ = (curve[::1000] for curve in roc_curve(targets[:, k], predictions[:, k]))
        assert stats['fpr'] == pytest.approx(fpr, abs=1e-12, nan_ok=True)
        assert stats['fnr'] == pytest.approx(1 - tpr, abs=1e-12)
    assert samples < 20000 or len(classes[0]['fpr']) > 3


def test_a_class_has_the_published_keys():
    predictions, targets = golden.stats_case(6, 50, 4, 0.3)
    assert all(stats.keys() == {'precisions', 'recalls', 'AP', 'fpr', 'fnr', 'auc', 'acc'}
               for stats in calculate_stats(predictions, targets))


def test_predictions_of_any_monotone_scale_give_the_same_numbers():
    predictions, targets = golden.stats_case(5, 200, 4, 0.2)
    first, second = (summarise(calculate_stats(scores, targets))
                     for scores in (predictions, 8 * predictions - 4))
    assert (first.mAP, first.mAUC) == pytest.approx((second.mAP, second.mAUC), abs=1e-12)


def test_float32_predictions_and_labels_are_welcome():
    predictions, targets = golden.stats_case(5, 200, 4, 0.2)
    stats = calculate_stats(predictions.astype(np.float32), targets.astype(np.float32))
    assert [s['AP'] for s in stats] == pytest.approx(
        [s['AP'] for s in calculate_stats(predictions, targets)], abs=1e-6)


def test_a_class_without_positives_has_no_ap_and_no_auc(sparse):
    stats = calculate_stats(*sparse)[2]
    assert math.isnan(stats['AP']) and math.isnan(stats['auc'])
    assert not any(len(stats[curve]) for curve in ('precisions', 'recalls', 'fpr', 'fnr'))


def test_a_class_without_positives_is_left_out_of_the_means_and_counted(sparse):
    predictions, targets = sparse
    summary, present = summarise(calculate_stats(predictions, targets)), [0, 1, 3, 4]
    others = summarise(calculate_stats(predictions[:, present], targets[:, present]))
    assert (summary.classes, summary.classes_without_positives) == (5, 1)
    for name in ('mAP', 'mAUC', 'precision', 'recall', 'd_prime'):
        assert getattr(summary, name) == pytest.approx(getattr(others, name), abs=1e-12)


def test_a_class_without_negatives_has_an_ap_of_1_and_no_auc(sparse):
    stats = calculate_stats(*sparse)
    assert stats[4]['AP'] == 1 and math.isnan(stats[4]['auc'])
    assert summarise(stats).mAUC == pytest.approx(np.mean([stats[k]['auc'] for k in (0, 1, 3)]),
                                                  abs=1e-12)


def test_labels_without_any_positive_give_nan_and_no_crash():
    summary = summarise(calculate_stats(np.random.default_rng(0).random((6, 3)), np.zeros((6, 3))))
    assert math.isnan(summary.mAP) and math.isnan(summary.mAUC) and math.isnan(summary.d_prime)
    assert summary.classes_without_positives == 3


def test_negatives_count_in_ap_and_auc_and_not_in_accuracy():
    predictions = np.array([[0.9, 0.1, 0.2], [0.3, 0.8, 0.1], [0.2, 0.3, 0.1], [0.95, 0.1, 0.2],
                            [0.1, 0.9, 0.3]])
    targets = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0]])
    with_negatives = calculate_stats(predictions, targets)
    without = calculate_stats(predictions[:3], targets[:3])
    assert with_negatives[0]['acc'] == without[0]['acc'] == pytest.approx(2 / 3)
    for k in range(3):
        assert with_negatives[k]['AP'] == pytest.approx(
            average_precision_score(targets[:, k], predictions[:, k]))
        assert with_negatives[k]['auc'] == pytest.approx(
            roc_auc_score(targets[:, k], predictions[:, k]))
    assert with_negatives[0]['AP'] == 0.5 and without[0]['AP'] == 1
    six = np.eye(6)[[0, 1, 2]]
    scores = np.random.default_rng(0).random((4, 6))
    with_negative = np.vstack([six, np.zeros(6)])
    assert further_metrics(scores, with_negative) == further_metrics(scores[:3], six)


def test_only_negatives_give_nan_for_the_accuracy_too():
    summary = summarise(calculate_stats(np.random.default_rng(0).random((6, 3)), np.zeros((6, 3))))
    assert math.isnan(summary.acc)


@pytest.mark.parametrize('rows, single', [
    ([[1, 0], [0, 1]], True), ([[1, 0], [0, 0]], True), ([[1, 1], [0, 0]], False),
    ([[0, 0], [0, 0]], False), ([[1], [0]], False)])
def test_negatives_beside_single_labels_leave_them_single(rows, single):
    assert is_single_label(np.array(rows, dtype=np.float32)) == single


def test_perfect_predictions_score_1():
    targets = np.eye(4)[[0, 1, 2, 3, 0, 1]]
    summary = summarise(calculate_stats(targets * 0.5 + 0.2, targets))
    assert (summary.mAP, summary.mAUC, summary.acc) == (1, 1, 1)


@pytest.mark.parametrize('output, target', [((4, 3), (4, 2)), ((4, 3), (3, 3)), ((4,), (4,))])
def test_arrays_that_do_not_match_are_refused(output, target):
    with pytest.raises(ValueError, match='samples, classes'):
        calculate_stats(np.zeros(output), np.ones(target))


@pytest.mark.parametrize('area, expected', [(0.5, 0), (0.980985, 2.933840),
                                            (0.9, 2 ** 0.5 * scipy.stats.norm.ppf(0.9))])
def test_d_prime_is_the_normal_quantile_times_the_root_of_2(area, expected):
    assert d_prime(area) == pytest.approx(expected, abs=1e-4)


def test_macro_f1_leaves_classes_out_that_do_not_occur():
    targets, predictions = np.eye(7)[[0, 0, 1, 2]], np.eye(7)[[0, 3, 1, 1]]
    expected = f1_score([0, 0, 1, 2], [0, 3, 1, 1], labels=[0, 1, 2], average='macro')
    assert macro_f1(predictions, targets) == pytest.approx(expected)


def test_top_5_counts_labels_among_the_five_best_scores():
    predictions = np.tile(np.arange(7, 0, -1) / 10, (4, 1))
    assert top5_accuracy(predictions, np.eye(7)[[0, 4, 5, 6]]) == 0.5
    assert math.isnan(top5_accuracy(predictions[:, :5], np.eye(5)[[0, 1, 2, 3]]))


def test_only_the_further_metrics_that_have_a_meaning_are_given():
    scores, single = np.random.default_rng(0).random((7, 7)), np.eye(7)
    assert list(further_metrics(scores, single)) == ['macro F1', 'top-5 accuracy']
    assert list(further_metrics(scores[:, :3], single[:, :3])) == ['macro F1']
    assert further_metrics(scores, np.ones((7, 7))) == {}


def test_predictions_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match='NaN'):
        calculate_stats(np.full((3, 2), np.nan), np.eye(3)[:, :2])
