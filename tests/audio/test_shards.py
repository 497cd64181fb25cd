"""Audio inside zip archives: all processes read what was packed; errors name shard and member."""
import errno
import gc
import io
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import tracemalloc
import zipfile

import numpy as np
import pytest
import soundfile
import torch

from audio import shards
from audio.reading import AudioError, load_waveform


@pytest.fixture
def make_shard(tmp_path):
    """Pack members (name -> bytes) into a zip archive. Returns its path as text."""
    def make(members, name='0001.zip', compression=zipfile.ZIP_STORED, **how):
        path = tmp_path / name
        with zipfile.ZipFile(path, 'w', compression, **how) as archive:
            for member, data in members.items():
                archive.writestr(member, data)
        return str(path)
    return make


@pytest.fixture
def many(make_shard):
    """A shard of 200 members of random bytes: its path, and name -> bytes."""
    rng = np.random.default_rng(0)
    members = {f'{i}.bin': rng.bytes(rng.integers(1, 20_000)) for i in range(200)}
    return make_shard(members), members


def read(shard, member):
    """Return all bytes of a member."""
    with shards.open_member(shard, member) as file:
        return file.read()


def read_often(shard, members, seed, rounds=1000):
    """Read members in random order; return how many reads gave other bytes than were packed."""
    names = np.random.default_rng(seed).choice(list(members), rounds)
    return sum(read(shard, name) != members[name] for name in names)


@pytest.mark.parametrize('suffix', ['wav', 'flac', 'ogg', 'mp3', 'aiff'])
def test_audio_in_a_shard_is_the_audio_of_the_file(make_shard, make_tone, suffix):
    path = make_tone(f'tone.{suffix}', seconds=2.0, rate=44100, channels=2)
    packed = f'{make_shard({"other": b"x", "tone": path.read_bytes()})}/tone'
    assert torch.equal(load_waveform(packed), load_waveform(path))
    window = {'start': 1.0, 'seconds': 0.5}
    assert torch.equal(load_waveform(packed, **window), load_waveform(path, **window))


def test_members_in_folders_and_with_any_name_are_found(make_shard):
    members = {'a/b c/d.wav': b'1', 'ä/日本.wav': b'22', 'x.zip/y.wav': b'333',
               'n' * 300: b'4444'}
    shard = make_shard({**members, 'empty/': b''})
    for name, data in members.items():
        assert read(*shards.split_path(f'{shard}/{name}')) == data
    assert not shards.is_file(f'{shard}/empty')


def test_a_folder_called_zip_is_a_folder(tmp_path, make_tone, make_shard):
    (tmp_path / 'clips.zip' / 'more.zip').mkdir(parents=True)
    tone = make_tone('clips.zip/more.zip/tone.wav')
    shard = make_shard({'tone.wav': tone.read_bytes()}, 'clips.zip/0001.zip')
    assert shards.split_path(tone) is None
    assert shards.split_path(f'{shard}/tone.wav') == (shard, 'tone.wav')
    assert torch.equal(load_waveform(f'{shard}/tone.wav'), load_waveform(tone))


@pytest.mark.skipif(not shutil.which('zip'), reason='there is no zip')
def test_an_archive_made_by_zip_is_a_shard(tmp_path, make_tone):
    tones = [make_tone(f'{i}.wav', hertz=300 * (i + 1)) for i in range(3)]
    names = [tone.name for tone in tones]
    subprocess.run(['zip', '-0', '-q', 'made.zip', *names], cwd=tmp_path, check=True)
    for tone in tones:
        assert torch.equal(load_waveform(tmp_path / 'made.zip' / tone.name), load_waveform(tone))


def test_an_archive_that_was_streamed_or_follows_a_program_is_a_shard(tmp_path):
    class Pipe:
        """A file that cannot seek: zipfile then writes sizes after the data."""
        def __init__(self, file):
            self.write, self.flush = file.write, file.flush
    with open(tmp_path / 'streamed.zip', 'wb') as file:
        with zipfile.ZipFile(Pipe(file), 'w') as archive:
            archive.writestr('a', b'first')
            archive.writestr('b', b'second')
    program = tmp_path / 'program.zip'
    program.write_bytes(b'#!/bin/sh\n' * 100 + (tmp_path / 'streamed.zip').read_bytes())
    for shard in (tmp_path / 'streamed.zip', program):
        assert [read(str(shard), name) for name in 'ab'] == [b'first', b'second']


def test_of_two_members_of_one_name_the_last_counts(make_shard):
    shard = make_shard({'a': b'first'})
    with zipfile.ZipFile(shard, 'a') as archive, pytest.warns(UserWarning, match='Duplicate'):
        archive.writestr('a', b'second')
    assert read(shard, 'a') == b'second'


def test_a_long_recording_is_read_as_far_as_it_is_wanted(make_shard, monkeypatch):
    samples = np.random.default_rng(0).standard_normal(6_000_000).astype(np.float32)
    written = io.BytesIO()
    soundfile.write(written, samples, 16000, subtype='FLOAT', format='WAV')
    packed = make_shard({'long.wav': written.getvalue()})
    sizes = []
    pread = os.pread
    monkeypatch.setattr(os, 'pread', lambda *how: sizes.append(how[1]) or pread(*how))
    window = load_waveform(f'{packed}/long.wav', start=200, seconds=10)
    assert np.array_equal(window, samples[3_200_000:3_360_000])
    assert sum(sizes) < 3_000_000
    assert np.array_equal(load_waveform(f'{packed}/long.wav'), samples)


@pytest.mark.parametrize('suffix', ['flac', 'ogg', 'wav'])
def test_a_long_recording_is_the_audio_of_the_file(make_shard, make_tone, monkeypatch, suffix):
    monkeypatch.setattr(shards, 'MAX_WHOLE', 1000)
    monkeypatch.setattr(shards, 'BLOCK', 512)
    path = make_tone(f'tone.{suffix}', seconds=2.0)
    packed = f'{make_shard({"tone": path.read_bytes()})}/tone'
    assert torch.equal(load_waveform(packed), load_waveform(path))
    window = {'start': 1.0, 'seconds': 0.5}
    assert torch.equal(load_waveform(packed, **window), load_waveform(path, **window))


@pytest.fixture(params=['flac', 'ogg', 'wav'])
def long_recording(request, make_shard, make_tone, monkeypatch):
    """The path in a shard, and the size in bytes, of a recording that is read as it is decoded."""
    monkeypatch.setattr(shards, 'MAX_WHOLE', 1000)
    monkeypatch.setattr(shards, 'BLOCK', 512)
    path = make_tone(f'tone.{request.param}', seconds=4.0)
    return f'{make_shard({"tone": path.read_bytes()})}/tone', path.stat().st_size


@pytest.mark.parametrize('window', [{}, {'start': 3.0, 'seconds': 0.5}])
def test_a_read_error_within_a_long_recording_is_named_once(long_recording, window, monkeypatch,
                                                            capfd):
    path, size = long_recording
    load_waveform(path)
    pread = os.pread

    def fail(descriptor, count, offset):
        if offset > size / 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(descriptor, count, offset)
    monkeypatch.setattr(os, 'pread', fail)
    named = f'cannot read the audio file {path}: cannot read the shard .*output error'
    with pytest.raises(AudioError, match=named):
        load_waveform(path, **window)
    assert capfd.readouterr().err == ''


def test_a_shard_cut_off_within_a_long_recording_is_named(long_recording):
    path, size = long_recording
    load_waveform(path)
    os.truncate(shards.split_path(path)[0], size // 2)
    named = f'cannot read the audio file {path}: the shard .* ends within tone'
    with pytest.raises(AudioError, match=named):
        load_waveform(path)
    with pytest.raises(shards.ShardError, match='ends within tone'):
        shards.verify_checksum(*shards.split_path(path))


def test_workers_forked_after_a_shard_was_opened_read_it_at_once(many):
    shard, members = many
    read_often(shard, members, 0, rounds=1)
    with multiprocessing.get_context('fork').Pool(3) as pool:
        wrong = pool.starmap_async(read_often, [(shard, members, seed) for seed in range(6)])
        assert read_often(shard, members, 9) == 0
        assert wrong.get(60) == [0] * 6
        pool.close()
        pool.join()


def test_threads_read_a_shard_at_once(many):
    shard, members = many
    wrong = []
    threads = [threading.Thread(
        target=lambda seed=seed: wrong.append(read_often(shard, members, seed, 300)))
        for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [0] * 4


def test_a_process_opens_a_shard_once(root, many):
    shard, members = many
    code = """if True:
        import sys
        sys.path.insert(0, 'src')
        from audio import shards
        opened = []
        sys.addaudithook(lambda event, args: event == 'open' and opened.append(args[0]))
        for i in range(200):
            shards.open_member(sys.argv[1], f'{i}.bin')
        print(opened.count(sys.argv[1]))"""
    said = subprocess.check_output([sys.executable, '-c', code, shard], cwd=root, text=True)
    assert said == '1\n'


def test_more_shards_than_files_may_be_open_are_read(root, make_shard):
    paths = [make_shard({'a': str(i).encode()}, f'{i}.zip') for i in range(100)]
    code = """if True:
        import resource, sys
        resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80))
        sys.path.insert(0, 'src')
        from audio import shards
        for _ in range(2):
            print(*(shards.open_member(path, 'a').read().decode() for path in sys.argv[1:]))"""
    said = subprocess.check_output([sys.executable, '-c', code, *paths], cwd=root, text=True)
    assert said == 2 * (' '.join(map(str, range(100))) + '\n')


def test_what_is_read_from_a_shard_that_was_put_aside_is_still_read(make_shard, monkeypatch):
    monkeypatch.setattr(shards, 'MAX_WHOLE', 10)
    shard = make_shard({'a': b'much to read'})
    with shards.open_member(shard, 'a') as file:
        shards._open.cache_clear()
        gc.collect()
        assert file.read() == b'much to read'


def test_the_index_of_two_million_clips_fits_into_every_worker(make_shard):
    shard = make_shard({f'some/folder/{i:011d}_30.000.flac': b'' for i in range(20_000)})
    shards.split_path(f'{shard}/x')
    tracemalloc.start()
    shards.is_file(f'{shard}/x')
    gc.collect()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept / 20_000 < 40


@pytest.mark.parametrize('path, message', [
    ('nowhere.zip/a.wav', 'the shard .*nowhere.zip does not exist'),
    ('text.zip/a.wav', 'the shard .*text.zip is cut off or no zip archive'),
    ('cut.zip/a.wav', 'the shard .*cut.zip is cut off or no zip archive'),
    ('shard.zip/b.wav', 'the shard .*shard.zip holds no b.wav'),
    ('shard.zip/noise.wav', 'noise.wav: neither libsndfile .Format not recognised. nor FFmpeg'),
    ('deflated.zip/a.wav', 'a.wav in the shard .*deflated.zip is compressed: .*zip -0 or '
                           'prep_audioset.py --shards')])
def test_what_cannot_be_read_is_named(tmp_path, make_shard, make_tone, path, message):
    tone = make_tone('a.wav').read_bytes()
    shard = make_shard({'a.wav': tone, 'noise.wav': b'no audio'}, 'shard.zip')
    make_shard({'a.wav': tone}, 'deflated.zip', zipfile.ZIP_DEFLATED)
    (tmp_path / 'text.zip').write_text('no zip archive')
    with open(shard, 'rb') as file:
        (tmp_path / 'cut.zip').write_bytes(file.read()[:-100])
    with pytest.raises(AudioError, match=message) as error:
        load_waveform(tmp_path / path)
    assert str(tmp_path / path) in str(error.value)


def test_an_encrypted_member_is_named(make_shard):
    shard = make_shard({'a': b'secret'})
    with open(shard, 'r+b') as file:
        file.seek(6)
        file.write(b'\1')
    with pytest.raises(shards.ShardError, match=f'a in the shard {shard} is encrypted'):
        shards.open_member(shard, 'a')


def test_a_shard_cut_off_or_overwritten_after_it_was_opened_is_named(make_shard):
    shard = make_shard({'a': b'first', 'b': bytes(1000)})
    read(shard, 'a')
    os.truncate(shard, 500)
    with pytest.raises(shards.ShardError, match=f'the shard {shard} ends within b'):
        shards.open_member(shard, 'b')
    with open(shard, 'r+b') as file:
        file.write(bytes(500))
    named = f'the shard {shard} is damaged, or was replaced meanwhile'
    with pytest.raises(shards.ShardError, match=named):
        shards.open_member(shard, 'a')


def test_a_member_with_a_wrong_checksum_is_found(make_shard):
    shard = make_shard({'a': b'sound', 'b': b'damaged'})
    with open(shard, 'r+b') as file:
        file.seek(open(shard, 'rb').read().index(b'damaged'))
        file.write(b'D')
    shards.verify_checksum(shard, 'a')
    with pytest.raises(shards.ShardError, match=f'b in the shard {shard} is damaged'):
        shards.verify_checksum(shard, 'b')


def test_no_damage_of_a_shard_ends_in_another_error(make_shard, tmp_path):
    whole = bytearray(open(make_shard({f'{i}': bytes(20) for i in range(5)}), 'rb').read())
    rng = np.random.default_rng(0)
    for i in range(300):
        damaged = whole.copy()
        for position in rng.integers(len(whole) - 200, len(whole), 3):
            damaged[position] = rng.integers(256)
        path = tmp_path / f'{i}.zip'
        path.write_bytes(damaged[:rng.integers(1, len(whole) + 1)] if i % 3 == 0 else damaged)
        for member in '024':
            try:
                shards.open_member(str(path), member)
            except shards.ShardError as error:
                assert str(path) in str(error)
