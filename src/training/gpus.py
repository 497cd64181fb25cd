"""Find out why PyTorch cannot use a GPU that is there, and which build of PyTorch can."""
import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch

DEVICES = Path('/dev')  # where Linux shows GPUs as nvidia0, nvidia1, ...
# The first entry of CUDA_VISIBLE_DEVICES if it asks for a GPU. Anything else hides all GPUs: an
# empty text, -1, NoDevFiles (Slurm), 10000 and none (HTCondor).
A_GPU = re.compile(r'\d{1,3}|(GPU|MIG)-.+')
SMI_SECONDS = 20  # a driver that is broken can make nvidia-smi hang
# Builds of PyTorch for CUDA 12 run with every driver from version 525 on. The build cu128 has
# kernels for GPUs from Turing (compute capability 7.5) to Blackwell (12.0), cu126 for older ones,
# from Maxwell (5.0) on. PyTorch 2.11 is the last release with both (PyTorch issue 172663).
OLDEST_CUDA = 12
OLDEST_GPU, TURING, NEWEST_GPU = (5, 0), (7, 5), (12, 1)
FIRST_RELEASES, LAST_RELEASE = {'cu126': (2, 6, 0), 'cu128': (2, 7, 0)}, (2, 11, 0)


def find_problem(index: int | None = None, is_asked_for: bool = False) -> str | None:
    """Return why PyTorch cannot use a GPU of this machine and what to do, or None.

    Args:
        index: number of the only GPU to look at; None: look at all of them.
        is_asked_for: look for the reason even if nothing shows that there is a GPU.
    """
    if torch.cuda.is_available():
        what = f'PyTorch {torch.__version__} cannot use every GPU'
        indices = range(torch.cuda.device_count()) if index is None else [index]
        found = _find_missing_kernels(indices)
    else:
        sign = find_sign()
        what = f'{sign or "a GPU was asked for"}, but PyTorch {torch.__version__} cannot use it'
        found = explain_no_cuda() if sign or is_asked_for else None
    return found and '{}: {}. --device cpu continues without a GPU; {}'.format(what, *found)


def find_sign() -> str | None:
    """Return what shows that there is an NVIDIA GPU, as a sentence.

    Return None if nothing shows it, or if CUDA_VISIBLE_DEVICES hides all GPUs.

    A GPU that this process is not allowed to use belongs to another job and does not count.
    """
    chosen = os.environ.get('CUDA_VISIBLE_DEVICES')
    if chosen is not None:
        is_one = A_GPU.fullmatch(chosen.split(',')[0].strip())
        return f'CUDA_VISIBLE_DEVICES={chosen} asks for a GPU' if is_one else None
    if gpus := os.environ.get('SLURM_JOB_GPUS'):
        return f'Slurm gave this job a GPU (SLURM_JOB_GPUS={gpus})'
    files = [path for path in DEVICES.glob('nvidia[0-9]*') if _is_ours(path)]
    if files:
        return f'this machine has a GPU ({min(files)})'
    if listed := [line for line in _ask_smi('--list-gpus') if line.startswith('GPU ')]:
        return f'this machine has a GPU (nvidia-smi lists {listed[0].split(" (UUID")[0]})'
    return None


def _is_ours(path):
    try:
        os.close(os.open(path, os.O_RDWR))
    except OSError as error:
        # With any other error, this process may use the GPU, but its driver does not work.
        return error.errno not in (errno.EPERM, errno.EACCES)
    return True


def _ask_smi(*arguments):
    """Return the lines that nvidia-smi prints; no lines if it is not there or fails."""
    program = shutil.which('nvidia-smi')
    if program is None:
        return []
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True,
                              timeout=SMI_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def explain_no_cuda() -> tuple[str, str]:
    """Return why torch.cuda is not available, and what to do about it."""
    if torch.version.cuda is None and torch.version.hip is None:
        return 'it is a build for CPUs', f'install a build for CUDA: {pip_line(_fitting_build())}'
    try:
        torch.cuda.init()
        reason = 'No CUDA GPUs are available'
    except (AssertionError, RuntimeError) as error:
        reason = str(error).strip().split('\n')[0]
    if found := re.search(r'too old \(found version (\d+)\)', reason):
        major, minor = divmod(int(found[1]) // 10, 100)  # 12040 is CUDA 12.4
        reason = (f'the driver supports CUDA {major}.{minor}, and this build needs '
                  f'{torch.version.cuda}')
        if major < OLDEST_CUDA:
            return reason, 'update the driver: the builds for CUDA 12 need version 525 or newer'
        return reason, (f'update the driver, or install a build that fits it: '
                        f'{pip_line(_fitting_build())}')
    if 'no NVIDIA driver' in reason:
        return ('there is no NVIDIA driver',
                'install a driver; a container gets that of its host with --gpus all (Docker) or '
                '--nv (Apptainer)')
    if 'No CUDA GPUs' in reason and (chosen := os.environ.get('CUDA_VISIBLE_DEVICES')):
        return (f'there is no such GPU as in CUDA_VISIBLE_DEVICES={chosen}',
                'correct that variable, or unset it')
    return reason, ('see whether nvidia-smi works; a job on a cluster has GPUs only if it asks for '
                    'them')


def _find_missing_kernels(indices):
    """Return why PyTorch cannot use a GPU that it has no kernels for, and what to do; else None."""
    architectures = torch.cuda.get_arch_list()
    if torch.version.hip or not architectures:
        return None
    capabilities = {index: torch.cuda.get_device_capability(index) for index in indices}
    without = [index for index, one in capabilities.items() if not has_kernels(one, architectures)]
    if not without:
        return None
    index, capability = without[0], capabilities[without[0]]
    reason = (f'it has no kernels for GPU {index}, {torch.cuda.get_device_name(index)}, of compute '
              f'capability {capability[0]}.{capability[1]}, only for {" ".join(architectures)}')
    names = _visible_gpus()  # PyTorch counts the visible ones from 0
    fitting = ','.join(names[one] if names else str(one)
                       for one in capabilities if one not in without)
    hide = f'hide that GPU with CUDA_VISIBLE_DEVICES={fitting}, or ' if fitting else ''
    return reason, hide + _advise_on_build(capability)


def _visible_gpus():
    """Return the names in CUDA_VISIBLE_DEVICES, such as ['2', '3']; [] if it is not set."""
    chosen = os.environ.get('CUDA_VISIBLE_DEVICES', '')
    return [name.strip() for name in chosen.split(',') if name.strip()]


def _advise_on_build(capability):
    if capability < OLDEST_GPU:
        return "take another GPU: no build of today's PyTorch has kernels for this one"
    if capability > NEWEST_GPU:
        return (f'install a newer PyTorch: {sys.executable} -m pip install --upgrade torch '
                f'torchaudio torchvision')
    build = pip_line('cu128' if capability >= TURING else 'cu126')
    return f'install a build with kernels for it: {build}'


def has_kernels(capability: tuple[int, int], architectures: list[str]) -> bool:
    """Return whether a build of PyTorch runs on a GPU.

    Machine code (sm_86) runs on GPUs of the same major version whose minor version is not lower.
    Intermediate code (compute_90) runs on all GPUs that are not older (CUDA C++ programming guide,
    "application compatibility").

    Args:
        capability: compute capability of the GPU.
        architectures: as torch.cuda.get_arch_list() names them.
    """
    for name in architectures:
        major, minor = _capability(name)
        if name.startswith('compute') and capability >= (major, minor):
            return True
        if name.startswith('sm') and capability[0] == major and capability[1] >= minor:
            return True
    return False


def _capability(name):
    """Return sm_90, sm_90a or compute_120 as (9, 0) or (12, 0)."""
    digits = re.search(r'\d+', name)
    return (int(digits[0][:-1]), int(digits[0][-1])) if digits else (0, 0)


def _fitting_build():
    """Return the build for this machine's newest GPU; cu126 if nvidia-smi does not say."""
    lines = _ask_smi('--query-gpu=compute_cap', '--format=csv,noheader')
    found = [tuple(map(int, line.split('.'))) for line in lines if re.fullmatch(r'\d+\.\d+', line)]
    return 'cu128' if found and max(found) >= TURING else 'cu126'


def pip_line(build: str) -> str:
    """Return the pip command that replaces PyTorch by another build.

    It keeps the version of PyTorch if that version has such a build; else, it takes 2.11.0. It asks
    for 2.11.0+cu126, not for 2.11.0, since pip would keep any build of 2.11.0 that is installed.

    Args:
        build: cu126 or cu128.
    """
    version = tuple(map(int, re.findall(r'\d+', torch.__version__)[:3]))
    if not FIRST_RELEASES[build] <= version <= LAST_RELEASE:
        version = LAST_RELEASE
    release = '.'.join(map(str, version))
    vision = f'0.{version[1] + 15}.{version[2]}'  # 0.26.0 belongs to torch 2.11.0
    return (f'{sys.executable} -m pip install torch=={release}+{build} '
            f'torchaudio=={release}+{build} torchvision=={vision}+{build} '
            f'--extra-index-url https://download.pytorch.org/whl/{build}')
