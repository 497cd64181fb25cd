"""The learning rate of every training step."""
import argparse
import logging
import math
from typing import Any

import torch

WARMUP_STEPS = 1000  # published
PATIENCE = 2  # of --schedule plateau with --lr_patience 0

logger = logging.getLogger(__name__)


class Decay:
    """A factor of the learning rate that changes over a run, 1 at its start. This one stays 1.

    To add a schedule, write a subclass, name it in DECAYS, and add the name to SCHEDULES in
    options.py. If it depends on the step, it overrides `factor_at`; if it depends on the epoch or
    the metric, it overrides `end_epoch`. If it goes down to --min_lr at the end of the run, it is a
    subclass of DecayToEnd.

    Attributes:
        settings: the options of run.py.
        first_step: the first step after the warmup, for a decay that begins there (DecayToEnd).
        total_steps: number of steps of the whole run.
        factor: factor of the current epoch. DecayToEnd does not use it.
    """

    def __init__(self, settings: argparse.Namespace, first_step: int, total_steps: int):
        self.settings = settings
        self.first_step = first_step
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

    def finish_at(self, total_steps: int, step: int) -> None:
        """Set the number of steps of a run that continues, which may have changed.

        Args:
            total_steps: number of steps of the whole run.
            step: the one that it continues with, from 0.
        """
        self.total_steps = total_steps


class StepDecay(Decay):
    """Decay after epoch --lrscheduler_start, and then every --lrscheduler_step epochs.

    Each decay multiplies the factor by --lrscheduler_decay.
    """

    def end_epoch(self, epoch, metric):
        epochs_since_start = epoch - self.settings.lrscheduler_start
        if epochs_since_start >= 0 and epochs_since_start % self.settings.lrscheduler_step == 0:
            self.factor *= self.settings.lrscheduler_decay


class PlateauDecay(Decay):
    """Decay if the metric has not risen for more than --lr_patience epochs (0: PATIENCE).

    A rise of less than 0.01 % does not count, as in PyTorch. Each decay multiplies the
    factor by --lrscheduler_decay.
    """

    def __init__(self, settings, first_step, total_steps):
        super().__init__(settings, first_step, total_steps)
        # ReduceLROnPlateau needs an optimizer to change. This dummy's learning rate is our factor.
        self.optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.optimizer, 'max', factor=settings.lrscheduler_decay,
            patience=settings.lr_patience or PATIENCE)

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


class DecayToEnd(Decay):
    """A decay from --lr, at the end of the warmup, to --min_lr, at the end of the run.

    If a run continues with more epochs, the decay is stretched from where it stands: it goes on
    without a jump, and ends with the longer run. One that has come to its end stays at
    --min_lr; if that is 0, the run cannot continue.

    To add one, write a subclass with a `shape`, and add its name to ENDS_AT_MIN_LR in options.py,
    too.
    """

    def __init__(self, settings, first_step, total_steps):
        super().__init__(settings, first_step, total_steps)
        # The step and the progress at which the decay began, or was last stretched.
        self.begin, self.progress_before = first_step, 0.0

    def shape(self, progress: float) -> float:
        """Return how much of the way down from --lr to --min_lr is left, from 1 to 0.

        Args:
            progress: how much of the decay is over, from 0 to 1.
        """
        raise NotImplementedError

    def factor_at(self, step):
        lowest = self.settings.min_lr / self.settings.lr
        return lowest + (1 - lowest) * self.shape(self.progress_at(step))

    def progress_at(self, step: int) -> float:
        """Return how much of the decay is over at a step: 0 at its first, 1 after its last."""
        done = max(step - self.begin, 0) / max(self.total_steps - self.begin, 1)
        return self.progress_before + (1 - self.progress_before) * min(done, 1.0)

    def state_dict(self):
        to_end = {'begin': self.begin, 'progress_before': self.progress_before,
                  'total_steps': self.total_steps}
        return {**super().state_dict(), 'to_end': to_end}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        to_end = state['to_end'] if 'to_end' in state else state['cosine']  # of earlier versions
        self.begin, self.progress_before = to_end['begin'], to_end['progress_before']
        self.total_steps = to_end['total_steps']

    def finish_at(self, total_steps, step):
        if total_steps == self.total_steps:
            return
        self.progress_before = self.progress_at(step)
        has_ended = self.progress_before == 1
        if has_ended and not self.settings.min_lr:
            raise ValueError('the learning rate has come to its end, 0: further epochs would '
                             'change nothing. Give them a rate with --min_lr and --force')
        before, self.total_steps = self.total_steps, total_steps
        self.begin = max(step, self.begin)
        if has_ended:
            logger.info('the learning rate has come to its end: further epochs run at --min_lr %g',
                        self.settings.min_lr)
            return
        logger.info('the decay of the learning rate is stretched from step %d on: it stands at '
                    '%.3g and now ends after %d steps instead of %d', step,
                    self.settings.lr * self.factor_at(step), total_steps, before)


class CosineDecay(DecayToEnd):
    """Decay along half a cosine: SGDR without restarts (arXiv:1608.03983)."""

    def shape(self, progress):
        return (1 + math.cos(math.pi * progress)) / 2


DECAYS = {'step': StepDecay, 'cosine': CosineDecay, 'plateau': PlateauDecay}  # --schedule


def make_decay(settings: argparse.Namespace, first_step: int, total_steps: int) -> Decay:
    """Return the Decay that the options ask for. --lr_patience means a plateau."""
    kind = settings.schedule or ('plateau' if settings.lr_patience else 'step')
    return DECAYS[kind](settings, first_step, total_steps)


class Schedule:
    """Sets the learning rate of each step: --lr, times a Decay, times a warmup.

    With --warmup, the rate rises linearly from 0 over the first 1000 steps, with --warmup_epochs
    over this many epochs.

    A parameter group of the optimizer may have an `lr_scale`, which multiplies its rate. That is
    what layer decay needs.

    Attributes:
        step: how many steps have started.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, settings: argparse.Namespace,
                 total_steps: int):
        self.optimizer = optimizer
        self.settings = settings
        self.warmup_steps = WARMUP_STEPS if settings.warmup else 0
        if settings.warmup_epochs:
            self.warmup_steps = round(settings.warmup_epochs * total_steps / settings.n_epochs)
        if self.warmup_steps >= total_steps:
            logger.info('the warm-up takes %d steps and the whole run %d: the rate never reaches '
                        '--lr; for a shorter warm-up, set --warmup False and --warmup_epochs below '
                        '--n_epochs', self.warmup_steps, total_steps)
        self.decay = make_decay(settings, self.warmup_steps, total_steps)
        self.step = 0
        # Noted now, since the groups in a checkpoint of an earlier version have no lr_scale.
        self.scales = [group.get('lr_scale', 1.0) for group in optimizer.param_groups]

    def rate_at(self, step: int) -> float:
        """Return the rate of a step of the current epoch; steps count from 0 over the whole run."""
        warmup = min(1.0, step / self.warmup_steps) if self.warmup_steps else 1.0
        return self.settings.lr * self.decay.factor_at(step) * warmup

    @property
    def last_rate(self) -> float:
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

    def finish_at(self, total_steps: int) -> None:
        """Set the number of steps of a run that continues, which may have changed.

        Raises:
            ValueError: if the rate of the further steps would be 0.
        """
        self.decay.finish_at(total_steps, self.step)
