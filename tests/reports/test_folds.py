"""The summary over folds: mean, best and last epoch, confusion matrix."""
import json

import numpy as np
import pytest

from reports.folds import summarise_folds
from utilities.errors import DataError


@pytest.fixture
def make_fold(tmp_path):
    """Write what a fold leaves: the accuracy of each epoch, and predicted classes of three clips."""
    def make(fold, accuracies, predicted=(0, 1, 1), finished=True, metrics='acc', **settings):
        folder = tmp_path / f'fold{fold}'
        (folder / 'predictions').mkdir(parents=True)
        rows = [[accuracy] + [0.5] * 9 for accuracy in accuracies]
        np.savetxt(folder / 'result.csv', rows, delimiter=',')
        np.save(folder / 'predictions' / 'target.npy', np.eye(50)[[0, 1, 2]])
        for epoch in range(1, len(accuracies) + 1):
            np.save(folder / 'predictions' / f'predictions_{epoch}.npy',
                    np.eye(50)[list(predicted)])
        (folder / 'args.json').write_text(json.dumps(
            {'metrics': metrics, 'n_epochs': len(accuracies), 'dataset': 'esc50',
             'model_size': 'tiny224', **settings}))
        (folder / 'models').mkdir()
        names = ['dog', 'rooster', 'pig', *map(str, range(3, 50))]
        (folder / 'models' / 'best_audio_model.json').write_text(
            json.dumps({'labels': {'names': names}}))
        if finished:
            (folder / 'finished').touch()
    return make


def test_the_best_epoch_is_chosen_on_the_mean_of_the_folds(make_fold, tmp_path):
    make_fold(1, [0.1, 0.9, 0.5])
    make_fold(2, [0.2, 0.3, 0.6])
    lines = summarise_folds(tmp_path)
    mean = np.loadtxt(tmp_path / 'result.csv', delimiter=',')[:, 0]
    assert mean == pytest.approx([0.15, 0.6, 0.55])
    assert np.loadtxt(tmp_path / 'best_result.csv')[0] == pytest.approx(0.6)
    assert np.loadtxt(tmp_path / 'acc_fold.csv') == pytest.approx([0.9, 0.3, 0.6])
    assert 'epoch 2, the best of the mean: mean acc 0.6000, standard deviation 0.3000' in lines[0]
    assert 'epoch 3, the last: mean acc 0.5500, standard deviation 0.0500' in lines[1]


def test_the_accuracy_of_each_class_and_the_confusion_matrix_are_written(make_fold, tmp_path):
    make_fold(1, [0.5])
    make_fold(2, [0.5], predicted=(0, 0, 2))
    summarise_folds(tmp_path)
    assert (tmp_path / 'class_accuracy.csv').read_text().split() == [
        'class,clips,accuracy', 'dog,2,1.0000', 'rooster,2,0.5000', 'pig,2,0.5000']
    assert (tmp_path / 'confusion_matrix.png').read_bytes().startswith(b'\x89PNG')
    assert (tmp_path / 'curves.png').read_bytes().startswith(b'\x89PNG')


def test_further_metrics_are_averaged_over_the_folds(make_fold, tmp_path):
    for fold in (1, 2):
        make_fold(fold, [0.5, 0.6])
        (tmp_path / f'fold{fold}' / 'metrics.csv').write_text(
            f'epoch,absent,calibration error\n1,{fold},0.5\n2,{2 * fold},0.25\n')
    summarise_folds(tmp_path)
    assert (tmp_path / 'metrics.csv').read_text() == (
        'epoch,absent,calibration error\n1,1.5,0.5\n2,3,0.25\n')
    assert '>calibration error</th>' in (tmp_path / 'report.html').read_text()
    (tmp_path / 'fold2' / 'metrics.csv').write_text('epoch,absent\n1,1\n2,2\n')
    summarise_folds(tmp_path)  # of folds with different metrics
    assert not (tmp_path / 'metrics.csv').exists()
    assert '>calibration error</th>' not in (tmp_path / 'report.html').read_text()


def test_a_fold_that_stopped_early_keeps_the_scores_of_its_last_epoch(make_fold, tmp_path):
    make_fold(1, [0.1, 0.9, 0.5], patience=1, n_epochs=9)
    make_fold(2, [0.2, 0.4], predicted=(0, 0, 2), patience=1, n_epochs=9)
    for fold, epochs in ((1, 3), (2, 2)):
        (tmp_path / f'fold{fold}' / 'metrics.csv').write_text(
            'epoch,macro F1\n' + ''.join(f'{epoch},0.{fold}{epoch}\n' for epoch in range(1, epochs + 1)))
    lines = summarise_folds(tmp_path)
    mean = np.loadtxt(tmp_path / 'result.csv', delimiter=',')[:, 0]
    assert mean == pytest.approx([0.15, 0.65, 0.45])
    assert 'epoch 3, the last: mean acc 0.4500' in lines[1]
    *_, last = (tmp_path / 'metrics.csv').read_text().split()
    assert float(last.removeprefix('3,')) == pytest.approx((0.13 + 0.22) / 2)
    assert 'Best epoch of the mean: 2' in (tmp_path / 'report.html').read_text()


def test_negatives_are_left_out_of_the_confusions(make_fold, tmp_path):
    make_fold(1, [0.5], predicted=(0, 1, 0))
    targets = np.eye(50)[[0, 1, 2]]
    targets[2] = 0
    np.save(tmp_path / 'fold1' / 'predictions' / 'target.npy', targets)
    summarise_folds(tmp_path)
    assert (tmp_path / 'class_accuracy.csv').read_text().split() == [
        'class,clips,accuracy', 'dog,1,1.0000', 'rooster,1,1.0000']


def test_only_folds_that_ran_to_their_end_count(make_fold, tmp_path, caplog):
    make_fold(1, [0.5])
    make_fold(3, [0.9], finished=False)
    summarise_folds(tmp_path)
    assert np.loadtxt(tmp_path / 'acc_fold.csv') == pytest.approx([0.5, 0.5])
    assert 'fold3 is not finished' in caplog.text


def test_no_finished_fold_is_said(tmp_path):
    with pytest.raises(DataError, match='no finished fold'):
        summarise_folds(tmp_path)


def test_a_folder_that_does_not_exist_is_said(tmp_path):
    with pytest.raises(DataError, match='there is no folder .*nowhere'):
        summarise_folds(tmp_path / 'nowhere')


def test_folds_of_different_experiments_are_not_averaged(make_fold, tmp_path):
    make_fold(1, [0.5])
    make_fold(2, [0.5, 0.6])
    with pytest.raises(DataError, match='--n_epochs'):
        summarise_folds(tmp_path)


def test_a_damaged_table_of_a_fold_is_named(make_fold, tmp_path):
    for fold in (1, 2):
        make_fold(fold, [0.5, 0.6])
    table = tmp_path / 'fold2' / 'result.csv'
    table.write_text(table.read_text().split('\n')[0])
    with pytest.raises(DataError, match='fold2/result.csv has 1 epochs'):
        summarise_folds(tmp_path)
    table.write_text('')
    with pytest.raises(DataError, match='cannot read .*fold2/result.csv'):
        summarise_folds(tmp_path)


@pytest.mark.parametrize('name, content', [
    ('metrics.csv', b'epoch,F1\n1,abc\n'), ('metrics.csv', b'epoch,F1\n1\n'),
    ('metrics.csv', b'epoch,F1\n1,0.5\n2,0.5\n'), ('metrics.csv', b'\xff'),
    ('predictions/target.npy', b'no array'), ('predictions/predictions_1.npy', b'')])
def test_a_damaged_file_of_a_fold_is_one_sentence_that_names_it(make_fold, tmp_path, name, content):
    for fold in (1, 2):
        make_fold(fold, [0.5])
        (tmp_path / f'fold{fold}' / 'metrics.csv').write_text('epoch,F1\n1,0.5\n')
    (tmp_path / 'fold2' / name).write_bytes(content)
    with pytest.raises(DataError, match=name.rpartition('/')[2]) as refusal:
        summarise_folds(tmp_path)
    assert '\n' not in str(refusal.value)


def test_ten_folds_are_in_the_order_of_their_numbers(make_fold, tmp_path):
    for fold in range(1, 11):
        make_fold(fold, [fold / 10])
    summarise_folds(tmp_path)
    assert np.loadtxt(tmp_path / 'acc_fold.csv')[:10] == pytest.approx(np.arange(1, 11) / 10)


def test_samples_with_several_labels_have_no_confusion_matrix(make_fold, tmp_path):
    make_fold(1, [0.5], metrics='mAP')
    summarise_folds(tmp_path)
    assert (tmp_path / 'confusion_matrix.png').exists()
    np.save(tmp_path / 'fold1' / 'predictions' / 'target.npy', np.ones((3, 50)))
    summarise_folds(tmp_path)
    assert (tmp_path / 'result.csv').exists() and not (tmp_path / 'confusion_matrix.png').exists()
    assert not (tmp_path / 'class_accuracy.csv').exists()
