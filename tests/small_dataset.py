"""Load epochs of small AudiosetDatasets, for the tests of samples and batches."""
import torch

from training.bad_audio import ReplaceUnreadable
from training.gpu_fbanks import inputs_on
from training.loaders import make_loader
from training.sampler import EpochSampler

CONF = {'num_mel_bins': 64, 'target_length': 40, 'mode': 'evaluation'}
EVERYTHING = {'mode': 'train', 'mixup': 0.5, 'freqm': 12, 'timem': 10, 'noise': True}
# The augmentations that the published code does not have, but for noise_dir, which needs a folder.
FURTHER_AUGMENTATION = {'freq_masks': 2, 'time_masks': 3, 'gain_db': 6.0, 'shift_frames': 5,
                        'spec_mixup': 0.5, 'crop': 'random'}


def equal(first, second):
    """Return whether two samples or batches are the same in every bit."""
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def load_epochs(dataset, workers, epochs=(1,), weights=None):
    """Return the batches of some epochs, of three samples each, loaded as run.py loads them."""
    dataset = ReplaceUnreadable(dataset) if dataset.conf.mode == 'train' else dataset
    loader = make_loader(dataset, 3, workers, pin_memory=False,
                         sampler=EpochSampler(len(dataset), 7, weights))
    batches = []
    for number in epochs:
        loader.batch_sampler.sampler.set_epoch(number)
        batches += [(inputs_on(inputs, torch.device('cpu')), labels) for inputs, labels in loader]
    return batches
