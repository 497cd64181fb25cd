"""The environment of the recipes: used if it is complete, named if not, made once otherwise."""
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import environment
from environment import Problem, Requirement, explain, find_problems, pip_command, read_requirements

PINNED = {'torch': '2.11.0', 'torchaudio': '2.11.0', 'torchvision': '0.26.0', 'timm': '1.0.31'}


def make_wheel(folder, version, answer):
    """Write a wheel of the package astprobe, which exists nowhere else; returns its path."""
    wheel = folder / f'astprobe-{version}-py3-none-any.whl'
    info = f'astprobe-{version}.dist-info'
    with zipfile.ZipFile(wheel, 'w') as archive:
        archive.writestr('astprobe.py', f'ANSWER = {answer}\n')
        archive.writestr(f'{info}/METADATA',
                         f'Metadata-Version: 2.1\nName: astprobe\nVersion: {version}\n')
        archive.writestr(f'{info}/WHEEL',
                         'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
        archive.writestr(f'{info}/RECORD', '')
    return wheel


@pytest.fixture
def make_index(tmp_path):
    """Make a package index that holds astprobe; returns its address."""
    def make(name, version, answer):
        folder = tmp_path / name / 'astprobe'
        folder.mkdir(parents=True)
        wheel = make_wheel(folder, version, answer)
        (folder / 'index.html').write_text(f'<a href="{wheel.name}">{wheel.name}</a>')
        return folder.parent.as_uri()
    return make


@pytest.fixture
def clone(root, tmp_path):
    """A repository that needs one package, astprobe 1.0."""
    (tmp_path / 'clone' / 'egs').mkdir(parents=True)
    shutil.copy(root / 'egs' / 'environment.py', tmp_path / 'clone' / 'egs')
    (tmp_path / 'clone' / 'requirements.txt').write_text('# one\nastprobe==1.0  # works from 0.9\n')
    return tmp_path / 'clone'


@pytest.fixture(scope='module')
def empty_venv(tmp_path_factory):
    """An environment with pip alone, which takes seconds to make."""
    folder = tmp_path_factory.mktemp('empty') / 'venv'
    subprocess.run([sys.executable, '-m', 'venv', folder], check=True)
    return folder


@pytest.fixture
def begun(clone, empty_venv):
    """The clone, in which somebody began to make venvast/ and has not installed anything yet."""
    shutil.copytree(empty_venv, clone / 'venvast', symlinks=True, copy_function=os.link)
    return clone


@pytest.fixture
def settings(make_index, clone):
    """The environment of a user whose pip knows the index with astprobe 1.0."""
    index = make_index('index', '1.0', 1)
    return {'PATH': '/usr/bin:/bin', 'HOME': str(clone), 'PIP_INDEX_URL': index}


def command(clone):
    return [sys.executable, clone / 'egs' / 'environment.py', clone / 'requirements.txt']


def answer_of(python):
    words = [python, '-c', 'import astprobe; print(astprobe.ANSWER)']
    return subprocess.check_output(words, text=True).strip()


def test_a_python_that_has_everything_is_used(clone, run_shell):
    (clone / 'requirements.txt').write_text('pytest==0.1\nscikit-learn  # works from 1.0\n')
    done = run_shell(command(clone))
    assert done.stdout.strip() == sys.executable


def test_an_active_environment_that_lacks_something_stops_with_the_pip_line(clone, run_shell):
    done = run_shell(command(clone), cwd=clone, VIRTUAL_ENV=sys.prefix)
    assert done.returncode == 1 and 'astprobe is not installed' in done.stderr
    assert f'{sys.executable} -m pip install astprobe==1.0\n' in done.stderr
    assert not (clone / 'venvast').exists()


def test_an_active_environment_with_a_package_that_is_too_old_names_both_versions(clone, run_shell):
    (clone / 'requirements.txt').write_text('pytest==999.0  # works from 998.1\n')
    done = run_shell(command(clone), cwd=clone, CONDA_PREFIX=sys.prefix, CONDA_DEFAULT_ENV='mine')
    assert done.returncode == 1
    assert f'pytest {pytest.__version__} is too old, 998.1 or newer is needed' in done.stderr
    assert '-m pip install pytest==999.0\n' in done.stderr and 'Traceback' not in done.stderr


def test_the_base_environment_of_conda_is_nobodys_choice(begun, run_shell, settings):
    done = run_shell(command(begun), CONDA_PREFIX=sys.prefix, CONDA_DEFAULT_ENV='base', **settings)
    assert done.stdout.strip() == str(begun / 'venvast' / 'bin' / 'python'), done.stderr


def test_venvast_is_completed_if_it_is_the_active_environment(begun, run_shell, settings):
    python = begun / 'venvast' / 'bin' / 'python'
    done = run_shell([python, *command(begun)[1:]], VIRTUAL_ENV=str(begun / 'venvast'), **settings)
    assert done.stdout.strip() == str(python), done.stderr
    assert answer_of(python) == '1'
    subprocess.run([python, '-m', 'pip', 'uninstall', '-qy', 'astprobe'], check=True)
    run_shell([python, *command(begun)[1:]], VIRTUAL_ENV=str(begun / 'venvast'), **settings)
    assert answer_of(python) == '1'


def test_two_jobs_that_start_together_make_one_environment(clone, settings):
    words = [str(word) for word in command(clone)]
    jobs = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                             env=settings) for _ in range(2)]
    said = [job.communicate() for job in jobs]
    python = clone / 'venvast' / 'bin' / 'python'
    assert [Path(out.strip()) for out, _ in said] == [python] * 2, said
    assert sum('setting up' in error for _, error in said) == 1
    assert answer_of(said[0][0].strip()) == '1'


def test_pips_own_variables_choose_another_build(begun, run_shell, settings, make_index):
    cpu = make_index('cpu', '1.0+cpu', 2)  # as PyTorch's index of builds for CPUs: a local version
    done = run_shell(command(begun), PIP_EXTRA_INDEX_URL=cpu, **settings)
    assert answer_of(done.stdout.strip()) == '2', done.stderr


def test_an_environment_that_is_elsewhere_by_now_is_not_active(begun, run_shell, settings):
    done = run_shell(command(begun), VIRTUAL_ENV='/moved/venvast', **settings)
    assert done.stdout.strip() == str(begun / 'venvast' / 'bin' / 'python'), done.stderr


def test_a_failed_installation_says_what_to_do_and_is_tried_again(begun, run_shell, settings):
    nobody = {'PIP_INDEX_URL': 'http://127.0.0.1:9/simple', 'PIP_RETRIES': '1'}
    failed = run_shell(command(begun), **{**settings, **nobody})
    assert failed.returncode == 1 and '--stop_stage 0' in failed.stderr
    done = run_shell(command(begun), **settings)
    assert done.stdout.strip() == str(begun / 'venvast' / 'bin' / 'python')


def test_a_package_that_is_made_for_other_pythons_alone_is_named(begun, run_shell, settings,
                                                                 tmp_path):
    (wheel,) = (tmp_path / 'index' / 'astprobe').glob('*.whl')
    name = 'astprobe-1.0-cp36-cp36m-linux_x86_64.whl'
    wheel.rename(wheel.with_name(name))
    (wheel.parent / 'index.html').write_text(f'<a href="{name}">astprobe</a>')
    failed = run_shell(command(begun), **settings)
    assert failed.returncode == 1
    assert 'No matching distribution found for astprobe==1.0' in failed.stderr
    assert f'has Python {platform.python_version()}, and packages exist for' in failed.stderr


def test_a_package_that_does_not_exist_for_this_python_is_named_with_it(begun, run_shell, settings):
    (begun / 'requirements.txt').write_text('astprobe==3.0\n')
    failed = run_shell(command(begun), **settings)
    assert failed.returncode == 1 and 'Traceback' not in failed.stderr
    assert 'No matching distribution found for astprobe==3.0' in failed.stderr
    assert f'has Python {platform.python_version()}, and packages exist for' in failed.stderr
    assert 'Python 3.11 to 3.14' in failed.stderr


def test_an_environment_whose_python_is_gone_is_made_again(begun, run_shell, settings):
    python = Path(run_shell(command(begun), **settings).stdout.strip())
    python.unlink()
    python.symlink_to('/nowhere/python3')
    assert answer_of(run_shell(command(begun), **settings).stdout.strip()) == '1'


def test_a_clone_that_cannot_be_written_is_one_sentence(clone, run_shell, settings):
    (clone / 'venvast.lock').mkdir()  # root could write a read-only clone
    done = run_shell(command(clone), **settings)
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert 'cannot be written' in done.stderr and 'name its Python with AST_PYTHON' in done.stderr


def test_an_environment_whose_python_became_another_version_is_made_again(begun, run_shell,
                                                                          settings):
    run_shell(command(begun), **settings)
    [folder] = (begun / 'venvast' / 'lib').glob('python*')
    folder.rename(folder.with_name('python3.10'))  # as if its Python had been that
    assert answer_of(run_shell(command(begun), **settings).stdout.strip()) == '1'


def test_an_environment_that_has_no_pip_yet_is_made_again(begun, run_shell, settings):
    for folder in (begun / 'venvast' / 'lib').glob('python*/site-packages/pip*'):
        shutil.rmtree(folder)
    assert answer_of(run_shell(command(begun), **settings).stdout.strip()) == '1'


def test_a_python_that_cannot_make_environments_is_told_from_a_network_that_fails(
        clone, run_shell, settings, tmp_path):
    (tmp_path / 'ensurepip.py').write_text('raise ImportError("No module named ensurepip")\n')
    # As Debian's.
    (tmp_path / 'venv.py').write_text('raise SystemExit("ensurepip is not available")\n')
    done = run_shell(command(clone), PYTHONPATH=str(tmp_path), **settings)
    assert done.returncode == 1 and 'apt-get install python3-venv' in done.stderr
    assert not (clone / 'venvast').exists()


@pytest.mark.parametrize('here, on_path, chosen', [
    ((3, 11), [], 'this'), ((3, 12), [], 'this'), ((3, 13), [], 'this'), ((3, 14), [], 'this'),
    ((3, 9), ['python3.13'], 'python3.13'), ((3, 9), ['python3.11', 'python3.12'], 'python3.12'),
    ((3, 15), ['python3.14'], 'python3.14'), ((3, 15), [], 'this'), ((3, 9), ['python3.10'], None)])
def test_the_python_of_the_environment_is_one_that_the_packages_exist_for(
        monkeypatch, here, on_path, chosen):
    monkeypatch.setattr(environment, 'runs', lambda *words: True)
    find = {name: name for name in on_path}.get
    if chosen is None:
        reason = 'Python 3.11 or newer is needed.* install one of 3.11 to 3.14'
        with pytest.raises(SystemExit, match=reason):
            environment.suitable_python(here, find)
    else:
        expected = sys.executable if chosen == 'this' else chosen
        assert environment.suitable_python(here, find) == expected


@pytest.mark.parametrize('active, reason', [
    (True, 'the active environment has Python .*, and 3.99 or newer is needed. Make one with a'),
    (False, 'Python 3.99 or newer is needed, and there is only')])
def test_a_python_that_is_too_old_is_named_before_any_package(clone, monkeypatch, active, reason):
    monkeypatch.setattr(environment, 'OLDEST', (3, 99))
    monkeypatch.setattr(environment, 'PYTHONS', ((3, 99),))
    monkeypatch.setattr(environment, 'NEWEST', (3, 99))
    monkeypatch.setattr(environment, 'VENV', clone / 'venvast')
    monkeypatch.setattr(environment, 'LOCK', clone / 'venvast.lock')
    monkeypatch.setattr(environment, 'ROOT', clone)
    for name in ('VIRTUAL_ENV', 'CONDA_PREFIX'):
        monkeypatch.delenv(name, raising=False)
    if active:
        monkeypatch.setenv('VIRTUAL_ENV', sys.prefix)
    with pytest.raises(SystemExit, match=reason):
        environment.main([clone / 'requirements.txt'])


@pytest.mark.parametrize('there, floor, fits', [
    ('2.11.0+cu126', '2.11', True), ('2.6.0a0+df5bbc09d1.nv24.12', '2.6', True),
    ('1.0.9', '1.0.24', False), ('1.0.24', '1.0.24', True), ('0.9.16', '1.0', False),
    ('10.0', '9.9', True), ('2.3.1', '2.4', False), ('anything', '', True), (None, '', False)])
def test_versions_are_compared_as_numbers(there, floor, fits):
    problems = find_problems([Requirement('timm', '', floor)], find=lambda name: there)
    assert (not problems) == fits


@pytest.mark.parametrize('there, expected', [
    ({'torch': '2.3.0'}, ['torch==2.11.0', 'torchaudio==2.11.0', 'torchvision==0.26.0']),
    ({'torchaudio': None}, ['torchaudio==2.8.0']),
    ({'torch': '2.13.1', 'torchaudio': None, 'torchvision': None},
     ['torchaudio==2.11.0', 'torchvision==0.28.*']),
    ({'torchvision': None, 'timm': '0.9.16'}, ['torchvision==0.23.*', 'timm==1.0.31'])])
def test_builds_of_torch_are_installed_of_one_release(there, expected):
    requirements = [Requirement(name, pinned, '0.10') for name, pinned in PINNED.items()]
    requirements[0] = Requirement('torch', '2.11.0', '2.4')
    requirements[-1] = Requirement('timm', '1.0.31', '1.0.24')
    found = {'torch': '2.8.0+cu128', 'torchaudio': '2.8.0', 'torchvision': '0.23.0',
             'timm': '1.0.24', **there}
    problems = find_problems(requirements, found.get)
    assert pip_command(problems, requirements, found.get)[4:] == expected


def test_an_environment_of_uv_has_no_pip(monkeypatch):
    monkeypatch.setattr('environment.find_version', lambda name: None)
    monkeypatch.setattr('environment.shutil.which', lambda name: name)
    needed = Requirement('timm', '1.0', '')
    assert pip_command([Problem(needed, None)], [needed]) == [
        'uv', 'pip', 'install', '--python', sys.executable, 'timm==1.0']


def test_many_missing_packages_are_one_short_sentence():
    problems = [Problem(Requirement(name, '', ''), None) for name in ('a', 'b')]
    old = Problem(Requirement('c', '', '2'), '1')
    expected = 'c 1 is too old, 2 or newer is needed; a, b are not installed'
    assert explain([*problems, old]) == expected


def test_every_package_of_the_requirements_has_a_floor_that_its_pin_meets(root):
    requirements = read_requirements([root / 'requirements.txt'])
    assert len(requirements) > 10 and all(one.floor for one in requirements)
    assert not find_problems(requirements, {one.name: one.pinned for one in requirements}.get)
    trio = {one.name: one.pinned for one in requirements}
    assert trio['torch'] == trio['torchaudio']
    assert trio['torchvision'] == f'0.{environment.release(trio["torch"])[1] + 15}.0'
