"""What works on Windows: models, tagging, the notebook; on a Linux that pretends to be it, see windows.py."""
import ast
import csv
import json
import ntpath
import os
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

import shards

TRAINING = ('--data_train data.json --data_val data.json --label_csv labels.csv --n_class 2 --num_mel_bins 16 '
            '--audio_length 32 --fstride 16 --tstride 16 --model_size tiny224 --imagenet_pretrain False --device cpu '
            '--amp off --batch_size 2 --num_workers 0 --exp_dir exp').split()


@pytest.fixture(scope='module')
def used(root, tmp_path_factory):
    """The folder in which windows.py has done its work, and what it printed."""
    if not Path('/proc/self/fd').exists():
        pytest.skip('only Linux can pretend to be Windows')
    folder = tmp_path_factory.mktemp('windows')
    tone = 0.4 * np.sin(2 * np.pi * 440 * np.arange(48000) / 16000)
    soundfile.write(folder / 'tone.wav', tone, 16000)
    soundfile.write(folder / 'short.wav', tone[:16000], 16000)  # one batch, for which no worker is started
    with zipfile.ZipFile(folder / 'shard.zip', 'w') as archive:
        archive.write(folder / 'tone.wav', 'a/tone.wav')
    entries = [{'wav': wav, 'labels': mid} for wav, mid in (('tone.wav', '/m/0'), ('shard.zip/a/tone.wav', '/m/1'))]
    (folder / 'data.json').write_text(json.dumps({'data': entries}))
    (folder / 'labels.csv').write_text('index,mid,display_name\n0,/m/0,a\n1,/m/1,b\n')
    environment = {**os.environ, 'PYTHONPATH': str(root / 'src'), 'PYTHONIOENCODING': 'cp1252', 'MPLBACKEND': 'Agg',
                   'OMP_NUM_THREADS': '1',
                   'AST_CHECKPOINT': str(folder / 'model.pth'), 'AST_SOUND': str(folder / 'short.wav')}
    command = [sys.executable, '-X', 'warn_default_encoding', root / 'tests' / 'windows.py',
               root / 'colab' / 'AST_Inference_Demo.ipynb', *TRAINING]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding='cp1252')
    assert done.returncode == 0, done.stderr
    return folder, done


def test_recordings_and_shards_are_tagged_with_spawned_workers(used):
    folder, done = used
    assert 'rain \\U0001f327' in done.stdout  # the terminal's code page does not have it
    assert [entry['path'] for entry in json.loads((folder / 'tags.json').read_text())] == ['tone.wav',
                                                                                           'shard.zip/a/tone.wav']
    with open(folder / 'tags.csv', newline='', encoding='utf-8') as file:
        header, *rows = csv.reader(file)
    scores = np.array([row[3:] for row in rows], float)
    assert header[-1] == 'rain \N{CLOUD WITH RAIN}' and np.allclose(scores[:10], scores[10:])
    assert np.allclose(scores[:10], np.load(folder / 'tag.npy'), atol=1e-6)
    assert len(os.listdir(folder / 'plots')) == 2 and (folder / 'embeddings.npz').exists()


def test_the_notebook_tags(used):
    folder, done = used
    scores = np.load(folder / 'notebook.npy')
    assert scores.shape == (4, 2) and np.allclose(scores[:3], np.load(folder / 'tag.npy')[:3], atol=0.01)  # in bfloat16
    assert 'cannot be had' not in done.stdout


def test_training_ends_and_leaves_no_temporary_file(used):
    folder, _ = used
    assert (folder / 'exp' / 'finished').exists() and (folder / 'exp' / 'report.html').exists()
    assert not [path for path in folder.rglob('*') if '.part-' in path.name or path.name == 'lock']


def test_no_file_is_read_or_written_in_the_encoding_of_the_machine(used, root):
    warnings = [line for line in used[1].stderr.splitlines() if 'EncodingWarning' in line]
    assert not [line for line in warnings if str(root) in line]


def opens_without_encoding(tree):
    """Yield the calls in a syntax tree that open a file as text, and leave its encoding to the machine."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, 'id', None)
        words = [argument.value for argument in [*call.args, *(keyword.value for keyword in call.keywords)]
                 if isinstance(argument, ast.Constant) and isinstance(argument.value, str)]
        binary = any('b' in word and set(word) <= set('rwaxb+t') for word in words)
        method = isinstance(call.func, ast.Attribute)
        as_text = name in ('read_text', 'write_text') if method else name == 'open' and not binary
        if as_text and not any(keyword.arg == 'encoding' for keyword in call.keywords):
            yield call


def test_every_text_file_has_its_encoding_said(root):
    assert len(list(opens_without_encoding(ast.parse('open(a)\nopen(a, "w")\nb.read_text()\nopen(a, "rb")')))) == 3
    found = []
    for path in sorted({*root.glob('src/**/*.py'), *root.glob('egs/**/*.py')} - {root / 'egs' / 'environment.py'}):
        tree = ast.parse(path.read_text(encoding='utf-8'))
        found += [f'{path.relative_to(root)}:{call.lineno}' for call in opens_without_encoding(tree)]
    assert not found


@pytest.mark.parametrize('path, expected', [
    ('C:\\data\\0001.zip\\a\\b.flac', ('C:/data/0001.zip', 'a/b.flac')),
    ('C:\\data\\0001.zip/a/b.flac', ('C:/data/0001.zip', 'a/b.flac')),
    ('C:/data/0001.zip/a.flac', ('C:/data/0001.zip', 'a.flac')),
    ('C:\\data\\0001.zip', None), ('C:\\data\\a.flac', None)])
def test_a_path_into_a_shard_may_have_backslashes(monkeypatch, path, expected):
    windows = types.SimpleNamespace(path=ntpath, sep='\\', fspath=os.fspath)
    monkeypatch.setattr(shards, 'os', windows)
    assert shards.split(path) == expected
