"""Mean and standard deviation of the fbanks of a dataset, exact and without padding."""
import math

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from audio.fbank import fbank
from dataloader import AudiosetDataset, SampleKey
from training.loaders import count_workers
from utilities.errors import DataError
from utilities.parallel import one_thread
from utilities.workers import worker_context

BATCH = 32  # recordings


class FbankSums(Dataset):
    """What statistics need to know of each recording of an AudiosetDataset.

    An item is the number of values in its fbank, their sum and the sum of their squares, as (3,)
    float64. Only real frames count, without padding and masks, and at most target_length of them.
    If the dataset mixes recordings, the mix counts.
    """

    def __init__(self, dataset: AudiosetDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> torch.Tensor:
        conf = self.dataset.conf
        key = SampleKey(index, seed=0, epoch=0, position=index)
        with one_thread():  # as in a worker: a sum over several threads rounds differently
            waveform = self.dataset.make_waveform(index, self.dataset.draw_augmentation(key))
            features = fbank(waveform, conf.num_mel_bins, conf.sample_rate)
            values = features[:conf.target_length].double()
            count = torch.tensor(values.numel(), dtype=torch.float64)
            return torch.stack([count, values.sum(), values.square().sum()])


def norm_stats(dataset: AudiosetDataset, num_workers: int = -1) -> tuple[float, float]:
    """Compute mean and standard deviation of all real frames and mel bins of a dataset.

    Raises:
        DataError: No recording holds a whole frame.
        AudioError: A recording is missing or cannot be read.
    """
    workers = count_workers(num_workers)
    loader = DataLoader(FbankSums(dataset), batch_size=BATCH, num_workers=workers,
                        multiprocessing_context=worker_context() if workers else None)
    totals = torch.zeros(3, dtype=torch.float64)
    for sums in tqdm(loader, desc='fbank statistics', unit='batch', disable=None):
        totals += sums.sum(dim=0)
    count, total, squares = totals.tolist()
    if not count:
        raise DataError(f'{dataset.datafile.path}: no recording is as long as one frame of 25 ms')
    mean = total / count
    return mean, math.sqrt(max(squares / count - mean ** 2, 0.0))
