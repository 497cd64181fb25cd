"""Text and JSON files: of any editor, for people and programs, and refused by name."""
import json

import pytest

from utilities.errors import DataError
from utilities.texts import decode, read_json, write_json


def test_json_is_readable_by_people_and_programs(tmp_path):
    write_json(tmp_path / 'args.json', {'lr': 1e-5, 'wa': True, 'data_eval': None})
    text = (tmp_path / 'args.json').read_text()
    assert json.loads(text) == {'lr': 1e-5, 'wa': True, 'data_eval': None}
    assert read_json(tmp_path / 'args.json') == json.loads(text) and text.count('\n') == 5


@pytest.mark.parametrize('content', [
    b'', b'{"lr": ', b'[1]', b'"a"', b'\xff', b'9' * 5000, b'[' * 10 ** 5])
def test_what_is_no_json_object_is_named_with_the_advice(tmp_path, content):
    (tmp_path / 'args.json').write_bytes(content)
    with pytest.raises(DataError,
                       match=f'cannot read {tmp_path}/args.json: .*; remove it$') as error:
        read_json(tmp_path / 'args.json', 'remove it')
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
def test_lines_end_alike_in_every_encoding(encoding, end):
    assert decode(f'é,犬{end}b{end}'.encode(encoding)) == 'é,犬\nb\n'


@pytest.mark.parametrize('data, reason', [
    ('a\nb\rçé'.encode('cp1252'),
     "line 3, character 1 is not UTF-8 .byte 0xE7.*'ç'.*iconv -f WINDOWS-1252 -t UTF-8"),
    (b'\xef\xbb\xbfab\xe4', "line 1, character 3 is not UTF-8 .byte 0xE4.*'ä'"),
    (b'\x81', 'line 1, character 1 is not UTF-8 .byte 0x81'),  # which code page 1252 does not have
    ('a,b'.encode('utf-16-le'), 'NUL characters, as UTF-16 without a byte order mark'),
    ('a,b'.encode('utf-16')[:-1], 'no whole UTF-16'),
])
def test_what_is_neither_utf_8_nor_utf_16_is_refused_in_one_sentence(data, reason):
    with pytest.raises(ValueError, match=reason) as error:
        decode(data)
    assert 'save ' in str(error.value) and '\n' not in str(error.value)
