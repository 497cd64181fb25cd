"""Write and download files so that they are whole or not there, and lock what one process may do.

A file is written under a temporary name, or downloaded into a scratch folder, and then moved.
"""
import contextlib
import errno
import functools
import logging
import os
import re
import runpy
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

STALL_SECONDS = 60  # a connection that sends nothing for so long is given up
THIS_MACHINE = ('localhost', '127.0.0.1', '::1')  # as a URL's host name
NOT_ASKED = 'is not asked: downloads come over https, and by no redirect over less'
LOCK_POLL_SECONDS = 0.05  # how often a process that waits for a lock looks


def _errors(*names):
    """Return the numbers of errors by their names, of which no system knows all."""
    return {getattr(errno, name) for name in names if hasattr(errno, name)}


DISK_FULL = _errors('ENOSPC', 'EDQUOT', 'EFBIG')
LOCK_HELD = _errors('EACCES', 'EAGAIN', 'EWOULDBLOCK')  # by another process
# What file systems without locks answer: some of Lustre, NFS, 9p and FUSE.
NO_LOCKS = _errors('ENOLCK', 'ENOSYS', 'EOPNOTSUPP', 'ENOTSUP')

logger = logging.getLogger(__name__)


class WriteError(OSError):
    """A file that cannot be written; the message names it. What was at its path before is still there."""


@contextlib.contextmanager
def write_errors(path):
    """Make a WriteError that names `path` of an error in writing it; it says if the disk is full."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and 'inline_container' not in str(error):  # where torch.save fails to write
            raise
        full = isinstance(error, RuntimeError) or error.errno in DISK_FULL
        raise WriteError(f'cannot write {path}: {str(error).splitlines()[0]}'
                         + ('; is the disk full?' if full else '')) from error


@contextlib.contextmanager
def atomic_write(path):
    """Give a temporary path beside `path` to write to; on success it is synced and takes the place of `path`.

    On an error the temporary file is removed and what was at `path` stays; a full disk is a WriteError. Several may
    write one path at once, from any thread, process or machine: it is always a whole file, in the end the last one.
    """
    path = Path(path)
    # What differs is all after the last dot, which torch.save leaves out where it writes the file's name into the file.
    partial = path.with_name(f'.{path.name}.part-{secrets.token_hex(3)}')
    try:
        with write_errors(path):
            yield partial
            with open(partial, 'rb+') as file:  # Windows syncs no file that is open for reading alone
                os.fsync(file.fileno())
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def remove_leftovers(folder, name='*'):
    """Remove what killed processes had begun to write in a folder under a name, which may have wildcards.

    Only for who alone writes such files there.
    """
    for partial in Path(folder).glob(f'.{name}.part-*'):
        partial.unlink(missing_ok=True)


class LockedError(OSError):
    """A lock that another process holds."""


@contextlib.contextmanager
def hold_lock(path, wait=True, keep=lambda: True):
    """Keep other processes out of the block: hold a lock on the file at `path`.

    The lock ends with this process, however it ends: a file that a killed process left locks
    nobody out. filelock would do, but its versions differ on file systems without locks: some wait
    for ever, some leave a file that does lock others out. Here, the log says that there is no lock.

    Args:
        path: the file, which is made if it is not there.
        wait: whether to wait until another process lets go.
        keep: called at the end, tells whether the file stays.

    Raises:
        LockedError: another process holds the lock, and wait is False.
        OSError: the file cannot be made.
    """
    descriptor = _lock_file(path, wait)
    try:
        yield
    finally:
        try:
            remove = descriptor in _locked and not keep()
            if remove and fcntl:  # before the release, so that who waits for it makes a new one
                Path(path).unlink(missing_ok=True)
        finally:
            _release(descriptor)
        if remove and not fcntl:  # Windows removes no open file
            with contextlib.suppress(OSError):
                Path(path).unlink()


_locked = set()  # descriptors of the files that this process has locked


def _lock_file(path, wait):
    """Open the file at `path` and lock it. Return its descriptor."""
    _let_go_in_forked_processes()
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            locked = _try_lock(descriptor, path, wait)
        except BaseException:
            os.close(descriptor)
            raise
        if locked:
            _locked.add(descriptor)
            return descriptor
        os.close(descriptor)
        time.sleep(LOCK_POLL_SECONDS)


def _try_lock(descriptor, path, wait):
    """Lock an open file, if its file system has locks. Return False if it is to be opened again."""
    try:
        if fcntl:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except OSError as error:
        if error.errno in NO_LOCKS:
            logger.warning('%s: this file system has no locks (%s), so nothing keeps a second '
                           'process out: do not start two that write to this folder', path,
                           error.strerror)
            return True
        if error.errno not in LOCK_HELD:
            raise
        if not wait:
            raise LockedError(error.errno, 'another process holds the lock', str(path)) from None
        return False
    return _is_at(descriptor, path)


def _release(descriptor):
    """Close a file that this process has locked; one that was forked meanwhile has done so."""
    if descriptor in _locked:
        _locked.remove(descriptor)
        os.close(descriptor)


def _is_at(descriptor, path):
    """Return whether an open file is still the one at `path`, and was not removed meanwhile."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


@functools.cache
def _let_go_in_forked_processes():
    """Let no forked process keep a lock: dataloader workers outlive a killed parent by seconds."""
    def let_go():
        for descriptor in list(_locked):
            _release(descriptor)

    if hasattr(os, 'register_at_fork'):
        os.register_at_fork(after_in_child=let_go)


class DownloadError(OSError):
    """A source that did not deliver, or none that did; a line a source says why."""


class MissingDownloadError(DownloadError):
    """A file that its server does not have."""


def check_address(address, asked_before=''):
    """Raise DownloadError for an address that is not to be asked: plain http is for servers on this machine.

    asked_before: the address that redirects to it; https leads to https alone.
    """
    parts = urllib.parse.urlsplit(address)
    local = parts.scheme == 'http' and parts.hostname in THIS_MACHINE and not asked_before.startswith('https:')
    if parts.scheme != 'https' and not local:
        raise DownloadError(f'{address} {NOT_ASKED}')


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects of urllib as far as check_address lets it."""

    def redirect_request(self, request, file, code, message, headers, address):
        check_address(address, request.full_url)
        return super().redirect_request(request, file, code, message, headers, address)


def run_wget(arguments):
    """wget's command line, the last argument the address, within check_address, not waiting for ever."""
    socket.setdefaulttimeout(STALL_SECONDS)
    urllib.request.install_opener(urllib.request.build_opener(_CheckedRedirects))
    try:
        check_address(arguments[-1])
        runpy.run_module('wget', run_name='__main__')
    except DownloadError as error:
        sys.exit(str(error))


@dataclass(frozen=True)
class Url:
    """A file at a web address, to be stored at `destination`."""
    address: str
    destination: Path
    attempts: ClassVar = 3

    def __str__(self):
        return self.address

    def fetch(self, folder):
        """Download into folder and return the file's path; show wget's progress bar on a terminal."""
        path = Path(folder) / 'download'
        bar = None if sys.stdout.isatty() else subprocess.DEVNULL
        # A process of its own: wget.download writes into the working directory, and settings for it are global.
        done = subprocess.run([sys.executable, '-P', __file__, '-o', path.name, self.address], cwd=folder,
                              stdout=bar, stderr=subprocess.PIPE, text=True)
        if done.returncode or not path.is_file():
            raise DownloadError((done.stderr.strip() or 'no file came').split('\n')[-1])
        return path


@dataclass(frozen=True)
class HubFile:
    """The weights of a Hugging Face model, to be stored at `destination`."""
    hub_id: str
    destination: Path
    filename: str = 'model.safetensors'
    attempts: ClassVar = 1  # its library tries again itself

    def __str__(self):
        return f'Hugging Face {self.hub_id}'

    def fetch(self, folder):
        """Download into folder and return the file's path. Honours HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE."""
        # Slow to import, and only needed here.
        from huggingface_hub import constants, get_session, hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        def check(request):  # each, so that a redirect is one of its own
            address = str(request.url)
            if urllib.parse.urlsplit(address)[:2] != urllib.parse.urlsplit(constants.ENDPOINT)[:2]:  # the user's choice
                check_address(address, constants.ENDPOINT)
        hooks = get_session().event_hooks['request']
        hooks.append(check)
        try:
            return Path(hf_hub_download(self.hub_id, self.filename, local_dir=folder))
        except EntryNotFoundError as error:
            # The hub's library raises the same kind of error without a network; the answer tells.
            answers = [getattr(one, 'response', None) for one in (error, error.__cause__)]
            if any(answer is not None and answer.status_code == 404 for answer in answers):
                raise MissingDownloadError(f'it has no {self.filename}') from None
            raise
        finally:
            hooks.remove(check)


def download(sources, check):
    """Fetch the first of `sources` that works; returns the path at which it now is.

    check(path, source) raises ValueError for a file that is not what it should be; it never reaches its destination.
    Two processes do not download at once: the second waits and uses what the first has fetched.
    Raises DownloadError if no source works or the folder cannot be written.
    """
    first = sources[0].destination
    try:
        first.parent.mkdir(parents=True, exist_ok=True)
        with hold_lock(f'{first}.lock'):
            for source in sources:
                if source.destination.is_file():
                    return source.destination
            return _fetch_first(sources, check)
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(f'  {first.parent} cannot be written: {error.strerror}') from None


def _fetch_first(sources, check):
    problems, all_missing = [], True
    for source in sources:
        for attempt in range(1, source.attempts + 1):
            try:
                return _fetch(source, check)
            except MissingDownloadError as error:  # the caller may know another name
                problems.append(f'  {source}: {error}')
                break
            # The hub's library has dozens of its own; each means: try again, or the next source.
            except Exception as error:
                reason = str(error.__cause__ or error).strip().split('\n')[0]
            logger.warning('%s failed: %s', source, reason)
            all_missing = False
            # It will not be otherwise later.
            hopeless = re.search(rf'HTTP Error 4\d\d|{NOT_ASKED}', reason)
            if hopeless or attempt == source.attempts:
                problems.append(f'  {source}: {reason}')
                break
            time.sleep(attempt)
    raise (MissingDownloadError if all_missing else DownloadError)('\n'.join(problems))


def _fetch(source, check):
    destination = source.destination
    logger.info('downloading %s to %s', source, destination)
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=f'.{destination.name}.') as scratch:
        path = source.fetch(scratch)
        check(path, source)
        os.replace(path, destination)
    return destination


if __name__ == '__main__':  # as Url.fetch starts it
    run_wget(sys.argv[1:])
