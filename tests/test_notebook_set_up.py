"""The first cell of the notebook: it finds or clones the repository and checks versions."""
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from notebook_runner import NOTEBOOK

ADDRESS = 'https://github.com/someone/ast'


@pytest.fixture
def first_cell(root):
    """The code of the first cell."""
    notebook = nbformat.read(root / NOTEBOOK, as_version=4)
    return next(cell.source for cell in notebook.cells if cell.cell_type == 'code')


@pytest.fixture
def elsewhere(tmp_path):
    """A folder outside a clone: in somebody else's project, which has src/models, too."""
    (tmp_path / 'project' / 'src' / 'models').mkdir(parents=True)
    return tmp_path / 'project'


@pytest.fixture
def publish(root, commit, tmp_path):
    """Make a git repository of these files of ours, some with another text; returns its address."""
    def make(*files, **texts):
        folder = tmp_path / 'published'
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            name = Path(file).stem
            (folder / file).write_text(texts.get(name) or (root / file).read_text())
        return commit(folder)
    return make


OURS = ('egs/environment.py', 'src/models/__init__.py', 'requirements.txt')


@pytest.fixture
def run_cell(first_cell, elsewhere):
    """Run the cell elsewhere with REPOSITORY filled in; return the process."""
    def run(address):
        code = first_cell.replace("REPOSITORY = ''", f"REPOSITORY = '{address}'")
        assert code != first_cell
        return subprocess.run([sys.executable, '-c', code], cwd=elsewhere, capture_output=True,
                              text=True)
    return run


@pytest.fixture
def kernel(elsewhere):
    """A Jupyter kernel that was started elsewhere."""
    manager, client = pytest.importorskip('jupyter_client.manager').start_new_kernel(
        kernel_name='python3', cwd=str(elsewhere))
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def execute(kernel, code, *answers):
    """Run code in a kernel, with answers to its questions; return (questions, output, error)."""
    questions, said, waiting = [], [], list(answers)

    def answer(message):
        questions.append(message['content']['prompt'])
        kernel.input(waiting.pop(0))

    def hear(message):
        said.append(message['content'].get('text', ''))
    reply = kernel.execute_interactive(code, allow_stdin=True, timeout=120, stdin_hook=answer,
                                       output_hook=hear)
    return questions, ''.join(said), reply['content'].get('evalue', '')


def test_outside_a_clone_it_asks_once_for_an_address_until_it_is_right(
    kernel, first_cell, publish, elsewhere
):
    address = publish(*OURS)
    questions, _, error = execute(kernel, first_cell, f'{address}-not')
    assert questions == ['Address of the AST repository (https://...): ']
    assert error.startswith(f'the AST repository cannot be cloned from "{address}-not". Run this '
                            'cell again and give the right address. The reason:\nfatal: ')
    assert not (elsewhere / 'ast').exists()
    questions, said, error = execute(kernel, first_cell, f' {address} ')
    assert len(questions) == 1 and not error
    assert f'code: {elsewhere / "ast"} | torch' in said
    questions, said, error = execute(kernel, first_cell)
    assert questions == [] and not error and 'code:' in said


def test_the_address_in_the_form_is_cloned_without_a_question(run_cell, publish, elsewhere):
    done = run_cell(publish(*OURS))
    assert done.returncode == 0 and f'code: {elsewhere / "ast"}' in done.stdout, done.stderr


def test_another_repository_is_not_taken_for_this_one(run_cell, publish, elsewhere):
    done = run_cell(publish('LICENSE'))
    assert 'the AST repository cannot be cloned from' in done.stderr
    assert done.stderr.rstrip().endswith('it is another repository')
    assert not (elsewhere / 'ast').exists()


def test_too_old_a_python_is_named(run_cell, publish, root):
    environment = (root / 'egs' / 'environment.py').read_text()
    newer = environment.replace('OLDEST, NEWEST = ', 'OLDEST, NEWEST = (3, 99), (3, 99)  # ')
    done = run_cell(publish(*OURS, environment=newer))
    assert 'is too old: start Jupyter with Python 3.99 or newer' in done.stderr


def test_a_package_that_pip_cannot_get_is_named(run_cell, publish, monkeypatch):
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    done = run_cell(publish(*OURS, requirements='astprobe==1.0  # works from 0.9\n'))
    assert 'astprobe is not installed. Run this in a cell' in done.stderr
    assert done.stderr.rstrip().endswith('-m pip install astprobe==1.0')


@pytest.fixture
def fill_in(root, tmp_path):
    """Run set_address.py in a copy of what it changes; return the process and the copy's folder."""
    for file in (NOTEBOOK, 'colab/set_address.py', 'README.md', 'src/models/README.md'):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / file, tmp_path / file)

    def run(*words):
        return subprocess.run([sys.executable, tmp_path / 'colab' / 'set_address.py', *words],
                              capture_output=True, text=True), tmp_path
    return run


def test_one_command_writes_the_address_everywhere(fill_in):
    fill_in('https://github.com/before/old.git')
    done, folder = fill_in(ADDRESS)
    assert done.returncode == 0, done.stderr
    texts = [(folder / file).read_text() for file in ('README.md', 'src/models/README.md')]
    assert all(f'pip install "git+{ADDRESS}#subdirectory=src"' in text for text in texts)
    notebook = nbformat.read(folder / NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = next(cell.source for cell in notebook.cells if cell.cell_type == 'code')
    assert f"\nREPOSITORY = '{ADDRESS}'  # @param" in code
    link = f'https://colab.research.google.com/github/someone/ast/blob/main/{NOTEBOOK}'
    for text in (texts[0], notebook.cells[0].source):
        assert text.count('colab-badge.svg') == 1 and f'<a href="{link}">' in text
    assert not any('before/old' in text for text in (*texts, json.dumps(notebook)))


def test_without_an_address_on_github_there_is_no_badge(fill_in):
    fill_in(ADDRESS)
    done, folder = fill_in('https://example.org/ast')
    assert done.returncode == 0
    text = (folder / 'README.md').read_text()
    assert 'git+https://example.org/ast#subdirectory=src' in text and 'colab-badge' not in text


@pytest.mark.parametrize('words', [(), ('github.com/someone/ast',), ('ast', 'x')])
def test_what_is_no_address_changes_nothing(fill_in, root, words):
    done, folder = fill_in(*words)
    assert done.returncode == 1 and 'give the https address of this repository' in done.stderr
    assert (folder / 'README.md').read_bytes() == (root / 'README.md').read_bytes()
