"""Write the weight file of a datafile.

With it, run.py --bal bal draws samples of rare classes more often in training.
"""
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'src'))
from utilities.cli import OptionParser, exit_on, run_program, setup_logging
from utilities.weight_files import WEIGHT_RULE, weight_file

LABEL_FILE = Path(__file__).resolve().parent / 'data' / 'class_labels_indices.csv'


def main(argv: Sequence[str] | None = None) -> None:
    """Read the options and write the weight file."""
    parser = OptionParser(prog='gen_weight_file.py',
                          description=f'{__doc__}The weight of a sample is {WEIGHT_RULE}.')
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument('datafile', nargs='?', help='datafile of the training set')
    data.add_argument('--data_path', help='another way to give the datafile')
    parser.add_argument('--label_csv', default=LABEL_FILE,
                        help='label file: index,mid,display_name')
    args = parser.parse_args(argv)
    # After the options: see src/utilities/cli.py.
    from models.atomic import WriteError
    from sample_weights import print_summary, sample_weights
    from training.result_files import write_rows
    from utilities.datafiles import read_datafile
    from utilities.errors import DataError
    from utilities.labels import read_labels
    setup_logging()
    with exit_on(DataError, WriteError):
        labels = read_labels(args.label_csv)
        datafile = read_datafile(args.datafile or args.data_path, labels.index())
        weights, counts = sample_weights(datafile, labels)
        write_rows(weight_file(datafile.path), weights)
    print_summary(datafile, labels, weights, counts)


if __name__ == '__main__':
    run_program(main)
