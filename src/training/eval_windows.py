"""Evaluate clips by several windows of each (--eval_windows)."""
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset

from dataloader import AudiosetDataset
from training.devices import move


class WindowedBatch(NamedTuple):
    """A batch of clips, some of which have several windows.

    Attributes:
        first: a batch of the dataset, the first window of every clip.
        further: (batch, rows) for the second windows, the third ones, and so on. The rows say which
            clips of the first batch have one.
    """
    first: Any
    further: list[tuple[Any, torch.Tensor]]


class SpreadWindows(Dataset):
    """A validation or test set that gives several samples of a clip, one for each window.

    The windows are spread evenly over the clip.

    Args:
        dataset: the clips.
        count: windows of a clip. A clip that is not longer than the input has one window.
    """

    def __init__(self, dataset: AudiosetDataset, count: int):
        self.dataset, self.count = dataset, count
        self.labels, self.all_targets = dataset.labels, dataset.all_targets

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> list[tuple]:
        return self.dataset.make_windows(index, self.count)

    def collate(self, clips: list[list[tuple]]) -> WindowedBatch:
        """Make a batch of the samples of clips."""
        batches = []
        for number in range(max(map(len, clips))):
            rows = [row for row, clip in enumerate(clips) if len(clip) > number]
            batch = self.dataset.collate([clips[row][number] for row in rows])
            batches.append((batch, torch.tensor(rows)))
        return WindowedBatch(batches[0][0], batches[1:])


def mean_of_windows(first: torch.Tensor, further: Iterable[tuple[torch.Tensor, torch.Tensor]]
                    ) -> torch.Tensor:
    """Return the mean scores (B, classes) of clips over their windows.

    Args:
        first: scores (B, classes) of the first windows.
        further: for the second windows, the third ones, and so on: their scores (rows, classes),
            and the rows of `first` that they belong to (rows,).
    """
    total, counts = first.clone(), torch.ones(len(first), 1, device=first.device)
    for scores, rows in further:
        rows = move(rows, first.device)
        total[rows] += scores
        counts[rows] += 1
    return total / counts


def split_windows(batch: Any) -> WindowedBatch:
    """Return any batch as a WindowedBatch."""
    return batch if isinstance(batch, WindowedBatch) else WindowedBatch(batch, [])
