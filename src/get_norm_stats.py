"""Mean and standard deviation of a datafile's fbank, for --dataset_mean and --dataset_std."""
import math
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from audio import AudioError
from dataloader import AudiosetDataset, SampleKey, count_workers, one_thread
from trainer import TrainingError
from traintest import explained
from utilities.cli import (MAX_FRAMES, MAX_MEL_BINS, OptionParser, add_num_workers, exit_on, number,
                           setup_logging, whole)
from utilities.labels import DataError
from utilities.parallel import worker_context


class FbankSums(Dataset):
    """For each recording of an AudiosetDataset: how many values its real frames hold, their sum and sum of squares."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        """Returns (3,) float64: no padding, no masks, at most target_length frames; mixed where the dataset mixes."""
        augmentation = self.dataset.augmentation(SampleKey(index, seed=0, epoch=0, position=index))
        with one_thread():
            fbank = self.dataset.fbank(index, augmentation)[:self.dataset.conf.target_length].double()
            return torch.stack([torch.tensor(fbank.numel(), dtype=torch.float64), fbank.sum(), fbank.square().sum()])


def norm_stats(dataset, num_workers=-1):
    """Mean and standard deviation over all real frames and mel bins of an AudiosetDataset, exact up to rounding.

    Raises DataError where no recording holds a whole frame, and AudioError for a missing or broken one.
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


def main(argv=None):
    """Entry point."""
    parser = OptionParser(prog='get_norm_stats.py', description=__doc__)
    add = parser.add_argument
    add('--data_train', required=True, help='datafile of the training set')
    add('--label_csv', required=True, help='label file: index,mid,display_name')
    add('--num_mel_bins', type=whole(16, MAX_MEL_BINS), default=128, help='mel bins of the fbank')
    add('--audio_length', type=whole(1, MAX_FRAMES), default=1024, help='frames of each recording that count')
    add('--mixup', type=number(0, 1), default=0, help='mix so many of the samples, as training would')
    add_num_workers(parser)
    args = parser.parse_args(argv)
    setup_logging()
    audio_conf = {'num_mel_bins': args.num_mel_bins, 'target_length': args.audio_length, 'mode': 'train',
                  'mixup': args.mixup, 'skip_norm': True, 'dataset': Path(args.data_train).stem}
    with exit_on(AudioError, DataError, TrainingError), explained():
        mean, std = norm_stats(AudiosetDataset(args.data_train, audio_conf, args.label_csv), args.num_workers)
    print(f'--dataset_mean {mean:.7f} --dataset_std {std:.7f}')


if __name__ == '__main__':
    main()
