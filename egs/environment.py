"""Find or make the Python that runs the recipes and the tests, and print its path: egs/environment.py REQUIREMENTS...

The python on PATH where it imports everything that the requirements name; else, where no environment is active,
venvast/ at the repository's root, made and filled once. Needs nothing but the standard library.
"""
import contextlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / 'venvast'
IMPORT_NAMES = {'scikit-learn': 'sklearn', 'pytest-xdist': 'xdist'}  # where it is not the package's own
PYTHONS = ('python3.12', 'python3.11')  # which the pinned packages are made for
# Besides that every package imports: what only versions that are new enough have.
TRY_IMPORTS = '''
import importlib, sys
if sys.version_info < (3, 11):
    sys.exit('Python 3.11 or newer is needed')
try:
    from numpy.dtypes import StringDType
except ImportError as error:
    sys.exit(str(error))
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except Exception as error:
        sys.exit(f'{name}: {error}')
'''


def packages(requirements):
    """Import names of the packages that requirements files pin."""
    lines = '\n'.join(Path(file).read_text() for file in requirements).split('\n')
    names = [match[0] for line in lines if (match := re.match(r'[A-Za-z0-9_-]+', line))]
    return [IMPORT_NAMES.get(name, name) for name in names]


def what_is_missing(python, requirements):
    """The first import that fails in a Python, as text, or None where all succeed."""
    done = subprocess.run([python, '-c', TRY_IMPORTS, *packages(requirements)], capture_output=True, text=True)
    return done.stderr.strip().split('\n')[-1] if done.returncode else None


@contextlib.contextmanager
def only_one(path):
    """Hold an exclusive lock on a file: a second job that starts at the same time waits until the first is done."""
    import fcntl  # not on Windows, where an environment of one's own is needed
    with open(path, 'w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make_venv(requirements):
    """Make venvast/ and install the requirements files that it does not have yet, or no longer has as they are."""
    with only_one(ROOT / 'venvast.lock'):
        to_do = [file for file in map(Path, requirements) if not is_installed(file)]
        if to_do:
            print(f'setting up {VENV} (once; about 5 GB)', file=sys.stderr)
            run([suitable_python(), '-m', 'venv', VENV])
        for file in to_do:
            run([VENV / 'bin' / 'python', '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', '-r', file])
            installed_copy(file).write_text(file.read_text())
    return VENV / 'bin' / 'python'


def installed_copy(file):
    """The copy that venvast/ keeps of a requirements file once all of it is installed."""
    return VENV / 'installed' / file.resolve().relative_to(ROOT).as_posix().replace('/', '-')


def is_installed(file):
    """Whether venvast/ holds what a requirements file says today."""
    copy = installed_copy(file)
    copy.parent.mkdir(parents=True, exist_ok=True)
    return copy.exists() and copy.read_text() == file.read_text()


def suitable_python():
    """A Python that the pinned packages exist for: the one that runs this, or another on PATH."""
    if f'python3.{sys.version_info.minor}' in PYTHONS:
        return sys.executable
    for name in PYTHONS:
        python = shutil.which(name)
        if python and subprocess.run([python, '-c', ''], capture_output=True).returncode == 0:
            return python
    sys.exit(f'Python 3.11 or 3.12 is needed, and python is {sys.version.split()[0]}: '
             f'install one of them or activate an environment that has it')


def run(command):
    """Run a command, its output on standard error; stop with a sentence where it fails."""
    if subprocess.run(command, stdout=sys.stderr).returncode:
        sys.exit(f'failed: {" ".join(map(str, command))}\nWhere this machine has no network, run the recipe '
                 f'with --stop_stage 0 on one that has and shares this folder, or activate an environment of your own.')


def main(requirements):
    """Print the path of the Python to use, or stop with what to do."""
    problem = what_is_missing(sys.executable, requirements)
    if problem is None:
        print(sys.executable)
    elif os.environ.get('VIRTUAL_ENV') or os.environ.get('CONDA_PREFIX'):
        files = ' '.join(f'-r {os.path.relpath(file)}' for file in requirements)
        sys.exit(f'the active environment lacks something ({problem}); fill it with:\n  pip install {files}\n'
                 f'or deactivate it, and {VENV} is made and used instead')
    else:
        print(make_venv(requirements))


if __name__ == '__main__':
    main(sys.argv[1:])
