"""Pretend that there is a CUDA device, with PyTorch's FakeTensorMode. It computes nothing.

Tensors have a shape, a precision and a device, but no numbers. As on a real GPU, an operation on
tensors of two devices raises. Backward passes do not run: Gpu.backward sets the gradients instead.
"""
import contextlib
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._pytree import tree_map_only

from audio import fbank as fbank_module

CUDA = torch.device('cuda', 0)


class FakeCuda(FakeTensorMode):
    """FakeTensorMode that also takes real tensors of the CPU. Every number is read as 0."""

    def __init__(self):
        super().__init__(allow_non_fake_inputs=True)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:  # item(), float(), int(), bool()
            return 0
        return super().__torch_dispatch__(func, types, args, kwargs)


class Gpu:
    """The fake device. It remembers the parameters on it."""

    def __init__(self):
        self.parameters = []

    def put(self, model):
        """Move a model to this device in place, as Module.to does; return it."""
        for module in model.modules():
            for name, parameter in list(module._parameters.items()):
                setattr(module, name, nn.Parameter(torch.empty(parameter.shape, device=CUDA)))
        self.parameters += model.parameters()
        return model

    def backward(self, loss):
        """Replace Tensor.backward: give all parameters on this device a gradient of zeros."""
        assert loss.device == CUDA and loss.requires_grad
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)


@contextlib.contextmanager
def fake_cuda():
    """Run a block with a fake CUDA device. Build models and data before it.

    FakeTensorMode cannot do some things; these are replaced here.

    Yields:
        The Gpu, which takes the models.
    """
    if not hasattr(torch.accelerator, 'device_index'):  # torch 2.6 asks the driver and aborts
        pytest.skip('the FakeTensorMode of this PyTorch needs a real GPU')
    gpu, tables = Gpu(), fbank_module.fbank_tables
    with contextlib.ExitStack() as patches:
        for owner, name, substitute in (
                (torch.Tensor, 'numpy', numpy),
                (torch.Tensor, 'backward', lambda loss: gpu.backward(loss)),
                (torch.cuda.amp.common, 'amp_definitely_not_available', lambda: False),
                (torch.cuda, 'is_bf16_supported', lambda **_: True),
                (fbank_module, 'fbank_tables', lambda *where: fbank_tables(tables, *where))):
            patches.enter_context(mock.patch.object(owner, name, substitute))
        patches.enter_context(FakeCuda())
        yield gpu


def numpy(tensor):
    """Replace Tensor.numpy: return zeros, since there are no numbers; raise for one on a GPU."""
    if tensor.device.type != 'cpu':
        raise TypeError(f'cannot convert a tensor on {tensor.device} to NumPy')
    return np.zeros(tensor.shape, np.float32)


def fbank_tables(make, num_mel_bins, device, sample_rate):
    """Replace fbank_module.fbank_tables, whose shapes depend on numbers.

    Call the real function without its cache, on the device `meta`. Tensors that it makes there are
    moved to the fake device.

    Args:
        make: the real function.
    """
    with unset_fake_temporarily():
        size, window, filters = make.__wrapped__(num_mel_bins, torch.device('meta'), sample_rate)

    def move(tensor):
        return torch.empty(tensor.shape, device=device if tensor.is_meta else tensor.device)
    return size, move(window), [(fft_bins, move(weights)) for fft_bins, weights in filters]


def without_numbers(batch):
    """Return a structure of tensors in which fake tensors of the CPU replace the real ones."""
    return tree_map_only(torch.Tensor, lambda one: torch.empty(one.shape, dtype=one.dtype), batch)
