"""Training: losses, gradients, Patchout."""
import shutil
import time

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

import golden
from models import ASTModel
from small_model import CLASSES, CPU, LinearModel, Samples, settings
from training.errors import TrainingError
from training.trainer import Trainer, draw_patchout
from traintest import validate
from utilities.parallel import one_thread


def update(count=7, **changes):
    """Return how one step on a batch of `count` changes each parameter, and the step's loss."""
    model, data = LinearModel(), Samples(count)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    loss = Trainer(model, CPU, settings(**changes), 1).step(data.fbanks, data.labels)
    return [after.detach() - old for after, old in zip(model.parameters(), before)], float(loss)


@pytest.mark.parametrize('loss', ['BCE', 'CE'])
def test_eight_clips_are_learned_by_heart(loss):
    torch.manual_seed(0)
    model = ASTModel(8, 16, 16, 32, 32, imagenet_pretrain=False, model_size='tiny224',
                     verbose=False)
    fbanks, labels = golden.spectrogram('eight clips', 8, 32, 32), torch.eye(8)
    trainer = Trainer(model, CPU, settings(optim='adam', lr=2e-4, loss=loss, lrscheduler_start=100), 1)
    with one_thread():  # quicker for a model of this size, by far on a busy machine
        losses = []
        for epoch in range(30):
            losses.append(trainer.train_epoch([(fbanks, labels)], f'epoch {epoch}'))
            trainer.end_epoch(metric=0.0)
        evaluation = validate(model, [(fbanks, labels)], CPU, loss)
    assert losses[-1] < losses[0] / 10
    assert evaluation.predictions.argmax(axis=1).tolist() == list(range(8))


def test_cross_entropy_takes_the_label_distribution_of_mixes():
    model, fbanks = LinearModel(), Samples(2).fbanks
    labels = torch.tensor([[0.0, 0.6, 0.4], [0.3, 0.0, 0.7]])
    expected = -(labels * model(fbanks).detach().log_softmax(dim=1)).sum(dim=1).mean()
    loss = Trainer(model, CPU, settings(loss='CE'), 1).step(fbanks, labels)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)


def test_the_training_loss_is_weighted_by_samples():
    data = Samples(10)
    trainer = Trainer(LinearModel(), CPU, settings(lr=1e-12), 1)
    loss = trainer.train_epoch(DataLoader(data, batch_size=4), 'training')
    expected = F.binary_cross_entropy_with_logits(LinearModel()(data.fbanks).detach(), data.labels)
    assert loss == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize('slow, said', [('data', True), ('step', False)])
def test_a_run_that_waits_for_its_data_says_so(monkeypatch, caplog, slow, said):
    class Slow(Samples):
        def __getitem__(self, key):
            time.sleep(0.05 if slow == 'data' else 0)
            return super().__getitem__(key)
    monkeypatch.setattr('training.trainer.WAITING_SECONDS', 0.1)
    trainer = Trainer(LinearModel(), CPU, settings(), 1)
    trainer.train_epoch(DataLoader(Slow(12), batch_size=2), 'epoch 1 of 1',
                      after_step=lambda: time.sleep(0.05 if slow == 'step' else 0))
    assert ('waited for data' in caplog.text and '0 data workers' in caplog.text) == said


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('n_print_steps', [1, 100])
def test_a_loss_that_is_no_number_stops_the_run_and_names_the_step(value, n_print_steps):
    data = Samples(20)
    data.fbanks[9] = value
    trainer = Trainer(LinearModel(), CPU, settings(n_print_steps=n_print_steps), 1)
    with pytest.raises(TrainingError, match=r'step 3\b.*--lr'):
        trainer.train_epoch(DataLoader(data, batch_size=4), 'training')


@pytest.mark.parametrize('pieces', [2, 3, 7, 100])
@pytest.mark.parametrize('loss', ['BCE', 'CE'])
def test_a_batch_in_pieces_gives_the_same_update_and_loss(loss, pieces):
    whole, whole_loss = update(loss=loss)
    parts, parts_loss = update(loss=loss, grad_accum=pieces)
    for one, other in zip(whole, parts):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)
    assert parts_loss == pytest.approx(whole_loss, rel=1e-5)


def test_a_batch_in_pieces_reaches_the_model_in_pieces():
    model, sizes = LinearModel(), []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    data = Samples(12)
    Trainer(model, CPU, settings(grad_accum=3), 1).step(data.fbanks, data.labels)
    assert sizes == [4, 4, 4]


def test_the_gradient_is_clipped_to_its_largest_norm():
    (free, _), (clipped, _) = update(lr=1.0), update(lr=1.0, clip_grad=0.01)
    norms = [float(torch.cat([change.flatten() for change in changes]).norm())
             for changes in (free, clipped)]
    assert norms[0] > 0.1
    assert norms[1] == pytest.approx(0.01, rel=1e-3)


def test_a_small_gradient_is_not_changed_by_clipping():
    (free, _), (clipped, _) = update(), update(clip_grad=1000.0)
    assert all(torch.equal(one, other) for one, other in zip(free, clipped))


def test_every_step_starts_from_a_fresh_gradient():
    model, data = LinearModel(), Samples(6)
    trainer = Trainer(model, CPU, settings(lr=1e-12), 1)
    gradients = []
    model.layer.weight.register_post_accumulate_grad_hook(
        lambda weight: gradients.append(weight.grad.clone()))
    for _ in range(3):
        trainer.step(data.fbanks, data.labels)
    torch.testing.assert_close(gradients[2], gradients[0])
    assert len(gradients) == 3


@pytest.mark.parametrize('dtype, enabled', [(torch.float16, True), (torch.bfloat16, False),
                                            (None, False)])
def test_gradients_are_scaled_exactly_for_float16(dtype, enabled):
    assert Trainer(LinearModel(dtype), CPU, settings(), 1).scaler.is_enabled() is enabled


def test_a_scaled_step_is_the_unscaled_one():
    data, models = Samples(6), [LinearModel(), LinearModel(torch.float16)]
    for model in models:
        Trainer(model, CPU, settings(clip_grad=0.05), 1).step(data.fbanks, data.labels)
    assert torch.allclose(models[0].layer.weight, models[1].layer.weight, rtol=1e-5, atol=1e-7)


@pytest.fixture
def make_ast():
    """Make a trainer of an ASTModel with 3 x 7 patches and fixed weights, and a batch for it."""
    def make(blocks=12, **changes):
        model = ASTModel(CLASSES, 8, 8, 32, 64, imagenet_pretrain=False, model_size='tiny224',
                         verbose=False)
        del model.v.blocks[blocks:]  # compiling twelve blocks takes long
        fbanks = golden.spectrogram('patchout', 4, 64, 32)
        labels = F.one_hot(torch.arange(4) % CLASSES, CLASSES).float()
        return Trainer(golden.fill(model), CPU, settings(lr=0.01, **changes), 1), fbanks, labels
    return make


def tokens_seen(model):
    """Return a list that grows: how many tokens each forward pass takes through the blocks."""
    seen = []
    model.v.blocks[0].register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].shape[1]))
    return seen


def test_patchout_leaves_rows_and_columns_out_in_training_and_none_in_evaluation(make_ast):
    trainer, fbanks, labels = make_ast(freq_patchout=1, time_patchout=3)
    seen = tokens_seen(trainer.model)
    trainer.step(fbanks, labels)
    validate(trainer.model, [(fbanks, labels)], CPU, 'BCE')
    assert seen == [2 + 2 * 4, 2 + 3 * 7]


def test_patchout_keeps_the_embeddings_of_what_it_keeps(make_ast):
    trainer, fbanks, _ = make_ast()
    model, seen = trainer.model, []
    model.v.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model.train()
    model(fbanks)
    model.keep_patches([0, 2], [1, 4, 5])
    model(fbanks)
    kept = [0, 1, *(2 + row * 7 + column for row in (0, 2) for column in (1, 4, 5))]
    assert torch.equal(seen[1], seen[0][:, kept])


def test_patchout_is_drawn_from_seed_and_step_alone():
    draws = [draw_patchout((12, 101), (4, 40), seed, step)
             for seed, step in ((0, 1), (0, 1), (0, 2), (1, 1))]
    rows, columns = draws[0]
    assert len(set(rows)) == 8 and len(set(columns)) == 61 and (np.diff(columns) > 0).all()
    assert all(np.array_equal(a, b) for a, b in zip(draws[0], draws[1]))
    assert not any(np.array_equal(draws[0][1], other[1]) for other in draws[2:])


def test_patchout_of_nothing_changes_no_bit(make_ast):
    weights = []
    for chosen in ({}, {'freq_patchout': 0, 'time_patchout': 0, 'seed': 5}):
        trainer, fbanks, labels = make_ast(**chosen)
        trainer.step(fbanks, labels)
        weights.append(trainer.model.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.skipif(not (shutil.which('g++') or shutil.which('clang++')),
                    reason='torch.compile needs a compiler')
def test_a_compiled_model_trains_to_the_same_numbers(make_ast):
    losses, logits = [], []
    for compiled in (False, True):
        trainer, fbanks, labels = make_ast(blocks=2, compile=compiled, freq_patchout=1)
        losses.append([float(trainer.step(fbanks, labels)) for _ in range(3)])
        evaluation = validate(trainer.evaluation_model, [(fbanks, labels)], CPU, 'BCE')
        logits.append(evaluation.predictions)
        assert all(name.startswith(('v.', 'mlp_head.')) for name in trainer.model.state_dict())
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert logits[1] == pytest.approx(logits[0], abs=1e-4)
