"""--start: weights of other audio models and of ASTs, whose numbers an ASTModel then computes."""
import argparse
import collections
import dataclasses
import logging
import os
import pickle
import sys
import types

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

import audio_models
import run
import tiny_vits  # noqa: F401  (they become known to timm)
from experiment import warn_of_rate
from http_server import Page, Server, running
from models import (
    ASTModel,
    WeightsError,
    load_model,
    published,
    resample_pos_embed,
    save_checkpoint,
)
from models.starts import find_model_size, find_start

CLASSES = audio_models.CLASSES
SETTINGS = {'fstride': 16, 'tstride': 16, 'input_fdim': 128, 'input_tdim': 1024}


@pytest.fixture(scope='module')
def audiomae():
    return audio_models.randomise(audio_models.AudioMAE())


@pytest.fixture(scope='module')
def eat():
    return audio_models.randomise(audio_models.EAT())


@pytest.fixture(scope='module', params=[(16, 16), (128, 2)], ids=['patches', 'frames'])
def ssast(request):
    return audio_models.randomise(audio_models.SSAST(request.param))


@pytest.fixture(scope='module')
def files(tmp_path_factory, audiomae, eat):
    """Files of both, pretrained and fine-tuned, as their authors' code writes them."""
    folder = tmp_path_factory.mktemp('starts')
    for name, model in (('audiomae', audiomae), ('eat', eat)):
        for is_fine_tuned in (False, True):
            stage = 'finetuned' if is_fine_tuned else 'pretrained'
            torch.save(model.file(is_fine_tuned), folder / f'{name}_{stage}.pth')
    yield folder
    for path in folder.iterdir():
        path.unlink()


@pytest.fixture
def ssast_file(ssast, tmp_path):
    torch.save(ssast.file(), tmp_path / 'ssast.pth')
    return tmp_path / 'ssast.pth'


def make_input(frames, bins=128, batch=2):
    """Return random spectrograms (batch, frames, mel bins)."""
    return torch.randn(batch, frames, bins, generator=torch.Generator().manual_seed(frames))


def build(path, frames=1024, stride=(16, 16), classes=CLASSES):
    """Build the model that starts from a file."""
    return ASTModel(classes, *stride, 128, frames, start=path, verbose=False).eval()


def assert_equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def resize(positions, old, new):
    """Cut or interpolate positions (1, f * t, dim) as the AST paper does: time, then frequency."""
    for axis in (1, 0):
        grid = positions.unflatten(1, old).permute(0, 3, 1, 2)  # (1, dim, f, t)
        start = old[axis] // 2 - new[axis] // 2
        if new[axis] <= old[axis]:
            grid = grid.narrow(2 + axis, start, new[axis])
            old = (new[0], old[1]) if axis == 0 else (old[0], new[1])
        else:
            old = (new[0], old[1]) if axis == 0 else (old[0], new[1])
            grid = F.interpolate(grid, size=old, mode='bilinear', align_corners=False)
        positions = grid.flatten(2).transpose(1, 2)
    return positions


def swap(positions, old):
    """Turn positions (1, a * b, dim) of a grid (a, b) into those of (b, a)."""
    return positions.unflatten(1, old).transpose(1, 2).flatten(1, 2)


@torch.no_grad()
@pytest.mark.parametrize('stage', ['pretrained', 'finetuned'])
def test_audiomae_gives_the_mean_of_its_patches_and_its_logits(stage, files, audiomae):
    model, x = build(files / f'audiomae_{stage}.pth'), make_input(1024, batch=1)
    if stage == 'finetuned':
        assert_equal(model(x), audiomae(x))
    else:
        assert_equal(model.forward_features(x), audiomae.features(x))
    assert model.config.model_size == 'audiomae_base'


@torch.no_grad()
@pytest.mark.parametrize('stage', ['pretrained', 'finetuned'])
def test_eat_gives_its_class_token_and_its_logits(stage, files, eat):
    frames = {'pretrained': 1024, 'finetuned': 512}[stage]
    model, x = build(files / f'eat_{stage}.pth', frames), make_input(frames, batch=1)
    if stage == 'finetuned':
        assert_equal(model(x), eat(x))
    else:
        assert_equal(model.forward_features(x), eat.features(x))
    assert model.config.model_size == 'eat_base'


@torch.no_grad()
def test_ssast_gives_the_mean_of_its_patches(ssast, ssast_file):
    model = build(ssast_file, stride=ssast.v.patch_embed.proj.stride)
    x = make_input(1024)
    assert_equal(model.forward_features(x), ssast.features(x))
    assert model.config.model_size == {8: 'ssast_tiny', 1: 'ssast_tiny_frame'}[ssast.grid[0]]


@torch.no_grad()
def test_ssast_at_other_lengths_and_strides_is_that_of_its_authors(ssast, ssast_file):
    height, width = ssast.v.patch_embed.proj.stride
    for frames, stride in ((400, (10, 10)), (1200, (16, 16))) if width == 16 else ((400, (128, 1)),):
        model, x = build(ssast_file, frames, stride), make_input(frames)
        positions = resize(ssast.v.pos_embed[:, 2:], ssast.grid, model.grid)
        assert_equal(model.forward_features(x), ssast.features(x, positions, stride))


@torch.no_grad()
def test_audiomae_at_other_lengths_and_strides_keeps_the_beginning(files, audiomae):
    grid = swap(audiomae.pos_embed[:, 1:], (64, 8)).unflatten(1, (8, 64))  # (1, f, t, dim)
    for frames, stride in ((200, (16, 16)), (200, (10, 10)), (1200, (16, 16))):
        model = build(files / 'audiomae_pretrained.pth', frames, stride)
        x, (f, t) = make_input(frames, batch=1), model.grid
        positions = grid
        if stride == (10, 10):  # the grid of strides 10 on 1024 frames, and its beginning
            positions = resize(grid.flatten(1, 2), (8, 64), (12, 101)).unflatten(1, (12, 101))
        positions = positions[:, :, :t]
        if t > positions.shape[2]:
            positions = resize(positions.flatten(1, 2), (8, 64), (f, t)).unflatten(1, (f, t))
        expected = audiomae.features(x, positions.transpose(1, 2).flatten(1, 2), stride)
        assert_equal(model.forward_features(x), expected)


@torch.no_grad()
def test_eat_at_other_strides_interpolates_its_positions_and_keeps_the_beginning(files, eat):
    model, x = build(files / 'eat_pretrained.pth', 400, (10, 10)), make_input(400, batch=1)
    whole = (12, (768 * 16 - 16) // 10 + 1)  # the grid of strides 10 on two minutes
    positions = resize(swap(eat.positions, (768, 8)), (8, 768), whole).unflatten(1, whole)
    used = positions[:, :, :model.grid[1]].transpose(1, 2).flatten(1, 2)
    assert_equal(model.forward_features(x), eat.features(x, used, (10, 10)))


def test_a_model_that_began_as_eat_keeps_the_beginning_as_a_start_as_well(files, eat, tmp_path):
    save_checkpoint(build(files / 'eat_pretrained.pth', 400), tmp_path / 'mine.pth')
    again = build(tmp_path / 'mine.pth', 160)
    assert torch.equal(again.v.pos_embed, swap(eat.positions[:, :10 * 8], (10, 8)))


@pytest.mark.parametrize('name', ['audiomae', 'eat'])
def test_for_other_classes_the_normalisation_stays_and_the_linear_layer_is_new(name, files, request,
                                                                              caplog):
    caplog.set_level(logging.INFO)
    model, theirs = build(files / f'{name}_finetuned.pth', classes=3), request.getfixturevalue(name)
    assert torch.equal(model.mlp_head[0].weight, theirs.fc_norm.weight)
    assert model.mlp_head[1].weight.shape == (3, 768)
    assert 'a new one for 3 takes its place' in caplog.text


def test_what_was_recognised_is_said(files, ssast_file, caplog):
    caplog.set_level(logging.INFO)
    for path, kind in ((files / 'audiomae_pretrained.pth', 'AudioMAE, pretrained'),
                       (files / 'eat_finetuned.pth', 'EAT or SSLAM, fine-tuned'),
                       (ssast_file, 'SSAST, pretrained')):
        find_start(path, 'base384', SETTINGS)
        assert kind in caplog.text


def test_half_precision_and_wrappers_do_not_matter(files, audiomae, tmp_path):
    state = audiomae.file(True)['model']
    halved = {f'module.{name}': value.half() for name, value in state.items()}
    torch.save({'state_dict': halved}, tmp_path / 'other.ckpt')
    expected = build(files / 'audiomae_finetuned.pth').v.blocks[0].mlp.fc1.weight
    found = build(tmp_path / 'other.ckpt').v.blocks[0].mlp.fc1.weight
    assert torch.equal(found, expected.half().float())


def test_an_ast_is_a_start_for_other_strides_lengths_and_classes(tmp_path, make_tiny):
    model = make_tiny()
    save_checkpoint(model, tmp_path / 'mine.pth', mean=-4.0, std=4.0, loss='BCE')
    again = ASTModel(9, model.config.fstride, model.config.tstride, model.config.input_fdim,
                     2 * model.config.input_tdim, start=tmp_path / 'mine.pth', verbose=False)
    expected = resample_pos_embed(model.v.pos_embed, model.grid, again.grid)
    assert torch.equal(again.v.pos_embed, expected)
    assert torch.equal(again.v.blocks[1].mlp.fc1.weight, model.v.blocks[1].mlp.fc1.weight)
    assert again.start_name == 'AST (mine.pth)' and again.config.model_size == model.config.model_size


FOREIGN = {
    'PaSST': {'time_new_pos_embed': (1, 8, 1, 9), 'freq_new_pos_embed': (1, 8, 9, 1),
              'patch_embed.proj.weight': (8, 1, 16, 16)},
    'BEATs': {'patch_embedding.weight': (8, 1, 16, 16), 'post_extract_proj.weight': (8, 8),
              'encoder.layers.0.self_attn.grep_linear.weight': (8, 8)},
    'HTS-AT': {'layers.0.blocks.0.attn.relative_position_bias_table': (9, 2),
               'tscam_conv.weight': (8, 8, 2, 3), 'patch_embed.proj.weight': (8, 1, 4, 4)},
    'CLAP': {'audio_branch.bn0.weight': (8,), 'text_branch.embeddings.word_embeddings.weight': (9, 8),
             'logit_scale_a': ()},
    'Swin or BEiT': {'layers.0.blocks.0.attn.relative_position_bias_table': (9, 2)},
    'PANNs': {'conv_block1.conv1.weight': (8, 1, 3, 3), 'fc_audioset.weight': (9, 8)},
}


@pytest.mark.parametrize('kind', FOREIGN)
def test_another_audio_model_is_named_with_the_reason_why_it_is_no_start(kind, tmp_path):
    state = {name: torch.ones(shape) for name, shape in FOREIGN[kind].items()}
    for content in (state, {'model': state}, {'state_dict': state, 'cfg': {'layers': 12}}):
        torch.save(content, tmp_path / 'theirs.pt')
        with pytest.raises(WeightsError, match=f'theirs.pt is a model of {kind}, .*no start.*: it'):
            find_start(tmp_path / 'theirs.pt', 'base384', SETTINGS)


class Code:
    """Unpickling it calls a function: what an attacker hides in a checkpoint."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture
def settings_class(monkeypatch):
    """A class of settings in a package that is only there while a file is written."""
    class Config:
        def __init__(self):
            self.model, self._content = {'depth': 12}, {'lr': [1e-4]}

        def __setstate__(self, state):
            raise AssertionError('the settings came to life')

    module = types.ModuleType('their_package')
    module.Config = Config
    Config.__module__, Config.__qualname__ = 'their_package', 'Config'
    monkeypatch.setitem(sys.modules, 'their_package', module)
    return Config


def test_settings_of_a_package_that_is_not_there_do_not_matter(eat, settings_class, tmp_path):
    torch.save(eat.file(False, settings=settings_class()), tmp_path / 'eat.pt')
    del sys.modules['their_package']
    model = build(tmp_path / 'eat.pt')
    assert torch.equal(model.v.blocks[3].mlp.fc2.bias, eat.blocks[3].mlp.fc2.bias)


def attacks(path):
    """Yield objects whose unpickling would write a file, by various ways."""
    yield 'a function of Python', Code(exec, f'open({str(path)!r}, "w")')
    yield 'a function of the system', Code(os.system, f'touch {path}')
    yield 'an opened file', Code(open, str(path), 'w')
    yield 'a function of PyTorch', Code(torch.save, {}, str(path))
    yield 'a nested pickle', Code(pickle.loads, pickle.dumps(Code(os.system, f'touch {path}')))
    yield 'an attribute', Code(getattr, argparse.Namespace(a=Code(exec, f'open({str(path)!r}, "w")')),
                               'a')


@pytest.mark.parametrize('is_zip', [True, False], ids=['zip', 'before_pytorch_1.6'])
@pytest.mark.parametrize('layout', ['audiomae', 'ssast', 'eat'])
def test_code_in_a_file_does_not_run(layout, is_zip, tmp_path):
    small = {'dim': 24, 'heads': 2, 'depth': 1}
    marker = tmp_path / 'attacked'
    for name, attack in attacks(marker):
        if layout == 'audiomae':
            content = audio_models.AudioMAE(**small).file(True) | {'args': attack}
        elif layout == 'eat':
            content = audio_models.EAT(**small, columns=64).file(True, settings=attack)
        else:
            content = {'model': audio_models.SSAST(**small).file(), 'args': attack}
        torch.save(content, tmp_path / 'theirs.pth', _use_new_zipfile_serialization=is_zip)
        assert not marker.exists(), name
        with pytest.raises(WeightsError):  # an attack, or embeddings of 24 dimensions
            find_start(tmp_path / 'theirs.pth', 'base384', SETTINGS)
        assert not marker.exists(), name


def test_containers_that_contain_themselves_or_each_other_are_read_once(audiomae, tmp_path):
    content = audio_models.AudioMAE(dim=24, heads=2, depth=1).file(True)
    content['again'] = content
    for _ in range(40):
        content = {'a': content, 'b': content}
    torch.save(content, tmp_path / 'theirs.pth')
    with pytest.raises(WeightsError, match='embeddings of 24 dimensions'):
        find_start(tmp_path / 'theirs.pth', 'base384', SETTINGS)


def test_containers_of_python_beside_the_weights_do_not_matter(eat, tmp_path):
    beside = {'counts': collections.defaultdict(list, a=[1]), 'last': collections.deque([1, 2])}
    torch.save(eat.file(False, settings=beside), tmp_path / 'eat.pt')
    assert find_start(tmp_path / 'eat.pt', 'base384', SETTINGS).model_size == 'eat_base'


def test_an_ast_that_does_not_say_its_strides_is_taken_to_have_those_of_the_model(tmp_path, make_tiny):
    model = make_tiny()
    torch.save(model.state_dict(), tmp_path / 'bare.pth')
    config = vars(model.config) | {'label_dim': 9}
    again = ASTModel(**config, start=tmp_path / 'bare.pth', verbose=False)
    assert torch.equal(again.v.pos_embed, model.v.pos_embed)
    with pytest.raises(WeightsError, match='positional embedding'):
        ASTModel(**config | {'input_tdim': 512}, start=tmp_path / 'bare.pth', verbose=False)


def test_names_that_eat_does_not_have_are_refused(eat, tmp_path):
    content = eat.file(False)
    content['model']['modality_encoders.IMAGE.context_encoder.blocks.0.norm1.weight'] = torch.ones(768)
    torch.save(content, tmp_path / 'eat.pt')
    with pytest.raises(WeightsError, match='context_encoder.blocks.0.norm1.weight is not known'):
        build(tmp_path / 'eat.pt')


def test_a_vit_of_one_channel_that_is_none_of_them_is_refused(tmp_path):
    torch.save({'patch_embed.proj.weight': torch.ones(192, 1, 16, 16), 'pos_embed': torch.ones(1, 65, 192),
                'cls_token': torch.ones(1, 1, 192)}, tmp_path / 'vit.pth')
    with pytest.raises(WeightsError, match='none of the audio models'):
        find_start(tmp_path / 'vit.pth', 'base384', SETTINGS)


def test_ssast_is_downloaded_by_its_name(tmp_path, monkeypatch):
    with running(Server()) as server:
        torch.save(audio_models.SSAST().file(), tmp_path / 'ssast.pth')
        file = published.ssast_file('SSAST-Tiny-Patch-400')
        there = dataclasses.replace(file, url=f'{server.address}/tiny.pth')
        server.pages['/tiny.pth'] = Page((tmp_path / 'ssast.pth').read_bytes())
        monkeypatch.setattr(published, 'SSAST', (there,))
        monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
        found = find_start('SSAST-Tiny-Patch-400.pth', 'base384', SETTINGS)
    assert found.model_size == 'ssast_tiny' and found.path == tmp_path / 'home' / file.name


def test_code_in_the_place_of_the_weights_does_not_run(tmp_path):
    marker = tmp_path / 'attacked'
    torch.save({'model': Code(exec, f'open({str(marker)!r}, "w")')}, tmp_path / 'theirs.pth')
    with pytest.raises(WeightsError, match='holds no weights'):
        find_start(tmp_path / 'theirs.pth', 'base384', SETTINGS)
    assert not marker.exists()


def test_a_vit_under_timms_names_needs_its_model_size_if_its_file_does_not_say_it(tmp_path):
    vit = timm.create_model('test_vit')
    torch.save(vit.state_dict(), tmp_path / 'vit.pth')
    model = ASTModel(3, start=tmp_path / 'vit.pth', model_size='test_vit', verbose=False)
    assert torch.equal(model.v.blocks[0].mlp.fc1.weight, vit.blocks[0].mlp.fc1.weight)
    with pytest.raises(WeightsError, match='does not fit this model'):
        ASTModel(3, start=tmp_path / 'vit.pth', verbose=False)
    with pytest.raises(WeightsError, match='give its model_size'):
        ASTModel(3, start=tmp_path / 'vit.pth', model_size='eat_base', verbose=False)


@pytest.mark.parametrize('change, problem', [
    ({'img_size': 96}, 'it has 37 positions, tiny_vit_one_token has 4 x 4 = 16'),
    ({'img_size': 32, 'patch_size': 8}, 'its patches have 8 x 8 pixels, .* have 16 x 16')])
@pytest.mark.parametrize('file', ['mine.pth', 'tiny_vit_one_token.mine.safetensors'])
def test_a_vit_for_other_images_or_patches_is_refused_and_not_resampled(file, change, problem,
                                                                        tmp_path):
    vit = timm.create_model('tiny_vit_one_token', **change)
    save = save_file if file.endswith('.safetensors') else torch.save
    save(vit.state_dict(), tmp_path / file)
    with pytest.raises(WeightsError, match=f'{file} does not fit this model: {problem}'):
        find_start(tmp_path / file, 'tiny_vit_one_token', SETTINGS)


def test_the_rate_that_a_start_has_heard_is_known(files, ssast_file, tmp_path, caplog):
    for path in (files / 'audiomae_pretrained.pth', files / 'eat_finetuned.pth', ssast_file):
        model = ASTModel(3, *SETTINGS.values(), start=path, verbose=False)
        caplog.clear()
        warn_of_rate(model, 16000)
        assert not caplog.records
        warn_of_rate(model, 32000)
        assert 'trained at 16000 Hz, but --sample_rate is 32000' in caplog.text
    caplog.clear()
    save_file(timm.create_model('tiny_vit_one_token').state_dict(),
              tmp_path / 'tiny_vit_one_token.safetensors')
    warn_of_rate(ASTModel(3, start=tmp_path / 'tiny_vit_one_token.safetensors'), 32000)
    assert not caplog.records  # it has seen images


@pytest.mark.parametrize('name, nearest', [
    ('vit_tiny_pach16_224.mae', 'vit_tiny_patch16_224'), ('ssast-base-patch-400', 'SSAST-Base-Patch-400')])
def test_a_name_with_a_mistake_is_answered_with_the_nearest(name, nearest):
    with pytest.raises(WeightsError, match=rf'neither a file nor a known name \(do you mean {nearest}'):
        find_start(name, 'base384', SETTINGS)


def test_the_name_of_timms_weights_on_hugging_face_is_that_of_the_weights(hub_offline):
    assert find_model_size('timm/vit_tiny_patch16_224.augreg_in21k', 'base384', SETTINGS) == \
        'vit_tiny_patch16_224'
    with pytest.raises(WeightsError, match='timm has no pretrained weights .*nobody'):
        find_model_size('timm/vit_tiny_patch16_224.nobody', 'base384', SETTINGS)


def test_a_vit_beside_the_settings_of_its_training_is_a_start(tmp_path):
    vit = timm.create_model('test_vit')
    torch.save({'model': vit.state_dict(), 'args': argparse.Namespace(lr=1e-3)}, tmp_path / 'vit.pth')
    model = ASTModel(3, start=tmp_path / 'vit.pth', model_size='test_vit', verbose=False)
    assert torch.equal(model.v.blocks[0].mlp.fc1.weight, vit.blocks[0].mlp.fc1.weight)


def test_names_behind_a_prefix_are_refused_with_the_first_of_them(tmp_path):
    state = {f'net.{name}': value for name, value in timm.create_model('test_vit').state_dict().items()}
    torch.save({'state_dict': state, 'epoch': 3}, tmp_path / 'lightning.ckpt')
    with pytest.raises(WeightsError, match='its first entry is net.cls_token'):
        find_start(tmp_path / 'lightning.ckpt', 'test_vit', SETTINGS)


@pytest.mark.parametrize('content', [b'some text', b'PK\x03\x04 a zip'])
def test_a_file_that_holds_no_weights_is_one_sentence(content, tmp_path):
    (tmp_path / 'file.pth').write_bytes(content)
    with pytest.raises(WeightsError, match='is not a readable checkpoint') as error:
        find_start(tmp_path / 'file.pth', 'base384', SETTINGS)
    assert 'is missing' not in str(error.value)


def test_imagenet_weights_of_an_audio_model_are_refused():
    with pytest.raises(ValueError, match='no ImageNet weights for eat_base: give .* as start'):
        ASTModel(3, model_size='eat_base')


@pytest.fixture
def train(tmp_path, monkeypatch, make_tone, make_labels, make_datafile):
    """Train on four recordings in this process."""
    monkeypatch.chdir(tmp_path)
    make_labels(2)
    make_datafile([(make_tone(f'{i}.wav', 400 * (1 + i % 2), seconds=0.4, seed=i), f'/m/{i % 2}')
                   for i in range(4)])

    def train(*options):
        run.main([*('--data_train data.json --data_val data.json --label_csv labels.csv --n_class 2 '
                    '--exp_dir exp --audio_length 64 --fstride 16 --tstride 16 --batch_size 2 '
                    '--num_workers 0 --device cpu --save_model True').split(), *options])
    return train


def test_a_run_starts_from_a_file_and_says_so_in_its_model(train, tmp_path):
    torch.save(audio_models.randomise(audio_models.SSAST()).file(), tmp_path / 'ssast.pth')
    train('--start', 'ssast.pth')
    model, description = load_model('exp/models/best_audio_model.pth')
    assert description['start'] == 'SSAST, pretrained, patch-based (ssast.pth)'
    assert model.config.model_size == description['model_size'] == 'ssast_tiny'


def test_the_start_of_a_run_cannot_change_when_it_goes_on(train, tmp_path):
    for seed in (0, 1):
        model = audio_models.randomise(audio_models.SSAST(), seed)
        torch.save(model.file(), tmp_path / f'{seed}.pth')
    train('--start', '0.pth')
    with pytest.raises(SystemExit) as stop:
        train('--start', '1.pth', '--n_epochs', '2', '--force')
    assert 'start' in str(stop.value.code)
    train('--start', '0.pth', '--n_epochs', '2')
    (tmp_path / '0.pth').unlink()
    train('--start', '0.pth', '--n_epochs', '2')  # it is finished and needs no start
    with pytest.raises(SystemExit) as stop:
        train('--start', '0.pth', '--n_epochs', '3')
    assert '0.pth does not exist' in str(stop.value.code)


def test_a_wrong_start_is_one_sentence(train):
    with pytest.raises(SystemExit) as stop:
        train('--start', 'missing.pth')
    assert 'missing.pth does not exist' in str(stop.value.code)


def test_a_size_that_does_not_fit_the_start_is_named_by_its_option(train, tmp_path, capsys):
    torch.save(audio_models.SSAST((128, 2)).file(), tmp_path / 'frames.pth')
    with pytest.raises(SystemExit):
        train('--start', 'frames.pth', '--num_mel_bins', '64')
    assert '--num_mel_bins must be at least 128' in capsys.readouterr().err


def test_a_dry_run_warns_of_strides_that_leave_gaps(train, tmp_path, capsys):
    torch.save(audio_models.SSAST((128, 2)).file(), tmp_path / 'frames.pth')
    train('--start', 'frames.pth', '--dry_run')
    assert 'Strides of at most 128 x 2 leave no gaps' in capsys.readouterr().err


def test_a_dry_run_from_a_vit_of_timm_downloads_nothing(train, hub_offline, capsys):
    train('--start', 'vit_tiny_patch16_224.augreg_in21k', '--dry_run')
    said = capsys.readouterr().err
    assert 'AST vit_tiny_patch16_224 from vit_tiny_patch16_224.augreg_in21k' in said
