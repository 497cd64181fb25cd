"""The clips of a dataset of one's own, and how to split them. Needs the standard library alone."""
from collections.abc import Iterable
from dataclasses import dataclass

MAX_NAMED = 10  # names in a message


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
        n_folds: make so many folds instead, if it is not 0.
        seed: fixes the split.
    """
    val_share: float = 0.2
    test_share: float = 0.0
    n_folds: int = 0
    seed: int = 0


def shortened(names: Iterable[str], most: int = MAX_NAMED) -> str:
    """Return names separated by commas, for a message: at most so many, and how many more."""
    names = list(names)
    rest = f' and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(names[:most]) + rest
