"""Mean and standard deviation of the fbanks of a dataset, exact and without padding."""
import math

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dataloader import SampleKey
from training.batches import count_workers
from utilities.errors import DataError
from utilities.parallel import one_thread
from utilities.workers import worker_context


class FbankSums(Dataset):
    """For each recording of an AudiosetDataset: how many values its real frames hold, their sum and sum of squares."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        """Returns (3,) float64: no padding, no masks, at most target_length frames; mixed if the dataset mixes."""
        augmentation = self.dataset.augmentation(SampleKey(index, seed=0, epoch=0, position=index))
        with one_thread():
            fbank = self.dataset.fbank(index, augmentation)[:self.dataset.conf.target_length].double()
            return torch.stack([torch.tensor(fbank.numel(), dtype=torch.float64), fbank.sum(), fbank.square().sum()])


def norm_stats(dataset, num_workers=-1):
    """Mean and standard deviation over all real frames and mel bins of an AudiosetDataset, exact up to rounding.

    Raises DataError if no recording holds a whole frame, and AudioError for a missing or broken one.
    """
    workers = count_workers(num_workers)
    loader = DataLoader(FbankSums(dataset), batch_size=32, num_workers=workers,
                        multiprocessing_context=worker_context() if workers else None)
    totals = torch.zeros(3, dtype=torch.float64)
    for sums in tqdm(loader, desc='fbank statistics', unit='batch', disable=None):
        totals += sums.sum(dim=0)
    count, total, squares = totals.tolist()
    if not count:
        raise DataError(f'{dataset.datafile.path}: no recording is as long as one frame of 25 ms')
    mean = total / count
    return mean, math.sqrt(max(squares / count - mean ** 2, 0.0))
