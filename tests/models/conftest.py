"""Fixtures for the tests of the model and its weights: tiny models, other processes."""
import copy
import functools
import os
import subprocess
import sys

import pytest

import golden
from models import ASTModel
from utilities.parallel import one_thread

TINY = {'model_size': 'tiny224', 'label_dim': 5, 'input_fdim': 32, 'input_tdim': 64,
        'imagenet_pretrain': False, 'verbose': False}

# Imports here may have set more, and the user's variables (TORCH_HOME, HF_..., proxies) would
# interfere.
KEPT = ('PATH', 'LD_LIBRARY_PATH', 'HOME', 'USER', 'LANG', 'TMPDIR')


@pytest.fixture(autouse=True)
def thread():
    """Compute on one thread: quicker for models of this size, by far on a busy machine."""
    with one_thread():
        yield


@pytest.fixture(scope='session')
def make_tiny():
    """Build a tiny ASTModel with random weights, in eval mode; settings override those of TINY."""
    return lambda **settings: ASTModel(**{**TINY, **settings}).eval()


@pytest.fixture(scope='session')
def make_golden(make_tiny):
    """Build a tiny ASTModel with weights of golden.py, as make_tiny does; a copy for each test."""
    @functools.cache
    def fill(settings):
        return golden.fill(make_tiny(**dict(settings)))
    return lambda **settings: copy.deepcopy(fill(tuple(sorted(settings.items()))))


@pytest.fixture(scope='session')
def start_python():
    """Start python with arguments in a process that has only KEPT of this one's environment."""
    started = []

    def start(*arguments, cwd, **environment):
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        added = {name: str(value) for name, value in environment.items()}
        started.append(subprocess.Popen([sys.executable, *map(str, arguments)], cwd=cwd,
                                        env={**kept, **added},
                                        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        return started[-1]
    yield start
    for process in started:  # those that a failed test did not wait for
        process.kill()
        process.communicate()


@pytest.fixture(scope='session')
def run_python(start_python):
    """Run python as start_python does, to its end, and return what it printed.

    A failure ends the test with its stderr.
    """
    def run(*arguments, cwd, **environment):
        process = start_python(*arguments, cwd=cwd, **environment)
        out, err = process.communicate(timeout=120)
        if process.returncode:
            pytest.fail(f'exit code {process.returncode}:\n{err}')
        return out
    return run
