"""Label files, datafiles and weight files: what is read, and what is said about those that cannot be."""
import codecs
import hashlib
import itertools
import json
import math
import pickle

import numpy as np
import pytest

from utilities.errors import DataError
from utilities.labels import (
    Labels,
    format_labels,
    read_datafile,
    read_labels,
    read_sample_weights,
    split_labels,
    weight_file,
)

MIDS = {'/m/0': 0, '/m/1': 1}
GOOD = {'wav': 'a.wav', 'labels': '/m/0'}


def test_labels_keep_the_order_of_the_file(write):
    labels = read_labels(write('index,mid,display_name\n0,/m/x,"Male speech, man speaking"\n1,/m/a,Élan\n'))
    assert labels.mids == ('/m/x', '/m/a')
    assert labels.names == ('Male speech, man speaking', 'Élan')
    assert labels.index() == {'/m/x': 0, '/m/a': 1} and len(labels) == 2


@pytest.mark.parametrize('content, reason', [
    ('', 'must begin with the line index,mid,display_name'),
    ('mid,name\n/m/0,a\n', 'must begin with the line index,mid,display_name'),
    ('index,mid,display_name\n', 'no classes'),
    ('index,mid,display_name\n1,/m/0,a\n', 'line 2: expected index 0'),
    ('index,mid,display_name\n0,/m/0,a\n2,/m/1,b\n', 'line 3: expected index 1'),
    ('index,mid,display_name\n0,/m/0\n', 'line 2'),
    ('index,mid,display_name\n0,,a\n', 'line 2'),
    ('index,mid,display_name\n0,/m/0,speech, man\n', "in quotes if it has commas, got '0,/m/0,speech, man'"),
    ('index,mid,display_name\n0,/m/0,a\n1,/m/0,b\n', "'/m/0' twice"),
    (b'\xff\xfe\x00', 'cannot read')])
def test_a_bad_label_file_is_named_with_the_reason(write, content, reason):
    path = write(content)
    with pytest.raises(DataError, match=reason) as error:
        read_labels(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize('read', [read_labels, lambda path: read_datafile(path, MIDS),
                                  lambda path: read_sample_weights(path, 1)])
def test_a_missing_file_or_a_directory_is_named(tmp_path, read):
    with pytest.raises(DataError, match=f'{tmp_path}/nowhere.*(No such file|not found)'):
        read(tmp_path / 'nowhere')
    with pytest.raises(DataError, match=f'{tmp_path}.*[Dd]irectory'):
        read(tmp_path)


def test_a_datafile_keeps_paths_and_labels_as_written(write):
    entries = [{**GOOD, 'video_id': 'x'}, {'wav': 'ü b.flac', 'labels': '/m/1,/m/0'}]
    datafile = read_datafile(write(json.dumps({'data': entries, 'made_by': 'hand'})), MIDS)
    assert len(datafile) == 2
    assert [datafile.wavs[i] for i in range(2)] == ['a.wav', 'ü b.flac']
    assert [datafile.labels[i] for i in range(2)] == ['/m/0', '/m/1,/m/0']


def test_an_entry_may_say_start_and_seconds(write):
    entries = [GOOD, {**GOOD, 'start': 30}, {**GOOD, 'start': 0.5, 'seconds': 10.0},
               {**GOOD, 'seconds': 2}]
    datafile = read_datafile(write(json.dumps({'data': entries})), MIDS)
    windows = [(0, math.inf), (30, math.inf), (0.5, 10), (0, 2)]
    assert [datafile.window(i) for i in range(4)] == windows
    without = read_datafile(write(json.dumps({'data': [GOOD]})), MIDS)
    assert without.windows is None and without.window(0) == (0, math.inf)


BAD_SECONDS = -1, 'x', None, True, math.nan, math.inf, 10 ** 400, [1]


@pytest.mark.parametrize(
    'key, value', [*itertools.product(('start', 'seconds'), BAD_SECONDS), ('seconds', 0)],
    ids=lambda value: str(value)[:9])
def test_a_start_or_a_length_that_is_none_is_refused_with_the_entry(write, key, value):
    path = write(json.dumps({'data': [GOOD, {**GOOD, key: value}]}))
    expected = f'entry 1: \'a.wav\': "{key}" is .*seconds.* got '
    with pytest.raises(DataError, match=expected) as error:
        read_datafile(path, MIDS)
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 1000


@pytest.mark.parametrize('content, reason', [
    ('', 'cannot read'), ('{"data": [', 'cannot read'), ('[1]', 'cannot read'), ('{"entries": []}', "no 'data'"),
    pytest.param('[' * 100000, 'cannot read', id='deep'), (b'\xff\xfe', 'cannot read'), ('{"data": {}}', 'no samples'),
    ('{"data": []}', 'no samples')])
def test_a_file_that_is_no_datafile_is_named_with_the_reason(write, content, reason):
    path = write(content)
    with pytest.raises(DataError, match=reason) as error:
        read_datafile(path, MIDS)
    assert str(path) in str(error.value)


@pytest.mark.parametrize('entry, reason', [
    ({'wav': 'b.wav'}, 'expected "wav" and "labels"'), ({'labels': '/m/0'}, 'expected "wav" and "labels"'),
    ({**GOOD, 'wav': ''}, 'non-empty'), ({**GOOD, 'labels': None}, 'non-empty'), ({**GOOD, 'labels': ['/m/0']}, 'text'),
    ({**GOOD, 'wav': 3}, 'text'), ({**GOOD, 'wav': 'half \ud800 a character'}, 'text'),
    ({**GOOD, 'wav': 'a\nb', 'labels': '/m/9'}, r"'a\\nb': the label"),
    ('a.wav', 'expected'), ({**GOOD, 'wav': 'a\0b.wav'}, 'expected'),
    ({**GOOD, 'labels': '/m/0,/m/9'}, "a.wav.*'/m/9' is not in the label file"),
    ({**GOOD, 'labels': '/m/0, /m/1'}, "' /m/1' is not in the label file"),
    ({**GOOD, 'labels': '/m/0,'}, "'' is not in the label file")])
def test_a_bad_entry_is_counted_and_quoted(write, entry, reason):
    with pytest.raises(DataError, match=f'entry 1.*{reason}'):
        read_datafile(write(json.dumps({'data': [GOOD, entry]})), MIDS)


def test_empty_labels_are_a_negative_and_no_labels_a_mistake(write):
    datafile = read_datafile(write(json.dumps({'data': [GOOD, {**GOOD, 'labels': ''}]})), MIDS)
    assert datafile.labels.tolist() == ['/m/0', ''] and datafile.negatives == 1
    assert [split_labels(labels) for labels in datafile.labels] == [['/m/0'], []]
    with pytest.raises(DataError, match='entry 0: expected "wav" and "labels"'):
        read_datafile(write('{"data": [{"wav": "a.wav"}]}'), MIDS)


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le'])
@pytest.mark.parametrize('separator', [',', ';', '\t'])
@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
def test_a_label_file_of_any_editor_is_read(write, encoding, separator, end):
    rows = [('index', 'mid', 'display_name'), ('0', '/m/x', '"Élan, a; b"'), ('1', '/m/y', '犬')]
    mark = codecs.BOM_UTF16_LE if encoding == 'utf-16-le' else b''
    text = ''.join(separator.join(row) + end for row in rows)
    assert read_labels(write(mark + text.encode(encoding))) == Labels(('/m/x', '/m/y'), ('Élan, a; b', '犬'))


def test_empty_rows_that_a_spreadsheet_adds_do_not_count(write):
    text = 'index;mid;display_name;\n0;/m/0;dog;\n;;;\n'
    assert read_labels(write(text)).names == ('dog',)


def test_a_datafile_in_utf_16_is_read(write):
    path = write(json.dumps({'data': [{**GOOD, 'wav': 'é.wav'}]}, ensure_ascii=False).encode('utf-16'))
    assert read_datafile(path, MIDS).wavs.tolist() == ['é.wav']


@pytest.mark.parametrize('read, content', [
    (read_labels, 'index,mid,display_name\n0,/m/0,café\n'),
    (lambda path: read_datafile(path, MIDS), '{"data": [\n{"wav": "a ré.wav"}]}'),
])
def test_code_page_1252_is_refused_with_the_place_and_the_remedy(write, read, content):
    path = write(content.encode('cp1252'))
    with pytest.raises(DataError, match=(
            f"{path}.*: line 2, character 1. is not UTF-8 .byte 0xE9, in code page 1252 of "
            f"Windows 'é'.; save the file as UTF-8 .*iconv -f WINDOWS-1252 -t UTF-8")):
        read(path)


def test_weights_are_read_as_written(write):
    assert read_sample_weights(write('1.5\n0\n20e-1\n'), 3).tolist() == [1.5, 0, 2]
    assert read_sample_weights(write('7\n'), 1).tolist() == [7]


@pytest.mark.parametrize('content', ['1\n2\n', '1\n2\n3\n4\n', '1\n-1\n2\n', '1\nnan\n2\n', '0\n0\n0\n',
                                     '1\ntwo\n3\n'])
def test_a_weight_file_that_does_not_fit_its_datafile_says_how_to_make_one(write, content):
    path = write(content)
    with pytest.raises(DataError, match='sum over its labels of 1000') as error:
        read_sample_weights(path, 3)
    assert str(path) in str(error.value)


@pytest.mark.parametrize('datafile, weights', [('data/train.json', 'data/train_weight.csv'),
                                               ('train', 'train_weight.csv'),
                                               ('a.json/b.json', 'a.json/b_weight.csv')])
def test_the_weight_file_lies_beside_its_datafile(datafile, weights):
    assert str(weight_file(datafile)) == weights


def test_a_packed_datafile_reaches_a_spawned_process(write):
    datafile = pickle.loads(pickle.dumps(read_datafile(write(json.dumps({'data': [GOOD] * 3})), MIDS)))
    assert np.array_equal(datafile.wavs, ['a.wav'] * 3)


def test_a_label_file_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / 'labels.csv').write_text('index,mid,display_name\n0,/m/0,dog\n', encoding='utf-8-sig')
    assert read_labels(tmp_path / 'labels.csv').names == ('dog',)


def test_names_are_written_in_quotes_as_published(tmp_path):
    labels = Labels(('/m/a', 'b,c', 'd "e"', 'f'), ('dog', 'man, speaking', 'a "word"', ''))
    path = tmp_path / 'labels.csv'
    path.write_text(format_labels(labels))
    assert path.read_text() == ('index,mid,display_name\n0,/m/a,"dog"\n1,"b,c","man, speaking"\n'
                                '2,"d ""e""","a ""word"""\n3,f,""\n')
    assert read_labels(path) == labels


# The files of the published repository, whose own code takes the quotes off with eval.
PUBLISHED = {
    'audioset/data/class_labels_indices.csv': 'cdd1049833c4b86127c2773ac0d14a2754b6a6d0d1798002ed5c66e699708429',
    'esc50/data/esc_class_labels_indices.csv': '89024971236e017c0e4307b338bb9381b74fd9297923d259b72e7f6631bb51bb',
    'speechcommands/data/speechcommands_class_labels_indices.csv':
        '9beef7975ea73cf54b4d99c8494fb64e143198b7b3e2d759cae0cab48d58c071',
}


@pytest.mark.parametrize('name', PUBLISHED)
def test_the_label_files_are_the_published_ones_and_what_is_written_is_like_them(name, root):
    content = (root / 'egs' / name).read_bytes()
    assert hashlib.sha256(content).hexdigest() == PUBLISHED[name]
    assert format_labels(read_labels(root / 'egs' / name)).encode() == content
