"""One experiment of run.py, from its options to its results."""
import argparse
import logging
import sys
from dataclasses import asdict, fields
from typing import Any, NamedTuple

import numpy as np
import torch

from audio.reading import AudioError
from dataloader import AudioConf, AudiosetDataset
from models import ASTModel, WeightsError
from models.ast_models import name_start
from reports.pages import run_page
from training import processes
from training.bad_audio import ReplaceUnreadable
from training.checkpoint import CheckpointError
from training.devices import choose_precision, features_on_device
from training.errors import TrainingError, as_training_errors
from training.folder import ExperimentFolder
from training.gpu_fbanks import WaveformDataset
from training.interrupt import EXIT_CODE, Interrupt
from training.loaders import make_loader
from training.option_checks import check_files, check_options
from training.processes import DistributedError, Launch
from training.sampler import EpochSampler
from training.supervisor import Interrupted
from traintest import Run
from utilities.cli import exit_on, setup_logging
from utilities.datafiles import Datafile
from utilities.errors import DataError, warn_only
from utilities.parallel import limit_threads
from utilities.texts import write_text
from utilities.weight_files import read_sample_weights, weight_file

MODELS = {'ast': ASTModel}  # --model
FIRST_FEW = 10  # recordings of which one must be readable
PRECISIONS = (None, torch.float16, torch.bfloat16)  # in order of preference, the best last

logger = logging.getLogger(__name__)


class Loaders(NamedTuple):
    """The loaders of an experiment."""
    train: Any  # TrainingLoader
    val: Any  # AudioLoader
    test: Any  # AudioLoader of --data_eval, or None


def start(parser: argparse.ArgumentParser, args: argparse.Namespace, interrupt: Interrupt) -> None:
    """Check the options together and run their experiment. End the program on errors of a user."""
    errors = (AudioError, CheckpointError, DataError, DistributedError, OSError, TrainingError,
              WeightsError)
    with processes.exit_without_waiting(), exit_on(*errors):
        launch = processes.read_launch()
        device = check_options(parser, args, launch)
        setup_logging(launch.rank)
        limit_threads()
        run(args, device, launch, interrupt)


def run(args: argparse.Namespace, device: torch.device, launch: Launch, interrupt: Interrupt
        ) -> None:
    """Run one experiment, or nothing if it is finished already."""
    precision = choose_precision(args.amp, device)
    if args.dry_run:
        describe(args, device, precision, launch)
        return

    processes.join(launch, device, args.timeout_minutes)
    precision = agree_on_precision(precision)
    # In mixed precision, TF32 is allowed in what autocast leaves in float32.
    tf32 = precision is not None
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32

    folder = ExperimentFolder(args)
    with folder.lock() as has_work_left:
        if not has_work_left:
            return
        loaders = make_loaders(args, device)
        check_first_recordings(loaders)
        log_settings(args, loaders, device, precision, launch.size)
        with as_training_errors():
            model = make_model(args).to(device)
        model.autocast_dtype = precision
        model.v.set_grad_checkpointing(args.grad_checkpointing)
        folder.begin(device)
        train_and_evaluate(args, model, device, loaders, folder, interrupt)


def describe(args: argparse.Namespace, device: torch.device, precision: torch.dtype | None,
             launch: Launch) -> None:
    """Log what an experiment would do, for --dry_run."""
    log_settings(args, make_loaders(args, device), device, precision, launch.size)
    model = make_model(args, pretrained=False)
    logger.info('%s', model.summary(args.imagenet_pretrain, args.audioset_pretrain))


def train_and_evaluate(args: argparse.Namespace, model: ASTModel, device: torch.device,
                       loaders: Loaders, folder: ExperimentFolder, interrupt: Interrupt) -> None:
    """Train, average and evaluate as the options say, then write the report.

    On a signal, mark the experiment as interrupted and exit with 75.
    """
    description = {'dataset': args.dataset, 'labels': asdict(loaders.val.dataset.labels),
                   'mean': args.dataset_mean, 'std': args.dataset_std, 'loss': args.loss,
                   'start': name_start(args.imagenet_pretrain, args.audioset_pretrain)}
    try:
        with as_training_errors(), processes.catch_lost_processes(processes.LOST_SIGNS):
            this_run = Run(model, device, loaders.train, loaders.val, args, description, interrupt)
            this_run.train()
            log_best(args.metrics, this_run.results)
            if args.wa:
                this_run.average_weights()
            if loaders.test:
                this_run.evaluate_best(loaders.test)
        folder.mark_finished(this_run.trainer.seconds)
        this_run.remove_intermediate()
    except Interrupted:
        folder.mark_interrupted()
        logger.info('%s was interrupted: the same options continue it%s', folder.path,
                    ', but --resume auto' if args.resume == 'none' else '')
        sys.exit(EXIT_CODE)
    if processes.is_main():
        with warn_only('report.html'):
            write_text(folder.path / 'report.html', run_page(folder.path))


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
        # Without gradients there is room for twice the samples.
        batch_size = 2 * args.batch_size // processes.size()
        return make_loader(dataset, batch_size, workers, pin)

    return Loaders(train=make_loader(train_set, args.batch_size, workers, pin, sampler),
                   val=evaluation_loader(args.data_val),
                   test=evaluation_loader(args.data_eval) if args.data_eval else None)


def make_dataset(args, datafile, mode, device):
    """Build the dataset of one of the experiment's datafiles.

    Raises:
        DataError: if the datafile does not go with the options.
    """
    # These fields of AudioConf are options of the same name: num_mel_bins, mixup, freqm, timem,
    # noise, dataset.
    audio_conf = {field.name: getattr(args, field.name) for field in fields(AudioConf)
                  if hasattr(args, field.name)}
    audio_conf |= {'target_length': args.audio_length, 'mode': mode, 'mean': args.dataset_mean,
                   'std': args.dataset_std}
    kind = WaveformDataset if features_on_device(args.features, device) else AudiosetDataset
    dataset = kind(datafile, audio_conf, args.label_csv)
    check_labels(dataset.datafile, args.loss, None if mode == 'train' else args.metrics)
    return dataset


def check_labels(datafile: Datafile, loss: str, metric: str | None) -> None:
    """Raise DataError if labels do not go with the loss or the metric; warn of negatives alone.

    Args:
        datafile: of a data set.
        loss: 'BCE' or 'CE'.
        metric: that the data set is evaluated with, or None.
    """
    several = np.strings.count(datafile.labels, ',').any()
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
    """Read the first recording of every data set; of the training set, one of the first few.

    A wrong path is better noticed now than in an hour.

    Raises:
        AudioError: if none of them can be read.
    """
    train_set = loaders.train.dataset.dataset  # within ReplaceUnreadable
    read_one_of(train_set, min(FIRST_FEW, len(train_set)))
    for loader in filter(None, (loaders.val, loaders.test)):
        read_one_of(loader.dataset, 1)


def read_one_of(dataset: AudiosetDataset, count: int) -> None:
    """Read one of the first `count` samples. Raises AudioError if none of them can be read."""
    for index in range(count):
        try:
            dataset[index]
            return
        except AudioError:
            if index == count - 1:
                raise


def make_model(args: argparse.Namespace, pretrained: bool = True) -> ASTModel:
    """Build the model on the CPU. pretrained=False gives random weights, for --dry_run."""
    torch.manual_seed(args.seed)
    return MODELS[args.model](
        label_dim=args.n_class, fstride=args.fstride, tstride=args.tstride,
        input_fdim=args.num_mel_bins, input_tdim=args.audio_length,
        imagenet_pretrain=args.imagenet_pretrain and pretrained,
        audioset_pretrain=args.audioset_pretrain and pretrained, model_size=args.model_size,
        verbose=pretrained)


def agree_on_precision(precision: torch.dtype | None) -> torch.dtype | None:
    """Return a precision that all processes compute in, if they have chosen different ones.

    Gradients of float16 are scaled, and would be averaged with others that are not.
    """
    chosen = processes.gather_numbers(PRECISIONS.index(precision)).flatten().int().tolist()
    if len(set(chosen)) == 1:
        return precision
    common = None if 0 in chosen else torch.float16  # 0: a CPU that computes in neither
    logger.info('not all processes compute in bfloat16: training in %s',
                str(common or torch.float32).removeprefix('torch.'))
    return common


def log_settings(args, loaders, device, precision, size):
    """Log the settings and what they lead to. size: how many processes train."""
    names = ('training', 'validation', 'evaluation')
    samples = ', '.join(f'{name} {len(loader.dataset)}' for name, loader in zip(names, loaders)
                        if loader)
    settings = ' '.join(f'--{name} {value}' for name, value in vars(args).items())
    dtype = str(precision or torch.float32).removeprefix('torch.')
    each = f' in each of {size} processes' if size > 1 else ''
    logger.info('settings: %s', settings)
    logger.info('samples: %s; %d steps an epoch; device %s, %s, %d data workers%s', samples,
                len(loaders.train), device, dtype, loaders.train.num_workers, each)


@processes.main_process_only
def log_best(metric, results):
    """Log the main metric of the best and the last epoch."""
    best, rows = results.best_epoch, results.rows
    logger.info('best epoch %d: %s %.4f; last epoch: %.4f', best, metric, rows[best - 1].metric,
                rows[-1].metric)
