"""Where the windows of a recording begin, and the picture that they make together."""
import numpy as np
import pytest

from tagging.spectrogram import Spectrogram
from tagging.windows import window_starts


@pytest.mark.parametrize('seconds, hop, starts', [
    (10, 10, [0]),
    (4, 10, [0]),
    (0.5, 10, [0]),  # less than a tenth, but the only one
    (30, 10, [0, 10, 20]),
    (25, 10, [0, 10, 20]),
    (20.99, 10, [0, 10]),  # a tenth of a window is the least
    (21, 10, [0, 10, 20]),
    (25, 5, [0, 5, 10, 15]),  # the fourth reaches the end
    (26, 5, [0, 5, 10, 15, 20]),
    (65, 30, [0, 30, 60]),
    (55, 30, [0, 30]),
    (60.5, 30, [0, 30]),
])
def test_windows_begin_every_hop_until_one_reaches_the_end(seconds, hop, starts):
    assert window_starts(seconds, 10, hop).tolist() == starts


def test_windows_of_a_whole_number_of_hops_are_not_one_too_many():
    for count in range(1, 400):
        assert len(window_starts(count * 10.24, 10.24, 10.24)) == count
        assert len(window_starts((count + 1) * 5.12, 10.24, 5.12)) == count


def test_a_spectrogram_keeps_its_peaks_however_much_it_is_pooled():
    whole, pooled = Spectrogram(10, 4), Spectrogram(100, 4)
    frames = np.random.default_rng(0).standard_normal((998, 4)).astype(np.float32)
    whole.add(0, frames)
    for start in (0, 5, 90):
        pooled.add(start, frames[:500])
    assert (whole.columns(10) == frames).all()
    columns = pooled.columns(100)
    assert columns.shape == (-(-9998 // 7), 4) and (columns[0] == frames[:7].max(axis=0)).all()
    assert np.isnan(columns[200:1200]).all() and np.isfinite(columns[:140]).all()
