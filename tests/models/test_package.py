"""pip installs models as the package audio_spectrogram_transformer, which works without a clone."""
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from types import SimpleNamespace

import pytest
import torch

import environment
from golden import fill, spectrogram
from models import save_checkpoint

PACKAGE = 'audio_spectrogram_transformer'

USE = """
import json, os, sys
import audio_spectrogram_transformer
from audio_spectrogram_transformer import ASTModel, WeightsError, load_model, save_checkpoint
from audio_spectrogram_transformer.weights import locate
from golden import spectrogram

def find(name):
    try:
        return str(locate(name))
    except WeightsError as error:
        return str(error)

checkpoint, torch_home = sys.argv[1:]
model, description = load_model(checkpoint)
save_checkpoint(model, 'again.pth', mean=description['mean'], std=description['std'])
again = load_model('again.pth')[0]
new = ASTModel(5, imagenet_pretrain=False, model_size='tiny224')
x = spectrogram('package', 2, 64, 32)
found = {'place': audio_spectrogram_transformer.__file__, 'mean': description['mean'],
         'logits': model(x).tolist(), 'again': again(x).tolist(),
         'new': [*new(spectrogram('package', 1, 1024, 128)).shape],
         'not there': find('audioset_10_10_0.4593.pth'), 'not on the hub': find('MIT/some-model')}
os.environ['TORCH_HOME'] = torch_home
found['there'], found['on the hub'] = find('audioset_12_12_0.4467.pth'), find('MIT/some-model')
print(json.dumps(found))
"""


@pytest.fixture(scope='module')
def installed(root, commit, tmp_path_factory):
    """The folder into which pip has installed the package, from the address of a git repository.

    That has all of src, so a test sees what stays out of the package.
    """
    if environment.release(environment.find_version('setuptools') or '0') < (77,):
        pytest.skip('setuptools 77 or newer is not installed')
    folder = tmp_path_factory.mktemp('package')
    skipped = shutil.ignore_patterns('__pycache__', 'build', '*.egg-info')
    shutil.copytree(root / 'src', folder / 'clone' / 'src', symlinks=True, ignore=skipped)
    shutil.copy(root / 'LICENSE', folder / 'clone')
    address = commit(folder / 'clone')
    command = [sys.executable, '-m', 'pip', '--disable-pip-version-check', 'install', '--no-deps',
               '--no-build-isolation', '--target', folder / 'installed',
               f'git+{address}#subdirectory=src']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / 'installed'


@pytest.fixture(scope='module')
def used(installed, root, make_tiny, run_python):
    """What USE found in a process that sees the installed package, not src, and an empty home."""
    folder = installed.parent
    model = fill(make_tiny())
    save_checkpoint(model, folder / 'ours.pth', mean=-1.5, std=2.0)
    home, torch_home = folder / 'home', folder / 'torch_home'
    for place in (home, torch_home / 'MIT--some-model'):
        place.mkdir(parents=True)
    (torch_home / 'audioset_12_12_0.4467.pth').touch()
    (torch_home / 'MIT--some-model' / 'model.safetensors').touch()
    path = f'{installed}{os.pathsep}{root / "tests" / "golden"}'
    said = run_python('-c', USE, folder / 'ours.pth', torch_home, cwd=folder, PYTHONPATH=path,
                      HOME=home, HF_HUB_OFFLINE=1, https_proxy='http://127.0.0.1:9')
    with torch.no_grad():
        logits = model(spectrogram('package', 2, 64, 32))
    return SimpleNamespace(folder=folder, logits=logits, found=json.loads(said))


def test_the_package_is_the_folder_models_and_nothing_else(installed, root):
    files = {path.name for path in (installed / PACKAGE).iterdir()} - {'__pycache__'}
    assert files == {path.name for path in (root / 'src' / 'models').glob('*.py')}
    (others,) = {path.name for path in installed.iterdir()} - {PACKAGE}
    assert others.endswith('.dist-info')


def test_its_licence_comes_with_it(installed, root):
    (licence,) = installed.glob('*.dist-info/licenses/LICENSE')
    assert licence.read_text() == (root / 'LICENSE').read_text()


def test_it_loads_a_checkpoint_of_this_repository_and_saves_one(used):
    found = used.found
    assert found['place'] == str(used.folder / 'installed' / PACKAGE / '__init__.py')
    assert found['mean'] == -1.5 and found['new'] == [1, 5]
    assert torch.allclose(torch.tensor(found['logits']), used.logits, atol=1e-5)
    assert found['again'] == found['logits']


def test_it_finds_weights_below_torch_home(used):
    home = used.folder / 'torch_home'
    assert used.found['there'] == str(home / 'audioset_12_12_0.4467.pth')
    assert used.found['on the hub'] == str(home / 'MIT--some-model' / 'model.safetensors')


def test_weights_that_it_cannot_get_belong_into_the_cache_of_the_user(used):
    cache = used.folder / 'home' / '.cache' / 'torch' / 'hub' / 'checkpoints'
    said = used.found['not there']
    assert f'is not in {cache} and could not be downloaded' in said
    assert f'put it at {cache / "audioset_10_10_0.4593.pth"}' in said
    assert f'put them into {cache / "MIT--some-model"}' in used.found['not on the hub']


@pytest.fixture(scope='module')
def project(root):
    """The table [project] of pyproject.toml."""
    return tomllib.loads((root / 'src' / 'pyproject.toml').read_text())['project']


def test_it_depends_on_what_it_imports(project, root):
    imported = set()
    for path in (root / 'src' / 'models').glob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split('.')[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.split('.')[0])
    named = {re.match(r'\w+', line)[0] for line in project['dependencies']}
    assert named == imported - sys.stdlib_module_names


def test_its_dependencies_have_the_oldest_versions_of_requirements_txt(project, root):
    floors = {one.name: one.floor for one in
              environment.read_requirements([root / 'requirements.txt'])}
    named = dict(line.split('>=') for line in project['dependencies'])
    assert named == {name: floors[name] for name in named}
    assert project['requires-python'] == f'>={environment.dotted(environment.OLDEST)}'
