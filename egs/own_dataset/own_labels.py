"""Make the classes of a dataset of one's own, from the names in its labels or a label file."""
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike

from own_clips import LabelledClip
from utilities.errors import DataError
from utilities.formatting import quoted
from utilities.labels import Labels, read_labels


def make_labels(clips: Sequence[LabelledClip], label_csv: str | PathLike[str] | None
                ) -> tuple[Labels, list[LabelledClip]]:
    """Return the classes, and the clips with mids as labels.

    Args:
        clips: with names of classes as labels, or mids of the label file.
        label_csv: a label file; without one, the classes are those of the clips, sorted by name.

    Raises:
        DataError: a label is not in the label file; or there is nothing to tell apart: no class, or
            only one and no negatives.
    """
    labels, mid_of = _read_classes(label_csv) if label_csv else _collect_classes(clips)
    for clip in clips:
        for label in clip.labels:
            if label not in mid_of:
                raise DataError(f'{clip.wav}: the label {quoted(label)} is neither a mid nor the '
                                f'name of a single class in {label_csv}; several labels are '
                                f'separated by ; or | (or by , in a CSV that has neither)')
    if not labels:
        raise DataError('no clip has a label: there is no class to learn')
    if len(labels) < 2 and all(clip.labels for clip in clips):
        raise DataError(f'there is only one class, {labels.names[0]}: expected at least two (or, '
                        f'in a CSV, clips without a label); if the clips are in folders, give the '
                        f'folder that holds the class folders')
    # A class counts once, even if a clip gives both its name and its mid.
    return labels, [replace(clip, labels=tuple(dict.fromkeys(map(mid_of.get, clip.labels))))
                    for clip in clips]


def _read_classes(label_csv):
    """Return the Labels of a file, and {name or mid: mid}. A name of two classes is left out."""
    labels = read_labels(label_csv)
    counts = Counter(labels.names)
    mid_of = {name: mid for name, mid in zip(labels.names, labels.mids) if counts[name] == 1}
    return labels, mid_of | dict(zip(labels.mids, labels.mids))


def _collect_classes(clips):
    """Return the Labels of the classes that the clips name, and {name: mid}."""
    names = sorted({label for clip in clips for label in clip.labels})
    labels = Labels(make_mids(names), tuple(names))
    return labels, dict(zip(names, labels.mids))


def make_mids(names: Sequence[str]) -> tuple[str, ...]:
    """Return a mid for each name: the name itself, with _ for commas, since commas separate mids.

    If that is the mid of another class, it gets a number.
    """
    taken = {name for name in names if ',' not in name}
    mids = []
    for name in names:
        mid = name.replace(',', '_')
        if mid != name:
            numbered = (f'{mid}_{n}' for n in itertools.count(2))
            mid = next(new for new in itertools.chain([mid], numbered) if new not in taken)
            taken.add(mid)
        mids.append(mid)
    return tuple(mids)
