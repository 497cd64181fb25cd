"""Kill inference.py several times, each time starting the same command line again; let it end.

python tests/kill_tagging.py --kills 5 [--seed 0] -- OPTIONS OF inference.py --json out.json

A signal is sent once the journal beside out.json has grown by a random number of lines. The job has
0 and 2 data workers in turn. Prints how many signals hit a job that was still running.
"""
import argparse
import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'src'))
import inference

SIGNALS = signal.SIGKILL, signal.SIGTERM, signal.SIGINT


def start(words, number_of_workers):
    """Fork a process that runs the job; return its pid. All imports are done already."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        inference.main([*words, '--num_workers', str(number_of_workers)])
        code = 0
    except SystemExit as stop:
        print(stop.code, file=sys.stderr)
    finally:
        os._exit(code)


def lines_of(journal):
    """Return how many lines a journal has."""
    return journal.read_bytes().count(b'\n') if journal.exists() else 0


def parse_options():
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, default=5, help='how many signals to send')
    parser.add_argument('--most', type=int, default=60, help='most lines between two signals')
    parser.add_argument('--seed', type=int, default=0, help='of the random numbers of lines')
    parser.add_argument('words', nargs='+', help='options of inference.py')
    return parser.parse_args()


def main():
    """Read the options, kill the job, let it end."""
    args = parse_options()
    journal = Path(args.words[args.words.index('--json') + 1] + '.progress')
    rng, hits = random.Random(args.seed), 0
    for kill in range(args.kills):
        pid = start(args.words, 2 * (kill % 2))
        wanted = lines_of(journal) + rng.randint(2, args.most)
        while lines_of(journal) < wanted:
            if os.waitpid(pid, os.WNOHANG)[0]:  # the job has ended
                break
            time.sleep(0.001)
        else:
            os.kill(pid, SIGNALS[kill % len(SIGNALS)])
            os.waitpid(pid, 0)
        hits += journal.exists()
    status = os.waitpid(start(args.words, 0), 0)[1]
    print(hits)
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == '__main__':
    main()
