"""Recordings of background noise, which training adds to its samples."""
import logging
import os

import numpy as np
import torch

from audio.crops import load_windows
from audio.fbank import SAMPLE_RATE
from audio.formats import AUDIO_SUFFIXES
from audio.reading import AudioError
from utilities.datafiles import is_text
from utilities.errors import DataError
from utilities.folders import files_below

logger = logging.getLogger(__name__)


class Backgrounds:
    """The recordings below a folder, sorted by their paths.

    Args:
        folder: its path.
        sample_rate: in Hz, to which the recordings are resampled.

    Raises:
        DataError: the folder cannot be read, or holds no recording that can be read.
    """

    def __init__(self, folder: str, sample_rate: int = SAMPLE_RATE):
        self.sample_rate = sample_rate
        try:
            paths = sorted(path for path in files_below(folder)
                           if os.path.splitext(path)[1].lower() in AUDIO_SUFFIXES)
        except DataError as error:
            raise DataError(f'--noise_dir: {error}') from None
        if not paths:
            raise DataError(f'--noise_dir: the folder {folder} holds no recordings: expected files '
                            f'such as .wav, .flac, .ogg, .mp3 or .m4a')
        if names := [path for path in paths if not is_text(path)]:
            raise DataError(f'--noise_dir: the name {os.fsencode(names[0])!r} is not UTF-8: rename '
                            f'it')
        # Worker processes share an array. They would copy a list of texts.
        self.paths = np.array(paths, dtype=np.dtypes.StringDType())
        self._warned: set[str] = set()
        try:
            self.load(0.0, 0.0, sample_rate)
        except AudioError as error:
            raise DataError(f'--noise_dir: none of the {len(paths)} recordings in {folder} can be '
                            f'read, the last one because: {error}') from None

    def load(self, choice: float, position: float, samples: int) -> torch.Tensor:
        """Return a window (samples,) of one of the recordings, or all of it if it is shorter.

        If it cannot be read, the next one takes its place.

        Args:
            choice: from 0, the first recording, to 1.
            position: where the window is: from 0, the first one, to 1, the last.
            samples: number of samples of the window.

        Raises:
            AudioError: if no recording can be read.
        """
        first = int(choice * len(self.paths))
        for index in range(first, first + len(self.paths)):
            path = self.paths[index % len(self.paths)]
            try:
                windows = load_windows(path, samples, [position], sample_rate=self.sample_rate)
                return windows[0][:samples]
            except AudioError as error:
                reason = error
                self._warn(path, error)
        raise reason

    def _warn(self, path, error):
        """Log, once in each worker, that the next recording takes the place of this one."""
        if path not in self._warned:
            self._warned.add(path)
            logger.warning('%s: the next recording of --noise_dir takes its place', error)
