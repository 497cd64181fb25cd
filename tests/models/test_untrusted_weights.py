"""Weights from anywhere: attacks and damage are refused by the file's name, and run nothing."""
import json
import os
import pickle
import struct
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from models import (
    WeightsError,
    load_checkpoint,
    load_model,
    mean_state_dict,
    read_state_dict,
    save_checkpoint,
)

KEY = 'module.v.cls_token'


class Code:
    """Unpickling it calls a function: what an attacker hides in a checkpoint."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture(scope='module')
def tiny(make_tiny):
    """A tiny model that tests read and leave as it is."""
    return make_tiny()


@pytest.fixture(scope='module')
def saved(tiny, tmp_path_factory):
    """A checkpoint of it, a file that tests read and leave as it is."""
    path = tmp_path_factory.mktemp('saved') / 'model.pth'
    save_checkpoint(tiny, path)
    return path


def refused(source, read=read_state_dict):
    """Return the message with which a source is refused."""
    with pytest.raises(WeightsError) as error:
        read(source)
    return str(error.value)


def zipped_pickle(path, pickled):
    """Write a checkpoint as torch does, its pickle another one."""
    torch.save({KEY: torch.zeros(2)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, 'w') as archive:
        for name, data in members.items():
            archive.writestr(name, pickled if name.endswith('data.pkl') else data)


def nested(path, code):
    """Hide a checkpoint with code as a byte string within a checkpoint."""
    torch.save({KEY: torch.zeros(2), 'extra': pickle.dumps(code)}, path)


def pickled_whole(path, code):
    """A pickle without torch around it."""
    path.write_bytes(pickle.dumps({KEY: code}, protocol=2))


FORMS = {
    'zip': lambda path, code: torch.save({KEY: code}, path),
    'zip that is only a pickle':
        lambda path, code: zipped_pickle(path, pickle.dumps(code, protocol=2)),
    'under model':
        lambda path, code: torch.save({'model': {KEY: torch.zeros(2)}, 'args': code}, path),
    'before zip':
        lambda path, code: torch.save({KEY: code}, path, _use_new_zipfile_serialization=False),
    'pickle': pickled_whole}


@pytest.mark.filterwarnings('ignore:.*pickle')
@pytest.mark.parametrize('name', ['model.pth', 'pytorch_model.bin'])
@pytest.mark.parametrize('write', FORMS.values(), ids=FORMS)
def test_code_is_named_and_not_run(write, name, tmp_path):
    write(tmp_path / name, Code(os.system, f'touch {tmp_path / "trace"}'))
    said = refused(tmp_path / name)
    assert str(tmp_path / name) in said
    assert f'it holds code ({os.name}.system), which was not run' in said
    assert 'weights_only' not in said  # PyTorch's own words advise to load it without protection
    assert os.listdir(tmp_path) == [name]


def test_a_pickle_inside_a_checkpoint_is_never_opened(tmp_path):
    nested(tmp_path / 'model.pth', Code(os.system, f'touch {tmp_path / "trace"}'))
    assert 'holds no state dict' in refused(tmp_path / 'model.pth')
    assert os.listdir(tmp_path) == ['model.pth']


def test_code_in_a_folder_of_transformers_is_named_and_not_run(tmp_path):
    folder = tmp_path / 'hub'
    folder.mkdir()
    (folder / 'config.json').write_text('{}')
    torch.save({KEY: Code(os.system, f'touch {tmp_path / "trace"}')}, folder / 'pytorch_model.bin')
    assert str(folder / 'pytorch_model.bin') in refused(folder, load_model)
    assert os.listdir(tmp_path) == ['hub']


@pytest.mark.filterwarnings('ignore:.*torch.jit')
def test_a_compiled_program_is_refused(tmp_path):
    path = tmp_path / 'model.pth'
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), path)
    assert f'{path} is not a readable checkpoint' in refused(path)


def test_a_pickle_under_the_name_of_safetensors_is_not_unpickled(tmp_path):
    path = tmp_path / 'model.safetensors'
    path.write_bytes(pickle.dumps(Code(os.system, f'touch {tmp_path / "trace"}')))
    assert str(path) in refused(path)
    assert os.listdir(tmp_path) == ['model.safetensors']


def header(**entry):
    """The beginning of a safetensors file with one entry."""
    entry = {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8], **entry}
    text = json.dumps({'a': entry}).encode()
    return struct.pack('<Q', len(text)) + text


@pytest.mark.parametrize('content', [
    struct.pack('<Q', 2 ** 63) + b'{}', struct.pack('<Q', 10 ** 9) + b'{}',
    struct.pack('<Q', 2) + b'{]',
    header(), header(shape=[2 ** 62, 2 ** 62]) + bytes(8), header(shape=[10 ** 11]) + bytes(8),
    header(data_offsets=[0, 4 * 10 ** 11], shape=[10 ** 11]) + bytes(8),
    header(data_offsets=[8, 0]) + bytes(8),
    header(data_offsets=[-8, 0]) + bytes(8), header(dtype='OBJECT') + bytes(8),
    header() + bytes(1000),
], ids=['huge header', 'long header', 'no json', 'no data', 'overflow', 'huge shape', 'huge data',
        'backwards', 'before the data', 'unknown type', 'more data'])
def test_safetensors_with_a_wrong_header_are_refused_by_name(content, tmp_path):
    path = tmp_path / 'model.safetensors'
    path.write_bytes(content)
    assert f'{path} is not a readable checkpoint' in refused(path)


@pytest.mark.filterwarnings('ignore:TypedStorage')
@pytest.mark.parametrize('numbers', [5, 10 ** 11])
def test_a_tensor_that_is_said_to_be_larger_than_what_is_stored_is_refused(numbers, tmp_path):
    said = Code(torch._utils._rebuild_tensor_v2, torch.zeros(4).storage(), 0, (numbers,), (1,),
                False, {})
    path = tmp_path / 'model.pth'
    torch.save({KEY: said}, path)
    assert f'{path} is not a readable checkpoint' in refused(path)


@pytest.mark.parametrize('value, problem', [
    (torch.zeros(3, dtype=torch.complex64),
     'is no tensor of floating-point numbers (torch.complex64'),
    (torch.zeros(3, dtype=torch.int64), 'is no tensor of floating-point numbers (torch.int64'),
    (torch.tensor([1.0, float('nan')]), 'has NaN or infinite values'),
    (torch.tensor([1.0, float('-inf')], dtype=torch.bfloat16), 'has NaN or infinite values'),
    (torch.tensor([1e300], dtype=torch.float64), 'has NaN or infinite values'),  # in float32
], ids=['complex', 'integers', 'NaN', 'infinite', 'infinite in float32'])
def test_an_entry_that_is_no_tensor_of_finite_numbers_is_named(value, problem, tmp_path):
    torch.save({'module.v.norm.bias': torch.zeros(2), 'module.v.norm.weight': value},
               tmp_path / 'model.pth')
    said = refused(tmp_path / 'model.pth')
    assert str(tmp_path / 'model.pth') in said and f'v.norm.weight {problem}' in said


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize('read', [
    lambda tiny, path: load_checkpoint(tiny, path), lambda _, path: load_model(path),
    lambda _, path: mean_state_dict([path])], ids=['load', 'build', 'mean'])
def test_nan_weights_are_refused_by_name_whatever_wants_them(read, suffix, tiny, saved, tmp_path):
    state = read_state_dict(saved)
    state['v.blocks.3.norm1.weight'][7] = float('nan')
    path = tmp_path / f'audioset_10_10_x{suffix}'
    (torch.save if suffix == '.pth' else save_file)(state, path)
    said = refused(path, lambda path: read(tiny, path))
    assert str(path) in said and 'v.blocks.3.norm1.weight has NaN or infinite values' in said


def test_an_entry_under_two_names_is_refused(tmp_path):
    torch.save({'module.v.norm.bias': torch.zeros(2), 'v.norm.bias': torch.ones(2)},
               tmp_path / 'model.pth')
    assert 'v.norm.bias is there twice' in refused(tmp_path / 'model.pth')


@pytest.mark.parametrize('shape', [(), (5, 3)])
@pytest.mark.parametrize('entry', ['v.pos_embed', 'mlp_head.1.weight', 'mlp_head.1.bias',
                                   'v.patch_embed.proj.weight'])
def test_an_entry_of_another_shape_is_refused_by_name(entry, shape, saved, tmp_path):
    path = tmp_path / 'audioset_10_10_x.pth'
    torch.save({**read_state_dict(saved), entry: torch.zeros(shape)}, path)
    save_checkpoint_json(path, saved)
    said = refused(path, load_model)
    assert str(path) in said and (entry in said or 'positional embedding' in said)


def save_checkpoint_json(path, saved, **changes):
    """Put the description of a checkpoint beside another one, some of it changed."""
    description = json.loads(saved.with_suffix('.json').read_text())
    path.with_suffix('.json').write_text(json.dumps({**description, **changes}))


PREFIX = 'audio_spectrogram_transformer.encoder.layer.0.attention.attention'


@pytest.mark.parametrize('shape', [(), (3,), (3, 3)])
def test_query_key_and_value_that_do_not_go_together_are_refused_by_name(shape, tmp_path):
    path = tmp_path / 'model.safetensors'
    save_file({f'{PREFIX}.query.weight': torch.zeros(192, 192),
               f'{PREFIX}.value.weight': torch.zeros(192, 192),
               f'{PREFIX}.key.weight': torch.zeros(shape)}, path)
    assert f'{path} does not fit this model: ' in refused(path)


@pytest.mark.parametrize('changes, problem', [
    ({'fstride': '10'}, "fstride '10', expected a whole number"), ({'fstride': 0}, 'fstride'),
    ({'tstride': True}, 'tstride'), ({'tstride': 1.5}, 'tstride'),
    ({'input_fdim': None}, 'input_fdim'),
    ({'input_tdim': -64}, 'input_tdim'), ({'input_fdim': [32]}, 'input_fdim'),
    ({'mean': 'x'}, 'mean'),
    ({'mean': float('nan')}, 'mean'), ({'std': 0}, 'std'),
    ({'std': float('inf')}, 'std'), ({'loss': 'os'}, 'loss'),
    ({'loss': {}}, 'loss'), ({'dataset': 3}, 'dataset'), ({'labels': 'a,b'}, 'labels'),
    ({'labels': {'mids': ['a'], 'names': [1]}}, 'labels'), ({'label_dim': 1e9}, 'label_dim'),
    ({'model_size': ['tiny224']}, 'model_size'),
    ({'model_size': '__import__("os").system("true")'}, 'model_size must be one of'),
])
def test_a_description_that_says_what_cannot_be_is_refused_by_name(changes, problem, saved,
                                                                   tmp_path):
    path = tmp_path / 'model.pth'
    os.link(saved, path)
    save_checkpoint_json(path, saved, **changes)
    said = refused(path, load_model)
    assert str(path.with_suffix('')) in said and problem in said


@pytest.mark.parametrize('text', ['[1, 2]', '3', 'null', '"text"', '{"fstride": 10', '', '\xff',
                                  '{"fstride": ' + '9' * 10_000 + '}'])
def test_a_description_that_is_no_json_object_is_refused_by_name(text, saved, tmp_path):
    os.link(saved, tmp_path / 'model.pth')
    (tmp_path / 'model.json').write_bytes(text.encode('latin-1'))
    said = refused(tmp_path / 'model.pth', load_model)
    assert f'{tmp_path / "model.json"} describes a checkpoint, but ' in said


def test_what_nobody_reads_in_a_description_has_no_effect(saved, tmp_path):
    os.link(saved, tmp_path / 'model.pth')
    save_checkpoint_json(tmp_path / 'model.pth', saved, imagenet_pretrain=True, __class__='x',
                         epoch=3, verbose='y')
    loaded, description = load_model(tmp_path / 'model.pth')
    assert loaded.config == load_model(saved)[0].config and description['epoch'] == 3


@pytest.mark.parametrize('config', [{'id2label': ['a']}, {'id2label': {'one': 'a'}},
                                    {'id2label': {'0': 3}},
                                    {'id2label': [5]}, {'id2label': [float('inf')]},
                                    {'id2label': {'Infinity': 'a'}},
                                    {'num_mel_bins': '128'}, {'max_length': None},
                                    {'frequency_stride': 0}])
def test_a_config_of_transformers_that_says_what_cannot_be_is_refused_by_name(config, saved,
                                                                              tmp_path):
    good = {'frequency_stride': 10, 'time_stride': 10, 'num_mel_bins': 32, 'max_length': 64}
    save_file(read_state_dict(saved), tmp_path / 'model.safetensors')
    (tmp_path / 'config.json').write_text(json.dumps({**good, **config}))
    assert str(tmp_path / 'config.json') in refused(tmp_path, load_model)
    (tmp_path / 'config.json').write_text(json.dumps(good))
    (tmp_path / 'preprocessor_config.json').write_text('{"std": 0}')
    assert 'preprocessor_config.json says std' in refused(tmp_path, load_model)


def test_weights_that_were_refused_once_are_good_without_the_damage(saved, tmp_path):
    """So that no test above passes for another reason."""
    save_file(read_state_dict(saved), tmp_path / 'model.safetensors')
    os.link(saved.with_suffix('.json'), tmp_path / 'model.json')
    load_model(tmp_path / 'model.safetensors')
    assert load_file(tmp_path / 'model.safetensors').keys() == read_state_dict(saved).keys()
