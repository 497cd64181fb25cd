"""Where tensors are on a GPU, tried without one: operands on two devices raise (fake_cuda.py)."""
import pytest
import torch
from torch.utils._pytree import tree_leaves

from audio.fbank import fbank
from dataloader import AudiosetDataset, SampleKey
from fake_cuda import CUDA, fake_cuda, without_numbers
from kit import BINS, FRAMES, dtypes_inside, each_precision, one_hot
from models import save_checkpoint
from models.state_dicts import load_tensors
from small_model import CLASSES, CPU, settings
from tagging.tagger import Classifier, Tagger
from training.gpu_fbanks import WaveformDataset
from training.trainer import Trainer
from traintest import validate
from utilities.labels import Labels

BATCH = 5
EVERYTHING = {'optim': 'adam', 'grad_accum': 2, 'clip_grad': 1.0, 'freq_patchout': 1,
              'n_print_steps': 1}


def test_operands_on_two_devices_raise_as_on_a_gpu(make_ast, make_inputs):
    model, inputs = make_ast(), make_inputs(BATCH)
    with fake_cuda() as gpu:
        gpu.put(model)
        for mix in (lambda: model(inputs), lambda: inputs.to(CUDA) + inputs):
            with pytest.raises(RuntimeError, match='two different devices'):
                mix()
        with pytest.raises(TypeError, match='cuda:0 to NumPy'):
            model(inputs.to(CUDA)).numpy()


@each_precision
@pytest.mark.parametrize('method', ['forward', 'forward_features', 'frame_features', 'attention',
                                    'attention_maps'])
def test_the_model_computes_on_the_gpu_that_it_is_on(make_ast, make_inputs, dtype, method):
    model, inputs = make_ast(), make_inputs(BATCH)
    model.autocast_dtype = dtype
    seen = dtypes_inside(model)
    with fake_cuda() as gpu, torch.inference_mode():
        result = getattr(gpu.put(model), method)(without_numbers(inputs).to(CUDA))
        for part in tree_leaves(result):
            assert part.device == CUDA and part.dtype == torch.float32
    assert seen == [dtype or torch.float32]


@each_precision
@pytest.mark.parametrize('method', ['forward', 'frame_features', 'attention_maps'])
def test_lengths_may_be_on_the_cpu_or_on_the_gpu(make_ast, make_inputs, dtype, method):
    model, inputs = make_ast(), make_inputs(BATCH)
    model.autocast_dtype = dtype
    lengths = torch.ones(BATCH, dtype=torch.int64)
    with fake_cuda() as gpu, torch.inference_mode():
        compute = getattr(gpu.put(model), method)
        for place in ('cpu', CUDA):
            result = compute(without_numbers(inputs).to(CUDA), without_numbers(lengths).to(place))
            assert all(part.device == CUDA for part in tree_leaves(result))


@each_precision
def test_patchout_takes_its_indices_to_the_gpu(make_ast, make_inputs, dtype):
    model, inputs = make_ast().train(), make_inputs(BATCH)
    model.autocast_dtype = dtype
    model.keep_patches([0, 2], [1, 4, 5])
    with fake_cuda() as gpu:
        assert gpu.put(model)(inputs.to(CUDA)).device == CUDA


def test_fbanks_are_computed_on_the_gpu_that_the_waveforms_are_on():
    waveforms = torch.zeros(2, 6400)
    with fake_cuda():
        features = fbank(waveforms.to(CUDA), BINS)
        assert features.device == CUDA and features.shape == (2, 38, BINS)
        assert fbank(waveforms.to(CUDA)[:, :100], BINS).device == CUDA  # less than a window
    assert fbank(waveforms, BINS).shape == (2, 38, BINS)  # no fake tables are left behind


@pytest.fixture
def make_batch(make_tone, make_labels, make_datafile):
    """Make a batch (WaveformBatch, labels) of recordings, augmented if its dataset trains."""
    def make(mode, kind=WaveformDataset):
        clips = [(make_tone(f'{i}.wav', seconds=0.2 + 0.2 * i), '/m/0') for i in range(BATCH)]
        conf = {'num_mel_bins': BINS, 'target_length': FRAMES, 'mode': mode, 'freqm': 9, 'timem': 9,
                'mixup': 0.5, 'noise': True}
        dataset = kind(make_datafile(clips), conf, make_labels(CLASSES))
        samples = [dataset[SampleKey(i, 0, 1, i)] for i in range(BATCH)]
        return dataset.collate(samples)
    return make


@pytest.mark.parametrize('mode', ['train', 'evaluation'])
def test_a_batch_of_waveforms_becomes_features_on_the_gpu(make_batch, mode):
    batch, _ = make_batch(mode)
    with fake_cuda():
        features = batch.compute_fbanks(CUDA)
        assert features.device == CUDA and features.shape == (BATCH, FRAMES, BINS)


@pytest.mark.parametrize('kind', [AudiosetDataset, WaveformDataset])
@pytest.mark.parametrize('loss', ['BCE', 'CE'])
def test_validation_brings_its_predictions_back_from_the_gpu(make_ast, make_batch, kind, loss):
    model, batch = make_ast(), make_batch('evaluation', kind)
    with fake_cuda() as gpu:
        evaluation = validate(gpu.put(model), without_numbers([batch, batch]), CUDA, loss)
    assert evaluation.predictions.shape == evaluation.targets.shape == (2 * BATCH, CLASSES)


@each_precision
@pytest.mark.parametrize('loss', ['BCE', 'CE'])
def test_a_tagger_brings_scores_and_embeddings_back_from_the_gpu(make_ast, make_inputs, dtype,
                                                                 loss):
    model, inputs = make_ast(), make_inputs(BATCH)
    model.autocast_dtype = dtype
    with fake_cuda() as gpu:
        classifier = Classifier(gpu.put(model), model, -4.0, 4.0, loss)
        tagger = Tagger((classifier, classifier), Labels((), ()), FRAMES, BINS, CUDA)
        inputs = inputs + 0  # a tensor of this mode
        scores, _ = tagger(inputs)
        _, embeddings = tagger(inputs, embeddings=True)
    assert scores.shape == (BATCH, CLASSES) and embeddings.shape == (BATCH, model.v.embed_dim)


@each_precision
def test_an_epoch_of_training_stays_on_the_gpu(make_ast, make_batch, dtype):
    model, batch = make_ast(), make_batch('train')
    model.autocast_dtype = dtype
    with fake_cuda() as gpu:
        trainer = Trainer(gpu.put(model), CUDA, settings(**EVERYTHING), 1)
        trainer.train_epoch([batch, batch], 'an epoch')
        assert trainer.loss.total.device == trainer.loss.first_bad_step.device == CUDA
    assert trainer.loss.steps == 2


def test_a_checkpoint_of_the_cpu_goes_on_on_the_gpu(make_ast, make_inputs, tmp_path):
    chosen, batch = settings(optim='adam'), (make_inputs(BATCH), one_hot(BATCH))
    plain, model = Trainer(make_ast(), CPU, chosen, 1), make_ast()
    plain.train_epoch([batch], 'an epoch')
    torch.save(plain.state_dict(), tmp_path / 'checkpoint.pth')
    state = load_tensors(tmp_path / 'checkpoint.pth')
    with fake_cuda() as gpu:
        trainer = Trainer(gpu.put(model), CUDA, chosen, 1)
        trainer.load_state_dict(state)
        trainer.train_epoch([batch], 'the next one')
        kept = [value for one in trainer.optimizer.state.values() for value in one.values()]
        assert all(value.device == CUDA for value in kept)
    assert len(kept) == 3 * len(list(model.parameters()))  # Adam's two means and its step


def test_weights_are_saved_as_of_the_cpu(make_ast, monkeypatch, tmp_path):
    model, saved = make_ast(), {}

    def save(state, path):
        saved.update(state)
        path.touch()
    monkeypatch.setattr(torch, 'save', save)
    with fake_cuda() as gpu:
        save_checkpoint(gpu.put(model), tmp_path / 'model.pth')
        assert {value.device for value in saved.values()} == {CPU}
    assert set(saved) == {f'module.{name}' for name in model.state_dict()}
