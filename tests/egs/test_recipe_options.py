"""What a recipe passes to src/run.py: all that its --help shows and that run.py would not assume."""
import re
import shlex
import subprocess

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


@pytest.mark.parametrize('recipe', ['own_dataset/run_own.sh', 'esc50/run_esc50.sh'])
def test_the_rate_is_that_of_fine_tuning_and_higher_without_audioset_weights(passed, root, recipe):
    assert passed(recipe)[0]['lr'] == '' and 'lr' not in passed(recipe)[1]
    assert passed(recipe, '--lr', '3e-4')[1]['lr'] == '3e-4'
    assert '\nchoose_rate\n' in (root / 'egs' / recipe).read_text()
    for is_pretrained, rate in (('True', '1e-5'), ('False', '1e-4')):
        script = (f'. {shlex.quote(str(root / "egs" / "common.sh"))}; lr=; RUN_OPTIONS=(); '
                  f'audioset_pretrain={is_pretrained}; choose_rate; echo "${{RUN_OPTIONS[*]}}"')
        done = subprocess.run(['bash', '-euc', script], capture_output=True, text=True, check=True)
        assert done.stdout == f'--lr {rate}\n'
