"""Tables from any editor, spreadsheet or operating system: what is read, and what is refused."""
import csv

import pytest

from utilities.tables import decode, find_file, quote_cells, read_table


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
def test_lines_end_alike_in_every_encoding(encoding, end):
    assert decode(f'é,犬{end}b{end}'.encode(encoding)) == 'é,犬\nb\n'


@pytest.mark.parametrize('data, reason', [
    ('a\nb\rçé'.encode('cp1252'), "line 3, character 1 is not UTF-8 .byte 0xE7.*'ç'.*iconv -f WINDOWS-1252 -t UTF-8"),
    (b'\xef\xbb\xbfab\xe4', "line 1, character 3 is not UTF-8 .byte 0xE4.*'ä'"),
    (b'\x81', 'line 1, character 1 is not UTF-8 .byte 0x81'),  # which code page 1252 does not have
    ('a,b'.encode('utf-16-le'), 'NUL characters, as UTF-16 without a byte order mark'),
    ('a,b'.encode('utf-16')[:-1], 'no whole UTF-16'),
])
def test_what_is_neither_utf_8_nor_utf_16_is_refused_in_one_sentence(data, reason):
    with pytest.raises(ValueError, match=reason) as error:
        decode(data)
    assert 'save ' in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('separator', [',', ';', '\t'])
def test_the_separator_is_the_one_under_which_the_header_fits(separator):
    header, rows, found = read_table(separator.join('ab') + '\n' + separator.join(['1', '"2,;\t3"']), {'a', 'b'}.issubset)
    assert (header, found) == (['a', 'b'], separator) and rows == [(2, {'a': '1', 'b': '2,;\t3'})]


def test_lines_are_counted_with_those_inside_of_cells_and_blank_rows_are_left_out():
    _, rows, _ = read_table('a,b\n"x\ny",1\n\n , \n2,3,4\n5\n', {'a'}.issubset)
    assert [(line, quote_cells(row)) for line, row in rows] == [(3, r"'x\ny,1'"), (6, "'2,3,4'"), (7, "'5,'")]


def test_a_header_that_does_not_fit_is_cut_at_the_separator_that_finds_most():
    assert read_table('a;b;c\n', {'x'}.issubset)[0] == ['a', 'b', 'c']
    assert read_table('', {'x'}.issubset) == ([], [], ',')


def test_a_cell_without_end_is_no_table():
    with pytest.raises(csv.Error):
        read_table('a,b\n"' + 'x' * 200_000, {'a'}.issubset)


@pytest.mark.parametrize('name, files, found', [
    (r'audio\dog.wav', [], 'audio/dog.wav'), (r'audio\dog.wav', ['audio/dog.wav'], 'audio/dog.wav'),
    (r'audio\dog.wav', [r'audio\dog.wav', 'audio/dog.wav'], r'audio\dog.wav'), (r'..\x\a.wav', [], '../x/a.wav'),
    ('audio/dog.wav', [], 'audio/dog.wav')])
def test_a_backslash_leads_into_a_folder_unless_a_file_has_that_very_name(tmp_path, name, files, found):
    folder = tmp_path / r'my\tables'
    there = {str(folder / file) for file in files}
    assert find_file(folder, name, there.__contains__) == str((folder / found).resolve())
