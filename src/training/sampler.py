"""The order of the samples in an epoch, and the part of each batch that a process computes."""
from collections.abc import Iterator

import numpy as np
from torch.utils.data import BatchSampler, Sampler

from dataloader import SampleKey
from training import processes


class EpochSampler(Sampler[SampleKey]):
    """The order of one epoch, which depends on the seed and the epoch alone.

    Without weights, it is a permutation of the samples. With weights, as many samples are drawn
    with replacement. Call set_epoch before each iteration.

    Args:
        samples: size of the dataset.
        seed: --seed.
        weights: (samples,), how often each sample is drawn relative to the others; or None.
    """

    def __init__(self, samples: int, seed: int, weights: np.ndarray | None = None):
        self.samples, self.seed, self.weights = samples, seed, weights
        self.epoch = self.start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch of the next iteration, and the position in its order to begin at."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return self.samples - self.start

    def __iter__(self) -> Iterator[SampleKey]:
        rng = np.random.default_rng((self.seed, self.epoch))
        if self.weights is None:
            order = rng.permutation(self.samples)
        else:
            probabilities = self.weights / self.weights.sum()
            order = rng.choice(self.samples, size=self.samples, p=probabilities)
        for position in range(self.start, self.samples):
            yield SampleKey(int(order[position]), self.seed, self.epoch, position)


class DistributedBatchSampler(BatchSampler):
    """The part of each batch that this process computes.

    If the last batch has fewer samples than there are processes, some processes get none. They get
    the first sample as a dummy, so that all processes take the same number of steps. `sizes` tells
    how many samples count.
    """

    sampler: EpochSampler  # type: ignore[assignment]

    def __init__(self, sampler: EpochSampler, batch_size: int):
        super().__init__(sampler, batch_size, drop_last=False)  # type: ignore[arg-type]

    def __iter__(self):
        for batch in super().__iter__():
            part = processes.own_part(len(batch))
            yield batch[part.start:part.stop] or batch[:1]

    def sizes(self) -> Iterator[tuple[int, int]]:
        """Yield for each batch to come the size of this process's part, and of the whole batch."""
        for left in range(len(self.sampler), 0, -self.batch_size):
            size = min(left, self.batch_size)
            yield len(processes.own_part(size)), size
