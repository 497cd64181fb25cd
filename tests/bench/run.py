"""Measure this repository against transformers' AST, the published code and the machine's limits.

python tests/bench/run.py [--only NAME ...] [--json FILE] [--quick]

Ours and the reference run in turns in one process. Prints a table of medians. The rows of a GPU are
measured if there is a CUDA GPU.
"""
import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'src'))
import cpu
import epochs
import gpu
from measure import HEADER, QUICK, Scale, describe_machine, print_machine, threads
from utilities.parallel import available_cores

ROWS = {**cpu.ROWS, **epochs.ROWS, **gpu.ROWS}


def main():
    """Read the options, measure, print the table."""
    args = make_parser().parse_args()
    start = time.monotonic()
    print_machine()
    if args.quick:
        print('--quick: the numbers mean nothing')
    rows = measure(args.only or ROWS, QUICK if args.quick else Scale())

    bars = [row.met for row in rows if row.bar is not None and not row.is_goal]
    print(f'{sum(bars)} of {len(bars)} bars met, in {(time.monotonic() - start) / 60:.1f} minutes')
    if args.json:
        write_json(args.json, rows, args.quick)


def make_parser():
    """Return the parser of all options."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', nargs='+', metavar='NAME', choices=list(ROWS),
                        help=f'measure only these groups of rows: {", ".join(ROWS)}')
    parser.add_argument('--json', type=Path, metavar='FILE',
                        help='write the rows and the machine to this JSON file, too')
    parser.add_argument('--quick', action='store_true',
                        help='use small sizes, only to see that everything runs')
    return parser


def measure(names, scale):
    """Measure and print the rows of these names; return them."""
    rows = []
    print(HEADER)
    for name in names:
        if name in gpu.ROWS and not torch.cuda.is_available():
            print(f'{name}: skipped, there is no CUDA GPU')
            continue
        with tempfile.TemporaryDirectory() as folder, threads(available_cores()):
            for row in ROWS[name](scale, Path(folder)):
                print(row, flush=True)
                rows.append(row)
    return rows


def write_json(path, rows, is_quick):
    """Write the rows, and what they depend on, to a JSON file."""
    content = {'machine': describe_machine(), 'quick': is_quick,
               'rows': [{**asdict(row), 'met': row.met} for row in rows]}
    path.write_text(json.dumps(content, indent=1) + '\n')


if __name__ == '__main__':
    main()
