"""The published weights: found under their names in several folders, else downloaded."""
import hashlib
import importlib.util
import json
import os
import shutil
import socket
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from http_server import Page, Server, running
from models import WeightsError, load_model
from models.published import PUBLISHED, WeightsFile
from models.weights import TRANSFORMERS_FILES, find_or_download, locate

DEIT_FILES = [
    ('deit_tiny_distilled_patch16_224', 'deit_tiny_distilled_patch16_224-b40b3cf7.pth'),
    ('deit_small_distilled_patch16_224', 'deit_small_distilled_patch16_224-649709d9.pth'),
    ('deit_base_distilled_patch16_224', 'deit_base_distilled_patch16_224-df68dfff.pth'),
    ('deit_base_distilled_patch16_384', 'deit_base_distilled_patch16_384-d0272ac0.pth'),
]


@pytest.fixture
def copied(root, tmp_path, monkeypatch):
    """models.weights of a copy of the repository.

    The working directory is a folder with another pretrained_models.
    """
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
    return importlib.import_module(f'{name}.weights')


@pytest.fixture
def published(copied):
    """models.published of the same copy."""
    return importlib.import_module(f'{copied.__package__}.published')


@pytest.mark.parametrize('deit, name', DEIT_FILES)
def test_deit_weights_are_found_under_their_authors_names(deit, name, copied, published,
                                                          torch_home):
    (torch_home / name).touch()
    assert copied.find_or_download(published.timm_file(deit)) == torch_home / name


@pytest.mark.parametrize('name', ['audioset_10_10_0.4593.pth', 'audioset_10_10_0.4593.safetensors'])
def test_audioset_weights_are_found_in_both_formats(name, copied, published, torch_home):
    (torch_home / name).touch()
    assert copied.find_or_download(published.AUDIOSET) == torch_home / name


def test_weights_are_found_in_the_repository_whatever_the_working_directory(copied, published,
                                                                            tmp_path):
    for place in ('repository', 'elsewhere'):
        (tmp_path / place / 'pretrained_models' / published.AUDIOSET.name).touch()
    found = copied.find_or_download(published.AUDIOSET)
    assert found == tmp_path / 'repository' / 'pretrained_models' / published.AUDIOSET.name


def test_torch_home_comes_before_the_repository(copied, published, torch_home, tmp_path):
    for folder in (torch_home, tmp_path / 'repository' / 'pretrained_models'):
        (folder / published.AUDIOSET.name).touch()
    assert copied.find_or_download(published.AUDIOSET) == torch_home / published.AUDIOSET.name


def test_weights_that_torch_home_lacks_are_found_in_the_repository(copied, published, torch_home,
                                                                   tmp_path):
    name = 'audioset_10_10_0.4593.safetensors'
    (tmp_path / 'repository' / 'pretrained_models' / name).touch()
    found = copied.find_or_download(published.AUDIOSET)
    assert found == tmp_path / 'repository' / 'pretrained_models' / name


@pytest.fixture
def unreachable(hub_offline, no_proxy, monkeypatch):
    """Weights that no source delivers: nothing listens at the address, and the hub is off."""
    monkeypatch.setattr('time.sleep', lambda seconds: None)  # between attempts
    with socket.socket() as reserved:
        reserved.bind(('127.0.0.1', 0))  # bound, not listening: connections are refused
        url = f'http://127.0.0.1:{reserved.getsockname()[1]}/some.pth?dl=1'
        yield WeightsFile('ensemble/some.pth', url, 'nobody/nothing')


def test_unreachable_weights_say_what_to_get_from_where_and_where_to_put_it(
    unreachable, torch_home
):
    with pytest.raises(WeightsError) as error:
        find_or_download(unreachable)
    for expected in (
        unreachable.url,
        'https://huggingface.co/nobody/nothing/resolve/main/model.safetensors',
        str(torch_home / 'ensemble' / 'some.pth'),
        str(torch_home / 'ensemble' / 'some.safetensors'),
    ):
        assert expected in str(error.value)


def test_unreachable_weights_say_why_each_source_failed(unreachable, torch_home):
    with pytest.raises(
        WeightsError, match=r'some\.pth\?dl=1: .*refused.*\n.*Hugging Face nobody/nothing: \w+'
    ):
        find_or_download(unreachable)
    assert [name for _, _, names in os.walk(torch_home) for name in names] == []


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
    with pytest.raises(
        WeightsError,
        match='nowhere.pth does not exist; a checkpoint is .*audioset_10_10_0.4593.pth',
    ):
        locate('nowhere.pth')
    with pytest.raises(WeightsError, match='nowhere.pth does not exist$'):
        locate(tmp_path / 'nowhere.pth')
    with pytest.raises(WeightsError, match='holds no model.safetensors'):
        locate(tmp_path)


def test_what_lies_below_a_file_is_not_looked_for_on_hugging_face(
    torch_home, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'labels.csv').touch()
    with pytest.raises(WeightsError, match='labels.csv/below does not exist'):
        locate('labels.csv/below')


def test_a_path_with_a_mistake_is_not_looked_for_on_hugging_face(torch_home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'exp').mkdir()
    (tmp_path / 'MIT').mkdir()
    with pytest.raises(WeightsError) as error:
        locate('exp/mymodel')
    assert str(error.value) == ('exp/mymodel does not exist; as there is a folder exp here, it is '
                                'not looked for on Hugging Face')
    name = 'ast-finetuned-audioset-10-10-0.4593'  # of a published one, it is known
    (torch_home / f'MIT--{name}').mkdir()
    (torch_home / f'MIT--{name}' / 'model.safetensors').touch()
    assert locate(f'MIT/{name}').parent == torch_home / f'MIT--{name}'


def test_a_cut_connection_is_tried_again(server, torch_home, monkeypatch):
    monkeypatch.setattr('models.weights.read_state_dict', lambda path: None)
    monkeypatch.setattr('time.sleep', lambda seconds: None)
    server.pages['/a.pth'] = Page(b'half', length=8)
    file = WeightsFile('a.pth', f'{server.address}/a.pth', None)
    with pytest.raises(WeightsError):
        find_or_download(file)
    assert server.requests == ['/a.pth'] * 3
    monkeypatch.setattr(
        'time.sleep', lambda seconds: server.pages.update({'/a.pth': Page(b'whole')})
    )
    assert find_or_download(file).read_bytes() == b'whole'


def test_deit_weights_are_found_where_torch_hub_stored_them_for_the_published_code(
    copied, published, torch_home, tmp_path
):
    deit, name = DEIT_FILES[3]
    for home in (torch_home, tmp_path / 'repository' / 'pretrained_models'):
        path = home / 'hub' / 'checkpoints' / name
        path.parent.mkdir(parents=True)
        path.touch()
        assert copied.find_or_download(published.timm_file(deit)) == path
        path.unlink()


def test_deit_weights_are_found_in_the_cache_of_torch_hub_if_torch_home_is_not_set(
    copied, published, monkeypatch, tmp_path
):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    deit, name = DEIT_FILES[0]
    path = tmp_path / 'cache' / 'torch' / 'hub' / 'checkpoints' / name
    path.parent.mkdir(parents=True)
    path.touch()
    assert copied.find_or_download(published.timm_file(deit)) == path


def test_downloads_do_not_go_to_the_folders_of_torch_hub(server, copied, published, torch_home,
                                                         monkeypatch):
    (torch_home / 'hub' / 'checkpoints').mkdir(parents=True)
    monkeypatch.setattr(copied, 'read_state_dict', lambda path: None)
    server.pages['/a.pth'] = Page(b'whole')
    file = published.WeightsFile('a.pth', f'{server.address}/a.pth', None)
    assert copied.find_or_download(file) == torch_home / 'a.pth'


LOAD_FROM_HUB = """
import json, sys
from golden import spectrogram
from models import WeightsError, load_model, read_state_dict
from models.published import WeightsFile
from models.weights import find_or_download, locate
found = {}
for name in sys.argv[2:]:
    try:
        model, description = load_model(f'someone/{name}')
        found[name] = {'path': str(locate(f'someone/{name}')), 'mean': description['mean'],
                       'assumed': [*description['assumed']],
                       'logits': model(spectrogram('hub', 2, 64, 32)).tolist()}
    except WeightsError as error:
        found[name] = str(error)
path = find_or_download(WeightsFile('some.pth', f'{sys.argv[1]}/some.pth', 'someone/whole'))
found['second source'] = {'path': str(path), 'keys': [*read_state_dict(path)]}
print(json.dumps(found))
"""


@pytest.fixture(scope='module')
def hub_folder(tmp_path_factory):
    """(A folder that transformers wrote for a tiny model, its logits.)"""
    transformers, golden = pytest.importorskip('transformers'), importlib.import_module('golden')
    model = transformers.ASTForAudioClassification(transformers.ASTConfig(
        hidden_size=192, num_attention_heads=3, intermediate_size=768, num_labels=5, max_length=64,
        num_mel_bins=32))
    golden.fill(model.eval())
    folder = tmp_path_factory.mktemp('hub')
    model.save_pretrained(folder)
    extractor = transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=64, mean=-1.5)
    extractor.save_pretrained(folder)
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


# Name of a model of the hub -> (change of hub_folder, whether the server says as Hugging Face does
# that a file is missing; a plain mirror does not).
MODELS = {
    'whole': (lambda folder: None, True), 'parts': (in_parts, True),
    'older': (as_bin, True), 'older-mirror': (as_bin, False),
    'no-extractor': (lambda folder: (folder / 'preprocessor_config.json').unlink(), True),
    'no-extractor-mirror': (lambda folder: (folder / 'preprocessor_config.json').unlink(), False),
    'broken-off': (in_parts, True),
    'no-weights': (lambda folder: (folder / 'model.safetensors').unlink(), True),
}


class Hub(NamedTuple):
    """What LOAD_FROM_HUB found, TORCH_HOME as it left it, and what it asked the server for."""
    found: dict
    home: Path
    requests: list[str]


def serve(server, name, folder, told):
    """Let a server stand in for Hugging Face, with a folder as the model someone/NAME."""
    where = f'/someone/{name}/resolve/main/'
    missing = Page(status=404, headers={'X-Error-Code': 'EntryNotFound'} if told else {})
    for file in ('config.json', 'preprocessor_config.json', *TRANSFORMERS_FILES):
        server.pages[where + file] = missing
    for path in folder.iterdir():
        body = path.read_bytes()
        headers = {'ETag': f'"{hashlib.sha256(body).hexdigest()}"', 'X-Repo-Commit': 'c' * 40}
        server.pages[where + path.name] = Page(body, headers=headers)


@pytest.fixture(scope='module')
def hub(hub_folder, tmp_path_factory, root, run_python):
    """All MODELS, loaded by one process from a server that stands in for Hugging Face."""
    folder = tmp_path_factory.mktemp('served')
    home = folder / 'home'
    with running(Server()) as server:
        for name, (change, told) in MODELS.items():
            shutil.copytree(hub_folder[0], folder / name)
            change(folder / name)
            serve(server, name, folder / name, told)
        target = home / 'someone--broken-off'
        target.mkdir(parents=True)
        there = 'config.json', 'model.safetensors.index.json', 'model-00001-of-00002.safetensors'
        for name in there:
            shutil.copy(folder / 'broken-off' / name, target)
        printed = run_python('-c', LOAD_FROM_HUB, server.address, *MODELS, cwd=folder,
                             PYTHONPATH=f'{root / "src"}{os.pathsep}{root / "tests" / "golden"}',
                             HF_ENDPOINT=server.address, HF_HOME=folder / 'cache', TORCH_HOME=home)
        return Hub(json.loads(printed), home, server.requests)


@pytest.mark.parametrize(
    'name', ['whole', 'parts', 'older', 'older-mirror', 'no-extractor', 'no-extractor-mirror']
)
def test_a_model_of_the_hub_loads_in_every_form_and_without_network_afterwards(
    name, hub, hub_folder, monkeypatch, hub_offline
):
    loaded = hub.found[name]
    assert Path(loaded['path']).parent == hub.home / f'someone--{name}'
    assert torch.allclose(torch.tensor(loaded['logits']), hub_folder[1], atol=1e-4)
    lacking = name.startswith('no-extractor')
    assert loaded['mean'] == (-4.2677393 if lacking else -1.5)
    assert list(loaded['assumed']) == (['loss', 'mean', 'std'] if lacking else ['loss'])
    monkeypatch.setenv('TORCH_HOME', str(hub.home))
    assert str(locate(f'someone/{name}')) == loaded['path']
    assert load_model(f'someone/{name}')[1]['mean'] == loaded['mean']


def test_a_download_that_was_broken_off_between_parts_goes_on(hub, hub_folder):
    assert torch.allclose(torch.tensor(hub.found['broken-off']['logits']), hub_folder[1], atol=1e-4)
    asked = [path for path in hub.requests if 'broken-off' in path]
    assert any('00002' in path for path in asked) and not any('00001' in path for path in asked)


def test_a_model_of_the_hub_without_weights_says_so(hub):
    said = hub.found['no-weights']
    assert 'someone/no-weights could not be downloaded' in said
    assert 'there are no weights in it' in said


@pytest.mark.parametrize('source', ['audioset_12_12_0.4467.pth', 'someone/model'])
def test_a_folder_that_cannot_be_written_is_named_with_the_way_out(source, tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, 'Permission denied')
    for name in ('download', '_download_hub', 'os.access'):
        monkeypatch.setattr(f'models.weights.{name}', refuse if name != 'os.access' else lambda *_: False)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    sentence = f'{tmp_path} cannot be written: set TORCH_HOME to a folder'
    with pytest.raises(WeightsError, match=sentence):
        locate(source)


def test_if_the_first_source_fails_the_hub_delivers(hub):
    assert hub.found['second source']['path'] == str(hub.home / 'some.safetensors')
    assert 'v.cls_token' in hub.found['second source']['keys'] and '/some.pth' in hub.requests


@pytest.mark.parametrize(
    'name', ['lost/epoch.ckpt', 'lost/model.bin', 'lost/model.pt', 'lost/model.index.json']
)
def test_a_file_that_is_not_there_is_not_taken_for_a_model_of_the_hub(
    name, torch_home, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=f'{name} does not exist$'):
        locate(name)
