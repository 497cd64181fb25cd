"""The options of run.py, with the published defaults: the one place that declares them.

Nothing is imported here but the standard library and files that need no more. So --help and a
wrong option are answered before torch is imported, and a recipe can check a command line before
there is an environment, with any Python from 3.8 on (egs/recipe_options.py). option_checks.py
checks what needs torch or the files.
"""
import argparse

from models.published_data import AUDIOSET_INPUT
from utilities.cli import (
    LOSSES,
    OptionParser,
    Range,
    add_computing_options,
    add_input_options,
    add_mel_bins,
    boolean,
    fbank_mean_type,
    fbank_std_type,
    number,
    numbers,
    seed_type,
    whole,
)

# These names stand again in files that import torch: experiment.MODELS, optimizer.OPTIMIZERS,
# schedule.DECAYS, augmentation.CROPS. tests/training/test_options.py holds them equal.
MODELS = ('ast',)
OPTIMIZERS = ('adam', 'adamw', 'sgd')
# Optimizers whose weight decay leaves out biases, normalisations, position embeddings and learned
# tokens. The published Adam decays these, too.
DECAYS_ONLY_MATRICES = ('adamw',)
SCHEDULES = ('step', 'cosine', 'plateau')
ENDS_AT_MIN_LR = ('cosine',)  # schedules that end at --min_lr: subclasses of DecayToEnd
CROPS = ('first', 'random')

# A run that continues cannot change these options, even with --force: its checkpoint could not be
# used, or would bring back the old value (the optimizer's state holds its weight decay), or the
# .json beside its models would be wrong.
CHECKPOINT_OPTIONS = (
    'model', 'model_size', 'start', 'imagenet_pretrain', 'audioset_pretrain', 'n_class', 'fstride',
    'tstride', 'num_mel_bins', 'audio_length', 'optim', 'weight_decay', 'layer_decay', 'head_lr',
    'freeze', 'schedule', 'ema', 'metrics', 'loss', 'dataset_mean', 'dataset_std', 'sample_rate',
    'mask_padding')
# A second start in the same folder may change these options: they do not change what is computed.
RESUMABLE_OPTIONS = (
    'exp_dir', 'num_workers', 'device', 'features', 'tensorboard', 'n_print_steps',
    'checkpoint_minutes', 'max_bad_audio', 'timeout_minutes', 'resume', 'force', 'dry_run')
# These options are of one start of a run: --config does not take them from its file, and a
# comparison does not show them.
PER_START_OPTIONS = ('exp_dir', 'resume', 'force', 'dry_run', 'config')
# The folds of a cross-validation may differ in these options.
PER_FOLD_OPTIONS = ('data_train', 'data_val', 'data_eval', 'exp_dir', 'dataset_mean', 'dataset_std',
                    *RESUMABLE_OPTIONS)
# Variables of the published scripts, and the options that replace them.
OLD_NAMES = {'tr_data': 'data_train', 'te_data': 'data_val', 'val_data': 'data_val',
             'eval_data': 'data_eval', 'epoch': 'n_epochs', 'epochs': 'n_epochs',
             'imagenetpretrain': 'imagenet_pretrain', 'audiosetpretrain': 'audioset_pretrain',
             'base_exp_dir': 'exp_dir',
             'lr_scheduler_start': 'lrscheduler_start', 'lr_scheduler_step': 'lrscheduler_step',
             'lr_scheduler_decay': 'lrscheduler_decay'}


def make_parser():
    """Return the parser of run.py."""
    parser = OptionParser(prog='run.py', description='Train and evaluate one AST experiment.',
                          old_names=OLD_NAMES)
    add_options(parser)
    return parser


def add_options(parser):
    """Add all options of run.py, in groups."""
    for title, add_some in (
            ('data', add_data_options), ('model', add_model_options),
            ('augmentation', add_augmentation_options), ('training', add_training_options),
            ('machine', add_machine_options), ('this run', add_run_options)):
        add_some(parser.add_argument_group(title))


def add_data_options(group):
    """Add the options of the data: files, labels, size of the input."""
    add = group.add_argument
    add('--data_train', required=True, help='datafile of the training set')
    add('--data_val', required=True, help='datafile of the validation set')
    add('--data_eval',
        help='datafile of a test set, on which the best model is evaluated at the end')
    add_input_options(group, length_help='frames of 10 ms of the input')
    add_mel_bins(group)
    add('--n_class', type=whole(1), default=527, help='number of classes, as in the label file')
    add('--dataset', default='audioset',
        help='name of the dataset, for messages, plots and the description of models')
    add('--mask_padding', type=boolean, default=False,
        help='hide the padding of short recordings from the model; the published models were '
             'trained with it visible')
    add('--dataset_mean', type=fbank_mean_type, default=AUDIOSET_INPUT['mean'],
        help='mean of the fbank')
    add('--dataset_std', type=fbank_std_type, default=AUDIOSET_INPUT['std'],
        help='standard deviation of the fbank')
    add('--bal', type=str.lower, choices=['none', 'bal'], default='none',
        help='bal: draw training samples by the weights beside the datafile')
    add('--max_bad_audio', type=number(0, 1), default=0.01,
        help="share of an epoch's samples that may be replaced because their audio cannot be "
             'read')
    add('--eval_windows', type=whole(1, 100), default=1,
        help='in validation and test, average the scores of this many windows, spread evenly '
             'over each clip that is longer than the input; 1: only its beginning')


def add_model_options(group):
    """Add the options of the model: its size, strides and first weights."""
    add = group.add_argument
    add('--model', choices=MODELS, default='ast', help='kind of model')
    add('--model_size', default='base384',
        help='tiny224, small224, base224, base384, or the name of a ViT of timm')
    add('--fstride', type=whole(1), default=10, help='stride of the patches in frequency')
    add('--tstride', type=whole(1), default=10, help='stride of the patches in time')
    add('--imagenet_pretrain', type=boolean, default=True,
        help="start from the ViT's ImageNet weights")
    add('--audioset_pretrain', type=boolean, default=False,
        help='start from the 0.4593-mAP AudioSet checkpoint')
    add('--start',
        help='start from these weights instead, and take their model_size: a file of an audio '
             'model, an AST or a ViT of timm, or a name; pretrained_models/README.md lists them')


def frozen(text):
    """Parse the value of --freeze: none, backbone or a number of blocks."""
    if text in ('none', 'backbone'):
        return text
    return str(whole(1)(text))


def add_augmentation_options(group):
    """Add the options of augmentation. Only samples of the training set are augmented."""
    add = group.add_argument
    add('--freqm', type=whole(0), default=0,
        help='frequency masks are narrower than this, in mel bins')
    add('--timem', type=whole(0), default=0, help='time masks are shorter than this, in frames')
    add('--mixup', type=number(0, 1), default=0,
        help='share of the training samples that are mixed with another')
    add('--noise', type=boolean, default=False,
        help='add noise to the training samples and roll them in time')
    add('--freq_patchout', type=whole(0), default=0,
        help='rows of the patch grid that a training step leaves out')
    add('--time_patchout', type=whole(0), default=0,
        help='columns of the patch grid that a training step leaves out')
    add_more_augmentation_options(group)


def add_more_augmentation_options(group):
    """Add the options of augmentation that the published code does not have."""
    add = group.add_argument
    add('--freq_masks', type=whole(1, 100), default=1, help='frequency masks of a sample')
    add('--time_masks', type=whole(1, 100), default=1, help='time masks of a sample')
    add('--gain_db', type=number(0, 60), default=0,
        help='largest random change of the loudness, in dB')
    add('--shift_frames', type=whole(0), default=0,
        help='roll training samples in time by at most this many frames, without noise')
    add('--spec_mixup', type=number(0, 1), default=0,
        help='share of the training samples that are mixed with another as spectrograms; those '
             'that --mixup has mixed are not mixed again')
    add('--crop', choices=CROPS, default='first',
        help='what training hears of recordings that are longer than the input: their beginning, '
             'or each time a random window')
    add('--noise_dir',
        help='folder of recordings of noise, one of which is added to each training sample')
    add('--snr_db', nargs='+', action=Range, type=numbers(-100, 100), metavar='DB',
        help='signal-to-noise ratio with --noise_dir, in dB: one number, or the lowest and the '
             'highest; without it 3 30')


def add_training_options(group):
    """Add the options of training: epochs, loss, optimizer, learning rate, averages of weights."""
    add = group.add_argument
    add('--n_epochs', type=whole(1), default=1, help='epochs to train')
    add('-b', '--batch_size', type=whole(1), default=12, help='samples in a training batch')
    add('--loss', choices=LOSSES, default='BCE', help='loss function')
    add('--metrics', choices=['acc', 'mAP'], default='mAP', help='main metric')
    add('--optim', choices=OPTIMIZERS, default='adam', help='optimizer')
    add('--lr', '--learning_rate', type=number(above=0), default=0.001, help='learning rate')
    add('--weight_decay', type=number(0), default=5e-7,
        help=f'weight decay; with {" or ".join((*DECAYS_ONLY_MATRICES, "--layer_decay"))}, not of '
             f'biases, normalisations, position embeddings and learned tokens')
    add('--clip_grad', type=number(0), default=0,
        help='largest norm of the gradient, 0 for no limit')
    add_schedule_options(group)
    add_finetuning_options(group)
    add('--wa', type=boolean, default=False,
        help='average the weights of several epochs at the end')
    add('--wa_start', type=whole(1), default=1, help='first epoch of the average')
    add('--wa_end', type=whole(1), default=5, help='last epoch of the average')
    add('--seed', type=seed_type, default=0,
        help='fixes the run: weights, order and augmentation')


def add_schedule_options(group):
    """Add the options of how the learning rate changes over the run."""
    add = group.add_argument
    add('--schedule', choices=SCHEDULES,
        help='how the rate decays: step (the default; --lrscheduler_*), cosine (to --min_lr), or '
             'plateau (if the metric has not risen for more than --lr_patience epochs)')
    add('--min_lr', type=number(0), default=0,
        help=f'rate at the end of --schedule {" or ".join(ENDS_AT_MIN_LR)}')
    add('--warmup', type=boolean, default=False,
        help='raise the rate linearly over the first 1000 steps')
    add('--warmup_epochs', type=number(0), default=0,
        help='raise the rate linearly over this many epochs')
    add('--lrscheduler_start', type=whole(1), default=2,
        help='epoch after which the rate first decays')
    add('--lrscheduler_step', type=whole(1), default=1, help='epochs from one decay to the next')
    add('--lrscheduler_decay', type=number(above=0, maximum=1), default=0.5,
        help='factor of a decay')
    add('--lr_patience', type=whole(0), default=0,
        help='for --schedule plateau: how many epochs without a rise of the metric it tolerates '
             'before it lowers the rate; a number above 0 also chooses that schedule, 0 means 2; a '
             'rise below 0.01 percent does not count')


def add_finetuning_options(group):
    """Add the options of training that the published code does not have."""
    add = group.add_argument
    add('--label_smoothing', type=number(0, 1), default=0,
        help='share of each label that is spread evenly over all classes (CE), or over yes and no '
             '(BCE: 0.1 makes 0.95 of 1 and 0.05 of 0); the validation loss stays the plain one')
    add('--class_weights', type=boolean, default=False,
        help='let rare classes count more in the loss of training: the weight of a class is '
             '(number of labels) / (number of classes that occur * samples of the class); '
             'the validation loss stays the plain one')
    add('--layer_decay', type=number(above=0, maximum=1), default=1,
        help='learning rate of a layer, relative to that of the layer above it')
    add('--head_lr', type=number(above=0), default=1,
        help='multiply the learning rate of the head by this')
    add('--freeze', type=frozen, default='none',
        help='weights that are not trained: none; backbone: all but the head; a number: those of '
             'the patches and of this many blocks, from the first on')
    add('--cache_embeddings', type=boolean, default=False,
        help='with --freeze backbone and without augmentation: compute the embedding of each clip '
             'once, so that an epoch takes seconds; every recording must be readable')
    add('--drop_path', type=number(0, 1), default=0,
        help="stochastic depth: probability that a training sample skips the last block's "
             'branches; it rises linearly from 0 in the first block')
    add('--ema', type=number(0, 1), default=0,
        help='evaluate and save a moving average of the weights with this decay, such as 0.999; '
             '0: no average')
    add('--patience', type=whole(0), default=0,
        help='stop if the metric has not risen for this many epochs (any rise counts); 0: never')


def add_machine_options(group):
    """Add the options of the machine: device, precision, workers, memory."""
    add = group.add_argument
    add_computing_options(group)
    add('--features', choices=['auto', 'cpu', 'gpu'], default='auto',
        help='where fbanks are computed: cpu, in the data workers; gpu, in batches on --device; '
             'auto: gpu with CUDA')
    add('--compile', type=boolean, default=False, help='compile the model with torch.compile')
    add('--grad_accum', type=whole(1), default=1,
        help='pieces in which a batch goes through the model, to save memory')
    add('--grad_checkpointing', type=boolean, default=False,
        help='recompute activations, to save memory')
    add('--timeout_minutes', type=number(above=0), default=30,
        help='how long one of several processes waits for the others before the run ends')


def add_run_options(group):
    """Add the options of output, logging and resuming."""
    add = group.add_argument
    add('--exp_dir', required=True, help='directory of this experiment')
    add('--config', default=argparse.SUPPRESS,  # training/config.py takes it out before
        help='args.json of an earlier run: use its settings, except those that the command line '
             'gives; --exp_dir, --resume, --force and --dry_run are not taken from it')
    add('--save_model', type=boolean, default=False,
        help="keep every epoch's model, not just the best")
    add('--tensorboard', type=boolean, default=False,
        help='write EXP_DIR/tensorboard, for TensorBoard: the metrics and losses of every epoch, '
             'learning rate, samples a second')
    add('--n_print_steps', type=whole(1), default=100, help='steps from one report to the next')
    add('--checkpoint_minutes', type=number(0), default=15,
        help='minutes between checkpoints inside an epoch')
    add('--resume', choices=['auto', 'none'], default='auto',
        help='auto: continue from the checkpoint in exp_dir; none: begin again, and remove what an '
             'earlier run left there, its models included')
    add('--force', type=boolean, nargs='?', const=True, default=False,
        help='continue although settings have changed')
    add('--dry_run', type=boolean, nargs='?', const=True, default=False,
        help='print the resolved settings and sizes, and stop')
