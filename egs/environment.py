"""Find or make the Python that runs the recipes and the tests, and print its path.

    egs/environment.py REQUIREMENTS...

The Python that runs this file is taken if it has every package of the requirements files, in a
version that works. Otherwise, if no environment is active, venvast/ is made at the repository's
root and filled, once. Needs only the standard library, of Python 3.8 or newer.
"""
import contextlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / 'venvast'
# The versions of Python that the pinned packages are made for, the best first.
PYTHONS = ((3, 12), (3, 13), (3, 11), (3, 14))
OLDEST, NEWEST = min(PYTHONS), max(PYTHONS)
IMPORT_NAMES = {'scikit-learn': 'sklearn', 'pytest-xdist': 'xdist'}  # if it is not the package's own
TORCH_FAMILY = ('torch', 'torchaudio', 'torchvision')  # builds of one release: they change together
TRY_IMPORTS = '''
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except BaseException as error:
        print(name, str(error).strip().split("\\n")[-1] or type(error).__name__, sep="|")
'''
# A line of a requirements file: name==version  # works from version
LINE = re.compile(r'([A-Za-z0-9_-]+)(?:\s*==\s*([^\s#]+))?(?:.*# works from (\S+))?')


class Requirement(NamedTuple):
    """A package that is needed: its pinned version, and the oldest one that works. Both may be ''."""
    name: str
    pinned: str
    floor: str


class Problem(NamedTuple):
    """What is wrong with a package, as a part of a sentence."""
    requirement: Requirement
    text: str
    is_missing: bool = False


def read_requirements(files):
    """Return the Requirements of requirements files."""
    lines = '\n'.join(Path(file).read_text(encoding='utf-8') for file in files).split('\n')
    found = [LINE.match(line) for line in lines]
    return [Requirement(*(part or '' for part in match.groups())) for match in found if match]


def release(version):
    """Return a version as numbers that compare: '2.11.0+cu126' and '2.11.0a0' are (2, 11, 0)."""
    return tuple(int(number) for number in re.match(r'[\d.]*', version)[0].split('.') if number)


def find_version(name):
    """Return the version of an installed package of this Python, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def find_problems(requirements, find=find_version):
    """Return a Problem for every Requirement that is not installed or too old in this Python."""
    problems = []
    for requirement in requirements:
        there = find(requirement.name)
        if there is None:
            problems.append(Problem(requirement, f'{requirement.name} is not installed', True))
        elif release(there) < release(requirement.floor):
            problems.append(Problem(requirement, f'{requirement.name} {there} is too old, '
                                                 f'{requirement.floor} or newer is needed'))
    return problems


def find_broken(requirements):
    """Return a Problem for every Requirement that this Python cannot import."""
    by_import = {IMPORT_NAMES.get(one.name, one.name): one for one in requirements}
    done = subprocess.run([sys.executable, '-c', TRY_IMPORTS, *by_import], capture_output=True,
                          text=True)
    failed = [line.split('|', 1) for line in done.stdout.split('\n') if '|' in line]
    if done.returncode and not failed:  # it crashed
        failed = [(next(iter(by_import)), (done.stderr.strip() or 'it crashed').split('\n')[-1])]
    return [Problem(by_import[name], f'{by_import[name].name} cannot be imported ({reason})')
            for name, reason in failed if name in by_import]


def pip_command(problems, requirements, find=find_version):
    """Return the words of the pip command that mends Problems: pinned versions, one release of torch.

    If torch itself is fine, torchaudio and torchvision follow the release that is there.
    """
    names = {problem.requirement.name for problem in problems}
    versions = {one.name: one.pinned for one in requirements}
    if 'torch' in names:
        names |= set(TORCH_FAMILY) & set(versions)
    elif names & set(TORCH_FAMILY):
        there = release(find('torch'))
        # torchaudio 2.11 is the last one, also for later releases of torch.
        versions['torchaudio'] = named(min(there, release(versions['torchaudio'])))
        versions['torchvision'] = f'0.{there[1] + 15}.*'  # 0.26 belongs to torch 2.11
    words = [f'{name}=={versions[name]}' if versions[name] else name
             for name in versions if name in names]
    return [sys.executable, '-m', 'pip', 'install', *words]


def explain(problems):
    """Return Problems as one sentence."""
    missing = [problem.requirement.name for problem in problems if problem.is_missing]
    parts = [problem.text for problem in problems if not problem.is_missing]
    if missing:
        parts.append(f'{", ".join(missing)} {"is" if len(missing) == 1 else "are"} not installed')
    return '; '.join(parts)


@contextlib.contextmanager
def only_one(path):
    """Hold an exclusive lock on a file: a second job that starts at the same time waits."""
    with open(path, 'w', encoding='utf-8') as file:
        try:
            import fcntl
            fcntl.flock(file, fcntl.LOCK_EX)
        except (ImportError, OSError) as error:  # Windows, or a file system without locks
            print(f'{path} cannot be locked ({error}): do not start a second recipe before this one '
                  f'has its environment', file=sys.stderr)
        yield


def make_venv(files):
    """Make venvast/ and install the requirements files that it does not have as they are today.

    Returns the path of its Python.
    """
    python = VENV / 'bin' / 'python'
    with only_one(ROOT / 'venvast.lock'):
        if VENV.exists() and not runs(python):  # its Python was removed, or it was broken off
            shutil.rmtree(VENV)
        to_do = [file for file in map(Path, files) if not is_installed(file)]
        if to_do:
            base = suitable_python()
            print(f'setting up {VENV} (once; about 5 GB)', file=sys.stderr)
            if not python.exists():
                run_venv(base)
        for file in to_do:
            run_pip(python, file)
            installed_copy(file).parent.mkdir(exist_ok=True)
            installed_copy(file).write_text(file.read_text(encoding='utf-8'), encoding='utf-8')
    return python


def installed_copy(file):
    """Return the path of the copy that venvast/ keeps of a requirements file that it has."""
    return VENV / 'installed' / file.resolve().relative_to(ROOT).as_posix().replace('/', '-')


def is_installed(file):
    """Tell whether venvast/ holds what a requirements file says today."""
    copy = installed_copy(file)
    return copy.exists() and copy.read_text(encoding='utf-8') == file.read_text(encoding='utf-8')


def runs(python):
    """Tell whether a Python can be started."""
    try:
        return subprocess.run([str(python), '-c', ''], capture_output=True).returncode == 0
    except OSError:
        return False


def suitable_python(here=sys.version_info[:2], find=shutil.which):
    """Return a Python to make venvast/ with: this one, or another on PATH.

    One that is newer than all for which the packages are known to exist is taken if there is no
    other: pip says whether they exist by now.
    """
    if tuple(here) in PYTHONS:
        return sys.executable
    for major, minor in PYTHONS:
        python = find(f'python{major}.{minor}')
        if python and runs(python):
            return python
    if tuple(here) > NEWEST:
        return sys.executable
    sys.exit(f'error: Python {named(OLDEST)} or newer is needed, and there is only '
             f'{platform.python_version()}: install one of {named(OLDEST)} to {named(NEWEST)}')


def named(version):
    """Return (3, 12) as '3.12'."""
    return '.'.join(map(str, version))


def run_venv(base):
    """Make an empty venvast/ with a Python; stop with a sentence if that fails."""
    done = subprocess.run([base, '-m', 'venv', str(VENV)], capture_output=True, text=True)
    if done.returncode == 0:
        return
    shutil.rmtree(VENV, ignore_errors=True)
    said = (done.stdout + done.stderr).strip()
    if 'ensurepip' in said or 'No module named venv' in said:
        sys.exit(f'error: {base} cannot make environments: its module venv is not complete. On Debian '
                 f'and Ubuntu, "apt-get install python3-venv" brings it (if that is not enough, '
                 f'python3.N-venv of your version); elsewhere, take a Python from python.org, conda or '
                 f'uv')
    print(said, file=sys.stderr)
    sys.exit(f'error: {VENV} could not be made with {base}')


def run_pip(python, file):
    """Install a requirements file into venvast/; stop with a sentence if pip refuses."""
    command = [str(python), '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check',
               '-r', str(file)]
    said = []
    with subprocess.Popen(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True) as pip:
        for line in pip.stderr:
            print(line, end='', file=sys.stderr)
            said.append(line)
    if pip.returncode:
        sys.exit(f'error: {why_pip_failed("".join(said), python)}')


def why_pip_failed(said, python):
    """Return what pip's own words mean and what to do, as a sentence."""
    refused = re.search(r'No matching distribution found for (\S+)', said)
    if refused and not re.search('Retrying|[Cc]onnection|[Pp]roxy', said):  # else pip could not ask
        version = subprocess.run([str(python), '-c', 'import platform as p; print(p.python_version())'],
                                 capture_output=True, text=True).stdout.strip()
        return (f'there is no {refused[1]} for Python {version} on {platform.system()} '
                f'{platform.machine()}. The packages exist for Python {named(OLDEST)} to '
                f'{named(NEWEST)} on Linux, Windows and Macs with Apple silicon: install such a Python '
                f'and start again, or activate an environment of your own')
    if 'No space left' in said:
        return (f'the disk is full: {VENV} takes about 5 GB. PyTorch for CPUs alone takes a fifth of '
                f'it, and README.md says how to get that')
    return ('pip could not install the packages. If this machine has no network, run the recipe with '
            '--stop_stage 0 on one that has and shares this folder, or activate an environment of your '
            'own')


def is_active():
    """Tell whether this is the Python of an environment that the user has activated.

    The base environment of conda does not count, since conda activates it in every shell. And the
    variables may name an environment that was moved or removed.
    """
    named_ones = [os.environ.get('VIRTUAL_ENV')]
    if os.environ.get('CONDA_DEFAULT_ENV') != 'base':
        named_ones.append(os.environ.get('CONDA_PREFIX'))
    return any(one and os.path.realpath(one) == os.path.realpath(sys.prefix) for one in named_ones)


def main(files):
    """Print the path of the Python to use, or stop with what to do."""
    requirements = read_requirements(files)
    is_old = sys.version_info[:2] < OLDEST
    problems = find_problems(requirements) or ([] if is_old else find_broken(requirements))
    if not problems and not is_old:
        print(sys.executable)
    elif not is_active():
        print(make_venv(files))
    elif is_old:
        sys.exit(f'error: the active environment has Python {platform.python_version()}, and '
                 f'{named(OLDEST)} or newer is needed: make one with a newer Python, or deactivate '
                 f'it, and {VENV} is made and used')
    else:
        sys.exit(f'error: the active environment does not have what is needed: {explain(problems)}. '
                 f'Install it:\n  {" ".join(pip_command(problems, requirements))}\n'
                 f'or deactivate the environment, and {VENV} is made and used')


if __name__ == '__main__':
    main(sys.argv[1:])
