"""Choose the device and the precision of a computation."""
import logging
import math
import os
import re
import sys

import torch
from torch import nn

from training import gpus
from utilities.cli import exit_on

logger = logging.getLogger(__name__)


def choose_device(name: str) -> torch.device:
    """Return the device that `--device` asks for; `auto` is CUDA, else Apple's MPS, else the CPU.

    Raises:
        ValueError: if it is not there; for `auto`, if there is a GPU that PyTorch cannot use, since
            nobody wants to train on a CPU by accident.
    """
    if name == 'auto':
        is_mps, is_cuda = torch.backends.mps.is_available(), torch.cuda.is_available()
        problem = None if is_mps else gpus.find_problem()
        if problem:
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


def choose_precision(amp: str, device: torch.device) -> torch.dtype | None:
    """Return the autocast dtype that `--amp` asks for, or None for float32 throughout.

    `auto` is bfloat16 on GPUs and CPUs that compute in it themselves, float16 with a gradient
    scaler on older GPUs, float32 elsewhere. On a CPU with avx512_bf16 a training step was measured
    to be 1.3 to 2.6 times as fast in bfloat16.

    Raises:
        ValueError: if there is no such precision.
    """
    named = {'bf16': torch.bfloat16, 'fp16': torch.float16, 'off': None}
    if amp in named:
        return named[amp]
    if amp != 'auto':
        raise ValueError(f'--amp must be auto, {", ".join(named)}, got {amp!r}')
    if device.type == 'cuda':
        indices = range(torch.cuda.device_count()) if device.index is None else [device.index]
        # From Ampere on. torch.cuda.is_bf16_supported looks at the current GPU alone.
        majors = [torch.cuda.get_device_capability(index)[0] for index in indices]
        native = torch.version.hip or min(majors) >= 8
        return torch.bfloat16 if native else torch.float16
    if device.type == 'cpu':
        # torch says it from 2.11 on. A CPU that has to emulate bfloat16 is slower in it.
        capabilities: dict = getattr(torch.cpu, 'get_capabilities', dict)()
        is_native = any(capabilities.get(name) for name in ('avx512_bf16', 'amx_bf16'))
        return torch.bfloat16 if is_native else None
    return None


def move(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Move a tensor to a device.

    CUDA copies from pinned memory while the CPU continues. On MPS such a copy could read memory
    that is in other use by then (PyTorch issue 189690).
    """
    return tensor.to(device, non_blocking=torch.device(device).type == 'cuda')


def features_on_device(features: str, device: torch.device) -> bool:
    """Return whether fbanks are computed on the device that trains, and not in the data workers.

    `--features auto` means: on CUDA.
    """
    return features == 'gpu' or features == 'auto' and device.type == 'cuda'


def splits_batches(device: torch.device) -> bool:
    """Return whether this process splits its batches over several GPUs (nn.DataParallel).

    It does so if the device is `cuda`, without a number. If there are several processes, each has a
    GPU with a number instead (DistributedDataParallel).
    """
    return device.type == 'cuda' and device.index is None and torch.cuda.device_count() > 1


def parallelise(model: nn.Module, device: torch.device) -> nn.Module:
    """Wrap a model in nn.DataParallel if the device stands for several GPUs."""
    if splits_batches(device):
        logger.info('every batch is split over %d GPUs', torch.cuda.device_count())
        return nn.DataParallel(model)
    return model


def memory_bytes() -> float:
    """Return how much memory this machine has; math.inf if the system does not say."""
    try:
        return os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    except (AttributeError, OSError, ValueError):
        return math.inf


if __name__ == '__main__':  # as the recipes start it, before they prepare data
    with exit_on(ValueError):
        choose_device(sys.argv[1])
