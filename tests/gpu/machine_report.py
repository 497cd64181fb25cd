"""What a bug report about a GPU needs to know of a machine, in a few lines without any names."""
import platform
import shutil
import subprocess
from importlib import import_module

import torch

from utilities.environment import PACKAGES, ROOT, git_state
from utilities.parallel import available_cores


def describe_machine():
    """Return the lines: versions, driver, operating system, commit, GPUs."""
    state = git_state(ROOT)
    return [
        ', '.join(f'{package} {version_of(package)}' for package in (*PACKAGES, 'triton')),
        f'CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, '
        f'NCCL {nccl_version()}, driver {driver_version()}',
        f'{platform.system()} {platform.machine()}, {available_cores()} CPU cores',
        f'commit {state["commit"]}, changed since then: {state["changed since the commit"]}',
        *describe_gpus()]


def describe_gpus():
    """Return a line for each CUDA device, or one that says that there is none."""
    if not torch.cuda.is_available():
        return [f'GPUs: {torch.cuda.device_count()} that PyTorch sees, none that it can use']
    return [f'GPU {number}: {describe_gpu(number)}' for number in range(torch.cuda.device_count())]


def describe_gpu(number):
    """Return name, memory and compute capability, or what PyTorch says about a GPU out of order."""
    try:
        found = torch.cuda.get_device_properties(number)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return (f'{found.name}, {found.total_memory / 2 ** 30:.1f} GiB, '
            f'compute capability {found.major}.{found.minor}')


def version_of(package):
    """Return the version of a package that need not be installed."""
    try:
        return import_module(package).__version__
    except ImportError:
        return 'missing'


def nccl_version():
    """Return the version of NCCL that PyTorch brings along."""
    try:
        return '.'.join(map(str, torch.cuda.nccl.version()))
    except (AttributeError, RuntimeError):  # a build without NCCL
        return 'missing'


def driver_version():
    """Return the version of NVIDIA's driver, as nvidia-smi says it."""
    if shutil.which('nvidia-smi') is None:
        return 'unknown, there is no nvidia-smi'
    query = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=60).stdout.split('\n')
    except (OSError, subprocess.TimeoutExpired) as error:
        return f'unknown, nvidia-smi failed: {type(error).__name__}'
    return said[0].strip() or 'unknown'
