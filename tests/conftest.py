"""Fixtures that all tests share: short recordings, label files, datafiles, a server, a browser."""
import json
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from browser import Tabs, launched
from dataloader import AudiosetDataset
from http_server import Server, running
from small_dataset import CONF
from utilities.parallel import available_cores

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / 'tests' / 'golden'
LONGEST = ('test_slurm', 'test_processes', 'test_resume', 'test_run_esc50')


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """Return how many processes share the test files.

    These are two more than cores, since some of them wait, but at most four, since each needs
    memory.
    """
    return min(4, available_cores() + 2)


def pytest_collection_modifyitems(items):
    """Run the files that take longest first, so that none of them is alone at the end."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


def pytest_sessionstart():
    """Divide the cores among the processes, and import everything once.

    Each process that runs tests, and what it starts, computes on its share of the cores: more
    threads than cores would slow each other down. If a server starts the data workers, as by
    default in Python 3.14, it imports everything for them.
    """
    if 'OMP_NUM_THREADS' not in os.environ:
        processes = int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', 1))
        threads = max(1, available_cores() // processes)
        os.environ['OMP_NUM_THREADS'] = str(threads)
        torch.set_num_threads(threads)
    chosen = multiprocessing.get_start_method(allow_none=True)
    if (chosen or multiprocessing.get_all_start_methods()[0]) == 'forkserver':
        from ranks import make_context  # imports everything
        make_context()


@pytest.fixture(scope='session')
def root():
    """Return the root folder of the repository."""
    return ROOT


@pytest.fixture(scope='session')
def golden_json():
    """Return a function that reads a JSON file of the folder golden."""
    return lambda name: json.loads((GOLDEN / name).read_text())


@pytest.fixture(autouse=True)
def same_process():
    """Undo what a program changed in this process: signal handlers and the root logger.

    A handler of the logger writes to a stream that ends with the test. Its level may come from a
    program that a fixture of the whole file has run.
    """
    root_logger = logging.getLogger()
    root_logger.setLevel(logging.WARNING)
    handlers = root_logger.handlers[:]
    signals = {number: signal.getsignal(number)
               for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    yield
    for number, handler in signals.items():
        signal.signal(number, handler)
    root_logger.handlers[:] = handlers
    root_logger.setLevel(logging.WARNING)


@pytest.fixture(scope='session')
def commit():
    """Make a folder a git repository with one commit of all its files; return its address."""
    if not shutil.which('git'):
        pytest.skip('git is not installed')

    def make(folder):
        author = ('-c', 'user.name=a', '-c', 'user.email=a@b')
        for words in (['init'], ['add', '-A'], [*author, 'commit', '-m', 'a']):
            subprocess.run(['git', '-C', folder, *words], check=True, capture_output=True)
        return folder.as_uri()
    return make


@pytest.fixture
def make_labels(tmp_path):
    """Write a label file of n classes with mids /m/0, /m/1, ...; return its path."""
    def make(n, name='labels.csv'):
        path = tmp_path / name
        rows = ''.join(f'{i},/m/{i},class {i}\n' for i in range(n))
        path.write_text(f'index,mid,display_name\n{rows}')
        return path
    return make


@pytest.fixture
def make_datafile(tmp_path):
    """Write a datafile of (wav, labels) pairs; return its path."""
    def make(entries, name='data.json'):
        path = tmp_path / name
        data = [{'wav': str(wav), 'labels': labels} for wav, labels in entries]
        path.write_text(json.dumps({'data': data}))
        return path
    return make


@pytest.fixture
def make_tone(tmp_path):
    """Write a recording of a tone with a little noise; return its path."""
    def make(name, hertz=440.0, seconds=1.0, rate=16000, channels=1, seed=0):
        t = np.arange(int(seconds * rate)) / rate
        noise = np.random.default_rng(seed).standard_normal((len(t), channels))
        samples = 0.4 * np.sin(2 * np.pi * hertz * t)[:, None] + 0.01 * noise
        soundfile.write(tmp_path / name, samples, rate)
        return tmp_path / name
    return make


@pytest.fixture
def make_dataset(make_labels, make_datafile):
    """Make a dataset of (wav, labels) pairs with four classes; `conf` changes its settings."""
    def make(entries, kind=AudiosetDataset, **conf):
        return kind(make_datafile(entries), {**CONF, **conf}, make_labels(4))
    return make


@pytest.fixture
def tones(make_tone):
    """Write six recordings of 0.3 s at several rates; return (wav, labels) pairs."""
    return [(make_tone(f'{i}.wav', 300 * (i + 1), seconds=0.3, rate=rate, seed=i), f'/m/{i % 4}')
            for i, rate in enumerate((16000, 44100, 16000, 8000, 48000, 16000))]


@pytest.fixture
def torch_home(tmp_path, monkeypatch):
    """Set $TORCH_HOME to an empty folder; return it."""
    folder = tmp_path / 'torch_home'
    folder.mkdir()
    monkeypatch.setenv('TORCH_HOME', str(folder))
    return folder


@pytest.fixture
def hub_offline(monkeypatch):
    """Do what HF_HUB_OFFLINE=1 does. The variable is read only when huggingface_hub is imported."""
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)


@pytest.fixture
def no_proxy(monkeypatch):
    """Remove proxies from the environment, so that a server on this machine is asked directly."""
    for name in [name for name in os.environ if name.lower().endswith('_proxy')]:
        monkeypatch.delenv(name)


@pytest.fixture
def server(no_proxy):
    """Start an HTTP server on this machine; stop it after the test."""
    with running(Server()) as started:
        yield started


@pytest.fixture
def write(tmp_path):
    """Write a text or bytes to a file; return its path."""
    def make(content, name='file'):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path
    return make


@pytest.fixture
def be_process(monkeypatch):
    """Make `training.processes` report this rank and size, although no other process runs."""
    def make(rank, size):
        monkeypatch.setattr('training.processes.rank', lambda: rank)
        monkeypatch.setattr('training.processes.size', lambda: size)
    return make


@pytest.fixture(scope='module')
def browser():
    """Start Chromium for the tests of one module: Playwright would disturb asyncio in others."""
    with launched() as started:
        yield started


@pytest.fixture
def tabs(browser):
    """Return Tabs, which opens pages. At the end, fail if one has asked the network for data."""
    opened = Tabs(browser)
    yield opened
    opened.close()
