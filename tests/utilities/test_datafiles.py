"""Datafiles: what is read, and what is said about entries that cannot be used."""
import itertools
import json
import math
import pickle

import numpy as np
import pytest

from utilities.datafiles import read_datafile, split_labels
from utilities.errors import DataError

MIDS = {'/m/0': 0, '/m/1': 1}
GOOD = {'wav': 'a.wav', 'labels': '/m/0'}


@pytest.fixture
def read(write):
    """Write a datafile of these entries and read it."""
    return lambda *entries: read_datafile(write(json.dumps({'data': entries})), MIDS)


def test_a_datafile_keeps_paths_and_labels_as_written(write):
    entries = [{**GOOD, 'video_id': 'x'}, {'wav': 'ü b.flac', 'labels': '/m/1,/m/0'}]
    datafile = read_datafile(write(json.dumps({'data': entries, 'made_by': 'hand'})), MIDS)
    assert len(datafile) == 2
    assert [datafile.wavs[i] for i in range(2)] == ['a.wav', 'ü b.flac']
    assert [datafile.labels[i] for i in range(2)] == ['/m/0', '/m/1,/m/0']


def test_an_entry_may_say_start_and_seconds(read):
    datafile = read(GOOD, {**GOOD, 'start': 30}, {**GOOD, 'start': 0.5, 'seconds': 10.0},
                    {**GOOD, 'seconds': 2})
    parts = [(0, math.inf), (30, math.inf), (0.5, 10), (0, 2)]
    assert [datafile.part(i) for i in range(4)] == parts
    without = read(GOOD)
    assert without.parts is None and without.part(0) == (0, math.inf)


BAD_SECONDS = -1, 'x', None, True, math.nan, math.inf, 10 ** 400, [1]


@pytest.mark.parametrize(
    'key, value', [*itertools.product(('start', 'seconds'), BAD_SECONDS), ('seconds', 0)],
    ids=lambda value: str(value)[:9])
def test_a_start_or_a_length_that_is_none_is_refused_with_the_entry(read, key, value):
    expected = f'entry 1: \'a.wav\': "{key}" is .*seconds.* got '
    with pytest.raises(DataError, match=expected) as error:
        read(GOOD, {**GOOD, key: value})
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 1000


@pytest.mark.parametrize('content, reason', [
    ('', 'cannot read'), ('{"data": [', 'cannot read'), ('[1]', 'cannot read'),
    ('{"entries": []}', "no 'data'"), pytest.param('[' * 100000, 'cannot read', id='deep'),
    (b'\xff\xfe', 'cannot read'), ('{"data": {}}', 'no samples'), ('{"data": []}', 'no samples')])
def test_a_file_that_is_no_datafile_is_named_with_the_reason(write, content, reason):
    path = write(content)
    with pytest.raises(DataError, match=reason) as error:
        read_datafile(path, MIDS)
    assert str(path) in str(error.value)


@pytest.mark.parametrize('entry, reason', [
    ({'wav': 'b.wav'}, 'expected "wav" and "labels"'),
    ({'labels': '/m/0'}, 'expected "wav" and "labels"'),
    ({**GOOD, 'wav': ''}, 'non-empty'), ({**GOOD, 'labels': None}, 'non-empty'),
    ({**GOOD, 'labels': ['/m/0']}, 'text'), ({**GOOD, 'wav': 3}, 'text'),
    ({**GOOD, 'wav': 'half \ud800 a character'}, 'text'),
    ({**GOOD, 'wav': 'a\nb', 'labels': '/m/9'}, r"'a\\nb': the label"),
    ('a.wav', 'expected'), ({**GOOD, 'wav': 'a\0b.wav'}, 'expected'),
    ({**GOOD, 'labels': '/m/0,/m/9'}, "a.wav.*'/m/9' is not in the label file"),
    ({**GOOD, 'labels': '/m/0, /m/1'}, "' /m/1' is not in the label file"),
    ({**GOOD, 'labels': '/m/0,'}, "'' is not in the label file")])
def test_a_bad_entry_is_counted_and_quoted(read, entry, reason):
    with pytest.raises(DataError, match=f'entry 1.*{reason}'):
        read(GOOD, entry)


def test_empty_labels_are_a_negative_and_no_labels_a_mistake(read):
    datafile = read(GOOD, {**GOOD, 'labels': ''})
    assert datafile.labels.tolist() == ['/m/0', ''] and datafile.negatives == 1
    assert [split_labels(labels) for labels in datafile.labels] == [['/m/0'], []]
    with pytest.raises(DataError, match='entry 0: expected "wav" and "labels"'):
        read({'wav': 'a.wav'})


def test_a_datafile_in_utf_16_is_read(write):
    text = json.dumps({'data': [{**GOOD, 'wav': 'é.wav'}]}, ensure_ascii=False)
    assert read_datafile(write(text.encode('utf-16')), MIDS).wavs.tolist() == ['é.wav']


def test_a_packed_datafile_reaches_a_spawned_process(read):
    datafile = pickle.loads(pickle.dumps(read(GOOD, GOOD, GOOD)))
    assert np.array_equal(datafile.wavs, ['a.wav'] * 3)
