"""A model in training: its loss, its schedule, its optimizer, a step, an epoch."""
import contextlib
import logging
import time
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from training import processes
from training.devices import move, parallelise
from training.errors import TrainingError
from utilities.progress import Progress, TimedBatches

WARMUP_STEPS = 1000  # published schedule
ADAM_BETAS = (0.95, 0.999)  # published, as is the weight decay
WEIGHT_DECAY = 5e-7
SGD_MOMENTUM = 0.9
# Training waits for data where it does so for this long in an epoch, and for this share of it.
WAITING_SECONDS, WAITING_SHARE = 10, 0.2
NOT_FINITE_ADVICE = 'try a lower --lr, --warmup True, --clip_grad 1 or --amp off'

LOSSES = {'BCE': nn.BCEWithLogitsLoss, 'CE': nn.CrossEntropyLoss}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainSettings:
    """How an experiment trains, under the names of run.py's options.

    metrics: 'acc' or 'mAP', which chooses the best epoch. loss: 'BCE' on multi-hot labels, 'CE' on a distribution.
    lr_patience: above 0, the rate decays when the metric has not risen for so many epochs, instead of in steps.
    grad_accum: pieces in which a batch goes through the model. clip_grad: largest gradient norm, 0 for no limit.
    freq_patchout, time_patchout: rows and columns of the patch grid that a training step leaves out; seed: of the draw.
    compile: compile the model.
    checkpoint_minutes: how often a checkpoint is written inside an epoch.
    max_bad_audio: share of an epoch's samples that may be replaced since their audio cannot be read.
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
    max_bad_audio: float = 0.01

    def averages(self, epoch):
        """Whether weight averaging needs the model of this epoch."""
        return self.wa and self.wa_start <= epoch <= self.wa_end


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

    def __init__(self, device):
        dtype = torch.float32 if device.type == 'mps' else torch.float64  # MPS has no float64
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
        """The mean so far. Raises TrainingError if the loss of a step was NaN or infinite."""
        totals, bad_steps = processes.gather_numbers(float(self.total), int(self.first_bad_step)).T
        if bad_steps.any():
            step = int(bad_steps[bad_steps > 0].min())
            raise TrainingError(f'the loss is no longer a finite number since step {step} of this epoch; '
                                f'{NOT_FINITE_ADVICE}')
        return float(totals.mean()) / self.samples

    def state_dict(self):
        """What a checkpoint keeps of it; float64 holds every float32."""
        total = float(processes.gather_numbers(float(self.total)).mean())
        return {'total': total, 'steps': self.steps, 'samples': self.samples}

    def load_state_dict(self, state):
        """Go back to a state of state_dict, of any number of processes."""
        self.total.fill_(state['total'])
        self.steps, self.samples = state['steps'], state['samples']


class Trainer:
    """A model and all that training it changes: optimizer, gradient scaler, schedule, how far it has come.

    model: an ASTModel on `device`, its autocast_dtype set. epoch: the one under way, from 1; loss.steps: how many of
    its steps are done. seconds: the time that training took before this start.
    """

    STATEFUL = ('model', 'optimizer', 'schedule', 'scaler', 'loss')

    def __init__(self, model, device, settings):
        self.model, self.device, self.settings = model, device, settings
        self.epoch, self.loss = 1, EpochLoss(device)
        self.seconds, self.start = 0.0, time.monotonic()
        if settings.compile:
            # With dynamic shapes, all steps after the first smaller batch would run kernels that are made for any size.
            model.compile(dynamic=False)
        self.parallel = self.trained = parallelise(model, device)  # for evaluation, and for training
        if processes.size() > 1:
            warnings.filterwarnings('ignore', 'Grad strides do not match')  # of [CLS] and [DIST]: 3 kB, copied
            with processes.catch_lost_processes(processes.LOST_SIGNS):
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
        steps, batches = self.loss.steps + len(loader), TimedBatches(loader)
        sizes = loader.batch_sampler.sizes() if processes.size() > 1 else None
        with Progress(title, steps, done=self.loss.steps) as progress:
            for fbanks, labels in batches:
                own, everybodys = next(sizes) if processes.size() > 1 else (len(labels), len(labels))
                fbanks = move(fbanks, self.device)  # here and not in the loader: it is no waiting
                self.loss.add(self.step(fbanks, labels, processes.size() * own / everybodys), everybodys)
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
        self.epoch, self.loss = self.epoch + 1, EpochLoss(self.device)

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
                logits = self.trained(move(fbank, self.device))
                loss = self.loss_function(logits, move(label, self.device))
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
        return contextlib.nullcontext() if gradients or processes.size() == 1 else self.trained.no_sync()

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
    parameters = list(parameters)
    if settings.optim == 'sgd':
        optimizer = torch.optim.SGD(parameters, settings.lr, momentum=SGD_MOMENTUM, weight_decay=WEIGHT_DECAY,
                                    fused=True)
        for parameter in parameters:
            # The fused SGD allocates this in its first step and fills it in the same step, which the gradient scaler
            # of float16 often leaves out: the next step would start from whatever was in that memory.
            optimizer.state[parameter]['momentum_buffer'] = torch.zeros_like(parameter)
        return optimizer
    return torch.optim.Adam(parameters, settings.lr, betas=ADAM_BETAS, weight_decay=WEIGHT_DECAY, fused=True)
