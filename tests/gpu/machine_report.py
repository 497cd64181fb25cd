"""Describe a machine for a bug report about a GPU, without names of users or folders."""
import platform
import subprocess
from importlib import import_module

import torch

from training.environment import PACKAGES, ROOT, git_state
from utilities.parallel import available_cores


def describe_machine():
    """Return lines about versions, driver, operating system, commit and GPUs."""
    state = git_state(ROOT)
    return [
        ', '.join(f'{package} {answer(version_of, package)}' for package in (*PACKAGES, 'triton')),
        f'CUDA {torch.version.cuda}, cuDNN {answer(torch.backends.cudnn.version)}, '
        f'NCCL {answer(nccl_version)}, driver {answer(driver_version)}',
        f'{platform.system()} {platform.machine()}, {available_cores()} CPU cores',
        f'commit {state["commit"]}, changed since then: {state["changed since the commit"]}',
        *describe_gpus()]


def answer(ask, *arguments):
    """Return ask(*arguments). If it fails, as with a broken GPU, return the error's first line."""
    try:
        return ask(*arguments)
    except Exception as error:
        return (str(error) or type(error).__name__).splitlines()[0]


def describe_gpus():
    """Return a line for each CUDA device, or one that says that there is none."""
    if not torch.cuda.is_available():
        return [f'GPUs: {torch.cuda.device_count()} that PyTorch sees, none that it can use']
    return [f'GPU {number}: {answer(describe_gpu, number)}'
            for number in range(torch.cuda.device_count())]


def describe_gpu(number):
    """Return the name, the memory and the compute capability of a GPU."""
    found = torch.cuda.get_device_properties(number)
    return (f'{found.name}, {found.total_memory / 2 ** 30:.1f} GiB, '
            f'compute capability {found.major}.{found.minor}')


def version_of(package):
    """Return the version of a package."""
    return import_module(package).__version__


def nccl_version():
    """Return the version of NCCL that comes with PyTorch."""
    return '.'.join(map(str, torch.cuda.nccl.version()))


def driver_version():
    """Return the version of NVIDIA's driver."""
    query = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        return 'unknown, as there is no nvidia-smi'
    return (done.stdout or done.stderr).strip().split('\n')[0]
