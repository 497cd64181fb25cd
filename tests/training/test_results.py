"""What an experiment's epochs leave in exp_dir."""
import csv

import numpy as np
import pytest

import golden
from training.result_files import (
    read_rows,
    result_columns,
    write_array,
    write_confusion,
    write_metrics,
    write_rows,
)
from training.results import Results
from traintest import Evaluation
from utilities.errors import DataError
from utilities.plots import plot_confusion, plot_curves, write_figure
from utilities.stats import calculate_stats, summarise
from utilities.texts import write_json

EPOCHS = 3


@pytest.fixture(scope='module')
def evaluations():
    """Make evaluations of three epochs, the second the best."""
    predictions, targets = golden.stats_case(1, 60, 4, 0.3)
    targets[~targets.any(axis=1), 0] = 1
    noise = np.random.default_rng(0).random((EPOCHS, *predictions.shape))
    found = []
    for share, other, loss in zip((0.9, 0.0, 0.7), noise, (0.6, 0.5, 0.55)):
        mixed = (1 - share) * predictions + share * other
        found.append(Evaluation(mixed.astype(np.float32), targets.astype(np.float32), loss))
    return found


@pytest.fixture(scope='module', params=['mAP', 'acc'])
def finished(request, tmp_path_factory, evaluations):
    """Return the Results of the three epochs under a main metric."""
    results = Results(tmp_path_factory.mktemp('runs') / 'exp', request.param, 'my run')
    for epoch, evaluation in enumerate(evaluations, start=1):
        results.add(1 / epoch, evaluation, 1e-5 / epoch)
        results.write()
    return results


def test_result_csv_has_a_row_an_epoch_in_the_published_order(finished, evaluations):
    table, metric = np.loadtxt(finished.exp_dir / 'result.csv', delimiter=','), finished.metric
    ensemble, rows = 0, []
    for epoch, evaluation in enumerate(evaluations, start=1):
        single = summarise(calculate_stats(evaluation.predictions, evaluation.targets))
        ensemble = ensemble + evaluation.predictions.astype(np.float64)
        cum = summarise(calculate_stats(ensemble / epoch, evaluation.targets))
        rows.append([getattr(single, metric), single.mAUC, single.precision, single.recall,
                     single.d_prime, 1 / epoch, evaluation.loss, getattr(cum, metric), cum.mAUC,
                     1e-5 / epoch])
    np.testing.assert_allclose(table, rows, rtol=1e-9)
    assert table.shape == (EPOCHS, len(result_columns(metric)))


def test_metrics_csv_names_its_columns_and_has_a_row_an_epoch(tmp_path):
    targets = np.eye(7)[[0, 1, 2, 3, 4, 5]]
    results = Results(tmp_path, 'acc', 'my run')
    for scores in (targets, 1 - targets):
        results.add(0.5, Evaluation(scores, targets, 0.5), 1e-5)
        results.write()
    assert (tmp_path / 'metrics.csv').read_text().split('\n') == [
        'epoch,macro F1,top-5 accuracy,classes without positives', '1,1,1,1', '2,0,0,1', '']


def test_metrics_of_single_labels_are_not_in_the_metrics_of_several(tmp_path):
    targets = np.array([[1, 1, 0], [0, 1, 0]])
    results = Results(tmp_path, 'mAP', 'my run')
    results.add(0.5, Evaluation(targets * 0.5, targets, 0.5), 1e-5)
    results.write()
    assert (tmp_path / 'metrics.csv').read_text() == 'epoch,classes without positives\n1,1\n'


def test_results_that_go_on_leave_the_files_of_results_that_did_not_stop(tmp_path, evaluations):
    for name in ('straight', 'stopped'):
        results = Results(tmp_path / name, 'mAP', 'my run')
        for evaluation in evaluations:
            results.add(0.5, evaluation, 1e-5)
            results.write()
            if name == 'stopped':
                state = results.state_dict()
                results = Results(tmp_path / name, 'mAP', 'my run')
                results.load_state_dict(state)
    for name in ('result.csv', 'metrics.csv', 'predictions/cum_predictions.npy'):
        straight, stopped = tmp_path / 'straight' / name, tmp_path / 'stopped' / name
        assert straight.read_bytes() == stopped.read_bytes()


@pytest.mark.parametrize('metric', ['mAP', 'acc'])
def test_the_columns_have_the_published_names(metric):
    assert result_columns(metric) == (
        metric, 'mAUC', 'precision', 'recall', 'd_prime', 'train_loss', 'valid_loss',
        f'cum_{metric}', 'cum_mAUC', 'lr')


def test_the_files_are_up_to_date_after_every_epoch(tmp_path, evaluations):
    results = Results(tmp_path, 'mAP', 'my run')
    for epoch, evaluation in enumerate(evaluations, start=1):
        results.add(0.5, evaluation, 1e-5)
        results.write()
        assert read_rows(tmp_path / 'result.csv').shape == (epoch, 10)


def test_predictions_are_kept_as_npy(finished, evaluations):
    folder = finished.exp_dir / 'predictions'
    kept = {path.name: np.load(path) for path in folder.iterdir()}
    assert set(kept) == {'target.npy', 'cum_predictions.npy', 'predictions_1.npy',
                         'predictions_2.npy', 'predictions_3.npy'}
    assert np.array_equal(kept['target.npy'], evaluations[0].targets)
    for epoch, evaluation in enumerate(evaluations, start=1):
        assert np.array_equal(kept[f'predictions_{epoch}.npy'], evaluation.predictions)
    mean = np.mean([evaluation.predictions for evaluation in evaluations], axis=0)
    np.testing.assert_allclose(kept['cum_predictions.npy'], mean, rtol=1e-6)


def test_the_best_epoch_has_the_best_main_metric(finished):
    assert finished.best_epoch == 2


def test_the_earliest_of_equally_good_epochs_is_the_best(tmp_path, evaluations):
    results = Results(tmp_path, 'mAP', 'my run')
    for evaluation in (evaluations[0], evaluations[1], evaluations[1]):
        results.add(0.5, evaluation, 1e-5)
    assert results.best_epoch == 2


def test_an_epoch_without_a_metric_is_not_the_best(tmp_path, evaluations):
    results = Results(tmp_path, 'mAP', 'my run')
    predictions, targets = evaluations[0].predictions, evaluations[0].targets
    nothing = Evaluation(predictions, np.zeros_like(targets), 0.5)
    single = Evaluation(predictions, np.eye(targets.shape[1])[targets.argmax(axis=1)], 0.5)
    for evaluation in (nothing, single):
        results.add(0.5, evaluation, 1e-5)
    results.write()
    assert results.best_epoch == 2
    assert np.isnan(np.loadtxt(tmp_path / 'result.csv', delimiter=',')[0, 0])
    lines = (tmp_path / 'metrics.csv').read_text().split('\n')
    assert lines[:2] == ['epoch,classes without positives,macro F1', '1,4,nan']


def test_add_returns_the_epochs_metrics_and_the_ensembles(tmp_path, evaluations):
    results = Results(tmp_path, 'mAP', 'my run')
    first = results.add(0.5, evaluations[0], 1e-5)
    second = results.add(0.5, evaluations[1], 1e-5)
    assert (first.metric, first.mAUC) == (first.cum_metric, first.cum_mAUC)
    assert second.metric > second.cum_metric > first.metric
    assert results.rows == [first, second]


def test_curves_are_drawn(finished):
    assert (finished.exp_dir / 'curves.png').read_bytes().startswith(b'\x89PNG')


def test_a_flat_list_becomes_one_number_a_line(tmp_path):
    write_rows(tmp_path / 'wa_result.csv', [0.4593, 0.97, 1e-7])
    assert (tmp_path / 'wa_result.csv').read_text() == '0.4593\n0.97\n1e-07\n'


@pytest.mark.parametrize('write, value', [
    (write_rows, [['text']]), (write_json, {1j}), (write_array, None), (write_figure, None),
    (write_metrics, [{'epoch': 'text'}])])
def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, write, value, monkeypatch):
    path = tmp_path / 'file'
    path.write_text('old')
    monkeypatch.setattr(np, 'save', lambda *_: 1 / 0)
    with pytest.raises((TypeError, ValueError, AttributeError, ZeroDivisionError)):
        write(path, value)
    assert path.read_text() == 'old' and list(tmp_path.iterdir()) == [path]


def test_a_figure_is_written_as_png(tmp_path):
    columns = {name: np.ones(2) for name in ('train_loss', 'valid_loss', 'acc', 'cum_acc', 'lr')}
    write_figure(tmp_path / 'figure.png', plot_curves(columns, 'acc', 'my run'))
    assert (tmp_path / 'figure.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize('classes, drawn', [(100, True), (101, False)])
def test_a_confusion_matrix_that_nobody_could_read_is_not_drawn(tmp_path, classes, drawn):
    names = [f'a "{k}", $b$' for k in range(classes)]
    write_confusion(tmp_path, names, np.eye(classes), np.eye(classes))
    assert (tmp_path / 'confusion_matrix.png').exists() == drawn
    with open(tmp_path / 'class_accuracy.csv', newline='') as file:
        assert [row[0] for row in csv.reader(file)][1:] == names


def test_negatives_are_in_no_confusion_and_no_accuracy_of_a_class(tmp_path):
    targets = np.eye(3)[[0, 1, 1]]
    targets = np.vstack([targets, np.zeros((4, 3))])
    write_confusion(tmp_path, ['dog', 'cat', 'hen'], np.eye(3)[[0, 1, 0, 0, 1, 2, 2]], targets)
    assert (tmp_path / 'class_accuracy.csv').read_text().split() == [
        'class,clips,accuracy', 'dog,1,1.0000', 'cat,2,0.5000']


@pytest.mark.filterwarnings('error:Glyph')
def test_a_class_whose_name_no_font_has_is_drawn_by_its_number(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr('utilities.plots.plot_confusion',
                        lambda *args: drawn.append(args[1]) or plot_confusion(*args))
    write_confusion(tmp_path, ['dog', 'cat', '\U0003fffd'], np.eye(3)[[0, 2]], np.eye(3)[[0, 2]])
    assert drawn == [['dog', '2']]
    assert '\U0003fffd' in (tmp_path / 'class_accuracy.csv').read_text(encoding='utf-8')


@pytest.mark.parametrize('text', ['', '\n', '0.5,0.5\n', '0.5,' * 9 + 'half\n',
                                  '0.1,' * 9 + '0.1\n0.1,0.2\n', '\xff'])
def test_a_damaged_result_csv_is_named(tmp_path, text):
    (tmp_path / 'result.csv').write_text(text, encoding='latin-1')
    with pytest.raises(DataError, match='cannot read .*result.csv: .') as error:
        read_rows(tmp_path / 'result.csv')
    assert '\n' not in str(error.value)
