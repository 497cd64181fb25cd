"""nn.DataParallel: batches that are split over several GPUs give the numbers of one model.

Each test runs with copies on the CPU that stand in for GPUs (stand_ins.py), and with all GPUs of a
machine that has several.
"""
import contextlib
from unittest import mock

import pytest
import torch
from torch import nn
from torch.nn.parallel import replicate

from kit import (
    GRADIENTS,
    LOGITS,
    dtypes_inside,
    gradients,
    one_hot,
    relative_error,
    require_gpus,
    require_precision,
    require_same_experiment,
    weights,
)
from models import load_checkpoint, save_checkpoint
from models.state_dicts import load_tensors
from small_model import CPU, LinearModel, Samples, settings
from stand_ins import DataParallelOnCpu, stand_in_devices
from tagging.tagger import load_tagger
from training.devices import parallelise
from training.errors import TrainingError, as_training_errors
from training.launch import Launch
from training.option_checks import check_options
from training.options import make_parser
from training.trainer import Trainer
from traintest import validate

BATCHES = [5, 1]  # one that does not divide, and one with fewer samples than there are GPUs


class StandIns:
    """Three devices that are all the CPU."""

    device, one = CPU, CPU

    def wrap(self, model):
        """Wrap a model as devices.parallelise does if there are several GPUs."""
        return DataParallelOnCpu(model)

    @contextlib.contextmanager
    def used(self):
        """Let everything that is built in here split its batches."""
        with (mock.patch('training.trainer.parallelise', lambda model, _: self.wrap(model)),
              mock.patch('tagging.tagger.parallelise', lambda model, _: self.wrap(model))):
            yield


class AllGpus:
    """The GPUs of this machine, two at least."""

    device, one = torch.device('cuda'), torch.device('cuda', 0)

    def wrap(self, model):
        """Put a model on the first GPU, and split its batches over all of them."""
        return parallelise(model.to(self.device), self.device)

    def used(self):
        """Do nothing: `device` stands for all GPUs."""
        return contextlib.nullcontext()


@pytest.fixture(params=[StandIns, AllGpus])
def gpus(request):
    """Several GPUs, or what stands in for them."""
    if request.param is AllGpus:
        require_gpus(2)
        yield AllGpus()
        return
    with stand_in_devices():
        yield StandIns()


@pytest.mark.parametrize('batch', BATCHES)
def test_a_split_batch_gives_the_logits_of_the_model_alone(gpus, make_ast, make_inputs, batch):
    inputs, split = make_inputs(batch), gpus.wrap(make_ast())
    with torch.inference_mode():
        logits = split(inputs.to(gpus.device))
        torch.testing.assert_close(logits.cpu(), make_ast()(inputs), rtol=0, atol=LOGITS[None])


@pytest.mark.parametrize('batch', BATCHES)
@pytest.mark.parametrize('recompute', [False, True], ids=['kept', 'recomputed'])
def test_a_split_batch_gives_the_gradients_of_the_model_alone(gpus, make_ast, make_inputs, batch,
                                                              recompute):
    found = []
    for wrap, device in ((lambda model: model, CPU), (gpus.wrap, gpus.device)):
        model = make_ast().train()
        model.v.set_grad_checkpointing(recompute)
        logits = wrap(model)(make_inputs(batch).to(device))
        logits.square().mean().backward()
        found.append(gradients(model))
    assert relative_error(found[1], found[0]) < GRADIENTS[None]


def test_every_replica_leaves_out_the_patches_that_the_step_leaves_out(gpus, make_ast, make_inputs):
    logits, tokens = [], []
    for wrap, device in ((lambda model: model, CPU), (gpus.wrap, gpus.device)):
        model = make_ast().train()
        split = wrap(model)
        model.v.blocks[0].register_forward_pre_hook(
            lambda _, given: tokens.append(given[0].shape[1]))
        model.keep_patches([0, 2], [1, 4, 5])
        logits.append(split(make_inputs(5).to(device)).detach().cpu())
    assert len(tokens) > 2 and set(tokens) == {2 + 2 * 3}
    torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=LOGITS[None])


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=['bfloat16', 'float16'])
def test_every_replica_computes_in_the_precision_of_the_model(gpus, make_ast, make_inputs, dtype):
    require_precision(dtype, gpus.device)
    model = make_ast()
    model.autocast_dtype = dtype
    split, seen, inputs = gpus.wrap(model), dtypes_inside(model), make_inputs(5)
    with torch.inference_mode():
        logits = split(inputs.to(gpus.device))
        torch.testing.assert_close(logits.cpu(), make_ast()(inputs), rtol=0, atol=LOGITS[dtype])
    assert len(seen) > 1 and set(seen) == {dtype}


def test_a_hook_sees_every_sample_once(gpus, make_ast, make_inputs):
    model, seen = make_ast(), []
    split = gpus.wrap(model)
    model.mlp_head.register_forward_hook(lambda *call: seen.append(len(call[2])))
    split(make_inputs(5).to(gpus.device))
    assert len(seen) > 1 and sum(seen) == 5


def take_steps(trainer, make_inputs):
    """Take a step for each of the BATCHES; return the losses and the weights that they lead to."""
    trainer.training_model.train()
    losses = [float(trainer.step(make_inputs(batch), one_hot(batch))) for batch in BATCHES]
    return losses, weights(trainer.model)


@pytest.mark.parametrize('changes', [{}, {'grad_accum': 2, 'freq_patchout': 1, 'clip_grad': 0.1}],
                         ids=['plain', 'everything'])
def test_training_takes_the_same_steps(gpus, make_ast, make_inputs, changes):
    chosen = settings(lr=0.05, **changes)
    before = weights(make_ast())
    expected, after = take_steps(Trainer(make_ast(), CPU, chosen, 1), make_inputs)
    with gpus.used():
        trainer = Trainer(make_ast().to(gpus.device), gpus.device, chosen, 1)
    assert isinstance(trainer.training_model, nn.DataParallel)
    losses, split_after = take_steps(trainer, make_inputs)
    assert losses == pytest.approx(expected, abs=LOGITS[None])
    assert relative_error([new - old for new, old in zip(split_after, before)],
                          [new - old for new, old in zip(after, before)]) < GRADIENTS[None]


def test_a_checkpoint_of_split_training_goes_on_without_the_split(gpus, make_ast, make_inputs,
                                                                  tmp_path):
    chosen = settings(optim='adam', lr=1e-4)
    with gpus.used():
        split = Trainer(make_ast().to(gpus.device), gpus.device, chosen, 1)
    take_steps(split, make_inputs)
    torch.save(split.state_dict(), tmp_path / 'checkpoint.pth')
    alone = Trainer(make_ast(), CPU, chosen, 1)
    alone.load_state_dict(load_tensors(tmp_path / 'checkpoint.pth'))
    (losses, _), (expected, _) = take_steps(alone, make_inputs), take_steps(split, make_inputs)
    assert losses == pytest.approx(expected, abs=LOGITS[None])


def test_validation_gives_the_predictions_of_the_model_alone(gpus, make_ast, make_inputs):
    batches = [(make_inputs(batch), one_hot(batch)) for batch in BATCHES]
    expected = validate(make_ast(), batches, CPU, 'BCE')
    evaluation = validate(gpus.wrap(make_ast()), batches, gpus.device, 'BCE')
    assert evaluation.predictions == pytest.approx(expected.predictions, abs=LOGITS[None])
    assert evaluation.loss == pytest.approx(expected.loss, abs=LOGITS[None])


@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_state_dicts_load_with_and_without_the_prefix(gpus, make_ast, make_inputs, tmp_path,
                                                      prefix):
    path, model = tmp_path / 'model.pth', make_ast()
    nn.init.normal_(model.mlp_head[1].weight)  # other weights than make_ast gives
    split = gpus.wrap(model)
    state = (split if prefix else model).state_dict()
    assert all(name.startswith(prefix or ('v.', 'mlp_head.')) for name in state)
    torch.save(state, path)
    fresh = make_ast()
    load_checkpoint(fresh, path)
    expected = model.cpu()(make_inputs(2))
    torch.testing.assert_close(fresh(make_inputs(2)), expected, rtol=0, atol=LOGITS[None])


def test_a_saved_model_loads_into_a_split_one_as_peoples_scripts_do_it(gpus, make_ast, make_inputs,
                                                                      tmp_path):
    trained = make_ast()
    nn.init.normal_(trained.mlp_head[1].weight)
    save_checkpoint(gpus.wrap(trained).module, tmp_path / 'model.pth')
    split = gpus.wrap(make_ast())
    split.load_state_dict(torch.load(tmp_path / 'model.pth', weights_only=True))
    with torch.inference_mode():
        torch.testing.assert_close(split(make_inputs(5).to(gpus.device)).cpu(),
                                   trained.cpu()(make_inputs(5)), rtol=0, atol=LOGITS[None])


def test_a_split_experiment_leaves_the_numbers_of_one_that_is_not(gpus, start):
    options = '--wa True --wa_end 2 --freq_patchout 1 --clip_grad 1'.split()
    alone = start('alone', gpus.one, *options)
    with gpus.used():
        split = start('split', gpus.device, *options)
    require_same_experiment(split, alone, tolerance=1e-5 if gpus.device == CPU else 5e-3)  # TF32
    assert (split / 'wa_result.csv').exists() and (split / 'eval_result.csv').exists()


def test_a_tagger_gives_the_scores_and_embeddings_of_one_that_does_not_split(gpus, make_ast,
                                                                            make_inputs, tmp_path):
    names = ['dog', 'rain', 'siren']
    path = tmp_path / 'model.pth'
    save_checkpoint(make_ast(), path, labels={'mids': names, 'names': names}, mean=0.0, std=0.5)
    expected, expected_embeddings = load_tagger(path, 'cpu', 'off')(make_inputs(5), embeddings=True)
    with gpus.used():
        tagger = load_tagger(path, str(gpus.device), 'off')
    assert isinstance(tagger.classifiers[0].evaluation_model, nn.DataParallel)
    for embeddings in (False, True):
        scores, embedded = tagger(make_inputs(5), embeddings)
        assert scores == pytest.approx(expected, abs=LOGITS[None])
    assert embedded == pytest.approx(expected_embeddings, abs=LOGITS[None])


def test_the_model_within_still_shows_where_it_looks(gpus, make_ast, make_inputs):
    model, inputs = make_ast(), make_inputs(2)
    split = gpus.wrap(model)
    with torch.inference_mode():
        split(inputs.to(gpus.device))
        for method in ('forward_features', 'frame_features'):
            torch.testing.assert_close(getattr(split.module, method)(inputs.to(gpus.device)).cpu(),
                                       getattr(make_ast(), method)(inputs), rtol=0, atol=1e-3)
        rows = split.module.attention(inputs.to(gpus.device))[-1]
        torch.testing.assert_close(rows.cpu(), make_ast().attention(inputs)[-1], rtol=0, atol=1e-4)
        torch.testing.assert_close(split(inputs.to(gpus.device)).cpu(), make_ast()(inputs), rtol=0,
                                   atol=LOGITS[None])


def test_each_gpu_gets_the_lengths_of_its_part_of_the_batch(gpus, make_ast, make_inputs):
    inputs, lengths = make_inputs(5), torch.tensor([3, 200, 17, 30, 1])
    with torch.inference_mode():
        expected = make_ast()(inputs, lengths)
        split = gpus.wrap(make_ast())(inputs.to(gpus.device), lengths.to(gpus.device))
    torch.testing.assert_close(split.cpu(), expected, rtol=0, atol=LOGITS[None])


def run_out_of_memory(*_):
    """Do what a forward pass does on a GPU that is full."""
    raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.')


def test_a_replica_that_runs_out_of_memory_ends_in_one_sentence(gpus):
    model = LinearModel()
    split = gpus.wrap(model)
    model.layer.register_forward_pre_hook(run_out_of_memory)
    with pytest.raises(TrainingError, match='out of memory .*2.00 GiB.*--batch_size') as error:
        with as_training_errors():
            split(Samples(5).fbanks.to(gpus.device))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('compiled', [False, True])
def test_replicas_of_a_compiled_model_would_all_run_the_weights_of_the_first(compiled):
    model, inputs = LinearModel().eval(), Samples(2).fbanks
    if compiled:
        model.compile(backend='eager')
    with stand_in_devices():
        _, second = replicate(model, [0, 1], detach=True)
    with torch.no_grad():
        second.layer.weight.zero_()  # a copy: the first one's weights stay
        same = torch.equal(second(inputs), model(inputs))
    assert same == compiled  # the reason of what follows


COMPILED = ('--compile True --data_train train.json --data_val val.json --label_csv labels.csv '
            '--exp_dir exp --imagenet_pretrain False')


@pytest.fixture
def check(monkeypatch):
    """Check the options of a run with --compile True, given a number of GPUs; return the device."""
    def with_gpus(count, device, place=Launch()):
        monkeypatch.setattr(torch.cuda, 'device_count', lambda: count)
        monkeypatch.setattr('training.option_checks.choose_device', lambda _: torch.device(device))
        parser = make_parser()
        return check_options(parser, parser.parse_args(COMPILED.split()), place)
    return with_gpus


def test_compile_is_refused_if_one_process_would_split_batches_over_several_gpus(check, capsys):
    with pytest.raises(SystemExit) as stop:
        check(4, 'cuda')
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert '--compile True does not work in one process with 4 GPUs' in said
    assert '--launcher torchrun' in said and '--device cuda:0' in said


@pytest.mark.parametrize('gpus, device, place, own', [
    (1, 'cuda', Launch(), 'cuda'), (4, 'cuda:0', Launch(), 'cuda:0'), (4, 'cpu', Launch(), 'cpu'),
    (0, 'mps', Launch(), 'mps'), (4, 'cuda', Launch(2, 4, 2, 4), 'cuda:2')],
    ids=['one', 'named', 'cpu', 'mps', 'a process each'])
def test_compile_is_taken_if_no_batch_is_split(check, gpus, device, place, own):
    assert check(gpus, device, place) == torch.device(own)
