"""Prepared data that somebody has damaged, and downloads that did not come."""
import os

import pytest

from models.downloads import Url
from utilities.errors import DataError
from utilities.preparation import (
    check_names,
    download_dataset,
    find_published,
    is_prepared,
    locked_folder,
    record_source,
)


@pytest.mark.parametrize(
    'text',
    ['', '{"data": [', '[1]', '{}', '{"data": 3}', '{"data": [3]}', '{"data": [{}]}',
     '{"data": [{"wav": "\\ud800"}]}', '\xff'],
)
def test_a_damaged_datafile_is_named_with_what_to_do(tmp_path, text):
    (tmp_path / 'train.json').write_text(text, encoding='latin-1')
    with pytest.raises(
        DataError, match='cannot read .*train.json: .*; delete it .*--prep_dir'
    ) as error:
        is_prepared([tmp_path / 'train.json'])
    assert '\n' not in str(error.value)


def test_a_datafile_of_a_fold_without_clips_is_prepared(tmp_path):
    (tmp_path / 'train.json').write_text('{"data": []}')
    assert is_prepared([tmp_path / 'train.json'])


@pytest.mark.parametrize('text', ['', '[1]', '{}', '{"source": ', '\xff'])
def test_a_damaged_mark_of_the_source_is_named_with_what_to_do(tmp_path, text):
    (tmp_path / 'source.json').write_text(text, encoding='latin-1')
    (tmp_path / 'audio').mkdir()
    with pytest.raises(DataError, match='--prep_dir, or remove .*audio and .*source.json') as error:
        record_source(tmp_path, 'here', tmp_path / 'audio')
    assert '\n' not in str(error.value)


def test_a_download_that_fails_leaves_no_folder(tmp_path, server):
    out = tmp_path / 'deep' / 'out'
    with pytest.raises(DataError, match='--data_dir'), locked_folder(out):
        record_source(out, 'a download')
        download_dataset(Url(f'{server.address}/none.zip', out / 'none.zip'), None)
    assert not os.listdir(tmp_path)


def test_a_name_that_is_not_utf8_is_named():
    check_names(['/a/b.wav', '/ünïcødé/日本.wav'])
    with pytest.raises(DataError, match=r"the name b'/a/\\xe9.wav' is not UTF-8: rename it"):
        check_names(['/a/b.wav', os.fsdecode(b'/a/\xe9.wav')])


def test_recordings_listed_by_a_relative_path_do_not_count_as_prepared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'a.wav').touch()
    (tmp_path / 'train.json').write_text('{"data": [{"wav": "./a.wav"}]}')
    assert not is_prepared([tmp_path / 'train.json'])
    (tmp_path / 'train.json').write_text(f'{{"data": [{{"wav": "{tmp_path / "a.wav"}"}}]}}')
    assert is_prepared([tmp_path / 'train.json'])


def test_a_folder_of_the_published_recipe_is_taken_unless_a_download_is_or_was_in_use(tmp_path):
    archive, folder = tmp_path / 'a.zip', tmp_path / 'a-master'

    def find():
        return find_published(tmp_path, 'a-master', ['list.txt'], [archive, tmp_path / 'audio'])
    assert find() is None
    folder.mkdir()
    assert find() is None  # broken off
    (folder / 'list.txt').touch()
    assert find() == folder
    for made in (archive, tmp_path / 'audio'):
        made.touch()
        assert find() is None
        made.unlink()
    record_source(tmp_path, str(archive))
    assert find() is None
    record_source(tmp_path, str(folder))
    assert find() == folder
