"""Archives from anywhere: real attacks are refused by name, and nothing of them is outside, or kept."""
import gzip
import io
import os
import stat
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest

import esc50 as esc
import speech_commands as sc
from utilities import archives
from utilities.archives import open_zip, read_member
from utilities.errors import DataError

NAMES = ['/evil', '/tmp/../evil', '../evil', '../../evil', 'a/../../evil', 'audio/..', '..', '..\\evil', 'a\\..\\evil',
         'C:evil', 'C:/evil', 'a\nb', 'a\x1b[2Jb', 'a\tb']


def all_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*'))


@pytest.fixture
def make_zip(make_esc, tmp_path):
    """Write a small ESC-50 as a zip, with further members: (ZipInfo or name, bytes); returns its path."""
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
    """Write a small Speech Commands as a tar.gz, with further members: (TarInfo, bytes); returns its path."""
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


def refused(prep, archive, tmp_path, reason='is not to be trusted, nothing of it is used'):
    """The message with which a preparation refuses an archive, which leaves nothing; fails where anything is left."""
    outside = set(all_below(tmp_path))
    with pytest.raises(DataError) as error:
        prep.prepare(archive, tmp_path / 'out')
    assert str(archive) in str(error.value) and reason in str(error.value)
    assert {name for name in all_below(tmp_path) if Path(name).parts[0] != 'out'} == outside
    assert not [name for name in all_below(tmp_path / 'out') if name != 'source.json']
    return str(error.value)


def test_the_archives_without_an_attack_are_prepared(make_zip, make_tar, tmp_path):
    """So that no test below passes for another reason."""
    link = zipfile.ZipInfo('ESC-50-master/README.md')
    esc.prepare(make_zip((link, 'text'), ('ESC-50-master/empty/', '')), tmp_path / 'esc out')
    (tmp_path / 'archives').rename(tmp_path / 'before')
    sc.prepare(make_tar((member('./yes', tarfile.DIRTYPE), b''), (member('./LICENSE', size=4), b'text')),
               tmp_path / 'sc out')
    assert len(all_below(tmp_path / 'esc out' / 'audio_16k')) == 10
    assert (tmp_path / 'sc out' / 'audio' / 'bed' / 'a_0.wav').read_bytes() == b'audio'


@pytest.mark.parametrize('name', NAMES)
def test_a_zip_whose_names_lead_elsewhere_is_refused(name, make_zip, tmp_path):
    assert ascii(name) in refused(esc, make_zip((name, 'evil')), tmp_path)


def test_a_zip_with_a_name_that_goes_on_after_its_end_is_refused(make_zip, tmp_path):
    path = make_zip(('harmless-x../evil', 'evil'))
    path.write_bytes(path.read_bytes().replace(b'harmless-x', b'harmless-\0'))
    assert ascii('harmless-\0../evil') in refused(esc, path, tmp_path)


@pytest.mark.parametrize('kind', [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
@pytest.mark.parametrize('name', ['ESC-50-master/audio/x.wav', 'ESC-50-master/more/'])
def test_a_zip_with_a_link_or_a_device_is_refused(name, kind, make_zip, tmp_path):
    info = zipfile.ZipInfo(name)
    info.external_attr = (kind | 0o777) << 16
    assert name in refused(esc, make_zip((info, '/etc/passwd')), tmp_path)


@pytest.mark.filterwarnings('ignore:Duplicate name')
@pytest.mark.parametrize('name', ['ESC-50-master/meta/esc50.csv', 'ESC-50-master/./meta/esc50.csv'])
def test_a_zip_with_a_name_twice_is_refused(name, make_zip, tmp_path):
    assert 'esc50.csv is in it twice' in refused(esc, make_zip((name, 'filename\n')), tmp_path)


def peak_memory(do):
    """How many bytes of memory it takes to call a function."""
    tracemalloc.start()
    try:
        do()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def declare(path, name, size):
    """Let both headers of a zip's member say that it unpacks to so many bytes."""
    data, width = bytearray(path.read_bytes()), 4
    with zipfile.ZipFile(path) as archive:
        old = archive.getinfo(name).file_size.to_bytes(width, 'little')
    places = [(b'PK\3\4', 22, 30), (b'PK\1\2', 24, 46)]  # signature, where the size is, where the name is
    for signature, at_size, at_name in places:
        start = data.index(name.encode(), data.index(signature)) - at_name
        if signature == b'PK\1\2':
            start = data.rindex(name.encode()) - at_name
        assert data[start:start + 4] == signature and data[start + at_size:start + at_size + width] == old
        data[start + at_size:start + at_size + width] = size.to_bytes(width, 'little')
    path.write_bytes(data)


@pytest.mark.parametrize('compression', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_member_of_a_zip_that_unpacks_to_more_than_it_says_stops_there(compression, make_zip):
    path = make_zip(('ESC-50-master/meta/more.csv', bytes(20_000_000)), compression=compression)
    declare(path, 'ESC-50-master/meta/more.csv', 1000)

    def read():
        with open_zip(path) as archive, pytest.raises(DataError, match='more.csv in .*esc.zip cannot be read: Bad CRC'):
            read_member(archive, 'ESC-50-master/meta/more.csv')
    assert peak_memory(read) < 2_000_000


@pytest.mark.parametrize('compression', [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_of_a_method_that_unpacks_without_end_is_refused(compression, make_zip, tmp_path):
    path = make_zip(compression=compression)
    clip = refused(esc, path, tmp_path, 'is compressed by another method than deflate: unpack it').partition(' in ')[0]
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo(clip).compress_type == compression
    with pytest.raises(DataError, match='another method than deflate'):
        esc.check_zip(path, None)


@pytest.mark.parametrize('compression', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_clip_of_a_zip_that_unpacks_to_more_than_it_says_is_named(compression, make_zip, tmp_path):
    path = make_zip(compression=compression)
    declare(path, 'ESC-50-master/audio/2-2-A-0.flac', 100)
    with pytest.raises(DataError, match='2-2-A-0.flac in .*esc.zip cannot be read'):
        esc.prepare(path, tmp_path / 'out')
    assert not (tmp_path / 'out' / 'datafiles').exists()


def test_a_member_of_a_zip_that_says_it_is_huge_is_refused(make_zip, tmp_path):
    path = make_zip()
    declare(path, 'ESC-50-master/audio/2-2-A-0.flac', 2 ** 32 - 2)
    assert '2-2-A-0.flac in it unpacks to 4,294,967,294 bytes' in refused(esc, path, tmp_path)


def test_a_zip_that_unpacks_to_far_more_than_it_is_is_refused(make_zip, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, 'FREE_GROWTH', 0)
    path = make_zip(('ESC-50-master/zeros', bytes(30_000_000)))
    assert path.stat().st_size < 300_000
    assert 'it unpacks to ' in refused(esc, path, tmp_path)


def test_an_encrypted_zip_says_what_to_do(make_zip, tmp_path):
    path = make_zip(compression=zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[data.rindex(b'PK\1\2') + 8] |= 1
    path.write_bytes(data)
    assert 'give its folder' in refused(esc, path, tmp_path, 'is encrypted: unpack it yourself')


@pytest.mark.parametrize('damage', [lambda data: data[:-30], lambda data: data[:len(data) // 2], lambda _: b'PK\3\4',
                                    lambda data: data[:-22] + b'PK\5\6' + b'\xff' * 18,
                                    lambda data: data.replace(b'PK\1\2', b'PK\1\3')])
def test_a_damaged_zip_is_refused_by_name(damage, make_zip, tmp_path):
    path = make_zip()
    path.write_bytes(damage(path.read_bytes()))
    assert 'esc.zip is neither a folder nor a whole zip file: ' in refused(esc, path, tmp_path, '')


def test_a_zip_that_holds_nothing_is_refused(make_zip, tmp_path):
    path = make_zip()
    path.write_bytes(b'PK\5\6' + bytes(18))
    assert 'there is no meta/esc50.csv in it' in refused(esc, path, tmp_path, '')


@pytest.mark.parametrize('meta, problem', [
    (b'filename,fold\xe9', 'as a CSV: line 1, character 14 is not UTF-8'), (b'filename,fold,target,category\n"' + b'a' * 200_000 + b'",1,0,dog\n', 'CSV'),
    (b'filename,fold,target,category\n,1,0,dog\n', 'line 2'),
    (b'filename,fold,target,category\n..,1,0,dog\n', 'not there'),
    (b'filename,fold,target,category\n/etc/passwd,1,0,dog\n', 'line 2'),
    (b'filename,fold,target,category\na.wav,1,0,dog\na.ogg,2,0,dog\n', 'line 3: a.ogg is listed twice'),
    (b'filename,fold,target,category\n"a\0.wav",1,0,dog\n', 'it holds NUL characters')],
    ids=['no UTF-8', 'long cell', 'no name', 'folder above', 'absolute', 'twice', 'NUL'])
def test_a_list_of_clips_that_cannot_be_is_refused(meta, problem, make_esc, tmp_path):
    folder = make_esc()
    (folder / 'meta' / 'esc50.csv').write_bytes(meta)
    with pytest.raises(ValueError, match=problem) as error:
        esc.prepare(folder, tmp_path / 'out')
    assert type(error.value).__name__ in ('DataError', 'AudioError') and not (tmp_path / 'out' / 'datafiles').exists()


@pytest.mark.parametrize('name', NAMES + ['/bed/evil', './../evil', 'bed/\udcff.wav'])
def test_a_tar_whose_names_lead_elsewhere_is_refused(name, make_tar, tmp_path):
    assert ascii(name) in refused(sc, make_tar((member(name, size=4), b'evil')), tmp_path)


@pytest.mark.parametrize('kind', [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize('target', ['/etc/passwd', '../../../outside', './bed/a_0.wav', 'a_0.wav', '/'])
def test_a_tar_with_a_link_is_refused(target, kind, make_tar, tmp_path):
    assert './bed/x.wav in it is a link' in refused(sc, make_tar((member('./bed/x.wav', kind, linkname=target), b'')),
                                                    tmp_path)


def test_a_member_of_a_tar_that_goes_through_a_link_is_not_written(make_tar, tmp_path):
    (tmp_path / 'outside').mkdir()
    members = [(member('./door', tarfile.SYMTYPE, linkname=str(tmp_path / 'outside')), b''),
               (member('./door/evil', size=4), b'evil')]
    refused(sc, make_tar(*members), tmp_path)
    assert os.listdir(tmp_path / 'outside') == []


@pytest.mark.parametrize('kind', [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b'Z'])
def test_a_tar_with_a_device_or_something_unknown_is_refused(kind, make_tar, tmp_path):
    archive = make_tar((member('./bed/null', kind), b''))
    assert './bed/null in it is a link, a device' in refused(sc, archive, tmp_path)


@pytest.mark.parametrize('name', ['./bed/a_0.wav', 'bed/a_0.wav', 'bed//a_0.wav'])
def test_a_tar_with_a_name_twice_is_refused(name, make_tar, tmp_path):
    assert 'a_0.wav is in it twice' in refused(sc, make_tar((member(name, size=4), b'evil')), tmp_path)


def test_a_tar_that_unpacks_to_far_more_than_it_is_stops(make_tar, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, 'FREE_GROWTH', 20_000)
    path = make_tar(*((member(f'./bed/{i}.wav', size=1_000_000), bytes(1_000_000)) for i in range(30)))
    assert 'it unpacks to more than ' in refused(sc, path, tmp_path)


def test_a_tar_whose_member_says_it_is_huge_is_refused(make_tar, tmp_path):
    path = make_tar()
    data = bytearray(gzip.decompress(path.read_bytes()))
    end = data.index(bytes(1024))
    end += -end % 512
    data[end:] = member('./bed/huge.wav', size=2 ** 40).tobuf(tarfile.GNU_FORMAT) + b'little'
    path.write_bytes(gzip.compress(data))
    assert './bed/huge.wav in it unpacks to 1,099,511,627,776 bytes' in refused(sc, path, tmp_path)


def pax_header(kind, *records):
    """A pax header of a tar, global or of the next member, with keys and values."""
    said = b''.join(tarfile.TarInfo._create_pax_generic_header({key: value}, kind, 'utf-8')[512:].rstrip(b'\0')
                    for key, value in records)
    return member('pax', kind, size=len(said)).tobuf(tarfile.GNU_FORMAT) + said + bytes(-len(said) % 512)


def peak_of_refused(data, tmp_path, reason):
    """How many bytes of memory it takes to refuse the tar of some bytes, for that reason."""
    path = tmp_path / 'sc.tar.gz'
    path.write_bytes(gzip.compress(data, 1))

    def refuse():
        assert reason in refused(sc, path, tmp_path)
    return peak_memory(refuse)


@pytest.mark.parametrize('kind', [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE,
                                  tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE])
def test_a_tar_with_a_huge_header_is_refused_before_that_is_in_memory(kind, tmp_path):
    header = member('././@LongLink', kind, size=30_000_000)
    data = header.tobuf(tarfile.GNU_FORMAT) + b'a' * 30_000_000 + member('./bed/a_0.wav').tobuf() + bytes(1024)
    reason = 'a header in it has 30,000,000 bytes, more than 65,536'
    assert peak_of_refused(data, tmp_path, reason) < 5_000_000


def test_headers_that_were_used_are_not_kept(tmp_path):
    headers = pax_header(tarfile.XGLTYPE, *((f'a{i}', '') for i in range(5000)))
    clips = b''.join(member(f'./bed/{i}.wav').tobuf() for i in range(100))
    data = headers + clips + member('../evil').tobuf() + bytes(1024)
    assert peak_of_refused(data, tmp_path, "the name '../evil' in it") < 8_000_000


def test_a_tar_whose_headers_never_end_is_refused(tmp_path):
    long_name = member('././@LongLink', tarfile.GNUTYPE_LONGNAME, size=2).tobuf(tarfile.GNU_FORMAT) + b'a' + bytes(511)
    assert peak_of_refused(10_000 * long_name, tmp_path, 'a header in it makes no sense (maximum recursion') < 8_000_000


@pytest.mark.parametrize('record', [('GNU.sparse.map', 'x'), ('GNU.sparse.map', '1,,1'), ('mtime', '1e30'),
                                    ('mtime', 'inf')])
def test_a_tar_with_a_header_that_makes_no_sense_is_refused(record, tmp_path):
    data = pax_header(tarfile.XHDTYPE, record) + member('./bed/a_0.wav').tobuf() + bytes(1024)
    assert peak_of_refused(data, tmp_path, 'a header in it makes no sense (') < 8_000_000


def sparse_member():
    """GNU's old form of a sparse file, and its map in many blocks."""
    header = bytearray(member('./bed/holes.wav', tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    header[482] = 1  # the map goes on
    header[148:156] = b' ' * 8
    header[148:156] = b'%06o\0 ' % sum(header)
    return bytes(header) + 20_000 * (42 * b'00000000001\0' + b'\1' + bytes(7))


def sparse_pax_member():
    """A sparse file by pax headers, and its map, which is said to be longer still."""
    headers = pax_header(tarfile.XHDTYPE, ('GNU.sparse.major', '1'), ('GNU.sparse.minor', '0'))
    return headers + member('./bed/holes.wav').tobuf() + b'99999999999\n' + 5_000_000 * b'1\n'


@pytest.mark.parametrize('make', [sparse_member, sparse_pax_member])
def test_a_sparse_file_in_a_tar_is_refused_before_its_map_is_in_memory(make, tmp_path):
    assert peak_of_refused(make(), tmp_path, 'a sparse file is in it') < 5_000_000


def test_a_sparse_file_in_a_tar_is_refused(make_tar, tmp_path):
    info = member('./bed/holes.wav', size=0)
    info.pax_headers = {'GNU.sparse.major': '0', 'GNU.sparse.minor': '1', 'GNU.sparse.size': str(2 ** 29),
                        'GNU.sparse.numblocks': '1', 'GNU.sparse.map': f'{2 ** 29},0'}
    assert './bed/holes.wav in it is' in refused(sc, make_tar((info, b'')), tmp_path)
