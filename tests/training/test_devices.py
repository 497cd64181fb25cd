"""Devices and precision, on machines that this one can only pretend to be."""
import pytest
import torch
from torch import nn

from training import devices
from training.devices import choose_device, choose_precision, features_on_device, parallelise


@pytest.fixture
def machine(monkeypatch):
    """Pretend to be a machine: number of GPUs, whether the last computes in bfloat16, MPS, the CPU's capabilities."""
    def pretend(gpus=0, gpu_bf16=True, mps=False, cpu=()):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, 'device_count', lambda: gpus)
        last = (8, 0) if gpu_bf16 else (7, 5)
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda i: last if i == gpus - 1 else (8, 0))
        monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: mps)
        monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: {name: True for name in cpu}, raising=False)
        monkeypatch.setattr('training.gpus.find_problem', lambda index=None, is_asked_for=False: (
            None if gpus or not is_asked_for else 'PyTorch cannot use it: a reason'))
    return pretend


@pytest.mark.parametrize('gpus, mps, device', [(0, False, 'cpu'), (1, False, 'cuda'), (4, True, 'cuda'),
                                               (0, True, 'mps')])
def test_auto_takes_cuda_then_mps_then_the_cpu(machine, gpus, mps, device):
    machine(gpus=gpus, mps=mps)
    assert choose_device('auto') == torch.device(device)


@pytest.mark.parametrize('name', ['cpu', 'cuda', 'cuda:0', 'cuda:1', 'mps'])
def test_a_device_that_is_there_is_taken_as_named(machine, name):
    machine(gpus=2, mps=True)
    assert str(choose_device(name)) == name


@pytest.mark.parametrize('gpus, name, reason', [
    (0, 'cuda', 'cannot use it: a reason'), (0, 'cuda:0', 'cannot use it: a reason'),
    (2, 'cuda:2', 'has 2 CUDA devices'),
    (0, 'mps', 'no MPS device'), (0, 'tpu', 'must be auto, cpu, cuda, cuda:N or mps'), (0, '', 'must be auto'),
    (0, 'meta', 'must be auto'), (2, 'cuda:one', 'must be auto'), (2, 'cuda:-1', 'must be auto'),
    (2, 'cuda:128', 'must be auto'), (2, 'cpu:1', 'must be auto')])
def test_a_device_that_is_not_there_is_refused_with_the_reason(machine, gpus, name, reason):
    machine(gpus=gpus)
    with pytest.raises(ValueError, match=f'--device.*{reason}'):
        choose_device(name)


@pytest.mark.parametrize('amp, dtype', [('bf16', torch.bfloat16), ('fp16', torch.float16), ('off', None)])
@pytest.mark.parametrize('device', ['cpu', 'cuda', 'mps'])
def test_a_named_precision_is_taken_on_every_device(machine, amp, dtype, device):
    machine()
    assert choose_precision(amp, torch.device(device)) is dtype


@pytest.mark.parametrize('device, conditions, dtype', [
    ('cuda', {'gpus': 1, 'gpu_bf16': True}, torch.bfloat16), ('cuda', {'gpus': 1, 'gpu_bf16': False}, torch.float16),
    ('cuda', {'gpus': 2, 'gpu_bf16': False}, torch.float16), ('cuda:0', {'gpus': 2, 'gpu_bf16': False}, torch.bfloat16),
    ('cuda:1', {'gpus': 2, 'gpu_bf16': False}, torch.float16), ('cuda', {'gpus': 2}, torch.bfloat16),
    ('cpu', {'cpu': ['avx512_bf16']}, torch.bfloat16), ('cpu', {'cpu': ['amx_bf16']}, torch.bfloat16),
    ('cpu', {'cpu': ['avx2', 'avx512_f']}, None), ('cpu', {'gpus': 1}, None), ('mps', {'mps': True}, None)])
def test_auto_takes_the_precision_that_the_device_computes_in(machine, device, conditions, dtype):
    machine(**conditions)
    assert choose_precision('auto', torch.device(device)) is dtype


@pytest.mark.parametrize('device, gpus, split', [('cuda', 4, True), ('cuda', 1, False), ('cuda:0', 4, False),
                                                 ('cpu', 4, False), ('mps', 0, False)])
def test_batches_are_split_exactly_where_all_of_several_gpus_are_asked_for(machine, monkeypatch, device, gpus, split):
    machine(gpus=gpus)
    monkeypatch.setattr(devices.nn, 'DataParallel', lambda model: ('all GPUs', model))
    model = nn.Linear(2, 2)
    assert parallelise(model, torch.device(device)) == (('all GPUs', model) if split else model)


@pytest.mark.parametrize('features, device, expected', [
    ('auto', 'cuda:0', True), ('auto', 'cpu', False), ('auto', 'mps', False), ('cpu', 'cuda', False),
    ('gpu', 'cpu', True)])
def test_auto_features_are_computed_on_cuda_alone(features, device, expected):
    assert features_on_device(features, torch.device(device)) is expected
