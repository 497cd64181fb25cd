"""The learning rate of every training step."""
import argparse
from typing import Any

import torch

WARMUP_STEPS = 1000  # published


class Schedule:
    """Sets the learning rate of each step: --lr, times a decay, times a warmup.

    The decay begins with 1. At the end of epoch --lrscheduler_start, and then every
    --lrscheduler_step epochs, it is multiplied by --lrscheduler_decay. With --lr_patience, this
    happens instead when the main metric has not risen for more epochs than that. With --warmup, the
    rate rises linearly from 0 over the first 1000 steps.

    A parameter group of the optimizer may have an `lr_scale`, which multiplies its rate. That is
    what layer decay needs.

    To add a schedule, change `rate_at` if it depends on the step, as cosine does, and `end_epoch`
    if it depends on the epoch or the metric.

    Attributes:
        decay: of the epoch under way.
        step: how many steps have started.
        total_steps: how many there will be, in all epochs.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, settings: argparse.Namespace,
                 total_steps: int):
        self.optimizer = optimizer
        self.settings = settings
        self.total_steps = total_steps
        self.decay = 1.0
        self.step = 0
        # Noted now, since the groups in a checkpoint of an earlier version have no lr_scale.
        self.scales = [group.get('lr_scale', 1.0) for group in optimizer.param_groups]
        self.plateau = None
        if settings.lr_patience:
            self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
                optimizer, 'max', factor=settings.lrscheduler_decay, patience=settings.lr_patience)

    def rate_at(self, step: int) -> float:
        """Return the rate of a step of the epoch under way. The first step of the run is 0."""
        warmup = min(1.0, step / WARMUP_STEPS) if self.settings.warmup else 1.0
        return self.settings.lr * self.decay * warmup

    @property
    def current(self) -> float:
        """The rate of the last step."""
        return self.rate_at(max(self.step - 1, 0))

    def start_step(self) -> None:
        """Set the rate of the next step, in every parameter group."""
        rate = self.rate_at(self.step)
        for group, scale in zip(self.optimizer.param_groups, self.scales):
            group['lr'] = rate * scale
        self.step += 1

    def end_epoch(self, epoch: int, metric: float) -> None:
        """Set the decay of the next epoch.

        Args:
            epoch: the one that ends, from 1.
            metric: its main metric.
        """
        if self.plateau:
            self._decay_on_plateau(self.plateau, metric)
            return
        epochs_since_start = epoch - self.settings.lrscheduler_start
        if epochs_since_start >= 0 and epochs_since_start % self.settings.lrscheduler_step == 0:
            self.decay *= self.settings.lrscheduler_decay

    def _decay_on_plateau(self, plateau, metric):
        # PyTorch's plateau changes the rates that it finds in the optimizer: here, the decay.
        groups = self.optimizer.param_groups
        for group in groups:
            group['lr'] = self.decay
        plateau.step(metric)
        self.decay = groups[0]['lr']

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        plateau = self.plateau.state_dict() if self.plateau else None
        return {'decay': self.decay, 'step': self.step, 'plateau': plateau}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state that state_dict returned."""
        self.decay = state['decay']
        self.step = state['step']
        if self.plateau and state['plateau']:
            self.plateau.load_state_dict(state['plateau'])
