"""Checkpoints as people have them: prefixes, dicts around them, names of transformers."""
import argparse
import collections
import itertools
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import golden
from models import (
    ASTModel,
    WeightsError,
    load_checkpoint,
    load_model,
    mean_state_dict,
    read_state_dict,
    save_checkpoint,
)

SIZES = {'fstride': 10, 'tstride': 10, 'input_fdim': 32, 'input_tdim': 64}
SAID = {**SIZES, 'mean': 0.0, 'std': 1.0, 'loss': 'BCE'}


@pytest.fixture(scope='module')
def tiny(make_golden):
    """A tiny model that tests read and leave as it is."""
    return make_golden()


def same_weights(model, other):
    mine, theirs = model.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(value, theirs[name])
                                                for name, value in mine.items())


def prefixed(state, prefix):
    return {prefix + name: value for name, value in state.items()}


def refused(value, path):
    """Save a value; return the message with which it is refused as a checkpoint."""
    torch.save(value, path)
    with pytest.raises(WeightsError) as error:
        load_model(path, **SIZES)
    said = str(error.value)
    assert said.startswith(str(path)) and '\n' not in said
    return said


CHAINS = [''.join(chain) for length in range(4)
          for chain in itertools.permutations(['module.', '_orig_mod.', 'model.'], length)]


@pytest.mark.parametrize('prefix', [*CHAINS, 'model.model.', 'net.ast.', 'audio_model.module.',
                                    'module._fsdp_wrapped_module.'])
def test_every_chain_of_prefixes_is_taken_off(prefix, tiny, tmp_path):
    torch.save(prefixed(tiny.state_dict(), prefix), tmp_path / 'a.pth')
    assert same_weights(load_model(tmp_path / 'a.pth', **SAID)[0], tiny)


NESTINGS = [keys for length in range(1, 4)
            for keys in itertools.permutations(['state_dict', 'model', 'checkpoint'], length)]


@pytest.mark.parametrize('keys', [*NESTINGS, ('model_state_dict',), ('module',), ('net',),
                                  ('audio_model',)], ids='/'.join)
def test_every_nesting_of_dicts_is_looked_into(keys, tiny, tmp_path):
    value = prefixed(tiny.state_dict(), 'model._orig_mod.')
    for key in reversed(keys):
        value = {'epoch': 3, key: value, 'lr': [0.1], 'loss': torch.tensor(0.5)}
    torch.save(value, tmp_path / 'a.pth')
    assert same_weights(load_model(tmp_path / 'a.pth', **SAID)[0], tiny)


def test_a_checkpoint_of_lightning_loads(tiny, tmp_path):
    weights = prefixed(tiny.state_dict(), 'model.')
    optimizer = torch.optim.Adam(tiny.parameters())
    torch.save({'epoch': 1, 'global_step': 10, 'pytorch-lightning_version': '2.5.0',
                'state_dict': collections.OrderedDict(weights),
                'loops': {'fit_loop': {'state': {}}},
                'callbacks': {}, 'optimizer_states': [optimizer.state_dict()], 'lr_schedulers': [],
                'hparams_name': 'kwargs', 'hyper_parameters': {'lr': 1e-4}}, tmp_path / 'a.ckpt')
    assert same_weights(load_model(tmp_path / 'a.ckpt', **SAID)[0], tiny)


@pytest.mark.parametrize('wrap', [
    lambda model: torch.compile(model), lambda model: nn.DataParallel(torch.compile(model)),
    lambda model: torch.compile(nn.DataParallel(model)),
    lambda model: nn.ModuleDict({'ast': model})],
    ids=['compiled', 'parallel-compiled', 'compiled-parallel', 'within-a-module'])
def test_what_wrapped_models_save_loads(wrap, make_tiny, tmp_path):
    model = make_tiny()
    torch.save(wrap(model).state_dict(), tmp_path / 'a.pth')
    assert same_weights(load_model(tmp_path / 'a.pth', **SAID)[0], model)


def test_a_model_with_compiled_blocks_loads(make_tiny, tmp_path):
    model, plain = make_tiny(), make_tiny()
    plain.load_state_dict(model.state_dict())
    for i, block in enumerate(model.v.blocks):
        model.v.blocks[i] = torch.compile(block)
    assert 'v.blocks.0._orig_mod.norm1.bias' in model.state_dict()
    torch.save(model.state_dict(), tmp_path / 'a.pth')
    assert same_weights(load_model(tmp_path / 'a.pth', **SAID)[0], plain)


@pytest.mark.parametrize('prefix', ['', 'model.', 'module._orig_mod.'])
def test_the_four_unused_heads_are_dropped_behind_any_prefix_and_nothing_else(prefix, tiny,
                                                                              tmp_path):
    heads = {f'v.{head}.{leaf}': torch.zeros(1000, 192)[:, 0 if leaf == 'bias' else slice(None)]
             for head in ('head', 'head_dist') for leaf in ('weight', 'bias')}
    torch.save(prefixed({**tiny.state_dict(), **heads}, prefix), tmp_path / 'a.pth')
    assert same_weights(load_model(tmp_path / 'a.pth', **SAID)[0], tiny)
    said = refused(prefixed({**tiny.state_dict(), 'v.head.scale': torch.zeros(2)}, prefix),
                   tmp_path / 'b.pth')
    assert 'v.head.scale is not known' in said


def test_whatever_reads_weights_takes_them_off(tiny, make_tiny, tmp_path):
    torch.save({'state_dict': prefixed(tiny.state_dict(), 'model.')}, tmp_path / 'a.ckpt')
    fresh, mean = make_tiny(), make_tiny()
    load_checkpoint(fresh, tmp_path / 'a.ckpt')
    mean.load_state_dict(mean_state_dict([tmp_path / 'a.ckpt']))
    assert same_weights(fresh, tiny) and same_weights(mean, tiny)


def test_something_beside_the_model_is_refused_by_key_and_prefix(tiny, tmp_path):
    state = {**prefixed(tiny.state_dict(), 'model.'), 'loss_fn.weight': torch.ones(5)}
    said = refused({'state_dict': state}, tmp_path / 'a.ckpt')
    assert 'under the prefix model.' in said and 'loss_fn.weight beside it' in said


def test_a_head_elsewhere_is_not_put_onto_the_model(tiny, tmp_path):
    state = {name if name.startswith('mlp_head') else f'backbone.{name}': value
             for name, value in tiny.state_dict().items()}
    said = refused(state, tmp_path / 'a.pth')
    assert 'under the prefix backbone.' in said and 'mlp_head.0.weight beside it' in said


@pytest.mark.parametrize('prefixes', [('student.', 'teacher.'), ('', 'ema.'),
                                      ('model.', 'model.ema.')])
def test_two_models_in_one_state_dict_are_refused_by_their_prefixes(prefixes, tiny, tmp_path):
    said = refused({name: value for prefix in prefixes
                    for name, value in prefixed(tiny.state_dict(), prefix).items()},
                    tmp_path / 'a.pth')
    assert 'more than one AST' in said
    for prefix in prefixes:
        assert (f'the prefix {prefix}' if prefix else 'without a prefix') in said


@pytest.mark.parametrize('keys', [('model', 'model_ema'), ('state_dict', 'state_dict_ema'),
                                  ('model', 'teacher')])
def test_two_models_in_two_dicts_are_refused_by_their_keys(keys, tiny, tmp_path):
    other = {name: value + 1 for name, value in tiny.state_dict().items()}
    said = refused({keys[0]: tiny.state_dict(), keys[1]: other}, tmp_path / 'a.pth')
    assert f'more than one model, under {keys[0]} and under {keys[1]}' in said


def test_weights_beside_a_nested_model_are_refused_by_name(tiny, tmp_path):
    said = refused({'model': tiny.state_dict(), 'projector.weight': torch.ones(2)},
                   tmp_path / 'a.pth')
    assert 'a model under model' in said and 'projector.weight beside it' in said


def test_what_holds_no_model_is_refused_by_its_keys(tmp_path):
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(2))]).state_dict()
    said = refused({'optimizer': optimizer, 'epoch': 3}, tmp_path / 'a.pth')
    assert 'holds no state dict' in said and 'optimizer, epoch are no tensors' in said


def test_another_model_is_refused_by_an_entry_of_it(tmp_path):
    said = refused({'conv1.weight': torch.zeros(2), 'fc.bias': torch.zeros(3)}, tmp_path / 'a.pth')
    assert 'is no AST: v.pos_embed is missing; its first entry is conv1.weight' in said


def test_pickled_arguments_are_refused_as_ever(tiny, tmp_path):
    said = refused({'model': tiny.state_dict(), 'args': argparse.Namespace(lr=1)},
                   tmp_path / 'a.pth')
    assert 'it holds code (argparse.Namespace), which was not run' in said


@pytest.fixture(scope='module')
def hub_model():
    """A tiny ASTForAudioClassification of transformers, as it comes."""
    transformers = pytest.importorskip('transformers')
    return golden.fill(transformers.ASTForAudioClassification(transformers.ASTConfig(
        hidden_size=192, num_attention_heads=3, intermediate_size=768, num_labels=5, max_length=64,
        num_mel_bins=32))).eval()


def logits_agree(ours, theirs):
    x = golden.spectrogram('people', 3, 64, 32)
    with torch.no_grad():
        return torch.allclose(ours(x), theirs(x).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize('prefix', ['', 'model.', 'module._orig_mod.'])
@pytest.mark.parametrize('names', ['in memory', 'on disk'])
def test_both_names_of_transformers_load_behind_any_prefix(names, prefix, hub_model, tmp_path):
    hub_model.save_pretrained(tmp_path / 'hub')
    state = (hub_model.state_dict() if names == 'in memory'
             else load_file(tmp_path / 'hub' / 'model.safetensors'))
    torch.save({'state_dict': prefixed(state, prefix)}, tmp_path / 'a.pth')
    assert logits_agree(load_model(tmp_path / 'a.pth', **SAID)[0], hub_model)


def test_the_eps_of_transformers_is_assumed_of_weights_without_a_config(hub_model, make_tiny,
                                                                        tmp_path,
                                                                       caplog):
    torch.save(hub_model.state_dict(), tmp_path / 'a.pth')
    loaded, description = load_model(tmp_path / 'a.pth', **SAID)
    assert loaded.v.norm.eps == description['layer_norm_eps'] == 1e-12
    assert 'assumed: layer_norm_eps 1e-12 (layer_norm_eps in a .json beside it)' in assumed(caplog)
    caplog.clear()
    save_checkpoint(loaded, tmp_path / 'b.pth', **description)
    assert load_model(tmp_path / 'b.pth')[0].v.norm.eps == 1e-12 and not caplog.records


def test_the_state_dict_of_transformers_beside_its_config_is_described_by_it(hub_model, tmp_path,
                                                                             caplog):
    hub_model.save_pretrained(tmp_path)
    (tmp_path / 'model.safetensors').unlink()
    torch.save(hub_model.state_dict(), tmp_path / 'mine.pth')
    loaded, description = load_model(tmp_path / 'mine.pth')
    assert logits_agree(loaded, hub_model)
    assert description['layer_norm_eps'] == 1e-12 and description['loss'] == 'CE'


def test_an_encoder_of_transformers_without_a_classifier_is_refused_by_name(hub_model, tmp_path):
    said = refused(hub_model.audio_spectrogram_transformer.state_dict(), tmp_path / 'a.pth')
    assert 'embeddings.distillation_token' in said and 'ASTForAudioClassification' in said


def test_loading_sets_every_value_and_initialises_none(tiny, tmp_path, monkeypatch):
    save_checkpoint(tiny, tmp_path / 'a.pth', **SAID)
    generator = torch.get_rng_state()
    loaded, _ = load_model(tmp_path / 'a.pth')
    assert same_weights(loaded, tiny) and torch.equal(torch.get_rng_state(), generator)
    assert all(value.device.type == 'cpu' and value.dtype == torch.float32
               and value.requires_grad and value.is_contiguous() for value in loaded.parameters())
    x = golden.spectrogram('people', 2, 64, 32)
    with torch.no_grad():
        assert torch.equal(loaded(x), tiny(x))


def test_every_tensor_of_a_model_is_in_its_state_dict(tiny):
    """load_model builds without values: a buffer that no checkpoint holds would keep none."""
    tensors = [*tiny.parameters(), *tiny.buffers()]
    assert {value.data_ptr() for value in tensors} == {
        value.data_ptr() for value in tiny.state_dict().values()}


def test_half_precision_weights_become_float32(tiny, tmp_path):
    torch.save({name: value.half() for name, value in tiny.state_dict().items()},
               tmp_path / 'a.pth')
    loaded, _ = load_model(tmp_path / 'a.pth', **SAID)
    assert all(torch.equal(value, tiny.state_dict()[name].half().float())
               for name, value in loaded.state_dict().items())


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_a_checkpoint_is_written_in_the_format_of_its_suffix_and_read_back_bit_for_bit(
        suffix, tiny, make_tiny, tmp_path):
    path = tmp_path / f'best{suffix}'
    save_checkpoint(tiny, path, mean=-1.5, std=2.5, loss='CE',
                    labels={'mids': ['a'] * 5, 'names': []})
    loaded, description = load_model(path)
    fresh = make_tiny()
    load_checkpoint(fresh, path)
    assert same_weights(loaded, tiny) and same_weights(fresh, tiny)
    assert (description['mean'], description['loss'], description['assumed']) == (-1.5, 'CE', {})
    if suffix == '.safetensors':
        assert list(load_file(path)) == sorted(f'module.{name}' for name in tiny.state_dict())
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(['best.json', path.name])


def test_safetensors_are_written_of_weights_that_do_not_lie_in_order(tiny, make_tiny, tmp_path):
    model = make_tiny()
    model.mlp_head[1].weight = nn.Parameter(torch.rand(192, 5).T)
    save_checkpoint(model, tmp_path / 'a.safetensors')
    assert same_weights(load_model(tmp_path / 'a.safetensors', **SAID)[0], model)


def assumed(caplog):
    """The one line about what was assumed."""
    [line] = [record.getMessage() for record in caplog.records if 'assumed' in record.getMessage()]
    return line


def test_one_line_says_all_that_was_assumed_and_which_options_set_it(tiny, tmp_path, caplog):
    model = ASTModel(5, imagenet_pretrain=False, model_size='tiny224', verbose=False)
    torch.save(prefixed(model.state_dict(), 'module.'), tmp_path / 'mine.pth')
    _, description = load_model(tmp_path / 'mine.pth', fstride=10, tstride=10)
    line = assumed(caplog)
    assert line.startswith(str(tmp_path / 'mine.pth'))
    for part in ('loss BCE (sigmoid scores) (--loss)', 'mean -4.2677393 (--dataset_mean)',
                 'std 4.5689974 (--dataset_std)', 'input_fdim 128 (--num_mel_bins)',
                 'input_tdim 1024 (--audio_length)'):
        assert part in line
    assert 'stride' not in line
    assert list(description['assumed']) == ['loss', 'mean', 'std', 'input_fdim', 'input_tdim',
                                            'model_size']


@pytest.mark.parametrize('more', [{}, {'mean': 0.0, 'std': 1.0, 'loss': 'BCE'}],
                         ids=['nothing', 'all_else'])
def test_the_size_of_a_checkpoint_without_a_description_is_said_to_be_assumed(more, tmp_path,
                                                                              caplog):
    # Its weights are those of an AST, but its head classifies the mean of the patches.
    model = ASTModel(5, 16, 16, 128, 64, imagenet_pretrain=False, model_size='ssast_tiny',
                     verbose=False)
    torch.save(model.state_dict(), tmp_path / 'mine.pth')
    given = {'fstride': 16, 'tstride': 16, 'input_fdim': 128, 'input_tdim': 64, **more}
    _, description = load_model(tmp_path / 'mine.pth', **given)
    assert 'model_size tiny224, whose head classifies [CLS] and [DIST]' in assumed(caplog)
    assert description['assumed']['model_size'] == 'tiny224'
    caplog.clear()
    loaded, description = load_model(tmp_path / 'mine.pth', **given, model_size='ssast_tiny')
    assert loaded.num_class_tokens == 0 and 'model_size' not in description['assumed']
    assert 'model_size' not in caplog.text and bool(caplog.records) == (not more)


@pytest.mark.parametrize('given, left', [
    ({}, ['loss', 'mean', 'std', 'model_size']),
    ({'loss': 'CE'}, ['mean', 'std', 'model_size']),
    ({'mean': -1.0, 'std': 2.0}, ['loss', 'model_size']),
    ({'mean': -1.0, 'std': 2.0, 'loss': 'CE'}, ['model_size']),
    ({'mean': -1.0, 'std': 2.0, 'loss': 'CE', 'model_size': 'tiny224'}, [])])
def test_what_is_given_is_taken_and_not_assumed(given, left, tiny, tmp_path, caplog):
    torch.save(tiny.state_dict(), tmp_path / 'mine.pth')
    _, description = load_model(tmp_path / 'mine.pth', **SIZES, **given)
    assert given.items() <= description.items() and list(description['assumed']) == left
    assert len(caplog.records) == bool(left)


def test_a_checkpoint_that_describes_itself_is_loaded_without_a_word(tiny, tmp_path, caplog):
    save_checkpoint(tiny, tmp_path / 'a.pth', mean=-1.0, std=2.0, loss='CE')
    load_model(tmp_path / 'a.pth')
    assert not caplog.records


def test_a_description_without_statistics_and_loss_says_so(tiny, tmp_path, caplog):
    save_checkpoint(tiny, tmp_path / 'a.pth')
    _, description = load_model(tmp_path / 'a.pth')
    assert list(description['assumed']) == ['loss', 'mean', 'std']
    assert '--dataset_mean' in assumed(caplog)


def test_a_published_name_needs_no_word_and_one_like_it_does(make_tiny, tmp_path, caplog):
    model = make_tiny(fstride=12, tstride=12, input_fdim=128, input_tdim=1024)
    for name in ('audioset_12_12_0.4467.pth', 'audioset_12_12_mine.pth'):
        torch.save(prefixed(model.state_dict(), 'module.'), tmp_path / name)
    assert load_model(tmp_path / 'audioset_12_12_0.4467.pth')[1]['assumed'] == {}
    assert not caplog.records
    description = load_model(tmp_path / 'audioset_12_12_mine.pth')[1]
    assert (description['fstride'], description['dataset']) == (12, 'audioset')
    line = assumed(caplog)
    assert 'its name says audioset, strides 12 x 12' in line and 'loss BCE' in line


def test_what_was_assumed_is_not_written_as_if_it_were_known(tiny, tmp_path):
    torch.save(tiny.state_dict(), tmp_path / 'mine.pth')
    model, description = load_model(tmp_path / 'mine.pth', **SIZES, loss='CE')
    save_checkpoint(model, tmp_path / 'again.safetensors', **description)
    written = json.loads((tmp_path / 'again.json').read_text())
    assert written == {**vars(model.config), 'loss': 'CE'}
    assert load_model(tmp_path / 'again.safetensors')[1]['assumed'].keys() == {'mean', 'std'}


def test_another_loss_is_refused(tiny, tmp_path):
    with pytest.raises(ValueError, match="BCE or CE, got 'MSE'"):
        load_model(tmp_path / 'a.pth', loss='MSE')


def test_a_file_of_safetensors_with_a_prefix_is_read(tiny, tmp_path):
    save_file(prefixed(tiny.state_dict(), 'model.module.'), tmp_path / 'a.safetensors')
    assert read_state_dict(tmp_path / 'a.safetensors').keys() == tiny.state_dict().keys()


def test_weights_load_into_a_model_whatever_their_description_says_of_the_rest(tiny, make_tiny,
                                                                              tmp_path):
    save_checkpoint(tiny, tmp_path / 'a.pth', mean='unknown', std=0)
    own = make_tiny()
    load_checkpoint(own, tmp_path / 'a.pth')
    assert same_weights(own, tiny)
    (tmp_path / 'a.json').write_text('{"layer_norm_eps": "small"}')
    with pytest.raises(WeightsError, match="a.json says layer_norm_eps 'small'"):
        load_checkpoint(own, tmp_path / 'a.pth')
