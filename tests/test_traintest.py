"""Validation, and the models and results that an experiment keeps."""
import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from models import read_state_dict
from small_model import CPU, FRAMES, LinearModel, Samples, loaders, settings
from training.errors import TrainingError
from training.folder import ExperimentFolder
from training.interrupt import Interrupt
from training.trainer import Trainer
from traintest import Evaluation, Run, validate
from utilities.stats import calculate_stats, summarise

CLASS_NAMES = ['dog', 'cat', 'rain', 'siren', 'wind', 'train', 'crow', 'clock']
DESCRIPTION = {'dataset': 'a test', 'labels': {'mids': CLASS_NAMES, 'names': CLASS_NAMES},
               'mean': -4.2, 'std': 4.5}


def start(model, exp_dir, chosen, data=None):
    """Return a Run of a model on (training, validation) loaders."""
    chosen.exp_dir = exp_dir
    return Run(model, CPU, *(data or loaders()), chosen, DESCRIPTION, Interrupt())


@pytest.mark.parametrize('loss, plain', [('BCE', F.binary_cross_entropy_with_logits),
                                         ('CE', F.cross_entropy)])
def test_the_validation_loss_is_that_of_all_logits_at_once(loss, plain):
    model, data = LinearModel(), Samples(10)
    evaluation = validate(model, DataLoader(data, batch_size=4), CPU, loss)
    with torch.no_grad():
        expected = plain(model(data.fbanks), data.labels)
    assert evaluation.loss == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize('loss', ['BCE', 'CE'])
def test_predictions_are_sigmoids_in_the_order_of_the_data(loss):
    model, data = LinearModel(), Samples(10)
    evaluation = validate(model, DataLoader(data, batch_size=4), CPU, loss)
    expected = model(data.fbanks).sigmoid().detach()
    np.testing.assert_allclose(evaluation.predictions, expected, atol=1e-6)
    assert np.array_equal(evaluation.targets, data.labels)


def test_validation_runs_in_evaluation_mode_and_training_in_training_mode():
    model, seen = LinearModel(), []
    model.register_forward_hook(lambda module, *_: seen.append(module.training))
    trainer = Trainer(model, CPU, settings(), 1)
    trainer.train_epoch(loaders()[0], 'training')
    validate(model, loaders()[1], CPU, 'BCE')
    trainer.train_epoch(loaders()[0], 'training')
    assert seen == [True] * 3 + [False] * 2 + [True] * 3


def test_validation_that_gives_no_numbers_stops_the_run(tmp_path):
    train_loader, val_loader = loaders()
    val_loader.dataset.fbanks[5] = float('nan')
    with pytest.raises(TrainingError, match='finite'):
        start(LinearModel(), tmp_path, settings(), (train_loader, val_loader)).train()


@pytest.fixture
def trained(tmp_path):
    """Train the linear model for three epochs.

    Returns the Run, the model, the Results and the folder of models.
    """
    def run(**changes):
        chosen, model = settings(n_epochs=3, **changes), LinearModel()
        this_run = start(model, tmp_path, chosen)
        this_run.resume()
        this_run.train()
        return this_run, model, this_run.results, tmp_path / 'models'
    return run


def names(folder):
    """Return the names of the files in a folder."""
    return {path.name for path in folder.iterdir()}


def pairs(*stems):
    """Return the names of models and of the descriptions beside them."""
    return {f'{stem}.{suffix}' for stem in stems for suffix in ('pth', 'json')}


@pytest.mark.parametrize('changes, stems', [
    ({}, ['best_audio_model']),
    ({'save_model': True}, ['best_audio_model', 'audio_model.1', 'audio_model.2', 'audio_model.3']),
    ({'wa': True, 'wa_start': 2, 'wa_end': 3},
     ['best_audio_model', 'audio_model.2', 'audio_model.3'])],
    ids=['neither', 'save_model', 'wa'])
def test_only_the_models_that_somebody_needs_are_kept(trained, changes, stems):
    *_, folder = trained(**changes)
    assert names(folder) == pairs(*stems)


def test_the_best_model_is_that_of_the_best_epoch(trained):
    *_, results, folder = trained(save_model=True)
    best = read_state_dict(folder / 'best_audio_model.pth')
    kept = read_state_dict(folder / f'audio_model.{results.best_epoch}.pth')
    assert results.best_epoch == 1 + int(np.argmax([row.metric for row in results.rows]))
    assert all(torch.equal(best[name], kept[name]) for name in kept)


def test_a_worse_epoch_does_not_replace_the_best_model(tmp_path, monkeypatch):
    targets = Samples(12).labels.numpy()
    guess, right, wrong = np.full_like(targets, 0.5), targets, 1 - targets
    evaluations = iter([Evaluation(predictions, targets, 0.5)
                        for predictions in (guess, right, wrong)])
    monkeypatch.setattr('traintest.validate', lambda *_: next(evaluations))
    start(LinearModel(), tmp_path, settings(n_epochs=3, save_model=True)).train()
    folder = tmp_path / 'models'
    best = read_state_dict(folder / 'best_audio_model.pth')
    second = read_state_dict(folder / 'audio_model.2.pth')
    assert all(torch.equal(best[name], second[name]) for name in second)


def test_models_are_saved_in_the_published_layout_and_described(trained):
    *_, folder = trained()
    state = torch.load(folder / 'best_audio_model.pth', weights_only=True)
    assert set(state) == {'module.layer.weight', 'module.layer.bias'}
    description = json.loads((folder / 'best_audio_model.json').read_text())
    assert description == {'input_tdim': FRAMES, 'model_size': 'tiny224', **DESCRIPTION}


def test_the_averaged_model_is_the_plain_mean(trained, tmp_path):
    this_run, *_, folder = trained(save_model=True, wa=True, wa_start=2, wa_end=3)
    this_run.average_weights()
    second, third, averaged = (read_state_dict(folder / f'audio_model{name}.pth')
                               for name in ('.2', '.3', '_wa'))
    for name in averaged:
        torch.testing.assert_close(averaged[name], (second[name] + third[name]) / 2)
    assert not torch.equal(second['layer.weight'], third['layer.weight'])


def test_the_averaged_model_is_evaluated(trained, tmp_path):
    this_run, *_, folder = trained(wa=True, wa_start=1, wa_end=3)
    this_run.average_weights()
    averaged = LinearModel()
    averaged.load_state_dict(read_state_dict(folder / 'audio_model_wa.pth'))
    evaluation = validate(averaged, loaders()[1], CPU, 'BCE')
    expected = summarise(calculate_stats(evaluation.predictions, evaluation.targets))
    assert np.loadtxt(tmp_path / 'wa_result.csv') == pytest.approx(
        [expected.mAP, expected.mAUC, expected.precision, expected.recall, expected.d_prime])


@pytest.mark.parametrize('save_model, stems', [
    (False, ['best_audio_model', 'audio_model_wa']),
    (True, ['best_audio_model', 'audio_model_wa', 'audio_model.1', 'audio_model.2',
            'audio_model.3'])])
def test_a_finished_run_removes_the_epochs_models_unless_save_model_keeps_them(
        trained, tmp_path, save_model, stems):
    this_run, *_, folder = trained(save_model=save_model, wa=True, wa_start=1, wa_end=3)
    this_run.average_weights()
    (tmp_path / 'args.json').write_text(json.dumps({'save_model': save_model}))
    ExperimentFolder(this_run.settings).remove_intermediate()
    assert names(folder) == pairs(*stems)


def test_the_best_model_is_evaluated_on_both_sets(trained, tmp_path):
    this_run, model, results, _ = trained()
    eval_loader = DataLoader(Samples(30, seed=9), batch_size=8)
    with torch.no_grad():
        model.layer.weight.zero_()
    this_run.evaluate_best(eval_loader)
    numbers = np.loadtxt(tmp_path / 'eval_result.csv')
    best = results.rows[results.best_epoch - 1]
    assert numbers.shape == (4,)
    assert numbers[:2] == pytest.approx(best[:2])
    assert not np.allclose(numbers[2:], numbers[:2])


def _keep_training_inputs(seen):
    def hook(module, inputs):
        if module.training:
            seen.extend(inputs[0][:, 0, 0].tolist())
    return hook


def test_every_epoch_is_trained_in_another_order(tmp_path):
    seen = []
    train_loader, val_loader = loaders()
    model = LinearModel()
    model.register_forward_pre_hook(_keep_training_inputs(seen))
    start(model, tmp_path, settings(n_epochs=2), (train_loader, val_loader)).train()
    assert sorted(seen[:12]) == sorted(seen[12:]) and seen[:12] != seen[12:]


def test_what_a_killed_run_was_writing_is_removed_when_it_goes_on(trained, tmp_path):
    left = [tmp_path / folder / f'.{name}.part-012345' for folder, name in (
        ('.', 'checkpoint.pth'), ('models', 'best_audio_model.pth'), ('predictions', 'target.npy'))]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    trained()
    assert not any(path.exists() for path in left)
