"""Whatever the copy of AudioSet, training hears the labelled second: a changing tone tells."""
import csv
import functools
import gzip
import io
import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile

import audioset
import check_data
from audio.augmentation import Augmentation
from audio.reading import load_waveform
from dataloader import AudiosetDataset
from packing import pack
from prep_audioset import LABEL_FILE
from utilities.errors import DataError

RATE = 22050
DOG = '/m/0bt9lr'
CONF = {'num_mel_bins': 128, 'target_length': 1024, 'mode': 'evaluation'}
# Recordings of a video whose segment is 30 to 40 s: from and to which second they are.
WHOLE, CUT, LATE_CUT, WRONG_CUT, ENDS_EARLY, ENDS_BEFORE, SHORT = (
    (0, 60), (30, 40), (30, 40.6), (25, 45), (0, 36), (0, 28), (30, 34))
KINDS = WHOLE, CUT, LATE_CUT, WRONG_CUT, ENDS_EARLY, ENDS_BEFORE, SHORT
NAMES = ['{}.wav', '{}_30.000.wav.gz', 'Dogs [barking], 2 - [{}].m4a', 'Dogs-2-{}.webm',
         'id_{}.m4a', '{}.p0.mp3', 'Y{}_30000_40000.flac']
HAS_START = ['{}_30.000.wav.gz', 'Y{}_30000_40000.flac']


def tones(start, end):
    """Samples of the seconds of a video, each a tone of its own."""
    t = np.arange(round(start * RATE), round(end * RATE)) / RATE
    return 0.3 * np.sin(2 * np.pi * (300 + 40 * np.floor(t)) * t)


def seconds_heard(waveform, seconds):
    """Which seconds of the video the first seconds of a waveform at 16 kHz are."""
    heard = []
    for second in waveform.numpy()[:seconds * 16000].reshape(seconds, 16000):
        heard.append(round((np.abs(np.fft.rfft(second)).argmax() - 300) / 40))
    return heard


@functools.cache
def encode(suffix, start, end):
    """Return seconds of a video as a file of the kind that a suffix names."""
    samples = tones(start, end)
    file = io.BytesIO()
    codec = {'.m4a': ('mp4', 'aac', 'fltp'), '.webm': ('webm', 'libopus', 'flt')}.get(suffix)
    if codec is None:
        soundfile.write(file, samples, RATE, format=suffix[1:].upper())
        return file.getvalue()
    container, encoder, sample_format = codec
    with av.open(file, 'w', format=container) as output:
        rate = 48000 if suffix == '.webm' else RATE  # Opus knows no other
        stream = output.add_stream(encoder, rate=rate, layout='mono')
        frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), sample_format, 'mono')
        frame.sample_rate = RATE
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            output.mux(packet)
    return file.getvalue()


@pytest.fixture
def write(tmp_path):
    """Write the seconds of a video as a recording below audio/ ; returns its path."""
    def make(name, start, end):
        path = tmp_path / 'audio' / name
        path.parent.mkdir(exist_ok=True)
        is_packed = path.suffix == '.gz'
        data = encode(Path(path.stem if is_packed else name).suffix, start, end)
        path.write_bytes(gzip.compress(data, 1) if is_packed else data)
        return str(path)
    return make


@pytest.fixture
def write_parquet(tmp_path):
    """Write recordings, (video id, path, start, end), as agkphysics/AudioSet has them."""
    def make(*rows, name='00.parquet'):
        audio = [{'bytes': encode('.flac', start, end), 'path': path}
                 for _, path, start, end in rows]
        table = pyarrow.table({
            'video_id': [row[0] for row in rows], 'audio': audio,
            'labels': [['/m/09x0r']] * len(rows), 'human_labels': [['Speech']] * len(rows)})
        path = tmp_path / 'audio' / name
        path.parent.mkdir(exist_ok=True)
        pyarrow.parquet.write_table(table, path, row_group_size=3)
        return path
    return make


@pytest.fixture
def prepare(tmp_path, capsys):
    """Prepare audio/ by a list of segments, of 30 to 40 s if they are ids alone.

    how: a datafile alone ('plain'), 'flac', 'shards' or 'both'. Returns what was written and said,
    and `heard`: video id -> seconds of the video that AudiosetDataset gives.
    """
    def run(how, *clips):
        clips = [clip if isinstance(clip, tuple) else (clip, 30, 40) for clip in clips]
        (tmp_path / 'list.csv').write_text(
            ''.join(f'{clip}, {start}, {end}, "{DOG}"\n' for clip, start, end in clips))
        out = tmp_path / f'{how}.json'
        audioset.prepare([tmp_path / 'list.csv'], tmp_path / 'audio', out,
                     tmp_path / 'flac' if how in ('flac', 'both') else None, LABEL_FILE,
                     tmp_path / f'shards_{how}' if how in ('shards', 'both') else None)
        dataset = AudiosetDataset(out, CONF, LABEL_FILE)
        entries = json.loads(out.read_text())['data']
        heard = {}
        for i, entry in enumerate(entries):
            waveform = dataset.make_waveform(i, Augmentation())
            seconds = min(10, round(len(waveform) / 16000 - 0.3))  # codecs lack some samples
            heard[entry['video_id']] = seconds_heard(waveform, seconds)
        tables = ((tmp_path / f'{how}_{name}.csv').read_text() for name in ('missing', 'short'))
        missing, short = ({clip: last for clip, _, last in csv.reader(table.splitlines()[1:])}
                          for table in tables)
        return SimpleNamespace(
            heard=heard, missing=missing, short=short, said=capsys.readouterr().out, out=out,
            wavs={entry['video_id']: entry['wav'] for entry in entries}, entries=entries)
    return run


@pytest.fixture
def check(tmp_path, capsys, monkeypatch):
    """Check a datafile against the list of `prepare`; returns the problems that there are."""
    def run(datafile):
        monkeypatch.setattr(logging, 'basicConfig', lambda **_: None)
        with pytest.raises(SystemExit):
            check_data.main([str(datafile), '--label_csv', str(LABEL_FILE), '--segments',
                             str(tmp_path / 'list.csv'), '--json'])
        problems = json.loads(capsys.readouterr().out)['datafiles'][0]['problems']
        return {name: items for name, items in problems.items() if items}
    return run


def expected(kind, name):
    """The seconds that are to be heard of a recording, None if it is to be left out."""
    if kind in (WRONG_CUT, ENDS_BEFORE):
        return None
    if kind == SHORT and name not in HAS_START or kind == ENDS_EARLY and name in HAS_START:
        return None
    return list(range(30, {ENDS_EARLY: 36, SHORT: 34}.get(kind, 40)))


@pytest.mark.parametrize('how', ['plain', 'flac', 'shards', 'both'])
def test_the_labelled_second_is_heard_or_the_clip_is_listed(write, prepare, check, how):
    kinds = {f'{i}{j}-_{"x" * 7}': (kind, name)
             for i, kind in enumerate(KINDS) for j, name in enumerate(NAMES)}
    for clip, (kind, name) in kinds.items():
        write(name.format(clip), *kind)
    said = prepare(how, *kinds)
    wanted = {clip: expected(kind, name) for clip, (kind, name) in kinds.items()}
    if how == 'plain':
        wanted |= {clip: None for clip, (_, name) in kinds.items() if name.endswith('.gz')}
    for clip, (kind, name) in kinds.items():
        assert said.heard.get(clip) == wanted[clip], (kind, name)
        assert (clip in said.missing) == (wanted[clip] is None)
        assert (clip in said.short) == (len(wanted[clip] or range(10)) < 9)
    assert all('give --flac_dir or --shards' in said.missing[clip] for clip in kinds
               if how == 'plain' and kinds[clip][1].endswith('.gz'))
    found = sum(seconds is not None for seconds in wanted.values())
    assert f'listed {len(kinds)}, found {found} ' in said.said
    problems = check(said.out)
    assert set(problems) <= {'segments_missing', 'segments_short'}
    assert len(problems['segments_short']) == len(said.short)


def test_a_datafile_alone_says_start_and_seconds_of_whole_videos_only(write, prepare):
    wavs = [write('aaaaaaaaaaa.wav', *WHOLE), write('bbbbbbbbbbb.wav', *CUT)]
    whole, cut = prepare('plain', 'aaaaaaaaaaa', 'bbbbbbbbbbb').entries
    assert whole == {'video_id': 'aaaaaaaaaaa', 'wav': wavs[0], 'labels': DOG, 'start': 30.0,
                     'seconds': 10.0}
    assert cut == {'video_id': 'bbbbbbbbbbb', 'wav': wavs[1], 'labels': DOG}


def test_copies_of_a_segment_end_with_it(write, prepare):
    write('aaaaaaaaaaa.wav', *WHOLE)
    for how in ('flac', 'shards', 'both'):
        assert len(load_waveform(prepare(how, 'aaaaaaaaaaa').wavs['aaaaaaaaaaa'])) == 160_000


def test_several_segments_are_cut_out_of_one_video(write, prepare):
    write('aaaaaaaaaaa.wav', *WHOLE)
    clips = [('aaaaaaaaaaa', 0, 10), ('aaaaaaaaaaa', 42.5, 52.5)]
    entries = prepare('plain', *clips).entries
    assert [entry.get('start') for entry in entries] == [0, 42.5]
    flacs = prepare('flac', *clips).entries
    assert [Path(entry['wav']).name for entry in flacs] == ['aaaaaaaaaaa_0.000.flac',
                                                            'aaaaaaaaaaa_42.500.flac']


def test_a_segment_at_the_beginning_is_where_both_readings_agree(write, prepare):
    clips = [(name * 11, 0, 10) for name in 'abc']
    for (name, *_), end in zip(clips, (4, 10, 60)):
        write(f'{name}.wav', 0, end)
    said = prepare('flac', *clips)
    assert [len(said.heard[name]) for name, *_ in clips] == [4, 10, 10]
    assert list(said.short) == ['a' * 11]
    assert all(seconds == list(range(len(seconds))) for seconds in said.heard.values())


def test_a_longer_cut_that_names_its_end_begins_with_the_segment(write, prepare):
    write('aaaaaaaaaaa_30_60.wav', 30, 60)
    write('bbbbbbbbbbb_30000_75000.wav', 30, 75)
    said = prepare('plain', 'aaaaaaaaaaa', 'bbbbbbbbbbb')
    assert set(map(tuple, said.heard.values())) == {tuple(range(30, 40))} and len(said.heard) == 2


def test_of_several_recordings_a_whole_segment_then_a_start_in_the_name_counts(write, prepare):
    write('aaaaaaaaaaa_30.wav', *SHORT)
    whole = write('x-aaaaaaaaaaa.wav', *WHOLE)
    write('bbbbbbbbbbb.wav', *CUT)
    named = write('z [bbbbbbbbbbb]_30.000.wav', *CUT)
    said = prepare('plain', 'aaaaaaaaaaa', 'bbbbbbbbbbb')
    assert said.wavs == {'aaaaaaaaaaa': whole, 'bbbbbbbbbbb': named} and not said.short


def test_what_matches_no_clip_is_counted_with_examples(write, prepare):
    write('aaaaaaaaaaa.wav', *CUT)
    write('aaaaaaaaaaa_90.wav', *CUT)
    for name in ('song.wav', 'Title [ccccccccccc].flac', 'x.wav.gz', 'y.wav'):
        write(name, 0, 1)
    said = prepare('plain', 'aaaaaaaaaaa').said
    assert '4 files match no clip of the list, such as ' in said and said.count("audio/") == 4
    assert '1 files of listed videos are left out' in said and 'aaaaaaaaaaa_90.wav' in said


def test_copies_that_an_earlier_version_made_of_videos_are_made_anew(write, prepare, tmp_path):
    write('aaaaaaaaaaa.flac', *WHOLE)
    clip = tmp_path / 'flac' / 'aaaaaaaaaaa_30.000.flac'
    clip.parent.mkdir()
    video = tmp_path / 'audio' / 'aaaaaaaaaaa.flac'
    clip.write_bytes(video.read_bytes())
    assert prepare('flac', 'aaaaaaaaaaa').heard == {'aaaaaaaaaaa': list(range(30, 40))}
    pack({clip.name: video}, tmp_path / 'shards_both', 10 ** 9)
    with pytest.raises(DataError, match='0001.zip/aaaaaaaaaaa_30.000.flac is not the clip of 10.0 '
                                        's.*delete the folder .*shards_both, '):
        prepare('both', 'aaaaaaaaaaa')


def test_cuts_in_shards_leave_no_scratch_and_are_not_made_twice(write, prepare, tmp_path):
    write('aaaaaaaaaaa.wav', *WHOLE)
    write('bbbbbbbbbbb.wav', *CUT)
    shards = tmp_path / 'shards_shards'
    first = prepare('shards', 'aaaaaaaaaaa', 'bbbbbbbbbbb')
    assert sorted(path.name for path in shards.iterdir()) == ['0001.zip']
    (shards / 'copies').mkdir()  # as a run leaves it that was killed before it could remove it
    (shards / 'copies' / 'aaaaaaaaaaa_30.000.flac').touch()
    assert prepare('shards', 'aaaaaaaaaaa', 'bbbbbbbbbbb').wavs == first.wavs
    assert sorted(path.name for path in shards.iterdir()) == ['0001.zip']


@pytest.mark.parametrize('how', ['flac', 'shards', 'both'])
def test_damage_in_the_middle_of_a_flac_makes_a_short_clip(write, prepare, how):
    path = Path(write('aaaaaaaaaaa.flac', *WHOLE))
    data = path.read_bytes()
    damage = len(data) * 34 // 60
    path.write_bytes(data[:damage] + bytes(1000) + data[damage + 1000:])
    for _ in 'once', 'and again':
        said = prepare(how, 'aaaaaaaaaaa')
        assert list(said.short) == ['aaaaaaaaaaa'] and '1 clips are more than 1 s' in said.said
        assert 3 < float(said.short['aaaaaaaaaaa']) < 7


def test_what_is_no_gzip_is_left_out(write, prepare, tmp_path):
    write('aaaaaaaaaaa.wav.gz', *CUT)
    write('bbbbbbbbbbb.wav.gz', *CUT)
    (tmp_path / 'audio' / 'bbbbbbbbbbb.wav.gz').write_bytes(b'no gzip')
    said = prepare('flac', 'aaaaaaaaaaa', 'bbbbbbbbbbb')
    assert list(said.heard) == ['aaaaaaaaaaa'] and 'unreadable 1' in said.said
    assert 'bbbbbbbbbbb.wav.gz cannot be unpacked' in said.missing['bbbbbbbbbbb']


@pytest.mark.parametrize('how', ['flac', 'shards', 'both'])
def test_parquet_is_unpacked(write, write_parquet, prepare, how, tmp_path):
    clips = [name * 11 for name in 'abcdefg']
    kinds = [CUT, WHOLE, SHORT, CUT, WRONG_CUT, SHORT]
    paths = [*(f'audio/eval/{clip}.flac' for clip in clips[:3]), None, f'{clips[4]}.flac',
             f'Y{clips[5]}_30.000.wav']
    rows = [(clip, path, *kind) for clip, path, kind in zip(clips, paths, kinds)]
    write_parquet(*rows, ('z' * 11, None, 0, 1))
    write(f'{clips[6]}.wav', *CUT)
    said = prepare(how, *clips)
    ten = list(range(30, 40))
    assert said.heard == {clips[0]: ten, clips[1]: ten, clips[3]: ten, clips[5]: ten[:4],
                          clips[6]: ten}
    assert list(said.missing) == [clips[2], clips[4]]
    assert f'00.parquet/{clips[2]}.flac: it has 4.0 s' in said.missing[clips[2]]
    assert '1 files match no clip' in said.said
    again = prepare(how, *clips)
    assert (again.heard, again.wavs, again.missing) == (said.heard, said.wavs, said.missing)


def test_parquet_needs_a_folder_and_pyarrow_and_columns(write_parquet, prepare, monkeypatch):
    path = write_parquet(('a' * 11, None, *CUT))
    with pytest.raises(DataError, match='are to be unpacked: give --flac_dir or --shards'):
        prepare('plain', 'a' * 11)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, 'pyarrow.parquet', None)
        with pytest.raises(DataError, match='takes the package pyarrow: pip install pyarrow'):
            prepare('flac', 'a' * 11)
    pyarrow.parquet.write_table(pyarrow.table({'video_id': ['a' * 11]}), path)
    with pytest.raises(DataError, match='no columns video_id and audio'):
        prepare('flac', 'a' * 11)
    path.write_bytes(b'no parquet')
    with pytest.raises(DataError, match='cannot read the parquet file .*00.parquet'):
        prepare('flac', 'a' * 11)


def test_the_check_finds_recordings_that_do_not_begin_with_their_segment(write, check, tmp_path):
    (tmp_path / 'list.csv').write_text(
        ''.join(f'{name * 11}, 30, 40, "{DOG}"\n' for name in 'abcdefg'))
    rows = [('a', '{}.wav', WHOLE, {}), ('b', '{}_30.000.wav', WHOLE, {}),
            ('c', '{}.wav', WRONG_CUT, {}), ('d', '{}_90.wav', CUT, {}),
            ('e', '{}.wav', WHOLE, {'start': 20.0, 'seconds': 10.0}),
            ('f', '{}.wav', WHOLE, {'start': 30, 'seconds': 4.0}),
            ('g', '{}.wav', ENDS_BEFORE, {'start': 30})]
    entries = [{'video_id': letter * 11, 'wav': write(name.format(letter * 11), *kind),
                'labels': DOG, **window} for letter, name, kind, window in rows]
    (tmp_path / 'data.json').write_text(json.dumps({'data': entries}))
    problems = check(tmp_path / 'data.json')
    assert list(problems) == ['past_end', 'segments_elsewhere', 'segments_short']
    assert [text.split()[2][0] for text in problems['segments_elsewhere']] == list('abcdeg')
    assert problems['segments_short'] == [f'entry 5: {"f" * 11}: 4.0 of 10 s']
