"""Download of the published checkpoints, from a server that stands in for Dropbox and the hub."""
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import save

import download_models
from http_server import Page
from models import ASTModel, published, save_checkpoint


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """The bytes of a small checkpoint."""
    path = tmp_path_factory.mktemp('weights') / 'a.pth'
    model = ASTModel(2, input_fdim=16, input_tdim=16, imagenet_pretrain=False, model_size='tiny224')
    save_checkpoint(model, path)
    return path.read_bytes()


@pytest.fixture
def dropbox(server, monkeypatch):
    """Files of PUBLISHED come from this machine's server; returns their paths there."""
    def moved(file):
        return replace(file, url=file.url.replace('https://www.dropbox.com', server.address))
    here = tuple(map(moved, published.PUBLISHED))
    monkeypatch.setattr('models.published.PUBLISHED', here)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    return {Path(file.name).stem: file.url.removeprefix(server.address) for file in here}


def test_one_is_fetched_by_name_and_not_twice(server, dropbox, weights, torch_home, capsys):
    server.pages[dropbox['audioset_12_12_0.4467']] = Page(weights)
    for _ in range(2):
        download_models.main(['audioset_12_12_0.4467.pth'])
    path = torch_home / 'ensemble' / 'audioset_12_12_0.4467.pth'
    assert path.read_bytes() == weights and len(server.requests) == 1
    assert capsys.readouterr().out.split() == [str(path)] * 2


def test_without_names_all_are_fetched_and_what_fails_is_counted(
    server, dropbox, weights, torch_home, capsys, monkeypatch
):
    for name, path in dropbox.items():
        if name != 'audioset_bal_10_10_0.3499':
            server.pages[path] = Page(weights)
    with pytest.raises(SystemExit, match='1 could not be downloaded'):
        download_models.main([])
    assert len(capsys.readouterr().out.split()) == 8


def test_a_truncated_file_is_refused_after_three_attempts(
    server, dropbox, weights, torch_home, monkeypatch
):
    monkeypatch.setattr('time.sleep', lambda seconds: None)
    path = dropbox['speechcommands_10_10_0.9812']
    server.pages[path] = Page(weights[:len(weights) // 2], length=len(weights))
    with pytest.raises(SystemExit):
        download_models.main(['speechcommands_10_10_0.9812', '--source', 'dropbox'])
    assert server.requests.count(path) == 3
    assert not [file for file in torch_home.rglob('*') if file.suffix == '.pth']


@pytest.fixture
def hub_page(server):
    """The Speech Commands weights on a hub that the server stands in for; returns their bytes."""
    model = ASTModel(2, input_fdim=16, input_tdim=16, imagenet_pretrain=False, model_size='tiny224')
    body = save({name: value.contiguous() for name, value in model.state_dict().items()})
    server.pages['/MIT/ast-finetuned-speech-commands-v2/resolve/main/model.safetensors'] = Page(
        body, headers={'ETag': '"1"', 'X-Repo-Commit': 'a' * 40})
    return body


WITHOUT_DROPBOX = """
import dataclasses, sys
sys.path[:0] = ['src', 'egs/audioset']
import download_models
from models import published
published.PUBLISHED = tuple(dataclasses.replace(f, url=sys.argv[1]) for f in published.PUBLISHED)
download_models.main(['speechcommands_10_10_0.9812'])
"""


def test_if_dropbox_fails_hugging_face_delivers(root, server, torch_home, hub_page):
    environment = {**os.environ, 'HF_ENDPOINT': server.address, 'TORCH_HOME': str(torch_home)}
    done = subprocess.run([sys.executable, '-c', WITHOUT_DROPBOX, f'{server.address}/nothing'],
                          cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (torch_home / 'speechcommands_10_10_0.9812.safetensors').read_bytes() == hub_page


def test_an_unknown_name_lists_those_there_are(capsys):
    with pytest.raises(SystemExit):
        download_models.main(['audioset_9_9'])
    said = capsys.readouterr().err
    assert 'no published checkpoint audioset_9_9' in said and 'audioset_16_16' in said


def test_the_shell_script_fetches_too(root, run_shell, server, torch_home, hub_page):
    recipe = root / 'egs' / 'audioset' / 'download_models.sh'
    done = run_shell([recipe, '--source', 'huggingface', 'speechcommands_10_10_0.9812'],
                     HF_ENDPOINT=server.address, TORCH_HOME=str(torch_home))
    assert done.returncode == 0, done.stderr
    assert (torch_home / 'speechcommands_10_10_0.9812.safetensors').read_bytes() == hub_page


def test_one_that_was_never_on_hugging_face_says_so(torch_home, capsys):
    with pytest.raises(SystemExit):
        download_models.main(['audioset_bal_10_10_0.3499', '--source', 'huggingface'])
    assert 'was never put on Hugging Face' in capsys.readouterr().err
