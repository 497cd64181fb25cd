"""Which devices and which precision an experiment runs in."""
import logging
import math
import os
import re
import sys

import torch
from torch import nn

from training import gpus
from utilities.cli import exit_on

# What PyTorch's allocator and CUDA say if there is no memory left, and what cuBLAS and cuDNN say.
OUT_OF_MEMORY = ('out of memory', 'STATUS_ALLOC_FAILED')

logger = logging.getLogger(__name__)


def choose_device(name: str) -> torch.device:
    """Return the device that `--device` asks for; `auto` is CUDA, else Apple's MPS, else the CPU.

    Raises:
        ValueError: It is not there. For `auto`, too, if there is a GPU that PyTorch cannot use: nobody
            wants to train on a CPU by accident.
    """
    if name == 'auto':
        is_mps, is_cuda = torch.backends.mps.is_available(), torch.cuda.is_available()
        if problem := None if is_mps else gpus.find_problem():
            raise ValueError(problem)
        return torch.device('cuda' if is_cuda else 'mps' if is_mps else 'cpu')
    if not re.fullmatch('cpu|mps|cuda(:[0-9]{1,2})?', name):  # torch takes cuda:128 for cuda:-128
        raise ValueError(f'--device must be auto, cpu, cuda, cuda:N or mps, got {name!r}')
    device = torch.device(name)
    if device.type == 'cuda':
        count = torch.cuda.device_count()
        if count and (device.index or 0) >= count:
            raise ValueError(f'--device {name}: this machine has {count} CUDA devices')
        if problem := gpus.find_problem(device.index, is_asked_for=True):
            raise ValueError(f'--device {name}: {problem}')
    if device.type == 'mps' and not torch.backends.mps.is_available():
        raise ValueError('--device mps: PyTorch finds no MPS device on this machine')
    return device


def choose_precision(amp, device):
    """The autocast dtype that `--amp` asks for, or None for float32 throughout.

    auto: bfloat16 on GPUs and CPUs that compute in it natively (on a CPU with avx512_bf16 a training step was measured
    1.3 to 2.6 times as fast), float16 with a gradient scaler on older GPUs, float32 elsewhere.
    """
    if amp != 'auto':
        return {'bf16': torch.bfloat16, 'fp16': torch.float16, 'off': None}[amp]
    if device.type == 'cuda':
        indices = range(torch.cuda.device_count()) if device.index is None else [device.index]
        # From Ampere on, and not what torch.cuda.is_bf16_supported says, which looks at the current GPU alone.
        native = torch.version.hip or all(torch.cuda.get_device_capability(index)[0] >= 8 for index in indices)
        return torch.bfloat16 if native else torch.float16
    if device.type == 'cpu':
        # Before torch 2.11 nothing says it, and a CPU that has to emulate bfloat16 is slower in it.
        capabilities = getattr(torch.cpu, 'get_capabilities', dict)()
        return torch.bfloat16 if capabilities.get('avx512_bf16') or capabilities.get('amx_bf16') else None
    return None


def move(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor, or what has its method `to`, on a device.

    CUDA copies out of pinned memory while the CPU goes on. On MPS such a copy would read memory that may be in other
    use by then (PyTorch issue 189690).
    """
    return tensor.to(device, non_blocking=torch.device(device).type == 'cuda')


def features_on_device(features, device):
    """Whether `--features` asks for fbanks on the device that trains and not in the data workers; auto: on CUDA."""
    return features == 'gpu' or features == 'auto' and device.type == 'cuda'


def splits_batches(device):
    """Return whether one process splits its batches: device is `cuda`, without a number, and there are several GPUs.

    A process of several has a numbered one: DistributedDataParallel goes around its model in training.
    """
    return device.type == 'cuda' and device.index is None and torch.cuda.device_count() > 1


def parallelise(model, device):
    """Wrap a model in nn.DataParallel if `device` stands for several GPUs."""
    if splits_batches(device):
        logger.info('every batch is split over %d GPUs', torch.cuda.device_count())
        return nn.DataParallel(model)
    return model


def out_of_memory(error: BaseException) -> str | None:
    """Return the line of an error that says that a GPU has no memory left, or None if no line says so.

    An error from a thread of nn.DataParallel begins with the thread's traceback, so the last such line counts.
    """
    lines = str(error).splitlines() if isinstance(error, RuntimeError) else []
    return next((line for line in reversed(lines) if any(sign in line for sign in OUT_OF_MEMORY)), None)


def memory_bytes():
    """Return how much memory this machine has; math.inf if the system does not say."""
    try:
        return os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    except (AttributeError, OSError, ValueError):
        return math.inf


if __name__ == '__main__':  # as the recipes start it, before they prepare data
    with exit_on(ValueError):
        choose_device(sys.argv[1])
