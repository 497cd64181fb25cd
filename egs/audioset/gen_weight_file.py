"""Write the weight file of a datafile, by which run.py --bal bal draws training samples: rare labels more often."""
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'src'))
from utilities.cli import OptionParser, exit_on, setup_logging
from utilities.datafiles import read_datafile, split_labels
from utilities.errors import DataError
from utilities.labels import read_labels
from utilities.weight_files import WEIGHT_RULE, weight_file

HERE = Path(__file__).resolve().parent
LABEL_FILE = HERE / 'data' / 'class_labels_indices.csv'
SCALE, SMOOTHING = 1000, 0.01  # WEIGHT_RULE's


def sample_weights(datafile, labels):
    """Return weights (samples,) of a Datafile by WEIGHT_RULE, and samples of each class (classes,).

    A label that an entry repeats counts once.
    """
    index = labels.index()
    label_sets, set_of_sample = np.unique(datafile.labels, return_inverse=True)
    no_label = len(labels)  # negatives count as one more class, after the others
    members = [sorted({index[mid] for mid in split_labels(mids)}) or [no_label]
               for mids in label_sets]
    classes = np.concatenate(members)
    set_of_class = np.repeat(np.arange(len(members)), [len(member) for member in members])
    samples_of_set = np.bincount(set_of_sample)
    samples_of_class = np.bincount(classes, weights=samples_of_set[set_of_class],
                                   minlength=len(labels) + 1)
    set_weights = np.bincount(set_of_class, weights=SCALE / (samples_of_class[classes] + SMOOTHING))
    return set_weights[set_of_sample], samples_of_class[:no_label].astype(int)


def main(argv=None):
    """Entry point."""
    parser = OptionParser(prog='gen_weight_file.py', description=f'{__doc__} A weight is {WEIGHT_RULE}.')
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument('datafile', nargs='?', help='datafile of the training set')
    where.add_argument('--data_path', help='the same')
    parser.add_argument('--label_csv', default=LABEL_FILE, help='label file: index,mid,display_name')
    args = parser.parse_args(argv)
    # After the options: see src/utilities/cli.py.
    from models.files import WriteError
    from training.results import write_rows
    setup_logging()
    with exit_on(DataError, WriteError):
        labels = read_labels(args.label_csv)
        datafile = read_datafile(args.datafile or args.data_path, labels.index())
        weights, samples_of_class = sample_weights(datafile, labels)
        write_rows(weight_file(datafile.path), weights)
    present = samples_of_class > 0
    counts = samples_of_class[present]
    each = f', from {counts.min()} to {counts.max()} samples each' if len(counts) else ''
    negatives = f', {datafile.negatives} negatives' if datafile.negatives else ''
    print(f'{len(weights)} samples, {len(counts)} of {len(labels)} classes{each}{negatives}; '
          f'weights {weights.min():.4g} to {weights.max():.4g} in {weight_file(datafile.path)}')
    if not present.all():
        absent = [name for name, there in zip(labels.names, present) if not there]
        print(f'{len(absent)} classes have no samples: {"; ".join(absent[:10])}{"; ..." if len(absent) > 10 else ""}')


if __name__ == '__main__':
    main()
