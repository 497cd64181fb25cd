"""What an evaluation found: predictions, labels and loss of a dataset."""
from dataclasses import dataclass

import numpy as np
import torch

from training import processes
from utilities.stats import Metrics, calculate_stats, summarise


@dataclass(frozen=True)
class Evaluation:
    """Predictions and labels, both (samples, classes) float32, and the mean loss of the logits."""
    predictions: np.ndarray
    targets: np.ndarray
    loss: float

    def summary(self) -> Metrics:
        """Compute the metrics of all classes together."""
        return summarise(calculate_stats(self.predictions, self.targets))

    def gather(self) -> 'Evaluation':
        """Join the parts that the processes have evaluated.

        The main process gets the whole evaluation, the others get their own part back. All
        processes call this.
        """
        if processes.size() == 1:
            return self
        predictions = processes.gather_rows(torch.from_numpy(self.predictions))
        targets = processes.gather_rows(torch.from_numpy(self.targets))
        sums = processes.gather_numbers(self.loss * len(self.targets), len(self.targets)).sum(dim=0)
        if predictions is None or targets is None:
            return self
        total, samples = sums.tolist()
        return Evaluation(predictions.numpy(), targets.numpy(), total / samples)


def join_batches(batches: list[torch.Tensor]) -> np.ndarray:
    """Join batches (B, classes) to an array (samples, classes).

    One of several processes may have none.
    """
    return torch.cat(batches).cpu().numpy() if batches else np.zeros((0, 0), np.float32)
