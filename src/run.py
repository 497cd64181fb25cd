"""Train and evaluate one AST experiment: src/run.py --data_train ... (see --help).

The options are declared in training/options.py, and experiment.py does the work.
"""
from training.config import expand_config
from training.interrupt import Interrupt
from training.options import make_parser
from utilities.cli import let_threads_sleep


def main(argv=None):
    """Read the options and run the experiment that they describe."""
    # This comes first: without it, a stop signal would end the process with another exit code.
    interrupt = Interrupt().listen()
    parser = make_parser()
    args = parser.parse_args(expand_config(parser, argv))
    let_threads_sleep()
    from experiment import start  # after the options: see utilities/cli.py
    start(parser, args, interrupt)


if __name__ == '__main__':
    main()
