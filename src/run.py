"""Train and evaluate one AST experiment: the command line, the only place where options become settings."""
import contextlib
import functools
import logging
import math
import shutil
import sys
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout

from checkpoint import CheckpointError
from dataloader import AudioConf, AudiosetDataset, EpochSampler, WaveformDataset, make_loader
from distributed import DistributedError, World, find_world, in_contact
from features import AudioError
from hardware import choose_device, choose_precision, features_on_device, memory_bytes
from models import ASTModel, WeightsError
from models.ast_models import DEIT, check_settings, patch_grid
from models.files import WriteError
from report import run_page, warn_only
from trainer import LOSSES, TrainingError, TrainSettings
from traintest import Interrupted, Run, explained
from utilities.cli import (MAX_BATCH, MAX_FRAMES, MAX_MEL_BINS, MAX_SEED, OptionParser, add_num_workers, boolean,
                           exit_on, fbank_mean, fbank_std, number, setup_logging, whole)
from utilities.environment import record_start
from utilities.folders import making
from utilities.interrupt import EXIT_CODE, Interrupt
from utilities.labels import WEIGHT_RULE, DataError, read_labels, read_sample_weights, weight_file
from utilities.results import read_json, write_json, write_text

MODELS = {'ast': ASTModel}
# Options that no checkpoint survives a change of, not even with --force.
STRUCTURE = ('model', 'model_size', 'n_class', 'fstride', 'tstride', 'num_mel_bins', 'audio_length', 'optim', 'metrics',
             'label_csv')
# Options that a second start in the same exp_dir may change: they do not change what is computed.
FREE_OPTIONS = ('num_workers', 'device', 'features', 'n_print_steps', 'checkpoint_minutes', 'max_bad_audio',
                'timeout_minutes', 'resume', 'force', 'dry_run')

FIRST_FEW = 10  # recordings of which one must be readable

MAX_MINUTES = 60 * 24 * 30  # a month
# Patches of an input; attention's time grows with their square. 128 bins x 1024 frames at strides of 1 have 114017.
MAX_PATCHES = 2 ** 17
GB = 10 ** 9  # bytes

logger = logging.getLogger(__name__)


def make_parser():
    """All options, with the published defaults."""
    parser = OptionParser(prog='run.py', description=__doc__)
    add = parser.add_argument
    add('--data_train', required=True, help='datafile of the training set')
    add('--data_val', required=True, help='datafile of the validation set')
    add('--data_eval', help='datafile of a test set, on which the best model is evaluated at the end')
    add('--label_csv', required=True, help='label file: index,mid,display_name')
    add('--n_class', type=whole(1), default=527, help='number of classes, as in the label file')
    add('--model', choices=list(MODELS), default='ast', help='kind of model')
    add('--model_size', choices=list(DEIT), default='base384', help='size of the model')
    add('--dataset', default='audioset', help='name of the dataset, for messages, plots and the description of models')
    add('--exp_dir', required=True, help='directory of this experiment')
    add('--lr', '--learning_rate', type=number(above=0), default=0.001, help='learning rate')
    add('--optim', choices=['adam', 'sgd'], default='adam', help='optimizer')
    add('-b', '--batch_size', type=whole(1, MAX_BATCH), default=12, help='samples in a training batch')
    add_num_workers(parser)
    add('--features', choices=['auto', 'cpu', 'gpu'], default='auto',
        help='where fbanks are computed: cpu, in the data workers; gpu, in batches on --device; auto: gpu with CUDA')
    add('--n_epochs', type=whole(1), default=1, help='epochs to train')
    add('--lr_patience', type=whole(0), default=0,
        help='epochs without a better metric after which the rate decays; 0 for a schedule of steps')
    add('--n_print_steps', type=whole(1), default=100, help='steps from one report to the next')
    add('--save_model', type=boolean, default=False, help="keep every epoch's model, not just the best")
    add('--num_mel_bins', type=whole(16, MAX_MEL_BINS), default=128, help='mel bins of the fbank')
    add('--audio_length', type=whole(16, MAX_FRAMES), default=1024, help='frames of 10 ms of the input')
    add('--freqm', type=whole(0), default=0, help='widest frequency mask, in mel bins')
    add('--timem', type=whole(0), default=0, help='widest time mask, in frames')
    add('--mixup', type=number(0, 1), default=0, help='share of the training samples that are mixed with another')
    add('--noise', type=boolean, default=False, help='add noise to the training samples and roll them in time')
    add('--bal', type=str.lower, choices=['none', 'bal'], default='none',
        help='bal: draw training samples by the weights beside the datafile')
    add('--fstride', type=whole(1), default=10, help='stride of the patches in frequency')
    add('--tstride', type=whole(1), default=10, help='stride of the patches in time')
    add('--imagenet_pretrain', type=boolean, default=True, help="start from DeiT's ImageNet weights")
    add('--audioset_pretrain', type=boolean, default=False, help='start from the 0.4593-mAP AudioSet checkpoint')
    add('--dataset_mean', type=fbank_mean, default=AudioConf.mean, help='mean of the fbank')
    add('--dataset_std', type=fbank_std, default=AudioConf.std, help='standard deviation of the fbank')
    add('--metrics', choices=['acc', 'mAP'], default='mAP', help='main metric')
    add('--loss', choices=list(LOSSES), default='BCE', help='loss function')
    add('--warmup', type=boolean, default=False, help='raise the rate linearly over the first 1000 steps')
    add('--lrscheduler_start', type=whole(1), default=2, help='epoch after which the rate first decays')
    add('--lrscheduler_step', type=whole(1), default=1, help='epochs from one decay to the next')
    add('--lrscheduler_decay', type=number(above=0, maximum=1), default=0.5, help='factor of a decay')
    add('--wa', type=boolean, default=False, help='average the weights of several epochs at the end')
    add('--wa_start', type=whole(1), default=1, help='first epoch of the average')
    add('--wa_end', type=whole(1), default=5, help='last epoch of the average')
    add('--seed', type=whole(0, MAX_SEED), default=0, help='fixes the run: weights, order and augmentation')
    add('--device', default='auto', help='auto, cpu, cuda (all GPUs), cuda:N or mps')
    add('--amp', choices=['auto', 'bf16', 'fp16', 'off'], default='auto', help='mixed precision')
    add('--grad_accum', type=whole(1), default=1, help='pieces in which a batch goes through the model, to save memory')
    add('--clip_grad', type=number(0), default=0, help='largest norm of the gradient, 0 for no limit')
    add('--freq_patchout', type=whole(0), default=0, help='rows of the patch grid that a training step leaves out')
    add('--time_patchout', type=whole(0), default=0, help='columns of the patch grid that a training step leaves out')
    add('--compile', type=boolean, default=False, help='compile the model with torch.compile')
    add('--grad_checkpointing', type=boolean, default=False, help='recompute activations, to save memory')
    add('--max_bad_audio', type=number(0, 1), default=0.01,
        help="share of an epoch's samples that may be replaced by others since their audio cannot be read")
    add('--timeout_minutes', type=number(above=0, maximum=MAX_MINUTES), default=30,
        help='how long one of several processes waits for the others before the run ends')
    add('--resume', choices=['auto', 'none'], default='auto', help='auto: go on from the checkpoint in exp_dir')
    add('--checkpoint_minutes', type=number(0), default=15, help='minutes between checkpoints inside an epoch')
    add('--force', type=boolean, nargs='?', const=True, default=False, help='go on although settings have changed')
    add('--dry_run', type=boolean, nargs='?', const=True, default=False,
        help='print the resolved settings and sizes, and stop')
    return parser


def check_options(parser, args, world):
    """Stop with a sentence where options contradict each other."""
    try:
        check_settings(args.n_class, args.fstride, args.tstride, args.num_mel_bins, args.audio_length,
                       args.imagenet_pretrain, args.audioset_pretrain, args.model_size)
        world.device(choose_device(args.device))
    except ValueError as error:
        parser.error(str(error))
    if args.freqm > args.num_mel_bins:
        parser.error(f'--freqm {args.freqm} is more than the {args.num_mel_bins} mel bins')
    if args.timem > args.audio_length:
        parser.error(f'--timem {args.timem} is more than the {args.audio_length} frames of --audio_length')
    check_sizes(parser, args, world)
    rows, columns = patch_grid(args.fstride, args.tstride, args.num_mel_bins, args.audio_length)
    if args.freq_patchout >= rows or args.time_patchout >= columns:
        parser.error(f'--freq_patchout and --time_patchout must leave some of the {rows} rows and {columns} columns')
    if args.batch_size % world.size:
        less = args.batch_size // world.size * world.size
        nearest = f'{less} or {less + world.size}' if less else world.size
        parser.error(f'--batch_size {args.batch_size} cannot be split over {world.size} processes; {nearest} can')
    if args.wa and not args.wa_start <= args.wa_end <= args.n_epochs:
        parser.error(f'--wa needs wa_start <= wa_end <= n_epochs, got {args.wa_start}, {args.wa_end}, {args.n_epochs}')


def check_sizes(parser, args, world):
    """Stop with a sentence where strides, patches or a batch are of a size that no training is."""
    if args.fstride > args.num_mel_bins:
        parser.error(f'--fstride {args.fstride} is more than the {args.num_mel_bins} mel bins')
    if args.tstride > args.audio_length:
        parser.error(f'--tstride {args.tstride} is more than the {args.audio_length} frames of --audio_length')
    rows, columns = patch_grid(args.fstride, args.tstride, args.num_mel_bins, args.audio_length)
    if rows * columns > MAX_PATCHES:
        parser.error(f'--fstride {args.fstride} and --tstride {args.tstride} cut {args.num_mel_bins} mel bins x '
                     f'{args.audio_length} frames of --audio_length into {rows * columns} patches, more than '
                     f'{MAX_PATCHES}: take larger strides or fewer frames')
    here = math.ceil(args.batch_size / world.size) * world.local_size  # samples of a batch, on this machine
    size, memory = 4 * here * args.num_mel_bins * args.audio_length, memory_bytes()
    if size > memory:
        parser.error(f'--batch_size {args.batch_size}: the inputs of a batch, {args.num_mel_bins} mel bins x '
                     f'{args.audio_length} frames of --audio_length each, take {size / GB:.0f} GB, more than the '
                     f'{memory / GB:.0f} GB of memory of this machine')


def check_files(args):
    """Raise DataError where the label file or the weights of samples do not go with the options.

    Reading a datafile of millions takes its time, so this comes before.
    """
    classes = len(read_labels(args.label_csv))
    if classes != args.n_class:
        raise DataError(f'--n_class is {args.n_class}, but {args.label_csv} lists {classes} classes')
    weights = weight_file(args.data_train)
    if args.bal == 'bal' and Path(args.data_train).exists() and not weights.exists():
        raise DataError(f'--bal bal needs the weight file {weights}, and it is not there; it holds, for each sample, '
                        f'{WEIGHT_RULE}, and egs/audioset/gen_weight_file.py writes it')


def make_dataset(args, datafile, mode, kind=AudiosetDataset):
    """A dataset of one of the experiment's datafiles; raises DataError where it does not go with the options."""
    audio_conf = {'num_mel_bins': args.num_mel_bins, 'target_length': args.audio_length, 'mode': mode,
                  'mean': args.dataset_mean, 'std': args.dataset_std, 'freqm': args.freqm, 'timem': args.timem,
                  'mixup': args.mixup, 'noise': args.noise, 'dataset': args.dataset}
    dataset = kind(datafile, audio_conf, args.label_csv)
    if args.loss == 'CE' and np.strings.count(dataset.datafile.labels, ',').any():
        raise DataError(f'--loss CE needs one label a sample, but {datafile} has samples with several: use --loss BCE')
    return dataset


def make_loaders(args, device, world=World()):
    """Loaders of the training, validation and, where --data_eval is given, evaluation set."""
    check_files(args)
    make = functools.partial(make_dataset, args,
                             kind=WaveformDataset if features_on_device(args.features, device) else AudiosetDataset)
    load = functools.partial(make_loader, num_workers=args.num_workers, pin_memory=device.type == 'cuda', world=world)
    train_set = make(args.data_train, 'train')
    weights = read_sample_weights(weight_file(args.data_train), len(train_set)) if args.bal == 'bal' else None
    evaluation_sets = [make(datafile, 'evaluation') for datafile in (args.data_val, args.data_eval) if datafile]
    return [load(train_set, args.batch_size, sampler=EpochSampler(len(train_set), args.seed, weights)),
            *(load(dataset, 2 * args.batch_size // world.size) for dataset in evaluation_sets)]


def make_model(args, pretrained=True):
    """The model that the options describe, on the CPU; without pretrained weights, it is only as large as that."""
    torch.manual_seed(args.seed)
    return MODELS[args.model](
        label_dim=args.n_class, fstride=args.fstride, tstride=args.tstride, input_fdim=args.num_mel_bins,
        input_tdim=args.audio_length, imagenet_pretrain=args.imagenet_pretrain and pretrained,
        audioset_pretrain=args.audioset_pretrain and pretrained, model_size=args.model_size, verbose=pretrained)


def log_settings(args, loaders, device, precision, world):
    """Say once what is about to run."""
    names = ('training', 'validation', 'evaluation')
    sizes = ', '.join(f'{name} {len(loader.dataset)}' for name, loader in zip(names, loaders))
    logger.info('settings: %s', ' '.join(f'--{name} {value}' for name, value in vars(args).items()))
    each = f' in each of {world.size} processes' if world.size > 1 else ''
    logger.info('samples: %s; %d steps an epoch; device %s, %s, %d data workers%s', sizes, len(loaders[0]), device,
                str(precision or torch.float32).removeprefix('torch.'), loaders[0].num_workers, each)


@contextlib.contextmanager
def claimed(exp_dir):
    """Make exp_dir and keep other processes out of it; a directory in which nothing came to be is removed again.

    Raises DataError where another process runs in it.
    """
    with making(exp_dir):
        lock = FileLock(exp_dir / 'lock')  # ends with its process, however that ends
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise DataError(f'another process runs in {exp_dir}: wait for it, or choose another --exp_dir') from None
        except OSError as error:
            raise DataError(f'{exp_dir} cannot be locked: {error.strerror}') from None
        try:
            yield
        finally:
            (exp_dir / 'lock').unlink(missing_ok=True)  # before the release: who waits for a lost file asks again
            lock.release()


def is_finished(args, exp_dir):
    """Whether exp_dir holds this very experiment, finished. Raises DataError where it holds one with other settings."""
    if not (exp_dir / 'args.json').exists():
        return False
    before = read_json(exp_dir / 'args.json')
    default = make_parser().get_default  # of an option that was not there yet when the experiment began
    changed = {name: value for name, value in vars(args).items()
               if name not in FREE_OPTIONS and before.get(name, default(name)) != value}
    longer = changed.get('n_epochs', 0) > before.get('n_epochs', 0)
    forced = args.force and not set(changed) & set(STRUCTURE)
    if set(changed) - ({'n_epochs'} if longer else set()) and not forced:
        differences = ', '.join(f'--{name} {before.get(name, default(name))} -> {value}'
                                for name, value in changed.items())
        raise DataError(f'{exp_dir} holds an experiment with other settings ({differences}); choose another --exp_dir; '
                        f'--force goes on where they change neither model, optimizer nor metric')
    if not (exp_dir / 'finished').exists():
        return False
    if longer and not (exp_dir / 'checkpoint.pth').exists():
        raise DataError(f'{exp_dir} is finished and kept no checkpoint to go on from, as --save_model True does; '
                        f'choose another --exp_dir to train longer')
    return not longer


def run(args, interrupt, world):
    """Run one experiment, or nothing where it is finished already."""
    device = world.device(choose_device(args.device))
    precision = choose_precision(args.amp, device)
    if args.dry_run:
        log_settings(args, make_loaders(args, device, world), device, precision, world)
        logger.info('%s', make_model(args, pretrained=False).summary(args.imagenet_pretrain, args.audioset_pretrain))
        return
    world.start(device, args.timeout_minutes)
    exp_dir = Path(args.exp_dir)
    with contextlib.ExitStack() as claim:
        if world.on_main(lambda: is_to_run(args, exp_dir, claim)):
            loaders = make_loaders(args, device, world)
            for loader in loaders:
                look_at(loader.dataset)
            log_settings(args, loaders, device, precision, world)
            model = make_model(args).to(device)
            model.autocast_dtype = precision
            model.v.set_grad_checkpointing(args.grad_checkpointing)
            world.on_main(lambda: begin(args, exp_dir, device, world))
            experiment(args, model, device, loaders, exp_dir, interrupt, world)
    world.end()


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


def begin(args, exp_dir, device, world):
    """Note what is about to run in exp_dir, once everything that it needs is there."""
    if args.resume == 'none':
        forget(exp_dir)
    write_json(exp_dir / 'args.json', vars(args))
    for name in ('finished', 'report.html'):
        (exp_dir / name).unlink(missing_ok=True)
    with warn_only('environment.json'):
        record_start(exp_dir, device, world.size)


def forget(exp_dir):
    """Remove what an earlier start left."""
    for name in ('args.json', 'checkpoint.pth', 'finished', 'result.csv', 'wa_result.csv', 'eval_result.csv',
                 'confusion_matrix.png', 'class_accuracy.csv', 'environment.json', 'report.html'):
        (exp_dir / name).unlink(missing_ok=True)
    for name in ('models', 'predictions'):
        shutil.rmtree(exp_dir / name, ignore_errors=True)


def experiment(args, model, device, loaders, exp_dir, interrupt, world):
    """Train, average and evaluate as the options say. On a signal, leave the mark `interrupted` and exit with 75."""
    settings = TrainSettings(**{field.name: getattr(args, field.name) for field in fields(TrainSettings)})
    description = {'dataset': args.dataset, 'labels': asdict(loaders[0].dataset.labels), 'mean': args.dataset_mean,
                   'std': args.dataset_std, 'loss': args.loss}
    try:
        with explained(), in_contact():
            this_run = Run(model, device, loaders[0], loaders[1], settings, exp_dir, description, interrupt, world)
            this_run.train()
            world.on_main(lambda: log_best(args.metrics, this_run.results))
            if args.wa:
                this_run.average_weights()
            if args.data_eval:
                this_run.evaluate_best(loaders[2])
        world.on_main(this_run.finish)
    except Interrupted:
        if world.is_main:
            (exp_dir / 'interrupted').touch()
        logger.info('%s wants to go on: start it again with the same options%s', exp_dir,
                    ', but --resume auto' if args.resume == 'none' else '')
        world.end()
        sys.exit(EXIT_CODE)
    if world.is_main:
        with warn_only('report.html'):
            write_text(exp_dir / 'report.html', run_page(exp_dir, make_parser().get_default))


def log_best(metric, results):
    """Say how the best and the last epoch did."""
    best, rows = results.best_epoch, results.rows
    logger.info('best epoch %d: %s %.4f; last epoch: %.4f', best, metric, rows[best - 1][0], rows[-1][0])


def main(argv=None):
    """Entry point."""
    parser = make_parser()
    args = parser.parse_args(argv)
    with exit_on(AudioError, CheckpointError, DataError, DistributedError, TrainingError, WeightsError, WriteError):
        world = find_world()
        check_options(parser, args, world)
        setup_logging(world.rank)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # for what stays float32
        run(args, Interrupt().listen(), world)


if __name__ == '__main__':
    main()
