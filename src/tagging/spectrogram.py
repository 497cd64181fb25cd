"""The log mel spectrogram of a whole recording, put together from its windows for a picture."""
import math

import numpy as np

from audio.fbank import SAMPLE_RATE, count_frames, frame_size

MAX_COLUMNS = 1500  # more than a picture is wide in pixels


class Spectrogram:
    """The log mel spectrogram of a recording, which grows window by window.

    That of a long recording is max-pooled in time to at most 1500 columns, so that its memory does
    not grow with its length.

    Args:
        seconds: the duration of the recording.
        mel_bins: bins of the fbanks to come.
        sample_rate: of the model, in Hz.
    """

    def __init__(self, seconds: float, mel_bins: int, sample_rate: int = SAMPLE_RATE):
        self.sample_rate = sample_rate
        frames = self._count_frames(seconds)
        self.frames_per_column = math.ceil(frames / MAX_COLUMNS)
        columns = math.ceil(frames / self.frames_per_column)
        self.highest = np.full((columns, mel_bins), -np.inf, dtype=np.float32)

    def add(self, start: float, fbank: np.ndarray) -> None:
        """Add the fbank (frames, bins) of a window that begins at `start` seconds."""
        frame_ms = 1000 * frame_size(self.sample_rate).shift / self.sample_rate  # about 10
        first_frame = round(start * 1000 / frame_ms)
        column_of = (first_frame + np.arange(len(fbank))) // self.frames_per_column  # (frames,)
        column_of = column_of[column_of < len(self.highest)]
        firsts = np.flatnonzero(np.diff(column_of, prepend=-1))  # the first frame of each column
        if len(firsts):
            pooled = np.maximum.reduceat(fbank[:len(column_of)], firsts, axis=0)
            columns = column_of[firsts]
            self.highest[columns] = np.maximum(self.highest[columns], pooled)

    def columns(self, seconds: float) -> np.ndarray:
        """Return (columns, bins) from 0 to `seconds`, NaN where there was no window."""
        columns = math.ceil(self._count_frames(seconds) / self.frames_per_column)
        highest = self.highest[:columns]
        return np.where(np.isfinite(highest), highest, np.nan)

    def _count_frames(self, seconds):
        """Return the number of frames of a sound, at least one."""
        return max(1, count_frames(round(seconds * self.sample_rate), self.sample_rate))
