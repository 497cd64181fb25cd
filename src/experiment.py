"""One experiment of run.py, from its options to its results."""
import argparse
import contextlib
import logging
import sys
from dataclasses import asdict, fields

import numpy as np
import torch

from audio.reading import AudioError
from dataloader import AudioConf, AudiosetDataset
from models import ASTModel, WeightsError
from reports.pages import run_page
from training import processes
from training.bad_audio import ReplaceUnreadable
from training.checkpoint import CheckpointError
from training.devices import choose_device, choose_precision, features_on_device
from training.errors import TrainingError, explained
from training.folder import ExperimentFolder
from training.gpu_fbanks import WaveformDataset
from training.interrupt import EXIT_CODE, Interrupt
from training.loaders import make_loader
from training.option_checks import check_files, check_options
from training.processes import DistributedError, Place
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
PRECISIONS = (None, torch.float16, torch.bfloat16)  # the better ones of a machine last

logger = logging.getLogger(__name__)


def start(parser: argparse.ArgumentParser, args: argparse.Namespace, interrupt: Interrupt) -> None:
    """Check the options together and run their experiment. End the program on errors of a user."""
    errors = (AudioError, CheckpointError, DataError, DistributedError, OSError, TrainingError,
              WeightsError)
    with processes.exit_without_waiting(), exit_on(*errors):
        place = processes.find_place()
        check_options(parser, args, place)
        setup_logging(place.rank)
        limit_threads()
        run(args, interrupt, place)


def run(args: argparse.Namespace, interrupt: Interrupt, place: Place) -> None:
    """Run one experiment, or nothing if it is finished already."""
    device = processes.own_device(place, choose_device(args.device))
    precision = choose_precision(args.amp, device)
    if args.dry_run:
        describe(args, device, precision, place)
        return

    processes.join(place, device, args.timeout_minutes)
    precision = agree_on_precision(precision)
    # TF32, for what stays float32 in mixed precision.
    tf32 = precision is not None
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32

    folder = ExperimentFolder(args)
    with contextlib.ExitStack() as lock:
        def has_work_left():
            lock.enter_context(folder.lock())
            return folder.has_work_left()

        if not processes.on_main(has_work_left):
            return
        loaders = make_loaders(args, device)
        for loader in loaders:
            check_first_recordings(loader.dataset)
        log_settings(args, loaders, device, precision, place.size)
        with explained():
            model = make_model(args).to(device)
        model.autocast_dtype = precision
        model.v.set_grad_checkpointing(args.grad_checkpointing)
        processes.on_main(lambda: folder.begin(device, processes.size()))
        train_and_evaluate(args, model, device, loaders, folder, interrupt)


def describe(args: argparse.Namespace, device: torch.device, precision: torch.dtype | None,
             place: Place) -> None:
    """Log what an experiment would do, for --dry_run."""
    log_settings(args, make_loaders(args, device), device, precision, place.size)
    model = make_model(args, pretrained=False)
    logger.info('%s', model.summary(args.imagenet_pretrain, args.audioset_pretrain))


def train_and_evaluate(args, model, device, loaders, folder, interrupt):
    """Train, average and evaluate as the options say, then write the report.

    On a signal, leave the mark `interrupted` and exit with 75.
    """
    description = {'dataset': args.dataset, 'labels': asdict(loaders[1].dataset.labels),
                   'mean': args.dataset_mean, 'std': args.dataset_std, 'loss': args.loss}
    try:
        with explained(), processes.catch_lost_processes(processes.LOST_SIGNS):
            this_run = Run(model, device, loaders[0], loaders[1], args, description, interrupt)
            this_run.train()
            processes.on_main(lambda: log_best(args.metrics, this_run.results))
            if args.wa:
                this_run.average_weights()
            if args.data_eval:
                this_run.evaluate_best(loaders[2])
        this_run.finish()
    except Interrupted:
        if processes.is_main():
            folder.mark_interrupted()
        logger.info('%s wants to go on: start it again with the same options%s', folder.path,
                    ', but --resume auto' if args.resume == 'none' else '')
        sys.exit(EXIT_CODE)
    if processes.is_main():
        with warn_only('report.html'):
            write_text(folder.path / 'report.html', run_page(folder.path))


def make_loaders(args: argparse.Namespace, device: torch.device) -> list:
    """Build the loaders of the training, the validation and, with --data_eval, the test set."""
    check_files(args)
    train_set = ReplaceUnreadable(make_dataset(args, args.data_train, 'train', device))
    weights = None
    if args.bal == 'bal':
        weights = read_sample_weights(weight_file(args.data_train), len(train_set))
    sampler = EpochSampler(len(train_set), args.seed, weights)

    workers, pin = args.num_workers, device.type == 'cuda'
    loaders = [make_loader(train_set, args.batch_size, workers, pin, sampler)]
    for datafile in filter(None, (args.data_val, args.data_eval)):
        dataset = make_dataset(args, datafile, 'evaluation', device)
        # Without gradients there is room for twice the samples.
        batch_size = 2 * args.batch_size // processes.size()
        loaders.append(make_loader(dataset, batch_size, workers, pin))
    return loaders


def make_dataset(args, datafile, mode, device):
    """Build the dataset of one of the experiment's datafiles.

    Raises:
        DataError: if the datafile does not go with the options.
    """
    # Most fields of AudioConf are options of the same name: num_mel_bins, freqm, mixup, ...
    audio_conf = {field.name: getattr(args, field.name) for field in fields(AudioConf)
                  if hasattr(args, field.name)}
    audio_conf |= {'target_length': args.audio_length, 'mode': mode, 'mean': args.dataset_mean,
                   'std': args.dataset_std}
    kind = WaveformDataset if features_on_device(args.features, device) else AudiosetDataset
    dataset = kind(datafile, audio_conf, args.label_csv)
    check_labels(dataset.datafile, args.loss)
    return dataset


def check_labels(datafile: Datafile, loss: str) -> None:
    """Raise DataError if a datafile does not go with the loss; warn if it holds only negatives."""
    several = np.strings.count(datafile.labels, ',').any()
    if loss == 'CE' and (several or datafile.negatives):
        found = 'samples with several' if several else f'{datafile.negatives} without (negatives)'
        raise DataError(f'--loss CE needs one label a sample, but {datafile.path} has {found}: '
                        f'use --loss BCE')
    if datafile.negatives == len(datafile):
        logger.warning('%s: no sample has a label: there is no class to learn from it, and AP, AUC '
                       'and accuracy on it are nan', datafile.path)


def check_first_recordings(dataset: AudiosetDataset | ReplaceUnreadable) -> None:
    """Read the first recording; of a training set, one of the first few.

    A wrong path is better noticed now than in an hour.

    Raises:
        AudioError: if none of them can be read.
    """
    few = 1
    if isinstance(dataset, ReplaceUnreadable):
        few, dataset = min(FIRST_FEW, len(dataset)), dataset.dataset
    for index in range(few):
        try:
            dataset[index]
            return
        except AudioError:
            if index == few - 1:
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
    samples = ', '.join(f'{name} {len(loader.dataset)}' for name, loader in zip(names, loaders))
    settings = ' '.join(f'--{name} {value}' for name, value in vars(args).items())
    dtype = str(precision or torch.float32).removeprefix('torch.')
    each = f' in each of {size} processes' if size > 1 else ''
    logger.info('settings: %s', settings)
    logger.info('samples: %s; %d steps an epoch; device %s, %s, %d data workers%s', samples,
                len(loaders[0]), device, dtype, loaders[0].num_workers, each)


def log_best(metric, results):
    """Log the main metric of the best and the last epoch."""
    best, rows = results.best_epoch, results.rows
    logger.info('best epoch %d: %s %.4f; last epoch: %.4f', best, metric, rows[best - 1].metric,
                rows[-1].metric)
