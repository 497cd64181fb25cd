"""Find or make the Python that runs the recipes and the tests, and print its path.

    egs/environment.py REQUIREMENTS...

If the Python that runs this file has every package of the requirements files, it is used. Otherwise
venvast/ is made at the repository's root, once, and used, unless the user has activated another
environment. This needs only the standard library, of Python 3.8 or newer.
"""
from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / 'venvast'
LOCK = VENV.with_name(f'{VENV.name}.lock')  # held while it is made
# The versions of Python that the pinned packages are made for, the best first.
PYTHONS = ((3, 12), (3, 13), (3, 11), (3, 14))
OLDEST, NEWEST = min(PYTHONS), max(PYTHONS)
TORCH_FAMILY = ('torch', 'torchaudio', 'torchvision')  # builds of one release change together
# A line of a requirements file: name==version  # works from version
LINE = re.compile(r'([A-Za-z0-9_-]+)(?:\s*==\s*([^\s#]+))?(?:.*# works from (\S+))?')


class Requirement(NamedTuple):
    """A package that is needed, its pinned version, and the oldest one that works (or '')."""
    name: str
    pinned: str
    floor: str


class Problem(NamedTuple):
    """A package that is not installed, or whose version is too old."""
    requirement: Requirement
    version: str | None

    @property
    def is_missing(self) -> bool:
        return self.version is None


def read_requirements(files) -> list[Requirement]:
    """Return the Requirements of requirements files."""
    lines = '\n'.join(Path(file).read_text(encoding='utf-8') for file in files).split('\n')
    found = [LINE.match(line) for line in lines]
    return [Requirement(*(part or '' for part in match.groups())) for match in found if match]


def release(version: str) -> tuple[int, ...]:
    """Return a version as numbers that compare: '2.11.0+cu126' and '2.11.0a0' are (2, 11, 0)."""
    return tuple(int(number) for number in re.match(r'[\d.]*', version)[0].split('.') if number)


def dotted(numbers: tuple[int, ...]) -> str:
    """Return (3, 12) as '3.12'."""
    return '.'.join(map(str, numbers))


def find_version(name: str) -> str | None:
    """Return the version of an installed package of this Python, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def find_problems(requirements: list[Requirement], find=find_version) -> list[Problem]:
    """Return a Problem for every Requirement that this Python does not meet."""
    versions = [(one, find(one.name)) for one in requirements]
    return [Problem(one, version) for one, version in versions
            if version is None or release(version) < release(one.floor)]


def explain(problems: list[Problem]) -> str:
    """Return Problems as one sentence."""
    parts = [f'{one.name} {version} is too old, {one.floor} or newer is needed'
             for one, version in problems if version is not None]
    missing = [problem.requirement.name for problem in problems if problem.is_missing]
    if missing:
        parts.append(f'{", ".join(missing)} {"is" if len(missing) == 1 else "are"} not installed')
    return '; '.join(parts)


def pip_command(problems: list[Problem], requirements: list[Requirement],
                find=find_version) -> list[str]:
    """Return the words of the pip command that installs what is missing or too old.

    It names pinned versions. But if torch itself is fine, torchaudio and torchvision follow its
    release: otherwise pip would replace the user's build of torch.
    """
    names = {problem.requirement.name for problem in problems}
    versions = {one.name: one.pinned for one in requirements}
    if 'torch' in names:
        names |= set(TORCH_FAMILY) & set(versions)
    elif names & set(TORCH_FAMILY):
        torch = release(find('torch'))
        # torchaudio 2.11 is the last one, also for later releases of torch.
        versions['torchaudio'] = dotted(min(torch, release(versions['torchaudio'])))
        versions['torchvision'] = f'0.{torch[1] + 15}.*'  # 0.26 belongs to torch 2.11
    words = [f'{name}=={versions[name]}' if versions[name] else name
             for name in versions if name in names]
    if find_version('pip') is None and shutil.which('uv'):  # uv makes environments without pip
        return ['uv', 'pip', 'install', '--python', sys.executable, *words]
    return [sys.executable, '-m', 'pip', 'install', *words]


def make_venv(files) -> Path:
    """Make venvast/ if there is none, and return the path of its Python.

    Requirements files that are new or have changed since the last time are installed.
    """
    import fcntl  # not on Windows, where the notebook imports this file
    python, files = VENV / 'bin' / 'python', [Path(file) for file in files]
    if has_pip(python) and all(map(is_installed, files)):
        return python  # nothing is written: the clone may be somebody else's
    try:
        lock = open(LOCK, 'w', encoding='utf-8')
    except OSError as error:
        sys.exit(f'error: {VENV} cannot be made or completed: {VENV.parent} cannot be '
                 f'written ({error.strerror}). Clone the repository into a folder of yours, '
                 f'activate an environment that has the packages, or name its Python with '
                 f'AST_PYTHON')
    with lock:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)  # a second job that starts at the same time waits
        is_there = has_pip(python)
        to_install = [file for file in files if not (is_there and is_installed(file))]
        if to_install:
            if not is_there:
                print(f'setting up {VENV} (once; about 5 GB)', file=sys.stderr)
                run_venv(suitable_python())
                to_install = files
        for file in to_install:
            print(f'installing what {file} lists', file=sys.stderr)
            run_pip(python, file)
            installed_copy(file).parent.mkdir(exist_ok=True)
            shutil.copyfile(file, installed_copy(file))
    return python


def installed_copy(file: Path) -> Path:
    """Return where venvast/ keeps its copy of a requirements file, once that is installed."""
    return VENV / 'installed' / file.resolve().relative_to(ROOT).as_posix().replace('/', '-')


def is_installed(file: Path) -> bool:
    """Return whether venvast/ holds what a requirements file says today."""
    copy = installed_copy(file)
    return copy.exists() and copy.read_bytes() == file.read_bytes()


def has_pip(python) -> bool:
    """Return whether the Python of an environment starts and finds pip.

    It does not if making the environment was broken off, or if somebody removed that Python. It
    does not either if a newer version took its place, which looks for packages elsewhere.
    """
    return runs(python, '-I', '-c', 'import pip')


def runs(python, *words: str) -> bool:
    """Return whether a Python can be started, and ends without an error with these arguments."""
    try:
        return subprocess.run([python, *words], capture_output=True).returncode == 0
    except OSError:
        return False


def suitable_python(here=sys.version_info[:2], find=shutil.which) -> str:
    """Return a Python to make venvast/ with: this one, or another on PATH.

    If there is only a Python that is newer than PYTHONS, it is taken: the packages may exist for it
    by now.
    """
    if tuple(here) in PYTHONS:
        return sys.executable
    for version in PYTHONS:
        python = find(f'python{dotted(version)}')
        if python and runs(python, '--version'):
            return python
    if tuple(here) > NEWEST:
        return sys.executable
    sys.exit(f'error: Python {dotted(OLDEST)} or newer is needed, and there is only '
             f'{platform.python_version()}: install one of {dotted(OLDEST)} to {dotted(NEWEST)}')


def run_venv(base: str):
    """Make an empty venvast/ with a Python, or stop with a sentence that says why it cannot."""
    command = [base, '-m', 'venv', '--clear', str(VENV)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return
    shutil.rmtree(VENV, ignore_errors=True)
    said = (done.stdout + done.stderr).strip()
    if 'ensurepip' in said or 'No module named venv' in said:
        sys.exit(f'error: {base} cannot make environments: its module venv is not complete. On '
                 f'Debian and Ubuntu, "apt-get install python3-venv" installs the rest. Otherwise '
                 f'use a Python from python.org, conda or uv')
    print(said, file=sys.stderr)
    sys.exit(f'error: {base} could not make {VENV}')


def run_pip(python: Path, file: Path):
    """Install a requirements file into venvast/, or stop with a sentence that says what to do."""
    command = [python, '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', '-r', file]
    if subprocess.run(command, stdout=sys.stderr).returncode == 0:
        return
    version = subprocess.run([python, '--version'], capture_output=True, text=True).stdout.strip()
    sys.exit(f'error: pip could not install the packages, see above. If this machine has no '
             f'network, run the recipe with --stop_stage 0 on one that has a network and shares '
             f'this folder. If pip found no version of a package: {VENV} has {version}, and '
             f'packages exist for Python {dotted(OLDEST)} to {dotted(NEWEST)} on Linux, Windows '
             f'and Macs with Apple silicon. Install such a Python, remove {VENV} and start again')


def is_active() -> bool:
    """Return whether this is the Python of an environment that the user has activated.

    Two environments do not count: venvast/, which make_venv brings up to date, and the base
    environment of conda, since conda activates it in every shell. The variables may name an
    environment that was moved or removed, so they are compared with this Python's own folder.
    """
    if os.path.realpath(sys.prefix) == os.path.realpath(VENV):
        return False
    active = [os.environ.get('VIRTUAL_ENV')]
    if os.environ.get('CONDA_DEFAULT_ENV') != 'base':
        active.append(os.environ.get('CONDA_PREFIX'))
    return any(one and os.path.realpath(one) == os.path.realpath(sys.prefix) for one in active)


def main(files):
    """Print the path of the Python to use, or stop with what to do."""
    requirements = read_requirements(files)
    problems = find_problems(requirements)
    is_too_old = sys.version_info[:2] < OLDEST
    if not problems and not is_too_old:
        print(sys.executable)
    elif not is_active():
        if os.path.realpath(sys.prefix) == os.path.realpath(VENV):
            # Its packages are not those that it was made with: install them again.
            shutil.rmtree(VENV / 'installed', ignore_errors=True)
        print(make_venv(files))
    elif is_too_old:
        sys.exit(f'error: the active environment has Python {platform.python_version()}, and '
                 f'{dotted(OLDEST)} or newer is needed. Make one with a newer Python, or '
                 f'deactivate it: the recipe then makes and uses {VENV}')
    else:
        sys.exit(f'error: the active environment lacks something: {explain(problems)}. '
                 f'Install it:\n  {shlex.join(pip_command(problems, requirements))}\n'
                 f'or deactivate the environment: the recipe then makes and uses {VENV}')


if __name__ == '__main__':
    main(sys.argv[1:])
