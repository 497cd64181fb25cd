"""Tables from any editor, spreadsheet or operating system: what is read, and what is refused."""
import csv

import pytest

from utilities.tables import find_file, quote_cells, read_table


@pytest.mark.parametrize('separator', [',', ';', '\t'])
def test_the_separator_is_the_one_under_which_the_header_fits(separator):
    text = separator.join('ab') + '\n' + separator.join(['1', '"2,;\t3"'])
    header, rows, found = read_table(text, {'a', 'b'}.issubset)
    assert (header, found) == (['a', 'b'], separator) and rows == [(2, {'a': '1', 'b': '2,;\t3'})]


def test_lines_are_counted_with_those_inside_of_cells_and_blank_rows_are_left_out():
    _, rows, _ = read_table('a,b\n"x\ny",1\n\n , \n2,3,4\n5\n', {'a'}.issubset)
    quoted = [(line, quote_cells(row)) for line, row in rows]
    assert quoted == [(3, r"'x\ny,1'"), (6, "'2,3,4'"), (7, "'5,'")]


def test_a_header_that_does_not_fit_is_cut_at_the_separator_that_finds_most():
    assert read_table('a;b;c\n', {'x'}.issubset)[0] == ['a', 'b', 'c']
    assert read_table('', {'x'}.issubset) == ([], [], ',')


def test_a_cell_without_end_is_no_table():
    with pytest.raises(csv.Error):
        read_table('a,b\n"' + 'x' * 200_000, {'a'}.issubset)


@pytest.mark.parametrize('name, files, found', [
    (r'audio\dog.wav', [], 'audio/dog.wav'),
    (r'audio\dog.wav', ['audio/dog.wav'], 'audio/dog.wav'),
    (r'audio\dog.wav', [r'audio\dog.wav', 'audio/dog.wav'], r'audio\dog.wav'),
    (r'..\x\a.wav', [], '../x/a.wav'), ('audio/dog.wav', [], 'audio/dog.wav')])
def test_a_backslash_leads_into_a_folder_unless_a_file_has_that_very_name(tmp_path, name, files,
                                                                          found):
    folder = tmp_path / r'my\tables'
    there = {str(folder / file) for file in files}
    assert find_file(folder, name, there.__contains__) == str((folder / found).resolve())
