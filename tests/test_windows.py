"""What works on Windows: models, tagging, the notebook; on a Linux that pretends (windows.py)."""
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

from audio import shards

TRAINING = ('--data_train data.json --data_val data.json --label_csv labels.csv --n_class 2 '
            '--num_mel_bins 16 --audio_length 32 --fstride 16 --tstride 16 --model_size tiny224 '
            '--imagenet_pretrain False --device cpu --amp off --batch_size 2 --num_workers 0 '
            '--exp_dir exp').split()
TAGGED = ['tone.wav', 'shard.zip/a/tone.wav']


@pytest.fixture(scope='module')
def used(root, tmp_path_factory):
    """The folder in which windows.py has done its work, and what it printed."""
    if not Path('/proc/self/fd').exists():
        pytest.skip('only Linux can pretend to be Windows')
    folder = tmp_path_factory.mktemp('windows')
    tone = 0.4 * np.sin(2 * np.pi * 440 * np.arange(48000) / 16000)
    soundfile.write(folder / 'tone.wav', tone, 16000)
    soundfile.write(folder / 'short.wav', tone[:16000], 16000)  # one batch: no worker is started
    with zipfile.ZipFile(folder / 'shard.zip', 'w') as archive:
        archive.write(folder / 'tone.wav', 'a/tone.wav')
    entries = [{'wav': wav, 'labels': f'/m/{i}'} for i, wav in enumerate(TAGGED)]
    (folder / 'data.json').write_text(json.dumps({'data': entries}))
    (folder / 'labels.csv').write_text('index,mid,display_name\n0,/m/0,a\n1,/m/1,b\n')
    environment = {'PYTHONPATH': str(root / 'src'), 'PYTHONIOENCODING': 'cp1252',
                   'MPLBACKEND': 'Agg', 'OMP_NUM_THREADS': '1',
                   'AST_CHECKPOINT': str(folder / 'model.pth'),
                   'AST_SOUND': str(folder / 'short.wav')}
    command = [sys.executable, '-X', 'warn_default_encoding', root / 'tests' / 'windows.py',
               root / 'colab' / 'AST_Inference_Demo.ipynb', *TRAINING]
    done = subprocess.run(command, cwd=folder, env={**os.environ, **environment},
                          capture_output=True, encoding='cp1252')
    assert done.returncode == 0, done.stderr
    return folder, done


def test_recordings_and_shards_are_tagged_with_spawned_workers(used):
    folder, done = used
    assert 'rain \\U0001f327' in done.stdout  # the terminal's code page does not have it
    assert [entry['path'] for entry in json.loads((folder / 'tags.json').read_text())] == TAGGED
    with open(folder / 'tags.csv', newline='', encoding='utf-8') as file:
        header, *rows = csv.reader(file)
    scores = np.array([row[3:-1] for row in rows], float)
    assert header[-2] == 'rain \N{CLOUD WITH RAIN}' and np.allclose(scores[:10], scores[10:])
    assert np.allclose(scores[:10], np.load(folder / 'tag.npy'), atol=1e-6)
    assert len(os.listdir(folder / 'plots')) == 2 and (folder / 'embeddings.npz').exists()


def test_the_notebook_tags(used):
    folder, done = used
    scores, expected = np.load(folder / 'notebook.npy'), np.load(folder / 'tag.npy')
    assert scores.shape == (4, 2)
    assert np.allclose(scores[:3], expected[:3], atol=0.01)  # perhaps in bfloat16
    assert 'could not be loaded' not in done.stdout


def test_training_ends_and_leaves_no_temporary_file(used):
    folder, _ = used
    assert (folder / 'exp' / 'finished').exists() and (folder / 'exp' / 'report.html').exists()
    left = [path for path in folder.rglob('*') if '.part-' in path.name or path.name == 'lock']
    assert not left


def test_no_file_is_read_or_written_in_the_encoding_of_the_machine(used, root):
    warnings = [line for line in used[1].stderr.splitlines() if 'EncodingWarning' in line]
    # And not an environment in the repository.
    ours = [str(root / folder) for folder in ('src', 'egs', 'colab')]
    assert not [line for line in warnings if line.startswith(tuple(ours))]


def opens_without_encoding(text):
    """The lines of a program that open a text file and leave its encoding to the machine."""
    lines = []
    for call in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)):
        if isinstance(call.func, ast.Attribute):
            as_text = call.func.attr in ('read_text', 'write_text')
        else:
            modes = [word.value for word in (*call.args, *(named.value for named in call.keywords))
                     if isinstance(word, ast.Constant) and isinstance(word.value, str)]
            as_text = getattr(call.func, 'id', None) == 'open' and not any(
                'b' in mode and set(mode) <= set('rwaxb+') for mode in modes)
        if as_text and not any(named.arg == 'encoding' for named in call.keywords):
            lines.append(call.lineno)
    return sorted(lines)


def test_every_text_file_has_its_encoding_said(root):
    example = 'open(a)\nopen(a, "w")\nopen(a, "rb+")\nb.read_text()\nopen(a, encoding="utf-8")'
    assert opens_without_encoding(example) == [1, 2, 4]
    paths = {*root.glob('src/**/*.py'), *root.glob('egs/**/*.py')}
    found = {str(path): opens_without_encoding(path.read_text(encoding='utf-8')) for path in paths}
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize('path, expected', [
    ('C:\\data\\0001.zip\\a\\b.flac', ('C:/data/0001.zip', 'a/b.flac')),
    ('C:\\data\\0001.zip/a/b.flac', ('C:/data/0001.zip', 'a/b.flac')),
    ('C:/data/0001.zip/a.flac', ('C:/data/0001.zip', 'a.flac')),
    ('C:\\data\\0001.zip', None), ('C:\\data\\a.flac', None)])
def test_a_path_into_a_shard_may_have_backslashes(monkeypatch, path, expected):
    windows = types.SimpleNamespace(path=ntpath, sep='\\', fspath=os.fspath)
    monkeypatch.setattr(shards, 'os', windows)
    assert shards.split_path(path) == expected
