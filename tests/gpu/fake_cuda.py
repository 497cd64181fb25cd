"""A CUDA device that computes nothing: PyTorch's FakeTensorMode, for a machine without a GPU.

Tensors have a shape, a precision and a device, but no numbers. Operands on two devices raise, as on
a GPU. Backward passes do not run in it: their results are put in place by hand.
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
    """FakeTensorMode that takes real tensors of the CPU, too, and reads every number as 0."""

    def __init__(self):
        super().__init__(allow_non_fake_inputs=True)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:  # item(), float(), int(), bool()
            return 0
        return super().__torch_dispatch__(func, types, args, kwargs)


class Gpu:
    """The fake device, and the models on it."""

    def __init__(self):
        self.parameters = []

    def put(self, model):
        """Move a model here, in place, as Module.to does with real tensors; return it."""
        for module in model.modules():
            for name, parameter in list(module._parameters.items()):
                setattr(module, name, nn.Parameter(torch.empty(parameter.shape, device=CUDA)))
        self.parameters += model.parameters()
        return model

    def backward(self, loss):
        """Stand in for Tensor.backward: give all parameters on this device a gradient."""
        assert loss.device == CUDA and loss.requires_grad
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)


@contextlib.contextmanager
def fake_cuda():
    """Run a block in FakeCuda, with what FakeTensorMode lacks. Build models and data before it.

    Yields the Gpu to put models on.
    """
    if not hasattr(torch.accelerator, 'device_index'):  # torch 2.6 asks the driver, and aborts
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
    """Stand in for Tensor.numpy: there are no numbers. It raises if they would be on a GPU."""
    if tensor.device.type != 'cpu':
        raise TypeError(f'cannot convert a tensor on {tensor.device} to NumPy')
    return np.zeros(tensor.shape, np.float32)


def fbank_tables(make, num_mel_bins, device, sample_rate):
    """Stand in for fbank_module.fbank_tables, whose shapes depend on numbers.

    The real one runs past its cache on the device `meta`: what it puts there is on the fake device.
    """
    with unset_fake_temporarily():
        size, window, filters = make.__wrapped__(num_mel_bins, torch.device('meta'), sample_rate)

    def placed(tensor):
        return torch.empty(tensor.shape, device=device if tensor.is_meta else tensor.device)
    return size, placed(window), [(fft_bins, placed(weights)) for fft_bins, weights in filters]


def without_numbers(batch):
    """Return a structure of tensors with fake ones of the CPU, of the same shapes, instead."""
    return tree_map_only(torch.Tensor, lambda one: torch.empty(one.shape, dtype=one.dtype), batch)
