"""A model and data small enough to train in a blink, for the tests of training."""
import dataclasses
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from dataloader import SampleKey
from training.sampler import EpochSampler
from training.trainer import TrainSettings

CPU = torch.device('cpu')
CLASSES, FRAMES, BINS = 3, 4, 5
DEFAULTS = TrainSettings(
    n_epochs=1, metrics='mAP', loss='BCE', optim='sgd', lr=0.1, lr_patience=0, warmup=False, lrscheduler_start=2,
    lrscheduler_step=1, lrscheduler_decay=0.5, grad_accum=1, clip_grad=0, save_model=False, wa=False, wa_start=1,
    wa_end=1, n_print_steps=100, checkpoint_minutes=15)


class LinearModel(nn.Module):
    """The smallest classifier that can stand in for an ASTModel; always the same weights."""

    def __init__(self, autocast_dtype=None):
        super().__init__()
        torch.manual_seed(0)
        self.config, self.autocast_dtype = SimpleNamespace(input_tdim=FRAMES), autocast_dtype
        self.v = nn.Identity()
        self.layer = nn.Linear(FRAMES * BINS, CLASSES)

    def forward(self, x):
        return self.layer(x.flatten(1))


class Samples(Dataset):
    """Random spectrograms whose labels a linear model can learn, addressed as AudiosetDataset is."""

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


def settings(**changes):
    """TrainSettings, the defaults but for some."""
    return dataclasses.replace(DEFAULTS, **changes)


def loaders(count=12):
    """(training, validation) loaders of random samples."""
    return (DataLoader(Samples(count), batch_size=4, sampler=EpochSampler(count, 0)),
            DataLoader(Samples(count, seed=1), batch_size=8))
