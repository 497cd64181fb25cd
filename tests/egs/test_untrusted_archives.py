"""Broken and malicious archives: they are refused by name, and nothing of them is kept."""
import contextlib
import gzip
import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

import esc50 as esc
import speech_commands as sc
from models.atomic import WriteError
from utilities import archives
from utilities.errors import DataError

NAMES = ['/evil', '/tmp/../evil', '../evil', '../../evil', 'a/../../evil', './../evil']


def all_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*'))


@pytest.fixture
def make_zip(make_esc, tmp_path):
    """Write a small ESC-50 as a zip, with further members (ZipInfo or name, bytes)."""
    def make(*members, compression=zipfile.ZIP_DEFLATED):
        folder, path = make_esc(), tmp_path / 'archives' / 'esc.zip'
        path.parent.mkdir()
        with zipfile.ZipFile(path, 'w', compression) as archive:
            for file in sorted(folder.rglob('*')):
                archive.write(file, Path('ESC-50-master') / file.relative_to(folder))
            for name, data in members:
                archive.writestr(name, data)
        return path
    return make


@pytest.fixture
def make_tar(tmp_path):
    """Write a small Speech Commands as a tar.gz, with further members (TarInfo, bytes)."""
    def make(*members):
        path = tmp_path / 'archives' / 'sc.tar.gz'
        path.parent.mkdir()
        files = {'./validation_list.txt': b'bed/b_0.wav\n', './testing_list.txt': b'bed/c_0.wav\n',
                 **{f'./bed/{name}_0.wav': b'audio' for name in 'abc'}}
        with tarfile.open(path, 'w:gz') as tar:
            for name, data in files.items():
                tar.addfile(member(name, size=len(data)), io.BytesIO(data))
            for info, data in members:
                tar.addfile(info, io.BytesIO(data))
        return path
    return make


def member(name, kind=tarfile.REGTYPE, size=0, linkname=''):
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, linkname
    return info


def outside(tmp_path):
    """What is in tmp_path, but not in the folder of a preparation there."""
    return {name for name in all_below(tmp_path) if Path(name).parts[0] != 'out'}


def refused(prep, archive, tmp_path):
    """The message with which a preparation refuses an archive; nothing must be left of it."""
    before = outside(tmp_path)
    with pytest.raises(DataError) as error:
        prep.prepare(archive, tmp_path / 'out')
    assert str(archive) in str(error.value) and outside(tmp_path) == before
    assert not [name for name in all_below(tmp_path / 'out') if name != 'source.json']
    return str(error.value)


def test_the_archives_without_an_attack_are_prepared(make_zip, make_tar, tmp_path):
    """So that no test below passes for another reason."""
    link = zipfile.ZipInfo('ESC-50-master/README.md')
    esc.prepare(make_zip((link, 'text'), ('ESC-50-master/empty/', '')), tmp_path / 'esc out')
    (tmp_path / 'archives').rename(tmp_path / 'before')
    sc.prepare(
        make_tar((member('./yes', tarfile.DIRTYPE), b''), (member('./LICENSE', size=4), b'text')),
        tmp_path / 'sc out',
    )
    assert len(all_below(tmp_path / 'esc out' / 'audio_16k')) == 10
    assert (tmp_path / 'sc out' / 'audio' / 'bed' / 'a_0.wav').read_bytes() == b'audio'


@pytest.mark.parametrize('name', NAMES)
def test_nothing_of_a_zip_is_written_outside(name, make_zip, tmp_path):
    archive = make_zip((name, 'evil'))
    before = outside(tmp_path)
    esc.prepare(archive, tmp_path / 'out')
    assert outside(tmp_path) == before and not list(tmp_path.rglob('evil'))


def declare(path, name, size):
    """Let both headers of a zip's member say that it unpacks to so many bytes."""
    data, width = bytearray(path.read_bytes()), 4
    with zipfile.ZipFile(path) as archive:
        old = archive.getinfo(name).file_size.to_bytes(width, 'little')
    places = [(b'PK\3\4', 22, 30), (b'PK\1\2', 24, 46)]  # signature, places of size and name
    for signature, at_size, at_name in places:
        start = data.index(name.encode(), data.index(signature)) - at_name
        if signature == b'PK\1\2':
            start = data.rindex(name.encode()) - at_name
        size_at = slice(start + at_size, start + at_size + width)
        assert data[start:start + 4] == signature and data[size_at] == old
        data[size_at] = size.to_bytes(width, 'little')
    path.write_bytes(data)


@pytest.mark.parametrize('compression', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_clip_of_a_zip_that_unpacks_to_more_than_it_says_is_named(
    compression, make_zip, tmp_path
):
    path = make_zip(compression=compression)
    declare(path, 'ESC-50-master/audio/2-2-A-0.flac', 100)
    with pytest.raises(DataError, match='esc.zip/.*2-2-A-0.flac cannot be read'):
        esc.prepare(path, tmp_path / 'out')
    assert not (tmp_path / 'out' / 'datafiles').exists()


def test_a_zip_that_unpacks_to_too_much_is_refused(make_zip, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, 'MAX_UNPACKED', 20_000_000)
    path = make_zip(('ESC-50-master/zeros', bytes(30_000_000)))
    assert path.stat().st_size < 300_000
    assert 'it unpacks to more than ' in refused(esc, path, tmp_path)


def test_an_encrypted_zip_is_refused(make_zip, tmp_path):
    path = make_zip(compression=zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[data.rindex(b'PK\1\2') + 8] |= 1  # the flags of the last file
    data[data.rindex(b'PK\3\4') + 6] |= 1
    path.write_bytes(data)
    assert 'meta/esc50.csv cannot be read: ' in (said := refused(esc, path, tmp_path))
    assert 'is encrypted' in said


@pytest.mark.parametrize(
    'damage',
    [
        lambda data: data[:-30],
        lambda data: data[: len(data) // 2],
        lambda _: b'PK\3\4',
        lambda data: data[:-22] + b'PK\5\6' + b'\xff' * 18,
        lambda data: data.replace(b'PK\1\2', b'PK\1\3'),
    ],
)
def test_a_damaged_zip_is_refused_by_name(damage, make_zip, tmp_path):
    path = make_zip()
    path.write_bytes(damage(path.read_bytes()))
    assert 'esc.zip is neither a folder nor a usable zip file: ' in refused(esc, path, tmp_path)


def test_a_zip_that_holds_nothing_is_refused(make_zip, tmp_path):
    path = make_zip()
    path.write_bytes(b'PK\5\6' + bytes(18))
    assert 'there is no meta/esc50.csv in it' in refused(esc, path, tmp_path)


@pytest.mark.parametrize(
    'meta, problem',
    [
        (b'filename,fold\xe9', 'as a CSV: line 1, character 14 is not UTF-8'),
        (b'filename,fold,target,category\n"' + b'a' * 200_000 + b'",1,0,dog\n', 'CSV'),
        (b'filename,fold,target,category\n,1,0,dog\n', 'line 2'),
        (b'filename,fold,target,category\n..,1,0,dog\n', 'not there'),
        (b'filename,fold,target,category\n/etc/passwd,1,0,dog\n', 'line 2'),
        (
            b'filename,fold,target,category\na.wav,1,0,dog\na.ogg,2,0,dog\n',
            'line 3: a.ogg is listed twice',
        ),
        (b'filename,fold,target,category\n"a\0.wav",1,0,dog\n', 'it holds NUL characters'),
    ],
    ids=['no UTF-8', 'long cell', 'no name', 'folder above', 'absolute', 'twice', 'NUL'],
)
def test_a_list_of_clips_that_cannot_be_is_refused(meta, problem, make_esc, tmp_path):
    folder = make_esc()
    (folder / 'meta' / 'esc50.csv').write_bytes(meta)
    with pytest.raises(ValueError, match=problem) as error:
        esc.prepare(folder, tmp_path / 'out')
    assert type(error.value).__name__ in ('DataError', 'AudioError')
    assert not (tmp_path / 'out' / 'datafiles').exists()


@pytest.mark.parametrize('name', NAMES)
def test_nothing_of_a_tar_is_written_outside(name, make_tar, tmp_path):
    archive = make_tar((member(name, size=4), b'evil'))
    before = outside(tmp_path)
    with contextlib.suppress(DataError, WriteError):  # or an absolute path becomes a relative one
        sc.prepare(archive, tmp_path / 'out')
    assert outside(tmp_path) == before


@pytest.mark.parametrize('kind', [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize(
    'target', ['/etc/passwd', '../../../outside', './bed/a_0.wav', 'a_0.wav', '/']
)
def test_a_tar_with_a_link_is_refused(target, kind, make_tar, tmp_path):
    archive = make_tar((member('./bed/x.wav', kind, linkname=target), b''))
    assert './bed/x.wav in it is a link' in refused(sc, archive, tmp_path)


def test_a_member_of_a_tar_that_goes_through_a_link_is_not_written(make_tar, tmp_path):
    (tmp_path / 'outside').mkdir()
    members = [(member('./door', tarfile.SYMTYPE, linkname=str(tmp_path / 'outside')), b''),
               (member('./door/evil', size=4), b'evil')]
    refused(sc, make_tar(*members), tmp_path)
    assert os.listdir(tmp_path / 'outside') == []


@pytest.mark.parametrize('kind', [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b'Z'])
def test_a_tar_with_a_device_or_something_unknown_is_refused(kind, make_tar, tmp_path):
    assert 'bed/null' in refused(sc, make_tar((member('./bed/null', kind), b'')), tmp_path)


def test_a_tar_that_unpacks_to_too_much_stops(make_tar, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, 'MAX_UNPACKED', 20_000_000)
    path = make_tar(
        *((member(f'./bed/{i}.wav', size=1_000_000), bytes(1_000_000)) for i in range(30))
    )
    assert 'it unpacks to more than ' in refused(sc, path, tmp_path)


def test_a_tar_whose_member_says_it_is_huge_is_refused(make_tar, tmp_path):
    path = make_tar()
    data = bytearray(gzip.decompress(path.read_bytes()))
    end = data.index(bytes(1024))
    end += -end % 512
    data[end:] = member('./bed/huge.wav', size=2 ** 40).tobuf(tarfile.GNU_FORMAT) + b'little'
    path.write_bytes(gzip.compress(data))
    assert 'it unpacks to more than ' in refused(sc, path, tmp_path)


def test_a_tar_is_not_unpacked_by_a_python_without_its_filter(make_tar, tmp_path, monkeypatch):
    monkeypatch.delattr(tarfile, 'data_filter')
    assert 'Python before 3.11.4 cannot unpack' in refused(sc, make_tar(), tmp_path)
