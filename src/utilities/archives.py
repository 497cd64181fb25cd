"""Unpack archives safely: limit the unpacked size, and write nothing outside the folder."""
import gzip
import tarfile
import zipfile
import zlib
from pathlib import Path

# Not zipfile.Path: that of some Pythons, such as 3.11.7 and 3.12.1, loops for ever in an archive
# that has a file named //a (CVE-2024-5569).
import zipp
from tqdm import tqdm

from utilities.errors import DataError

MAX_UNPACKED = 20 * 2 ** 30  # bytes; ESC-50 unpacks to 0.9 GB, Speech Commands to 3.8 GB
TOO_LARGE = f'it unpacks to more than {MAX_UNPACKED:,} bytes'


def open_zip(path: str | Path) -> zipp.Path:
    """Open a zip file. Return its top folder, a path like those of pathlib. Raises DataError."""
    try:
        archive = zipfile.ZipFile(path)
        if sum(member.file_size for member in archive.infolist()) > MAX_UNPACKED:
            raise zipfile.BadZipFile(TOO_LARGE)
    except Exception as error:  # zipfile raises nearly anything for a broken file
        raise DataError(f'{path} is neither a folder nor a usable zip file: {error}') from None
    return zipp.Path(archive)


def unpack_tar(archive: Path, folder: Path) -> None:
    """Unpack a tar.gz into a folder that exists.

    Raises DataError if the archive is not whole, is too large, or could write elsewhere, and
    OSError if the folder cannot be written.
    """
    if not hasattr(tarfile, 'data_filter'):
        raise DataError(f'Python before 3.11.4 cannot unpack {archive} safely: unpack it yourself '
                        f'and give its folder as --data_dir')
    try:
        with gzip.open(archive) as stream, tarfile.open(fileobj=stream, mode='r|') as tar:
            members = tqdm(_check(tar), desc='unpacking', unit='file', disable=None)
            tar.extractall(folder, members, filter='data')
            read_to_end(stream)
    except (EOFError, gzip.BadGzipFile, tarfile.TarError, zlib.error) as error:
        raise DataError(f'{archive} is neither a folder nor a usable tar.gz ({error}): '
                        f'download it again') from None


def _check(tar):
    """Yield the members. Refuse links: in older Pythons, some get around the filter."""
    size = 0
    for member in tar:
        size += member.size
        if size > MAX_UNPACKED:
            raise tarfile.TarError(TOO_LARGE)
        if member.issym() or member.islnk():
            raise tarfile.TarError(f'{member.name} in it is a link')
        yield member


def read_to_end(file: gzip.GzipFile) -> None:
    """Read a gzip file to its end, where its checksum is. Raises the errors of gzip."""
    while file.read(2 ** 20):
        pass
