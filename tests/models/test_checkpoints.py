"""Checkpoints: saved and loaded in the published layouts, refused if they do not fit, averaged."""
import io
import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save, save_file

import golden
from models import (
    WeightsError,
    load_checkpoint,
    load_model,
    mean_state_dict,
    read_state_dict,
    save_checkpoint,
)


@pytest.fixture(scope='module')
def tiny(make_tiny):
    """A tiny model that tests read and leave as it is."""
    return make_tiny()


@pytest.fixture
def published(tiny):
    """Its state dict as published: with the prefix and two heads that nothing uses."""
    heads = {f'module.v.{head}.{leaf}': torch.zeros(shape) for head in ('head', 'head_dist')
             for leaf, shape in (('weight', (1000, 192)), ('bias', (1000,)))}
    return {**{f'module.{name}': value for name, value in tiny.state_dict().items()}, **heads}


def same_weights(model, other):
    mine, theirs = model.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(value, theirs[name])
                                                for name, value in mine.items())


def test_a_saved_checkpoint_loads_into_the_same_model(tiny, make_tiny, tmp_path):
    save_checkpoint(tiny, tmp_path / 'model.pth')
    fresh = make_tiny()
    assert not same_weights(fresh, tiny)
    load_checkpoint(fresh, tmp_path / 'model.pth')
    assert same_weights(fresh, tiny)


def test_a_checkpoint_is_saved_in_the_published_layout(tiny, tmp_path):
    save_checkpoint(tiny, tmp_path / 'model.pth')
    saved = torch.load(tmp_path / 'model.pth', weights_only=True)
    assert list(saved) == [f'module.{name}' for name in tiny.state_dict()]


def test_the_json_beside_a_checkpoint_describes_the_model(tiny, tmp_path):
    save_checkpoint(tiny, tmp_path / 'audio_model.5.pth', labels=['dog', 'cat'], mean=-4.25,
                    std=4.5, loss='BCE')
    assert json.loads((tmp_path / 'audio_model.5.json').read_text()) == {
        'model_size': 'tiny224', 'label_dim': 5, 'fstride': 10, 'tstride': 10, 'input_fdim': 32,
        'input_tdim': 64,
        'labels': ['dog', 'cat'], 'mean': -4.25, 'std': 4.5, 'loss': 'BCE'}


def test_saving_leaves_the_checkpoint_and_its_json_and_nothing_else(tiny, tmp_path):
    save_checkpoint(tiny, tmp_path / 'model.pth')
    save_checkpoint(tiny, tmp_path / 'model.pth')
    assert sorted(os.listdir(tmp_path)) == ['model.json', 'model.pth']


@pytest.mark.parametrize('prefix', ['module.', ''])
@pytest.mark.parametrize('wrap', [lambda state: state, lambda state: {'model': state}],
                         ids=['bare', 'under-model'])
def test_a_checkpoint_loads_with_and_without_prefix(prefix, wrap, tiny, make_tiny, tmp_path):
    torch.save(wrap({prefix + name: value for name, value in tiny.state_dict().items()}),
               tmp_path / 'model.pth')
    fresh = make_tiny()
    load_checkpoint(fresh, tmp_path / 'model.pth')
    assert same_weights(fresh, tiny)


def test_a_published_file_loads_although_it_has_two_unused_heads(published, tiny, make_tiny,
                                                                 tmp_path):
    torch.save(published, tmp_path / 'model.pth')
    fresh = make_tiny()
    load_checkpoint(fresh, tmp_path / 'model.pth')
    assert same_weights(fresh, tiny)


@pytest.mark.parametrize('damage, expected', [
    (lambda state: state.pop('module.v.cls_token'), r'v\.cls_token is missing'),
    (lambda state: state.pop('module.mlp_head.1.bias'), r'mlp_head\.1\.bias is missing'),
    (lambda state: state.update({'module.v.blocks.12.norm1.bias': torch.zeros(192)}),
     r'v\.blocks\.12\.norm1\.bias is not known'),
    (lambda state: state.update({'optimizer': torch.zeros(1)}), 'optimizer is not known'),
    (lambda state: state.update({'module.mlp_head.1.weight': torch.zeros(527, 192)}),
     r'mlp_head\.1\.weight has shape \(527, 192\), expected \(5, 192\)'),
    (lambda state: state.update({'module.v.pos_embed': torch.zeros(1, 1214, 192)}),
     r'v\.pos_embed has shape \(1, 1214, 192\), expected \(1, 12, 192\)'),
], ids=['missing', 'missing-head', 'thirteenth-block', 'unknown', 'other-classes', 'other-input'])
def test_a_checkpoint_that_does_not_fit_is_refused_by_file_and_entry(damage, expected, published,
                                                                     tiny, tmp_path):
    damage(published)
    torch.save(published, tmp_path / 'model.pth')
    with pytest.raises(WeightsError, match=expected) as error:
        load_checkpoint(tiny, tmp_path / 'model.pth')
    assert str(tmp_path / 'model.pth') in str(error.value)


def test_a_refused_checkpoint_leaves_the_model_as_it_was(published, make_tiny, tmp_path):
    model = make_tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.save({**published, 'unknown': torch.zeros(1)}, tmp_path / 'model.pth')
    with pytest.raises(WeightsError):
        load_checkpoint(model, tmp_path / 'model.pth')
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def saved(state, zipped=True):
    file = io.BytesIO()
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def refused(path):
    """Return the message with which a file is refused."""
    with pytest.raises(WeightsError) as error:
        read_state_dict(path)
    return str(error.value)


@pytest.mark.filterwarnings('ignore:.*pickle')
@pytest.mark.parametrize('kept', [0, 25, 30, 1000, 5000, -1])
@pytest.mark.parametrize('form', ['.pth', 'legacy.pth', '.safetensors'])
def test_a_truncated_checkpoint_is_refused_by_name(form, kept, tmp_path):
    path = tmp_path / f'model{form}'
    state = {'module.v.cls_token': torch.rand(1, 1, 192),
             'module.v.pos_embed': torch.rand(1, 12, 192)}
    content = save(state) if form == '.safetensors' else saved(state, zipped=form == '.pth')
    path.write_bytes(content[:kept])
    assert f'{path} is not a readable checkpoint' in refused(path)


@pytest.mark.filterwarnings('ignore:.*pickle')
@pytest.mark.parametrize('content', [
    b'<!DOCTYPE html>\n<html lang="en">\n', b'{"error": "not found"}\n', b'hello world\n',
    b'epoch,loss\n1,0.5\n',
    b'a page about something\n', b'try again later\n', b'error: file not found\n',
    b'service unavailable\n',
    b'RIFF\x24\x00\x00\x00WAVEfmt ', b'PK\x03\x04', b'\x00' * 100, b'\x80\x02}q\x00.',
])
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_a_file_of_another_kind_is_refused_by_name(content, suffix, tmp_path):
    path = tmp_path / f'model{suffix}'
    path.write_bytes(content)
    assert str(path) in refused(path)


@pytest.mark.parametrize('value', [torch.zeros(2), [1, 2], {}, {'model': {}},
                                   {'state': {}, 'param_groups': []},
                                   {'epoch': 3, 'weight': torch.zeros(2)}, {0: torch.zeros(2)}],
                         ids=['tensor', 'list', 'empty', 'empty-model', 'optimizer', 'mixed',
                              'numbered'])
def test_a_checkpoint_of_something_else_is_refused_by_name(value, tmp_path):
    torch.save(value, tmp_path / 'model.pth')
    assert f'{tmp_path / "model.pth"} holds no state dict' in refused(tmp_path / 'model.pth')


class Code:
    """Unpickling it runs a command: what an attacker would hide in a checkpoint."""

    def __init__(self, function, argument):
        self.call = function, (argument,)

    def __reduce__(self):
        return self.call


@pytest.mark.filterwarnings('ignore:.*pickle')
@pytest.mark.parametrize('write', [pickle.dumps, saved, lambda state: saved(state, zipped=False)],
                         ids=['pickle', 'zip', 'legacy'])
@pytest.mark.parametrize('function', [os.system, exec])
def test_code_in_a_checkpoint_is_refused_and_not_run(write, function, tmp_path):
    path, trace = tmp_path / 'model.pth', tmp_path / 'trace'
    command = f'touch {trace}' if function is os.system else f'open({str(trace)!r}, "w")'
    path.write_bytes(write({'module.v.cls_token': Code(function, command)}))
    assert str(path) in refused(path)
    assert not trace.exists()


@pytest.mark.parametrize('name', ['nowhere.pth', 'nowhere.safetensors'])
def test_a_checkpoint_that_does_not_exist_is_refused_by_name(name, tmp_path):
    assert refused(tmp_path / name) == f'{tmp_path / name} does not exist'


@pytest.fixture(scope='module')
def make_hub_model():
    """Build a tiny ASTForAudioClassification of transformers with weights of golden.py."""
    transformers = pytest.importorskip('transformers')

    def make(**settings):
        model = golden.fill(transformers.ASTForAudioClassification(transformers.ASTConfig(
            hidden_size=192, num_attention_heads=3, intermediate_size=768, num_hidden_layers=12,
            num_labels=5,
            layer_norm_eps=1e-6, **settings))).eval()
        return model
    return make


@pytest.fixture(scope='module')
def hub_model(make_hub_model, tmp_path_factory):
    """(one for 64 frames of 32 mel bins, the model.safetensors that transformers writes for it)."""
    model = make_hub_model(max_length=64, num_mel_bins=32, frequency_stride=10, time_stride=10)
    folder = tmp_path_factory.mktemp('hub')
    model.save_pretrained(folder)
    return model, folder / 'model.safetensors'


def test_weights_from_transformers_give_the_logits_of_transformers(hub_model, make_tiny):
    theirs, path = hub_model
    ours, x = make_tiny(), golden.spectrogram('transformers', 3, 64, 32)
    load_checkpoint(ours, path)
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs(x).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize('entry', [
    'audio_spectrogram_transformer.embeddings.cls_token',
    'audio_spectrogram_transformer.encoder.layer.3.intermediate.dense.bias',
    'audio_spectrogram_transformer.encoder.layer.3.attention.attention.query.weight',
    'audio_spectrogram_transformer.encoder.layer.3.attention.attention.key.weight',
    'audio_spectrogram_transformer.encoder.layer.3.attention.attention.value.bias',
    'classifier.dense.weight',
])
def test_weights_from_transformers_that_lack_an_entry_are_refused_by_name(entry, hub_model, tiny,
                                                                          tmp_path):
    path = tmp_path / 'model.safetensors'
    save_file({name: value for name, value in load_file(hub_model[1]).items() if name != entry},
              path)
    with pytest.raises(WeightsError, match='is missing') as error:
        load_checkpoint(tiny, path)
    assert str(path) in str(error.value)


def test_weights_from_transformers_with_an_unknown_entry_are_refused_by_name(hub_model, tiny,
                                                                             tmp_path):
    path = tmp_path / 'model.safetensors'
    extra = 'audio_spectrogram_transformer.encoder.layer.3.attention.attention.rotary.weight'
    save_file({**load_file(hub_model[1]), extra: torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r'attention\.rotary\.weight.* is not known') as error:
        load_checkpoint(tiny, path)
    assert str(path) in str(error.value)


def save_published(model, path):
    """Write a model as the authors did: the weights alone, under a name that tells the strides."""
    torch.save({f'module.{name}': value for name, value in model.state_dict().items()}, path)
    return path


@pytest.mark.parametrize('stride, f, t', [(10, 12, 101), (12, 10, 85), (14, 9, 73), (16, 8, 64)])
def test_a_published_checkpoint_tells_its_strides_by_its_name(stride, f, t, make_tiny, tmp_path):
    model = make_tiny(fstride=stride, tstride=stride, input_fdim=128, input_tdim=1024)
    path = save_published(model, tmp_path / f'audioset_{stride}_{stride}_0.4467.pth')
    loaded, description = load_model(path)
    assert loaded.grid == (f, t) and same_weights(loaded, model) and not loaded.training
    assert description['mean'] == -4.2677393 and description['loss'] == 'BCE'


def test_the_published_speech_commands_checkpoint_has_128_frames(make_tiny, tmp_path):
    model = make_tiny(input_fdim=128, input_tdim=128, label_dim=35)
    path = save_published(model, tmp_path / 'speechcommands_10_10_0.9812.pth')
    loaded, description = load_model(path)
    assert loaded.grid == (12, 12) and description['mean'] == -6.845978


def test_a_saved_checkpoint_tells_all_about_itself(make_tiny, tmp_path):
    labels = {'mids': ['a', 'b'], 'names': ['A', 'B']}
    model = make_tiny(fstride=16, tstride=12, label_dim=2)
    save_checkpoint(model, tmp_path / 'best.pth', labels=labels, mean=-1.5, std=2.5, loss='CE',
                    dataset='mine')
    loaded, description = load_model(tmp_path / 'best.pth')
    assert loaded.config == model.config and same_weights(loaded, model)
    assert (description['labels'], description['mean'], description['loss']) == (labels, -1.5, 'CE')


def test_a_folder_of_transformers_gives_its_logits_and_labels(hub_model):
    theirs, path = hub_model
    ours, description = load_model(path.parent)
    x = golden.spectrogram('transformers', 3, 64, 32)
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs(x).logits, rtol=0, atol=1e-4)
    assert description['labels']['names'] == [f'LABEL_{i}' for i in range(5)]


@pytest.mark.parametrize('stride', [10, 12, 14, 16])
def test_both_published_layouts_of_every_stride_give_the_logits_of_transformers(stride,
                                                                                make_hub_model,
                                                                                tmp_path):
    theirs = make_hub_model(max_length=1024, num_mel_bins=128, frequency_stride=stride,
                            time_stride=stride)
    theirs.save_pretrained(tmp_path / 'hub')
    state = read_state_dict(tmp_path / 'hub' / 'model.safetensors')
    path = tmp_path / f'audioset_{stride}_{stride}_0.4467.pth'
    heads = {'v.head.weight': torch.zeros(1000, 192), 'v.head_dist.weight': torch.zeros(1000, 192)}
    torch.save({f'module.{name}': value for name, value in {**state, **heads}.items()}, path)
    x = golden.spectrogram('strides', 2, 1024, 128)
    with torch.no_grad():
        expected = theirs(x).logits
        for source in (path, tmp_path / 'hub'):
            assert torch.allclose(load_model(source)[0](x), expected, rtol=0, atol=1e-4)


def test_settings_help_out_where_a_checkpoint_does_not_say_them(make_tiny, tmp_path):
    path = save_published(make_tiny(fstride=16, input_fdim=64), tmp_path / 'mine.pth')
    with pytest.raises(WeightsError, match='--fstride and --tstride'):
        load_model(path)
    with pytest.raises(WeightsError, match=r'mine\.pth has a positional embedding of 22 x 192, '
                                           r'but strides \[10, 10\]'):
        load_model(path, fstride=10, tstride=10, input_fdim=64, input_tdim=64)
    loaded, _ = load_model(path, fstride=16, tstride=10, input_fdim=64, input_tdim=64)
    assert loaded.config.fstride == 16


def test_a_checkpoint_that_is_no_ast_is_refused(tmp_path):
    torch.save({'weight': torch.zeros(1)}, tmp_path / 'audioset_10_10_x.pth')
    with pytest.raises(WeightsError, match='is no AST: .*v.pos_embed.* is missing'):
        load_model(tmp_path / 'audioset_10_10_x.pth')


def test_embeddings_of_a_dimension_that_no_size_has_are_refused(tiny, tmp_path):
    torch.save({**tiny.state_dict(), 'v.pos_embed': torch.zeros(1, 12, 200)}, tmp_path / 'a.pth')
    with pytest.raises(WeightsError, match='200 dimensions, .* 192, 384, 768.*into a.json'):
        load_model(tmp_path / 'a.pth', fstride=10, tstride=10)


def test_a_broken_description_is_named(tiny, tmp_path):
    save_checkpoint(tiny, tmp_path / 'a.pth')
    (tmp_path / 'a.json').write_text('{')
    with pytest.raises(WeightsError, match='a.json describes a checkpoint, but is no JSON'):
        load_model(tmp_path / 'a.pth')


def test_checkpoints_of_different_models_have_no_mean(make_tiny, tmp_path):
    for i, dim in enumerate((5, 6)):
        save_checkpoint(make_tiny(label_dim=dim), tmp_path / f'{i}.pth')
    with pytest.raises(WeightsError, match='1.pth and .*0.pth are checkpoints of different models'):
        mean_state_dict([tmp_path / '0.pth', tmp_path / '1.pth'])


def test_means_of_checkpoints_are_summed_without_loss(tmp_path):
    values = [1e8, 1.0, -1e8, 3.0]
    for i, value in enumerate(values):
        torch.save({'module.w': torch.tensor([value])}, tmp_path / f'{i}.pth')
    assert mean_state_dict([tmp_path / f'{i}.pth' for i in range(4)])['w'].tolist() == [1.0]
