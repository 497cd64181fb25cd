"""The loss functions, and the mean loss of an epoch."""
import argparse
from typing import Any

import numpy as np
import torch
from torch import nn

from training import processes
from training.errors import TrainingError

# --loss. BCE: each class is a yes or no of its own. CE: the labels of a sample are probabilities
# that add up to 1, such as 0.4 and 0.6 after mixup.
LOSSES = {'BCE': nn.BCEWithLogitsLoss, 'CE': nn.CrossEntropyLoss}


class SmoothedBCE(nn.BCEWithLogitsLoss):
    """Binary cross entropy with smoothed labels: y becomes y * (1 - s) + s / 2.

    Args:
        label_smoothing: s.
        weight: weight of each class in the loss, (classes,), or None.
    """

    def __init__(self, label_smoothing: float, weight: torch.Tensor | None = None):
        super().__init__(weight)
        self.label_smoothing = label_smoothing

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of logits and labels (B, classes)."""
        smoothing = self.label_smoothing
        return super().forward(logits, labels * (1 - smoothing) + smoothing / 2)


def make_training_loss(settings: argparse.Namespace, class_weights: torch.Tensor | None
                       ) -> nn.Module:
    """Return the loss of training: that of --loss, with --label_smoothing and class weights.

    Args:
        class_weights: (classes,), or None.
    """
    smoothing = settings.label_smoothing
    if settings.loss == 'CE':
        return nn.CrossEntropyLoss(class_weights, label_smoothing=smoothing)
    if smoothing:
        return SmoothedBCE(smoothing, class_weights)
    return nn.BCEWithLogitsLoss(class_weights)


def balance_classes(counts: np.ndarray) -> torch.Tensor:
    """Return a weight for each class that makes up for how often it occurs.

    The weight is (number of labels) / (number of classes that occur * number of samples of the
    class). That is scikit-learn's 'balanced' if each sample has one label. A class that does not
    occur has the weight 1.

    Args:
        counts: samples of each class, (classes,).

    Returns:
        (classes,), float32.
    """
    occur = counts > 0
    weights = np.ones(len(counts), np.float32)
    weights[occur] = counts.sum() / (occur.sum() * counts[occur])
    return torch.from_numpy(weights)


NOT_FINITE_ADVICE = 'try a lower --lr, --warmup True, --clip_grad 1 or --amp off'


class EpochLoss:
    """The mean loss over the samples of an epoch, kept on the device so that no step waits for it.

    Attributes:
        steps: how many steps it has, which is the same in all processes.
        samples: how many samples it has, of all processes together.
    """

    def __init__(self, device: torch.device):
        dtype = torch.float32 if device.type == 'mps' else torch.float64  # MPS has no float64
        self.total = torch.zeros((), device=device, dtype=dtype)
        self.first_bad_step = torch.zeros((), device=device, dtype=torch.int64)  # 0: none
        self.steps = 0
        self.samples = 0

    def add(self, loss: torch.Tensor, samples: int) -> None:
        """Add a step.

        Args:
            loss: what Trainer.step returns: the mean loss of this process's samples, times `share`,
                their number relative to an even split (1 if all processes have equally many).
                Averaged over the processes, it is the mean over all samples of the step.
            samples: number of samples in all processes.
        """
        self.steps += 1
        self.samples += samples
        self.total += loss * samples
        is_first_bad = ~torch.isfinite(loss) & (self.first_bad_step == 0)
        self.first_bad_step += is_first_bad * self.steps

    def mean(self) -> float:
        """Return the mean so far. All processes call this.

        Raises:
            TrainingError: if the loss of a step was NaN or infinite.
        """
        own = float(self.total), int(self.first_bad_step)
        totals, bad_steps = processes.gather_numbers(*own).T
        if bad_steps.any():
            step = int(bad_steps[bad_steps > 0].min())
            raise TrainingError(f'the loss was not a finite number at step {step} of this epoch; '
                                f'{NOT_FINITE_ADVICE}')
        return float(totals.mean()) / self.samples

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps. All processes call this."""
        total = float(processes.gather_numbers(float(self.total)).mean())
        return {'total': total, 'steps': self.steps, 'samples': self.samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state that state_dict returned, for any number of processes."""
        # This is exact unless a run moves to MPS, which has only float32.
        self.total.fill_(state['total'])
        self.steps = state['steps']
        self.samples = state['samples']
