"""Recordings as taggings: every window is scored where it lies, whatever the file."""
import numpy as np
import pytest
import soundfile
import torch

from audio.reading import AudioError, load_waveform
from inference import tag
from models import load_model
from small_tagger import first_window, tag_here


def scores_by_hand(checkpoint, waveform):
    """Return the scores (classes,) of the first window of a waveform."""
    model, _ = load_model(checkpoint)
    with torch.inference_mode():
        return model(first_window(waveform))[0].sigmoid().numpy()


def test_the_first_window_is_scored_as_by_hand(tagger, checkpoint, make_tone):
    path = make_tone('a.wav', seconds=1)
    [result] = tag_here(tagger, path, window='first')
    expected = scores_by_hand(checkpoint, load_waveform(path))
    assert result.scores == pytest.approx(expected[None], abs=1e-6)
    assert result.seconds == 1.0
    assert (result.starts.tolist(), result.ends.tolist()) == ([0.0], [0.32])


def test_a_short_clip_is_padded_as_in_training(tagger, checkpoint, make_tone):
    path = make_tone('a.wav', seconds=0.1)
    [result] = tag_here(tagger, path)
    expected = scores_by_hand(checkpoint, load_waveform(path))
    assert result.scores == pytest.approx(expected[None], abs=1e-6)
    assert result.ends.tolist() == [0.1]


def test_every_window_is_scored_where_it_lies(tagger, checkpoint, make_tone):
    path = make_tone('a.wav', seconds=1)
    [result] = tag_here(tagger, path, hop_seconds=0.2)
    waveform = load_waveform(path)
    expected = [scores_by_hand(checkpoint, waveform[int(16000 * start):])
                for start in result.starts]
    assert result.starts == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    # A window does not lose the mean of exactly the same samples as by hand.
    assert result.scores == pytest.approx(np.array(expected), abs=2e-3)


def test_mean_is_weighted_by_the_audio_in_each_window_and_max_is_not(tagger, make_tone):
    [result] = tag_here(tagger, make_tone('a.wav', seconds=0.4))
    assert (result.ends - result.starts) == pytest.approx([0.32, 0.08])
    expected = 0.8 * result.scores[0] + 0.2 * result.scores[1]
    assert result.mean == pytest.approx(expected, abs=1e-6)
    assert (result.max == np.maximum(*result.scores)).all()


def test_results_do_not_depend_on_batches_and_workers(tagger, make_tone):
    files = [make_tone(f'{i}.wav', 300 * (1 + i), seconds=0.5 + 0.2 * i) for i in range(3)]
    alone = tag_here(tagger, files, batch_size=64)
    spread = list(tag(tagger, files, num_workers=2, batch_size=2))
    assert [result.path for result in spread] == list(map(str, files))
    for one, other in zip(alone, spread, strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-6)


def test_a_long_recording_is_read_a_window_at_a_time_and_only_scores_are_kept(
        tagger, make_tone, monkeypatch):
    path = make_tone('long.flac', seconds=60)
    read, lengths = soundfile.SoundFile.read, []

    def spy(self, frames=-1, **options):
        if 'out' in options:
            lengths.append(len(options['out']))
        return read(self, frames, **options)

    monkeypatch.setattr(soundfile.SoundFile, 'read', spy)
    [result] = tag_here(tagger, path, spectrograms=True)
    assert len(lengths) == len(result.starts) == 188
    assert 0 < min(lengths) and max(lengths) < 4 * 16000
    assert result.spectrogram.shape[0] <= 1500 and np.isfinite(result.spectrogram).all()


@pytest.mark.parametrize('name, rate, channels', [
    ('a.wav', 44100, 2), ('a.flac', 48000, 1), ('a.ogg', 22050, 2), ('a.mp3', 44100, 1),
    ('a.wav', 8000, 3)])
def test_every_format_rate_and_number_of_channels_is_tagged(tagger, make_tone, name, rate,
                                                            channels):
    [result] = tag_here(tagger, make_tone(name, seconds=1, rate=rate, channels=channels))
    assert result.error is None and len(result.starts) == 4
    assert result.seconds == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize('workers', [0, 2])
def test_broken_files_are_reported_and_the_rest_is_tagged(tagger, broken, workers):
    results = list(tag(tagger, broken, num_workers=workers, batch_size=2))
    errors = {result.path: result.error for result in results if result.error}
    assert [result.path for result in results] == broken
    assert set(errors) == set(broken) - {'good.wav', 'length.flac', 'well.wav'}
    assert 'holds no samples' in errors['empty.wav'] and 'does not exist' in errors['gone.wav']
    assert 'NaN' in errors['nan.wav'] and 'cannot read' in errors['text.wav']
    assert all(len(result.starts) == (0 if result.error else 4) for result in results)
    with pytest.raises(AudioError, match='gone.wav does not exist'):
        results[broken.index('gone.wav')].mean  # noqa: B018
