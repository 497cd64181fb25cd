"""The environment of the recipes: used where it is complete, named where it lacks something, made once otherwise."""
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


@pytest.fixture
def clone(root, tmp_path):
    """A repository that needs one package, which exists nowhere but in a wheel beside it."""
    wheel = tmp_path / 'astprobe-1.0-py3-none-any.whl'
    with zipfile.ZipFile(wheel, 'w') as archive:
        archive.writestr('astprobe.py', 'ANSWER = 42\n')
        archive.writestr('astprobe-1.0.dist-info/METADATA', 'Metadata-Version: 2.1\nName: astprobe\nVersion: 1.0\n')
        archive.writestr('astprobe-1.0.dist-info/WHEEL',
                         'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
        archive.writestr('astprobe-1.0.dist-info/RECORD', '')
    (tmp_path / 'clone' / 'egs').mkdir(parents=True)
    shutil.copy(root / 'egs' / 'environment.py', tmp_path / 'clone' / 'egs')
    (tmp_path / 'clone' / 'requirements.txt').write_text(f'# one package\nastprobe @ {wheel.as_uri()}\n')
    return tmp_path / 'clone'


def command(clone):
    return [sys.executable, clone / 'egs' / 'environment.py', clone / 'requirements.txt']


def test_a_python_that_has_everything_is_used(clone, run_shell):
    (clone / 'requirements.txt').write_text('pytest==0.1\nscikit-learn\n')
    done = run_shell(command(clone))
    assert done.stdout.strip() == sys.executable


def test_an_active_environment_that_lacks_something_stops_with_the_pip_line(clone, run_shell):
    done = run_shell(command(clone), cwd=clone, VIRTUAL_ENV='/somewhere')
    assert done.returncode and 'astprobe' in done.stderr and 'pip install -r requirements.txt' in done.stderr
    assert not (clone / 'venvast').exists()


def test_two_jobs_that_start_together_make_one_environment(clone, run_shell):
    words = [str(word) for word in command(clone)]
    environment = {'PATH': '/usr/bin:/bin', 'HOME': str(clone)}
    jobs = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
            for _ in range(2)]
    said = [job.communicate() for job in jobs]
    assert [Path(out.strip()) for out, _ in said] == [clone / 'venvast' / 'bin' / 'python'] * 2
    assert sum('setting up' in error for _, error in said) == 1
    answer = subprocess.check_output([said[0][0].strip(), '-c', 'import astprobe; print(astprobe.ANSWER)'], text=True)
    assert answer == '42\n'


def test_a_failed_installation_says_what_to_do_and_is_tried_again(clone, run_shell):
    requirements = (clone / 'requirements.txt').read_text()
    (clone / 'requirements.txt').write_text(f'astprobe @ {(clone / "missing.whl").as_uri()}\n')
    failed = run_shell(command(clone))
    assert failed.returncode and '--stop_stage 0' in failed.stderr
    (clone / 'requirements.txt').write_text(requirements)
    assert run_shell(command(clone)).stdout.strip() == str(clone / 'venvast' / 'bin' / 'python')
