"""Measure this repository beside transformers' AST, the published code's way and the machine's limits.

python tests/bench/run.py [--only NAME ...] [--json FILE] [--quick]
Prints a table of medians, ours and the reference in turns in one process; GPU rows where there is a CUDA GPU.
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
import gpu
from measure import HEADER, QUICK, Scale, machine, threads
from utilities.parallel import available_cores


def main():
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', nargs='+', metavar='NAME', choices=[*cpu.ROWS, *gpu.ROWS],
                        help=f'rows to measure, of {", ".join([*cpu.ROWS, *gpu.ROWS])}')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the rows and the machine as JSON, too')
    parser.add_argument('--quick', action='store_true', help='small sizes, which show that the suite works, no more')
    args = parser.parse_args()
    start = time.monotonic()
    print(', '.join(f'{name} {value}' for name, value in machine().items()))
    if args.quick:
        print('--quick: these figures mean nothing')
    rows = measure(args.only or [*cpu.ROWS, *gpu.ROWS], QUICK if args.quick else Scale())
    bars = [row.met for row in rows if row.bar is not None and not row.towards]
    print(f'{sum(bars)} of {len(bars)} bars met, in {(time.monotonic() - start) / 60:.1f} minutes')
    if args.json:
        args.json.write_text(json.dumps({'machine': machine(), 'quick': args.quick,
                                         'rows': [{**asdict(row), 'met': row.met} for row in rows]}, indent=1) + '\n')


def measure(names, scale):
    """Measure and print the named rows; returns them."""
    rows = []
    print(HEADER)
    for name in names:
        if name in gpu.ROWS and not torch.cuda.is_available():
            print(f'{name}: skipped, there is no CUDA GPU')
            continue
        with tempfile.TemporaryDirectory() as folder, threads(available_cores()):
            for row in {**cpu.ROWS, **gpu.ROWS}[name](scale, Path(folder)):
                print(row, flush=True)
                rows.append(row)
    return rows


if __name__ == '__main__':
    main()
