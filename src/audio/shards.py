"""Audio inside uncompressed zip archives: random access, one open file a shard.

The path shards/0001.zip/a.flac names the member a.flac of the archive shards/0001.zip. Reads carry
their own position (os.pread), so threads, and workers that are forked after a shard was opened,
share its file without a lock. Windows has neither pread nor fork: there, threads wait for each
other.
"""
import errno
import functools
import io
import os
import struct
import threading
import weakref
import zipfile
import zlib
from typing import NamedTuple

import numpy as np

LOCAL_HEADER = struct.Struct('<4s2xHH16xHH')  # signature, flags, method, lengths of name and of extra field
SIGNATURE = b'PK\x03\x04'
ENCRYPTED = 1  # of the flags
HEAD = 256  # bytes before a member that are read with it: its header, with room for name and extra field
MAX_WHOLE = 2 ** 23  # bytes; longer members are read as they are decoded: of an hour, training wants ten seconds
BLOCK = 2 ** 18  # bytes read at once of those
# Half of the files that a process may have open. Of more shards the one unused for longest is closed, its index kept.
MAX_OPEN = max(64, os.sysconf('SC_OPEN_MAX') // 2) if hasattr(os, 'sysconf') else 256


class ShardError(ValueError):
    """A shard or a member that is missing or cannot be read; the message names it."""


class _File:
    """An open shard, closed when nobody uses it any more: a thread may still read what another has put aside."""

    def __init__(self, path):
        self.path = path
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, 'O_BINARY', 0))  # of Windows
        self.lock = threading.Lock()
        weakref.finalize(self, os.close, self.descriptor)
        self.size = os.fstat(self.descriptor).st_size

    def read(self, size, offset):
        """Up to so many bytes from there on, fewer only at the end of the file."""
        try:
            data = self._read_once(size, offset)
            while len(data) < size:
                more = self._read_once(size - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise ShardError(f'cannot read the shard {self.path}: {error.strerror}') from None
        return data

    def _read_once(self, size, offset):
        if hasattr(os, 'pread'):
            return os.pread(self.descriptor, size, offset)
        with self.lock:
            os.lseek(self.descriptor, offset, os.SEEK_SET)
            return os.read(self.descriptor, size)


class _Stretch(io.RawIOBase):
    """The bytes [start, start + size) of a _File, called `name`, as a file of their own, with a position of its own."""

    def __init__(self, file, start, size, name):
        self.file, self.start, self.size, self.name, self.position = file, start, size, name, 0

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=io.SEEK_SET):
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        if position < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self.position = position
        return position

    def readinto(self, buffer):
        size = min(len(buffer), max(0, self.size - self.position))
        data = self.file.read(size, self.start + self.position)
        if len(data) < size:
            raise _ends_within(self.file.path, self.name)
        buffer[:len(data)] = data
        self.position += len(data)
        return len(data)


class _Index(NamedTuple):
    """Where the members of a shard are. 28 bytes each, however long the names: every worker has two million of them.

    keys: hash() of their names, ascending, in whose 64 bits two names of a shard do not meet; offsets: of their
    headers; sizes: in bytes; checksums: CRC-32. All (members,).
    """
    keys: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    checksums: np.ndarray


def split(path):
    """Return the shard and the member that a path names, or None if it names a file of its own.

    The text decides, except that folders may be called x.zip, too; if a path leads through one,
    that is looked up once in a process and not for every sample. On Windows, either slash will do.
    """
    path = os.fspath(path)
    if '.zip/' not in _with_slashes(path):
        return None
    path = _with_slashes(os.path.abspath(path))
    end = path.find('.zip/')
    while end >= 0:
        shard, member = path[:end + 4], path[end + 5:]
        if not _is_folder(shard):
            return shard, member
        end = path.find('.zip/', end + 1)
    return None


def _with_slashes(path):
    """Write a path with the slash that members of zip archives have in their names."""
    return path if os.sep == '/' else path.replace(os.sep, '/')


def is_file(path):
    """Whether a path names a file or a member of a shard. Raises ShardError if it leads into an unreadable shard."""
    place = split(path)
    return os.path.isfile(path) if place is None else _position(*place) is not None


def read(shard, member):
    """A member of a shard as an open binary file. Raises ShardError."""
    offset, size = _entry(shard, member)[:2]
    file = _open(shard)
    data = file.read(HEAD + (size if size <= MAX_WHOLE else 0), offset)
    start = _data_start(shard, member, data[:LOCAL_HEADER.size])
    if size > MAX_WHOLE:
        return io.BufferedReader(_Stretch(file, offset + start, size, member), BLOCK)
    if len(data) < start + size:  # name and extra field are longer than usual
        data, start = file.read(size, offset + start), 0
    if len(data) < start + size:
        raise _ends_within(shard, member)
    return io.BytesIO(data[start:start + size])


def verify(shard, member):
    """Read a member of a shard and hold it against its checksum. Raises ShardError."""
    checksum = 0
    with read(shard, member) as file:
        while block := file.read(BLOCK):
            checksum = zlib.crc32(block, checksum)
    if checksum != _entry(shard, member)[2]:
        raise ShardError(f'{member} in the shard {shard} is damaged, its checksum is wrong: copy or pack it again')


def _ends_within(shard, name):
    return ShardError(f'the shard {shard} ends within {name}: copy or pack it again')


def _data_start(shard, member, header):
    """How many bytes after the beginning of its local header a member begins."""
    if len(header) < LOCAL_HEADER.size or not header.startswith(SIGNATURE):
        raise ShardError(f'the shard {shard} is damaged, or was written anew meanwhile: there is no {member} where its '
                         'index says')
    _, flags, method, name, extra = LOCAL_HEADER.unpack(header)
    if flags & ENCRYPTED:
        raise ShardError(f'{member} in the shard {shard} is encrypted')
    if method != zipfile.ZIP_STORED:
        raise ShardError(f'{member} in the shard {shard} is compressed: shards are stored uncompressed, make them with '
                         'zip -0 or prep_audioset.py --shards')
    return LOCAL_HEADER.size + name + extra


def _position(shard, member):
    """Where a member is in the index of its shard, None where it is not."""
    keys, key = _index(shard).keys, hash(member)
    position = keys.searchsorted(key)
    return position if position < len(keys) and keys[position] == key else None


def _entry(shard, member):
    """Offset, size and checksum of a member."""
    index, position = _index(shard), _position(shard, member)
    if position is None:
        raise ShardError(f'the shard {shard} holds no {member}')
    return int(index.offsets[position]), int(index.sizes[position]), int(index.checksums[position])


@functools.cache
def _index(shard):
    file = _open(shard)
    try:
        return _read_index(file)
    except ShardError:
        raise
    except (zipfile.BadZipFile, NotImplementedError, OSError, OverflowError, ValueError, struct.error) as error:
        raise ShardError(f'the shard {shard} is cut off or no zip archive ({error}): copy or pack it again') from None


def _read_index(file):
    """The _Index of an open shard. zipfile's objects, a kilobyte a member, are put away again."""
    with zipfile.ZipFile(io.BufferedReader(_Stretch(file, 0, file.size, 'its index'), BLOCK)) as archive:
        members = {info.filename: info for info in archive.infolist()}  # of several of a name, the last
    keys = np.fromiter(map(hash, members), np.int64, len(members))
    order = keys.argsort()
    columns = (('header_offset', np.int64), ('compress_size', np.int64), ('CRC', np.uint32))
    return _Index(keys[order], *(np.fromiter((getattr(info, name) for info in members.values()), kind,
                                             len(members))[order] for name, kind in columns))


@functools.lru_cache(MAX_OPEN)
def _open(shard):
    try:
        return _File(shard)
    except FileNotFoundError:
        raise ShardError(f'the shard {shard} does not exist') from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file has
        raise ShardError(f'cannot open the shard {shard}: {getattr(error, "strerror", None) or error}') from None


@functools.cache
def _is_folder(path):
    return os.path.isdir(path)
