"""What a recipe passes to src/run.py: all that its --help shows and that run.py would not assume."""
import re
import shlex

import pytest

import recipe_options
from training.options import make_parser

RECIPES = ('audioset/run.sh', 'esc50/run_esc50.sh', 'own_dataset/run_own.sh',
           'speechcommands/run_sc.sh')


@pytest.fixture
def passed(root, capfdbinary):
    """Return the values that a recipe gets, and the options that it passes on: {name: value}."""
    def read(recipe, *words):
        path = root / 'egs' / recipe
        script = path.read_text()
        options = re.search(r'^OPTIONS="\n(.*?)^"', script, re.DOTALL | re.MULTILINE)[1]
        defaults = shlex.split(re.search(r'^DEFAULTS=\((.*?)\)$', script,
                                         re.DOTALL | re.MULTILINE)[1])
        recipe_options.main(str(path), options, *defaults, '--', *words)
        recipe_options.sys.stdout.flush()
        lines = [line.partition('=') for line in capfdbinary.readouterr().out.decode().split()]
        return ({name: value for name, _, value in lines if not name.startswith('--')},
                {name[2:]: value for name, _, value in lines if name.startswith('--')})
    return read


@pytest.mark.parametrize('recipe', RECIPES)
def test_run_py_gets_every_default_of_a_recipe_that_is_not_its_own(passed, recipe):
    values, passed_on = passed(recipe)
    parser = make_parser()
    assumed = {action.dest: str(action.default) for action in parser._actions}
    set_elsewhere = {'exp_dir'}  # an argument of `train` in every recipe
    for name in values.keys() & assumed.keys() - set_elsewhere:
        if values[name] and values[name] != assumed[name]:
            assert passed_on.get(name) == values[name], name


def test_the_rate_of_ones_own_dataset_is_that_of_fine_tuning(passed):
    assert passed('own_dataset/run_own.sh')[1]['lr'] == '1e-5'
    assert passed('own_dataset/run_own.sh', '--lr', '3e-4')[1]['lr'] == '3e-4'
