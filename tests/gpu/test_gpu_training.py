"""Training on a GPU: steps, the gradient scaler, torch.compile, checkpoints, a GPU that is full."""
import gc

import pytest
import torch

from kit import (
    GRADIENTS,
    LOGITS,
    dtypes_inside,
    each_precision,
    on_a_gpu_only,
    one_hot,
    relative_error,
    require_precision,
    require_same_experiment,
    weights,
)
from models.state_dicts import load_tensors
from small_model import CPU, settings
from training.errors import TrainingError, as_training_errors
from training.trainer import Trainer

BATCH = 3
STEPS_TO_A_SCALE = 20  # in which the gradient scaler finds one that overflows nowhere
SCALE = 1024.0  # with which float16 overflows nowhere here
PLAIN = '--mixup 0 --freqm 0 --timem 0 --noise False'
# Recordings have 38 frames: at 64, there is padding, and at 16, there are several windows.
FURTHER = {
    'rates': '--optim adamw --lr 1e-4 --weight_decay 0.05 --layer_decay 0.75 --head_lr 10 '
             '--schedule cosine --warmup_epochs 1',
    'moving average': '--ema 0.9 --freeze 6',
    'kept embeddings': f'{PLAIN} --freeze backbone --cache_embeddings True',
    'masked padding': '--noise False --mask_padding True --audio_length 64',
    'augmentation': '--mixup 0 --spec_mixup 0.5 --gain_db 6 --shift_frames 4 --freq_masks 2 '
                    '--time_masks 2',
    'windows': '--audio_length 16 --timem 4 --crop random --eval_windows 2',
    'sample rate': '--sample_rate 8000'}


@pytest.fixture
def make_trainer(make_ast, device):
    """Build a Trainer on a device, by default the one under test."""
    def make(dtype=None, place=device, **changes):
        require_precision(dtype, place)
        model = make_ast().to(place)
        model.autocast_dtype = dtype
        trainer = Trainer(model, place, settings(**changes), 1)
        trainer.training_model.train()
        return trainer
    return make


def update(trainer, fbanks, labels):
    """Take the first step that changes the weights; return its loss and the changes.

    The scale that a run begins with, 65536, may overflow float16: such steps are left out.
    """
    before = weights(trainer.model)
    for _ in range(STEPS_TO_A_SCALE):
        scale = trainer.scaler.get_scale()
        trainer.schedule.step = 0  # which draws the same patches again
        loss = float(trainer.step(fbanks, labels))
        if trainer.scaler.get_scale() >= scale:
            return loss, [new - old for new, old in zip(weights(trainer.model), before)]
    pytest.fail(f'{STEPS_TO_A_SCALE} steps in a row overflowed, down to a scale of {scale}')


def set_scale(trainer, scale):
    """Choose the scale of the gradients, in float16."""
    if trainer.scaler.is_enabled():
        trainer.scaler.load_state_dict({**trainer.scaler.state_dict(), 'scale': scale})


@each_precision
@pytest.mark.parametrize('changes', [{}, {'grad_accum': 2, 'clip_grad': 0.1, 'freq_patchout': 1}],
                         ids=['plain', 'everything'])
def test_a_step_changes_the_weights_as_on_the_cpu(make_trainer, make_inputs, dtype, changes):
    batch = make_inputs(BATCH), one_hot(BATCH)
    exact = make_trainer(None, CPU, lr=0.05, **changes)
    trainer = make_trainer(dtype, lr=0.05, **changes)
    seen = dtypes_inside(trainer.model)
    expected_loss, expected = update(exact, *batch)
    loss, changed = update(trainer, *batch)
    assert set(seen) == {dtype or torch.float32}
    assert loss == pytest.approx(expected_loss, abs=LOGITS[dtype])
    assert relative_error(changed, expected) < GRADIENTS[dtype]


@pytest.mark.parametrize('optim', ['adam', 'sgd'])
def test_a_step_that_overflows_is_left_out_and_the_scale_halves(make_trainer, make_inputs, optim):
    trainer = make_trainer(torch.float16, optim=optim)
    before, batch = weights(trainer.model), (make_inputs(BATCH), one_hot(BATCH))
    set_scale(trainer, 2.0 ** 120)
    trainer.loss.add(trainer.step(*batch), BATCH)
    assert trainer.scaler.get_scale() == 2.0 ** 119
    assert relative_error(weights(trainer.model), before) == 0
    assert trainer.loss.mean() > 0  # raises if the loss is no number


@pytest.mark.parametrize('optim', ['adam', 'sgd'])
def test_a_run_whose_first_step_overflows_begins_with_the_second(make_trainer, make_inputs, optim,
                                                                 monkeypatch):
    batch, changes = (make_inputs(BATCH), one_hot(BATCH)), []
    # What PyTorch leaves uninitialised is often 0: this makes sure that it is not.
    monkeypatch.setattr(torch, 'empty_like', lambda like, **_: torch.full_like(like, torch.nan))
    for overflows in (False, True):
        trainer = make_trainer(torch.float16, optim=optim, lr=1e-4)
        if overflows:
            set_scale(trainer, 2.0 ** 120)
            trainer.step(*batch)
        set_scale(trainer, SCALE)
        changes.append(update(trainer, *batch)[1])
    # Adam takes a full step for every weight, those whose gradient is only rounding included.
    assert relative_error(changes[1], changes[0]) < (0.1 if optim == 'adam' else 0.01)


def test_several_steps_of_adam_lead_to_the_losses_of_the_cpu(make_trainer, make_inputs):
    batch, losses = (make_inputs(BATCH), one_hot(BATCH)), []
    for trainer in (make_trainer(None, CPU, optim='adam', lr=1e-4),
                    make_trainer(optim='adam', lr=1e-4)):
        losses.append([float(trainer.step(*batch)) for _ in range(4)])
    assert losses[0][3] < losses[0][0]
    assert losses[1] == pytest.approx(losses[0], abs=1e-3)


@on_a_gpu_only
def test_a_compiled_model_takes_the_same_steps(make_trainer, make_inputs, device):
    """On the CPU, test_trainer.py does this."""
    pytest.importorskip('triton', reason='torch.compile needs triton on a GPU')
    batch, losses = (make_inputs(BATCH), one_hot(BATCH)), []
    for compiled in (False, True):
        trainer = make_trainer(compile=compiled, lr=0.01, freq_patchout=1)
        losses.append([float(trainer.step(*batch)) for _ in range(3)])
    assert losses[1] == pytest.approx(losses[0], abs=1e-3)


@each_precision
def test_a_checkpoint_goes_on_on_the_cpu_and_the_other_way_round(make_trainer, make_inputs, device,
                                                                tmp_path, dtype):
    batch, path = (make_inputs(2), one_hot(2)), tmp_path / 'checkpoint.pth'
    for before, after in {(device, CPU), (CPU, device)}:
        trainer = make_trainer(dtype, before, optim='adam', lr=1e-4)
        set_scale(trainer, SCALE)
        update(trainer, *batch)
        torch.save(trainer.state_dict(), path)
        other = make_trainer(dtype, after, optim='adam', lr=1e-4)
        other.load_state_dict(load_tensors(path))
        assert other.scaler.get_scale() == trainer.scaler.get_scale()
        losses = [[float(one.step(*batch)) for _ in range(2)] for one in (trainer, other)]
        assert losses[1] == pytest.approx(losses[0], abs=LOGITS[dtype])


def test_an_experiment_leaves_the_numbers_of_one_on_the_cpu(start, device):
    options = '--wa True --wa_end 2 --freq_patchout 1 --clip_grad 1 --features'.split()
    expected = start('expected', 'cpu', *options, 'cpu')
    found = start('found', device, *options, 'gpu')
    # A run computes in TF32 on a GPU, and fbanks in batches round differently.
    require_same_experiment(found, expected, tolerance=1e-2 if device.type == 'cuda' else 1e-4)
    assert (found / 'wa_result.csv').exists() and (found / 'eval_result.csv').exists()


@on_a_gpu_only
@pytest.mark.parametrize('options', FURTHER.values(), ids=FURTHER)
def test_further_options_give_the_numbers_of_the_cpu(start, device, options):
    expected = start('expected', 'cpu', *options.split(), '--features', 'cpu')
    found = start('found', device, *options.split(), '--features', 'gpu')
    require_same_experiment(found, expected, tolerance=1e-2)


def test_an_experiment_goes_on_on_another_device(start, device, capsys):
    undisturbed = start('undisturbed', 'cpu')
    start('moved', 'cpu', '--n_epochs', '1')
    capsys.readouterr()
    moved = start('moved', device)
    assert 'continuing in epoch 2' in capsys.readouterr().err
    require_same_experiment(moved, undisturbed, tolerance=1e-2 if device.type == 'cuda' else 1e-6)


def test_a_model_that_a_gpu_trained_is_read_without_one(start, device):
    folder = start('exp', device, '--n_epochs', '1') / 'models'
    state = torch.load(folder / 'best_audio_model.pth', weights_only=True)
    assert all(value.device == CPU for value in state.values())


@pytest.fixture
def fill_memory(device):
    """Leave this process only 64 MiB more of the GPU's memory than it has when this is called."""
    def fill():
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(device).total_memory
        allowed = torch.cuda.memory_reserved(device) + 2 ** 26
        torch.cuda.set_per_process_memory_fraction(allowed / total, device)
    yield fill
    if device.type == 'cuda':
        torch.cuda.set_per_process_memory_fraction(1.0, device)
        torch.cuda.empty_cache()


def run_out(module, inputs):
    """Stand in for a GPU that has room for one sample: a hook before the forward pass."""
    if len(inputs[0]) > 1:
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.')


def test_a_full_gpu_ends_training_in_one_sentence_and_a_smaller_batch_goes_on(
        make_trainer, make_inputs, device, fill_memory):
    trainer, one, many = make_trainer(), make_inputs(1), make_inputs(1).expand(2 ** 10, -1, -1)
    trainer.step(one, one_hot(1))
    if device.type == 'cuda':
        fill_memory()
    else:
        trainer.model.register_forward_pre_hook(run_out)
    with pytest.raises(TrainingError, match='out of memory .*Tried to allocate.*--batch_size'):
        with as_training_errors():
            trainer.step(many, one_hot(2 ** 10))
    gc.collect()  # the error holds on to what was computed before it
    assert float(trainer.step(one, one_hot(1))) > 0


@pytest.mark.parametrize('error', [
    getattr(torch, 'AcceleratorError', RuntimeError)(  # torch 2.6 has only the second
        'CUDA error: out of memory\nCUDA kernel errors might be reported later'),
    RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`'),
    RuntimeError('cuDNN error: CUDNN_STATUS_ALLOC_FAILED')], ids=['CUDA', 'cuBLAS', 'cuDNN'])
def test_what_cuda_and_its_libraries_say_about_a_full_gpu_is_one_sentence_too(error):
    with pytest.raises(TrainingError, match='the GPU is out of memory') as raised, as_training_errors():
        raise error
    assert str(error).split('\n')[0] in str(raised.value) and '\n' not in str(raised.value)


def test_other_errors_of_cuda_stay_what_they_are():
    with pytest.raises(RuntimeError, match='device-side assert') as raised, as_training_errors():
        raise RuntimeError('CUDA error: device-side assert triggered')
    assert not isinstance(raised.value, TrainingError)


def test_a_gpu_without_room_for_the_model_ends_a_run_in_one_sentence(start, tmp_path, monkeypatch):
    def run_out(*_):
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 MiB.')
    monkeypatch.setattr('models.ast_models.ASTModel.to', run_out)
    with pytest.raises(SystemExit, match='error: the GPU is out of memory.*nvidia-smi'):
        start('full', 'cpu')
    assert not (tmp_path / 'full').exists()
