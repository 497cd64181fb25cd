"""What was heard in a recording: the result of tagging it."""
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from audio.fbank import SAMPLE_RATE
from audio.reading import AudioError
from utilities.labels import Labels


@dataclass(frozen=True, eq=False)
class Tagging:
    """What was heard in one recording, window by window.

    If the recording could not be read, `error` says why, and there are no windows.

    Attributes:
        path: the file, or a name such as `array 0`.
        seconds: the duration, as far as the recording can be read.
        starts: where the windows begin, in seconds (windows,).
        ends: where they end, in seconds (windows,).
        scores: from 0 to 1, (windows, classes) float32.
        labels: the classes.
        embeddings: (windows, dim), or None if nobody asked for them.
        spectrogram: log mel spectrogram (columns, bins) from 0 to the end of the last window. It is
            NaN where no window was, and None if nobody asked for it.
        error: why the recording could not be read, or None.
        incomplete_from: the second at which the sound ends too early or is damaged, or None.
        planned: how many windows were planned: more than there are if reading met damage or failed.
        sample_rate: at which the model hears it, in Hz.
    """
    path: str
    seconds: float
    starts: np.ndarray
    ends: np.ndarray
    scores: np.ndarray
    labels: Labels
    embeddings: np.ndarray | None = None
    spectrogram: np.ndarray | None = None
    error: str | None = None
    incomplete_from: float | None = None
    planned: int = 0
    sample_rate: int = SAMPLE_RATE

    @property
    def mean(self) -> np.ndarray:
        """The mean over the windows (classes,), weighted by the seconds of audio in each.

        Raises:
            AudioError: the recording could not be read.
        """
        self._check()
        seconds = self.ends - self.starts
        return np.average(self.scores, axis=0, weights=seconds).astype(np.float32)

    @property
    def max(self) -> np.ndarray:
        """The highest score of each class (classes,).

        Raises:
            AudioError: the recording could not be read.
        """
        self._check()
        return self.scores.max(axis=0)

    def _check(self) -> None:
        if self.error:
            raise AudioError(self.error)

    @staticmethod
    def top(scores: np.ndarray, k: int) -> list[tuple[int, float]]:
        """Return the k best of these scores (classes,) as (class index, score), the best first."""
        best = np.argsort(-scores, kind='stable')[:k]
        return [(int(i), scores[i]) for i in best]


class Done(NamedTuple):
    """How much of a job an earlier start has finished."""
    files: int = 0
    windows: int = 0
