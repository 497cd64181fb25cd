"""Tag recordings: cut them into windows, score the windows in batches, put the scores together."""
import functools
import itertools
import math
import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import default_collate

from audio.fbank import window_samples
from audio.reading import AudioError, window_seconds
from tagging.result import Done, Tagging
from tagging.sounds import Sound, is_array
from tagging.spectrogram import Spectrogram
from tagging.streams import Stream
from tagging.tagger import Tagger
from tagging.windows import (
    BLANK,
    ROUNDING_SECONDS,
    Source,
    WindowKey,
    WindowPlan,
    Windows,
    plan_windows,
    window_starts,
)
from training.errors import as_training_errors
from training.loaders import count_workers, make_loader
from utilities.errors import DataError
from utilities.parallel import map_ahead
from utilities.progress import Progress


class TaggingSettings(NamedTuple):
    """How to tag: see the arguments of `tag`, whose defaults are filled in here."""
    window: str
    hop_seconds: float
    batch_size: int
    embeddings: bool
    spectrograms: bool


class ScoredWindow(NamedTuple):
    """What became of a window.

    Attributes:
        fbank: (real frames, bins), not normalised.
        seconds: the duration of the recording, or less if reading this window has met damage.
        error: why it cannot be read, or ''.
        scores: (classes,).
        embedding: (dim,), or None.
    """
    fbank: np.ndarray
    seconds: float
    error: str
    scores: np.ndarray
    embedding: np.ndarray | None


def tag(tagger: Tagger, files: Any, window: str = 'all', hop_seconds: float | None = None, *,
        rate: int | None = None, batch_size: int | None = None, num_workers: int = -1,
        embeddings: bool = False, spectrograms: bool = False, done: Done = Done()
        ) -> Iterator[Tagging]:
    """Tag recordings. Yield a Tagging for each, in order.

        tagger = load_tagger('audioset_10_10_0.4593.pth')
        for tagging in tag(tagger, ['recording.flac']):
            print([tagger.labels.names[i] for i, score in tagging.top(tagging.mean, 5)])

    A recording that cannot be read gives a Tagging with an error. Memory holds only the scores of a
    recording's windows, not its sound, so it may be long.

    Args:
        tagger: what `load_tagger` returns.
        files: a path or an array, or a list of them. Files may have any format, rate and number
            of channels. Arrays are numpy arrays or torch tensors (samples,) or (channels,
            samples): floats with full scale 1, or int16, int32 and uint8 as in a WAV file.
        window: 'all' cuts a recording into windows of the model's input. They begin every
            hop_seconds. The last one is padded as in training, and left out if it would hold less
            than a tenth of a window. 'first' takes only the first one, as training and validation
            do.
        hop_seconds: from the beginning of a window to the next; by default the length of a window.
        rate: sample rate of the arrays in Hz.
        batch_size: windows in a batch; by default 16, or 4 on a CPU.
        num_workers: processes that read recordings, -1 for one per core. There are none in a
            daemonic process (of Celery, of multiprocessing.Pool). If Python does not fork, there
            are none in a script without `if __name__ == '__main__':`: each would run it again.
        embeddings: keep the embeddings, too. Only with a single checkpoint.
        spectrograms: keep log mel spectrograms for pictures, max-pooled in time to at most 1500
            columns.
        done: what an interrupted run of the same job has tagged; `files` are then the remaining
            ones. The scores are exactly those of a job that was not interrupted.

    Raises:
        DataError: settings contradict each other, or an array is not a sound.
    """
    check_window(tagger, window, hop_seconds, embeddings)
    single = isinstance(files, (str, os.PathLike)) or is_array(files)
    listed = [files] if single else files
    sources = [_as_source(value, rate, i) for i, value in enumerate(listed)]
    settings = TaggingSettings(window, hop_seconds or tagger.seconds,
                               batch_size or tagger.default_batch_size, embeddings, spectrograms)
    return _tag_in_order(tagger, sources, settings, num_workers, done)


def _as_source(value: Any, rate: int | None, index: int) -> Source:
    """Return a path as text, or an array as a Sound. Raises DataError for anything else."""
    if is_array(value):
        return Sound.of_array(value, rate, f'array {index}')
    if not isinstance(value, (str, os.PathLike)):
        raise DataError(f'expected paths, numpy arrays or torch tensors, got '
                        f'{type(value).__name__}')
    return str(value)


def check_window(tagger: Tagger, window: str, hop_seconds: float | None, embeddings: bool) -> None:
    """Raise DataError if arguments of `tag` contradict each other."""
    if window not in ('all', 'first') or (window == 'first' and hop_seconds):
        raise DataError(f"window is 'all', or 'first' without hop_seconds, got {window!r} and "
                        f"{hop_seconds}")
    if embeddings and len(tagger.classifiers) > 1:
        raise DataError('embeddings of several checkpoints have no mean: give one checkpoint')


def _tag_in_order(tagger: Tagger, sources: list[Source], settings: TaggingSettings,
                  num_workers: int, done: Done) -> Iterator[Tagging]:
    """Yield the Tagging of every source, in order, and show a progress bar."""
    plan = functools.partial(plan_windows, window=settings.window, window_length=tagger.seconds,
                             hop_seconds=settings.hop_seconds)
    total = done.files + len(sources)
    with Progress('tagging', total, done.files, unit='file') as progress, as_training_errors():
        workers = count_workers(num_workers)
        # Plan the first recordings without threads. The threads of map_ahead must start after the
        # workers: a fork may copy a lock that a thread holds.
        first, rest = _plan_some(plan, sources, max(workers, 1) * settings.batch_size)
        batches = math.ceil(sum(len(one.starts) for one in first) / settings.batch_size)
        if batches < 2:
            workers = 0  # to start one takes longer than a batch
        # The windows are scored some recordings ahead of the one that is put together.
        ahead, plans = itertools.tee(itertools.chain(first, map_ahead(plan, rest)))
        windows = _score_windows(tagger, ahead, settings, min(workers, batches), done)
        for its_plan in plans:
            count = len(its_plan.starts)
            its_windows = progress.within(itertools.islice(windows, count), count, 'window')
            yield _put_together(tagger, its_plan, its_windows, settings.spectrograms)
            progress.advance(count)


def _plan_some(plan, sources, windows):
    """Plan sources until they have more than `windows` windows.

    Returns their WindowPlans, and the sources that are left.
    """
    plans, count = [], 0
    for source in sources:
        plans.append(plan(source))
        count += len(plans[-1].starts)
        if count > windows:
            break
    return plans, sources[len(plans):]


def _score_windows(tagger: Tagger, plans: Iterable[WindowPlan], settings: TaggingSettings,
                   workers: int, done: Done) -> Iterator[ScoredWindow]:
    """Yield every window of all recordings, in order.

    A matrix product may round differently in a batch of another size. So a continued job starts
    with blank windows. Each window then has the same place in its batch as in an uninterrupted job,
    and the same scores.
    """
    blanks: Iterator[WindowKey | None] = itertools.repeat(None, done.windows % settings.batch_size)
    needed = window_seconds(tagger.frames, tagger.sample_rate)
    keys = (plan.key(float(start), needed) for plan in plans for start in plan.starts)
    all_keys = itertools.chain(blanks, keys)
    batches = iter(lambda: list(itertools.islice(all_keys, settings.batch_size)), [])
    dataset = Windows(tagger.frames, tagger.mel_bins, tagger.sample_rate)
    loader = make_loader(dataset, None, workers, batches=batches,
                         pin_memory=tagger.device.type == 'cuda')
    for batch in loader:
        for window in _score_batch(tagger, batch, settings.embeddings):
            if window.error != BLANK:
                yield window


def _score_batch(tagger: Tagger, batch: Any, embeddings: bool) -> list[ScoredWindow]:
    """Score a collated batch of windows. Skip the model if none of them could be read."""
    fbanks, frames, seconds, errors = batch
    scores, embedded = np.zeros((len(errors), len(tagger.labels)), np.float32), None
    if not all(errors):
        scores, embedded = tagger(fbanks, embeddings, frames)
    return [ScoredWindow(fbanks[i, :frames[i]].numpy(), float(seconds[i]), error, scores[i],
                         None if embedded is None else embedded[i])
            for i, error in enumerate(errors)]


def _put_together(tagger: Tagger, plan: WindowPlan, windows: Iterable[ScoredWindow],
                  spectrogram: bool) -> Tagging:
    """Return the Tagging of a recording, given its scored windows."""
    starts = plan.starts
    end = min(starts[-1] + tagger.seconds, plan.seconds)
    picture = Spectrogram(end, tagger.mel_bins, tagger.sample_rate) if spectrogram else None
    scores, embeddings, error = [], [], plan.error
    # All planned windows are taken, also if the recording turns out to be shorter.
    for start, window in zip(starts, windows):
        plan = plan.shortened(window.seconds, tagger.seconds)
        error = error or window.error or None
        scores.append(window.scores)
        if window.embedding is not None:
            embeddings.append(window.embedding)
        if picture:
            picture.add(start, window.fbank)
    if error:
        return Tagging(plan.path, plan.seconds, np.zeros(0), np.zeros(0),
                       np.zeros((0, len(tagger.labels)), np.float32), tagger.labels, error=error,
                       planned=len(starts))
    count = len(plan.starts)  # fewer than planned if the recording is shorter than its header says
    ends = np.minimum(plan.starts + tagger.seconds, plan.seconds)
    return Tagging(plan.path, plan.seconds, plan.starts, ends, np.stack(scores[:count]),
                   tagger.labels,
                   embeddings=np.stack(embeddings[:count]) if embeddings else None,
                   spectrogram=picture.columns(ends[-1]) if picture else None,
                   incomplete_from=plan.incomplete_from, planned=len(starts),
                   sample_rate=tagger.sample_rate)


def tag_stream(tagger: Tagger, stream: Stream, window: str = 'all',
               hop_seconds: float | None = None, embeddings: bool = False) -> Iterator[Tagging]:
    """Yield a Tagging for each window of a Stream as soon as it is complete.

    The windows are those of a file with the same sound. `seconds` of a Tagging is what has come in
    by then. The arguments are those of `tag`.
    """
    check_window(tagger, window, hop_seconds, embeddings)
    windows = Windows(tagger.frames, tagger.mel_bins, tagger.sample_rate)
    for start, key in _stream_windows(stream, tagger, hop_seconds or tagger.seconds):
        plan = WindowPlan(stream.name, stream.seconds, np.array([start]))
        with as_training_errors():
            scored = _score_batch(tagger, default_collate([windows[key]]), embeddings)
        yield _put_together(tagger, plan, scored, spectrogram=False)
        if window == 'first':
            return


def _stream_windows(stream: Stream, tagger: Tagger, hop_seconds: float
                    ) -> Iterator[tuple[float, WindowKey]]:
    """Yield the start of each window of a Stream and its key, as soon as it is complete."""
    rate = tagger.sample_rate
    needed = window_samples(tagger.frames, rate) / rate
    for index in itertools.count():
        start = index * hop_seconds
        sound, start_in_sound = stream.window(start, needed, rate)
        if stream.seconds == 0:
            raise AudioError('standard input holds no samples')
        complete = stream.seconds > start + needed - ROUNDING_SECONDS
        if not complete:  # the sound has ended
            last = len(window_starts(stream.seconds, tagger.seconds, hop_seconds)) - 1
            if index > last:
                return
        yield start, WindowKey(sound, start_in_sound, stream.seconds)
