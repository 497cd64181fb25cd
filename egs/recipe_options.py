"""Check the command line of a recipe, and print it for egs/common.sh.

    egs/recipe_options.py RECIPE OPTIONS DEFAULTS... -- WORDS...

RECIPE is the script; its first comment says what it does. OPTIONS describes its options, a line
each: `name=default`, two spaces or more, and the help. The default says what a value may be: True or
False, a whole number, a number with a point, or any text. An option of src/run.py that stands there
gets another help and default. DEFAULTS are the recipe's departures from the defaults of src/run.py,
and WORDS is what the user typed. The last value of an option counts.

This prints `name=value` for every option, and `--name=value` for those of src/run.py that DEFAULTS
or WORDS name. In a value, a line break is \\n and a backslash \\\\. It runs before there is an
environment, so it imports the standard library alone, of any Python from 3.8 on.
"""
import argparse
import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'src'))
from training.options import OLD_NAMES, add_options
from utilities.cli import OptionParser, boolean, number, whole

# Options of src/run.py that a recipe sets itself, unless it lists them among its own.
SET_BY_RECIPE = {'data_train', 'data_val', 'data_eval', 'label_csv', 'n_class'}
# What a default looks like, and the option type that it stands for.
TYPES = {r'True|False': boolean, r'\d+': whole(0), r'\d+\.\d+': number(0)}


def make_recipe_parser(recipe, options):
    """Return the parser of a recipe, and the names of the options that src/run.py is given."""
    parser = OptionParser(prog=recipe.name, description=read_description(recipe),
                          usage='%(prog)s [--name value] ...', old_names=OLD_NAMES)
    own = parser.add_argument_group('the recipe')
    launching = parser.add_argument_group('launching')
    add_options(parser)
    actions = {action.dest: action for action in parser._actions if action.dest != 'help'}
    add_launch_options(launching)
    listed = [re.match(r'(\w+)=(.*?)  +(.*)', line).groups()
              for line in options.strip().replace('%', '%%').split('\n')]
    for name, default, text in listed:
        if name in actions:
            actions[name].default, actions[name].help = default or None, text
            actions[name].required = False
        else:
            kind = next((TYPES[look] for look in TYPES if re.fullmatch(look, default)), None)
            own.add_argument(f'--{name}', type=kind, default=default or None, help=text)
    for name in SET_BY_RECIPE - {name for name, _, _ in listed}:
        actions[name].default, actions[name].help = None, argparse.SUPPRESS
        actions[name].required, actions[name].type = False, refuse_any
    return parser, actions.keys() - SET_BY_RECIPE - {'exp_dir'}


def read_description(recipe):
    """Return the first comment of a script, without the lines for Slurm and ShellCheck."""
    comment = re.match(r'#!.*\n((?:#.*\n)*)', recipe.read_text(encoding='utf-8'))[1]
    return '\n'.join(re.sub('#SBATCH.*|# shellcheck.*|# ?', '', line, count=1)
                     for line in comment.split('\n')).strip()


def add_launch_options(group):
    """Add how src/run.py is started."""
    add = group.add_argument
    add('--launcher', choices=['auto', 'single', 'torchrun', 'slurm'], default='auto',
        help='single (one process), torchrun (several), slurm (on the nodes of the job) or auto')
    add('--nodes', type=whole(1),
        help='machines that train together; without it, those of the Slurm job, or one')
    add('--processes', type=whole(1),
        help='processes per machine; without it, one per GPU, or without GPUs one per Slurm task')


def refuse_any(_):
    """Refuse a value, whatever it is."""
    raise argparse.ArgumentTypeError('the recipe sets it itself')


def as_typed(kind):
    """Return an option type that leaves a number with a point as it is typed.

    The name of exp_dir has the learning rate in it: 1e-5, and not 1e-05.
    """
    def parse(text):
        value = kind(text)
        return text if isinstance(value, float) else value
    return parse


def named(parser, words):
    """Return the options that words name, {name: value}."""
    nothing = dict.fromkeys(vars(parser.parse_args([])))
    values = vars(parser.parse_args(words, argparse.Namespace(**nothing)))
    return {name: value for name, value in values.items() if value is not None}


def choose_launcher(parser, args, environ):
    """Return the launcher that --launcher auto stands for, and the number of machines.

    Stops with a sentence if something is missing that the launcher needs.
    """
    tasks, in_job = int(environ.get('SLURM_STEP_NUM_TASKS') or 1), environ.get('SLURM_JOB_ID')
    of_job = int(environ.get('SLURM_NNODES') or 1)
    nodes, processes = int(args.nodes or 1), int(args.processes or 1)
    if tasks > 1:
        sys.exit(f'error: srun starts this recipe {tasks} times: start it once, it starts the '
                 f'processes itself')
    launcher = args.launcher
    if launcher == 'auto':
        is_shared = in_job and (of_job > 1 or int(environ.get('SLURM_NTASKS') or 1) > 1)
        launcher = 'slurm' if is_shared else 'torchrun' if max(nodes, processes) > 1 else 'single'
    if launcher == 'single' and max(nodes, processes) > 1:
        parser.error('--launcher single is one process: leave out --nodes and --processes, or take '
                     'torchrun or slurm')
    if launcher == 'slurm':
        if not in_job:
            sys.exit('error: --launcher slurm is for the inside of a Slurm job: sbatch, or salloc '
                     'before')
        nodes = int(args.nodes or of_job)
        if nodes > of_job:
            sys.exit(f'error: --nodes {nodes}, but the job has {of_job}: sbatch --nodes={nodes}')
    if launcher == 'torchrun' and nodes > 1:
        rank = environ.get('NODE_RANK', '')
        if not environ.get('MASTER_ADDR') or not rank.isdecimal() or int(rank) >= nodes:
            sys.exit(f'error: --nodes {nodes}: start the same line on each machine, with '
                     f'MASTER_ADDR=the name of the first one and NODE_RANK=0 there, '
                     f'1 to {nodes - 1} on the others')
    return launcher, nodes


def write(line):
    """Print a line; a path in it may be any bytes."""
    sys.stdout.buffer.write(os.fsencode(line) + b'\n')


def main(recipe, options, *words):
    """Print the options of a recipe, or stop with what is wrong with them."""
    end = words.index('--')
    defaults, words = words[:end], words[end + 1:]
    parser, passed_on = make_recipe_parser(Path(recipe), options)
    for action in parser._actions:
        if action.type:
            action.type = as_typed(action.type)
    departures = named(parser, defaults)
    parser.set_defaults(**departures)
    args = parser.parse_args(words)
    args.launcher, args.nodes = choose_launcher(parser, args, os.environ)
    said = {**departures, **named(parser, words)}
    for name, value in vars(args).items():
        text = '' if value is None else str(value).replace('\\', r'\\').replace('\n', r'\n')
        write(f'{name}={text}')
        if name in said and name in passed_on:
            write(f'--{name}={text}')


if __name__ == '__main__':
    main(*sys.argv[1:])
