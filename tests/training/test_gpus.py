"""A GPU that is there and cannot be used: every sign of one, every reason, on machines that are only pretended."""
import errno
import logging
import os
import sys

import pytest
import torch

import run
from training import gpus
from training.devices import choose_device
from training.gpus import find_problem, find_sign, has_kernels, pip_line

TOO_OLD = ('The NVIDIA driver on your system is too old (found version {}). Please update your GPU driver by '
           'downloading and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx '
           'Alternatively, go to: https://pytorch.org')
NO_DRIVER = 'Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver'
CU130 = ['sm_75', 'sm_80', 'sm_86', 'sm_90', 'sm_100', 'sm_120', 'compute_120']


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A machine without any sign of a GPU, whose PyTorch is a build for CUDA 13.0; returns its /dev."""
    for name in ('CUDA_VISIBLE_DEVICES', 'SLURM_JOB_GPUS'):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / 'dev').mkdir()
    (tmp_path / 'bin').mkdir()
    monkeypatch.setattr(gpus, 'DEVICES', tmp_path / 'dev')
    monkeypatch.setenv('PATH', f'{tmp_path / "bin"}:/usr/bin:/bin')
    monkeypatch.setattr(torch, '__version__', '2.11.0+cu130')
    monkeypatch.setattr(torch.version, 'cuda', '13.0')
    monkeypatch.setattr(torch.version, 'hip', None)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: False)
    say_at_init(monkeypatch, NO_DRIVER)
    return tmp_path / 'dev'


def say_at_init(monkeypatch, message):
    """Let torch.cuda.init() fail with a message, or not fail for None."""
    def init():
        if message:
            raise RuntimeError(message)
    monkeypatch.setattr(torch.cuda, 'init', init)


@pytest.fixture
def smi(bare):
    """Put an nvidia-smi on PATH that answers to --list-gpus and --query-gpu=compute_cap."""
    def make(listed='', capabilities='', code=0):
        program = bare.parent / 'bin' / 'nvidia-smi'
        program.write_text(f'#!/bin/sh\ncase "$1" in\n--list-gpus) echo "{listed}" ;;\n'
                           f'*) echo "{capabilities}" ;;\nesac\nexit {code}\n')
        program.chmod(0o755)
    return make


@pytest.fixture
def pretend_gpus(bare, monkeypatch):
    """Pretend that torch sees GPUs of these compute capabilities, with kernels for some architectures."""
    def pretend(*capabilities, architectures=CU130):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
        monkeypatch.setattr(torch.cuda, 'device_count', lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda index: capabilities[index])
        monkeypatch.setattr(torch.cuda, 'get_device_name', lambda index: f'Card {index}')
        monkeypatch.setattr(torch.cuda, 'get_arch_list', lambda: architectures)
    return pretend


def test_a_machine_without_any_sign_of_a_gpu_goes_on_with_the_cpu(bare):
    assert choose_device('auto') == torch.device('cpu')


@pytest.mark.parametrize('name, value', [('CUDA_VISIBLE_DEVICES', '0,1'), ('CUDA_VISIBLE_DEVICES', 'GPU-8932f937'),
                                         ('CUDA_VISIBLE_DEVICES', 'MIG-1/2/3'), ('SLURM_JOB_GPUS', '3')])
def test_a_gpu_that_was_asked_for_stops_auto(bare, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f'{name}={value}.*there is no NVIDIA driver.*--device cpu continues'):
        choose_device('auto')


def test_a_device_file_stops_auto(bare):
    (bare / 'nvidia1').touch()
    (bare / 'nvidia0').touch()
    with pytest.raises(ValueError, match='this machine has a GPU .*nvidia0.*--device cpu continues'):
        choose_device('auto')


def test_what_nvidia_smi_lists_stops_auto(smi):
    smi(listed='GPU 0: NVIDIA GeForce RTX 3060 (UUID: GPU-1234)')
    with pytest.raises(ValueError, match=r'\(nvidia-smi lists GPU 0: NVIDIA GeForce RTX 3060\), but PyTorch 2.11.0'):
        choose_device('auto')


def test_an_nvidia_smi_that_finds_nothing_is_no_sign(smi):
    smi(listed='No devices found.', code=0)
    assert find_sign() is None
    smi(listed='GPU 0: but the driver is broken', code=9)
    assert find_sign() is None


@pytest.mark.parametrize('number, is_sign', [(errno.EPERM, False), (errno.EACCES, False), (errno.ENODEV, True),
                                             (errno.EIO, True)])
def test_the_gpu_of_another_job_is_no_sign(bare, monkeypatch, number, is_sign):
    (bare / 'nvidia0').touch()

    def refuse(path, flags):
        raise OSError(number, os.strerror(number))
    with monkeypatch.context() as patched:
        patched.setattr(gpus.os, 'open', refuse)
        assert bool(find_sign()) == is_sign


@pytest.mark.parametrize('value', ['', '-1', 'NoDevFiles', 'none', '10000', '-1,0', '-2'])
def test_gpus_that_are_hidden_on_purpose_are_no_sign(bare, monkeypatch, value):
    (bare / 'nvidia0').touch()
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', value)
    assert choose_device('auto') == torch.device('cpu')


def test_the_cpu_may_be_asked_for_whatever_is_there(bare, monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0')
    assert choose_device('cpu') == torch.device('cpu')


@pytest.mark.parametrize('message, expected', [
    (TOO_OLD.format(12040), 'driver supports CUDA 12.4, and this build needs 13.0.*torch==2.11.0.cu126 '
                            'torchaudio==2.11.0.cu126 torchvision==0.26.0.cu126 --extra-index-url .*/cu126$'),
    (TOO_OLD.format(11080), 'driver supports CUDA 11.8.*update the driver: .* need version 525'),
    (NO_DRIVER, 'there is no NVIDIA driver.*--gpus all .Docker. or --nv .Apptainer.'),
    (None, 'there is no such GPU as in CUDA_VISIBLE_DEVICES=5'),
    ('CUDA unknown error - this may be due to an incorrectly set up environment', 'CUDA unknown error.*nvidia-smi')])
def test_every_reason_comes_with_what_to_do(bare, monkeypatch, message, expected):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '5')
    say_at_init(monkeypatch, message)
    with pytest.raises(ValueError, match=expected):
        choose_device('auto')


@pytest.mark.parametrize('capabilities, build', [('7.0', 'cu126'), ('8.6', 'cu128'), ('7.0\n12.0', 'cu128'), ('', 'cu126')])
def test_a_build_for_cpus_is_replaced_by_one_that_fits_the_gpus(smi, monkeypatch, capabilities, build):
    smi(listed='GPU 0: a card', capabilities=capabilities)
    monkeypatch.setattr(torch.version, 'cuda', None)
    monkeypatch.setattr(torch, '__version__', '2.9.1+cpu')
    with pytest.raises(ValueError) as raised:
        choose_device('auto')
    assert 'it is a build for CPUs' in str(raised.value)
    assert str(raised.value).endswith(
        f'{sys.executable} -m pip install torch==2.9.1+{build} torchaudio==2.9.1+{build} torchvision==0.24.1+{build} '
        f'--extra-index-url https://download.pytorch.org/whl/{build}')


@pytest.mark.parametrize('name', ['cuda', 'cuda:0'])
def test_cuda_that_is_asked_for_by_name_says_the_reason_too(bare, name):
    with pytest.raises(ValueError, match=f'^--device {name}: a GPU was asked for.*there is no NVIDIA driver'):
        choose_device(name)


@pytest.mark.parametrize('capability, fits', [
    ((7, 5), True), ((8, 0), True), ((8, 9), True), ((9, 0), True), ((10, 3), True), ((12, 0), True), ((12, 1), True),
    ((13, 0), True), ((7, 0), False), ((6, 1), False), ((5, 2), False), ((3, 7), False), ((11, 0), False)])
def test_a_gpu_needs_kernels_of_its_major_version_or_intermediate_code(capability, fits):
    assert has_kernels(capability, CU130) == fits


def test_code_for_one_gpu_alone_is_read_as_such():
    assert has_kernels((9, 0), ['sm_90a']) and not has_kernels((8, 0), ['sm_90a'])


@pytest.mark.parametrize('name', ['auto', 'cuda', 'cuda:0'])
def test_a_gpu_without_kernels_stops_with_the_build_that_has_some(pretend_gpus, name):
    pretend_gpus((7, 0))
    with pytest.raises(ValueError, match='no kernels for GPU 0, Card 0, of compute capability 7.0.*'
                                         '--device cpu continues.*install a build with kernels for it: .*cu126'):
        choose_device(name)


def test_a_gpu_without_kernels_beside_one_with_may_be_hidden(pretend_gpus):
    pretend_gpus((8, 9), (6, 1))
    with pytest.raises(ValueError, match='GPU 1, Card 1.*hide that GPU with CUDA_VISIBLE_DEVICES=0, or install'):
        choose_device('auto')
    assert choose_device('cuda:0') == torch.device('cuda:0')


def test_the_gpu_to_keep_is_one_that_the_user_was_given(pretend_gpus, monkeypatch):
    pretend_gpus((6, 1), (8, 9))
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '2,3')
    with pytest.raises(ValueError, match='GPU 0, Card 0.*CUDA_VISIBLE_DEVICES=3, or'):
        choose_device('auto')


@pytest.mark.parametrize('capability, architectures, advice', [
    ((12, 0), ['sm_50', 'sm_90'], 'cu128$'), ((13, 0), ['sm_50', 'sm_120'], 'newer PyTorch'),
    ((3, 5), ['sm_50', 'sm_90'], 'take another GPU')])
def test_the_build_fits_the_age_of_the_gpu(pretend_gpus, capability, architectures, advice):
    pretend_gpus(capability, architectures=architectures)
    with pytest.raises(ValueError, match=advice):
        choose_device('auto')


def test_gpus_with_kernels_are_taken(pretend_gpus):
    pretend_gpus((8, 0), (9, 0))
    assert find_problem() is None and choose_device('auto') == torch.device('cuda')


def test_a_build_for_rocm_is_left_alone(pretend_gpus, monkeypatch):
    pretend_gpus((9, 4), architectures=['gfx942'])
    monkeypatch.setattr(torch.version, 'hip', '6.4')
    assert choose_device('auto') == torch.device('cuda')


@pytest.mark.parametrize('version, build, release, vision', [
    ('2.8.0+cu128', 'cu126', '2.8.0', '0.23.0'), ('2.6.0', 'cu126', '2.6.0', '0.21.0'),
    ('2.6.0', 'cu128', '2.11.0', '0.26.0'), ('2.12.1+cu130', 'cu126', '2.11.0', '0.26.0')])
def test_the_pip_line_names_builds_of_one_release_that_has_them(monkeypatch, version, build, release, vision):
    monkeypatch.setattr(torch, '__version__', version)
    assert (f'torch=={release}+{build} torchaudio=={release}+{build} torchvision=={vision}+{build} '
            f'--extra-index-url') in pip_line(build)


def test_run_py_stops_before_it_reads_anything(bare, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(logging, 'basicConfig', lambda **_: None)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0')
    with pytest.raises(SystemExit) as end:
        run.main(['--data_train', 'no.json', '--data_val', 'no.json', '--label_csv', 'no.csv', '--exp_dir',
                  str(tmp_path / 'exp')])
    assert end.value.code == 2 and 'CUDA_VISIBLE_DEVICES=0 asks for a GPU' in capsys.readouterr().err
    assert not (tmp_path / 'exp').exists()
