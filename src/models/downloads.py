"""Download files from web addresses and from Hugging Face: whole and checked, or not there."""
import hashlib
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .locks import hold_lock

ATTEMPTS = 3  # to download from one web address
DIGEST = re.compile(r'-([0-9a-f]{8,})\.pth')  # in a name: how the file's sha256 begins

logger = logging.getLogger(__name__)


def sha256_of_file(path: Path) -> str:
    """Return the hexadecimal sha256 of a file."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


class DownloadError(OSError):
    """A source that did not deliver, or several: the message then has a line for each."""


class MissingDownloadError(DownloadError):
    """A file that its server does not have."""


@dataclass(frozen=True)
class Url:
    """A file at a web address, to be stored at `destination`.

    A name such as deit-b40b3cf7.pth, as PyTorch's hub gives them, says how the sha256 begins.
    """
    address: str
    destination: Path

    def __str__(self):
        return self.address

    def fetch(self, folder: str | Path) -> Path:
        """Download the file into a folder and return its path. Raises DownloadError."""
        parts = urllib.parse.urlsplit(self.address)  # http only from this machine, as tests do
        if parts.scheme != 'https' and (parts.scheme, parts.hostname) != ('http', '127.0.0.1'):
            raise DownloadError('the address is not https')
        path = Path(folder) / 'download'
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._run_wget(path)
                break
            except DownloadError as error:
                if attempt == ATTEMPTS or 'HTTP Error 4' in str(error):  # such as 404, not found
                    raise
                logger.warning('%s failed: %s; trying again', self, error)
                time.sleep(attempt)
        digest = DIGEST.search(self.address)
        if digest and not sha256_of_file(path).startswith(digest[1]):
            raise DownloadError(f'the sha256 of the download does not start with {digest[1]}')
        return path

    def _run_wget(self, path):
        """Run wget, with its progress bar on a terminal. Raises DownloadError."""
        program = Path(__file__).with_name('fetch_url.py')
        # -P keeps the modules beside the program out of its imports.
        done = subprocess.run([sys.executable, '-P', program, self.address, path.name],
                              stdout=None if sys.stdout.isatty() else subprocess.DEVNULL,
                              stderr=subprocess.PIPE, text=True, cwd=path.parent)
        if done.returncode:
            raise DownloadError(done.stderr.strip().split('\n')[-1])


@dataclass(frozen=True)
class HubFile:
    """A file of a model on Hugging Face, to be stored at `destination`."""
    hub_id: str
    destination: Path
    filename: str = 'model.safetensors'

    def __str__(self):
        return f'Hugging Face {self.hub_id}'

    def fetch(self, folder: str | Path) -> Path:
        """Download the file into a folder and return its path; the library tries again itself.

        Raises MissingDownloadError if the model has no such file, and else any of the library's
        dozens of errors.
        """
        from huggingface_hub import hf_hub_download  # slow to import, and only needed here
        from huggingface_hub.errors import EntryNotFoundError
        try:
            return Path(hf_hub_download(self.hub_id, self.filename, local_dir=folder))
        except EntryNotFoundError as error:
            # Raised without a network, too. Only a server that was reached answers 404.
            answers = [getattr(one, 'response', None) for one in (error, error.__cause__)]
            if any(getattr(answer, 'status_code', None) == 404 for answer in answers):
                raise MissingDownloadError(f'it has no {self.filename}') from None
            raise


def download(sources: Sequence[Url | HubFile], check: Callable[[Path], Any]) -> Path:
    """Download a file from the first of several sources that works, and return its path.

    If two processes download the same file, one waits and uses what the other has downloaded.

    Args:
        check: raises an error for a file that is not what it should be, which is then removed.

    Raises:
        DownloadError: if no source works; MissingDownloadError if none has the file.
        OSError: if the folder cannot be written.
    """
    first = sources[0].destination
    first.parent.mkdir(parents=True, exist_ok=True)
    with hold_lock(f'{first}.lock'):
        for source in sources:
            if source.destination.is_file():
                return source.destination
        return _download_first(sources, check)


def _download_first(sources, check):
    problems, kind = [], MissingDownloadError
    for source in sources:
        place = source.destination
        logger.info('downloading %s to %s', source, place)
        try:
            # Beside its place, so that the file system can move the file in one step.
            with tempfile.TemporaryDirectory(dir=place.parent, prefix=f'.{place.name}.') as folder:
                path = source.fetch(folder)
                check(path)
                os.replace(path, place)
            return place
        except MissingDownloadError as error:
            reason = str(error)
        except Exception as error:  # whatever it is, the next source may work
            kind = DownloadError
            reason = str(error.__cause__ or error).strip().split('\n')[0]
            logger.warning('%s failed: %s', source, reason)
        problems.append(f'  {source}: {reason}')
    raise kind('\n'.join(problems))
