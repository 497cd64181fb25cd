"""Folders that are made for what is to be written, and go again where it was not."""
import os

import pytest

from utilities.errors import DataError
from utilities.folders import files_below, output_folders, whole_folder


def test_a_folder_that_something_is_written_to_stays(tmp_path):
    with output_folders(tmp_path / 'a' / 'b', tmp_path / 'a' / 'c'):
        (tmp_path / 'a' / 'b' / 'file').touch()
    assert os.listdir(tmp_path) == ['a'] and os.listdir(tmp_path / 'a') == ['b']


def test_folders_in_which_nothing_came_to_be_are_removed_with_those_made_above_them(tmp_path):
    (tmp_path / 'mine').mkdir()
    folders = tmp_path / 'mine' / 'a' / 'b', tmp_path / 'mine'
    with pytest.raises(ZeroDivisionError), output_folders(*folders):
        assert folders[0].is_dir() and 1 / 0
    assert os.listdir(tmp_path) == ['mine'] and not os.listdir(tmp_path / 'mine')


@pytest.mark.parametrize('name', ['file', 'file/below', 'dangling', 'x' * 300])
def test_a_folder_that_cannot_be_made_is_named_and_no_other_stays(tmp_path, name):
    (tmp_path / 'file').touch()
    (tmp_path / 'dangling').symlink_to('nowhere')
    folders = output_folders(tmp_path / 'a/b', tmp_path / name)
    with pytest.raises(DataError, match=f'{name} cannot be made: ') as error, folders:
        pass
    assert '\n' not in str(error.value) and sorted(os.listdir(tmp_path)) == ['dangling', 'file']


@pytest.mark.parametrize('name', ['new', 'deep/new', 'empty', 'link'])
def test_a_whole_folder_takes_its_place_at_the_end(tmp_path, name):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'link').symlink_to('elsewhere')
    with whole_folder(tmp_path / name) as partial:
        (partial / 'file').touch()
        assert not (tmp_path / name / 'file').exists()
    assert os.listdir(tmp_path / name) == ['file'] and (tmp_path / 'link').is_symlink()
    assert not [path for path in tmp_path.rglob('.*')]


@pytest.mark.parametrize('name', ['new', 'deep/new', 'empty'])
def test_after_an_error_nothing_is_left_of_a_whole_folder(tmp_path, name):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / name) as partial:
        (partial / 'file').touch()
        assert 1 / 0
    assert os.listdir(tmp_path) == ['empty'] and not os.listdir(tmp_path / 'empty')


@pytest.mark.parametrize('name, word', [('full', 'is not empty'), ('full/file', 'is no folder'),
                                        ('dangling', 'is no folder')])
def test_a_whole_folder_takes_nothings_place(tmp_path, name, word):
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'file').write_text('mine')
    (tmp_path / 'dangling').symlink_to('nowhere')
    with pytest.raises(DataError, match=f'{name} {word}'), whole_folder(tmp_path / name):
        pass
    assert sorted(os.listdir(tmp_path)) == ['dangling', 'full']
    assert (tmp_path / 'full' / 'file').read_text() == 'mine'


def test_files_below_a_folder_are_found_once_through_links_and_hidden_ones_are_not(tmp_path):
    for name in ('a/b/1.wav', 'a/2.txt', 'a/.3.wav', 'a/.cache/4.wav', 'elsewhere/5.wav'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / 'a' / 'link').symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'a' / 'b' / 'loop').symlink_to(tmp_path / 'a')
    assert sorted(files_below(tmp_path / 'a')) == [str(tmp_path / 'a' / name) for name in
                                                   ('2.txt', 'b/1.wav', 'link/5.wav')]


def test_a_folder_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError, match='cannot read the folder .*nowhere: No such file'):
        list(files_below(tmp_path / 'nowhere'))
