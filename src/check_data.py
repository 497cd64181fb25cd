"""Check datafiles before training: entries, recordings, labels, weights, leaks.

Every recording is read from the first to the last sample. The exit code is 0 if every entry could
be used, in training, validation and test, else 1. The last line says why; with --json, `stops` and
`bad_audio` do.
"""
import json
import sys
from collections.abc import Sequence

from utilities.cli import (
    OptionParser,
    add_input_options,
    exit_on,
    run_program,
    setup_logging,
    whole,
)


def make_parser() -> OptionParser:
    """Return the parser of all options."""
    parser = OptionParser(prog='check_data.py', description=__doc__)
    add = parser.add_argument
    add('datafiles', nargs='+', help='datafiles to check: training, validation, test set')
    add_input_options(parser, length_help='frames of 10 ms of the input')
    add('--segments',
        help='segment list to compare the datafiles with: which clips there are, their labels, '
             'where they begin and how long they are')
    add('--max_listed', type=whole(0), default=10, help='how many of each kind to list')
    add('--json', action='store_true', help='print everything as JSON')
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Read the options, check the datafiles and print what was found."""
    args = make_parser().parse_args(argv)
    # After the options: see utilities/cli.py.
    from concurrent.futures.process import BrokenProcessPool

    from checks.datafiles import check
    from checks.text import leak_lines, report_lines, verdict
    from utilities.errors import DataError
    from utilities.labels import read_labels
    from utilities.segments import read_segments
    setup_logging()
    with exit_on(BrokenProcessPool, DataError):
        labels = read_labels(args.label_csv)
        segments = read_segments(args.segments, labels.index()) if args.segments else None
        result = check(args.datafiles, labels, args.audio_length, segments, args.sample_rate)
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        for report in result['datafiles']:
            print('\n'.join(report_lines(report, labels, args.max_listed)))
        for leak in result['leaks']:
            print('\n'.join(leak_lines(leak, args.max_listed)))
        print(verdict(result))
    sys.exit(1 if result['stops'] or result['bad_audio'] else 0)


if __name__ == '__main__':
    run_program(main)
