"""Compute the weights by which training draws samples, and say what they are."""
import numpy as np

from utilities.datafiles import Datafile, split_labels
from utilities.labels import Labels
from utilities.weight_files import SCALE, SMOOTHING, weight_file

MAX_NAMED = 10  # classes without samples


def sample_weights(datafile: Datafile, labels: Labels) -> tuple[np.ndarray, np.ndarray]:
    """Compute the weights of a datafile's samples by WEIGHT_RULE.

    A label that an entry repeats counts once. Having no label counts as one more class.

    Returns:
        Weights (samples,), and how many samples each class has (classes,).
    """
    index = labels.index()
    no_label = len(labels)
    # Many samples have the same labels: each set of labels is looked at once.
    label_sets, set_of_sample = np.unique(datafile.labels, return_inverse=True)
    classes_of_set = [sorted({index[mid] for mid in split_labels(mids)}) or [no_label]
                      for mids in label_sets]

    # Pairs of a set and a class in it. bincount(keys, numbers) adds up the numbers of each key.
    pair_classes = np.concatenate(classes_of_set)
    pair_sets = np.repeat(np.arange(len(label_sets)), [len(one) for one in classes_of_set])
    samples_of_set = np.bincount(set_of_sample)
    samples_of_class = np.bincount(pair_classes, weights=samples_of_set[pair_sets],
                                   minlength=len(labels) + 1)
    set_weights = np.bincount(pair_sets, SCALE / (samples_of_class[pair_classes] + SMOOTHING))
    return set_weights[set_of_sample], samples_of_class[:no_label].astype(int)


def print_summary(datafile: Datafile, labels: Labels, weights: np.ndarray, counts: np.ndarray
                  ) -> None:
    """Print what was counted. counts: samples of each class."""
    present = counts[counts > 0]
    each = f', from {present.min()} to {present.max()} samples each' if len(present) else ''
    negatives = f', {datafile.negatives} negatives' if datafile.negatives else ''
    print(f'{len(weights)} samples, {len(present)} of {len(labels)} classes{each}{negatives}; '
          f'weights {weights.min():.4g} to {weights.max():.4g} in {weight_file(datafile.path)}')
    absent = [name for name, count in zip(labels.names, counts) if not count]
    if absent:
        more = '; ...' if len(absent) > MAX_NAMED else ''
        print(f'{len(absent)} classes have no samples: {"; ".join(absent[:MAX_NAMED])}{more}')
