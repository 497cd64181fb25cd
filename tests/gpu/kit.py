"""Share among the tests of the GPU kit: sizes, tolerances, comparisons of two devices."""
import functools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import golden
from models import ASTModel
from small_model import CLASSES

FRAMES, BINS = 64, 32  # of the input of make_ast; with strides of 8, 3 x 7 patches
each_precision = pytest.mark.parametrize('dtype', [None, torch.bfloat16, torch.float16],
                                         ids=['float32', 'bfloat16', 'float16'])
# Run the test on a GPU only: on a CPU it would prove nothing, or another file already has it.
on_a_gpu_only = pytest.mark.parametrize('device', ['cuda'], indirect=True)
# How far logits, which are about 1, may be from those of the CPU in float32. In float32, two
# machines differ by rounding. bfloat16 keeps 8 bits, and differs by 0.008 on a CPU; float16 keeps
# 11, and differs by 0.002.
LOGITS = {None: 5e-4, torch.bfloat16: 0.05, torch.float16: 0.01}
# The same for gradients and updates, relative to their norm. On a CPU, bfloat16 differs by 0.008,
# float16 by 0.001.
GRADIENTS = {None: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.01}


@functools.cache
def golden_ast():
    """Build the model that make_ast copies. It is built once, since this takes a second."""
    return golden.fill(ASTModel(
        CLASSES, fstride=8, tstride=8, input_fdim=BINS, input_tdim=FRAMES, model_size='tiny224',
        imagenet_pretrain=False, verbose=False)).eval()


def require_gpus(count):
    """Skip the test if this machine has fewer CUDA devices."""
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found == 0:
        pytest.skip('no CUDA device: run this on a machine with a GPU')
    if found < count:
        pytest.skip(f'{found} CUDA device: run this on a machine with {count} GPUs')


def require_precision(dtype, device):
    """Skip the test if a GPU does not compute in this precision itself."""
    if dtype is torch.bfloat16 and device.type == 'cuda' and not torch.cuda.is_bf16_supported(
            including_emulation=False):
        pytest.skip('this GPU does not compute in bfloat16: --amp auto takes float16 on it')


def one_hot(count):
    """Return labels (count, CLASSES) with one class each, in turn."""
    return F.one_hot(torch.arange(count) % CLASSES, CLASSES).float()


def gradients(model):
    """Return the gradients of a model's parameters, on the CPU."""
    return [parameter.grad.cpu() for parameter in model.parameters()]


def weights(model):
    """Return copies of a model's parameters, on the CPU."""
    return [parameter.detach().cpu().clone() for parameter in model.parameters()]


def relative_error(values, references):
    """Return the norm of the difference of two lists of tensors, divided by that of the second."""
    difference = sum(float((value - reference).square().sum())
                     for value, reference in zip(values, references, strict=True))
    return (difference / sum(float(reference.square().sum()) for reference in references)) ** 0.5


def dtypes_inside(model):
    """Return a list to which each forward pass adds the precision of the first block's MLP."""
    seen = []
    model.v.blocks[0].mlp.fc1.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    return seen


def require_same_experiment(exp_dir, reference, tolerance):
    """Compare the losses and predictions that two experiments left in their folders."""
    (losses, expected) = (np.loadtxt(folder / 'result.csv', delimiter=',')[..., 5:7]
                          for folder in (exp_dir, reference))
    np.testing.assert_allclose(losses, expected, atol=tolerance)
    kept = [reference / 'predictions' / f'{name}.npy'
            for name in ('predictions_1', 'predictions_2', 'cum_predictions')]
    for path in kept:
        np.testing.assert_allclose(np.load(exp_dir / 'predictions' / path.name), np.load(path),
                                   atol=tolerance)
