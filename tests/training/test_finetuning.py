"""Options of fine-tuning: what each of them does in one step or one epoch, by hand."""
import json

import numpy as np
import pytest
import torch
from torch import nn

import run
from dataloader import AudiosetDataset
from models import ASTModel, load_model
from models.ast_models import Backbone
from models.backbones import AUDIO_BACKBONES, EAT
from small_model import CPU, settings
from training.embeddings import EmbeddingDataset
from training.errors import TrainingError
from training.gpu_fbanks import WaveformDataset
from training.losses import balance_classes, make_training_loss
from training.optimizer import freeze, make_optimizer, set_drop_path
from training.supervisor import Supervisor
from training.trainer import Trainer
from utilities.parallel import one_thread

CLASSES, FRAMES, BINS = 3, 32, 32


@pytest.fixture(autouse=True)
def thread():
    """Compute on one thread, as models of this size do best."""
    with one_thread():
        yield


def make_model():
    torch.manual_seed(0)
    return ASTModel(CLASSES, 16, 16, BINS, FRAMES, imagenet_pretrain=False, model_size='tiny224',
                    verbose=False)


def make_batch(size=4):
    generator = torch.Generator().manual_seed(1)
    labels = nn.functional.one_hot(torch.arange(size) % CLASSES, CLASSES).float()
    return torch.randn(size, FRAMES, BINS, generator=generator), labels


def train_one_step(model, **changes):
    """Return a trainer whose model has done one step."""
    chosen = settings(**{'optim': 'adam', 'lr': 1e-3, 'loss': 'CE', **changes})
    freeze(model, chosen.freeze)
    trainer = Trainer(model, CPU, chosen, 10)
    trainer.step(*make_batch())
    return trainer


def rates_by_name(model, optimizer):
    """Return {name: (lr_scale, weight_decay)} of the trained parameters of a model."""
    names = {id(value): name for name, value in model.named_parameters()}
    return {names[id(value)]: (group['lr_scale'], group['weight_decay'])
            for group in optimizer.param_groups for value in group['params']}


def test_layer_decay_gives_each_layer_the_rate_of_the_one_above_times_the_factor():
    model = make_model()
    chosen = settings(optim='adamw', layer_decay=0.5, weight_decay=0.05)
    found = rates_by_name(model, make_optimizer(model, chosen))
    assert found['mlp_head.1.weight'] == (1, 0.05)
    assert found['v.blocks.11.mlp.fc1.weight'][0] == 0.5 == found['v.norm.weight'][0]
    for number in range(12):
        assert found[f'v.blocks.{number}.attn.qkv.weight'][0] == 0.5 ** (12 - number)
    assert found['v.pos_embed'][0] == found['v.patch_embed.proj.weight'][0] == 0.5 ** 13


def test_all_that_comes_before_the_blocks_has_the_rate_of_the_patches(monkeypatch):
    eat = Backbone('test_vit', options=EAT)
    monkeypatch.setitem(AUDIO_BACKBONES, 'small_eat', eat)
    chosen = settings(optim='adamw', layer_decay=0.5, weight_decay=0.05)
    for size, part in (('small_eat', 'v.norm_pre.weight'), ('test_vit2', 'v.reg_token')):
        model = ASTModel(CLASSES, 16, 16, BINS, FRAMES, imagenet_pretrain=False, model_size=size,
                         verbose=False)
        found = rates_by_name(model, make_optimizer(model, chosen))
        assert found[part] == (found['v.patch_embed.proj.weight'][0], 0)


def test_adamw_decays_matrices_and_neither_biases_nor_normalisations_nor_embeddings():
    model = make_model()
    found = rates_by_name(model, make_optimizer(model, settings(optim='adamw', weight_decay=0.05)))
    assert len(found) == len(list(model.parameters()))
    for name, (scale, decay) in found.items():
        is_matrix = name.endswith('.weight') and 'norm' not in name and name != 'mlp_head.0.weight'
        assert scale == 1 and decay == (0.05 if is_matrix else 0), name


def test_a_step_of_adamw_is_that_of_its_formula():
    model, before = make_model(), make_model()
    trainer = train_one_step(model, optim='adamw', weight_decay=0.1, lr=1e-3)
    name = 'v.blocks.3.mlp.fc1.weight'
    old, new = before.get_parameter(name), trainer.model.get_parameter(name)
    gradient = trainer.optimizer.state[new]['exp_avg'] / 0.1  # after a step, (1 - beta1) * gradient
    expected = old * (1 - 1e-3 * 0.1) - 1e-3 * gradient / (gradient.abs() + 1e-8)
    torch.testing.assert_close(new, expected, rtol=1e-4, atol=1e-7)


def test_weight_decay_changes_the_published_adam_everywhere():
    model = make_model()
    group, = make_optimizer(model, settings(optim='adam', weight_decay=0.1)).param_groups
    assert group['weight_decay'] == 0.1 and len(group['params']) == len(list(model.parameters()))


def test_the_head_has_a_rate_of_its_own():
    for changes in ({}, {'optim': 'adamw'}, {'layer_decay': 0.5}):
        model = make_model()
        chosen = settings(**{'optim': 'adam', 'head_lr': 10, **changes})
        found = rates_by_name(model, make_optimizer(model, chosen))
        assert found['mlp_head.1.weight'][0] == found['mlp_head.0.bias'][0] == 10
        assert found['v.blocks.11.mlp.fc1.bias'][0] == changes.get('layer_decay', 1)
        assert len(found) == len(list(model.parameters()))


@pytest.mark.parametrize('what, trained', [
    ('backbone', ('mlp_head.',)),
    ('3', ('mlp_head.', 'v.norm.', *(f'v.blocks.{number}.' for number in range(3, 12))))])
def test_frozen_weights_do_not_change_and_all_others_do(what, trained):
    model, before = make_model(), make_model()
    train_one_step(model, freeze=what)
    for (name, new), old in zip(model.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(new, old) != name.startswith(trained), name


def test_more_frozen_blocks_than_there_are_is_a_sentence():
    with pytest.raises(TrainingError, match='--freeze 13: the model has 12 blocks'):
        freeze(make_model(), '13')


def test_layer_decay_skips_frozen_blocks():
    model = make_model()
    freeze(model, '6')
    found = rates_by_name(model, make_optimizer(model, settings(layer_decay=0.5)))
    assert 'v.blocks.5.norm1.weight' not in found
    assert found['v.blocks.6.norm1.weight'][0] == 0.5 ** 6


@pytest.mark.parametrize('loss', ['CE', 'BCE'])
def test_smoothed_labels_are_those_of_the_formula(loss):
    logits = torch.randn(4, CLASSES, generator=torch.Generator().manual_seed(2))
    labels = make_batch()[1]
    found = make_training_loss(settings(loss=loss, label_smoothing=0.1), None)(logits, labels)
    if loss == 'CE':
        smoothed = 0.9 * labels + 0.1 / CLASSES
        expected = -(smoothed * logits.log_softmax(dim=1)).sum(dim=1).mean()
    else:
        smoothed = 0.9 * labels + 0.05
        expected = -(smoothed * logits.sigmoid().log()
                     + (1 - smoothed) * (1 - logits.sigmoid()).log()).mean()
    torch.testing.assert_close(found, expected)


def test_class_weights_make_up_for_how_often_a_class_occurs():
    targets = np.zeros((10, 4), np.float32)
    targets[:8, 0] = targets[8:, 2] = 1
    weights = balance_classes(targets.sum(axis=0))
    assert weights.tolist() == pytest.approx([10 / (2 * 8), 1, 10 / (2 * 2), 1])
    logits, labels = torch.zeros(1, 4), torch.tensor([[0.0, 0, 1, 0]])
    found = make_training_loss(settings(loss='CE'), weights)(logits, labels)
    torch.testing.assert_close(found, 2.5 * torch.tensor(4.0).log())


@pytest.mark.parametrize('features', ['cpu', 'gpu'])
def test_class_weights_count_each_class_of_a_sample_once(make_tone, make_dataset, features):
    tone = make_tone('a.wav')
    labels = ['/m/0,/m/2', '/m/0', '', '/m/0,/m/0']
    kind = WaveformDataset if features == 'gpu' else AudiosetDataset
    dataset = make_dataset([(tone, mids) for mids in labels], kind)
    cached = EmbeddingDataset(torch.zeros(4, 1), dataset)
    assert dataset.count_labels().tolist() == dataset.all_targets().sum(axis=0).tolist()
    assert dataset.count_labels().tolist() == cached.count_labels().tolist()


def test_class_weights_need_no_table_of_all_labels(train, monkeypatch):
    monkeypatch.delattr(AudiosetDataset, 'all_targets')
    train('--n_epochs', '1', '--class_weights', 'True')


def test_the_moving_average_is_that_of_its_formula():
    model = make_model()
    trainer = Trainer(model, CPU, settings(optim='adam', lr=1e-3, loss='CE', ema=0.9), 10)
    name, average = 'v.blocks.0.mlp.fc1.bias', None
    for step in range(4):
        trainer.step(*make_batch())
        weights = model.get_parameter(name).detach().clone()
        decay = min(0.9, 1 - (1 + step) ** (-2 / 3)) if step else 0.0
        average = weights if average is None else decay * average + (1 - decay) * weights
        torch.testing.assert_close(trainer.model_to_save.get_parameter(name), average)
    assert not torch.equal(trainer.model_to_save.get_parameter(name), weights)


def test_drop_path_skips_branches_of_training_samples_alone_the_same_in_every_run():
    model = make_model()
    set_drop_path(model, 0.5)
    rates = [block.drop_path1.drop_prob for block in model.v.blocks[1:]]
    assert rates == pytest.approx([0.5 * i / 11 for i in range(1, 12)])
    x, _ = make_batch()
    assert torch.equal(model.eval()(x), make_model().eval()(x))
    assert not torch.equal(model.train()(x), model(x))
    steps = []
    for _ in range(2):
        model = make_model()
        set_drop_path(model, 0.5)
        torch.rand(7)  # of something else
        steps.append(train_one_step(model, drop_path=0.5).model.get_parameter('v.norm.weight'))
    assert torch.equal(*steps)


@pytest.fixture
def train(tmp_path, monkeypatch, make_tone, make_labels, make_datafile):
    """Train on eight recordings of two classes in this process; return the folder."""
    monkeypatch.chdir(tmp_path)
    make_labels(2)
    clips = [(make_tone(f'{i}.wav', 400 * (1 + i % 2), seconds=0.3, seed=i), f'/m/{i % 2}')
             for i in range(8)]
    make_datafile(clips)

    def train(*options, exp_dir='exp'):
        run.main(['--exp_dir', exp_dir, *(
            '--data_train data.json --data_val data.json --label_csv labels.csv --n_class 2 '
            '--num_mel_bins 16 --audio_length 32 --fstride 16 --tstride 16 --model_size tiny224 '
            '--imagenet_pretrain False --batch_size 4 --lr 1e-3 --num_workers 0 --device cpu '
            '--loss CE --metrics acc --save_model True').split(), *options])
        return tmp_path / exp_dir
    return train


@pytest.fixture
def stop_after(train, monkeypatch):
    """Train, and stop after so many steps as a signal would. What is trained later is not stopped."""
    def stop(count, *options):
        after_step, steps = Supervisor.after_step, []

        def count_and_stop(supervisor):
            steps.append(1)
            supervisor.interrupt.requested = len(steps) == count
            after_step(supervisor)
        with monkeypatch.context() as patch:
            patch.setattr(Supervisor, 'after_step', count_and_stop)
            with pytest.raises(SystemExit) as end:
                train(*options)
        assert end.value.code == 75
    return stop


MODERN = ('--optim adamw --weight_decay 0.05 --layer_decay 0.7 --head_lr 2 --schedule cosine '
          '--warmup_epochs 0.5 --min_lr 1e-6 --drop_path 0.2 --label_smoothing 0.1 --ema 0.9 '
          '--class_weights True --freeze 2').split()


@pytest.mark.parametrize('more', [[], ['--grad_accum', '2'], ['--amp', 'bf16']],
                         ids=['', 'accumulated', 'bf16'])
def test_a_run_with_all_of_them_goes_on_as_if_it_had_not_stopped(train, stop_after, more):
    options = [*MODERN, *more, '--n_epochs', '2']
    straight = train(*options, exp_dir='straight')
    stop_after(3, *options)
    resumed = train(*options)
    for file in ('result.csv', 'models/best_audio_model.pth', 'models/audio_model_ema.pth'):
        assert (resumed / file).read_bytes() == (straight / file).read_bytes(), file


@pytest.mark.parametrize('stop_at', [2, 3])  # at the end of the first epoch, in the second
def test_a_cosine_ends_with_the_run_though_it_goes_on_in_smaller_batches(train, stop_after,
                                                                         stop_at):
    cosine = '--schedule', 'cosine', '--n_epochs', '4'  # of two steps each
    stop_after(stop_at, *cosine)
    resumed = train(*cosine, '--batch_size', '2', '--force')  # of four steps each
    left = {2: 12, 3: 10}[stop_at]
    before = stop_at / 8  # of the cosine
    ends = {2: (3, 7, 11), 3: (1, 5, 9)}[stop_at]  # the last steps of the epochs 2, 3 and 4
    expected = [1e-3 * (1 + np.cos(np.pi * (before + (1 - before) * step / left))) / 2
                for step in ends]
    rates = np.loadtxt(resumed / 'result.csv', delimiter=',')[1:, -1]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_a_cosine_that_goes_on_in_uneven_batches_is_stretched_once(train, stop_after, capsys):
    cosine = '--schedule', 'cosine', '--n_epochs', '2'
    stop_after(1, *cosine)  # four clips of eight are left, which are two batches of three
    stop_after(3, *cosine, '--batch_size', '3', '--force')
    assert 'is stretched from step 1 on' in capsys.readouterr().err
    resumed = train(*cosine, '--batch_size', '3')
    assert 'is stretched' not in capsys.readouterr().err
    expected = 1e-3 * (1 + np.cos(np.pi * (1 / 4 + 3 / 4 * 4 / 5))) / 2  # the sixth step of six
    assert np.loadtxt(resumed / 'result.csv', delimiter=',')[1, -1] == pytest.approx(expected)


def test_averaged_epochs_that_were_not_kept_are_missed_before_training(train, stop_after):
    options = '--n_epochs', '3', '--save_model', 'False'
    stop_after(3, *options)
    average = '--wa', 'True', '--wa_start', '1', '--wa_end', '3', '--force'
    with pytest.raises(SystemExit) as stop:
        train(*options, *average)
    assert 'the model of epoch 1 was not kept: set --wa False, or --resume none' in str(
        stop.value.code)
    rows = train(*options, '--wa', 'True', '--wa_start', '2', '--wa_end', '3', '--force')
    assert (rows / 'wa_result.csv').exists()


def test_the_moving_average_is_what_is_evaluated_and_saved(train):
    folder = train('--ema', '0.99', '--n_epochs', '2')
    average = load_model(folder / 'models' / 'audio_model_ema.pth')[0]
    state = torch.load(folder / 'checkpoint.pth', weights_only=True)['trainer']
    for name, value in average.state_dict().items():
        assert torch.equal(value, state['ema'][f'module.{name}'])
        last = state['model'][name]
    assert not torch.equal(value, last)


def test_training_stops_early_when_the_metric_no_longer_rises(train, capsys):
    folder = train('--lr', '1e-30', '--n_epochs', '9', '--patience', '2')
    assert len((folder / 'result.csv').read_text().splitlines()) == 3
    assert 'acc has not risen since epoch 1 (--patience 2)' in capsys.readouterr().err
    assert (folder / 'finished').exists()


def test_a_cosine_that_has_ended_stays_at_the_lowest_rate_and_the_log_says_so(train, capsys):
    cosine = ('--schedule', 'cosine')
    train(*cosine, '--n_epochs', '2', '--min_lr', '1e-4')
    longer = train(*cosine, '--n_epochs', '4', '--min_lr', '1e-4')
    rates = np.loadtxt(longer / 'result.csv', delimiter=',')[:, -1]
    straight = train(*cosine, '--n_epochs', '2', '--min_lr', '1e-4', exp_dir='two')
    assert rates[:2].tolist() == np.loadtxt(straight / 'result.csv', delimiter=',')[:, -1].tolist()
    assert rates[2:].tolist() == [1e-4, 1e-4]
    assert 'has come to its end: further epochs run at --min_lr 0.0001' in capsys.readouterr().err


def test_a_cosine_that_has_ended_at_0_is_not_made_longer(train):
    train('--schedule', 'cosine', '--n_epochs', '1')
    with pytest.raises(SystemExit) as stop:
        train('--schedule', 'cosine', '--n_epochs', '2')
    assert 'would change nothing. Give them a rate with --min_lr' in str(stop.value.code)
    longer = train('--schedule', 'cosine', '--n_epochs', '2', '--min_lr', '1e-5', '--force')
    assert np.loadtxt(longer / 'result.csv', delimiter=',')[1, -1] == 1e-5


def test_kept_embeddings_train_the_head_to_the_same_weights(train):
    probe = ('--freeze', 'backbone', '--n_epochs', '3', '--amp', 'off')
    folders = [train(*probe, exp_dir='computed'),
               train(*probe, '--cache_embeddings', 'True', exp_dir='kept')]
    heads = [load_model(folder / 'models' / 'best_audio_model.pth')[0].mlp_head for folder in folders]
    torch.testing.assert_close(heads[0][1].weight, heads[1][1].weight, rtol=0, atol=1e-5)
    rows = [np.loadtxt(folder / 'result.csv', delimiter=',') for folder in folders]
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-4)


def test_kept_embeddings_of_other_weights_are_refused(train):
    probe = ('--freeze', 'backbone', '--cache_embeddings', 'True')
    train(*probe, '--n_epochs', '1')
    with pytest.raises(SystemExit) as stop:  # another seed: other weights to start from
        train(*probe, '--n_epochs', '2', '--seed', '1', '--force')
    assert 'the weights that the run started from have changed' in str(stop.value.code)


def test_embeddings_that_cannot_be_computed_are_a_sentence_and_cost_no_earlier_run(train,
                                                                                   monkeypatch):
    probe = ('--freeze', 'backbone', '--cache_embeddings', 'True', '--n_epochs', '1')
    folder = train(*probe)

    def fill_the_memory(*_):
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB')
    monkeypatch.setattr('experiment.embed', fill_the_memory)
    with pytest.raises(SystemExit) as stop:
        train(*probe, '--resume', 'none')
    assert 'the GPU is out of memory' in str(stop.value.code)
    assert (folder / 'result.csv').exists()


@pytest.mark.parametrize('options, reason', [
    ('--freeze backbone --layer_decay 0.7', '--layer_decay .*--freeze backbone'),
    ('--freeze backbone --drop_path 0.1', '--drop_path'),
    ('--freeze 13', 'the model has 12 blocks'),
    ('--freeze head', '--freeze'),
    ('--ema 0.99 --wa True --wa_end 1', '--ema and --wa.* set --wa False'),
    ('--patience 3 --wa True --wa_end 1', 'epochs that --wa averages.* set --wa False'),
    ('--schedule cosine --lr_patience 2', '--lr_patience 2 is for --schedule plateau'),
    ('--min_lr 1e-5', '--schedule cosine'),
    ('--schedule cosine --min_lr 1', 'above --lr'),
    ('--warmup True --warmup_epochs 1', '--warmup_epochs'),
    ('--warmup_epochs 2', 'more than --n_epochs'),
    ('--cache_embeddings True', '--freeze backbone'),
    ('--cache_embeddings True --freeze backbone --freqm 4', '--freqm 4 would .* give --freqm 0'),
    ('--cache_embeddings True --freeze backbone --noise_dir .', 'give no --noise_dir'),
    ('--cache_embeddings True --freeze backbone --compile True', '--compile True has no effect'),
    ('--cache_embeddings True --freeze backbone --grad_checkpointing True',
     '--grad_checkpointing True has no effect with --cache_embeddings'),
    ('--ema 1', 'below 1')])
def test_contradictions_are_refused_in_a_sentence(train, capsys, options, reason):
    import re
    with pytest.raises(SystemExit) as stop:
        train('--n_epochs', '1', *options.split())
    said = capsys.readouterr().err + str(stop.value.code)
    assert re.search(reason, said) and 'Traceback' not in said


def test_the_structure_of_the_optimizer_cannot_change_when_a_run_goes_on(train):
    train('--n_epochs', '1')
    for options in (['--layer_decay', '0.5'], ['--optim', 'adamw'], ['--weight_decay', '0.1']):
        with pytest.raises(SystemExit) as stop:
            train('--n_epochs', '2', '--force', *options)
        said = str(stop.value.code)
        assert f'cannot change {options[0]}, even with --force; --resume none' in said
    assert json.loads((train('--n_epochs', '2') / 'args.json').read_text())['layer_decay'] == 1
