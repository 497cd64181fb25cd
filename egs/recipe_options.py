"""Check the command line of a recipe, and print it for egs/common.sh.

    egs/recipe_options.py RECIPE OPTIONS DEFAULTS... -- WORDS...

RECIPE is the script, and its first comment becomes the description. OPTIONS has one line per option
of the recipe: `name=default`, at least two spaces, and the help. The default decides which values
are allowed: True and False, whole numbers, numbers with a point, or any text. If src/run.py has an
option of that name, it gets this help and default. DEFAULTS are the defaults of src/run.py that the
recipe changes, as options, and WORDS is what the user typed. The last value of an option counts.

This prints `name=value` for every option, and `--name=value` for those options of src/run.py that
OPTIONS, DEFAULTS or WORDS set (but not for exp_dir and those in SET_BY_RECIPE). In a value, \\n is
a line break and \\\\ a backslash. This runs before there is an environment, so it imports only the
standard library, of Python 3.8 or newer.
"""
import argparse
import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'src'))
from training.options import OLD_NAMES, add_options
from utilities.cli import OptionParser, boolean, number, whole

# Options of src/run.py that a recipe sets itself, unless it has an option of that name.
SET_BY_RECIPE = {'data_train', 'data_val', 'data_eval', 'label_csv', 'n_class', 'config'}
# What a default looks like -> the type of its option.
TYPES = {r'True|False': boolean, r'\d+': whole(0), r'\d+\.\d+': number(0)}


def make_recipe_parser(recipe, options):
    """Return the parser of a recipe, and the names of the options that are passed to src/run.py.

    Args:
        recipe: the script.
        options: what list_options returns.
    """
    parser = OptionParser(prog=recipe.name, description=read_description(recipe),
                          usage='%(prog)s [--name value] ...', old_names=OLD_NAMES)
    own = parser.add_argument_group('the recipe')
    launching = parser.add_argument_group('launching')
    add_options(parser)
    actions = {action.dest: action for action in parser._actions if action.dest != 'help'}
    add_launch_options(launching)
    for name, default, text in options:
        if name in actions:
            actions[name].default, actions[name].help = default or None, text
            actions[name].required = False
        else:
            kind = next((TYPES[look] for look in TYPES if re.fullmatch(look, default)), None)
            own.add_argument(f'--{name}', type=kind, default=default or None, help=text)
    for name in SET_BY_RECIPE - {name for name, _, _ in options}:
        actions[name].default, actions[name].help = None, argparse.SUPPRESS
        actions[name].required = False
        actions[name].type = refuse_config if name == 'config' else refuse_any
    return parser, actions.keys() - SET_BY_RECIPE - {'exp_dir'}


def list_options(text):
    """Return (name, default, help) of each line `name=default  help` in the OPTIONS of a recipe."""
    return [re.match(r'(\w+)=(.*?)  +(.*)', line).groups()
            for line in text.strip().replace('%', '%%').split('\n')]


def read_description(recipe):
    """Return the first comment of a script, without its lines for Slurm and ShellCheck."""
    comment = re.match(r'#!.*\n((?:#.*\n)*)', recipe.read_text(encoding='utf-8'))[1]
    return '\n'.join(re.sub('#SBATCH.*|# shellcheck.*|# ?', '', line, count=1)
                     for line in comment.split('\n')).strip()


def add_launch_options(group):
    """Add the options that say how to start src/run.py."""
    add = group.add_argument
    add('--launcher', choices=['auto', 'single', 'torchrun', 'slurm'], default='auto',
        help='single: one process; torchrun: several; slurm: on the nodes of the Slurm job; auto: '
             'slurm in a job of several nodes or tasks, else torchrun if --nodes or --processes '
             'is above 1, else single')
    add('--nodes', type=whole(1),
        help='machines that train together; by default those of the Slurm job, or one')
    add('--processes', type=whole(1),
        help='processes per machine, with torchrun or slurm; by default one per GPU, or without '
             'GPUs one per Slurm task')


def refuse_any(_):
    """Refuse every value. It is the type of the options that a recipe sets itself."""
    raise argparse.ArgumentTypeError('the recipe sets it itself')


def refuse_config(path):
    """Refuse every value, and say what to do instead. It is the type of --config."""
    raise argparse.ArgumentTypeError(
        f'a recipe has settings of its own; to repeat a run, start src/run.py '
        f'--config {path} --exp_dir NEW')


def as_typed(kind):
    """Return an option type that checks a value, but returns a float as the text that was typed.

    The default name of exp_dir contains the learning rate: 1e-5 should not become 1e-05.
    """
    def parse(text):
        value = kind(text)
        return text if isinstance(value, float) else value
    return parse


def parse_named(parser, words):
    """Return the options that words name, without defaults: {name: value}."""
    # argparse uses no default for a name that the namespace has already: None marks the others.
    nothing = dict.fromkeys(vars(parser.parse_args([])))
    values = vars(parser.parse_args(words, argparse.Namespace(**nothing)))
    return {name: value for name, value in values.items() if value is not None}


def choose_launcher(args, environ):
    """Return the launcher to use: --launcher, or what `auto` stands for here."""
    if args.launcher != 'auto':
        return args.launcher
    is_large_job = max(number_in(environ, 'SLURM_NNODES'), number_in(environ, 'SLURM_NTASKS')) > 1
    if 'SLURM_JOB_ID' in environ and is_large_job:
        return 'slurm'
    return 'torchrun' if max(args.nodes or 1, args.processes or 1) > 1 else 'single'


def choose_nodes(args, launcher, environ):
    """Return the number of machines that train together: by default all those of a Slurm job."""
    if launcher == 'slurm':
        return args.nodes or number_in(environ, 'SLURM_NNODES')
    return args.nodes or 1


def number_in(environ, name):
    """Return the number in an environment variable, 1 without it."""
    return int(environ.get(name) or 1)


def check_launch(parser, args, environ):
    """Stop with a sentence if the launcher does not fit where the recipe was started.

    args.launcher and args.nodes are what choose_launcher and choose_nodes return.
    """
    tasks = number_in(environ, 'SLURM_STEP_NUM_TASKS')
    if tasks > 1:
        sys.exit(f'error: srun starts this recipe {tasks} times. Start it once: it starts the '
                 f'processes itself')
    if args.launcher == 'single' and max(args.nodes, args.processes or 1) > 1:
        parser.error('--launcher single is one process: leave out --nodes and --processes, or '
                     'choose torchrun or slurm')
    if args.launcher == 'slurm':
        if 'SLURM_JOB_ID' not in environ:
            sys.exit('error: --launcher slurm works only inside of a Slurm job: start the recipe '
                     'with sbatch, or after salloc')
        nodes_of_job = number_in(environ, 'SLURM_NNODES')
        if args.nodes > nodes_of_job:
            sys.exit(f'error: --nodes {args.nodes}, but the job has {nodes_of_job}: submit it with '
                     f'sbatch --nodes={args.nodes}')
    if args.launcher == 'torchrun' and args.nodes > 1:
        check_rendezvous(args.nodes, environ)


def check_rendezvous(nodes, environ):
    """Stop with a sentence if the environment does not say where the machines meet."""
    rank = environ.get('NODE_RANK', '')
    if not environ.get('MASTER_ADDR') or not rank.isdecimal() or int(rank) >= nodes:
        sys.exit(f'error: --nodes {nodes}: start the same command on each machine, with '
                 f'MASTER_ADDR=NAME, the name of the first machine, and NODE_RANK=0 on the first '
                 f'machine, 1 to {nodes - 1} on the others')


def write(line):
    """Print a line. A path in it may have any bytes."""
    sys.stdout.buffer.write(os.fsencode(line) + b'\n')


def main(recipe, options, *words):
    """Print the options of a recipe, or stop with a sentence about what is wrong with them."""
    end = words.index('--')
    defaults, words = words[:end], words[end + 1:]
    listed = list_options(options)
    parser, passed_on = make_recipe_parser(Path(recipe), listed)
    for action in parser._actions:
        if action.type:
            action.type = as_typed(action.type)
    changed = {name: default for name, default, _ in listed if default}
    changed.update(parse_named(parser, defaults))
    parser.set_defaults(**changed)
    args = parser.parse_args(words)
    args.launcher = choose_launcher(args, os.environ)
    args.nodes = choose_nodes(args, args.launcher, os.environ)
    check_launch(parser, args, os.environ)
    changed.update(parse_named(parser, words))
    for name, value in vars(args).items():
        text = '' if value is None else str(value).replace('\\', r'\\').replace('\n', r'\n')
        write(f'{name}={text}')
        if name in changed and name in passed_on:
            write(f'--{name}={text}')


if __name__ == '__main__':
    main(*sys.argv[1:])
