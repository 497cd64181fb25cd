"""Train, validate, average checkpoints: the loop of one experiment."""
import contextlib
import logging
import math
import time
import warnings
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from torch import nn

from checkpoint import Checkpoint, CheckpointError
from distributed import Agreement, World, in_contact
from hardware import parallelise
from models import load_checkpoint, mean_state_dict, save_checkpoint
from utilities.progress import Progress, Waiting
from utilities.results import Results, write_array, write_confusion, write_json, write_rows
from utilities.stats import calculate_stats, is_single_label, single_label_scores, summarise

WARMUP_STEPS = 1000  # published schedule
ADAM_BETAS = (0.95, 0.999)  # published, as is the weight decay
WEIGHT_DECAY = 5e-7
SGD_MOMENTUM = 0.9
# Training waits for data where it does so for this long in an epoch, and for this share of it.
WAITING_SECONDS, WAITING_SHARE = 10, 0.2
NOT_FINITE_ADVICE = 'try a lower --lr, --warmup True, --clip_grad 1 or --amp off'

logger = logging.getLogger(__name__)


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says at which step and what to try."""


class Interrupted(Exception):
    """A run that was asked to stop, and whose checkpoint holds all that it has trained."""


@dataclass(frozen=True)
class TrainSettings:
    """How an experiment trains, under the names of run.py's options.

    metrics: 'acc' or 'mAP', which chooses the best epoch. loss: 'BCE' on multi-hot labels, 'CE' on a distribution.
    lr_patience: above 0, the rate decays when the metric has not risen for so many epochs, instead of in steps.
    grad_accum: pieces in which a batch goes through the model. clip_grad: largest gradient norm, 0 for no limit.
    freq_patchout, time_patchout: rows and columns of the patch grid that a training step leaves out; seed: of the draw.
    compile: compile the model.
    checkpoint_minutes: how often a checkpoint is written inside an epoch.
    """
    n_epochs: int
    metrics: str
    loss: str
    optim: str
    lr: float
    lr_patience: int
    warmup: bool
    lrscheduler_start: int
    lrscheduler_step: int
    lrscheduler_decay: float
    grad_accum: int
    clip_grad: float
    save_model: bool
    wa: bool
    wa_start: int
    wa_end: int
    n_print_steps: int
    checkpoint_minutes: float
    freq_patchout: int = 0
    time_patchout: int = 0
    seed: int = 0
    compile: bool = False

    def averages(self, epoch):
        """Whether weight averaging needs the model of this epoch."""
        return self.wa and self.wa_start <= epoch <= self.wa_end


@dataclass(frozen=True)
class Evaluation:
    """Sigmoid predictions and labels, both (samples, classes) float32, and the mean loss of the logits."""
    predictions: np.ndarray
    targets: np.ndarray
    loss: float


LOSSES = {'BCE': nn.BCEWithLogitsLoss, 'CE': nn.CrossEntropyLoss}


class Schedule:
    """The learning rate of every step: that of its epoch, times a linear warmup from 0 over the first 1000 steps."""

    def __init__(self, optimizer, settings):
        self.optimizer, self.settings = optimizer, settings
        self.decay = 1.0  # of the epoch under way
        self.step = 0
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, 'max', factor=settings.lrscheduler_decay, patience=settings.lr_patience,
        ) if settings.lr_patience else None

    def start_step(self):
        """Set the rate of the step that is about to be taken."""
        warmup = min(1.0, self.step / WARMUP_STEPS) if self.settings.warmup else 1.0
        self._set(self.settings.lr * self.decay * warmup)
        self.step += 1

    def end_epoch(self, epoch, metric):
        """Set the rate of the next epoch: after epoch `start` and every `step` epochs times decay, or on a plateau."""
        s = self.settings
        if self.plateau:
            self._set(self.decay)
            self.plateau.step(metric)
            self.decay = self.current
        elif epoch >= s.lrscheduler_start and (epoch - s.lrscheduler_start) % s.lrscheduler_step == 0:
            self.decay *= s.lrscheduler_decay

    @property
    def current(self):
        """The rate of the last step."""
        return self.optimizer.param_groups[0]['lr']

    def _set(self, rate):
        for group in self.optimizer.param_groups:
            group['lr'] = rate

    def state_dict(self):
        """What a checkpoint keeps of it."""
        plateau = self.plateau.state_dict() if self.plateau else None
        return {'decay': self.decay, 'step': self.step, 'plateau': plateau}

    def load_state_dict(self, state):
        """Go back to a state of state_dict."""
        self.decay, self.step = state['decay'], state['step']
        if self.plateau and state['plateau']:
            self.plateau.load_state_dict(state['plateau'])


class EpochLoss:
    """Mean loss over the samples of an epoch, kept on the device so that no step waits for it.

    steps, samples: how many so far, of all processes together.
    """

    def __init__(self, device, world=World()):
        dtype = torch.float32 if device.type == 'mps' else torch.float64  # MPS has no float64
        self.world = world
        self.total = torch.zeros((), device=device, dtype=dtype)
        self.first_bad_step = torch.zeros((), device=device, dtype=torch.int64)
        self.steps = self.samples = 0

    def add(self, loss, samples):
        """loss: mean over the samples of a step, a tensor without gradient; of several processes, their mean is."""
        self.steps += 1
        self.samples += samples
        self.total += loss * samples
        bad = ~torch.isfinite(loss) & (self.first_bad_step == 0)
        self.first_bad_step += bad * self.steps

    def mean(self):
        """The mean so far. Raises TrainingError where the loss of a step was NaN or infinite."""
        totals, bad_steps = self.world.gather_numbers(float(self.total), int(self.first_bad_step)).T
        if bad_steps.any():
            step = int(bad_steps[bad_steps > 0].min())
            raise TrainingError(f'the loss is no longer a finite number since step {step} of this epoch; '
                                f'{NOT_FINITE_ADVICE}')
        return float(totals.mean()) / self.samples

    def state_dict(self):
        """What a checkpoint keeps of it; float64 holds every float32."""
        total = float(self.world.gather_numbers(float(self.total)).mean())
        return {'total': total, 'steps': self.steps, 'samples': self.samples}

    def load_state_dict(self, state):
        """Go back to a state of state_dict, of any number of processes."""
        self.total.fill_(state['total'])
        self.steps, self.samples = state['steps'], state['samples']


class Trainer:
    """A model and all that training it changes: optimizer, gradient scaler, schedule, how far it has come.

    model: an ASTModel on `device`, its autocast_dtype set. epoch: the one under way, from 1; loss.steps: how many of
    its steps are done. seconds: the time that training took before this start. world: the processes that train.
    """

    STATEFUL = ('model', 'optimizer', 'schedule', 'scaler', 'loss')

    def __init__(self, model, device, settings, world=World()):
        self.model, self.device, self.settings, self.world = model, device, settings, world
        self.epoch, self.loss = 1, EpochLoss(device, world)
        self.seconds, self.start = 0.0, time.monotonic()
        if settings.compile:
            model.compile()
        self.parallel = self.trained = parallelise(model, device)  # for evaluation, and for training
        if world.size > 1:
            warnings.filterwarnings('ignore', 'Grad strides do not match')  # of [CLS] and [DIST]: 3 kB, copied
            with in_contact():
                self.trained = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False,
                                                                   gradient_as_bucket_view=True)
        self.loss_function = LOSSES[settings.loss]()
        self.optimizer = make_optimizer(model.parameters(), settings)
        self.schedule = Schedule(self.optimizer, settings)
        self.scaler = torch.amp.GradScaler(device.type, enabled=model.autocast_dtype == torch.float16)

    @property
    def elapsed(self):
        """Seconds of training, those of earlier starts included."""
        return self.seconds + time.monotonic() - self.start

    def run_epoch(self, loader, title, after_step=lambda: None):
        """Train on the batches of loader, (fbank, labels): those that the epoch has not seen yet.

        Calls after_step() after each. Returns the mean loss over all samples of the epoch.
        """
        self.trained.train()
        steps, batches = self.loss.steps + len(loader), Waiting(loader)
        sizes = loader.batch_sampler.sizes() if self.world.size > 1 else None
        with Progress(title, steps, done=self.loss.steps) as progress:
            for fbanks, labels in batches:
                own, everybodys = next(sizes) if self.world.size > 1 else (len(fbanks), len(fbanks))
                self.loss.add(self.step(fbanks, labels, self.world.size * own / everybodys), everybodys)
                progress.advance(everybodys)
                if self.loss.steps % self.settings.n_print_steps == 0 or self.loss.steps == steps:
                    progress.report(loss=f'{self.loss.mean():.4f}', lr=f'{self.schedule.current:.3g}')
                after_step()
        if batches.seconds >= WAITING_SECONDS and batches.share >= WAITING_SHARE:
            logger.warning('%s: training waited for data for %.0f %% of the time, with %d data workers; more cores and '
                           '--num_workers, files on a local disk, 16 kHz WAV or FLAC help', title, 100 * batches.share,
                           loader.num_workers)
        return self.loss.mean()

    def end_epoch(self, metric):
        """Turn to the next epoch. metric: the main one of the epoch that ends, for a schedule that looks at it."""
        self.schedule.end_epoch(self.epoch, metric)
        self.epoch, self.loss = self.epoch + 1, EpochLoss(self.device, self.world)

    def step(self, fbanks, labels, weight=1.0):
        """One update from a batch: fbanks (B, frames, bins), labels (B, classes). Returns its mean loss, a tensor.

        weight: of this process's part of the batch, over that of an even one; the loss returned is times it.
        """
        self.schedule.start_step()
        dropped = self.settings.freq_patchout, self.settings.time_patchout
        if any(dropped):
            self.model.keep_patches(*draw_patchout(self.model.grid, dropped, self.settings.seed, self.schedule.step))
        total = torch.zeros((), device=self.device)
        pieces = min(self.settings.grad_accum, len(fbanks))
        pieces = list(zip(fbanks.chunk(pieces), labels.chunk(pieces)))
        for i, (fbank, label) in enumerate(pieces, start=1):
            with self._exchange(gradients=i == len(pieces)):
                logits = self.trained(fbank.to(self.device, non_blocking=True))
                loss = self.loss_function(logits, label.to(self.device, non_blocking=True))
                loss = loss * (weight * len(fbank) / len(fbanks))
                self.scaler.scale(loss).backward()
            total += loss.detach()
        if self.settings.clip_grad:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.parallel.parameters(), self.settings.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return total

    def _exchange(self, gradients):
        """The context of a backward pass after which several processes average gradients, or do not yet."""
        return contextlib.nullcontext() if gradients or self.world.size == 1 else self.trained.no_sync()

    def state_dict(self):
        """What a checkpoint keeps of it. All processes call this."""
        return {'epoch': self.epoch, 'seconds': self.elapsed,
                **{name: getattr(self, name).state_dict() for name in self.STATEFUL}}

    def load_state_dict(self, state):
        """Go back to a state of state_dict."""
        self.epoch, self.seconds = state['epoch'], state['seconds']
        for name in self.STATEFUL:
            if state[name]:  # a gradient scaler that was not in use has no state
                getattr(self, name).load_state_dict(state[name])


def draw_patchout(grid, dropped, seed, step):
    """The rows and columns of a patch grid (f, t) that a training step keeps, sorted; drawn from (seed, step) alone.

    dropped: how many (rows, columns) it leaves out.
    """
    rng = np.random.default_rng((seed, step, 1))  # (seed, epoch) orders the samples
    return [np.sort(rng.choice(size, size - out, replace=False)) for size, out in zip(grid, dropped)]


def make_optimizer(parameters, settings):
    """The optimizer that settings.optim names, with the published constants."""
    if settings.optim == 'sgd':
        return torch.optim.SGD(parameters, settings.lr, momentum=SGD_MOMENTUM, weight_decay=WEIGHT_DECAY, fused=True)
    return torch.optim.Adam(parameters, settings.lr, betas=ADAM_BETAS, weight_decay=WEIGHT_DECAY, fused=True)


@torch.inference_mode()
def validate(model, loader, device, loss, title='validation', after_batch=lambda: None, world=World()):
    """Evaluate a model on every sample of loader; call after_batch() after each batch.

    loss: 'BCE' or 'CE'. world: processes that evaluate a part each (make_loader) and call after_batch equally often.
    Returns an Evaluation; in processes other than the main one, None.
    """
    model.eval()
    loss_function = LOSSES[loss]()
    total, predictions, targets = 0.0, [], []
    rounds = int(world.gather_numbers(len(loader)).max())  # of the process that has most batches
    with Progress(title, len(loader)) as progress:
        for fbanks, labels in loader:
            logits = model(fbanks.to(device, non_blocking=True))
            total = total + loss_function(logits, labels.to(device, non_blocking=True)) * len(fbanks)
            predictions.append(logits.sigmoid())
            targets.append(labels)
            progress.advance(len(fbanks))
            after_batch()
    for _ in range(len(loader), rounds):
        after_batch()
    predictions, targets = (world.gather_rows(torch.cat(batches).cpu() if batches else torch.zeros(0))
                            for batches in (predictions, targets))
    total = float(world.gather_numbers(float(total)).sum())
    return Evaluation(predictions.numpy(), targets.numpy(), total / len(targets)) if world.is_main else None


@contextlib.contextmanager
def explained():
    """Turn failures that a user can do something about into a TrainingError that says what."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(f'the GPU is out of memory ({str(error).splitlines()[0]}); take a smaller --batch_size; in '
                            f'training, also put batches through in pieces (--grad_accum 4) or recompute activations '
                            f'(--grad_checkpointing True), and --force to go on with them') from None
    except RuntimeError as error:
        if 'DataLoader worker' not in str(error):
            raise
        raise TrainingError(f'a process that loads data died ({str(error).splitlines()[0]}): it was killed, or memory '
                            f'or shared memory (/dev/shm) ran out; try fewer --num_workers, or 0') from None


class Run:
    """One experiment under way: it trains, evaluates and writes, and goes on from its checkpoint where there is one.

    train_loader has an EpochSampler. description: what save_checkpoint writes beside the weights; its `dataset` is the
    title of the plots. interrupt: an Interrupt, looked at after every step and every batch of an evaluation.
    world: the processes that do this together; the main one writes.
    """

    def __init__(self, model, device, train_loader, val_loader, settings, exp_dir, description, interrupt,
                 world=World()):
        self.model, self.device, self.settings, self.world = model, device, settings, world
        self.train_loader, self.val_loader = train_loader, val_loader
        self.exp_dir, self.description, self.interrupt = Path(exp_dir), description, interrupt
        (self.exp_dir / 'models').mkdir(parents=True, exist_ok=True)
        self.trainer = Trainer(model, device, settings, world)
        self.results = Results(exp_dir, settings.metrics, description['dataset'])
        self.agreement = Agreement(world)
        kept = {'trainer': self.trainer, 'results': self.results} if world.is_main else {'trainer': self.trainer}
        self.checkpoint = Checkpoint(exp_dir, settings.checkpoint_minutes, world, **kept)

    def train(self):
        """Train to the last epoch. Raises TrainingError where the loss is no longer finite, Interrupted on a signal."""
        if self.checkpoint.restore():
            self.world.on_main(self.take_up)
        while self.trainer.epoch <= self.settings.n_epochs:
            start = time.monotonic()
            title = f'epoch {self.trainer.epoch} of {self.settings.n_epochs}'
            self.train_loader.batch_sampler.sampler.set_epoch(self.trainer.epoch, start=self.trainer.loss.samples)
            train_loss = self.trainer.run_epoch(self.train_loader, title, self.after_step)
            evaluation = self.evaluate(self.val_loader, f'{title}, validation')
            metrics = self.world.on_main(lambda: self.take_in(title, train_loss, evaluation))
            self.trainer.end_epoch(getattr(metrics[0], self.settings.metrics))
            self.checkpoint.save()
            self.world.on_main(lambda: self.conclude_epoch(title, *metrics, evaluation, time.monotonic() - start))

    def take_up(self):
        """Look whether a checkpoint fits, and write what an earlier start did not come to after its last epoch."""
        self.check_validation_set()
        logger.info('going on in epoch %d after %d steps', self.trainer.epoch, self.trainer.loss.steps)
        if self.results.rows:
            self.write_epoch()

    def take_in(self, title, train_loss, evaluation):
        """Add an epoch to the results. Returns the Metrics of its predictions and of the ensemble."""
        if not math.isfinite(evaluation.loss):
            raise TrainingError(f'{title}: the validation loss is no longer a finite number; {NOT_FINITE_ADVICE}')
        return self.results.add(train_loss, evaluation, self.trainer.schedule.current)

    def conclude_epoch(self, title, single, ensemble, evaluation, seconds):
        """Write what follows from an epoch whose checkpoint is written, and log it."""
        self.write_epoch()
        log_epoch(title, self.results, single, ensemble, seconds)
        if self.settings.loss == 'CE':
            f1, top5 = single_label_scores(evaluation.predictions, evaluation.targets)
            more = '' if math.isnan(top5) else f', top-5 accuracy {top5:.4f}'
            logger.info('%s: macro F1 %.4f%s', title, f1, more)

    def check_validation_set(self):
        """Raise CheckpointError where the epochs so far were evaluated on another number of samples."""
        samples = len(self.val_loader.dataset)
        if self.results.rows and len(self.results.predictions_sum) != samples:
            raise CheckpointError(f'{self.exp_dir}: its epochs so far were evaluated on '
                                  f'{len(self.results.predictions_sum)} samples, but the validation set has {samples}: '
                                  f'choose another --exp_dir, or --resume none')

    def write_epoch(self):
        """Write what follows from the checkpoint at the end of an epoch; a run that broke off here writes it again."""
        epoch = len(self.results.rows)
        self.results.write()
        if self.trainer.loss.steps:
            return  # weights that have moved on; the epoch's own were written before they did
        models = self.exp_dir / 'models'
        if self.results.best_epoch == epoch:
            save_checkpoint(self.model, models / 'best_audio_model.pth', **self.description)
        if self.settings.save_model or self.settings.averages(epoch):
            save_checkpoint(self.model, models / f'audio_model.{epoch}.pth', **self.description)

    def after_step(self):
        """Write a checkpoint where one is due, and stop where that was asked for, of any process."""
        stop, due = self.agreement(self.interrupt.requested, self.world.is_main and self.checkpoint.is_due())
        if stop or due:
            self.trainer.loss.mean()  # raises where the weights are no longer worth keeping
            self.checkpoint.save()
            self.agreement.forget()
        if stop:
            raise Interrupted

    def stop_if_asked(self, save=False):
        """Raise Interrupted where a signal asked any process for it; save: write a checkpoint before."""
        stop, _ = self.agreement(self.interrupt.requested, False)
        if stop:
            if save:
                self.checkpoint.save()
            raise Interrupted

    def evaluate(self, loader, title):
        """The Evaluation of the model as it is. A signal stops it: what was trained before is kept in a checkpoint."""
        return validate(self.trainer.parallel, loader, self.device, self.settings.loss, title,
                        lambda: self.stop_if_asked(save=True), self.world)

    def evaluate_trained(self, loader, title):
        """The Evaluation of the model as it is, after training: a signal stops it, and it is done again."""
        return validate(self.trainer.parallel, loader, self.device, self.settings.loss, title, self.stop_if_asked,
                        self.world)

    def average_weights(self):
        """Average the models of epochs wa_start to wa_end, evaluate the mean, write wa_result.csv, audio_model_wa.pth.

        Leaves the averaged weights in the model. The epochs' own models go unless settings.save_model keeps them.
        """
        s = self.settings
        paths = [self.exp_dir / 'models' / f'audio_model.{epoch}.pth' for epoch in range(s.wa_start, s.wa_end + 1)]
        self.model.load_state_dict(mean_state_dict(paths))
        evaluation = self.evaluate_trained(self.val_loader, 'averaged model')
        self.world.on_main(lambda: self.write_average(evaluation))

    def write_average(self, evaluation):
        """Write the averaged model and its metrics."""
        s, result = self.settings, summarise(calculate_stats(evaluation.predictions, evaluation.targets))
        save_checkpoint(self.model, self.exp_dir / 'models' / 'audio_model_wa.pth', **self.description)
        write_rows(self.exp_dir / 'wa_result.csv',
                   [result.mAP, result.mAUC, result.precision, result.recall, result.d_prime])
        logger.info('average of epochs %d to %d: %s %.4f, mAUC %.4f, d-prime %.4f', s.wa_start, s.wa_end, s.metrics,
                    getattr(result, s.metrics), result.mAUC, result.d_prime)

    def evaluate_best(self, eval_loader):
        """Evaluate the best epoch's model on the validation and the evaluation set and write eval_result.csv.

        The file holds the main metric and mAUC of the one, then of the other. The predictions of the evaluation set
        are kept; with one label a sample, its confusion matrix is drawn.
        """
        load_checkpoint(self.model, self.exp_dir / 'models' / 'best_audio_model.pth')
        evaluations = {name: self.evaluate_trained(loader, f'best model, {name} set')
                       for name, loader in (('validation', self.val_loader), ('evaluation', eval_loader))}
        self.world.on_main(lambda: self.write_best(evaluations))

    def write_best(self, evaluations):
        """Write and log what evaluate_best found. evaluations: by name of the set, in the file's order."""
        row = []
        for name, evaluation in evaluations.items():
            result = summarise(calculate_stats(evaluation.predictions, evaluation.targets))
            row += [getattr(result, self.settings.metrics), result.mAUC]
            logger.info('best model on the %s set: %s %.4f, mAUC %.4f', name, self.settings.metrics, *row[-2:])
        write_rows(self.exp_dir / 'eval_result.csv', row)
        for name in ('predictions', 'targets'):
            write_array(self.exp_dir / 'predictions' / f'eval_{name}.npy', getattr(evaluation, name))
        if is_single_label(evaluation.targets):
            names = self.description['labels']['names']
            logger.info(write_confusion(self.exp_dir, names, evaluation.predictions, evaluation.targets))

    def finish(self):
        """Mark the experiment as finished, and remove what it needed only to go on; save_model keeps all of it."""
        write_json(self.exp_dir / 'finished', {'seconds': round(self.trainer.elapsed, 1)})
        if not self.settings.save_model:
            self.checkpoint.remove()
            for path in (self.exp_dir / 'models').glob('audio_model.[0-9]*'):
                path.unlink()


def log_epoch(title, results, single, ensemble, seconds):
    """One line about an epoch."""
    metric = results.metric
    *_, train_loss, valid_loss, _, _, lr = results.rows[-1]
    absent = single.classes_without_positives
    left_out = f', {absent} of {single.classes} classes without positives left out of the means' if absent else ''
    logger.info('%s: %s %.4f (ensemble of epochs %.4f), mAUC %.4f, training loss %.4f, validation loss %.4f, '
                'lr %.3g, %s, best so far epoch %d%s', title, metric, getattr(single, metric),
                getattr(ensemble, metric), single.mAUC, train_loss, valid_loss, lr, timedelta(seconds=round(seconds)),
                results.best_epoch, left_out)
