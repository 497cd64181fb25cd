"""Features and batches on a GPU: fbanks in batches, augmentation, pinned memory."""
import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

import golden
from audio.fbank import fbank
from dataloader import AudiosetDataset, SampleKey
from kit import on_a_gpu_only
from small_model import CLASSES
from training.gpu_fbanks import WaveformBatch, WaveformDataset, inputs_on
from training.loaders import make_loader
from training.sampler import EpochSampler

BINS, FRAMES, CLIPS, BATCH = 64, 40, 7, 3
TOLERANCE = 1e-3  # of a normalised fbank
# In float32, the error of an fbank (a logarithm) is 1e-6 in the mean and 2e-4 at most, where the
# energy is low. TF32 would make it 1e-4 in the mean.
MEAN_ERROR, LARGEST_ERROR = 2e-5, 2e-3
AUGMENTED = {'mode': 'train', 'mixup': 0.5, 'freqm': 12, 'timem': 10, 'noise': True}
KINDS = pytest.mark.parametrize('kind', [AudiosetDataset, WaveformDataset])


def make_waveforms(count, samples):
    """Return waveforms (count, samples) of noise, a glide and clicks."""
    return torch.stack([torch.from_numpy(golden.waveform(f'gpu kit {i}', samples / 16000)).float()
                        for i in range(count)]) / 32768


@pytest.mark.parametrize('bins', [32, 128])
@pytest.mark.parametrize('tf32', [False, True], ids=['float32', 'tf32'])
def test_fbanks_in_batches_are_those_of_the_cpu(device, bins, tf32):
    waveforms = make_waveforms(3, samples=16000)
    expected = torch.stack([fbank(waveform, bins) for waveform in waveforms])
    torch.backends.cuda.matmul.allow_tf32 = tf32  # as run.py has it; an fbank must not notice
    found = fbank(waveforms.to(device), bins)
    assert found.device == device and found.shape == (3, 98, bins)
    assert torch.backends.cuda.matmul.allow_tf32 == tf32
    errors = (found.cpu() - expected).abs()
    assert float(errors.mean()) < MEAN_ERROR and float(errors.max()) < LARGEST_ERROR


def test_waveforms_shorter_than_a_window_have_no_fbank(device):
    found = fbank(make_waveforms(2, samples=399).to(device), BINS)
    assert found.device == device and found.shape == (2, 0, BINS)


@pytest.fixture
def make_dataset(make_labels, make_datafile, make_tone):
    """A dataset of recordings of 0.1 to 0.7 s: shorter and longer than FRAMES."""
    clips = [(make_tone(f'{i}.wav', 300 * (i + 1), seconds=0.1 * (i + 1), seed=i), f'/m/{i % 3}')
             for i in range(CLIPS)]

    def make(kind, **conf):
        conf = {'num_mel_bins': BINS, 'target_length': FRAMES, 'mode': 'evaluation', **conf}
        return kind(make_datafile(clips), conf, make_labels(CLASSES))
    return make


def batches_of(dataset, device, workers=0):
    """Yield the batches (fbanks, labels) of an epoch, pinned on the way to a GPU."""
    loader = make_loader(dataset, BATCH, workers, pin_memory=device.type == 'cuda',
                         sampler=EpochSampler(len(dataset), 7))
    loader.batch_sampler.sampler.set_epoch(1)
    yield from loader


@KINDS
@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize('conf', [{}, AUGMENTED], ids=['evaluation', 'augmented'])
def test_an_epoch_is_that_of_the_cpu(make_dataset, device, kind, conf, workers):
    expected = list(batches_of(make_dataset(AudiosetDataset, **conf), torch.device('cpu')))
    found = [(inputs_on(inputs, device), labels.to(device, non_blocking=True))
             for inputs, labels in batches_of(make_dataset(kind, **conf), device, workers)]
    assert len(found) == len(expected) == 3
    for (fbanks, labels), (their_fbanks, their_labels) in zip(found, expected):
        assert fbanks.device == labels.device == device
        torch.testing.assert_close(fbanks.cpu(), their_fbanks, rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(labels.cpu(), their_labels, rtol=0, atol=0)


@KINDS
@on_a_gpu_only
@pytest.mark.parametrize('workers', [0, 1])
def test_batches_wait_for_a_gpu_in_pinned_memory(make_dataset, device, kind, workers):
    for fbanks, labels in batches_of(make_dataset(kind, **AUGMENTED), device, workers):
        if kind is AudiosetDataset:
            parts = [fbanks, labels]
        else:
            parts = [fbanks.waveforms, fbanks.noise, labels]
        assert all(part.is_pinned() for part in parts)


@KINDS
def test_pinning_changes_nothing_else_of_a_batch(make_dataset, monkeypatch, kind):
    pinned = []
    monkeypatch.setattr(torch.Tensor, 'pin_memory',
                        lambda one, *_: pinned.append(one) or one.clone())
    dataset = make_dataset(kind, **AUGMENTED)
    batch, labels = dataset.collate([dataset[SampleKey(i, 0, 1, i)] for i in range(BATCH)])
    (its_batch, its_labels), its_reasons = pin_memory(((batch, labels), [['a reason'], []]))
    assert its_reasons == [['a reason'], []]
    assert any(one is labels for one in pinned) and torch.equal(its_labels, labels)
    if kind is AudiosetDataset:
        assert any(one is batch for one in pinned) and torch.equal(its_batch, batch)
        return
    assert isinstance(its_batch, WaveformBatch)
    assert {id(one) for one in pinned} == {id(batch.waveforms), id(batch.noise), id(labels)}
    assert its_batch.frames == batch.frames and its_batch.augmentations == batch.augmentations
    cpu = torch.device('cpu')
    torch.testing.assert_close(its_batch.compute_fbanks(cpu), batch.compute_fbanks(cpu), rtol=0,
                               atol=0)
