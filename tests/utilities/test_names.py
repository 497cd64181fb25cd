"""The names that scripts written for the published code import."""
import subprocess
import sys

import pytest

STAR = """
import sys
from {package} import *
names = [name for name in globals() if not name.startswith('_') and name != 'sys']
assert sorted(names) == ['calculate_stats', 'd_prime']
stats = calculate_stats([[0.9, 0.1], [0.2, 0.8]], [[1, 0], [0, 1]])
print(round(d_prime(0.980985), 3), stats[0]['AP'])
"""


@pytest.mark.parametrize('package, folder', [('utilities', 'src'), ('src.utilities', '.')])
def test_a_star_gives_the_metrics(package, folder, root):
    printed = subprocess.run([sys.executable, '-c', STAR.format(package=package)],
                             cwd=root / folder, check=True, capture_output=True, text=True).stdout
    assert printed == '2.934 1.0\n'


def test_the_package_itself_loads_no_heavy_library(root):
    code = ('import sys, utilities, utilities.formatting\n'
            'print(*{"sklearn", "scipy", "numpy", "torch"} & sys.modules.keys())')
    printed = subprocess.run([sys.executable, '-c', code], cwd=root / 'src', check=True,
                             capture_output=True, text=True).stdout
    assert printed == '\n'


def test_other_names_are_refused_as_python_does_it():
    with pytest.raises(ImportError, match="cannot import name 'AverageMeter' from 'utilities'"):
        from utilities import AverageMeter  # noqa: F401
