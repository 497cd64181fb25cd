"""The lines that head the kit's output, which goes into a report."""
from types import SimpleNamespace

import torch

from machine_report import describe_machine


def test_a_report_has_versions_and_gpus_even_those_out_of_order_and_no_paths(monkeypatch):
    def properties(number=1):
        if number:
            raise RuntimeError('CUDA error: the device is in use\nMore about it')
        return SimpleNamespace(name='A GPU', total_memory=2 ** 34, major=9, minor=0)
    monkeypatch.setattr(torch.backends.cudnn, 'version', properties)  # it asks all GPUs
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(torch.cuda, 'get_device_properties', properties)
    lines = describe_machine()
    assert f'torch {torch.__version__}, ' in lines[0] and 'timm 1.' in lines[0]
    assert 'cuDNN CUDA error: the device is in use' in lines[1] and 'driver' in lines[1]
    assert lines[-2:] == ['GPU 0: A GPU, 16.0 GiB, compute capability 9.0',
                          'GPU 1: CUDA error: the device is in use']
    assert not any('/' in line or '\n' in line for line in lines)


def test_a_machine_without_a_gpu_is_described_too(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    assert describe_machine()[-1] == 'GPUs: 1 that PyTorch sees, none that it can use'
