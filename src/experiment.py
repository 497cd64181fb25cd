"""One experiment, from the options of run.py to its results: the only place where options become settings."""
import contextlib
import functools
import logging
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from audio.reading import AudioError
from dataloader import AudiosetDataset
from models import ASTModel, WeightsError
from models.files import LockedError, hold_lock
from reports.pages import run_page, warn_only
from training import processes
from training.batches import EpochSampler, WaveformDataset, make_loader
from training.checkpoint import CheckpointError
from training.devices import choose_device, choose_precision, features_on_device
from training.environment import record_start
from training.errors import TrainingError, explained
from training.interrupt import EXIT_CODE
from training.option_checks import check_files, check_options
from training.options import FREE_OPTIONS, STRUCTURE, make_parser
from training.supervisor import Interrupted
from traintest import Run
from utilities.cli import exit_on, setup_logging
from utilities.errors import DataError
from utilities.folders import making
from utilities.labels import read_sample_weights, weight_file
from utilities.parallel import limit_threads
from utilities.texts import read_json, write_json, write_text

MODELS = {'ast': ASTModel}  # --model
FIRST_FEW = 10  # recordings of which one must be readable

logger = logging.getLogger(__name__)


def make_dataset(args, datafile, mode, kind=AudiosetDataset):
    """A dataset of one of the experiment's datafiles; raises DataError if it does not go with the options."""
    audio_conf = {'num_mel_bins': args.num_mel_bins, 'target_length': args.audio_length, 'mode': mode,
                  'mean': args.dataset_mean, 'std': args.dataset_std, 'freqm': args.freqm, 'timem': args.timem,
                  'mixup': args.mixup, 'noise': args.noise, 'dataset': args.dataset}
    dataset = kind(datafile, audio_conf, args.label_csv)
    check_labels(dataset.datafile, args.loss)
    return dataset


def check_labels(datafile, loss):
    """Raise DataError if a Datafile does not go with the loss; warn if it holds only negatives."""
    several = np.strings.count(datafile.labels, ',').any()
    if loss == 'CE' and (several or datafile.negatives):
        found = 'samples with several' if several else f'{datafile.negatives} without (negatives)'
        raise DataError(f'--loss CE needs one label a sample, but {datafile.path} has {found}: '
                        f'use --loss BCE')
    if datafile.negatives == len(datafile):
        logger.warning('%s: no sample has a label: there is no class to learn from it, and AP, AUC '
                       'and accuracy on it are nan', datafile.path)


def make_loaders(args, device):
    """Loaders of the training, validation and, if --data_eval is given, evaluation set."""
    check_files(args)
    make = functools.partial(make_dataset, args,
                             kind=WaveformDataset if features_on_device(args.features, device) else AudiosetDataset)
    load = functools.partial(make_loader, num_workers=args.num_workers, pin_memory=device.type == 'cuda')
    train_set = make(args.data_train, 'train')
    weights = read_sample_weights(weight_file(args.data_train), len(train_set)) if args.bal == 'bal' else None
    evaluation_sets = [make(datafile, 'evaluation') for datafile in (args.data_val, args.data_eval) if datafile]
    return [load(train_set, args.batch_size, sampler=EpochSampler(len(train_set), args.seed, weights)),
            *(load(dataset, 2 * args.batch_size // processes.size()) for dataset in evaluation_sets)]


def make_model(args, pretrained=True):
    """The model that the options describe, on the CPU; without pretrained weights, it is only as large as that."""
    torch.manual_seed(args.seed)
    return MODELS[args.model](
        label_dim=args.n_class, fstride=args.fstride, tstride=args.tstride, input_fdim=args.num_mel_bins,
        input_tdim=args.audio_length, imagenet_pretrain=args.imagenet_pretrain and pretrained,
        audioset_pretrain=args.audioset_pretrain and pretrained, model_size=args.model_size, verbose=pretrained)


def log_settings(args, loaders, device, precision, size):
    """Say once what is about to run."""
    names = ('training', 'validation', 'evaluation')
    sizes = ', '.join(f'{name} {len(loader.dataset)}' for name, loader in zip(names, loaders))
    logger.info('settings: %s', ' '.join(f'--{name} {value}' for name, value in vars(args).items()))
    each = f' in each of {size} processes' if size > 1 else ''
    logger.info('samples: %s; %d steps an epoch; device %s, %s, %d data workers%s', sizes, len(loaders[0]), device,
                str(precision or torch.float32).removeprefix('torch.'), loaders[0].num_workers, each)


@contextlib.contextmanager
def claimed(exp_dir):
    """Make exp_dir and keep other processes out of it; a directory in which nothing came to be is removed again.

    Raises DataError if another process runs in it.
    """
    with making(exp_dir), contextlib.ExitStack() as held:
        try:
            held.enter_context(hold_lock(exp_dir / 'lock', wait=False, keep=lambda: False))
        except LockedError:
            raise DataError(f'another process runs in {exp_dir}: wait for it, or choose another '
                            f'--exp_dir') from None
        except OSError as error:
            raise DataError(f'{exp_dir} cannot be locked: {error.strerror}') from None
        yield


def is_finished(args, exp_dir):
    """Whether exp_dir holds this very experiment, finished. Raises DataError if it holds one with other settings."""
    if not (exp_dir / 'args.json').exists():
        return False
    before = read_json(exp_dir / 'args.json')
    default = make_parser().get_default  # of an option that was not there yet when the experiment began
    changed = {name: value for name, value in vars(args).items()
               if name not in FREE_OPTIONS and before.get(name, default(name)) != value}
    if not isinstance(before.get('n_epochs'), int):
        raise DataError(f'cannot read {exp_dir / "args.json"}: it does not say how many epochs there were')
    longer = changed.get('n_epochs', 0) > before['n_epochs']
    forced = args.force and not set(changed) & set(STRUCTURE)
    if set(changed) - ({'n_epochs'} if longer else set()) and not forced:
        differences = ', '.join(f'--{name} {before.get(name, default(name))} -> {value}'
                                for name, value in changed.items())
        raise DataError(f'{exp_dir} holds an experiment with other settings ({differences}); choose another --exp_dir; '
                        f'--force goes on if they change neither model, optimizer nor metric')
    if not (exp_dir / 'finished').exists():
        return False
    if longer and not (exp_dir / 'checkpoint.pth').exists():
        raise DataError(f'{exp_dir} is finished after {before["n_epochs"]} epochs and kept no checkpoint to go on from '
                        f'(--save_model True keeps it): choose another --exp_dir, or begin again there with '
                        f'--resume none')
    return not longer


def run(args, interrupt, place):
    """Run one experiment, or nothing if it is finished already."""
    device = processes.own_device(place, choose_device(args.device))
    precision = choose_precision(args.amp, device)
    if args.dry_run:
        log_settings(args, make_loaders(args, device), device, precision, place.size)
        logger.info('%s', make_model(args, pretrained=False).summary(args.imagenet_pretrain, args.audioset_pretrain))
        return
    processes.join(place, device, args.timeout_minutes)
    precision = agree_on_precision(precision)
    # For what stays float32 in mixed precision.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision is not None
    exp_dir = Path(args.exp_dir)
    with contextlib.ExitStack() as claim:
        if processes.on_main(lambda: is_to_run(args, exp_dir, claim)):
            loaders = make_loaders(args, device)
            for loader in loaders:
                look_at(loader.dataset)
            log_settings(args, loaders, device, precision, place.size)
            with explained():
                model = make_model(args).to(device)
            model.autocast_dtype = precision
            model.v.set_grad_checkpointing(args.grad_checkpointing)
            processes.on_main(lambda: begin(args, exp_dir, device))
            experiment(args, model, device, loaders, exp_dir, interrupt)


def agree_on_precision(precision):
    """Return the precision of all processes: if they have chosen differently, one that all compute in.

    Gradients of float16 are scaled and would be averaged with others that are not.
    """
    known = [None, torch.float16, torch.bfloat16]
    chosen = set(processes.gather_numbers(known.index(precision)).flatten().int().tolist())
    if len(chosen) == 1:
        return precision
    common = None if 0 in chosen else torch.float16  # 0: a CPU that computes in neither
    logger.info('not all processes compute in bfloat16: training in %s', str(common or torch.float32).split('.')[1])
    return common


def is_to_run(args, exp_dir, claim):
    """Claim exp_dir, until the ExitStack `claim` is closed; returns whether there is something left to do in it."""
    claim.enter_context(claimed(exp_dir))
    (exp_dir / 'interrupted').unlink(missing_ok=True)
    finished = args.resume != 'none' and is_finished(args, exp_dir)
    if finished:
        logger.info('%s is finished already', exp_dir)
    return not finished


def look_at(dataset):
    """Read the first recording, in training one of the first few: a wrong path is better noticed now than in an hour.

    Raises AudioError.
    """
    few = range(min(FIRST_FEW if dataset.conf.mode == 'train' else 1, len(dataset)))
    for index in few:
        try:
            dataset[index]
            return
        except AudioError:
            if index == few[-1]:
                raise


def begin(args, exp_dir, device):
    """Note what is about to run in exp_dir, once everything that it needs is there."""
    if args.resume == 'none':
        forget(exp_dir)
    write_json(exp_dir / 'args.json', vars(args))
    for name in ('finished', 'report.html'):
        (exp_dir / name).unlink(missing_ok=True)
    with warn_only('environment.json'):
        record_start(exp_dir, device, processes.size())


def forget(exp_dir):
    """Remove what an earlier start left."""
    for name in ('args.json', 'checkpoint.pth', 'finished', 'result.csv', 'metrics.csv', 'wa_result.csv', 'eval_result.csv',
                 'confusion_matrix.png', 'class_accuracy.csv', 'environment.json', 'report.html'):
        (exp_dir / name).unlink(missing_ok=True)
    for name in ('models', 'predictions'):
        shutil.rmtree(exp_dir / name, ignore_errors=True)


def experiment(args, model, device, loaders, exp_dir, interrupt):
    """Train, average and evaluate as the options say. On a signal, leave the mark `interrupted` and exit with 75."""
    description = {'dataset': args.dataset, 'labels': asdict(loaders[0].dataset.labels), 'mean': args.dataset_mean,
                   'std': args.dataset_std, 'loss': args.loss}
    try:
        with explained(), processes.catch_lost_processes(processes.LOST_SIGNS):
            this_run = Run(model, device, loaders[0], loaders[1], args, exp_dir, description, interrupt)
            this_run.train()
            processes.on_main(lambda: log_best(args.metrics, this_run.results))
            if args.wa:
                this_run.average_weights()
            if args.data_eval:
                this_run.evaluate_best(loaders[2])
        this_run.finish()
    except Interrupted:
        if processes.is_main():
            (exp_dir / 'interrupted').touch()
        logger.info('%s wants to go on: start it again with the same options%s', exp_dir,
                    ', but --resume auto' if args.resume == 'none' else '')
        sys.exit(EXIT_CODE)
    if processes.is_main():
        with warn_only('report.html'):
            write_text(exp_dir / 'report.html', run_page(exp_dir))


def log_best(metric, results):
    """Say how the best and the last epoch did."""
    best, rows = results.best_epoch, results.rows
    logger.info('best epoch %d: %s %.4f; last epoch: %.4f', best, metric, rows[best - 1][0], rows[-1][0])


def start(parser, args, interrupt):
    """Check the options together and run their experiment; mistakes end the program with a sentence."""
    with processes.exit_without_waiting(), exit_on(AudioError, CheckpointError, DataError, processes.DistributedError, OSError, TrainingError,
                                  WeightsError):
        place = processes.find_place()
        check_options(parser, args, place)
        setup_logging(place.rank)
        limit_threads()
        run(args, interrupt, place)
