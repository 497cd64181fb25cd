"""Preparation of ESC-50, from a folder, a zip or a download: 16 kHz copies, datafiles of folds."""
import json
import os
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import soundfile

import esc50 as prep
from audio.reading import AudioError
from utilities.errors import DataError


def read(prep_dir, name):
    return json.loads((prep_dir / 'datafiles' / name).read_text())['data']


def zipped(folder):
    """The folder as GitHub zips a repository: within one top folder."""
    return shutil.make_archive(folder.parent / 'archive', 'zip', folder.parent, folder.name)


@pytest.mark.parametrize('form', ['folder', 'folder above', 'zip'])
def test_every_form_of_the_dataset_gives_the_same_folds(make_esc, tmp_path, form):
    folder = make_esc('above/ESC-50-master')
    source = {'folder': folder, 'folder above': folder.parent, 'zip': zipped(folder)}[form]
    prep.prepare(source, tmp_path / 'out')
    evaluated = set()
    for fold in range(1, 6):
        entries = read(tmp_path / 'out', f'esc_eval_data_{fold}.json')
        evaluated |= {entry['wav'] for entry in entries}
    assert len(evaluated) == 10
    for fold in range(1, 6):
        held_out = read(tmp_path / 'out', f'esc_eval_data_{fold}.json')
        trained = read(tmp_path / 'out', f'esc_train_data_{fold}.json')
        assert [entry['labels'] for entry in held_out] == ['/m/07rwj00', '/m/07rwj10']
        assert len(trained) == 8 and not {e['wav'] for e in trained} & {e['wav'] for e in held_out}


def test_clips_of_any_format_become_mono_16_khz_wav_files(make_esc, tmp_path):
    prep.prepare(make_esc(), tmp_path / 'out')
    infos = [soundfile.info(path) for path in (tmp_path / 'out' / 'audio_16k').iterdir()]
    assert len(infos) == 10
    assert {(info.samplerate, info.channels, info.format, info.subtype) for info in infos} == {
        (16000, 1, 'WAV', 'PCM_16')}
    assert all(info.duration == pytest.approx(0.4, abs=0.01) for info in infos)


def test_a_broken_off_preparation_goes_on_where_it_was(make_esc, tmp_path):
    source = make_esc()
    prep.prepare(source, tmp_path / 'out')
    kept, lost = sorted((tmp_path / 'out' / 'audio_16k').iterdir())[:2]
    lost.unlink()
    before = kept.stat().st_mtime_ns
    prep.prepare(source, tmp_path / 'out')
    assert lost.exists() and kept.stat().st_mtime_ns == before


def test_a_second_dataset_does_not_mix_with_the_first(make_esc, tmp_path):
    prep.prepare(make_esc('first'), tmp_path / 'out')
    with pytest.raises(DataError, match='first.*second.*--prep_dir'):
        prep.prepare(make_esc('second'), tmp_path / 'out')


def test_a_table_that_has_changed_since_is_not_taken_for_prepared(make_esc, tmp_path):
    source = make_esc('mine')
    prep.prepare(source, tmp_path / 'out')
    meta = source / 'meta' / 'esc50.csv'
    lines = meta.read_bytes().splitlines(keepends=True)
    meta.write_bytes(b''.join(lines[:-1]))
    with pytest.raises(DataError, match='lists other clips .*--prep_dir.* or remove .*datafiles'):
        prep.prepare(source, tmp_path / 'out')
    shutil.rmtree(tmp_path / 'out' / 'datafiles')
    prep.prepare(source, tmp_path / 'out')
    prep.prepare(source, tmp_path / 'out')


def test_a_clip_that_is_listed_but_missing_is_named(make_esc, tmp_path):
    source = make_esc()
    (source / 'audio' / '3-4-A-0.ogg').unlink()
    with pytest.raises(AudioError, match='3-4-A-0.ogg'):
        prep.prepare(source, tmp_path / 'out')


def test_a_broken_clip_is_named(make_esc, tmp_path):
    source = make_esc()
    (source / 'audio' / '3-4-A-0.ogg').write_text('not audio')
    with pytest.raises(AudioError, match='3-4-A-0.ogg'):
        prep.prepare(source, tmp_path / 'out')


def test_a_clip_that_is_cut_off_is_not_converted(make_esc, tmp_path):
    source = make_esc()
    clip = next((source / 'audio').glob('*.flac'))
    os.truncate(clip, clip.stat().st_size // 2)
    with pytest.raises(
        AudioError, match=f'{clip.name} ends after 0.[0-9]* s, before its header says'
    ):
        prep.prepare(source, tmp_path / 'out')


@pytest.mark.parametrize(
    'row',
    ['a.wav,6,0,dog', 'a.wav,1,0,rain', 'a.wav,1,50,dog', 'a.wav,one,0,dog', '../a.wav,1,0,dog'],
)
def test_a_row_that_contradicts_the_label_file_is_named(make_esc, tmp_path, row):
    source = make_esc()
    (source / 'meta' / 'esc50.csv').write_text(f'filename,fold,target,category\n{row}\n')
    with pytest.raises(DataError, match='line 2'):
        prep.prepare(source, tmp_path / 'out')


def test_a_table_that_a_spreadsheet_saved_with_semicolons_in_utf_16_is_read(make_esc, tmp_path):
    source = make_esc()
    meta = source / 'meta' / 'esc50.csv'
    meta.write_text(meta.read_text().replace(',', ';'), encoding='utf-16')
    prep.prepare(source, tmp_path / 'out')
    assert len(read(tmp_path / 'out', 'esc_eval_data_1.json')) == 2


@pytest.mark.parametrize(
    'source, reason',
    [('nowhere', 'does not exist'), ('text.zip', 'nor a usable zip'), ('empty', 'layout')],
)
def test_something_else_than_the_dataset_is_refused(tmp_path, source, reason):
    (tmp_path / 'text.zip').write_text('not a zip')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(DataError, match=reason):
        prep.prepare(tmp_path / source, tmp_path / 'out')


def test_a_folder_for_the_copies_whose_name_is_not_utf8_is_named(make_esc, tmp_path):
    out = tmp_path / os.fsdecode(b'caf\xe9')
    with pytest.raises(DataError, match=r'caf\\xe9.* is not UTF-8: rename it'):
        prep.prepare(make_esc(), out)
    assert not out.exists()


def test_without_a_data_dir_the_zip_is_downloaded(make_esc, tmp_path, monkeypatch):
    zipped(make_esc('site/ESC-50-master'))
    server = ThreadingHTTPServer(
        ('127.0.0.1', 0), partial(SimpleHTTPRequestHandler, directory=tmp_path / 'site')
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    monkeypatch.setattr(prep, 'ESC50_URL', f'http://127.0.0.1:{server.server_port}/archive.zip')
    prep.prepare(None, tmp_path / 'out')
    server.shutdown()
    assert (tmp_path / 'out' / 'ESC-50-master.zip').exists()
    assert len(read(tmp_path / 'out', 'esc_train_data_1.json')) == 8


@pytest.fixture
def no_download(monkeypatch):
    """Any download is an error."""
    def fail(*_):
        raise AssertionError('nothing is to be downloaded')
    monkeypatch.setattr(prep, 'download_dataset', fail)


def test_without_a_data_dir_the_folder_of_the_published_recipe_is_taken_and_named(
    make_esc, tmp_path, no_download, capsys, monkeypatch
):
    folder = make_esc('out/ESC-50-master')
    shutil.copytree(folder / 'audio', folder / 'audio_16k')
    (tmp_path / 'out' / 'datafiles').mkdir()
    wav = './out/ESC-50-master/audio_16k/1-0-A-0.wav'
    for fold in range(1, 6):
        for part in ('train', 'eval'):  # as the published recipe lists them
            (tmp_path / 'out' / 'datafiles' / f'esc_{part}_data_{fold}.json').write_text(
                json.dumps({'data': [{'wav': wav, 'labels': '/m/07rwj00'}]}))
    before = sorted(folder.rglob('*'))
    monkeypatch.chdir(tmp_path)
    prep.prepare(None, tmp_path / 'out')
    assert f'taking ESC-50 from {folder}' in capsys.readouterr().out
    entries = read(tmp_path / 'out', 'esc_train_data_1.json')
    wavs = [entry['wav'] for entry in entries]
    assert len(wavs) == 8 and all(os.path.isabs(wav) and os.path.exists(wav) for wav in wavs)
    assert sorted(folder.rglob('*')) == before
    prep.prepare(None, tmp_path / 'out')
    assert 'prepared already' in capsys.readouterr().out


def test_a_data_dir_goes_before_the_folder_of_the_published_recipe(make_esc, tmp_path, capsys):
    make_esc('out/ESC-50-master')
    prep.prepare(make_esc('mine'), tmp_path / 'out')
    assert 'taking' not in capsys.readouterr().out
    marker = json.loads((tmp_path / 'out' / 'source.json').read_text())
    assert marker['source'] == str(tmp_path / 'mine')


def test_a_prepared_download_stays_prepared_beside_such_a_folder(
    make_esc, tmp_path, no_download, capsys
):
    source = make_esc('site/ESC-50-master')
    (tmp_path / 'out').mkdir()
    archive = tmp_path / 'out' / 'ESC-50-master.zip'
    os.rename(zipped(source), archive)
    prep.prepare(archive, tmp_path / 'out')
    archive.unlink()
    shutil.copytree(source, tmp_path / 'out' / 'ESC-50-master')
    prep.prepare(None, tmp_path / 'out')
    assert 'prepared already' in capsys.readouterr().out
