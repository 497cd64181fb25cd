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

# The variables that other processes get. More may have been set by imports here, or by the user
# (TORCH_HOME, HF_..., proxies); they would change what is tested.
KEPT = ('PATH', 'LD_LIBRARY_PATH', 'HOME', 'USER', 'LANG', 'TMPDIR')


@pytest.fixture(autouse=True)
def thread():
    """Compute on one thread. This is faster for such small models if the machine is busy."""
    with one_thread():
        yield


@pytest.fixture(scope='session')
def make_tiny():
    """Build a tiny ASTModel with random weights, in eval mode; settings override those of TINY."""
    return lambda **settings: ASTModel(**{**TINY, **settings}).eval()


@pytest.fixture(scope='session')
def make_golden(make_tiny):
    """Build a tiny ASTModel as make_tiny does, with weights of golden.py; return a copy."""
    @functools.cache
    def fill(settings):
        return golden.fill(make_tiny(**dict(settings)))
    return lambda **settings: copy.deepcopy(fill(tuple(sorted(settings.items()))))


@pytest.fixture(scope='session')
def start_python():
    """Start python with arguments. Of this process's environment, it gets only KEPT."""
    started = []

    def start(*arguments, cwd, **environment):
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        added = {name: str(value) for name, value in environment.items()}
        started.append(subprocess.Popen([sys.executable, *map(str, arguments)], cwd=cwd,
                                        env={**kept, **added},
                                        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        return started[-1]
    yield start
    for process in started:  # a failed test may not have waited for all
        process.kill()
        process.communicate()


@pytest.fixture(scope='session')
def run_python(start_python):
    """Run python as start_python does, to its end; return what it printed.

    If it fails, the test fails with its stderr.
    """
    def run(*arguments, cwd, **environment):
        process = start_python(*arguments, cwd=cwd, **environment)
        out, err = process.communicate(timeout=120)
        if process.returncode:
            pytest.fail(f'exit code {process.returncode}:\n{err}')
        return out
    return run
