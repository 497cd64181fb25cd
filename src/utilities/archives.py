"""Archives that may come from anywhere: what they hold stays in its folder, and is not much more than they are."""
import lzma
import os
import posixpath
import re
import stat
import tarfile
import zipfile
import zlib

from utilities.labels import DataError

MAX_GROWTH = 100  # times its size may an archive unpack to; recordings come to 2, a file made to fill a disk to 1000
FREE_GROWTH = 2 ** 30  # bytes that any archive may unpack to
MAX_MEMBER = 2 ** 30  # bytes of a file in it: an hour and a half of stereo at 44.1 kHz
ENCRYPTED = 1  # of a zip member's flags
# What zipfile raises for broken archives, and for members that it cannot unpack.
ZIP_ERRORS = (EOFError, NotImplementedError, OSError, RuntimeError, ValueError, lzma.LZMAError, zipfile.BadZipFile,
              zlib.error)


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
    """Open a zip archive; raises DataError where it is broken, or a member is not to be trusted."""
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
    total, most = sum(member.file_size for member in members), most_unpacked(os.path.getsize(path))
    if total > most:
        refuse(path, f'it unpacks to {total:,} bytes, more than {most:,}')
    return archive


def read_member(archive, name):
    """The bytes of a member of an open zip archive; raises DataError where they are not what the archive says."""
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


def extract_members(archive, tar, folder):
    """Yield the members of an open tar once they are in `folder`; DataError for one that is not to be trusted."""
    seen = set()
    for member in tar:
        is_file = None if member.isdir() else member.isreg() and not member.issparse()
        check_member(archive, member.name, member.size, is_file, seen)
        try:
            tar.extract(member, folder, filter='data')
        except tarfile.FilterError as error:
            refuse(archive, error)
        yield member
