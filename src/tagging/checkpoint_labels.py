"""The classes of a checkpoint: given ones, its own, or those of a known dataset."""
import logging
from pathlib import Path
from typing import Any

from utilities.errors import DataError
from utilities.labels import Labels, read_labels

CheckpointSource = str | Path  # what load_model takes

EGS = Path(__file__).resolve().parents[2] / 'egs'
# Published checkpoints do not name their classes. Dataset -> (number of classes, label file).
KNOWN_LABELS = {
    'audioset': (527, EGS / 'audioset' / 'data' / 'class_labels_indices.csv'),
    'speechcommands':
        (35, EGS / 'speechcommands' / 'data' / 'speechcommands_class_labels_indices.csv'),
}

logger = logging.getLogger(__name__)


def labels_of(source: CheckpointSource, description: dict[str, Any], given: Labels | None
              ) -> Labels:
    """Return the Labels of a checkpoint: the given ones, else its own, else a known dataset's.

    Args:
        source: the checkpoint, for messages.
        description: what load_model returned for it.
        given: Labels of --label_csv, or None.

    Raises:
        DataError: the given labels do not fit, or nobody names the classes.
    """
    classes = description['label_dim']
    named = description.get('labels', {})
    own = Labels(tuple(named.get('mids', ())), tuple(named.get('names', ())))
    if given:
        _check_given(source, classes, own, given)
        return given
    if classes == len(own.mids) == len(own.names):
        return own
    for dataset, (known_classes, path) in KNOWN_LABELS.items():
        if classes == known_classes and description.get('dataset', dataset) == dataset:
            if 'dataset' not in description:
                logger.warning('%s does not name its %d classes; assumed: those of %s '
                               '(--label_csv)', source, classes, dataset)
            return read_labels(path)
    raise DataError(f'{source} does not name its {classes} classes: give the label file it was '
                    f'trained with as --label_csv')


def _check_given(source, classes, own, given):
    """Raise DataError if the given Labels do not fit a checkpoint, whose own may be empty."""
    if len(given) != classes:
        raise DataError(f'{source} has {classes} classes, but --label_csv lists {len(given)}: give '
                        f'the label file it was trained with')
    if given.mids != own.mids and sorted(given.mids) == sorted(own.mids):
        raise DataError(f'--label_csv lists the classes of {source} in another order than it was '
                        f'trained with')
