"""A model in training: one step, one epoch, and the state that a checkpoint keeps."""
import argparse
import contextlib
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import nn

from models import ASTModel
from training import processes
from training.devices import move, parallelise
from training.embeddings import EmbeddingClassifier
from training.gpu_fbanks import inputs_on
from training.losses import EpochLoss, make_training_loss
from training.optimizer import make_optimizer
from training.schedule import Schedule
from utilities.progress import Progress, TimedBatches

# Warn if an epoch waited for data for at least this time, and for this share of its own time.
WAITING_SECONDS = 10
WAITING_SHARE = 0.2

logger = logging.getLogger(__name__)


class Trainer:
    """A model and the state of its training: optimizer, schedule, gradient scaler, progress.

    Args:
        model: an ASTModel on `device`. Its autocast_dtype is the precision.
        settings: the options of run.py.
        steps_per_epoch: number of steps of an epoch.
        class_weights: weights of the classes in the loss, (classes,), or None.
        samples_per_epoch: number of samples of an epoch; None if all batches are full.

    Attributes:
        model: the model itself.
        model_to_save: the model that is evaluated and saved: `model`, or with --ema a copy of it
            that holds the moving average of its weights.
        training_model: the model to call in training. With several processes, its backward()
            averages the gradients. With several GPUs in one process, it splits batches over them.
        evaluation_model: the model to call in evaluation. It splits batches in the same way.
        epoch: number of the current epoch, from 1.
        loss: running mean loss of the current epoch. loss.steps counts the steps that are done.
        speed: samples a second in the last call of train_epoch, or None if it had no batches.
    """

    def __init__(self, model: ASTModel, device: torch.device, settings: argparse.Namespace,
                 steps_per_epoch: int, class_weights: torch.Tensor | None = None,
                 samples_per_epoch: int | None = None):
        self.model = model
        self.device = device
        self.settings = settings
        self.epoch = 1
        self.loss = EpochLoss(device)
        self.speed: float | None = None
        self.start = time.monotonic()
        self.seconds_before = 0.0  # what earlier starts took

        self.ema = None
        if settings.ema:  # before the model is compiled, since this copies it
            self.ema = ModelEmaV3(model, settings.ema, use_warmup=True)
            self.ema.requires_grad_(False)
        self.model_to_save = self.ema.module if self.ema else model
        if settings.compile:
            # With dynamic shapes, all steps after the first smaller batch would run kernels that
            # are made for any size.
            model.compile(dynamic=False)
        # With --cache_embeddings the inputs are embeddings, so only the head is called.
        part_to_call = EmbeddingClassifier if settings.cache_embeddings else lambda whole: whole
        self.evaluation_model = parallelise(part_to_call(self.model_to_save), device)
        self.training_model = self.evaluation_model
        if self.ema:
            self.training_model = parallelise(part_to_call(model), device)
        if processes.size() > 1:
            self.training_model = average_gradients(part_to_call(model))

        self.loss_function = make_training_loss(settings, class_weights).to(device)
        self.optimizer = make_optimizer(model, settings)
        self.steps_per_epoch = steps_per_epoch
        self.samples_per_epoch = samples_per_epoch or steps_per_epoch * settings.batch_size
        self.schedule = Schedule(self.optimizer, settings, settings.n_epochs * steps_per_epoch)
        self.scaler = torch.amp.GradScaler(  # type: ignore[attr-defined]
            device.type, enabled=model.autocast_dtype == torch.float16)

    def train_epoch(self, loader, title: str,
                    after_step: Callable[[], None] = lambda: None) -> float:
        """Train on the batches that this epoch has not seen yet.

        Args:
            loader: its batches are (inputs, labels (B, classes)). With --mask_padding, a third item
                has the real frames (B,). The inputs are fbanks (B, frames, bins) or a
                WaveformBatch; with --cache_embeddings, they are embeddings (B, dim).
            title: what the log calls the epoch.
            after_step: called after every step. What it raises ends the epoch.

        Returns:
            The mean loss over all samples of the epoch.
        """
        self.training_model.train()
        batches = TimedBatches(with_shares(loader))
        steps = self.loss.steps + len(loader)
        with Progress(title, steps, done=self.loss.steps) as progress:
            for (inputs, labels, *lengths), share, samples in batches:
                # Not in the loader, so that computing fbanks does not count as waiting for data.
                fbanks = inputs_on(inputs, self.device)
                loss = self.step(fbanks, labels, share, *lengths)
                self.loss.add(loss, samples)
                progress.advance(samples)
                if self.loss.steps % self.settings.n_print_steps == 0 or self.loss.steps == steps:
                    progress.report(loss=f'{self.loss.mean():.4f}',
                                    lr=f'{self.schedule.last_rate:.3g}')
                after_step()
            self.speed = progress.speed if progress.samples else None
        warn_of_waiting(batches, loader, title)
        return self.loss.mean()

    def step(self, fbanks: torch.Tensor, labels: torch.Tensor, share: float = 1.0,
             lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Change the weights by one batch.

        Args:
            fbanks: (B, frames, bins); with --cache_embeddings, embeddings (B, dim).
            labels: (B, classes).
            share: this process's part of a batch, relative to an even split. It scales the loss, so
                that every sample of the batch counts the same.
            lengths: with --mask_padding, the real frames (B,).

        Returns:
            The mean loss, times `share`: a number without gradient.
        """
        self.schedule.start_step()
        if self.settings.drop_path:  # a run that continues drops what an undisturbed one drops
            torch.manual_seed(draw_seed(self.settings.seed, self.schedule.step))
        self._choose_patches()
        loss = self._compute_gradients(fbanks, labels, share, lengths)
        self._change_weights()
        return loss

    def _choose_patches(self):
        """Draw the patches that the model sees in this step, if some are left out."""
        dropped = self.settings.freq_patchout, self.settings.time_patchout
        if any(dropped):
            seed, step = self.settings.seed, self.schedule.step
            self.model.keep_patches(*draw_patchout(self.model.grid, dropped, seed, step))

    def _compute_gradients(self, fbanks, labels, share, lengths):
        """Add up the gradients of a batch, which goes through the model in --grad_accum pieces."""
        total = torch.zeros((), device=self.device)
        count = min(self.settings.grad_accum, len(fbanks))
        parts = [fbanks, labels] if lengths is None else [fbanks, labels, lengths]
        pieces = list(zip(*(part.chunk(count) for part in parts)))
        for number, piece in enumerate(pieces, start=1):
            fbank, label, *length = (move(part, self.device) for part in piece)
            with self._synchronise(number == len(pieces)):
                loss = self.loss_function(self.training_model(fbank, *length), label)
                loss = loss * (share * len(fbank) / len(fbanks))
                self.scaler.scale(loss).backward()
            total += loss.detach()
        return total

    def _synchronise(self, is_last_piece):
        """Return the context for backward(): only the last piece averages over the processes."""
        if is_last_piece or processes.size() == 1:
            return contextlib.nullcontext()
        return self.training_model.no_sync()

    def _change_weights(self):
        """Take a step of the optimizer. In float16, leave it out if a gradient overflowed."""
        if self.settings.clip_grad:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.ema:
            self.ema.update(self.model, self.schedule.step)

    def end_epoch(self, metric: float) -> None:
        """Go on to the next epoch. metric: the main metric of the epoch that ends."""
        self.schedule.end_epoch(self.epoch, metric)
        self.epoch += 1
        self.loss = EpochLoss(self.device)

    @property
    def is_between_epochs(self) -> bool:
        """Whether the current epoch has not begun: the weights are those of the one before."""
        return self.loss.steps == 0

    @property
    def seconds(self) -> float:
        """Seconds of training so far, earlier starts included."""
        return self.seconds_before + time.monotonic() - self.start

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps. All processes call this."""
        states = {name: part.state_dict() for name, part in self._stateful().items()}
        return {'epoch': self.epoch, 'seconds': self.seconds, **states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state that state_dict returned.

        Raises:
            ValueError: if kept embeddings are those of other weights, or a schedule that has
                come to its end has no rate for further epochs.
        """
        if self.settings.cache_embeddings:  # computed with the weights that this start has loaded
            for name, value in self.model.v.state_dict(prefix='v.').items():
                if not torch.allclose(value.cpu(), state['model'][name].cpu(), 1e-4, 1e-6):
                    raise ValueError('the weights that the run started from have changed, and with '
                                     'them the kept embeddings')
        self.epoch = state['epoch']
        self.seconds_before = state['seconds']
        for name, part in self._stateful().items():
            if state[name]:  # a gradient scaler that was not in use has no state
                part.load_state_dict(state[name])
        # --n_epochs may have risen, and --force may have changed --batch_size.
        self.schedule.finish_at(self.schedule.step + self._count_steps_left())

    def _count_steps_left(self):
        """Return how many steps are left, with the --batch_size and --n_epochs of this start."""
        samples_left = max(self.samples_per_epoch - self.loss.samples, 0)
        epochs_left = self.settings.n_epochs - self.epoch
        return (math.ceil(samples_left / self.settings.batch_size)
                + epochs_left * self.steps_per_epoch)

    def _stateful(self) -> dict[str, Any]:
        """Return the parts with a state, by name."""
        parts: dict[str, Any] = {
            'model': self.model, 'optimizer': self.optimizer, 'schedule': self.schedule,
            'scaler': self.scaler, 'loss': self.loss}
        return {**parts, 'ema': self.ema} if self.ema else parts


def average_gradients(model: nn.Module) -> nn.parallel.DistributedDataParallel:
    """Wrap a model so that its backward() averages the gradients over all processes."""
    # A long and harmless warning about the strides of the gradients of [CLS] and [DIST].
    warnings.filterwarnings('ignore', 'Grad strides do not match')
    with processes.catch_lost_processes(processes.LOST_SIGNS):
        return nn.parallel.DistributedDataParallel(model, broadcast_buffers=False,
                                                   gradient_as_bucket_view=True)


def with_shares(loader) -> Iterator[tuple]:
    """Yield each batch of a loader with the share of it that falls to this process.

    Yields:
        batch, share, samples. share: the samples of this process relative to an even
        split, 1 for a single process. samples: how many the batch has in all processes.
    """
    count = processes.size()
    parts = loader.batch_sampler.sizes() if count > 1 else None
    for batch in loader:
        own, samples = next(parts) if parts else (len(batch[1]), len(batch[1]))
        even = samples / count
        yield batch, own / even, samples


def draw_seed(seed: int, step: int) -> int:
    """Draw a seed for the random numbers of a step in this process.

    It depends only on the seed of the run, the step and the number of the process.
    """
    # The 2 keeps these numbers apart from those of draw_patchout and of EpochSampler.
    return int(np.random.default_rng((seed, step, 2, processes.rank())).integers(2 ** 63))


def draw_patchout(grid: tuple[int, int], dropped: tuple[int, int], seed: int,
                  step: int) -> list[np.ndarray]:
    """Draw the rows and the columns of the patch grid that a step keeps, from (seed, step) alone.

    Args:
        grid: rows and columns of the grid.
        dropped: how many rows and columns are left out.
    """
    # The 1 keeps these numbers apart from those of EpochSampler, which draws from (seed, epoch).
    rng = np.random.default_rng((seed, step, 1))
    return [np.sort(rng.choice(size, size - out, replace=False))
            for size, out in zip(grid, dropped)]


def warn_of_waiting(batches: TimedBatches, loader, title: str) -> None:
    """Log a warning if training waited for data during much of an epoch."""
    if batches.seconds >= WAITING_SECONDS and batches.share >= WAITING_SHARE:
        logger.warning(
            '%s: training waited for data for %.0f %% of the time, with %d data workers; these '
            'help: more cores and a higher --num_workers; a local disk; WAV or FLAC files that '
            'have the rate of --sample_rate already', title, 100 * batches.share,
            loader.num_workers)
