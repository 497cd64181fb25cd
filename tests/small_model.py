"""Build a model and data that are small enough to train at once, for the tests of training."""
import argparse
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from dataloader import SampleKey
from training.bad_audio import BadAudio
from training.options import make_parser
from training.sampler import EpochSampler

CPU = torch.device('cpu')
CLASSES, FRAMES, BINS = 3, 4, 5
NEEDED = '--data_train train.json --data_val val.json --label_csv labels.csv --exp_dir exp'
DEFAULTS = {**vars(make_parser().parse_args(NEEDED.split())), 'optim': 'sgd', 'lr': 0.1}


class LinearModel(nn.Module):
    """The smallest classifier that can replace an ASTModel. Its weights are always the same."""

    def __init__(self, autocast_dtype=None):
        super().__init__()
        torch.manual_seed(0)
        self.config = SimpleNamespace(input_tdim=FRAMES, model_size='tiny224')
        self.autocast_dtype = autocast_dtype
        self.v = self.mlp_head = nn.Identity()
        self.layer = nn.Linear(FRAMES * BINS, CLASSES)

    def forward(self, x):
        return self.layer(x.flatten(1))


class Samples(Dataset):
    """Random spectrograms whose labels a linear model can learn.

    Like an AudiosetDataset, it takes an index or a SampleKey.
    """

    def __init__(self, count, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.fbanks = torch.randn(count, FRAMES, BINS, generator=generator)
        self.labels = F.one_hot(torch.arange(count) % CLASSES, CLASSES).float()
        self.fbanks[:, 0, :CLASSES] += self.labels

    def __len__(self):
        return len(self.fbanks)

    def __getitem__(self, key):
        index = key.index if isinstance(key, SampleKey) else key
        return self.fbanks[index], self.labels[index]

    def all_targets(self):
        return self.labels.numpy()


def settings(**changes):
    """Return the default options of run.py with some changes."""
    assert set(changes) <= set(DEFAULTS)
    return argparse.Namespace(**{**DEFAULTS, **changes})


def loaders(count=12):
    """Return the (training, validation) loaders of random samples."""
    sampler = EpochSampler(count, 0)
    train_loader = DataLoader(Samples(count), batch_size=4, sampler=sampler)
    train_loader.epoch_sampler = sampler
    train_loader.bad_audio = BadAudio()
    return train_loader, DataLoader(Samples(count, seed=1), batch_size=8)
