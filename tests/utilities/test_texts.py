"""JSON files: for people and programs, and refused by name where they are none."""
import json

import pytest

from utilities.errors import DataError
from utilities.texts import read_json, write_json


def test_json_is_readable_by_people_and_programs(tmp_path):
    write_json(tmp_path / 'args.json', {'lr': 1e-5, 'wa': True, 'data_eval': None})
    text = (tmp_path / 'args.json').read_text()
    assert json.loads(text) == {'lr': 1e-5, 'wa': True, 'data_eval': None} == read_json(tmp_path / 'args.json')
    assert text.count('\n') == 5


@pytest.mark.parametrize('content', [b'', b'{"lr": ', b'[1]', b'"a"', b'\xff', b'9' * 5000, b'[' * 10 ** 5])
def test_what_is_no_json_object_is_named_with_the_advice(tmp_path, content):
    (tmp_path / 'args.json').write_bytes(content)
    with pytest.raises(DataError, match=f'cannot read {tmp_path}/args.json: .*; remove it$') as error:
        read_json(tmp_path / 'args.json', 'remove it')
    assert '\n' not in str(error.value)
