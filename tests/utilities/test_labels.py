"""Label files: what is read, what is written, and what is said about those that cannot be read."""
import codecs
import hashlib

import pytest

from utilities.datafiles import read_datafile
from utilities.errors import DataError
from utilities.labels import Labels, format_labels, read_labels
from utilities.weight_files import read_sample_weights

HEADER = 'index,mid,display_name\n'


def test_labels_keep_the_order_of_the_file(write):
    labels = read_labels(write(f'{HEADER}0,/m/x,"Male speech, man speaking"\n1,/m/a,Élan\n'))
    assert labels.mids == ('/m/x', '/m/a')
    assert labels.names == ('Male speech, man speaking', 'Élan')
    assert labels.index() == {'/m/x': 0, '/m/a': 1} and len(labels) == 2


@pytest.mark.parametrize('content, reason', [
    ('', 'must begin with the line index,mid,display_name'),
    ('mid,name\n/m/0,a\n', 'must begin with the line index,mid,display_name'),
    (HEADER, 'no classes'),
    (f'{HEADER}1,/m/0,a\n', 'line 2: expected index 0'),
    (f'{HEADER}0,/m/0,a\n2,/m/1,b\n', 'line 3: expected index 1'),
    (f'{HEADER}0,/m/0\n', 'line 2'),
    (f'{HEADER}0,,a\n', 'line 2'),
    (f'{HEADER}0,/m/0,speech, man\n', "in quotes if it has commas, got '0,/m/0,speech, man'"),
    (f'{HEADER}0,/m/0,a\n1,/m/0,b\n', "'/m/0' twice"),
    (b'\xff\xfe\x00', 'cannot read')])
def test_a_bad_label_file_is_named_with_the_reason(write, content, reason):
    path = write(content)
    with pytest.raises(DataError, match=reason) as error:
        read_labels(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize('read', [read_labels, lambda path: read_datafile(path, ()),
                                  lambda path: read_sample_weights(path, 1)])
def test_a_missing_file_or_a_directory_is_named(tmp_path, read):
    with pytest.raises(DataError, match=f'{tmp_path}/nowhere.*(No such file|not found)'):
        read(tmp_path / 'nowhere')
    with pytest.raises(DataError, match=f'{tmp_path}.*[Dd]irectory'):
        read(tmp_path)


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le'])
@pytest.mark.parametrize('separator', [',', ';', '\t'])
@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
def test_a_label_file_of_any_editor_is_read(write, encoding, separator, end):
    rows = [('index', 'mid', 'display_name'), ('0', '/m/x', '"Élan, a; b"'), ('1', '/m/y', '犬')]
    mark = codecs.BOM_UTF16_LE if encoding == 'utf-16-le' else b''
    text = ''.join(separator.join(row) + end for row in rows)
    labels = read_labels(write(mark + text.encode(encoding)))
    assert labels == Labels(('/m/x', '/m/y'), ('Élan, a; b', '犬'))


def test_empty_rows_that_a_spreadsheet_adds_do_not_count(write):
    text = 'index;mid;display_name;\n0;/m/0;dog;\n;;;\n'
    assert read_labels(write(text)).names == ('dog',)


@pytest.mark.parametrize('read, content', [
    (read_labels, f'{HEADER}0,/m/0,café\n'),
    (lambda path: read_datafile(path, ()), '{"data": [\n{"wav": "a ré.wav"}]}'),
])
def test_code_page_1252_is_refused_with_the_place_and_the_remedy(write, read, content):
    path = write(content.encode('cp1252'))
    with pytest.raises(DataError, match=(
            f"{path}.*: line 2, character 1. is not UTF-8 .byte 0xE9, in code page 1252 of "
            f"Windows 'é'.; save the file as UTF-8 .*iconv -f WINDOWS-1252 -t UTF-8")):
        read(path)


def test_a_label_file_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / 'labels.csv').write_text(f'{HEADER}0,/m/0,dog\n', encoding='utf-8-sig')
    assert read_labels(tmp_path / 'labels.csv').names == ('dog',)


def test_names_are_written_in_quotes_as_published(tmp_path):
    labels = Labels(('/m/a', 'b,c', 'd "e"', 'f'), ('dog', 'man, speaking', 'a "word"', ''))
    path = tmp_path / 'labels.csv'
    path.write_text(format_labels(labels))
    assert path.read_text() == (f'{HEADER}0,/m/a,"dog"\n1,"b,c","man, speaking"\n'
                                '2,"d ""e""","a ""word"""\n3,f,""\n')
    assert read_labels(path) == labels


# SHA-256 of the published repository's files, whose own code takes the quotes off with eval.
PUBLISHED = {
    'audioset/data/class_labels_indices.csv':
        'cdd1049833c4b86127c2773ac0d14a2754b6a6d0d1798002ed5c66e699708429',
    'esc50/data/esc_class_labels_indices.csv':
        '89024971236e017c0e4307b338bb9381b74fd9297923d259b72e7f6631bb51bb',
    'speechcommands/data/speechcommands_class_labels_indices.csv':
        '9beef7975ea73cf54b4d99c8494fb64e143198b7b3e2d759cae0cab48d58c071',
}


@pytest.mark.parametrize('name', PUBLISHED)
def test_the_label_files_are_the_published_ones_and_what_is_written_is_like_them(name, root):
    content = (root / 'egs' / name).read_bytes()
    assert hashlib.sha256(content).hexdigest() == PUBLISHED[name]
    assert format_labels(read_labels(root / 'egs' / name)).encode() == content
