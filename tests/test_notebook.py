"""The notebook, from top to bottom in a real Jupyter kernel, against a small checkpoint."""
import base64
import functools
import shutil
import subprocess
import sys

import nbformat
import pytest
import torch

from models import ASTModel, save_checkpoint
from notebook_runner import NOTEBOOK, run_notebook, texts_of


@pytest.fixture
def run(root, monkeypatch, torch_home):
    """Run the notebook with these environment variables; returns its outputs."""
    return functools.partial(run_notebook, root, monkeypatch)


def test_it_tags_a_sound_and_draws_attention_with_ones_own_checkpoint(run, tmp_path, make_tone):
    torch.manual_seed(0)
    model = ASTModel(3, fstride=16, tstride=16, input_fdim=64, input_tdim=128,
                     imagenet_pretrain=False, model_size='tiny224', verbose=False)
    names = ['dog', 'rain', 'siren']
    save_checkpoint(model, tmp_path / 'mine.pth', labels={'mids': names, 'names': names},
                    mean=-6.0, std=3.0, loss='CE')
    outputs = run(AST_CHECKPOINT=tmp_path / 'mine.pth', AST_SOUND=make_tone('tone.wav', seconds=3))
    said = texts_of(outputs)
    assert 'computed on c' in said  # cpu, or cuda
    assert 'mine.pth' in said and '| class | score' in said and '| siren |' in said
    assert 'attention (blocks, heads, f, t): (12, 3, 4, 8)' in said
    shown = [output.data for output in outputs if 'data' in output]
    figures = [base64.b64decode(data['image/png']) for data in shown if 'image/png' in data]
    assert len(figures) == 3 and all(figure.startswith(b'\x89PNG') for figure in figures)
    assert any('<audio' in data.get('text/html', '') for data in shown)


def test_without_network_it_goes_on_and_says_in_bold_with_what(run):
    said = texts_of(run(AST_CHECKPOINT='audioset_10_10_0.4593.pth', AST_SOUND=''))
    assert 'could not be downloaded' in said
    assert ('could not be loaded: these are the weights of' in said
            or '**No weights could be loaded' in said)
    assert '| class | score' in said


def test_it_is_committed_without_outputs(root):
    notebook = nbformat.read(root / NOTEBOOK, as_version=4)
    assert not any(cell.outputs for cell in notebook.cells if cell.cell_type == 'code')


@pytest.fixture
def set_up(root, tmp_path):
    """Run the notebook's first cell in a clone with these requirements; return the process."""
    def run(requirements):
        for folder in ('egs', 'src/models'):
            (tmp_path / folder).mkdir(parents=True)
        shutil.copy(root / 'egs' / 'environment.py', tmp_path / 'egs')
        (tmp_path / 'requirements.txt').write_text(requirements)
        notebook = nbformat.read(root / NOTEBOOK, as_version=4)
        cell = next(cell for cell in notebook.cells if cell.cell_type == 'code')
        return subprocess.run([sys.executable, '-c', cell.source], cwd=tmp_path,
                              capture_output=True, text=True)
    return run


def test_packages_that_are_there_are_left_alone(set_up):
    done = set_up('torch==1.0  # works from 2.0\n')
    assert done.returncode == 0 and done.stdout.startswith('code:'), done.stderr


def test_a_package_that_is_too_old_is_named_with_the_line_to_run(set_up):
    said = set_up('timm==99.0  # works from 98.0\n').stderr
    assert 'is too old, 98.0 or newer is needed. Run this in a cell, restart the kernel' in said
    assert f'!{sys.executable} -m pip install timm==99.0' in said
