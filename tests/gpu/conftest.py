"""Fixtures of the GPU kit, which compares what differs on a GPU with the CPU, on tiny models.

`./tests/run_tests.sh gpu` runs it. A test that needs a GPU, or two, is skipped on a machine without
them. Tests that make sense on a CPU run there too, so that the kit itself is tested.
"""
import copy

import pytest
import torch

import golden
import run
from kit import BINS, FRAMES, golden_ast, require_gpus
from machine_report import describe_machine
from small_model import CLASSES
from utilities.parallel import one_thread

CLIPS, BATCH = 13, 4  # the last batch of an epoch has one clip
OPTIONS = ('--data_train train.json --data_val val.json --data_eval val.json '
           f'--label_csv labels.csv --n_class {CLASSES} --num_mel_bins 32 --audio_length 32 '
           '--fstride 16 --tstride 16 --model_size tiny224 --imagenet_pretrain False '
           f'--n_epochs 2 --batch_size {BATCH} --optim sgd --lr 0.01 --mixup 0.5 --freqm 8 '
           '--timem 8 --noise True --num_workers 0 --amp off --save_model True').split()


@pytest.fixture(scope='session', params=['cpu', 'cuda'])
def device(request):
    """Return the CPU, then the first GPU, by its number: `cuda` alone means all GPUs."""
    if request.param == 'cpu':
        return torch.device('cpu')
    require_gpus(1)
    return torch.device('cuda', 0)


@pytest.fixture(scope='session')
def two_gpus():
    """Skip the test on a machine with fewer than two GPUs."""
    require_gpus(2)


@pytest.fixture(autouse=True)
def exact_float32():
    """Compute in float32 and not in TF32, in which a GPU computes convolutions by default.

    run.py switches TF32 on in this process. After the test, it is put back.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    yield
    matmul.allow_tf32, cudnn.allow_tf32 = before


@pytest.fixture(autouse=True)
def thread():
    """Compute on one thread. This is faster for such small models if the machine is busy."""
    with one_thread():
        yield


@pytest.fixture
def make_ast():
    """Build a tiny ASTModel on the CPU, always with the same weights, in evaluation mode."""
    return lambda: copy.deepcopy(golden_ast())


@pytest.fixture
def make_inputs():
    """Return spectrograms (batch, FRAMES, BINS), always the same, on the CPU."""
    return lambda batch: golden.spectrogram('gpu kit', batch, FRAMES, BINS)


@pytest.fixture
def start(tmp_path, monkeypatch, make_tone, make_labels, make_datafile):
    """Run an experiment of run.py in this process; return its folder."""
    monkeypatch.chdir(tmp_path)
    make_labels(CLASSES)
    clips = [(make_tone(f'{i}.wav', 400 * (1 + i % 3), seconds=0.4, seed=i), f'/m/{i % 3}')
             for i in range(CLIPS)]
    make_datafile(clips, 'train.json')
    make_datafile(clips[:9], 'val.json')

    def in_process(exp_dir, device, *options):
        run.main([*OPTIONS, '--exp_dir', exp_dir, '--device', str(device), *options])
        return tmp_path / exp_dir
    return in_process


@pytest.hookimpl(wrapper=True)
def pytest_report_header():
    """Print what a bug report needs, and not pytest's own lines, which name the user's folders.

    pytest calls this only if the folder, or a file in it, is on its command line.
    """
    yield
    return [describe_machine()]
