"""Which devices and which precision an experiment runs in."""
import logging
import math
import os
import re

import torch
from torch import nn

logger = logging.getLogger(__name__)


def choose_device(name):
    """The torch.device that `--device` asks for; `auto` takes CUDA, then Apple's MPS, then the CPU.

    Raises ValueError where it is not there.
    """
    if name == 'auto':
        name = 'cuda' if torch.cuda.is_available() else 'mps' if torch.backends.mps.is_available() else 'cpu'
    if not re.fullmatch('cpu|mps|cuda(:[0-9]{1,2})?', name):  # torch takes cuda:128 for cuda:-128
        raise ValueError(f'--device must be auto, cpu, cuda, cuda:N or mps, got {name!r}')
    device = torch.device(name)
    if device.type == 'cuda' and not (device.index or 0) < torch.cuda.device_count():
        raise ValueError(f'--device {name}: this machine has {torch.cuda.device_count()} CUDA devices')
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
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == 'cpu':
        capabilities = torch.cpu.get_capabilities()
        return torch.bfloat16 if capabilities.get('avx512_bf16') or capabilities.get('amx_bf16') else None
    return None


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


def memory_bytes():
    """How much memory this machine has; infinite where the system does not say."""
    try:
        return os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    except (AttributeError, OSError, ValueError):
        return math.inf
