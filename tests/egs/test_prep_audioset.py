"""Preparation of AudioSet: files are matched with the segment list by their names."""
import csv
import json
import logging
import os
import resource
import signal
import time
import zipfile

import numpy as np
import pytest
import soundfile

import audioset
import prep_audioset
from audio.reading import load_waveform
from models.atomic import WriteError
from packing import pack
from prep_audioset import LABEL_FILE
from utilities.datafiles import read_datafile
from utilities.errors import DataError
from utilities.labels import read_labels

MALE, DOG = '/m/05zppz', '/m/0bt9lr'
FIRST, SECOND = '--PJHxphWEs', 'Yb_-cd_-123'  # ids may begin with - or Y, and contain _ and -


@pytest.fixture
def prepare(tmp_path, capsys):
    """Prepare what lies in audio/, by a list of two clips.

    Returns entries, rows of the missing, and the report.
    """
    def run(flac_dir=None, *how, clips=((FIRST, 30, f'{MALE},{DOG}'), (SECOND, 0, DOG))):
        path = tmp_path / 'list.csv'
        path.write_text(''.join(f'{clip}, {start:.3f}, {start + 10:.3f}, "{mids}"\n'
                                for clip, start, mids in clips))
        audioset.prepare([path], tmp_path / 'audio', tmp_path / 'out' / 'data.json', flac_dir,
                         LABEL_FILE, *how)
        with open(tmp_path / 'out' / 'data_missing.csv', newline='') as file:
            missing = list(csv.DictReader(file))
        entries = json.loads((tmp_path / 'out' / 'data.json').read_text())['data']
        return entries, missing, capsys.readouterr().out
    return run


@pytest.fixture
def audio(tmp_path):
    """Write a file below audio/, a stereo tone at 22.05 kHz in that format or a text.

    Returns its path.
    """
    def make(name, text=None, amplitude=0.1):
        path = tmp_path / 'audio' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is not None:
            path.write_text(text)
            return str(path)
        tone = amplitude * np.sin(np.arange(10 * 22050) / 10)
        soundfile.write(path, np.stack([tone, tone], axis=1), 22050,
                        format={'.oga': 'OGG', '.aif': 'AIFF'}.get(path.suffix))
        return str(path)
    return make


@pytest.fixture
def files(tmp_path):
    """Sixty files of 20 kB to pack: name -> path."""
    rng = np.random.default_rng(0)
    (tmp_path / 'files').mkdir()
    paths = {f'{i}.flac': tmp_path / 'files' / f'{i}' for i in range(60)}
    for path in paths.values():
        path.write_bytes(rng.bytes(20_000))
    return paths


@pytest.fixture
def pack_apart():
    """Start packing in another process; returns its pid."""
    def start(*how):
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            pack(*how)
            code = 0
        finally:
            os._exit(code)
    return start


def packed_in(folder):
    """Shard and name of all that shards hold, in their order."""
    return [(path.name, name) for path in sorted(folder.glob('*.zip'))
            for name in zipfile.ZipFile(path).namelist()]


@pytest.mark.parametrize('name', [
    f'{FIRST}.wav', f'Y{FIRST}.flac', f'{FIRST}_30.mp3', f'{FIRST}_30.0.ogg',
    f'{FIRST}_30.000_40.000.wav', f'{FIRST}_30000_40000.flac', f'{FIRST}-30-40.wav',
    f'Y{FIRST}_30000.WAV', f'deep/er/{FIRST}.oga', f'{FIRST}.aif'])
def test_a_file_belongs_to_the_clip_that_its_name_says(prepare, audio, name):
    path = audio(name)
    entries, missing, report = prepare()
    assert entries == [{'video_id': FIRST, 'wav': path, 'labels': f'{MALE},{DOG}'}]
    assert missing == [{'video_id': SECOND, 'start_seconds': '0.000', 'problem': 'missing'}]
    assert 'listed 2, found 1 (50.0%), missing 1, unreadable 0' in report


@pytest.mark.parametrize('name', [
    f'{SECOND}.wav', f'Y{SECOND}.wav', f'{SECOND}_0.wav', f'Y{SECOND}_0_10000.wav'])
def test_an_id_that_begins_with_y_is_no_other_id(prepare, audio, name):
    path = audio(name)
    assert [(entry['video_id'], entry['wav']) for entry in prepare()[0]] == [(SECOND, path)]


def test_the_datafile_is_in_the_order_of_the_list_and_is_what_training_reads(prepare, audio,
                                                                             tmp_path):
    for name in (f'{SECOND}.wav', f'{FIRST}.wav'):
        audio(name)
    entries, missing, _ = prepare()
    assert [entry['video_id'] for entry in entries] == [FIRST, SECOND] and missing == []
    datafile = read_datafile(tmp_path / 'out' / 'data.json', read_labels(LABEL_FILE).index())
    assert len(datafile) == 2 and all(os.path.isabs(wav) for wav in datafile.wavs)


def test_a_file_with_another_start_is_another_clip(prepare, audio):
    audio(f'{FIRST}_90.wav')
    audio(f'{SECOND}.wav')
    entries, missing, report = prepare()
    assert [entry['video_id'] for entry in entries] == [SECOND] and missing[0]['video_id'] == FIRST
    assert '1 files of listed videos are left out' in report


def test_of_several_files_the_one_with_the_start_then_the_readable_then_the_first_counts(prepare,
                                                                                         audio):
    audio(f'{FIRST}.wav')
    best = audio(f'z/{FIRST}_30.wav')
    audio(f'{SECOND}.m4a', text='')
    audio(f'{SECOND}.flac', text='broken')
    other = audio(f'{SECOND}.wav')
    audio(f'b/{SECOND}.wav')
    assert [entry['wav'] for entry in prepare()[0]] == [best, other]


def test_files_that_cannot_be_decoded_are_listed_with_the_reason(prepare, audio):
    audio(f'{FIRST}.webm', text='video')
    audio(f'{SECOND}.flac', text='broken')
    third = '11111111111'
    audio(f'{third}.wav')
    soundfile.write(audio('22222222222.wav'), np.zeros(0), 16000)
    _, missing, report = prepare(clips=[(name, 0, DOG)
                                        for name in (FIRST, SECOND, third, '22222222222')])
    problems = {row['video_id']: row['problem'] for row in missing}
    assert 'found 1 (25.0%), missing 0, unreadable 3' in report
    assert 'FFmpeg' in problems[FIRST] and 'cannot read' in problems[SECOND]
    assert 'no samples' in problems['22222222222']


def test_files_that_are_no_audio_are_ignored(prepare, audio):
    audio(f'{SECOND}.wav')
    for suffix in ('json', 'part', 'txt', 'wav.part'):
        audio(f'{FIRST}.{suffix}', text='')
    _, missing, report = prepare()
    assert [row['problem'] for row in missing] == ['missing']
    assert '4 files are not audio by their suffix, such as ' in report


def test_a_video_with_several_clips_needs_the_start_in_the_name(prepare, audio):
    clips = [(FIRST, 0, MALE), (FIRST, 30, DOG), (SECOND, 0, DOG)]
    audio(f'{FIRST}.wav')
    audio(f'{SECOND}.wav')
    _, missing, report = prepare(clips=clips)
    assert 'found 1 ' in report and all('several of its clips' in row['problem'] for row in missing)
    path = audio(f'{FIRST}_30.wav')
    wavs = [entry['wav'] for entry in prepare(clips=clips)[0] if entry['video_id'] == FIRST]
    assert wavs == [path]


def test_folders_that_link_to_each_other_are_walked_once(prepare, audio, tmp_path):
    audio(f'a/{FIRST}.wav')
    (tmp_path / 'audio' / 'a' / 'loop').symlink_to(tmp_path / 'audio')
    (tmp_path / 'elsewhere').mkdir()
    os.rename(audio(f'{SECOND}.wav'), tmp_path / 'elsewhere' / f'{SECOND}.wav')
    (tmp_path / 'audio' / 'b').symlink_to(tmp_path / 'elsewhere')
    assert len(prepare()[0]) == len(audioset.list_recordings(tmp_path / 'audio')[0]) == 2


def test_copies_are_16_khz_mono_flac_that_loud_clips_do_not_wrap(prepare, audio, tmp_path):
    audio(f'{FIRST}.wav', amplitude=1.0)
    audio(f'{SECOND}.mp3')
    flac = tmp_path / 'flac'
    entries, _, _ = prepare(flac)
    assert [entry['wav'] for entry in entries] == [f'{flac}/{FIRST}_30.000.flac',
                                                   f'{flac}/{SECOND}_0.000.flac']
    infos = [soundfile.info(entry['wav']) for entry in entries]
    assert {(info.samplerate, info.channels) for info in infos} == {(16000, 1)}
    assert {(info.format, info.subtype) for info in infos} == {('FLAC', 'PCM_16')}
    assert np.abs(np.diff(soundfile.read(entries[0]['wav'])[0])).max() < 0.3


def test_a_broken_off_conversion_goes_on_where_it_was(prepare, audio, tmp_path):
    audio(f'{FIRST}.wav')
    audio(f'{SECOND}.wav')
    flac = tmp_path / 'flac'
    kept, broken = (flac / os.path.basename(entry['wav']) for entry in prepare(flac)[0])
    broken.write_bytes(broken.read_bytes()[:20])
    before = kept.stat().st_mtime_ns
    entries, missing, _ = prepare(flac)
    assert len(entries) == 2 and missing == []
    assert kept.stat().st_mtime_ns == before and soundfile.info(broken).frames == 160000


def test_copies_serve_as_audio_themselves(prepare, audio, tmp_path):
    audio(f'{FIRST}.wav')
    flacs = [entry['wav'] for entry in prepare(tmp_path / 'flac')[0]]
    (tmp_path / 'audio').rename(tmp_path / 'gone')
    (tmp_path / 'flac').rename(tmp_path / 'audio')
    names = [os.path.basename(entry['wav']) for entry in prepare()[0]]
    assert names == [os.path.basename(wav) for wav in flacs]


@pytest.mark.parametrize('convert', [True, False])
def test_clips_are_packed_into_shards_in_the_order_of_the_list(prepare, audio, tmp_path, convert):
    audio(f'{SECOND}.wav')
    audio(f'{FIRST}.wav')
    flac, shards = tmp_path / 'flac' if convert else None, tmp_path / 'shards'
    plain = prepare(flac)[0]
    entries, missing, _ = prepare(flac, shards)
    names = [f'{FIRST}_30.000', f'{SECOND}_0.000']
    suffix = 'flac' if convert else 'wav'
    assert [entry['wav'] for entry in entries] == [f'{shards}/0001.zip/{name}.{suffix}'
                                                   for name in names]
    assert packed_in(shards) == [('0001.zip', f'{name}.{suffix}') for name in names]
    assert missing == []
    assert all(load_waveform(entry['wav']).equal(load_waveform(file['wav']))
               for entry, file in zip(entries, plain))
    infos = zipfile.ZipFile(shards / '0001.zip').infolist()
    assert {info.compress_type for info in infos} == {zipfile.ZIP_STORED}


def test_shards_have_about_the_size_that_is_asked_for(files, tmp_path):
    wavs = pack(files, tmp_path / 'shards', 100_000)
    sizes = [path.stat().st_size for path in (tmp_path / 'shards').glob('*.zip')]
    assert len(sizes) == 12 and 100_000 <= min(sizes) <= max(sizes) < 110_000
    assert packed_in(tmp_path / 'shards') == [(f'{i // 5 + 1:04d}.zip', f'{i}.flac')
                                              for i in range(60)]
    assert wavs == {f'{i}.flac': f'{tmp_path}/shards/{i // 5 + 1:04d}.zip/{i}.flac'
                    for i in range(60)}


def test_another_list_packs_what_no_shard_has(files, tmp_path):
    shards, some = tmp_path / 'shards', dict(list(files.items())[10:20])
    wavs = pack(some, shards, 150_000)
    before = {path: path.stat().st_mtime_ns for path in shards.glob('*.zip')}
    more = pack(files, shards, 10 ** 9)
    assert {name: more[name] for name in some} == wavs
    assert len(before) == 2 and all(path.stat().st_mtime_ns == at for path, at in before.items())
    assert sorted(name for _, name in packed_in(shards)) == sorted(files)
    third = [name for shard, name in packed_in(shards) if shard == '0003.zip']
    assert third == [name for name in files if name not in some]


def test_packing_that_was_killed_goes_on(pack_apart, files, tmp_path):
    shards = tmp_path / 'shards'
    whole = pack(files, tmp_path / 'undisturbed', 100_000)
    for wanted in (1, 4, 8):
        pid, deadline = pack_apart(files, shards, 100_000), time.monotonic() + 60
        while len(list(shards.glob('*.zip'))) < wanted and time.monotonic() < deadline:
            time.sleep(0.001)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    wavs = pack(files, shards, 100_000)
    assert {name: wav.replace('shards', 'undisturbed') for name, wav in wavs.items()} == whole
    assert sorted(os.listdir(shards)) == sorted(os.listdir(tmp_path / 'undisturbed'))
    assert all(path.read_bytes() == (tmp_path / 'undisturbed' / path.name).read_bytes()
               for path in shards.glob('*.zip'))


def test_two_processes_pack_a_file_once(pack_apart, files, tmp_path):
    pids = [pack_apart(files, tmp_path / 'shards', 100_000) for _ in range(2)]
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0]
    assert [name for _, name in packed_in(tmp_path / 'shards')] == list(files)


def test_a_full_disk_leaves_the_shards_before_it(files, tmp_path):
    files['large.flac'] = tmp_path / 'large'
    files['large.flac'].write_bytes(bytes(500_000))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limit[1]))
    try:
        with pytest.raises(WriteError, match='cannot write .*0013.zip: .*is the disk full'):
            pack(files, tmp_path / 'shards', 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert sorted(os.listdir(tmp_path / 'shards')) == [f'{i:04d}.zip' for i in range(1, 13)]
    pack(files, tmp_path / 'shards', 100_000)
    assert [name for _, name in packed_in(tmp_path / 'shards')] == list(files)


def test_a_shard_that_cannot_be_read_back_does_not_appear(files, tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile.ZipFile, 'testzip', lambda archive: archive.namelist()[3])
    with pytest.raises(WriteError, match='0001.zip: 3.flac cannot be read back'):
        pack(files, tmp_path / 'shards', 100_000)
    assert not (tmp_path / 'shards').exists()


def test_a_broken_shard_and_a_file_that_went_are_named(files, tmp_path):
    shards = tmp_path / 'shards'
    pack(dict(list(files.items())[:5]), shards, 100_000)
    files['5.flac'].unlink()
    with pytest.raises(DataError, match='cannot read .*files/5: No such file'):
        pack(files, shards, 100_000)
    os.truncate(shards / '0001.zip', 1000)
    with pytest.raises(DataError, match='the shard .*0001.zip cannot be read .*delete it'):
        pack(files, shards, 100_000)


def test_where_nothing_is_found_the_names_are_explained(prepare, audio):
    audio('song.wav')
    with pytest.raises(DataError, match=f'no file of a listed clip.*{FIRST}_30.000_40.000.wav'):
        prepare()


def test_where_nothing_can_be_decoded_the_reason_is_given(prepare, audio):
    audio(f'{FIRST}.m4a', text='')
    with pytest.raises(DataError, match='none of the 1 clips.*FFmpeg'):
        prepare()


def test_folders_that_cannot_be_used_are_refused(prepare, audio, tmp_path):
    with pytest.raises(DataError, match='audio is not a folder'):
        prepare()
    audio(f'{FIRST}.wav')
    with pytest.raises(DataError, match='another folder than --audio_dir'):
        prepare(tmp_path / 'audio')
    (tmp_path / 'file').touch()
    with pytest.raises(DataError, match='file/flac cannot be made'):
        prepare(tmp_path / 'file' / 'flac')


def test_a_mistake_ends_with_a_sentence_and_success_with_0(audio, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging, 'basicConfig', lambda **_: None)
    audio(f'{FIRST}.wav')
    (tmp_path / 'list.csv').write_text(f'{FIRST}, 30, 40, "{DOG}"\n')
    words = ['--audio-dir', str(tmp_path / 'audio'), '--out', str(tmp_path / 'data.json'),
             '--segments']
    prep_audioset.main([*words, str(tmp_path / 'list.csv')])
    prep_audioset.main([*words, str(tmp_path / 'list.csv'), '--shards', str(tmp_path / 'shards'),
                        '--shard-gb', '0.5'])
    assert str(tmp_path / 'shards/0001.zip') in (tmp_path / 'data.json').read_text()
    with pytest.raises(SystemExit, match='error: cannot read the segment list'):
        prep_audioset.main([*words, str(tmp_path / 'nowhere.csv')])


def test_the_samples_of_datafiles_can_be_read(root):
    index = read_labels(LABEL_FILE).index()
    folder = root / 'egs/audioset/data/datafiles'
    wavs = [read_datafile(folder / f'sample_{name}_data.json', index).wavs
            for name in ('train', 'eval')]
    assert all(len(part) == 5 for part in wavs) and not set(wavs[0]) & set(wavs[1])


@pytest.mark.parametrize('where', ['audio', 'flac', 'shards'])
def test_a_folder_whose_name_is_not_utf8_is_named_before_the_work(prepare, audio, tmp_path, where):
    strange = os.fsdecode(b'caf\xe9')
    audio(f'a/{FIRST}.wav')
    if where == 'audio':
        (tmp_path / 'audio' / 'a').rename(tmp_path / 'audio' / strange)
    folders = {'audio': (), 'flac': (tmp_path / strange,),
               'shards': (None, tmp_path / strange)}[where]
    with pytest.raises(DataError, match=r'caf\\xe9.* is not UTF-8: rename it'):
        prepare(*folders)
    assert not (tmp_path / 'out').exists()
