"""Preparation of Speech Commands, from a folder, a tar.gz or a download: the official split."""
import io
import json
import os
import shutil
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import speech_commands as prep
from utilities.errors import DataError
from utilities.labels import read_labels

FILES = [
    '_background_noise_/tap.wav',
    'bed/a_nohash_0.wav',
    'bed/b_nohash_0.wav',
    'bed/c_nohash_1.wav',
    'yes/a_nohash_0.wav',
    'yes/b_nohash_0.wav',
    'yes/d_nohash_0.wav',
]
VALIDATION = 'bed/b_nohash_0.wav\n'
TESTING = 'bed/c_nohash_1.wav\nyes/d_nohash_0.wav\n'


@pytest.fixture
def make_sc(tmp_path):
    """Make a folder in Speech Commands' layout, of files that nobody decodes; returns it."""
    def make(name='sc', files=FILES, validation=VALIDATION, testing=TESTING):
        folder = tmp_path / name
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(file.encode() * 50)
        (folder / 'validation_list.txt').write_bytes(validation.encode())
        (folder / 'testing_list.txt').write_bytes(testing.encode())
        return folder
    return make


def entries_of(prep_dir, split):
    """The entries of a datafile."""
    datafile = prep_dir / 'datafiles' / f'speechcommand_{split}_data.json'
    return json.loads(datafile.read_text())['data']


def read(prep_dir, split):
    """(word/file, mid) of every entry of a datafile."""
    entries = entries_of(prep_dir, split)
    return [('/'.join(Path(entry['wav']).parts[-2:]), entry['labels']) for entry in entries]


def names_in(prep_dir):
    """word/file of every entry of all datafiles."""
    return [name for split in ('train', 'valid', 'eval') for name, _ in read(prep_dir, split)]


def packed(folder):
    """The folder as the official tar.gz holds it: without a folder above."""
    return Path(shutil.make_archive(folder.parent / f'{folder.name}-archive', 'gztar', folder))


@pytest.mark.parametrize('form', ['folder', 'folder above', 'tar.gz'])
def test_every_form_of_the_dataset_gives_the_official_split(make_sc, tmp_path, form):
    folder = make_sc('above/sc')
    source = {'folder': folder, 'folder above': folder.parent, 'tar.gz': packed(folder)}[form]
    prep.prepare(source, tmp_path / 'out')
    bed, yes = '/m/spcmd03', '/m/spcmd28'
    assert read(tmp_path / 'out', 'train') == [
        ('bed/a_nohash_0.wav', bed), ('yes/a_nohash_0.wav', yes), ('yes/b_nohash_0.wav', yes)]
    assert read(tmp_path / 'out', 'valid') == [('bed/b_nohash_0.wav', bed)]
    assert read(tmp_path / 'out', 'eval') == [
        ('bed/c_nohash_1.wav', bed),
        ('yes/d_nohash_0.wav', yes),
    ]


def test_the_datafiles_point_into_the_users_own_folder_in_which_nothing_is_written(
    make_sc, tmp_path
):
    folder = make_sc()
    before = sorted(folder.rglob('*'))
    prep.prepare(os.path.relpath(folder), tmp_path / 'out')
    wavs = [Path(entry['wav']) for entry in entries_of(tmp_path / 'out', 'train')]
    assert all(wav.is_absolute() and wav.is_relative_to(folder) for wav in wavs)
    assert sorted(folder.rglob('*')) == before


def test_lists_with_crlf_blank_lines_and_a_byte_order_mark_are_read(make_sc, tmp_path):
    folder = make_sc(
        validation='\ufeffbed/b_nohash_0.wav\r\n\r\n', testing='\r\nyes/d_nohash_0.wav \r\n'
    )
    prep.prepare(folder, tmp_path / 'out')
    assert [name for name, _ in read(tmp_path / 'out', 'valid')] == ['bed/b_nohash_0.wav']
    assert [name for name, _ in read(tmp_path / 'out', 'eval')] == ['yes/d_nohash_0.wav']


def test_lists_with_backslashes_in_utf_16_are_read(make_sc, tmp_path):
    folder = make_sc()
    (folder / 'validation_list.txt').write_text('bed\\b_nohash_0.wav\n', encoding='utf-16')
    prep.prepare(folder, tmp_path / 'out')
    assert [name for name, _ in read(tmp_path / 'out', 'valid')] == ['bed/b_nohash_0.wav']


@pytest.mark.parametrize('form', ['folder', 'folder above', 'tar.gz'])
def test_the_test_archive_of_the_12_class_task_is_recognised(tmp_path, form):
    folder = tmp_path / 'above' / 'speech_commands_test_set_v0.02'
    for word in ('_silence_', '_unknown_', 'yes'):
        (folder / word).mkdir(parents=True)
        (folder / word / '0.wav').touch()
    source = {'folder': folder, 'folder above': folder.parent, 'tar.gz': packed(folder)}[form]
    with pytest.raises(
        DataError, match='test archive of the 12-class task.*nothing to train on.*v0.02'
    ):
        prep.prepare(source, tmp_path / 'out')


def test_version_1_is_prepared_and_named(make_sc, tmp_path, caplog):
    words = [word for word in read_labels(prep.LABEL_FILE).names
             if word not in ('backward', 'follow', 'forward', 'learn', 'visual')]
    clips = [[f'{word}/{i}_nohash_0.wav' for word in words] for i in range(3)]
    folder = make_sc(
        files=sum(clips, []), validation='\n'.join(clips[0]), testing='\n'.join(clips[1])
    )
    prep.prepare(folder, tmp_path / 'out')
    assert len(read(tmp_path / 'out', 'train')) == 30
    assert 'version 1 of Speech Commands, with 30 words: five classes have no clips' in caplog.text


def test_clips_converted_to_other_formats_are_still_found_in_the_lists(make_sc, tmp_path):
    files = [
        'bed/a_nohash_0.flac',
        'bed/b_nohash_0.ogg',
        'bed/c_nohash_1.WAV',
        'bed/notes.txt',
        'bed/._a_nohash_0.wav',
    ]
    prep.prepare(make_sc(files=files), tmp_path / 'out')
    assert names_in(tmp_path / 'out') == files[:3]


def test_a_clip_in_two_formats_is_listed_once(make_sc, tmp_path):
    prep.prepare(
        make_sc(files=[*FILES, 'bed/a_nohash_0.flac', 'bed/b_nohash_0.flac']), tmp_path / 'out'
    )
    assert [name for name, _ in read(tmp_path / 'out', 'train')][0] == 'bed/a_nohash_0.flac'
    assert [name for name, _ in read(tmp_path / 'out', 'valid')] == ['bed/b_nohash_0.flac']


def test_a_folder_that_is_no_word_is_left_out_and_named(make_sc, tmp_path, caplog):
    prep.prepare(make_sc(files=[*FILES, 'hello/a_nohash_0.wav']), tmp_path / 'out')
    assert 'hello' in caplog.text and '_background_noise_' not in caplog.text
    assert not any('hello' in name for name in names_in(tmp_path / 'out'))


def test_a_subset_says_how_many_words_and_listed_clips_it_has(make_sc, tmp_path, capsys):
    prep.prepare(
        make_sc(testing=TESTING + 'yes/x_nohash_0.wav\nzero/a_nohash_0.wav\n'), tmp_path / 'out'
    )
    said = capsys.readouterr().out
    assert '2 of the 5 listed clips are not there' in said
    assert (
        '3 training, 1 validation and 2 test clips of 2 words' in said
        and 'subset: 2 of 35 words' in said
    )


def test_all_words_with_other_numbers_than_the_official_ones_are_a_warning(
    make_sc, tmp_path, capsys, caplog
):
    words = read_labels(prep.LABEL_FILE).names
    more = [f'{word}/z_nohash_0.wav' for word in words]
    prep.prepare(make_sc(files=[*FILES, *more]), tmp_path / 'out')
    assert 'subset' not in capsys.readouterr().out
    assert 'expected 84,843 training' in caplog.text and 'found 38 training' in caplog.text


def test_the_official_numbers_are_recognised(make_sc, tmp_path, capsys, caplog, monkeypatch):
    monkeypatch.setattr(prep, 'OFFICIAL_SIZES', {'train': 38, 'valid': 1, 'eval': 2})
    words = read_labels(prep.LABEL_FILE).names
    more = [f'{word}/z_nohash_0.wav' for word in words]
    prep.prepare(make_sc(files=[*FILES, *more]), tmp_path / 'out')
    assert 'official numbers' in capsys.readouterr().out and not caplog.text


@pytest.mark.parametrize('name', ['validation_list.txt', 'testing_list.txt'])
def test_without_an_official_list_the_dataset_is_refused(make_sc, tmp_path, name):
    (make_sc() / name).unlink()
    with pytest.raises(DataError, match='validation_list.txt and testing_list.txt are needed'):
        prep.prepare(tmp_path / 'sc', tmp_path / 'out')


@pytest.mark.parametrize('changes, reason', [
    ({'testing': VALIDATION}, '1 clips are in both .* bed/b_nohash_0'),
    ({'validation': 'bed.wav'}, 'validation_list.txt, line 1: expected word/file.wav, got bed.wav'),
    ({'files': ['hello/a.wav']}, 'no folder named after one of the 35 words'),
    ({'validation': ''}, 'no clip that validation_list.txt lists'),
    ({'testing': 'bed/none.wav'}, 'no clip that testing_list.txt lists'),
    ({'files': FILES[2:4]}, 'the train split would be empty'),
])
def test_a_dataset_that_contradicts_itself_is_refused(make_sc, tmp_path, changes, reason):
    with pytest.raises(DataError, match=reason):
        prep.prepare(make_sc(**changes), tmp_path / 'out')
    assert not (tmp_path / 'out' / 'datafiles').exists()


def test_a_second_start_does_nothing(make_sc, tmp_path, capsys):
    source = packed(make_sc())
    prep.prepare(source, tmp_path / 'out')
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / 'out').rglob('*')}
    source.unlink()
    capsys.readouterr()
    prep.prepare(source, tmp_path / 'out')
    assert 'prepared already' in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / 'out').rglob('*')} == before


def test_a_dataset_that_has_grown_is_noticed(make_sc, tmp_path, capsys):
    source = make_sc()
    prep.prepare(source, tmp_path / 'out')
    prep.prepare(source, tmp_path / 'out')
    assert 'prepared already' in capsys.readouterr().out
    shutil.copy(source / 'bed' / 'a_nohash_0.wav', source / 'bed' / 'new_nohash_0.wav')
    with pytest.raises(DataError, match='has changed: give another folder with --prep_dir, or'):
        prep.prepare(source, tmp_path / 'out')


def test_a_second_dataset_does_not_mix_with_the_first(make_sc, tmp_path):
    prep.prepare(packed(make_sc('first')), tmp_path / 'out')
    with pytest.raises(
        DataError, match='first.*second.*--prep_dir, or remove .*audio and .*datafiles; '
                         'take another --exp_dir'
    ):
        prep.prepare(make_sc('second'), tmp_path / 'out')


def test_a_wrong_path_does_not_stand_in_the_way_of_the_right_one(make_sc, tmp_path):
    with pytest.raises(DataError, match='nowhere does not exist'):
        prep.prepare(tmp_path / 'nowhere', tmp_path / 'out')
    prep.prepare(make_sc(), tmp_path / 'out')
    assert len(read(tmp_path / 'out', 'train')) == 3


@pytest.mark.parametrize('share', [0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_archive_is_refused_and_nothing_of_it_is_kept(make_sc, tmp_path, share):
    archive = packed(
        make_sc(files=[f'{word}/{i}.wav' for word in ('bed', 'yes') for i in range(100)])
    )
    whole = archive.read_bytes()
    archive.write_bytes(whole[:int(share * len(whole))])
    with pytest.raises(DataError, match='usable tar.gz'):
        prep.prepare(archive, tmp_path / 'out')
    assert {path.name for path in (tmp_path / 'out').iterdir()} <= {'source.json'}


def test_an_archive_that_reaches_out_of_its_folder_is_refused(tmp_path):
    with tarfile.open(tmp_path / 'evil.tar.gz', 'w:gz') as tar:
        member = tarfile.TarInfo('../../evil.wav')
        member.size = 4
        tar.addfile(member, io.BytesIO(b'evil'))
    with pytest.raises(DataError, match='usable tar.gz .*evil.wav'):
        prep.prepare(tmp_path / 'evil.tar.gz', tmp_path / 'out')
    assert not list(tmp_path.rglob('evil.wav'))


def test_what_a_killed_start_has_unpacked_is_not_trusted(make_sc, tmp_path):
    (tmp_path / 'out' / '.audio.partial' / 'bed').mkdir(parents=True)
    (tmp_path / 'out' / '.audio.partial' / 'bed' / 'half.wav').touch()
    prep.prepare(packed(make_sc()), tmp_path / 'out')
    assert (
        len(read(tmp_path / 'out', 'train')) == 3
        and not (tmp_path / 'out' / '.audio.partial').exists()
    )


def test_without_a_data_dir_the_archive_is_downloaded_and_unpacked_once(
    make_sc, tmp_path, monkeypatch
):
    archive = packed(make_sc('site/sc'))
    server = ThreadingHTTPServer(
        ('127.0.0.1', 0), partial(SimpleHTTPRequestHandler, directory=archive.parent)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    monkeypatch.setattr(prep, 'SC_URL', f'http://127.0.0.1:{server.server_port}/{archive.name}')
    prep.prepare(None, tmp_path / 'out')
    server.shutdown()
    (tmp_path / 'out' / archive.name).unlink()  # to save space
    shutil.rmtree(tmp_path / 'out' / 'datafiles')
    prep.prepare(None, tmp_path / 'out')
    assert len(read(tmp_path / 'out', 'train')) == 3


@pytest.mark.parametrize('form', ['folder', 'file', 'tar.gz'])
def test_a_name_that_is_not_utf8_is_named(make_sc, tmp_path, form):
    strange = os.fsdecode(b'caf\xe9')
    source = make_sc(strange if form == 'folder' else 'sc')
    if form == 'file':
        (source / 'bed' / f'{strange}.wav').touch()
    out = tmp_path / (strange if form == 'tar.gz' else 'out')
    with pytest.raises(DataError, match=r'caf\\xe9.* is not UTF-8: rename it'):
        prep.prepare(packed(source) if form == 'tar.gz' else source, out)
    assert not list(out.glob('datafiles'))


@pytest.fixture
def no_download(monkeypatch):
    """Any download is an error."""
    def fail(*_):
        raise AssertionError('nothing is to be downloaded')
    monkeypatch.setattr(prep, 'download_dataset', fail)


def test_without_a_data_dir_the_folder_of_the_published_recipe_is_taken_and_named(
    make_sc, tmp_path, no_download, capsys
):
    folder = make_sc('out/speech_commands_v0.02')
    (folder / 'train_list.txt').write_text('bed/a_nohash_0.wav\n')
    prep.prepare(None, tmp_path / 'out')
    assert f'taking Speech Commands from {folder}' in capsys.readouterr().out
    assert len(read(tmp_path / 'out', 'train')) == 3
    prep.prepare(None, tmp_path / 'out')
    assert 'prepared already' in capsys.readouterr().out


def test_datafiles_of_the_published_recipe_are_kept(make_sc, tmp_path, no_download, capsys):
    folder = make_sc('out/speech_commands_v0.02')
    (tmp_path / 'out' / 'datafiles').mkdir()
    for split in ('train', 'valid', 'eval'):
        entry = {'wav': str(folder / 'bed' / 'a_nohash_0.wav'), 'labels': '/m/spcmd03'}
        (tmp_path / 'out' / 'datafiles' / f'speechcommand_{split}_data.json').write_text(
            json.dumps({'data': [entry]})
        )
    prep.prepare(None, tmp_path / 'out')
    assert 'prepared already' in capsys.readouterr().out
    assert read(tmp_path / 'out', 'train') == [('bed/a_nohash_0.wav', '/m/spcmd03')]


def test_a_folder_of_the_published_recipe_that_was_broken_off_is_not_taken(
    make_sc, tmp_path, monkeypatch
):
    (make_sc('out/speech_commands_v0.02') / 'testing_list.txt').unlink()
    asked = []

    def deliver(url, check):
        asked.append(url)
        os.rename(packed(make_sc()), url.destination)
    monkeypatch.setattr(prep, 'download_dataset', deliver)
    prep.prepare(None, tmp_path / 'out')
    assert len(asked) == 1 and len(read(tmp_path / 'out', 'train')) == 3
