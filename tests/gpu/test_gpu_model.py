"""The model on a GPU: logits, gradients, Patchout and recomputed activations are the CPU's."""
import pytest
import torch
from torch.nn import functional as F

from kit import (
    GRADIENTS,
    LOGITS,
    dtypes_inside,
    each_precision,
    gradients,
    relative_error,
    require_precision,
)


@pytest.fixture
def make_pair(make_ast, device):
    """Build a model twice: on the CPU, in float32, and on the device, in a precision."""
    def make(dtype=None):
        require_precision(dtype, device)
        model = make_ast().to(device)
        model.autocast_dtype = dtype
        return make_ast(), model
    return make


@each_precision
def test_logits_are_those_of_the_cpu(make_pair, make_inputs, device, dtype):
    exact, model = make_pair(dtype)
    seen, inputs = dtypes_inside(model), make_inputs(3)
    with torch.inference_mode():
        logits, expected = model(inputs.to(device)), exact(inputs)
    assert logits.device == device and logits.dtype == torch.float32
    assert seen == [dtype or torch.float32]
    torch.testing.assert_close(logits.cpu(), expected, rtol=0, atol=LOGITS[dtype])


def test_logits_in_tf32_as_a_run_computes_them_stay_near_the_exact_ones(make_pair, make_inputs,
                                                                        device):
    exact, model = make_pair()
    inputs = make_inputs(3)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    with torch.inference_mode():
        torch.testing.assert_close(model(inputs.to(device)).cpu(), exact(inputs), rtol=0,
                                   atol=LOGITS[torch.float16])  # TF32 has as many bits


def backward(model, inputs):
    """Return a model's gradients of a loss that every class takes part in."""
    model.train()
    logits = model(inputs)
    F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, 0.3)).backward()
    return gradients(model)


@each_precision
def test_gradients_are_those_of_the_cpu(make_pair, make_inputs, device, dtype):
    exact, model = make_pair(dtype)
    inputs = make_inputs(3)
    assert relative_error(backward(model, inputs.to(device)),
                          backward(exact, inputs)) < GRADIENTS[dtype]


def test_patchout_leaves_out_on_the_device_what_it_leaves_out_on_the_cpu(make_pair, make_inputs,
                                                                         device):
    inputs, logits, tokens = make_inputs(2), [], []
    for model, place in zip(make_pair(), (torch.device('cpu'), device)):
        model.v.blocks[0].register_forward_pre_hook(
            lambda _, given: tokens.append(given[0].shape[1]))
        model.train()
        model.keep_patches([0, 2], [1, 4, 5])
        logits.append(model(inputs.to(place)).detach().cpu())
    assert tokens == [2 + 2 * 3] * 2
    torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=LOGITS[None])


def test_recomputed_activations_give_the_same_gradients(make_pair, make_inputs, device):
    exact, model = make_pair()
    model.v.set_grad_checkpointing(True)
    inputs = make_inputs(3)
    assert relative_error(backward(model, inputs.to(device)),
                          backward(exact, inputs)) < GRADIENTS[None]
