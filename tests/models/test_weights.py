"""The published weights: found under their names, wherever they lie, and asked for by name where they do not."""
import hashlib
import importlib.util
import json
import os
import shutil
import socket
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from http_server import Page
from models import WeightsError, load_model
from models.weights import PUBLISHED, WeightsFile, find_or_download, locate

DEIT_FILES = [
    ('deit_tiny_distilled_patch16_224', 'deit_tiny_distilled_patch16_224-b40b3cf7.pth'),
    ('deit_small_distilled_patch16_224', 'deit_small_distilled_patch16_224-649709d9.pth'),
    ('deit_base_distilled_patch16_224', 'deit_base_distilled_patch16_224-df68dfff.pth'),
    ('deit_base_distilled_patch16_384', 'deit_base_distilled_patch16_384-d0272ac0.pth'),
]


@pytest.fixture
def copied(root, tmp_path, monkeypatch):
    """models.weights of a copy of the repository, the working directory a folder with another pretrained_models."""
    shutil.copytree(root / 'src' / 'models', tmp_path / 'repository' / 'src' / 'models')
    (tmp_path / 'repository' / 'pretrained_models').mkdir()
    (tmp_path / 'elsewhere' / 'pretrained_models').mkdir(parents=True)
    monkeypatch.chdir(tmp_path / 'elsewhere')
    monkeypatch.delenv('TORCH_HOME', raising=False)
    package = tmp_path / 'repository' / 'src' / 'models'
    name = f'copy_{tmp_path.name}'
    spec = importlib.util.spec_from_file_location(name, package / '__init__.py',
                                                  submodule_search_locations=[str(package)])
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return sys.modules[f'{name}.weights']


@pytest.mark.parametrize('deit, name', DEIT_FILES)
def test_deit_weights_are_found_under_their_authors_names(deit, name, copied, torch_home):
    (torch_home / name).touch()
    assert copied.find_or_download(copied.deit_file(deit)) == torch_home / name


@pytest.mark.parametrize('name', ['audioset_10_10_0.4593.pth', 'audioset_10_10_0.4593.safetensors'])
def test_audioset_weights_are_found_in_both_formats(name, copied, torch_home):
    (torch_home / name).touch()
    assert copied.find_or_download(copied.AUDIOSET) == torch_home / name


def test_weights_are_found_in_the_repository_whatever_the_working_directory(copied, tmp_path):
    for place in ('repository', 'elsewhere'):
        (tmp_path / place / 'pretrained_models' / copied.AUDIOSET.name).touch()
    found = copied.find_or_download(copied.AUDIOSET)
    assert found == tmp_path / 'repository' / 'pretrained_models' / copied.AUDIOSET.name


def test_torch_home_comes_before_the_repository(copied, torch_home, tmp_path):
    for folder in (torch_home, tmp_path / 'repository' / 'pretrained_models'):
        (folder / copied.AUDIOSET.name).touch()
    assert copied.find_or_download(copied.AUDIOSET) == torch_home / copied.AUDIOSET.name


def test_weights_that_torch_home_lacks_are_found_in_the_repository(copied, torch_home, tmp_path):
    name = 'audioset_10_10_0.4593.safetensors'
    (tmp_path / 'repository' / 'pretrained_models' / name).touch()
    assert copied.find_or_download(copied.AUDIOSET) == tmp_path / 'repository' / 'pretrained_models' / name


@pytest.fixture
def unreachable(hub_offline, no_proxy):
    """Weights that no source delivers: nothing listens at the address, and the hub is switched off."""
    with socket.socket() as reserved:
        reserved.bind(('127.0.0.1', 0))  # bound, not listening: connections are refused
        yield WeightsFile('ensemble/some.pth', f'http://127.0.0.1:{reserved.getsockname()[1]}/some.pth?dl=1',
                          'nobody/nothing')


def test_unreachable_weights_say_what_to_get_from_where_and_where_to_put_it(unreachable, torch_home):
    with pytest.raises(WeightsError) as error:
        find_or_download(unreachable)
    for expected in (unreachable.url, 'https://huggingface.co/nobody/nothing/resolve/main/model.safetensors',
                     str(torch_home / 'ensemble' / 'some.pth'), str(torch_home / 'ensemble' / 'some.safetensors')):
        assert expected in str(error.value)


def test_unreachable_weights_say_why_each_source_failed(unreachable, torch_home):
    with pytest.raises(WeightsError, match=r'some\.pth\?dl=1: .*refused.*\n.*Hugging Face nobody/nothing: \w+'):
        find_or_download(unreachable)
    assert [name for _, _, names in os.walk(torch_home) for name in names] == ['some.pth.lock']


@pytest.mark.parametrize('name', ['ensemble/audioset_12_12_0.4467.pth', 'audioset_12_12_0.4467.pth',
                                  'audioset_12_12_0.4467'])
def test_a_published_checkpoint_is_located_by_its_name(name, torch_home):
    path = torch_home / 'ensemble' / 'audioset_12_12_0.4467.pth'
    path.parent.mkdir()
    path.touch()
    assert locate(name) == path


def test_one_of_an_ensemble_is_found_without_its_folder_too(torch_home):
    (torch_home / 'audioset_12_12_0.4467.pth').touch()
    assert locate('audioset_12_12_0.4467') == torch_home / 'audioset_12_12_0.4467.pth'


def test_the_published_checkpoints_are_nine_of_different_names_and_addresses():
    assert len({file.name for file in PUBLISHED}) == len({file.url for file in PUBLISHED}) == 9


def test_a_model_of_the_hub_is_located_by_its_id_without_network_once_it_is_there(torch_home):
    path = torch_home / 'MIT--some-model' / 'model.safetensors'
    path.parent.mkdir()
    path.touch()
    assert locate('MIT/some-model') == path


def test_what_is_no_checkpoint_says_what_would_be(torch_home, tmp_path):
    with pytest.raises(WeightsError, match='nowhere.pth does not exist; a checkpoint is .*audioset_10_10_0.4593.pth'):
        locate('nowhere.pth')
    with pytest.raises(WeightsError, match='nowhere.pth does not exist$'):
        locate(tmp_path / 'nowhere.pth')
    with pytest.raises(WeightsError, match='holds no model.safetensors'):
        locate(tmp_path)


def test_what_lies_below_a_file_is_not_looked_for_on_hugging_face(torch_home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'labels.csv').touch()
    with pytest.raises(WeightsError, match='labels.csv/below does not exist'):
        locate('labels.csv/below')


def test_a_cut_connection_is_tried_again(server, torch_home, monkeypatch):
    monkeypatch.setattr('models.weights.read_state_dict', lambda path: None)
    server.pages['/a.pth'] = Page(b'half', length=8)
    file = WeightsFile('a.pth', f'{server.address}/a.pth', None)
    with pytest.raises(WeightsError):
        find_or_download(file)
    assert server.requests == ['/a.pth'] * 3
    monkeypatch.setattr('time.sleep', lambda seconds: server.pages.update({'/a.pth': Page(b'whole')}))
    assert find_or_download(file).read_bytes() == b'whole'


def test_deit_weights_are_found_where_torch_hub_stored_them_for_the_published_code(copied, torch_home, tmp_path):
    deit, name = DEIT_FILES[3]
    for home in (torch_home, tmp_path / 'repository' / 'pretrained_models'):
        path = home / 'hub' / 'checkpoints' / name
        path.parent.mkdir(parents=True)
        path.touch()
        assert copied.find_or_download(copied.deit_file(deit)) == path
        path.unlink()


def test_deit_weights_are_found_in_the_cache_of_torch_hub_if_torch_home_is_not_set(copied, monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    deit, name = DEIT_FILES[0]
    path = tmp_path / 'cache' / 'torch' / 'hub' / 'checkpoints' / name
    path.parent.mkdir(parents=True)
    path.touch()
    assert copied.find_or_download(copied.deit_file(deit)) == path


def test_downloads_do_not_go_to_the_folders_of_torch_hub(server, copied, torch_home, monkeypatch):
    (torch_home / 'hub' / 'checkpoints').mkdir(parents=True)
    monkeypatch.setattr(copied, 'read_state_dict', lambda path: None)
    server.pages['/a.pth'] = Page(b'whole')
    assert copied.find_or_download(copied.WeightsFile('a.pth', f'{server.address}/a.pth', None)) == torch_home / 'a.pth'


LOAD_FROM_HUB = """
import json, logging, sys
logging.basicConfig(format='%(message)s')
from models import load_model
from models.weights import locate
model, description = load_model(sys.argv[1])
print(json.dumps({'path': str(locate(sys.argv[1])), 'mean': description['mean'], 'assumed': [*description['assumed']],
                  'logits': model(__import__('golden').spectrogram('hub', 2, 64, 32)).tolist()}))
"""


@pytest.fixture(scope='module')
def hub_folder(tmp_path_factory):
    """(A folder that transformers wrote for a tiny model, its logits.)"""
    transformers, golden = pytest.importorskip('transformers'), importlib.import_module('golden')
    model = transformers.ASTForAudioClassification(transformers.ASTConfig(
        hidden_size=192, num_attention_heads=3, intermediate_size=768, num_labels=5, max_length=64, num_mel_bins=32))
    golden.fill(model.eval())
    folder = tmp_path_factory.mktemp('hub')
    model.save_pretrained(folder)
    transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=64, mean=-1.5).save_pretrained(folder)
    with torch.no_grad():
        return folder, model(golden.spectrogram('hub', 2, 64, 32)).logits


def in_parts(folder):
    """Replace model.safetensors by two parts and their index."""
    state = load_file(folder / 'model.safetensors')
    (folder / 'model.safetensors').unlink()
    names = sorted(state)
    parts = {f'model-0000{i + 1}-of-00002.safetensors': names[i::2] for i in range(2)}
    for file, chosen in parts.items():
        save_file({name: state[name] for name in chosen}, folder / file)
    (folder / 'model.safetensors.index.json').write_text(json.dumps(
        {'weight_map': {name: file for file, chosen in parts.items() for name in chosen}}))


def as_bin(folder):
    """Replace model.safetensors by what older versions of transformers wrote."""
    torch.save(load_file(folder / 'model.safetensors'), folder / 'pytorch_model.bin')
    (folder / 'model.safetensors').unlink()


FORMS = {'whole': lambda folder: None, 'parts': in_parts, 'older': as_bin,
         'no-extractor': lambda folder: (folder / 'preprocessor_config.json').unlink()}


@pytest.fixture
def load_from_hub(server, tmp_path, root, run_python):
    """Load someone/model from the server, which stands in for Hugging Face; returns what LOAD_FROM_HUB says.

    told: whether the server says that an entry is missing as Hugging Face does, or is a plain mirror.
    """
    def load(folder, told=True):
        where = '/someone/model/resolve/main/'
        for name in ('config.json', 'preprocessor_config.json', 'model.safetensors', 'model.safetensors.index.json',
                     'pytorch_model.bin', 'pytorch_model.bin.index.json'):
            server.pages[where + name] = Page(status=404, headers={'X-Error-Code': 'EntryNotFound'} if told else {})
        for path in folder.iterdir():
            body = path.read_bytes()
            headers = {'ETag': f'"{hashlib.sha256(body).hexdigest()}"', 'X-Repo-Commit': 'c' * 40}
            server.pages[where + path.name] = Page(body, headers=headers)
        printed = run_python('-c', LOAD_FROM_HUB, 'someone/model', cwd=tmp_path, HF_ENDPOINT=server.address,
                             PYTHONPATH=f'{root / "src"}{os.pathsep}{root / "tests" / "golden"}',
                             HF_HOME=tmp_path / 'cache', TORCH_HOME=tmp_path / 'home')
        return json.loads(printed)
    return load


@pytest.mark.parametrize('form, told', [('whole', True), ('parts', True), ('older', True), ('older', False),
                                        ('no-extractor', True), ('no-extractor', False)])
def test_a_model_of_the_hub_loads_in_every_form_and_without_network_afterwards(
        form, told, hub_folder, tmp_path, load_from_hub, monkeypatch, hub_offline):
    folder, logits = hub_folder
    shutil.copytree(folder, tmp_path / 'served')
    FORMS[form](tmp_path / 'served')
    loaded = load_from_hub(tmp_path / 'served', told)
    assert Path(loaded['path']).parent == tmp_path / 'home' / 'someone--model'
    assert torch.allclose(torch.tensor(loaded['logits']), logits, atol=1e-4)
    lacking = form == 'no-extractor'
    assert loaded['mean'] == (-4.2677393 if lacking else -1.5)
    assert list(loaded['assumed']) == (['loss', 'mean', 'std'] if lacking else ['loss'])
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    assert str(locate('someone/model')) == loaded['path']
    assert load_model('someone/model')[1]['mean'] == loaded['mean']


def test_a_download_that_was_broken_off_between_parts_goes_on(hub_folder, tmp_path, load_from_hub, server):
    folder, logits = hub_folder
    shutil.copytree(folder, tmp_path / 'served')
    in_parts(tmp_path / 'served')
    target = tmp_path / 'home' / 'someone--model'
    target.mkdir(parents=True)
    for name in ('config.json', 'model.safetensors.index.json', 'model-00001-of-00002.safetensors'):
        shutil.copy(tmp_path / 'served' / name, target)
    assert torch.allclose(torch.tensor(load_from_hub(tmp_path / 'served')['logits']), logits, atol=1e-4)
    assert not any('00001' in path for path in server.requests)


def test_a_model_of_the_hub_without_weights_says_so(server, tmp_path, root, start_python):
    body = b'{}'
    headers = {'ETag': '"a"', 'X-Repo-Commit': 'c' * 40}
    server.pages['/someone/model/resolve/main/config.json'] = Page(body, headers=headers)
    process = start_python('-c', LOAD_FROM_HUB, 'someone/model', cwd=tmp_path, HF_ENDPOINT=server.address,
                           PYTHONPATH=root / 'src', HF_HOME=tmp_path / 'cache', TORCH_HOME=tmp_path / 'home')
    said = process.communicate(timeout=120)[1]
    assert 'someone/model could not be downloaded' in said and 'there are no weights in it' in said


@pytest.mark.parametrize('name', ['lost/epoch.ckpt', 'lost/model.bin', 'lost/model.pt', 'lost/model.index.json'])
def test_a_file_that_is_not_there_is_not_taken_for_a_model_of_the_hub(name, torch_home, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=f'{name} does not exist$'):
        locate(name)
