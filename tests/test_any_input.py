"""Whatever a file or a command line holds, it is read, or refused with a sentence that names it.

EXAMPLES=100000 tries so many inputs of each kind, other ones every time. Without it, there are a
few, always the same.
"""
import contextlib
import io
import json
import math
import os

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import check_data
import get_norm_stats
import inference
import own_csv
import prep_audioset
import prep_own
from audio.reading import AudioError
from checks.entries import check_entries, excerpt_of, wav_path
from checks.recordings import Excerpt, examine
from models import WeightsError
from parsers import parser_of
from training import option_checks, options
from training.devices import choose_device
from training.launch import Launch
from utilities.datafiles import read_datafile, read_entries, split_labels
from utilities.errors import DataError
from utilities.labels import read_labels
from utilities.segments import read_segments
from utilities.weight_files import read_sample_weights

MIDS = {'/m/0': 0, '/m/1': 1}
OUR_ERRORS = (AudioError, DataError, WeightsError)
MAX_LENGTH = 2000  # of a message; what it quotes is cut
EXAMPLES = int(os.environ.get('EXAMPLES', 60))
some = settings(max_examples=EXAMPLES, derandomize='EXAMPLES' not in os.environ,
                deadline=None, database=None,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])

characters = st.characters(codec='utf-8')
any_text = st.text(characters, max_size=20)
half_characters = st.sampled_from(['\ud800', 'a\udcff', '\0', 'a\nb', '\x85', '\u2028', '\x1b[31m',
                                   '"', "'", 'a,b'])
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), any_text, half_characters)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=8)
mids = st.sampled_from(['/m/0', '/m/1', '/m/0,/m/1', '/m/9', ',', ''])
entries = st.one_of(anything, st.fixed_dictionaries({}, optional={
    'wav': st.just('a.wav') | scalars, 'labels': mids | scalars, 'video_id': scalars,
    'start': scalars, 'seconds': scalars, 'x': anything}))
datafiles = st.one_of(st.fixed_dictionaries({'data': st.lists(entries, max_size=4) | anything}),
                      anything)


def lines_of(*cells):
    """Make texts of a few lines that resemble a table with such cells.

    They have all kinds of quotes and line ends.
    """
    cell = st.one_of(*map(st.sampled_from, cells), any_text, st.integers().map(str),
                     st.floats().map(str))
    written = st.one_of(cell, cell.map(lambda text: f'"{text}"'),
                        cell.map(lambda text: f' "{text}'))
    line = st.lists(written, max_size=6).flatmap(
        lambda row: st.sampled_from([',', ', ', ';', '\t']).map(
            lambda separator: separator.join(row)))
    return st.lists(line, max_size=6).flatmap(
        lambda lines: st.sampled_from(['\n', '\r\n', '\r']).map(lambda end: end.join(lines)))


@st.composite
def damaged(draw, texts):
    """The bytes of a text, some of them overwritten, cut off, or in another encoding."""
    encoding = draw(st.sampled_from(['utf-8', 'utf-8', 'utf-8', 'utf-8-sig', 'utf-16', 'latin-1']))
    data = bytearray(draw(texts).encode(encoding, errors='replace'))
    for place in draw(st.lists(st.integers(0, max(0, len(data) - 1)), max_size=2)):
        data[place:place + 1] = draw(st.binary(min_size=1, max_size=3))
    return bytes(data[:draw(st.none() | st.integers(0, len(data)))])


def files_like(texts):
    """Bytes of files: of such texts, of such texts damaged, and any."""
    return st.one_of(texts.map(lambda text: text.encode(errors='replace')), damaged(texts),
                     st.binary(max_size=60))


@pytest.fixture(scope='module')
def read_or_refuse(tmp_path_factory):
    """Write bytes to a file and read it.

    What is raised must be one of our errors, with one line that names the file.
    """
    path = tmp_path_factory.mktemp('any') / 'file'

    def check(content, read):
        path.write_bytes(content)
        try:
            return read(path)
        except OUR_ERRORS as error:
            message = str(error)
        assert str(path) in message and len(message) < MAX_LENGTH
        assert message.splitlines() == [message] and message.encode()
    return check


@some
@given(files_like(datafiles.map(json.dumps)))
@example(b'{"data": [{"wav": "a.wav", "labels": "/m/0,/m/1"}]}')
@example(b'{"data": [{"wav": "\\ud800.wav", "labels": "/m/0"}]}')
@example(b'{"data": ["a\\nb"]}')
@example(b'{"data": [{"wav": "a\\nb.wav", "labels": "/m/9"}]}')
@example(b'{"data": ' + b'9' * 5000 + b'}')
def test_any_datafile(read_or_refuse, content):
    data = read_or_refuse(content, lambda path: read_datafile(path, MIDS))
    if data is not None:
        mids = {mid for labels in data.labels for mid in split_labels(labels)}
        assert len(data) and mids <= MIDS.keys()


@some
@given(files_like(datafiles.map(json.dumps)))
def test_any_datafile_is_described_by_the_check(read_or_refuse, content):
    listed = read_or_refuse(content, read_entries) or []
    problems, unknown = check_entries(listed, MIDS)
    for text in sum(problems.values(), []):
        assert text.splitlines() == [text] and text.encode() and len(text) < MAX_LENGTH
    wavs = [wav_path(entry) for entry in listed]
    recordings = {wav: examine([Excerpt(wav)])[0] for wav in wavs if wav is not None}
    assert problems and recordings.keys() == {wav for wav in wavs if wav}
    json.dumps([unknown, problems, list(map(excerpt_of, listed))])


LABEL_LINES = lines_of(['index', 'mid', 'display_name'], ['0', '1', '2'], ['/m/0', 'dog', ''])


@some
@given(files_like(st.one_of(LABEL_LINES,
                            LABEL_LINES.map(lambda text: f'index,mid,display_name\n{text}'))))
@example(b'index,mid,display_name\n0,/m/0,dog\n1,/m/1,"cat, small"\n')
@example(b'index,mid,display_name\n0,/m/0,Male speech, man speaking\n')
@example(b'index,mid,display_name\n0,"a\nb",x\n1,"a\nb",y\n')
@example(b'index,mid,display_name\n7,"a\nb",x\n')
@example(b'index,mid,display_name\n0,/m/0,"' + b'x' * 200_000 + b'"\n')
def test_any_label_file(read_or_refuse, content):
    labels = read_or_refuse(content, read_labels)
    if labels is not None:
        assert len(labels) and labels.index() == {mid: i for i, mid in enumerate(labels.mids)}


@some
@given(files_like(lines_of(['# comment', 'aaaaaaaaaaa'], ['0', '10', '1e400', '-1', 'nan'],
                           ['/m/0', '/m/1,/m/0', '/m/9'])))
@example(b'aaaaaaaaaaa, 0, 10, "/m/0,/m/1"\n')
@example(b'aaaaaaaaaaa, 0, 10, "/m/0\n"\n')
@example(b'aaaaaaaaaaa\x85\x0c, 0, 10, "\x1b[31m"\n')
@example(b'aaaaaaaaaaa, ' + b'9' * 400 + b', 1e309, "/m/0"\n')
def test_any_segment_list(read_or_refuse, content):
    for segment in read_or_refuse(content, lambda path: read_segments(path, MIDS)) or ():
        assert 0 <= segment.start_seconds < segment.end_seconds < math.inf
        assert len(segment.video_id) == 11 and set(segment.labels) <= MIDS.keys()


@some
@given(files_like(lines_of(['1', '0.5', '-1', 'nan', 'inf'], ['#', '1e999', '0x10', '1_0'])),
       st.integers(0, 5))
@example(b'0.5\n1e3\n', 2)
@example(b'', 1)
@example(b'\xff', 1)
@example(b'1,2\n3\n', 3)
def test_any_weight_file(read_or_refuse, content, samples):
    weights = read_or_refuse(content, lambda path: read_sample_weights(path, samples))
    if weights is not None:
        assert weights.shape == (samples,)
        assert weights.min() >= 0 and 0 < weights.sum() < math.inf


CSV_LINES = lines_of(['path', 'labels', 'fold', 'split', 'group'],
                     ['a.wav', 'file', 'shard.zip/a.wav'], ['train', 'val', '1', 'dog;cat'])


@some
@given(files_like(st.one_of(CSV_LINES, CSV_LINES.map(lambda text: f'path,labels,fold\n{text}'),
                            CSV_LINES.map(lambda text: f'file;label\n{text}'))))
@example(b'path,labels\nfile,dog;cat\n')
@example(b'path,labels\n"a\nb.wav",dog\n')
@example(b'path,labels\na\x00.wav,dog\n')
@example(b'path;labels\naudio\\\x00.wav;\n')
@example('path;labels\nfile;犬\n'.encode('utf-16'))
@example('path;labels\nfile;chaîne\n'.encode('cp1252'))
@example(b'path,labels\na\x00.zip/b.wav,dog\n')
@example(b'path,labels\xc2\x85\na.wav,dog\n')
@example(b'path,"la\nbels"\na.wav,dog\n')
@example(b'path,labels,split\nfile,dog,"a\nb"\n')
@example(b'path,labels\n"a\nb","x\ny"\n"a\nb",x\n')
def test_any_csv_of_ones_own(read_or_refuse, content):
    for clip in read_or_refuse(content, own_csv.read_csv) or ():
        assert clip.wav and all(clip.labels)


@pytest.fixture(scope='module')
def parsers():
    """A parser of each of the entry points that have most options, by their names."""
    found = [options.make_parser(), inference.make_parser(),
             *(parser_of(module.main)
               for module in (get_norm_stats, check_data, prep_audioset, prep_own))]
    return {parser.prog: parser for parser in found}


words = st.one_of(
    any_text, st.integers().map(str), st.floats().map(str),
    st.sampled_from(['', '-1', '--', '-', '-b', '-w3', '--lr=', '@file', '--help=1', '%s',
                     '%(prog)s', '{}', 'True', 'a\nb', '9' * 5000, '\udcff', 'cuda:128', 'cpu:1']))


@some
@given(st.data())
def test_any_command_line(parsers, data):
    name = data.draw(st.sampled_from(sorted(parsers)))
    known = [option for action in parsers[name]._actions for option in action.option_strings
             if option not in ('-h', '--help')]
    line = data.draw(st.lists(st.one_of(st.sampled_from(known), words), max_size=8))
    if name == 'run.py':
        line = ['--data_train=a', '--data_val=b', '--label_csv=c', '--exp_dir=d', *line]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            args = parsers[name].parse_args(line)
            if name == 'run.py':
                option_checks.check_options(parsers[name], args, Launch())
            if name == 'inference.py':
                inference.check_options(parsers[name], args)
                try:  # as inference.main does
                    choose_device(args.device)
                except ValueError as error:
                    parsers[name].error(str(error))
    except SystemExit as stop:
        said = said.getvalue()
        assert stop.code == 2 and said.startswith(f'{name}: ') and said.count('\n') == 1
    except OUR_ERRORS as error:
        assert '\n' not in str(error)


