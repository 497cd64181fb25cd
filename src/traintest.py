"""Train, validate, average checkpoints: the loop of one experiment."""
import logging
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hardware import parallelise
from models import load_checkpoint, read_state_dict, save_checkpoint
from utilities.progress import Progress
from utilities.results import Results, write_rows
from utilities.stats import calculate_stats, summarise

WARMUP_STEPS = 1000  # published schedule
ADAM_BETAS = (0.95, 0.999)  # published, as is the weight decay
WEIGHT_DECAY = 5e-7
SGD_MOMENTUM = 0.9

logger = logging.getLogger(__name__)


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says at which step and what to try."""


@dataclass(frozen=True)
class TrainSettings:
    """How an experiment trains, under the names of run.py's options.

    metrics: 'acc' or 'mAP', which chooses the best epoch. loss: 'BCE' on multi-hot labels, 'CE' on a distribution.
    lr_patience: above 0, the rate decays when the metric has not risen for so many epochs, instead of in steps.
    grad_accum: pieces in which a batch goes through the model. clip_grad: largest gradient norm, 0 for no limit.
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
        self.epoch_lr = settings.lr
        self.step = 0
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, 'max', factor=settings.lrscheduler_decay, patience=settings.lr_patience,
        ) if settings.lr_patience else None

    def start_step(self):
        """Set the rate of the step that is about to be taken."""
        warmup = min(1.0, self.step / WARMUP_STEPS) if self.settings.warmup else 1.0
        self._set(self.epoch_lr * warmup)
        self.step += 1

    def end_epoch(self, epoch, metric):
        """Set the rate of the next epoch: after epoch `start` and every `step` epochs times decay, or on a plateau."""
        s = self.settings
        if self.plateau:
            self._set(self.epoch_lr)
            self.plateau.step(metric)
            self.epoch_lr = self.current
        elif epoch >= s.lrscheduler_start and (epoch - s.lrscheduler_start) % s.lrscheduler_step == 0:
            self.epoch_lr *= s.lrscheduler_decay

    @property
    def current(self):
        """The rate of the last step."""
        return self.optimizer.param_groups[0]['lr']

    def _set(self, rate):
        for group in self.optimizer.param_groups:
            group['lr'] = rate


class EpochLoss:
    """Mean loss over the samples of an epoch, kept on the device so that no step waits for it."""

    def __init__(self, device):
        dtype = torch.float32 if device.type == 'mps' else torch.float64  # MPS has no float64
        self.total = torch.zeros((), device=device, dtype=dtype)
        self.first_bad_step = torch.zeros((), device=device, dtype=torch.int64)
        self.steps = self.samples = 0

    def add(self, loss, samples):
        """loss: mean over the samples of a step, a tensor without gradient."""
        self.steps += 1
        self.samples += samples
        self.total += loss * samples
        bad = ~torch.isfinite(loss) & (self.first_bad_step == 0)
        self.first_bad_step += bad * self.steps

    def mean(self):
        """The mean so far. Raises TrainingError where the loss of a step was NaN or infinite."""
        if step := int(self.first_bad_step):
            raise TrainingError(f'the loss is no longer a finite number since step {step} of this epoch; '
                                f'try a lower --lr, --warmup True, --clip_grad 1 or --amp off')
        return float(self.total) / self.samples


class Trainer:
    """A model and all that training it changes: optimizer, gradient scaler, schedule.

    model: an ASTModel on `device`, its autocast_dtype set.
    """

    def __init__(self, model, device, settings):
        self.device, self.settings = device, settings
        self.parallel = parallelise(model, device)
        self.loss_function = LOSSES[settings.loss]()
        self.optimizer = make_optimizer(model.parameters(), settings)
        self.schedule = Schedule(self.optimizer, settings)
        self.scaler = torch.amp.GradScaler(device.type, enabled=model.autocast_dtype == torch.float16)

    def run_epoch(self, loader, title):
        """Train on every batch of loader, (fbank, labels). Returns the mean loss over the samples."""
        self.parallel.train()
        epoch_loss = EpochLoss(self.device)
        with Progress(title, len(loader)) as progress:
            for step, (fbanks, labels) in enumerate(loader, start=1):
                epoch_loss.add(self.step(fbanks, labels), len(fbanks))
                progress.advance(len(fbanks))
                if step % self.settings.n_print_steps == 0 or step == len(loader):
                    progress.report(loss=f'{epoch_loss.mean():.4f}', lr=f'{self.schedule.current:.3g}')
        return epoch_loss.mean()

    def step(self, fbanks, labels):
        """One update from a batch: fbanks (B, frames, bins), labels (B, classes). Returns its mean loss, a tensor."""
        self.schedule.start_step()
        total = torch.zeros((), device=self.device)
        pieces = min(self.settings.grad_accum, len(fbanks))
        for fbank, label in zip(fbanks.chunk(pieces), labels.chunk(pieces)):
            logits = self.parallel(fbank.to(self.device, non_blocking=True))
            loss = self.loss_function(logits, label.to(self.device, non_blocking=True))
            loss = loss * (len(fbank) / len(fbanks))
            self.scaler.scale(loss).backward()
            total += loss.detach()
        if self.settings.clip_grad:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.parallel.parameters(), self.settings.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return total


def make_optimizer(parameters, settings):
    """The optimizer that settings.optim names, with the published constants."""
    if settings.optim == 'sgd':
        return torch.optim.SGD(parameters, settings.lr, momentum=SGD_MOMENTUM, weight_decay=WEIGHT_DECAY)
    return torch.optim.Adam(parameters, settings.lr, betas=ADAM_BETAS, weight_decay=WEIGHT_DECAY)


@torch.inference_mode()
def validate(model, loader, device, loss, title='validation'):
    """Evaluate a model on every sample of loader. loss: 'BCE' or 'CE'. Returns an Evaluation."""
    model.eval()
    loss_function = LOSSES[loss]()
    total, predictions, targets = 0.0, [], []
    with Progress(title, len(loader)) as progress:
        for fbanks, labels in loader:
            logits = model(fbanks.to(device, non_blocking=True))
            total = total + loss_function(logits, labels.to(device, non_blocking=True)) * len(fbanks)
            predictions.append(logits.sigmoid())
            targets.append(labels)
            progress.advance(len(fbanks))
    targets = torch.cat(targets).numpy()
    return Evaluation(torch.cat(predictions).cpu().numpy(), targets, float(total) / len(targets))


def train(model, device, train_loader, val_loader, settings, exp_dir, description):
    """Train for settings.n_epochs, and leave results and models in exp_dir.

    train_loader has an EpochSampler. description: what save_checkpoint writes beside the weights; its `dataset` is the
    title of the plots.
    Returns the Results. Raises TrainingError where the loss is no longer finite.
    """
    models = Path(exp_dir) / 'models'
    models.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(model, device, settings)
    results = Results(exp_dir, settings.metrics, description['dataset'])
    for epoch in range(1, settings.n_epochs + 1):
        start = time.monotonic()
        train_loader.sampler.set_epoch(epoch)
        title = f'epoch {epoch} of {settings.n_epochs}'
        train_loss = trainer.run_epoch(train_loader, title)
        evaluation = validate(trainer.parallel, val_loader, device, settings.loss, f'{title}, validation')
        single, ensemble = results.add(train_loss, evaluation, trainer.schedule.current)
        if results.best_epoch == epoch:
            save_checkpoint(model, models / 'best_audio_model.pth', **description)
        if settings.save_model or settings.averages(epoch):
            save_checkpoint(model, models / f'audio_model.{epoch}.pth', **description)
        log_epoch(title, results, single, ensemble, time.monotonic() - start)
        trainer.schedule.end_epoch(epoch, results.rows[-1][0])
    return results


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


def average_weights(model, device, val_loader, settings, exp_dir, description):
    """Average the models of epochs wa_start to wa_end, evaluate the mean, write wa_result.csv and audio_model_wa.pth.

    Leaves the averaged weights in model. The epochs' own models are removed unless settings.save_model keeps them.
    """
    models = Path(exp_dir) / 'models'
    paths = [models / f'audio_model.{epoch}.pth' for epoch in range(settings.wa_start, settings.wa_end + 1)]
    model.load_state_dict(mean_state_dict(paths))
    evaluation = validate(parallelise(model, device), val_loader, device, settings.loss, 'averaged model')
    result = summarise(calculate_stats(evaluation.predictions, evaluation.targets))
    save_checkpoint(model, models / 'audio_model_wa.pth', **description)
    write_rows(Path(exp_dir) / 'wa_result.csv',
               [result.mAP, result.mAUC, result.precision, result.recall, result.d_prime])
    logger.info('average of epochs %d to %d: mAP %.4f, acc %.4f, mAUC %.4f', settings.wa_start, settings.wa_end,
                result.mAP, result.acc, result.mAUC)
    if not settings.save_model:
        for path in paths:
            path.unlink()
            path.with_suffix('.json').unlink()


def mean_state_dict(paths):
    """The mean of checkpoints, name by name, summed in float64. Returns a state dict without prefix."""
    total = {}
    for path in paths:
        for name, value in read_state_dict(path).items():
            total[name] = total.get(name, 0) + value.double()
    return {name: (value / len(paths)).float() for name, value in total.items()}


def evaluate_best(model, device, loaders, settings, exp_dir):
    """Evaluate the best epoch's model on the validation and the evaluation set and write eval_result.csv.

    loaders: the two sets' loaders. The file holds the main metric and mAUC of the one, then of the other.
    """
    load_checkpoint(model, Path(exp_dir) / 'models' / 'best_audio_model.pth')
    row = []
    for name, loader in zip(('validation', 'evaluation'), loaders):
        evaluation = validate(parallelise(model, device), loader, device, settings.loss, f'best model, {name} set')
        result = summarise(calculate_stats(evaluation.predictions, evaluation.targets))
        row += [getattr(result, settings.metrics), result.mAUC]
        logger.info('best model on the %s set: %s %.4f, mAUC %.4f', name, settings.metrics, *row[-2:])
    write_rows(Path(exp_dir) / 'eval_result.csv', row)
