"""Archives that may come from anywhere: what they hold stays in its folder, and is not much more than they are."""
import gzip
import os
import posixpath
import re
import stat
import tarfile
import zipfile
import zlib

from utilities.errors import DataError

MAX_GROWTH = 100  # times its size may an archive unpack to; recordings come to 2, a file made to fill a disk to 1000
FREE_GROWTH = 2 ** 30  # bytes that any archive may unpack to
MAX_MEMBER = 2 ** 30  # bytes of a file in it: an hour and a half of stereo at 44.1 kHz
ENCRYPTED = 1  # of a zip member's flags
# What zipfile raises for broken archives, and for members that it cannot unpack.
ZIP_ERRORS = (EOFError, NotImplementedError, OSError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error)
# Headers of a tar, long names and pax, that tarfile reads into memory whole; as objects they take ten times as much,
# and a hundred may precede a member. The longest path that Linux knows has 4 KiB.
WHOLE_HEADERS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE,
                 tarfile.SOLARIS_XHDTYPE)
MAX_HEADER = 2 ** 16
BLOCK = 2 ** 20  # bytes read at once


def refuse(archive, problem):
    """Raise DataError for an archive as a whole."""
    raise DataError(f'{archive} is not to be trusted, nothing of it is used: {problem}')


def most_unpacked(size):
    """Bytes that an archive of so many bytes may unpack to."""
    return FREE_GROWTH + MAX_GROWTH * size


def check_member(archive, name, size, is_file, seen):
    """Raise DataError for a member of an archive that is a link or device, too large, or has a name that is not safe.

    is_file: None for a folder. seen: the set of the names of the files so far, to which this one is added.
    """
    if re.search(r'[\x00-\x1f\x7f\\\ud800-\udfff]|^/|^[A-Za-z]:', name) or '..' in name.split('/'):
        refuse(archive, f'the name {ascii(name[:200])} in it leads elsewhere, or means other things elsewhere')
    if is_file is None:
        return
    if not is_file:
        refuse(archive, f'{name} in it is a link, a device or something else that is no file')
    if size > MAX_MEMBER:
        refuse(archive, f'{name} in it unpacks to {size:,} bytes, more than {MAX_MEMBER:,}')
    if posixpath.normpath(name) in seen:
        refuse(archive, f'{name} is in it twice')
    seen.add(posixpath.normpath(name))


def open_zip(path):
    """Open a zip archive; raises DataError if it is broken, or a member is not to be trusted."""
    try:
        archive = zipfile.ZipFile(path)
    except ZIP_ERRORS as error:
        raise DataError(f'{path} is neither a folder nor a whole zip file: {error}') from None
    seen, members = set(), archive.infolist()
    for member in members:
        kind = stat.S_IFMT(member.external_attr >> 16)  # of Unix; 0 where it was made elsewhere
        is_file = None if member.is_dir() and kind in (0, stat.S_IFDIR) else kind in (0, stat.S_IFREG)
        check_member(path, member.orig_filename, member.file_size, is_file, seen)
        if member.flag_bits & ENCRYPTED:
            raise DataError(f'{member.filename} in {path} is encrypted: unpack it yourself and give its folder')
        # Of other methods zipfile has all that a member unpacks to in memory, whatever size was asked for.
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f'{member.filename} in {path} is compressed by another method than deflate: unpack it '
                            f'yourself and give its folder, or pack it again with zip')
    total, most = sum(member.file_size for member in members), most_unpacked(os.path.getsize(path))
    if total > most:
        refuse(path, f'it unpacks to {total:,} bytes, more than {most:,}')
    return archive


def read_member(archive, name):
    """The bytes of a member of an open zip archive; raises DataError if they are not what the archive says."""
    try:
        with archive.open(name) as member:
            # Without a size, all that a member unpacks to is in memory before it is cut to what it should be.
            return member.read(archive.getinfo(name).file_size)
    except ZIP_ERRORS as error:
        raise DataError(f'{name} in {archive.filename} cannot be read: {error}') from None


class LimitedStream:
    """A stream of what an archive holds, read from its beginning; DataError where that is more than most_unpacked."""

    def __init__(self, archive, stream):
        self.archive, self.stream, self.left = archive, stream, most_unpacked(archive.stat().st_size)

    def read(self, size):
        """As of a file; as much at once as is asked for."""
        data = self.stream.read(size)
        self.left -= len(data)
        if self.left < 0:
            refuse(self.archive, f'it unpacks to more than {most_unpacked(self.archive.stat().st_size):,} bytes')
        return data


class _Member(tarfile.TarInfo):
    """A member of a tar; tarfile.FilterError where finding out what it is would take much memory."""

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        """One header, before what belongs to it is read."""
        return cls._checked(super().frombuf(buf, encoding, errors))

    @classmethod
    def _frombuf(cls, *args, **kwargs):
        """The same, by the name under which tarfile calls it from Python 3.14 on."""
        return cls._checked(super()._frombuf(*args, **kwargs))

    @staticmethod
    def _checked(header):
        if header.type in WHOLE_HEADERS and header.size > MAX_HEADER:
            raise tarfile.FilterError(f'a header in it has {header.size:,} bytes, more than {MAX_HEADER:,}')
        if header.type == tarfile.GNUTYPE_SPARSE:
            header._refuse_sparse()
        return header

    def _refuse_sparse(self, *_):
        raise tarfile.FilterError('a sparse file is in it')

    _proc_gnusparse_10 = _refuse_sparse  # what tarfile calls where pax headers announce one with a map of any length


def extract_members(archive, stream, folder):
    """Yield the members of a stream of a tar once they are in `folder`; DataError where it is not to be trusted."""
    seen = set()
    try:
        with tarfile.open(fileobj=stream, mode='r|', bufsize=BLOCK, tarinfo=_Member) as tar:
            for member in tar:
                is_file = None if member.isdir() else member.isreg() and not member.issparse()
                check_member(archive, member.name, member.size, is_file, seen)
                tar.extract(member, folder, filter='data')
                yield member
                # Else tarfile keeps all members, with a copy of all that global headers have said so far.
                tar.members.clear()
                tar.pax_headers.clear()
    except DataError:
        raise
    except tarfile.FilterError as error:
        refuse(archive, error)
    except (OverflowError, RecursionError, ValueError) as error:
        refuse(archive, f'a header in it makes no sense ({error})')


def read_gzip(path: str) -> bytes:
    """Return what a gzip file holds. Raises DataError if it is broken, or more than MAX_MEMBER."""
    try:
        with gzip.open(path) as file:
            data = file.read(MAX_MEMBER + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f'{path} cannot be unpacked: {error}') from None
    if len(data) > MAX_MEMBER:
        refuse(path, f'it unpacks to more than {MAX_MEMBER:,} bytes')
    return data
