"""environment.json: every start of an experiment, with its devices, versions and commit."""
import contextlib
import os
import platform
import subprocess
from collections import Counter
from datetime import datetime, timezone
from importlib import import_module
from pathlib import Path

import torch

from utilities.parallel import available_cores
from utilities.texts import read_json, write_json

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ('torch', 'torchaudio', 'timm', 'numpy')


def now():
    """The time in UTC, to the second."""
    return datetime.now(timezone.utc).strftime('%Y-%m-%d %H:%M:%S UTC')


def record_start(exp_dir, device, processes=1):
    """Append a start to environment.json: when, on which devices, which versions. No name of a host or a user."""
    path = exp_dir / 'environment.json'
    starts = read_json(path)['starts'] if path.exists() else []
    gpus = []
    if device.type == 'cuda':  # without a number, training takes all: devices.parallelise
        numbers = range(torch.cuda.device_count()) if device.index is None else [device.index]
        gpus = [torch.cuda.get_device_name(number) for number in numbers]
    start = {'time': now(), 'device': str(device), 'devices': processes * max(1, len(gpus)), 'processes': processes,
             'GPUs': ', '.join(f'{processes * count} × {name}' for name, count in Counter(gpus).items()) or None,
             'CUDA': torch.version.cuda, 'CPU cores': available_cores(), 'platform': platform.platform(),
             'python': platform.python_version(),
             **{name: import_module(name).__version__ for name in PACKAGES}, **git_state(ROOT)}
    write_json(path, {'starts': [*starts, start]})


def git_state(folder):
    """The commit that a repository's folder is at, and whether tracked files differ from it; None where unknown."""
    def git(*command):
        done = subprocess.run(['git', '--no-optional-locks', '-C', folder, *command], check=True,
                              capture_output=True, timeout=10)
        return os.fsdecode(done.stdout).strip()  # git writes paths as the file system does
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if Path(git('rev-parse', '--show-toplevel')) == folder:  # and not a copy of it inside another repository
            return {'commit': git('rev-parse', 'HEAD'),
                    'changed since the commit': bool(git('status', '--porcelain', '-uno'))}
    return {'commit': None, 'changed since the commit': None}
