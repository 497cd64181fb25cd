"""The learning rate of every training step."""
import argparse
from typing import Any

import torch

WARMUP_STEPS = 1000  # published


class Decay:
    """A factor of the learning rate that changes over a run, 1 at its start. This one stays 1.

    To add a schedule, write a subclass and name it in make_decay. If it depends on the step, it
    overrides `factor_at`; if it depends on the epoch or the metric, it overrides `end_epoch`. A
    cosine:

        class CosineDecay(Decay):
            def factor_at(self, step):
                return 0.5 + 0.5 * math.cos(math.pi * step / self.total_steps)

    Attributes:
        settings: the options of run.py.
        total_steps: number of steps of the whole run.
        factor: of the current epoch.
    """

    def __init__(self, settings: argparse.Namespace, total_steps: int):
        self.settings = settings
        self.total_steps = total_steps
        self.factor = 1.0

    def factor_at(self, step: int) -> float:
        """Return the factor of a step, which is counted from 0 over the whole run."""
        return self.factor

    def end_epoch(self, epoch: int, metric: float) -> None:
        """Prepare the next epoch.

        Args:
            epoch: the one that ends, from 1.
            metric: its main metric.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {'decay': self.factor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state that state_dict returned."""
        self.factor = state['decay']


class StepDecay(Decay):
    """Decay after epoch --lrscheduler_start, and then every --lrscheduler_step epochs.

    Each decay multiplies the factor by --lrscheduler_decay.
    """

    def end_epoch(self, epoch, metric):
        epochs_since_start = epoch - self.settings.lrscheduler_start
        if epochs_since_start >= 0 and epochs_since_start % self.settings.lrscheduler_step == 0:
            self.factor *= self.settings.lrscheduler_decay


class PlateauDecay(Decay):
    """Decay if the metric has not risen for more than --lr_patience epochs.

    Each decay multiplies the factor by --lrscheduler_decay.
    """

    def __init__(self, settings, total_steps):
        super().__init__(settings, total_steps)
        # PyTorch's plateau can only change the rate of an optimizer. That of this one is our
        # factor.
        self.optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.optimizer, 'max', factor=settings.lrscheduler_decay, patience=settings.lr_patience)

    def end_epoch(self, epoch, metric):
        self.plateau.step(metric)
        self.factor = self.optimizer.param_groups[0]['lr']

    def state_dict(self):
        return {**super().state_dict(), 'plateau': self.plateau.state_dict()}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.optimizer.param_groups[0]['lr'] = self.factor
        if state.get('plateau'):
            # It has --lr_patience and --lrscheduler_decay, too, which --force may have changed.
            own = {'patience': self.plateau.patience, 'factor': self.plateau.factor}
            self.plateau.load_state_dict({**state['plateau'], **own})


def make_decay(settings: argparse.Namespace, total_steps: int) -> Decay:
    """Return the Decay that the options ask for."""
    kind = PlateauDecay if settings.lr_patience else StepDecay
    return kind(settings, total_steps)


class Schedule:
    """Sets the learning rate of each step: --lr, times a Decay, times a warmup.

    With --warmup, the rate rises linearly from 0 over the first 1000 steps.

    A parameter group of the optimizer may have an `lr_scale`, which multiplies its rate. That is
    what layer decay needs.

    Attributes:
        step: how many steps have started.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, settings: argparse.Namespace,
                 total_steps: int):
        self.optimizer = optimizer
        self.settings = settings
        self.decay = make_decay(settings, total_steps)
        self.step = 0
        # Noted now, since the groups in a checkpoint of an earlier version have no lr_scale.
        self.scales = [group.get('lr_scale', 1.0) for group in optimizer.param_groups]

    def rate_at(self, step: int) -> float:
        """Return the rate of a step of the current epoch; steps count from 0 over the whole run."""
        warmup = min(1.0, step / WARMUP_STEPS) if self.settings.warmup else 1.0
        return self.settings.lr * self.decay.factor_at(step) * warmup

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
        """Prepare the next epoch.

        Args:
            epoch: the one that ends, from 1.
            metric: its main metric.
        """
        self.decay.end_epoch(epoch, metric)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {'step': self.step, **self.decay.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state that state_dict returned."""
        self.step = state['step']
        self.decay.load_state_dict(state)
