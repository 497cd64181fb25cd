"""The published weights: found under their names, wherever they lie, and asked for by name where they do not."""
import importlib.util
import os
import shutil
import socket
import sys

import pytest
from http_server import Page

from models import WeightsError
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
