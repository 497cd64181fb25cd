"""Write the weight file of a datafile.

With it, run.py --bal bal draws samples of rare classes more often in training.
"""
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'src'))
from utilities.cli import OptionParser, exit_on, setup_logging
from utilities.datafiles import Datafile, read_datafile, split_labels
from utilities.errors import DataError
from utilities.labels import Labels, read_labels
from utilities.weight_files import WEIGHT_RULE, weight_file

LABEL_FILE = Path(__file__).resolve().parent / 'data' / 'class_labels_indices.csv'
SCALE, SMOOTHING = 1000, 0.01  # of WEIGHT_RULE
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

    # Pairs of a set and a class in it.
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


def main(argv: Sequence[str] | None = None) -> None:
    """Read the options and write the weight file."""
    parser = OptionParser(prog='gen_weight_file.py',
                          description=f'{__doc__}A weight is {WEIGHT_RULE}.')
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument('datafile', nargs='?', help='datafile of the training set')
    data.add_argument('--data_path', help='the same')
    parser.add_argument('--label_csv', default=LABEL_FILE,
                        help='label file: index,mid,display_name')
    args = parser.parse_args(argv)
    # After the options: see src/utilities/cli.py.
    from models.atomic import WriteError
    from training.results import write_rows
    setup_logging()
    with exit_on(DataError, WriteError):
        labels = read_labels(args.label_csv)
        datafile = read_datafile(args.datafile or args.data_path, labels.index())
        weights, counts = sample_weights(datafile, labels)
        write_rows(weight_file(datafile.path), weights)
    print_summary(datafile, labels, weights, counts)


if __name__ == '__main__':
    main()
