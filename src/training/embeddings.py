"""Embeddings that are computed once, for training the head of a frozen model (a linear probe)."""
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, default_collate

from dataloader import SampleKey
from models import ASTModel
from training.bad_audio import ReplaceUnreadable
from training.devices import move
from training.gpu_fbanks import inputs_on
from training.loaders import EVALUATION_BATCH_FACTOR, Loaders, make_evaluation_loader, make_loader
from utilities.progress import Progress


class EmbeddingClassifier(nn.Module):
    """The head of a model, called with embeddings (B, dim) in place of spectrograms."""

    def __init__(self, model: ASTModel):
        super().__init__()
        self.model = model

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Return logits (B, classes)."""
        return self.model.classify(embeddings)


class EmbeddingDataset(Dataset):
    """The samples (embedding (dim,), labels (classes,)) of a dataset.

    Args:
        embeddings: (samples, dim).
        dataset: the dataset that they were computed from.
    """

    collate = staticmethod(default_collate)  # makes a batch of a list of samples

    def __init__(self, embeddings: torch.Tensor, dataset: Any):
        self.embeddings = embeddings
        self.targets = torch.from_numpy(dataset.all_targets())
        self.labels = dataset.labels

    def __len__(self) -> int:
        return len(self.embeddings)

    def __getitem__(self, key: int | SampleKey) -> tuple[torch.Tensor, torch.Tensor]:
        index = key.index if isinstance(key, SampleKey) else key
        return self.embeddings[index], self.targets[index]

    def all_targets(self) -> np.ndarray:
        """Return the labels (samples, classes) of all samples."""
        return self.targets.numpy()

    def count_labels(self) -> np.ndarray:
        """Return how many samples have each class (classes,)."""
        return self.targets.count_nonzero(dim=0).numpy()


def embed(loaders: Loaders, model: ASTModel, device: torch.device, batch_size: int) -> Loaders:
    """Compute the embeddings of all datasets, and return loaders of these.

    Each process computes all embeddings, because in training it may get any sample.

    Raises:
        AudioError: if a recording cannot be read.
    """
    def embedded(name, dataset, loader):
        """Compute the embeddings of a dataset. Return them as an EmbeddingDataset."""
        batches = torch.arange(len(dataset)).split(EVALUATION_BATCH_FACTOR * batch_size)
        samples = make_loader(dataset, None, loader.num_workers, loader.pin_memory,
                              batches=[batch.tolist() for batch in batches])
        return EmbeddingDataset(compute_embeddings(model, samples, device, name), dataset)

    def evaluation_loader(name, loader):
        dataset = embedded(name, loader.dataset, loader)
        return make_evaluation_loader(dataset, batch_size, 0, loader.pin_memory)

    # Embeddings are always readable. The wrapper makes the loader a TrainingLoader.
    train_set = ReplaceUnreadable(embedded('training', loaders.train.recordings, loaders.train))
    sampler = loaders.train.epoch_sampler
    return Loaders(
        train=make_loader(train_set, batch_size, 0, loaders.train.pin_memory, sampler),
        val=evaluation_loader('validation', loaders.val),
        test=evaluation_loader('test', loaders.test) if loaders.test else None)


@torch.inference_mode()
def compute_embeddings(model: ASTModel, loader, device: torch.device, name: str) -> torch.Tensor:
    """Return the embeddings (samples, dim) of the samples of a loader, on the CPU."""
    model.eval()
    parts = []
    with Progress(f'embeddings of the {name} set', len(loader)) as progress:
        for inputs, _, *lengths in loader:
            lengths = [move(one, device) for one in lengths]
            embeddings = model.forward_features(inputs_on(inputs, device), *lengths)
            parts.append(embeddings.float().cpu())
            progress.advance(len(parts[-1]))
    return torch.cat(parts)
