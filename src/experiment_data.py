"""The data of one experiment: datasets and loaders from its options, checked."""
import argparse
import contextlib
import logging
from dataclasses import fields

import numpy as np
import torch

from audio.fbank import SAMPLE_RATE
from audio.formats import open_audio
from audio.reading import AudioError
from dataloader import AudioConf, AudiosetDataset
from training.bad_audio import ReplaceUnreadable
from training.devices import features_on_device
from training.eval_windows import SpreadWindows
from training.gpu_fbanks import WaveformDataset
from training.loaders import Loaders, make_evaluation_loader, make_loader
from training.option_checks import check_files
from training.sampler import EpochSampler
from utilities.cli import read_range
from utilities.datafiles import Datafile, split_labels
from utilities.errors import DataError
from utilities.weight_files import read_sample_weights, weight_file

FIRST_FEW = 10  # recordings of which one must be readable

logger = logging.getLogger(__name__)


def make_loaders(args: argparse.Namespace, device: torch.device) -> Loaders:
    """Build the loaders of an experiment."""
    check_files(args)
    train_set = ReplaceUnreadable(make_dataset(args, args.data_train, 'train', device))
    weights = None
    if args.bal == 'bal':
        weights = read_sample_weights(weight_file(args.data_train), len(train_set))
    sampler = EpochSampler(len(train_set), args.seed, weights)

    workers, pin = args.num_workers, device.type == 'cuda'

    def evaluation_loader(datafile):
        dataset = make_dataset(args, datafile, 'evaluation', device)
        if args.eval_windows > 1:
            dataset = SpreadWindows(dataset, args.eval_windows)
        return make_evaluation_loader(dataset, args.batch_size, workers, pin)

    return Loaders(train=make_loader(train_set, args.batch_size, workers, pin, sampler),
                   val=evaluation_loader(args.data_val),
                   test=evaluation_loader(args.data_eval) if args.data_eval else None)


def make_dataset(args, datafile, mode, device):
    """Build the dataset of one of the experiment's datafiles.

    Raises:
        DataError: if the datafile does not go with the options.
    """
    # These fields of AudioConf are options of the same name: num_mel_bins, sample_rate,
    # mask_padding, dataset and all settings of augmentation.
    audio_conf = {field.name: getattr(args, field.name) for field in fields(AudioConf)
                  if hasattr(args, field.name)}
    audio_conf |= {'target_length': args.audio_length, 'mode': mode, 'mean': args.dataset_mean,
                   'std': args.dataset_std,
                   'snr_db': read_range(args.snr_db) if args.snr_db else None}
    kind = WaveformDataset if features_on_device(args.features, device) else AudiosetDataset
    dataset = kind(datafile, audio_conf, args.label_csv)
    check_labels(dataset.datafile, args.loss, None if mode == 'train' else args.metrics)
    return dataset


def check_labels(datafile: Datafile, loss: str, metric: str | None) -> None:
    """Raise DataError if labels do not go with the loss or the metric.

    Log a warning if no sample has a label.

    Args:
        datafile: the datafile of a dataset.
        loss: 'BCE' or 'CE'.
        metric: the metric that the dataset is evaluated with, or None.
    """
    with_commas = datafile.labels[np.strings.count(datafile.labels, ',') > 0]
    several = any(len(split_labels(labels)) > 1 for labels in with_commas)
    if metric == 'acc' and several:
        raise DataError(f'--metrics acc needs one label a sample, but {datafile.path} has samples '
                        f'with several: use --metrics mAP')
    if loss == 'CE' and (several or datafile.negatives):
        found = 'samples with several' if several else f'{datafile.negatives} without (negatives)'
        raise DataError(f'--loss CE needs one label a sample, but {datafile.path} has {found}: '
                        f'use --loss BCE')
    if datafile.negatives == len(datafile):
        logger.warning('%s: no sample has a label: there is no class to learn from it, and AP, AUC '
                       'and accuracy on it are nan', datafile.path)


def check_first_recordings(loaders: Loaders) -> None:
    """Read a recording of every dataset: a wrong path is better noticed now than in an hour.

    Training replaces unreadable recordings, so one of the first few of its set is enough.

    Raises:
        AudioError: if the first recording of the validation or test set cannot be read, or none of
            the first few of the training set.
    """
    train_set = loaders.train.recordings
    warn_of_low_rate(train_set)
    read_one_of(train_set, min(FIRST_FEW, len(train_set)))
    for loader in (loaders.val, loaders.test):
        if loader is not None:
            read_one_of(loader.dataset, 1)


def warn_of_low_rate(dataset: AudiosetDataset) -> None:
    """Log a warning if --sample_rate is above 16 kHz and the first recording has a lower rate.

    The recording may be a copy at 16 kHz, which holds no sound above 8 kHz.
    """
    wanted, path = dataset.conf.sample_rate, dataset.datafile.wavs[0]
    if wanted <= SAMPLE_RATE:
        return
    with contextlib.suppress(AudioError), open_audio(path) as reader:
        if reader.samplerate < wanted:
            logger.warning('--sample_rate is %d, but %s was recorded or copied at %d Hz: it holds '
                           'no sound above %d Hz', wanted, path, reader.samplerate,
                           reader.samplerate // 2)


def read_one_of(dataset: AudiosetDataset, count: int) -> None:
    """Read one of the first `count` samples. Raises AudioError if none of them can be read."""
    for index in range(count):
        try:
            dataset[index]
            return
        except AudioError:
            if index == count - 1:
                raise
