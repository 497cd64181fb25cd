"""Files are whole or not there, whoever writes them and however often."""
import os

import pytest

from models import save_checkpoint
from models.atomic import atomic_write, remove_leftovers


def test_a_finished_write_takes_the_place_of_the_old_file(tmp_path):
    (tmp_path / 'a.txt').write_text('old')
    with atomic_write(tmp_path / 'a.txt') as partial:
        partial.write_text('new')
        assert (tmp_path / 'a.txt').read_text() == 'old'
    assert (tmp_path / 'a.txt').read_text() == 'new'
    assert os.listdir(tmp_path) == ['a.txt']


def test_who_reads_the_old_file_meanwhile_reads_it_to_its_end(tmp_path):
    (tmp_path / 'a.txt').write_text('old')
    with open(tmp_path / 'a.txt') as reader:
        with atomic_write(tmp_path / 'a.txt') as partial:
            partial.write_text('new')
        assert reader.read() == 'old'


@pytest.mark.parametrize('old', ['old', None])
def test_an_error_while_writing_leaves_what_was_there_and_nothing_else(old, tmp_path):
    if old:
        (tmp_path / 'a.txt').write_text(old)
    with pytest.raises(ZeroDivisionError):
        with atomic_write(tmp_path / 'a.txt') as partial:
            partial.write_text('half of the ne')
            raise ZeroDivisionError
    left = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert left == ({'a.txt': old} if old else {})


WRITE_OFTEN = """
import sys
from pathlib import Path
from atomic import atomic_write
for i in range(200):
    with atomic_write(sys.argv[1]) as partial:
        partial.write_text(sys.argv[2] * 10_000)
    text = Path(sys.argv[1]).read_text()
    assert len(set(text)) == 1 and len(text) == 10_000, (len(text), set(text))
"""


def test_processes_that_write_one_path_at_once_always_leave_a_whole_file(
    tmp_path, root, start_python
):
    processes = [start_python('-c', WRITE_OFTEN, tmp_path / 'a.txt', letter, cwd=root,
                              PYTHONPATH=root / 'src' / 'models') for letter in 'abcd']
    assert [process.communicate(timeout=60)[1] for process in processes] == [''] * 4
    assert os.listdir(tmp_path) == ['a.txt']


def test_threads_that_write_one_path_at_once_do_not_meet(tmp_path):
    with atomic_write(tmp_path / 'a.txt') as first, atomic_write(tmp_path / 'a.txt') as second:
        first.write_text('first')
        second.write_text('second')
    assert (tmp_path / 'a.txt').read_text() == 'first' and os.listdir(tmp_path) == ['a.txt']


def test_the_same_weights_are_the_same_bytes_however_often_they_are_written(tmp_path, make_tiny):
    model, contents = make_tiny(), set()
    for _ in range(2):
        save_checkpoint(model, tmp_path / 'model.pth')
        contents.add((tmp_path / 'model.pth').read_bytes())
    assert len(contents) == 1


def test_what_a_killed_process_was_writing_is_removed_by_name(tmp_path):
    names = ['.a.txt.part-012345', '.b.txt.part-012345', 'a.txt', '.a.txt.partially']
    for name in names:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path, 'a.txt')
    assert sorted(os.listdir(tmp_path)) == sorted(names[1:])
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(names[2:])
