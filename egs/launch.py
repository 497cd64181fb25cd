"""Start src/run.py in several processes of this machine: egs/launch.py --processes 2 -- OPTIONS OF run.py

What torchrun does, and by its agent, but a signal asks the processes to stop and leaves them the time that a checkpoint
takes, and the exit code is theirs. Started by srun, once a node, or with --nodes and --node_rank on each of several
machines, it trains with all of them.
"""
import logging
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'src'))
from utilities.cli import OptionParser, exit_on, number, whole

ROOT = Path(__file__).resolve().parents[1]


def main(argv=None):
    """Entry point."""
    parser = OptionParser(prog='launch.py', description=__doc__)
    add = parser.add_argument
    add('--processes', type=whole(1), help='processes of this machine; by default one per GPU')
    add('--without_gpus', type=whole(1), default=1, help='processes by default where there is no GPU')
    add('--nodes', type=whole(1), default=1, help='machines that train together, where srun does not start this')
    add('--node_rank', type=whole(0), help='number of this machine, from 0, likewise')
    add('--timeout_minutes', type=number(above=0), default=30,
        help='how long to wait for the other machines')
    add('options', nargs='*', help='options of run.py')
    args = parser.parse_args(argv)
    if args.nodes > 1 and args.node_rank is None or args.node_rank is not None and args.node_rank >= args.nodes:
        parser.error(f'--nodes {args.nodes} needs a --node_rank from 0 to {args.nodes - 1}')
    # After the options: see src/utilities/cli.py.
    from agent import PROCESSES, choose_processes, find_machines, launch, make_config
    from training.processes import DistributedError
    from utilities.parallel import available_cores
    if not PROCESSES.is_dir():
        parser.error('several processes need Linux; without it, --launcher single')
    processes = choose_processes(args.processes, args.without_gpus)
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, available_cores() // processes)))
    if 'LOGLEVEL' not in os.environ:  # torchrun's: what the processes say themselves is enough
        logging.disable()
    with exit_on(DistributedError):
        config = make_config(find_machines(args.nodes, args.node_rank), processes, args.timeout_minutes)
        sys.exit(launch(config, [sys.executable, str(ROOT / 'src' / 'run.py'), *args.options]))


if __name__ == '__main__':
    main()
