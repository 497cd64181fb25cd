"""The options of run.py, with the published defaults, and the combinations of them that contradict each other."""
import math
from pathlib import Path

import torch

from dataloader import AudioConf
from hardware import choose_device, memory_bytes, splits_batches
from models import ASTModel
from models.ast_models import DEIT, check_settings, patch_grid
from trainer import LOSSES
from utilities.cli import (MAX_BATCH, MAX_FRAMES, MAX_MEL_BINS, MAX_MINUTES, MAX_SEED, OptionParser, add_num_workers,
                           boolean, fbank_mean, fbank_std, number, whole)
from utilities.labels import WEIGHT_RULE, DataError, read_labels, weight_file

MODELS = {'ast': ASTModel}
# Options that no checkpoint survives a change of, not even with --force.
STRUCTURE = ('model', 'model_size', 'n_class', 'fstride', 'tstride', 'num_mel_bins', 'audio_length', 'optim', 'metrics',
             'label_csv')
# Options that a second start in the same exp_dir may change: they do not change what is computed.
FREE_OPTIONS = ('num_workers', 'device', 'features', 'n_print_steps', 'checkpoint_minutes', 'max_bad_audio',
                'timeout_minutes', 'resume', 'force', 'dry_run')

# Patches of an input; attention's time grows with their square. 128 bins x 1024 frames at strides of 1 have 114017.
MAX_PATCHES = 2 ** 17
GB = 10 ** 9  # bytes


def make_parser():
    """The parser of all options, in groups."""
    parser = OptionParser(prog='run.py', description='Train and evaluate one AST experiment.')
    for title, add_options in (('data', add_data_options), ('model', add_model_options),
                               ('augmentation', add_augmentation_options), ('training', add_training_options),
                               ('machine', add_machine_options), ('this run', add_run_options)):
        add_options(parser.add_argument_group(title))
    return parser


def add_data_options(group):
    """What is read, and as what."""
    add = group.add_argument
    add('--data_train', required=True, help='datafile of the training set')
    add('--data_val', required=True, help='datafile of the validation set')
    add('--data_eval', help='datafile of a test set, on which the best model is evaluated at the end')
    add('--label_csv', required=True, help='label file: index,mid,display_name')
    add('--n_class', type=whole(1), default=527, help='number of classes, as in the label file')
    add('--dataset', default='audioset', help='name of the dataset, for messages, plots and the description of models')
    add('--num_mel_bins', type=whole(16, MAX_MEL_BINS), default=128, help='mel bins of the fbank')
    add('--audio_length', type=whole(16, MAX_FRAMES), default=1024, help='frames of 10 ms of the input')
    add('--dataset_mean', type=fbank_mean, default=AudioConf.mean, help='mean of the fbank')
    add('--dataset_std', type=fbank_std, default=AudioConf.std, help='standard deviation of the fbank')
    add('--bal', type=str.lower, choices=['none', 'bal'], default='none',
        help='bal: draw training samples by the weights beside the datafile')
    add('--max_bad_audio', type=number(0, 1), default=0.01,
        help="share of an epoch's samples that may be replaced by others since their audio cannot be read")


def add_model_options(group):
    """Shape of the model, and the weights that it starts from."""
    add = group.add_argument
    add('--model', choices=list(MODELS), default='ast', help='kind of model')
    add('--model_size', choices=list(DEIT), default='base384', help='size of the model')
    add('--fstride', type=whole(1), default=10, help='stride of the patches in frequency')
    add('--tstride', type=whole(1), default=10, help='stride of the patches in time')
    add('--imagenet_pretrain', type=boolean, default=True, help="start from DeiT's ImageNet weights")
    add('--audioset_pretrain', type=boolean, default=False, help='start from the 0.4593-mAP AudioSet checkpoint')


def add_augmentation_options(group):
    """What a training sample goes through, and an evaluation sample does not."""
    add = group.add_argument
    add('--freqm', type=whole(0), default=0, help='widest frequency mask, in mel bins')
    add('--timem', type=whole(0), default=0, help='widest time mask, in frames')
    add('--mixup', type=number(0, 1), default=0, help='share of the training samples that are mixed with another')
    add('--noise', type=boolean, default=False, help='add noise to the training samples and roll them in time')
    add('--freq_patchout', type=whole(0), default=0, help='rows of the patch grid that a training step leaves out')
    add('--time_patchout', type=whole(0), default=0, help='columns of the patch grid that a training step leaves out')


def add_training_options(group):
    """Steps, their size, and what counts as good."""
    add = group.add_argument
    add('--n_epochs', type=whole(1), default=1, help='epochs to train')
    add('-b', '--batch_size', type=whole(1, MAX_BATCH), default=12, help='samples in a training batch')
    add('--loss', choices=list(LOSSES), default='BCE', help='loss function')
    add('--metrics', choices=['acc', 'mAP'], default='mAP', help='main metric')
    add('--optim', choices=['adam', 'sgd'], default='adam', help='optimizer')
    add('--lr', '--learning_rate', type=number(above=0), default=0.001, help='learning rate')
    add('--warmup', type=boolean, default=False, help='raise the rate linearly over the first 1000 steps')
    add('--lrscheduler_start', type=whole(1), default=2, help='epoch after which the rate first decays')
    add('--lrscheduler_step', type=whole(1), default=1, help='epochs from one decay to the next')
    add('--lrscheduler_decay', type=number(above=0, maximum=1), default=0.5, help='factor of a decay')
    add('--lr_patience', type=whole(0), default=0,
        help='epochs without a better metric after which the rate decays; 0 for a schedule of steps')
    add('--clip_grad', type=number(0), default=0, help='largest norm of the gradient, 0 for no limit')
    add('--wa', type=boolean, default=False, help='average the weights of several epochs at the end')
    add('--wa_start', type=whole(1), default=1, help='first epoch of the average')
    add('--wa_end', type=whole(1), default=5, help='last epoch of the average')
    add('--seed', type=whole(0, MAX_SEED), default=0, help='fixes the run: weights, order and augmentation')


def add_machine_options(group):
    """Where and how it is computed: time and memory."""
    add = group.add_argument
    add('--device', default='auto', help='auto, cpu, cuda (all GPUs), cuda:N or mps')
    add('--amp', choices=['auto', 'bf16', 'fp16', 'off'], default='auto', help='mixed precision')
    add_num_workers(group)
    add('--features', choices=['auto', 'cpu', 'gpu'], default='auto',
        help='where fbanks are computed: cpu, in the data workers; gpu, in batches on --device; auto: gpu with CUDA')
    add('--compile', type=boolean, default=False, help='compile the model with torch.compile')
    add('--grad_accum', type=whole(1), default=1, help='pieces in which a batch goes through the model, to save memory')
    add('--grad_checkpointing', type=boolean, default=False, help='recompute activations, to save memory')
    add('--timeout_minutes', type=number(above=0, maximum=MAX_MINUTES), default=30,
        help='how long one of several processes waits for the others before the run ends')


def add_run_options(group):
    """What is kept and said, and how a second start goes on."""
    add = group.add_argument
    add('--exp_dir', required=True, help='directory of this experiment')
    add('--save_model', type=boolean, default=False, help="keep every epoch's model, not just the best")
    add('--n_print_steps', type=whole(1), default=100, help='steps from one report to the next')
    add('--checkpoint_minutes', type=number(0), default=15, help='minutes between checkpoints inside an epoch')
    add('--resume', choices=['auto', 'none'], default='auto', help='auto: go on from the checkpoint in exp_dir')
    add('--force', type=boolean, nargs='?', const=True, default=False, help='go on although settings have changed')
    add('--dry_run', type=boolean, nargs='?', const=True, default=False,
        help='print the resolved settings and sizes, and stop')


def check_options(parser, args, world):
    """Stop with a sentence where options contradict each other."""
    try:
        check_settings(args.n_class, args.fstride, args.tstride, args.num_mel_bins, args.audio_length,
                       args.imagenet_pretrain, args.audioset_pretrain, args.model_size)
        device = world.device(choose_device(args.device))
    except ValueError as error:
        parser.error(str(error))
    if args.compile and splits_batches(device):
        # nn.DataParallel copies a compiled model's reference to itself: all GPUs would run the first one's weights.
        parser.error(f'--compile True does not work in one process with {torch.cuda.device_count()} GPUs: start one '
                     f'process for each GPU (--launcher torchrun), or use one GPU (--device cuda:0)')
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
