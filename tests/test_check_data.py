"""Checks of datafiles: each fault is found; the exit code says if every entry could be used."""
import json
import logging
import os
import zipfile

import numpy as np
import pytest
import soundfile

import check_data
from audio import info
from audio.formats import open_audio
from utilities import parallel


@pytest.fixture
def check(make_labels, capsys, monkeypatch):
    """Check datafiles with a label file of three classes; return the exit code and the output."""
    monkeypatch.setattr(logging, 'basicConfig', lambda **_: None)

    def run(*words):
        with pytest.raises(SystemExit) as stopped:
            check_data.main([*map(str, words), '--label_csv', str(make_labels(3))])
        return stopped.value.code, capsys.readouterr().out
    return run


@pytest.fixture
def write(tmp_path):
    """Write a datafile of entries as they are; returns its path."""
    def make(entries, name='data.json'):
        (tmp_path / name).write_text(json.dumps({'data': entries}))
        return tmp_path / name
    return make


@pytest.fixture
def sound(tmp_path):
    """Write these samples as a WAV of 32-bit floats; returns its path."""
    def make(name, samples, rate=16000):
        soundfile.write(tmp_path / name, np.asarray(samples), rate, subtype='FLOAT')
        return str(tmp_path / name)
    return make


@pytest.fixture
def make_shard(tmp_path):
    """Pack recordings into a zip; returns the paths that lead into it."""
    def make(paths, name='0001.zip', compression=zipfile.ZIP_STORED):
        with zipfile.ZipFile(tmp_path / name, 'w', compression) as archive:
            for path in paths:
                archive.write(path, path.name)
        return [str(tmp_path / name / path.name) for path in paths]
    return make


def problems(output):
    """Return the problems of the first datafile in JSON output, those that there are."""
    found = json.loads(output)['datafiles'][0]['problems']
    return {name: items for name, items in found.items() if items}


def test_sound_data_pass(check, make_datafile, make_tone):
    tones = make_tone('a.wav'), make_tone('b.flac', seconds=2.0)
    code, said = check(make_datafile(list(zip(tones, ['/m/0', '/m/0,/m/1'], strict=True))))
    assert code == 0 and said.splitlines()[-1] == 'training would run with these datafiles'
    assert '2 samples, 2 recordings' in said and 'shortest 1.00, median 1.50, longest 2.00' in said
    assert 'labels: 2 of 3 classes; 1 samples have several' in said and 'class 0 (/m/0): 2' in said
    assert 'classes without samples: 1\n    class 2 (/m/2)' in said


@pytest.mark.parametrize('entry, kind', [
    ('text', 'malformed'), ({'labels': '/m/0'}, 'malformed'),
    ({'wav': 3, 'labels': '/m/0'}, 'malformed'),
    ({'wav': 'TONE', 'labels': 7}, 'malformed'), ({'wav': 'TONE'}, 'malformed'),
    ({'wav': 'TONE', 'labels': None}, 'malformed'),
    ({'wav': 'TONE', 'labels': '/m/9,/m/0,/m/8'}, 'unknown_labels'),
    ({'wav': 'TONE', 'labels': '/m/0,'}, 'unknown_labels')])
def test_an_entry_that_training_refuses_is_found(check, write, make_tone, entry, kind):
    good = {'wav': str(make_tone('a.wav')), 'labels': '/m/0'}
    if isinstance(entry, dict) and entry.get('wav') == 'TONE':
        entry = {**entry, 'wav': str(make_tone('b.wav'))}
    code, said = check(write([good, entry, good | {'wav': str(make_tone('c.wav'))}]), '--json')
    found = problems(said)
    assert code == 1 and list(found) == [kind] and found[kind][0].startswith('entry 1: ')


def test_negatives_are_counted_and_no_problem(check, make_datafile, make_tone):
    tones = [make_tone(f'{i}.wav', 300 + i) for i in range(4)]
    datafile = make_datafile(list(zip(tones, ['/m/0', '', '/m/1', ''])))
    code, said = check(datafile, '--json')
    facts = json.loads(said)['datafiles'][0]
    assert code == 0 and not problems(said)
    assert facts['negatives'] == 2 and facts['labels'] == {'/m/0': 1, '/m/1': 1}
    said = check(datafile)[1]
    assert ('0 samples have several labels, 2 have none (negatives). --loss CE needs exactly one '
            'label per sample: it would stop\n') in said
    assert said.splitlines()[-1] == 'training would run with these datafiles'
    assert 'only negatives' not in said
    assert 'only negatives: AP, AUC' in check(make_datafile([(tones[0], '')]))[1]
    said = check(make_datafile([(tones[0], '/m/0')]))[1]
    assert ('0 samples have several labels, 0 have none (negatives). --loss CE needs exactly one '
            'label per sample\n') in said


def test_all_bad_entries_are_found_and_unknown_labels_counted(check, write, make_tone):
    good = str(make_tone('a.wav'))
    entries = [{'wav': good, 'labels': '/m/9'}, {'wav': good, 'labels': '/m/9,/m/8'}, {}]
    code, said = check(write(entries), '--json')
    found = problems(said)
    assert code == 1 and len(found['unknown_labels']) == 2 and len(found['malformed']) == 1
    assert json.loads(said)['datafiles'][0]['unknown_mids'] == {'/m/9': 2, '/m/8': 1}


@pytest.mark.parametrize('kind', ['missing', 'unreadable', 'empty', 'non_finite', 'block'])
def test_a_recording_that_cannot_be_used_is_found(check, make_datafile, make_tone, sound, tmp_path,
                                                  kind):
    bad = tmp_path / 'bad.wav'
    if kind == 'unreadable':
        bad.write_text('not audio')
    elif kind != 'missing':
        samples = {'empty': np.zeros(0), 'non_finite': [0.1] * 500 + [np.inf],
                   'block': np.full(600_000, 0.1)}[kind]
        if kind == 'block':
            samples[300_000] = np.nan  # neither in the first nor in the last block
        sound('bad.wav', samples)
    code, said = check(make_datafile([(make_tone('a.wav'), '/m/0'), (bad, '/m/1')]), '--json')
    found = problems(said)
    assert code == 1 and list(found) == [{'block': 'non_finite'}.get(kind, kind)]
    assert str(bad) in next(iter(found.values()))[0] and json.loads(said)['would_train']


def test_a_recording_that_ends_early_is_warned_about_with_the_second(check, make_datafile,
                                                                     make_tone):
    path = make_tone('cut.flac', seconds=4.0)
    os.truncate(path, path.stat().st_size // 2)
    code, said = check(make_datafile([(path, '/m/0')]), '--json')
    [text] = problems(said)['incomplete']
    assert code == 0 and text.startswith(f'{path} (from ') and 1 < float(text.split()[-3]) < 3


def test_what_the_model_would_hear_of_odd_sound_is_warned_about(check, make_datafile, sound):
    tone = 0.5 * np.sin(np.arange(16000) / 5)
    wavs = [sound('loud.wav', 32767 * tone), sound('opposite.wav', np.stack([tone, -tone], axis=1)),
            sound('overshoots.wav', 3 * tone)]
    code, said = check(make_datafile([(wav, '/m/0') for wav in wavs]), '--json')
    assert code == 0 and problems(said) == {'too_loud': wavs[:1], 'cancelling': wavs[1:2]}


def test_only_what_an_entry_has_of_its_recording_is_judged(check, write, sound):
    tone = 0.5 * np.sin(np.arange(16000) / 5)
    wav = sound('seconds.wav', np.concatenate([tone, 0 * tone, 9 * tone, tone + np.nan]))
    entries = [{'wav': wav, 'labels': '/m/0', 'start': start, 'seconds': 1} for start in range(4)]
    code, said = check(write([*entries, {**entries[0], 'start': 1000.0001}]), '--json')
    assert code == 1 and problems(said) == {
        'silent': [f'{wav} from 1 s'], 'too_loud': [f'{wav} from 2 s'],
        'non_finite': [f'{wav} from 3 s'], 'past_end': [f'{wav} from 1000.0001 s']}


def test_a_recording_is_read_once_however_many_entries_it_has(check, write, make_tone, monkeypatch):
    opened = []

    def open_and_note(file, name=None):
        opened.append(str(file))
        return open_audio(file, name)
    monkeypatch.setattr(info, 'open_audio', open_and_note)
    monkeypatch.setattr(parallel, 'may_start_processes', lambda: False)
    wavs = [str(make_tone(name, seconds=6.0)) for name in ('a.wav', 'b.wav')]
    entries = [{'wav': wav, 'labels': '/m/0', 'start': start, 'seconds': 2}
               for start in (3, 0, 1.5) for wav in wavs]
    code, said = check(write(entries), '--json')
    assert code == 0 and not problems(said) and opened == wavs


def test_what_becomes_of_a_recording_that_cannot_be_used_is_said(check, make_datafile, make_tone,
                                                                 tmp_path):
    code, said = check(make_datafile([(make_tone('a.wav'), '/m/0'), (tmp_path / 'no.wav', '/m/1')]))
    assert code == 1 and 'would not run' not in said and 'STOPS' not in said
    assert 'BAD AUDIO: missing recordings' in said
    assert said.splitlines()[-1].endswith(
        'has 1 missing recordings (replaced by others in training, up to --max_bad_audio of an '
        'epoch; an error in validation and test)')


def test_recordings_in_shards_are_checked_as_files_are(check, make_datafile, make_tone, make_shard,
                                                       sound, tmp_path):
    sound('silent.wav', np.full(2000, 5e-5))
    sound('non_finite.wav', [0.1] * 500 + [np.inf])
    files = [make_tone('a.flac', rate=44100, channels=2), tmp_path / 'silent.wav',
             tmp_path / 'non_finite.wav']
    packed = make_shard(files)

    def report_of(wavs):
        return json.loads(check(make_datafile([(wav, '/m/0') for wav in wavs]), '--json')[1])

    as_files, as_members = report_of(files), report_of(packed)
    said = json.dumps(as_members).replace('0001.zip/', '')
    assert json.loads(said) == as_files and as_files['datafiles'][0]['problems']['non_finite']


def test_a_truncated_shard_is_named_once_and_its_recordings_are_counted(
        check, make_datafile, make_tone, make_shard, tmp_path):
    tones = [make_tone(f'{i}.wav') for i in range(5)]
    wavs = make_shard(tones[:3], 'cut.zip') + make_shard(tones)
    datafile = make_datafile([(wav, '/m/0') for wav in wavs])
    os.truncate(tmp_path / 'cut.zip', 50_000)
    code, said = check(datafile)
    assert code == 1 and said.count('cut.zip') == 1
    assert 'has 1 shards that are missing or cannot be read (' in said.splitlines()[-1]
    assert f'the shard {tmp_path / "cut.zip"} is cut off' in said and '(3 recordings)' in said


def test_what_is_wrong_with_members_of_a_shard_is_found(check, make_datafile, make_tone, make_shard,
                                                        tmp_path):
    damaged, whole = make_shard([make_tone('a.wav'), make_tone('b.wav')])
    compressed, = make_shard([make_tone('c.wav')], 'deflated.zip', zipfile.ZIP_DEFLATED)
    missing = tmp_path / '0001.zip' / 'no.wav'
    with open(tmp_path / '0001.zip', 'r+b') as file:
        file.seek(1000)  # among the samples of a.wav
        file.write(b'damage')
    wavs = [damaged, whole, compressed, missing, tmp_path / 'no.zip' / 'a.wav']
    code, said = check(make_datafile([(wav, '/m/0') for wav in wavs]), '--json')
    found = problems(said)
    assert code == 1 and list(found) == ['shards', 'missing', 'unreadable']
    assert found['missing'] == [str(missing)]
    assert 'no.zip does not exist (1 recordings)' in found['shards'][0]
    assert 'a.wav' in found['unreadable'][0] and 'checksum' in found['unreadable'][0]
    assert len(found['unreadable']) == 2 and 'compressed' in found['unreadable'][1]


def test_the_last_line_says_what_stops_training(check, make_datafile, make_tone, tmp_path):
    code, said = check(make_datafile([(make_tone('a.wav'), '/m/0')], 'good.json'),
                       make_datafile([(tmp_path / 'no.wav', '/m/0'), ('', '/m/0')], 'bad.json'))
    last = said.splitlines()[-1]
    assert code == 1 and 'good.json' not in last and 'bad.json has 1 missing recordings (' in last
    assert 'training would not run: ' in last and last.endswith('bad.json has 1 malformed entries')


def test_recordings_that_train_badly_are_warned_about(check, make_datafile, make_tone, sound):
    wavs = [sound('silent.wav', np.full(2000, 5e-5)), sound('short.wav', [0.1] * 399),
            make_tone('cd.wav', rate=44100, channels=2), make_tone('long.wav', seconds=3.0)]
    datafile = make_datafile([(wav, '/m/0') for wav in wavs])
    code, said = check(datafile, '--audio_length', '98', '--json')
    facts = json.loads(said)['datafiles'][0]
    assert code == 0 and problems(said) == {'silent': wavs[:1], 'too_short': wavs[1:2]}
    assert facts['sample_rates'] == {'16000': 3, '44100': 1}
    assert facts['channels'] == {'1': 3, '2': 1}
    # One second is 98 frames.
    assert facts['shorter_than_window'] == 2 and facts['longer_than_window'] == 1
    code, said = check(datafile, '--audio_length', '98')
    assert code == 0 and 'sample rates other than 16000 Hz: 1 at 44100 Hz (' in said
    assert 'silent recordings (peak below 0.0001): 1' in said


def test_what_is_listed_twice_is_found(check, write, make_tone):
    wavs = [str(make_tone(name)) for name in ('a.wav', 'b.wav')]
    entries = [{'wav': wavs[0], 'labels': '/m/0', 'video_id': 'x'},
               {'wav': wavs[0], 'labels': '/m/0'},
               {'wav': wavs[1], 'labels': '/m/0', 'video_id': 'x'}]
    code, said = check(write(entries), '--json')
    assert code == 0 and problems(said) == {'repeated_wavs': [wavs[0]], 'repeated_video_ids': ['x']}


def test_a_leak_between_datafiles_is_warned_about(check, write, make_tone):
    a, b, c = (str(make_tone(name)) for name in ('a.wav', 'b.wav', 'c.wav'))
    both = {'wav': b, 'labels': '/m/0'}
    train = write([{'wav': a, 'labels': '/m/0', 'video_id': 'x'}, both], 'train.json')
    val = write([{'wav': c, 'labels': '/m/0', 'video_id': 'x'}, both], 'val.json')
    code, said = check(train, val)
    assert code == 0 and f'LEAK, recordings in both: 1\n    {b}' in said
    assert 'LEAK, video ids in both: 1\n    x' in said
    assert 'datafiles share recordings' in said.splitlines()[-1]
    assert json.loads(check(train, val, '--json')[1])['leaks'] == [
        {'datafiles': [str(train), str(val)], 'wavs': [b], 'video_ids': ['x']}]


def test_an_entry_that_ends_after_its_recording_is_listed(check, write, make_tone):
    wav = str(make_tone('a.wav'))
    seconds = soundfile.info(wav).duration
    entries = [{'wav': wav, 'labels': '/m/0', 'start': 0, 'seconds': length}
               for length in (seconds, seconds + 5)]
    code, said = check(write(entries), '--json')
    assert code == 0 and problems(said)['shortened'] == [f'{wav} ({seconds:.2f} s are there)']


def test_a_weight_file_that_does_not_fit_is_found(check, make_datafile, make_tone, tmp_path):
    datafile = make_datafile([(make_tone('a.wav'), '/m/0')])
    assert 'weight file' not in check(datafile)[1]
    (tmp_path / 'data_weight.csv').write_text('5\n')
    assert 'weight file: fits' in check(datafile)[1]
    (tmp_path / 'data_weight.csv').write_text('5\n6\n')
    code, said = check(datafile)
    assert code == 0 and '--bal bal would stop' in said and 'must hold 1 non-negative' in said


def test_a_datafile_is_held_against_its_segment_list(check, write, make_tone, tmp_path):
    (tmp_path / 'list.csv').write_text('aaaaaaaaaaa, 0, 10, "/m/0,/m/1"\n'
                                       'bbbbbbbbbbb, 0, 10, "/m/1"\n'
                                       'ccccccccccc, 0, 10, "/m/2"\n')
    entries = [{'video_id': name * 11, 'wav': str(make_tone(f'{name}.wav')), 'labels': labels}
               for name, labels in (('a', '/m/1,/m/0'), ('b', '/m/2'), ('d', '/m/0'))]
    code, said = check(write(entries), '--segments', tmp_path / 'list.csv', '--json')
    found = problems(said)
    assert code == 0 and found['segments_missing'] == ['ccccccccccc from 0 s']
    assert found['segments_not_listed'] == ['entry 2: ddddddddddd']
    assert found['segments_other_labels'] == ['entry 1: bbbbbbbbbbb has /m/2']


def test_each_segment_of_a_video_is_looked_for(check, write, make_tone, tmp_path):
    video = 'aaaaaaaaaaa'
    (tmp_path / 'list.csv').write_text(''.join(f'{video}, {start}, {start + 1}, "/m/0"\n'
                                               for start in (3, 0, 6)))
    whole = str(make_tone(f'{video}.wav', seconds=9.0))
    cut = str(make_tone(f'{video}_6.000.wav', seconds=1.0))
    entries = [{'wav': whole, 'start': 0, 'seconds': 1}, {'wav': cut},
               {'wav': whole, 'start': 3, 'seconds': 1}]
    entries = [{'video_id': video, 'labels': '/m/0', **entry} for entry in entries]
    for missing, start in ((0, 0), (1, 6), (2, 3), (None, None)):
        listed = [entry for i, entry in enumerate(entries) if i != missing]
        code, said = check(write(listed), '--segments', tmp_path / 'list.csv', '--json')
        found = problems(said)
        assert found.get('segments_missing', []) == [f'{video} from {start} s'] * (start is not None)
        assert code == 0 and 'segments_elsewhere' not in found


@pytest.mark.parametrize('wav', [{}, {'wav': 5}])
def test_a_malformed_entry_of_a_listed_video_is_found(check, write, tmp_path, wav):
    (tmp_path / 'list.csv').write_text('aaaaaaaaaaa, 0, 10, "/m/0"\n')
    entry = {'video_id': 'aaaaaaaaaaa', 'labels': '/m/0', 'start': -1, **wav}
    code, said = check(write([entry]), '--segments', tmp_path / 'list.csv', '--json')
    assert code == 1 and 'malformed' in problems(said)


def test_long_lists_are_cut_in_text_and_whole_in_json(check, make_datafile, tmp_path):
    datafile = make_datafile([(tmp_path / f'{i}.wav', '/m/0') for i in range(30)])
    code, said = check(datafile, '--max_listed', '4')
    assert code == 1 and said.count('.wav') == 4 and '... and 26 more' in said
    assert len(problems(check(datafile, '--json')[1])['missing']) == 30


def test_the_others_are_checked_where_one_is_no_datafile(check, make_datafile, make_tone, tmp_path):
    code, said = check(tmp_path / 'nowhere.json', make_datafile([(make_tone('a.wav'), '/m/0')]))
    assert code == 1 and 'data.json: 1 samples' in said
    assert 'cannot read the datafile' in said.splitlines()[-1]


def test_a_wrong_label_file_ends_with_a_sentence(make_datafile, tmp_path, monkeypatch):
    monkeypatch.setattr(logging, 'basicConfig', lambda **_: None)
    with pytest.raises(SystemExit, match='error: cannot read the label file'):
        check_data.main([str(make_datafile([('a.wav', '/m/0')])),
                         '--label_csv', str(tmp_path / 'nowhere.csv')])
