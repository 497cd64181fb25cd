"""AudioSet's segment lists: what is read, and what is said about lines that cannot be."""
import logging

import pytest

from utilities.errors import DataError
from utilities.segments import Segment, read_segment_lists, read_segments

MIDS = {'/m/0': 0, '/m/1': 1}


@pytest.mark.parametrize('text', [
    '# Segments csv created Sun Mar  5\n# num\n# YTID, start_seconds\n'
    '--PJHxphWEs, 30.000, 40.000, "/m/0,/m/1"\n',
    '--PJHxphWEs,30,40,"/m/0,/m/1"', '--PJHxphWEs, 30.0, 40.0, /m/0, /m/1\r\n',
    '"--PJHxphWEs", "30", "40", "/m/0, /m/1" \n',
    '\n\n--PJHxphWEs, 30, 40, "/m/0,/m/1"\n# the end\n\n',
    '\ufeff# first\n--PJHxphWEs, 30, 40, "/m/0,/m/1,/m/0"\n'],
    ids=['official', 'no blanks', 'no quotes', 'all quotes', 'blank lines', 'BOM'])
def test_every_spelling_of_a_list_is_read(write, text):
    expected = Segment('--PJHxphWEs', 30.0, 40.0, ('/m/0', '/m/1'))
    assert read_segments(write(text), MIDS) == [expected]


@pytest.mark.parametrize('line, reason', [
    ('aaaaaaaaaaa, 0, 10', 'four columns'),
    ('aaaaaaaaaa, 0, 10, "/m/0"', '11 letters.*aaaaaaaaaa'),
    ('aaaaaaaaaa., 0, 10, "/m/0"', '11 letters'),
    ('aaaaaaaaaaa, zero, 10, "/m/0"', "'zero' and '10'"),
    ('aaaaaaaaaaa, 10, 10, "/m/0"', 'later end'), ('aaaaaaaaaaa, nan, 10, "/m/0"', 'later end'),
    ('aaaaaaaaaaa, -5, 10, "/m/0"', 'later end'),
    ('aaaaaaaaaaa, 0, 10, "/m/9"', "'/m/9' is not in the label file"),
    ('aaaaaaaaaaa;0,5;10;"/m/0"', "'0,5' and '10'"), ('aaaaaaaaaaa, 0, 10, ","', 'no labels'),
    ('aaaaaaaaaaa, 0, 10, "/m/0', 'expected YTID')])
def test_a_bad_line_is_named_with_the_reason(write, line, reason):
    path = write(f'# comment\n-----------, 0, 10, "/m/0"\n{line}\nbbbbbbbbbbb, 0, 10, "/m/1"\n')
    with pytest.raises(DataError, match=f'{path}, line 3: .*{reason}'):
        read_segments(path, MIDS)


@pytest.mark.parametrize('content, reason', [
    ('', 'lists no segments'), ('# only\n# comments\n', 'lists no segments'),
    (b'\xff\xfe\x00', 'cannot read')])
def test_a_list_without_segments_is_refused(write, content, reason):
    with pytest.raises(DataError, match=reason):
        read_segments(write(content), MIDS)


@pytest.mark.parametrize('text', [
    '--PJHxphWEs;30.000;40.000;"/m/0,/m/1"\n', '"--PJHxphWEs"\t30\t40\t/m/0,/m/1\n',
    '"# a, b",,\n--PJHxphWEs;30;40;/m/0;/m/1\n'])
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-16'])
def test_lists_that_a_spreadsheet_has_saved_are_read(write, text, encoding):
    assert read_segments(write(text.encode(encoding)), MIDS) == [
        Segment('--PJHxphWEs', 30.0, 40.0, ('/m/0', '/m/1'))]


@pytest.mark.parametrize('cell', ['""', ''])
def test_an_empty_cell_of_labels_is_a_negative(write, cell):
    segments = read_segments(write(f'aaaaaaaaaaa,0,10,{cell}\n'), MIDS)
    assert segments == [Segment('aaaaaaaaaaa', 0.0, 10.0, ())]


def test_a_list_in_code_page_1252_is_refused_with_a_remedy(write):
    with pytest.raises(DataError,
                       match='line 1, character 4 is not UTF-8.*iconv -f WINDOWS-1252 -t UTF-8'):
        read_segments(write('# Möwen\naaaaaaaaaaa, 0, 10, "/m/0"\n'.encode('cp1252')), MIDS)


def test_a_missing_list_is_named(tmp_path):
    with pytest.raises(DataError, match='nowhere.*No such file'):
        read_segments(tmp_path / 'nowhere', MIDS)


def test_a_repeated_segment_is_kept_once_with_a_warning(write, caplog):
    with caplog.at_level(logging.WARNING):
        segments = read_segments(write('aaaaaaaaaaa, 0, 10, "/m/0"\naaaaaaaaaaa, 20, 30, "/m/0"\n'
                                       '# comment\naaaaaaaaaaa, 0.000, 10, "/m/1"\n'), MIDS)
    found = [(segment.start_seconds, segment.labels) for segment in segments]
    assert found == [(0, ('/m/0',)), (20, ('/m/0',))]
    assert 'line 4' in caplog.text and 'line 1 already' in caplog.text


def test_several_lists_are_read_as_one(write, caplog):
    lists = [write('aaaaaaaaaaa, 0, 10, "/m/0"\n', 'a.csv'),
             write('bbbbbbbbbbb, 0, 10, "/m/0"\naaaaaaaaaaa, 0, 10, "/m/1"\n', 'b.csv')]
    segments = read_segment_lists(lists, MIDS)
    found = [(segment.video_id[0], segment.labels) for segment in segments]
    assert found == [('a', ('/m/0',)), ('b', ('/m/0',))]
    assert 'b.csv: 1 of its segments' in caplog.text
