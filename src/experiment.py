"""One experiment of run.py, from its options to its results."""
import argparse
import logging
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from audio.fbank import SAMPLE_RATE
from audio.reading import AudioError
from experiment_data import check_first_recordings, make_loaders
from models import ASTModel, WeightsError
from models.starts import find_model_size, name_timm_start
from models.summary import log_summary
from reports.pages import run_page
from training import processes
from training.checkpoint import CheckpointError
from training.devices import choose_precision
from training.embeddings import embed
from training.errors import TrainingError, as_training_errors
from training.folder import ExperimentFolder, is_to_begin_again
from training.interrupt import EXIT_CODE, Interrupt
from training.launch import DistributedError, Launch, read_launch
from training.loaders import Loaders
from training.optimizer import freeze, set_drop_path
from training.option_checks import check_options, with_option_names
from training.supervisor import Interrupted
from traintest import Run
from utilities.cli import exit_on, setup_logging
from utilities.errors import DataError, warn_only
from utilities.parallel import limit_threads
from utilities.texts import read_json, write_text

MODELS = {'ast': ASTModel}  # --model
# In this order: hardware that supports one also supports those before it.
PRECISIONS = (None, torch.float16, torch.bfloat16)

logger = logging.getLogger(__name__)


def start(parser: argparse.ArgumentParser, args: argparse.Namespace, interrupt: Interrupt) -> None:
    """Check the options and run their experiment. End the program on errors of a user."""
    errors = (AudioError, CheckpointError, DataError, DistributedError, OSError, TrainingError,
              WeightsError)
    with processes.exit_without_waiting(), exit_on(*errors):
        launch = read_launch()
        # An earlier start with --resume none was stopped before it removed the old run.
        if is_to_begin_again(Path(args.exp_dir)):
            args.resume = 'none'
        if args.start:
            args.model_size = choose_model_size(parser, args)
        device = check_options(parser, args, launch)
        setup_logging(launch.rank)
        limit_threads()
        run(args, device, launch, interrupt)


def run(args: argparse.Namespace, device: torch.device, launch: Launch, interrupt: Interrupt
        ) -> None:
    """Run one experiment, or nothing if it is finished already."""
    precision = choose_precision(args.amp, device)
    folder = ExperimentFolder(args)
    if args.dry_run:
        # One process speaks for all: an error in each would end with torchrun's own message.
        if launch.rank == 0 and folder.has_work_left():
            log_dry_run(args, device, precision, launch)
        return

    processes.join(launch, device, args.timeout_minutes)
    precision = agree_on_precision(precision)
    # In mixed precision, TF32 is allowed in what autocast leaves in float32.
    tf32 = precision is not None
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32

    with folder.lock() as has_work_left:
        if not has_work_left:
            tidy_up(folder)
            return
        loaders = make_loaders(args, device)
        check_first_recordings(loaders)
        log_settings(args, loaders, device, precision, launch.size)
        with as_training_errors():
            model = make_model(args)
            warn_of_rate(model, args.sample_rate)
            model.to(device)
        freeze(model, args.freeze)
        model.autocast_dtype = precision
        model.v.set_grad_checkpointing(args.grad_checkpointing)
        if args.cache_embeddings:
            with as_training_errors():
                loaders = embed(loaders, model, device, args.batch_size)
        folder.clear_if_asked()  # nothing but the training itself can fail from here on
        train_and_evaluate(args, model, device, loaders, folder, interrupt)


def log_dry_run(args: argparse.Namespace, device: torch.device, precision: torch.dtype | None,
                launch: Launch) -> None:
    """Log what an experiment would do, for --dry_run."""
    log_settings(args, make_loaders(args, device), device, precision, launch.size)
    model = make_model(args, pretrained=False)
    log_summary(model, name_start(args))


def train_and_evaluate(args: argparse.Namespace, model: ASTModel, device: torch.device,
                       loaders: Loaders, folder: ExperimentFolder, interrupt: Interrupt) -> None:
    """Train, average and evaluate as the options say, then tidy up.

    On a signal, mark the experiment as interrupted and exit with 75.
    """
    # An option that goes into the description must be in CHECKPOINT_OPTIONS (training/options.py),
    # unless it only changes names.
    description = {'dataset': args.dataset, 'labels': asdict(loaders.val.dataset.labels),
                   'mean': args.dataset_mean, 'std': args.dataset_std, 'loss': args.loss,
                   'start': model.start_name}
    if args.sample_rate != SAMPLE_RATE:
        description['sample_rate'] = args.sample_rate
    if args.mask_padding:
        description['mask_padding'] = True
    try:
        with as_training_errors(), processes.catch_lost_processes(processes.LOST_SIGNS):
            this_run = Run(model, device, loaders.train, loaders.val, args, description, interrupt)
            interrupt.let_steps_finish()
            this_run.resume()
            folder.note_start(device)
            this_run.train()
            log_best(args.metrics, this_run.results)
            if args.wa:
                this_run.average_weights()
            if loaders.test is not None:
                this_run.evaluate_best(loaders.test)
        folder.mark_finished(this_run.trainer.seconds)
    except Interrupted:
        folder.mark_interrupted()
        logger.info('%s was interrupted: the same options%s continue it', folder.path,
                    ', without --resume none,' if args.resume == 'none' else '')
        sys.exit(EXIT_CODE)
    tidy_up(folder)


@processes.main_process_only
def tidy_up(folder: ExperimentFolder) -> None:
    """Write the report of a finished run, and remove what only its continuation needed.

    Call this after the run is marked as finished. If the checkpoint were removed first and the run
    were killed then, the next start would train from the beginning. If the run is killed during
    this, the next start does it.
    """
    if not (folder.path / 'report.html').exists():
        with warn_only('report.html'):
            write_text(folder.path / 'report.html', run_page(folder.path))
    folder.remove_intermediate()


def choose_model_size(parser: argparse.ArgumentParser, args: argparse.Namespace) -> str:
    """Return the model_size of --start. If the run has begun already, its folder says it.

    End the program with a sentence if the start does not go with the strides or the input.

    Raises:
        WeightsError: if the start cannot be found or read.
    """
    before = Path(args.exp_dir) / 'args.json'
    if args.resume != 'none' and before.is_file():
        saved = read_json(before)
        if saved.get('start') == args.start and isinstance(saved.get('model_size'), str):
            return saved['model_size']
    settings = {'fstride': args.fstride, 'tstride': args.tstride,
                'input_fdim': args.num_mel_bins, 'input_tdim': args.audio_length}
    try:
        return find_model_size(args.start, args.model_size, settings)
    except WeightsError:  # a ValueError, too, but not about options
        raise
    except ValueError as error:
        parser.error(with_option_names(str(error)))


def make_model(args: argparse.Namespace, pretrained: bool = True) -> ASTModel:
    """Build the model on the CPU. pretrained=False gives random weights, for --dry_run."""
    torch.manual_seed(args.seed)
    model = MODELS[args.model](
        label_dim=args.n_class, fstride=args.fstride, tstride=args.tstride,
        input_fdim=args.num_mel_bins, input_tdim=args.audio_length,
        imagenet_pretrain=args.imagenet_pretrain and pretrained,
        audioset_pretrain=args.audioset_pretrain and pretrained, model_size=args.model_size,
        start=args.start if pretrained else None, verbose=pretrained)
    if args.drop_path:
        set_drop_path(model, args.drop_path)
    return model


def warn_of_rate(model: ASTModel, sample_rate: int) -> None:
    """Log a warning if a model starts from weights that have heard another sample rate."""
    if model.start_rate not in (None, sample_rate):
        logger.warning('the %s weights were trained at %d Hz, but --sample_rate is %d: each mel '
                       'bin now stands for other frequencies, so the weights may help less',
                       model.start_name, model.start_rate, sample_rate)


def name_start(args: argparse.Namespace) -> str:
    """Return the name of the weights that the options choose, for --dry_run."""
    if args.start:
        return args.start
    if args.audioset_pretrain:
        return 'AudioSet'
    if not args.imagenet_pretrain:
        return 'random'
    return name_timm_start(args.model_size)


def agree_on_precision(precision: torch.dtype | None) -> torch.dtype | None:
    """Return a precision that all processes compute in, if they have chosen different ones.

    Gradients of float16 are scaled, and would be averaged with others that are not.
    """
    chosen = processes.gather_numbers(PRECISIONS.index(precision)).flatten().int().tolist()
    if len(set(chosen)) == 1:
        return precision
    common = PRECISIONS[min(chosen)]
    logger.info('not all processes compute in bfloat16: training in %s',
                dtype_name(common))
    return common


def dtype_name(precision: torch.dtype | None) -> str:
    """Return what messages call a precision, such as bfloat16."""
    return str(precision or torch.float32).removeprefix('torch.')


def log_settings(args, loaders, device, precision, size):
    """Log the settings and what they lead to. size: how many processes train."""
    names = ('training', 'validation', 'test')
    samples = ', '.join(f'{name} {len(loader.dataset)}' for name, loader in zip(names, loaders)
                        if loader is not None)
    settings = ' '.join(f'--{name} {value}' for name, value in vars(args).items())
    each = f' in each of {size} processes' if size > 1 else ''
    logger.info('settings: %s', settings)
    logger.info('samples: %s; %d steps an epoch; device %s, %s, %d data workers%s', samples,
                len(loaders.train), device, dtype_name(precision), loaders.train.num_workers, each)


@processes.main_process_only
def log_best(metric, results):
    """Log the main metric of the best and the last epoch."""
    best, rows = results.best_epoch, results.rows
    logger.info('best epoch %d: %s %.4f; last epoch: %.4f', best, metric, rows[best - 1].metric,
                rows[-1].metric)
