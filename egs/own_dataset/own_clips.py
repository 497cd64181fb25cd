"""The clips of a dataset of one's own, and how to split them. Needs the standard library alone."""
from dataclasses import dataclass


@dataclass(frozen=True)
class LabelledClip:
    """A recording of the dataset and what its source says about it.

    Attributes:
        wav: its path.
        labels: names of classes at first, then their mids; a negative has none.
        part: 'train', 'val' or 'test'; '' if the source does not say it.
        fold: name of its fold, or ''.
        group: what it has in common with others, such as a speaker, or ''.
    """
    wav: str
    labels: tuple[str, ...]
    part: str = ''
    fold: str = ''
    group: str = ''


@dataclass(frozen=True)
class SplitConf:
    """How to split clips whose source does not say it.

    Attributes:
        val_share, test_share: shares of the validation and of the test set.
        n_folds: number of folds to make instead, or 0.
        seed: fixes the split.
    """
    val_share: float = 0.2
    test_share: float = 0.0
    n_folds: int = 0
    seed: int = 0
