"""Run nn.DataParallel without GPUs: copies on the CPU stand in for devices.

PyTorch's own code runs: DataParallel.forward, replicate, which copies every module's __dict__,
scatter, parallel_apply with its threads and its autocast, gather. Only two things are replaced:
what moves a tensor to another device, and what asks for devices that this machine does not have.
"""
import contextlib
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch import nn
from torch.nn.parallel import _functions, comm, scatter_gather
from torch.utils.checkpoint import DefaultDeviceType

COUNT = 3  # devices; batches of 5 and 4 are split into 2, 2, 1 and 2, 2
CPU = torch.device('cpu')


class DataParallelOnCpu(nn.DataParallel):
    """nn.DataParallel over COUNT stand-ins. Its constructor does not look for GPUs."""

    def __init__(self, module):
        nn.Module.__init__(self)
        self.module, self.dim = module, 0
        self.device_ids, self.output_device, self.src_device_obj = list(range(COUNT)), 0, CPU


class Broadcast(torch.autograd.Function):
    """Replaces PyTorch's Broadcast: returns the tensors, then copies for the other devices.

    The gradients are summed into new tensors, as in PyTorch. Views would give the same sum, but the
    gradients of the positional embedding and of the two tokens would share their memory.
    """

    @staticmethod
    def forward(ctx, devices, *tensors):
        ctx.count = len(tensors)
        return (*tensors, *(tensor.clone() for _ in devices[1:] for tensor in tensors))

    @staticmethod
    def backward(ctx, *grads):
        return None, *(torch.stack(grads[i::ctx.count]).sum(dim=0) for i in range(ctx.count))


def broadcast_coalesced(tensors, devices):
    """Replace the function that copies tensors that need no gradient."""
    return [list(tensors), *([tensor.detach().clone() for tensor in tensors] for _ in devices[1:])]


def scatter(devices, sizes, dim, tensor):
    """Replace Scatter.apply. Like torch.chunk, it may return fewer parts than devices."""
    assert sizes is None
    return tuple(part.clone() for part in tensor.chunk(len(devices), dim))


def gather(device, dim, *tensors):
    """Replace Gather.apply."""
    return torch.cat(tensors, dim)


@contextlib.contextmanager
def stand_in_devices():
    """Put the replacements into PyTorch, so that a DataParallelOnCpu runs inside the block."""
    if not hasattr(torch.accelerator, 'device_index'):  # as in torch 2.6
        pytest.skip('nn.DataParallel of this PyTorch asks CUDA itself, and no stand-in can answer')
    here = contextlib.nullcontext()
    with contextlib.ExitStack() as patches:
        for owner, name, substitute in (
                (_functions, 'Broadcast', Broadcast),
                (comm, 'broadcast_coalesced', broadcast_coalesced),
                (scatter_gather, 'Scatter', SimpleNamespace(apply=scatter)),
                (scatter_gather, 'Gather', SimpleNamespace(apply=gather)),
                (DefaultDeviceType, '_default_device_type', 'cpu'),  # PyTorch sets it
                (torch.accelerator, 'is_available', lambda: True),
                (torch.accelerator, 'current_accelerator', lambda *_: CPU),
                (torch.accelerator, 'current_stream', lambda *_: here),
                (torch.accelerator, 'device_index', lambda *_: here)):
            patches.enter_context(mock.patch.object(owner, name, substitute))
        yield
