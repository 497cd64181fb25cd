"""Check run.py's options against each other, the machine and the files."""
import argparse
import math
import sys
from dataclasses import MISSING, fields
from pathlib import Path

import torch

from audio.augmentation import AugmentationConf
from audio.fbank import frame_size
from models.assumptions import OPTIONS
from models.ast_models import ModelConfig
from models.starts import check_pretraining
from training import processes
from training.devices import choose_device, memory_bytes, splits_batches
from training.launch import Launch, own_device
from training.options import ENDS_AT_MIN_LR
from utilities.errors import DataError
from utilities.labels import read_labels
from utilities.weight_files import WEIGHT_RULE, weight_file

# The largest number of patches: the time of attention grows with its square. 128 bins x 1024
# frames have 114,017 patches at strides of 1.
MAX_PATCHES = 2 ** 17
GB = 10 ** 9  # bytes


def check_options(parser: argparse.ArgumentParser, args: argparse.Namespace, launch: Launch
                  ) -> torch.device:
    """End the program with a sentence if options contradict each other or the machine.

    Returns:
        The device of this process.
    """
    try:
        config = ModelConfig(
            model_size=args.model_size, label_dim=args.n_class, fstride=args.fstride,
            tstride=args.tstride, input_fdim=args.num_mel_bins, input_tdim=args.audio_length)
        if not args.start:
            check_pretraining(config, args.imagenet_pretrain, args.audioset_pretrain)
        device = own_device(launch, choose_device(args.device))
    except ValueError as error:
        parser.error(with_option_names(str(error)))
    check_sizes(parser, args, config, launch)
    check_augmentation(parser, args, config)
    check_processes(parser, args, launch, device)
    check_training(parser, args)
    if args.wa and not args.wa_start <= args.wa_end <= args.n_epochs:
        parser.error(f'--wa needs wa_start <= wa_end <= n_epochs, got {args.wa_start}, '
                     f'{args.wa_end}, {args.n_epochs}')
    if args.tensorboard:
        check_tensorboard(parser)
    return device


def with_option_names(message: str) -> str:
    """Replace the names of settings in an error of ModelConfig by those of run.py's options."""
    for setting in ('input_fdim', 'input_tdim'):
        message = message.replace(setting, OPTIONS[setting])
    return message


def check_training(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End the program with a sentence if options of training contradict each other."""
    if args.lr_patience and args.schedule not in (None, 'plateau'):
        parser.error(f'--lr_patience {args.lr_patience} is for --schedule plateau, not for '
                     f'{args.schedule}')
    if args.min_lr and args.schedule not in ENDS_AT_MIN_LR:
        parser.error(f'--min_lr is the end of --schedule {" or ".join(ENDS_AT_MIN_LR)}: give that, '
                     f'too')
    if args.min_lr > args.lr:
        parser.error(f'--min_lr {args.min_lr:g} is above --lr {args.lr:g}')
    if args.warmup and args.warmup_epochs:
        parser.error('--warmup True is the published warm-up of 1000 steps: for --warmup_epochs, '
                     'set --warmup False')
    if args.warmup_epochs > args.n_epochs:
        parser.error(f'--warmup_epochs {args.warmup_epochs:g} is more than --n_epochs '
                     f'{args.n_epochs}')
    if args.freeze == 'backbone' and args.layer_decay < 1:
        parser.error('--layer_decay is for the layers of the backbone, which --freeze backbone '
                     'keeps as they are: give one of the two')
    if args.freeze == 'backbone' and args.drop_path:
        parser.error('--drop_path is for training the backbone: not with --freeze backbone')
    if args.cache_embeddings:
        check_cached(parser, args)
    if args.ema and args.wa:
        parser.error('--ema and --wa both average weights: for --ema, set --wa False')
    if args.patience and args.wa:
        parser.error('--patience may end the run before the epochs that --wa averages: for '
                     '--patience, set --wa False')
    if args.ema == 1 or args.label_smoothing == 1:
        name = 'ema' if args.ema == 1 else 'label_smoothing'
        parser.error(f'--{name} must be below 1')


def check_cached(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End the program with a sentence if options do not go with --cache_embeddings."""
    if args.freeze != 'backbone':
        parser.error('--cache_embeddings needs --freeze backbone: a backbone that is trained '
                     'changes the embeddings')
    if args.eval_windows > 1:
        parser.error(f'--cache_embeddings keeps one embedding of a clip, but --eval_windows '
                     f'{args.eval_windows} needs several: leave one of the two out')
    for name in ('compile', 'grad_checkpointing'):
        if getattr(args, name):
            parser.error(f'--{name} True has no effect with --cache_embeddings, which trains the '
                         f'head alone: leave one of the two out')
    # Each field with a default is an option; those without are the size of the input.
    names = [field.name for field in fields(AugmentationConf) if field.default is not MISSING]
    names += ['freq_patchout', 'time_patchout']
    used = [name for name in names if getattr(args, name) != parser.get_default(name)]
    if used:
        given = ' and '.join(f'--{name} {getattr(args, name)}' for name in used)
        defaults = {name: parser.get_default(name) for name in used}
        off = ' and '.join(f'no --{name}' if default is None else f'--{name} {default}'
                           for name, default in defaults.items())
        parser.error(f'--cache_embeddings computes each embedding once, but {given} would change '
                     f'the samples in every epoch: give {off}')


def check_sizes(parser: argparse.ArgumentParser, args: argparse.Namespace, config: ModelConfig,
                launch: Launch) -> None:
    """End the program with a sentence if strides, patches or a batch are too large for training."""
    most = frame_size(args.sample_rate).fft // 2
    if args.num_mel_bins > most:
        parser.error(f'--sample_rate {args.sample_rate} has room for {most} mel bins at most, got '
                     f'--num_mel_bins {args.num_mel_bins}')
    if args.fstride > args.num_mel_bins:
        parser.error(f'--fstride {args.fstride} is more than the {args.num_mel_bins} mel bins')
    if args.tstride > args.audio_length:
        parser.error(f'--tstride {args.tstride} is more than the {args.audio_length} frames of '
                     f'--audio_length')
    rows, columns = config.grid
    if rows * columns > MAX_PATCHES:
        parser.error(f'--fstride {args.fstride} and --tstride {args.tstride} cut '
                     f'{args.num_mel_bins} mel bins x {args.audio_length} frames of --audio_length '
                     f'into {rows * columns} patches, more than {MAX_PATCHES}: take larger strides '
                     f'or fewer frames')
    # Samples of a batch on this machine.
    here = math.ceil(args.batch_size / launch.size) * processes.local_size()
    size, memory = 4 * here * args.num_mel_bins * args.audio_length, memory_bytes()
    if size > memory:
        parser.error(f'--batch_size {args.batch_size}: the inputs of a batch, {args.num_mel_bins} '
                     f'mel bins x {args.audio_length} frames of --audio_length each, take '
                     f'{size / GB:.0f} GB, more than the {memory / GB:.0f} GB of memory of this '
                     f'machine')


def check_augmentation(parser: argparse.ArgumentParser, args: argparse.Namespace,
                       config: ModelConfig) -> None:
    """End the program with a sentence if options of augmentation do not fit.

    They must fit the input, and not contradict each other.
    """
    if args.freqm > args.num_mel_bins:
        parser.error(f'--freqm {args.freqm} is more than the {args.num_mel_bins} mel bins')
    if args.timem > args.audio_length:
        parser.error(f'--timem {args.timem} is more than the {args.audio_length} frames of '
                     f'--audio_length')
    for count, width in (('freq_masks', 'freqm'), ('time_masks', 'timem')):
        if getattr(args, count) > 1 and not getattr(args, width):
            parser.error(f'--{count} {getattr(args, count)} needs --{width}, which says how wide '
                         f'the masks are')
    if args.shift_frames > args.audio_length:
        parser.error(f'--shift_frames {args.shift_frames} is more than the {args.audio_length} '
                     f'frames of --audio_length')
    if args.snr_db and not args.noise_dir:
        parser.error(f'--snr_db {args.snr_db} needs --noise_dir, the folder of the noise')
    moved = [name for name in ('noise', 'shift_frames') if getattr(args, name)]
    if args.mask_padding and moved:
        off = parser.get_default(moved[0])
        parser.error(f'--mask_padding True needs the padding at the end, but --{moved[0]} '
                     f'{getattr(args, moved[0])} moves it: set --{moved[0]} {off}')
    rows, columns = config.grid
    if args.freq_patchout >= rows or args.time_patchout >= columns:
        parser.error(f'--freq_patchout and --time_patchout must leave some of the {rows} rows and '
                     f'{columns} columns')


def check_processes(parser: argparse.ArgumentParser, args: argparse.Namespace, launch: Launch,
                    device: torch.device) -> None:
    """End the program with a sentence if the options do not go with the processes or GPUs."""
    if args.compile and splits_batches(device):
        # nn.DataParallel copies a compiled model's reference to itself: all GPUs would run the
        # first one's weights.
        count = torch.cuda.device_count()
        parser.error(f'--compile True does not work in one process with {count} GPUs: start one '
                     f'process for each GPU (recipes do with --launcher torchrun), or use one GPU '
                     f'(--device cuda:0)')
    if args.batch_size % launch.size:
        less = args.batch_size // launch.size * launch.size
        nearest = f'{less} or {less + launch.size}' if less else launch.size
        parser.error(f'--batch_size {args.batch_size} cannot be split over {launch.size} '
                     f'processes; {nearest} can')


def check_tensorboard(parser: argparse.ArgumentParser) -> None:
    """End the program with a sentence if TensorBoard is not installed."""
    try:
        from torch.utils import tensorboard  # noqa: F401
    except ImportError:
        parser.error('--tensorboard True needs the package tensorboard, which is not installed: '
                     f'{sys.executable} -m pip install tensorboard')


def check_files(args: argparse.Namespace) -> None:
    """Check the label file and the weight file, before a datafile of millions of samples is read.

    Raises:
        DataError: if one of them does not go with the options.
    """
    classes = len(read_labels(args.label_csv))
    if classes != args.n_class:
        raise DataError(f'--n_class is {args.n_class}, but {args.label_csv} lists {classes} '
                        f'classes')
    weights = weight_file(args.data_train)
    if args.bal == 'bal' and Path(args.data_train).exists() and not weights.exists():
        raise DataError(f'--bal bal needs the weight file {weights}, and it is not there; it '
                        f'holds, for each sample, {WEIGHT_RULE}, and '
                        f'egs/audioset/gen_weight_file.py {args.data_train} --label_csv '
                        f'{args.label_csv} writes it')
