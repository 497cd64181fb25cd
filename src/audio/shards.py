"""Read audio inside uncompressed zip archives (shards) in any order, with one open file per shard.

The path shards/0001.zip/a.flac names the member a.flac of the archive shards/0001.zip.

zipfile.ZipFile is not enough here. It shares one file position, so forked workers would read each
other's bytes; it keeps a kilobyte for each member in every worker; and it reads each member's
header on its own. Here it only reads the index of a shard. Members are read with os.pread, which
carries its own position, so that threads and forked workers share a file without a lock.
"""
import errno
import functools
import io
import os
import struct
import weakref
import zipfile
import zlib
from typing import BinaryIO, NamedTuple

import numpy as np

# A member's local header: signature, flags, method, lengths of the name and of the extra field.
LOCAL_HEADER = struct.Struct('<4s2xHH16xHH')
SIGNATURE = b'PK\x03\x04'
ENCRYPTED = 1  # the bit of the flags
# Bytes that are read in one go with a member: its header, with room for name and extra field.
HEADER_BYTES = 256
# Longer members are read while they are decoded: training wants ten seconds of an hour.
MAX_WHOLE = 2 ** 23  # bytes
BLOCK = 2 ** 18  # bytes that are then read at once
# Half of the files that a process may have open. If there are more shards, the one that was not
# used for longest is closed. Its index stays.
MAX_OPEN = max(64, os.sysconf('SC_OPEN_MAX') // 2) if hasattr(os, 'sysconf') else 256


class ShardError(ValueError):
    """A shard or a member is missing or cannot be read. The message names it."""


class _OpenShard:
    """An open shard. It closes once nobody uses it, which may be after _open has dropped it."""

    def __init__(self, path: str):
        self.path = path
        self.descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor)
        self.size = os.fstat(self.descriptor).st_size

    def read(self, size: int, offset: int) -> bytes:
        """Return `size` bytes from `offset` on, fewer only at the end of the file."""
        data = b''
        try:
            while len(data) < size:
                more = self._read_some(size - len(data), offset + len(data))
                if not more:
                    break
                data = data + more if data else more
        except OSError as error:
            raise ShardError(f'cannot read the shard {self.path}: {error.strerror}') from None
        return data

    def _read_some(self, size, offset):
        """Return at least one byte and at most `size`, or none at the end."""
        if hasattr(os, 'pread'):
            return os.pread(self.descriptor, size, offset)
        with open(self.path, 'rb') as file:  # Windows
            file.seek(offset)
            return file.read(size)


class _Member(io.RawIOBase):
    """A part of an open shard as a file: `size` bytes from `start` on. `name` is for messages."""

    def __init__(self, shard: _OpenShard, start: int, size: int, name: str):
        self.shard, self.start, self.size, self.name = shard, start, size, name
        self.position = 0

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=io.SEEK_SET):
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        if origin + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self.position = origin + offset
        return self.position

    def readinto(self, buffer):
        size = min(len(buffer), max(0, self.size - self.position))
        data = self.shard.read(size, self.start + self.position)
        if len(data) < size:
            raise _cut_off(self.shard.path, self.name)
        buffer[:len(data)] = data
        self.position += len(data)
        return len(data)


class _Index(NamedTuple):
    """Where the members of a shard are, as arrays (members,) in the order of their keys.

    A member takes 28 bytes, however long its name is, because every worker has the index of all
    two million clips. A key is the hash() of a name. Two names of a shard practically never have
    the same 64-bit hash.
    """
    keys: np.ndarray
    offsets: np.ndarray  # of the local headers
    sizes: np.ndarray  # in bytes
    checksums: np.ndarray  # CRC-32


class _Entry(NamedTuple):
    """Where one member of a shard is."""
    offset: int
    size: int
    checksum: int


def split_path(path: str | os.PathLike) -> tuple[str, str] | None:
    """Return the shard and the member that a path names, or None if it names a plain file.

    The text of the path decides, but a folder may be called x.zip, too. So the file system is
    asked once in each process whether x.zip is a folder, and not for every sample. On Windows, a
    path may have slashes or backslashes.
    """
    text = os.fspath(path)
    if '.zip/' not in _with_slashes(text):
        return None
    text = _with_slashes(os.path.abspath(text))
    end = text.find('.zip/')
    while end >= 0:
        shard, member = text[:end + 4], text[end + 5:]
        if not _is_folder(shard):
            return shard, member
        end = text.find('.zip/', end + 1)
    return None


def _with_slashes(path):
    """Return a path with slashes only, as zip archives write the names of members."""
    return path if os.sep == '/' else path.replace(os.sep, '/')


@functools.cache
def _is_folder(path):
    return os.path.isdir(path)


def is_file(path: str | os.PathLike) -> bool:
    """Return whether a path names a file or a member of a shard.

    Raises:
        ShardError: The path leads into a shard that cannot be read.
    """
    place = split_path(path)
    return os.path.isfile(path) if place is None else _find(*place) is not None


def open_member(shard: str, member: str) -> BinaryIO:
    """Open a member of a shard as a binary file. Raises ShardError.

    A member of usual size is read at once, with its header in the same read. A longer one is read
    as far as the caller reads.
    """
    entry = _get_entry(shard, member)
    file = _open(shard)
    is_long = entry.size > MAX_WHOLE
    data = file.read(HEADER_BYTES + (0 if is_long else entry.size), entry.offset)
    start = _header_size(shard, member, data[:LOCAL_HEADER.size])

    if is_long:
        part = _Member(file, entry.offset + start, entry.size, member)
        return io.BufferedReader(part, BLOCK)
    if len(data) < start + entry.size:  # name and extra field are longer than usual
        data, start = file.read(entry.size, entry.offset + start), 0
    if len(data) < start + entry.size:
        raise _cut_off(shard, member)
    return io.BytesIO(data[start:start + entry.size])


def verify_checksum(shard: str, member: str) -> None:
    """Read a member of a shard. Raises ShardError if its checksum is wrong."""
    checksum = 0
    with open_member(shard, member) as file:
        while block := file.read(BLOCK):
            checksum = zlib.crc32(block, checksum)
    if checksum != _get_entry(shard, member).checksum:
        raise ShardError(f'{member} in the shard {shard} is damaged, its checksum is wrong: copy '
                         f'or pack it again')


def _cut_off(shard, name):
    return ShardError(f'the shard {shard} ends within {name}: copy or pack it again')


def _header_size(shard, member, header):
    """Return the number of bytes from the beginning of a local header to the data behind it."""
    if len(header) < LOCAL_HEADER.size or not header.startswith(SIGNATURE):
        raise ShardError(f'the shard {shard} is damaged, or was replaced meanwhile: there is no '
                         f'{member} where its index says')
    _, flags, method, name_size, extra_size = LOCAL_HEADER.unpack(header)
    if flags & ENCRYPTED:
        raise ShardError(f'{member} in the shard {shard} is encrypted')
    if method != zipfile.ZIP_STORED:
        raise ShardError(f'{member} in the shard {shard} is compressed: shards are stored '
                         f'uncompressed, make them with zip -0 or prep_audioset.py --shards')
    return LOCAL_HEADER.size + name_size + extra_size


def _find(shard, member):
    """Return the position of a member in the index of its shard, or None if it is not there."""
    keys, key = _read_index(shard).keys, hash(member)
    position = int(keys.searchsorted(key))
    return position if position < len(keys) and keys[position] == key else None


def _get_entry(shard, member):
    """Return the _Entry of a member. Raises ShardError if the shard does not hold it."""
    index, position = _read_index(shard), _find(shard, member)
    if position is None:
        raise ShardError(f'the shard {shard} holds no {member}')
    return _Entry(int(index.offsets[position]), int(index.sizes[position]),
                  int(index.checksums[position]))


@functools.cache
def _read_index(shard):
    """Return the _Index of a shard."""
    file = _open(shard)
    part = io.BufferedReader(_Member(file, 0, file.size, 'its index'), BLOCK)
    try:
        with zipfile.ZipFile(part) as archive:
            # If several members have one name, the last counts.
            members = {info.filename: info for info in archive.infolist()}
        return _make_index(members)
    except ShardError:
        raise
    except (zipfile.BadZipFile, NotImplementedError, OSError, OverflowError, ValueError,
            struct.error) as error:
        raise ShardError(f'the shard {shard} is cut off or no zip archive ({error}): copy or pack '
                         f'it again') from None


def _make_index(members):
    """Return the _Index of a dict name -> ZipInfo."""
    def column(name, dtype):
        values = (getattr(info, name) for info in members.values())
        return np.fromiter(values, dtype, len(members))[order]

    keys = np.fromiter(map(hash, members), np.int64, len(members))
    order = keys.argsort()
    return _Index(keys[order], column('header_offset', np.int64),
                  column('compress_size', np.int64), column('CRC', np.uint32))


@functools.lru_cache(MAX_OPEN)
def _open(shard):
    """Return the _OpenShard of a path."""
    try:
        return _OpenShard(shard)
    except FileNotFoundError:
        raise ShardError(f'the shard {shard} does not exist') from None
    except (OSError, ValueError) as error:  # ValueError: no file can have such a name
        reason = getattr(error, 'strerror', None) or error
        raise ShardError(f'cannot open the shard {shard}: {reason}') from None
