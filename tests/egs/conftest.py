"""Fixtures for the tests of recipes: a small dataset in ESC-50's layout, a shell."""
import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile


@pytest.fixture(scope='session', autouse=True)
def python_of_recipes():
    """Make recipes use this Python without checking its packages, which would take seconds.

    AST_PYTHON='' in the environment of a recipe undoes it.
    """
    with pytest.MonkeyPatch.context() as patch:
        yield patch.setenv('AST_PYTHON', sys.executable)


@pytest.fixture(scope='session')
def terminal():
    """Return a function that makes the environment of a user's terminal, a dict.

    In it, `python` is this Python. The function takes further variables; None removes one.
    """
    def environment(**given):
        changed = {'PATH': f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}',
                   'VIRTUAL_ENV': None, 'CONDA_PREFIX': None, **given}
        return {name: value for name, value in {**os.environ, **changed}.items()
                if value is not None and (name in given or not name.startswith('SLURM'))}
    return environment


@pytest.fixture
def run_shell(tmp_path, terminal):
    """Run a command as in a user's terminal; return the finished process."""
    def run(command, cwd=tmp_path, **environment):
        return subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True,
                              text=True, env=terminal(**environment))
    return run


@pytest.fixture
def planned(run_shell, tmp_path):
    """Start a recipe with a `python` that only writes down the programs that it should run.

    It does run the program that reads the options. Return the command lines, a line each.
    """
    stand_in, calls = tmp_path / 'bin' / 'python', tmp_path / 'calls'
    stand_in.parent.mkdir()
    stand_in.write_text(f'#!/bin/sh\ncase $1 in */environment.py) echo "$0" ;; '
                        f'-c | */recipe_options.py) exec "{sys.executable}" "$@" ;; '
                        f'*) echo "$*" >> "{calls}" ;; esac\n')
    stand_in.chmod(0o755)

    def run(recipe, *words, cwd=tmp_path, **environment):
        calls.write_text('')
        path = f'{stand_in.parent}{os.pathsep}{os.environ["PATH"]}'
        done = run_shell([recipe, *words], cwd=cwd, PATH=path, AST_PYTHON='', **environment)
        assert done.returncode == 0, done.stderr
        return calls.read_text()
    return run


@pytest.fixture
def shown_defaults(run_shell):
    """Return the defaults that a recipe's --help shows, {option: text}."""
    def show(recipe):
        said = run_shell([recipe, '--help'], COLUMNS='80')
        assert said.returncode == 0 and not said.stderr
        shown = re.findall(r'--(\w+),? (?:(?!\n  -).)*?\(default:\s+(.*?)\)', said.stdout,
                           re.DOTALL)
        return {name: ' '.join(default.split()) for name, default in shown}
    return show


@pytest.fixture(scope='session')
def write_esc():
    """Write a dataset in ESC-50's layout into a folder; return the folder.

    It has two classes, tones and noise, with one clip of each in every fold.
    """
    def write(folder, suffixes=('.wav', '.ogg', '.flac'), rate=22050, seconds=0.4):
        (folder / 'meta').mkdir(parents=True)
        (folder / 'audio').mkdir()
        rng = np.random.default_rng(0)
        rows = []
        for i, (fold, (target, category)) in enumerate((fold, label) for fold in range(1, 6)
                                                       for label in ((0, 'dog'), (10, 'rain'))):
            filename = f'{fold}-{i}-A-{target}{suffixes[i % len(suffixes)]}'
            noise = rng.standard_normal(int(rate * seconds))
            tone = np.sin(2 * np.pi * 440 * np.arange(len(noise)) / rate)
            soundfile.write(folder / 'audio' / filename, 0.1 * (noise if target else tone), rate)
            rows.append([filename, fold, target, category, True, i, 'A'])
        with open(folder / 'meta' / 'esc50.csv', 'w', newline='') as file:
            columns = ['filename', 'fold', 'target', 'category', 'esc10', 'src_file', 'take']
            csv.writer(file).writerows([columns, *rows])
        return folder
    return write


@pytest.fixture
def make_esc(tmp_path, write_esc):
    """Write a dataset as write_esc does, into a folder below tmp_path; return the folder."""
    return lambda name='esc', **kwargs: write_esc(tmp_path / name, **kwargs)
