"""Record every start of an experiment in environment.json: command, devices, versions, commit."""
import contextlib
import os
import platform
import shlex
import subprocess
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from utilities.errors import DataError
from utilities.formatting import now
from utilities.parallel import available_cores
from utilities.texts import read_json, write_json

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ('torch', 'torchaudio', 'timm', 'numpy')


def record_start(exp_dir: Path, device: torch.device, processes: int = 1) -> None:
    """Append a start to environment.json.

    The names of host and user are not recorded, unless a path on the command line has them.
    """
    starts = read_starts(exp_dir)
    gpus = []
    if device.type == 'cuda':  # without a number: all GPUs (devices.parallelise)
        numbers = range(torch.cuda.device_count()) if device.index is None else [device.index]
        gpus = [torch.cuda.get_device_name(number) for number in numbers]
    names = [f'{processes * count} × {name}' for name, count in Counter(gpus).items()]
    versions = {name: import_module(name).__version__ for name in PACKAGES}
    start = {'time': now(), 'command': shlex.join(sys.argv), 'device': str(device),
             'devices': processes * max(1, len(gpus)), 'processes': processes,
             'GPUs': ', '.join(names) or None, 'CUDA': torch.version.cuda,
             'CPU cores': available_cores(), 'platform': platform.platform(),
             'python': platform.python_version(), **versions, **git_state(ROOT)}
    write_json(exp_dir / 'environment.json', {'starts': [*starts, start]})


def read_starts(exp_dir: Path) -> list[dict[str, Any]]:
    """Return what environment.json says of each start of an experiment; [] if there is no file.

    Raises:
        DataError: the file cannot be read, or has no starts.
    """
    path = exp_dir / 'environment.json'
    starts = read_json(path).get('starts') if path.exists() else []
    if not isinstance(starts, list):
        raise DataError(f'cannot read {path}: expected a list of "starts"')
    return starts


def git_state(folder: Path) -> dict[str, str | bool | None]:
    """Return a repository's commit, and whether its tracked files differ from it.

    Both are None if git does not know.
    """
    def git(*command):
        done = subprocess.run(['git', '--no-optional-locks', '-C', folder, *command], check=True,
                              capture_output=True, timeout=10)
        return os.fsdecode(done.stdout).strip()  # git writes paths as the file system does
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        # A copy of the folder inside another repository has another top level.
        if Path(git('rev-parse', '--show-toplevel')) == folder:
            return {'commit': git('rev-parse', 'HEAD'),
                    'changed since the commit': bool(git('status', '--porcelain', '-uno'))}
    return {'commit': None, 'changed since the commit': None}
