"""Tag recordings with trained models: what is heard in each, window by window. `load_tagger` and `tag` are the door."""
import collections
import functools
import hashlib
import itertools
import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, default_collate

from audio.fbank import (
    FRAME_SHIFT_MS,
    SAMPLE_RATE,
    count_frames,
    fbank,
    fit_frames,
    normalise,
    window_samples,
)
from audio.info import inspect_audio, read_duration
from audio.reading import AudioError, WindowReader, window_seconds
from models import load_model
from tagging.sounds import Sound, Stream, is_array
from training.devices import choose_device, choose_precision, move, parallelise
from training.errors import explained
from training.loaders import count_workers, make_loader
from utilities.errors import DataError
from utilities.labels import Labels, read_labels
from utilities.parallel import map_ahead, one_thread
from utilities.progress import Progress

EGS = Path(__file__).resolve().parents[2] / 'egs'
# Datasets whose checkpoints may come without names of their classes: how many there are, and the label file.
KNOWN_LABELS = {
    'audioset': (527, EGS / 'audioset' / 'data' / 'class_labels_indices.csv'),
    'speechcommands': (35, EGS / 'speechcommands' / 'data' / 'speechcommands_class_labels_indices.csv'),
}
MIN_WINDOW_SHARE = 0.1  # a last window that holds less audio than this share of a window is left out
BLANK = 'blank'  # the error of a place in a batch that stays empty
ROUNDING_SECONDS = 1e-3  # by which the end of a recording may differ from its duration
MAX_COLUMNS = 1500  # of a spectrogram that is kept for a picture

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Classifier:
    """One checkpoint of a Tagger. parallel: the model, on several GPUs where there are; loss: what it was trained with.

    mean, std: of the fbank, with which it normalises.
    """
    model: nn.Module
    parallel: nn.Module
    mean: float
    std: float
    loss: str

    def __call__(self, fbanks, device, embeddings):
        """fbanks (B, frames, bins). Returns scores (B, classes) float64 and embeddings (B, dim) or None, on the CPU."""
        inputs = normalise(move(fbanks, device), self.mean, self.std)
        if not embeddings:
            return self._scores(self.parallel(inputs)), None
        seen = []  # what goes into the head, from the same pass
        hook = self.model.mlp_head.register_forward_pre_hook(lambda _, head_inputs: seen.extend(head_inputs))
        try:
            scores = self._scores(self.model(inputs))
        finally:
            hook.remove()
        return scores, seen[0].float().cpu().numpy()

    def _scores(self, logits):
        scores = logits.softmax(dim=1) if self.loss == 'CE' else logits.sigmoid()
        return scores.cpu().numpy().astype(np.float64)


@dataclass(frozen=True)
class Tagger:
    """Trained models that share their classes and the size of their input; load_tagger makes one."""
    classifiers: tuple[Classifier, ...]
    labels: Labels
    frames: int
    mel_bins: int
    device: torch.device

    @property
    def seconds(self):
        """How far the frames of a window reach, and the default hop."""
        return self.frames * FRAME_SHIFT_MS / 1000

    @property
    def embedding_dim(self):
        """The size of the embedding of the first checkpoint."""
        return self.classifiers[0].model.v.embed_dim

    def digest(self):
        """Return a hash of everything that scores depend on: weights, statistics, classes."""
        digest = hashlib.sha256(repr((self.labels, self.frames, self.mel_bins)).encode())
        for classifier in self.classifiers:
            digest.update(repr((classifier.mean, classifier.std, classifier.loss)).encode())
            for name, tensor in classifier.model.state_dict().items():
                digest.update(name.encode())
                digest.update(tensor.cpu().numpy())
        return digest.hexdigest()

    @torch.inference_mode()
    def __call__(self, fbanks, embeddings=False):
        """Scores (B, classes) float32 of fbanks (B, frames, bins), not normalised: the mean over the checkpoints.

        Returns them and, where asked for, the only checkpoint's embeddings (B, dim), else None.
        """
        results = [classifier(fbanks, self.device, embeddings) for classifier in self.classifiers]
        return np.mean([scores for scores, _ in results], axis=0).astype(np.float32), results[0][1]


def load_tagger(checkpoints, device='auto', amp='auto', label_csv=None, mean=None, std=None,
                loss=None, **settings):
    """Load one or several checkpoints, to be averaged, for `tag`.

    checkpoints: a path, the name of a published checkpoint, a folder of transformers, an id on Hugging Face, or a list
    of such. device: auto, cpu, cuda, cuda:N or mps; amp: auto, bf16, fp16 or off. label_csv: a label file, where the
    checkpoint does not know its classes. mean, std: of the fbank, instead of the checkpoint's own.
    loss: 'BCE' for sigmoid scores, 'CE' for softmax, instead of what the checkpoint was trained
    with. settings: fstride, tstride, input_fdim, input_tdim of checkpoints that do not say theirs.
    What is still missing is assumed, and a line of the log says so.
    Returns a Tagger. Raises WeightsError for a checkpoint that cannot be used, DataError for labels that are missing or
    do not fit, or checkpoints that do not go together, ValueError for a device that is not there, TrainingError for a
    GPU without the memory.
    """
    sources = [checkpoints] if isinstance(checkpoints, (str, os.PathLike)) else list(checkpoints)
    device = choose_device(device)
    classifiers, described = [], []
    for source in sources:
        model, description = load_model(source, mean=mean, std=std, loss=loss, **settings)
        model.autocast_dtype = choose_precision(amp, device)
        with explained():
            model.to(device)
        classifiers.append(Classifier(model, parallelise(model, device), description['mean'],
                                      description['std'], description['loss']))
        described.append((source, description))
    frames, mel_bins = _shared_input_size(described)
    return Tagger(tuple(classifiers), _shared_labels(described, label_csv), frames, mel_bins, device)


def _shared_input_size(described):
    """(frames, mel bins) of all checkpoints; raises DataError if they differ."""
    sizes = [(description['input_tdim'], description['input_fdim']) for _, description in described]
    for (source, _), size in zip(described, sizes):
        if size != sizes[0]:
            raise DataError(f'{described[0][0]} wants {sizes[0][0]} frames x {sizes[0][1]} mel bins, but {source} '
                            f'{size[0]} x {size[1]}: checkpoints that are averaged must have one size of input')
    return sizes[0]


def _shared_labels(described, label_csv):
    """The Labels of all checkpoints: label_csv's, else their own; raises DataError if they differ or do not fit."""
    given = read_labels(label_csv) if label_csv else None
    shared = [labels_of(source, description, given) for source, description in described]
    for (source, _), labels in zip(described, shared):
        if labels.names != shared[0].names:
            raise DataError(f'{source} has other classes than {described[0][0]}: they cannot be averaged')
    return shared[0]


def labels_of(source, description, given):
    """The Labels of one checkpoint; `given`: those of --label_csv, or None.

    Raises DataError if they do not fit it, or it does not name its classes.
    """
    classes = description['label_dim']
    own = Labels(*(tuple(description.get('labels', {}).get(key, ())) for key in ('mids', 'names')))
    if given and len(given) != classes:
        raise DataError(f'{source} has {classes} classes, but --label_csv lists {len(given)}: give the label file it '
                        f'was trained with')
    if given and given.mids != own.mids and sorted(given.mids) == sorted(own.mids):
        raise DataError(f'--label_csv lists the classes of {source} in another order than it was trained with')
    if given or classes == len(own.mids) == len(own.names):
        return given or own
    for dataset, (known_classes, path) in KNOWN_LABELS.items():
        if classes == known_classes and description.get('dataset', dataset) == dataset:
            if 'dataset' not in description:
                logger.warning('%s does not name its %d classes; assumed: those of %s '
                               '(--label_csv)', source, classes, dataset)
            return read_labels(path)
    raise DataError(f'{source} does not name its {classes} classes: give the label file it was trained with as '
                    f'--label_csv')


@dataclass(frozen=True, eq=False)
class Tagging:
    """What was heard in one recording, window by window.

    path: of the file; seconds: its duration, as far as it can be read; incomplete_from: the second
    at which its sound ends before its header says, or is damaged, else None.
    starts, ends: (windows,), in seconds; scores: (windows, classes) float32, from 0 to 1; labels:
    of the classes. embeddings: (windows, dim), spectrogram: (columns, bins) from 0 to the last
    window's end, NaN where no window was; None if they were not asked for.
    error: why the file could not be read, else None; without windows in that case.
    planned: how many windows there are by the header, also of a file that could not be read.
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

    @property
    def mean(self):
        """The mean over the windows (classes,), weighted by the seconds of audio in each.

        Raises AudioError if the recording could not be read.
        """
        self._check()
        return np.average(self.scores, axis=0, weights=self.ends - self.starts).astype(np.float32)

    @property
    def max(self):
        """The highest score of each class (classes,). Raises AudioError as `mean` does."""
        self._check()
        return self.scores.max(axis=0)

    def _check(self):
        if self.error:
            raise AudioError(self.error)

    def top(self, scores, k):
        """The k classes with the highest of these scores (classes,), the best first: a list of (class index, score)."""
        return [(int(i), scores[i]) for i in np.argsort(-scores, kind='stable')[:k]]


class Done(NamedTuple):
    """How much of a job an earlier start has done."""
    files: int = 0
    windows: int = 0


def tag(tagger: Tagger, files, window: str = 'all', hop_seconds: float | None = None, *,
        rate: int | None = None, batch_size: int | None = None, num_workers: int = -1,
        embeddings: bool = False, spectrograms: bool = False,
        done: Done = Done()) -> Iterator[Tagging]:
    """Tag recordings. Yield a Tagging for each, in order; of a long recording, only scores are kept.

        tagger = load_tagger('audioset_10_10_0.4593.pth')
        for tagging in tag(tagger, ['recording.flac']):
            print([tagger.labels.names[i] for i, score in tagging.top(tagging.mean, 5)])

    A recording that cannot be read gives a Tagging with an error.

    Args:
        tagger: what `load_tagger` returns.
        files: a path or an array, or a list of them. Files may have any format, rate and number
            of channels. Arrays are numpy arrays or torch tensors (samples,) or (channels,
            samples): floats with full scale 1, or int16, int32 and uint8 as in a WAV file.
        window: 'all' cuts a recording into windows of the model's input. They begin every
            hop_seconds. The last one is padded as in training, and left out if it would hold less
            than a tenth of a window. 'first' takes only the first one, which is what training
            and validation see.
        hop_seconds: from the beginning of a window to the next; a window if None.
        rate: sample rate of the arrays in Hz.
        batch_size: windows in a batch; by default 16, or 4 on a CPU, whose caches larger ones
            overflow.
        num_workers: processes that read recordings, -1 for one per core. None are started in a
            daemonic process (of Celery, of multiprocessing.Pool), or if they would run a script
            without a main guard again.
        embeddings: whether to keep those too, of a tagger of one checkpoint.
        spectrograms: whether to keep log mel spectrograms for pictures, max-pooled in time to at
            most 1500 columns.
        done: what an earlier start of the same job has tagged of a longer list, of which `files`
            are the rest. The scores are then those of a job that was not interrupted.

    Raises:
        DataError: settings contradict each other, or an array is not a sound.
    """
    check_window(tagger, window, hop_seconds, embeddings)
    one = isinstance(files, (str, os.PathLike)) or is_array(files)
    sources = [_source(value, rate, i) for i, value in enumerate([files] if one else files)]
    examine = functools.partial(_examine, window=window, window_seconds=tagger.seconds,
                                hop_seconds=hop_seconds or tagger.seconds)
    return _taggings(tagger, sources, examine, batch_size or default_batch_size(tagger),
                     num_workers, embeddings, spectrograms, done)


def _source(value, rate, index):
    """A path as text, or an array as a Sound. Raises DataError for anything else."""
    if is_array(value):
        return Sound.of_array(value, rate, f'array {index}')
    if not isinstance(value, (str, os.PathLike)):
        raise DataError(f'expected paths, numpy arrays or torch tensors, got {type(value).__name__}')
    return str(value)


def check_window(tagger, window, hop_seconds, embeddings):
    """Raise DataError for settings of `tag` that contradict each other."""
    if window not in ('all', 'first') or (window == 'first' and hop_seconds):
        raise DataError(f"window is 'all', or 'first' without hop_seconds, got {window!r} and {hop_seconds}")
    if embeddings and len(tagger.classifiers) > 1:
        raise DataError('embeddings of several checkpoints have no mean: give one checkpoint')


def default_batch_size(tagger: Tagger) -> int:
    """Return how many windows a batch has if the caller does not say."""
    return 4 if tagger.device.type == 'cpu' else 16


def tag_stream(tagger: Tagger, stream: Stream, window: str = 'all',
               hop_seconds: float | None = None, embeddings: bool = False) -> Iterator[Tagging]:
    """Yield a Tagging for each window of a Stream as soon as it is complete.

    The windows are those of a file with the same sound. Their `seconds` is what has come in by
    then. Takes the arguments of `tag`.
    """
    check_window(tagger, window, hop_seconds, embeddings)
    windows = Windows(tagger.frames, tagger.mel_bins)
    for start, *key in _windows_of(stream, tagger, hop_seconds or tagger.seconds):
        recording = Recording(stream.name, stream.seconds, np.array([start]))
        with explained():
            rows = _classify(tagger, default_collate([windows[key]]), embeddings)
        yield _collect(tagger, recording, rows, spectrogram=False)
        if window == 'first':
            return


def _windows_of(stream, tagger, hop_seconds):
    """Yield the start and the key in Windows of each window of a Stream."""
    needed = window_samples(tagger.frames) / SAMPLE_RATE
    for index in itertools.count():
        sound = stream.window(index * hop_seconds, needed)
        if stream.seconds == 0:
            raise AudioError('standard input holds no samples')
        complete = stream.seconds > index * hop_seconds + needed - ROUNDING_SECONDS
        if not complete and index >= len(window_starts(stream.seconds, tagger.seconds, hop_seconds)):
            return
        yield index * hop_seconds, *sound, stream.seconds


class Recording(NamedTuple):
    """What is to be tagged: its duration and the beginnings of its windows.

    One that cannot be read has one window, which cannot be read either, so that its error comes
    in its turn.
    """
    source: str | Sound
    seconds: float = 0.0
    starts: np.ndarray = np.zeros(1)
    error: str | None = None
    incomplete_from: float | None = None

    @property
    def path(self):
        """What to call it."""
        return self.source.name if isinstance(self.source, Sound) else self.source

    def key(self, start, frames):
        """The key of a window in Windows. Of a Sound, only the samples of the window are sent."""
        if isinstance(self.source, Sound):
            return *self.source.cut(start, window_seconds(frames)), self.seconds
        return self.source, start, self.seconds


def _examine(source, window, window_seconds, hop_seconds):
    """Plan the windows of a recording; what is wrong with it goes into the Recording's error."""
    try:
        seconds, incomplete_from = ((source.seconds, None) if isinstance(source, Sound)
                                    else read_duration(source))
    except AudioError as error:
        return Recording(source, error=str(error))
    starts = window_starts(seconds, window_seconds, hop_seconds)
    return Recording(source, seconds, starts[:1] if window == 'first' else starts,
                     incomplete_from=incomplete_from)


def window_starts(seconds, window_seconds, hop_seconds):
    """Where the windows of a recording begin, in seconds: every hop, until one reaches the end. Returns (windows,).

    A last one that would hold less than a tenth of a window is left out, but for the only one.
    """
    count = 1 + max(0, math.ceil((seconds - window_seconds) / hop_seconds - 1e-6))  # of rounding, not of audio
    if count > 1 and seconds - (count - 1) * hop_seconds < MIN_WINDOW_SHARE * window_seconds:
        count -= 1
    return np.arange(count) * hop_seconds


class Windows(Dataset):
    """The windows of recordings as samples.

    A sample is (fbank (frames, bins), how many frames are real, seconds, error or ''). It is
    indexed with (path or Sound, start, seconds of the whole recording), or None for a blank.
    The fbank is not normalised. The seconds in a sample are fewer if reading it has met damage. A
    broken file must not end the worker that reads it: its error travels with the sample.
    """

    def __init__(self, frames, mel_bins):
        self.frames, self.mel_bins = frames, mel_bins

    def __getitem__(self, key):
        if key is None:
            return torch.zeros(self.frames, self.mel_bins), 0, 0.0, BLANK
        source, start, seconds = key
        try:
            with one_thread():
                waveform, end = self._load(source, start)
                features = fbank(waveform, self.mel_bins)
            if end is not None and end < seconds - ROUNDING_SECONDS:
                seconds = inspect_audio(source).seconds
                if not seconds:
                    raise AudioError(f'the audio file {source} holds no samples')
        except AudioError as error:
            return torch.zeros(self.frames, self.mel_bins), 0, seconds, str(error)
        return fit_frames(features, self.frames), min(len(features), self.frames), seconds, ''

    def _load(self, source, start):
        """The waveform from there on, and where the recording has ended, if it has."""
        if isinstance(source, Sound):
            return source.waveform(start), None
        return self.reader.load(source, start=start, seconds=window_seconds(self.frames))

    @functools.cached_property
    def reader(self):
        """The WindowReader of this worker."""
        return WindowReader()


class Row(NamedTuple):
    """What became of a window.

    fbank: (real frames, bins), not normalised; seconds: how long the recording is, as far as the
    window has shown; embedding: (dim,) or None.
    """
    fbank: np.ndarray
    seconds: float
    error: str
    scores: np.ndarray
    embedding: np.ndarray | None


def _taggings(tagger, sources, examine, batch_size, num_workers, embeddings, spectrograms, done):
    """Yield the Tagging of every source, in order."""
    total = done.files + len(sources)
    with Progress('tagging', total, done.files, unit='file') as progress, explained():
        workers = count_workers(num_workers)
        # The workers start before the threads that look ahead: a fork may copy a lock that is held.
        first, rest = _examine_some(sources, examine, max(workers, 1) * batch_size)
        batches = math.ceil(sum(len(recording.starts) for recording in first) / batch_size)
        workers = min(workers, batches) if batches > 1 else 0  # starting takes longer than a batch
        recordings = itertools.chain(first, map_ahead(examine, rest))
        rows = _rows(tagger, recordings, batch_size, workers, embeddings, done.windows % batch_size)
        for recording, row in rows:
            count = len(recording.starts)
            others = (row for _, row in itertools.islice(rows, count - 1))
            its_rows = progress.within(itertools.chain([row], others), count, 'window')
            yield _collect(tagger, recording, its_rows, spectrograms)
            progress.advance(count)


def _examine_some(sources, examine, windows):
    """Examine sources until they have more than so many windows.

    Returns their Recordings, and the sources that are left.
    """
    first, count = [], 0
    for source in sources:
        first.append(examine(source))
        count += len(first[-1].starts)
        if count > windows:
            break
    return first, sources[len(first):]


def _rows(tagger, recordings, batch_size, workers, embeddings, blanks):
    """Yield (Recording, Row) for every window of all recordings, in order.

    blanks: how many places of the first batch stay empty. A matrix product may round differently
    in a batch of another size, so each window is in the place that it has in an undisturbed job.
    """
    waiting = collections.deque()  # the recordings of the windows that are on their way

    def keys():
        yield from itertools.repeat(None, blanks)
        for recording in recordings:
            for start in map(float, recording.starts):
                waiting.append(recording)
                yield recording.key(start, tagger.frames)
    places = keys()
    batches = iter(lambda: list(itertools.islice(places, batch_size)), [])
    loader = make_loader(Windows(tagger.frames, tagger.mel_bins), None, workers, batches=batches,
                         pin_memory=tagger.device.type == 'cuda')
    for batch in loader:
        for row in _classify(tagger, batch, embeddings):
            if row.error != BLANK:
                yield waiting.popleft(), row


def _classify(tagger, batch, embeddings):
    """A Row for every window of a batch of Windows. The model rests if none could be read."""
    fbanks, frames, seconds, errors = batch
    scores, embedded = np.zeros((len(errors), len(tagger.labels)), np.float32), None
    if not all(errors):
        scores, embedded = tagger(fbanks, embeddings)
    return [Row(fbanks[i, :frames[i]].numpy(), float(seconds[i]), error, scores[i],
                None if embedded is None else embedded[i]) for i, error in enumerate(errors)]


def _collect(tagger, recording, rows, spectrogram):
    """The Tagging of a recording, from its rows."""
    planned = len(recording.starts)
    ends = np.minimum(recording.starts + tagger.seconds, recording.seconds)
    picture = Spectrogram(ends[-1], tagger.mel_bins) if spectrogram else None
    scores, embeddings, error = [], [], recording.error
    for start, row in zip(recording.starts, rows):
        recording = _cut(recording, row.seconds, tagger.seconds)
        error = error or row.error or None
        scores.append(row.scores)
        embeddings.append(row.embedding)
        if picture:
            picture.add(start, row.fbank)
    if error:
        return Tagging(recording.path, recording.seconds, np.zeros(0), np.zeros(0),
                       np.zeros((0, len(tagger.labels)), np.float32), tagger.labels, error=error, planned=planned)
    count = len(recording.starts)
    ends = np.minimum(recording.starts + tagger.seconds, recording.seconds)
    return Tagging(recording.path, recording.seconds, recording.starts, ends, np.stack(scores[:count]), tagger.labels,
                   None if embeddings[0] is None else np.stack(embeddings[:count]),
                   picture and picture.columns(ends[-1]), incomplete_from=recording.incomplete_from, planned=planned)


def _cut(recording, seconds, window_seconds):
    """Return a Recording of which so many seconds can be read, without the windows past them."""
    if seconds >= recording.seconds:
        return recording
    starts = recording.starts
    if len(starts) > 1:
        starts = window_starts(seconds, window_seconds, hop_seconds=starts[1])[:len(starts)]
    return recording._replace(seconds=seconds, starts=starts, incomplete_from=seconds)


class Spectrogram:
    """The log mel spectrogram of a recording, max-pooled in time while its windows come in."""

    def __init__(self, seconds, mel_bins):
        frames = max(1, count_frames(round(seconds * SAMPLE_RATE)))
        self.frames_a_column = math.ceil(frames / MAX_COLUMNS)
        self.highest = np.full((math.ceil(frames / self.frames_a_column), mel_bins), -np.inf, dtype=np.float32)

    def add(self, start, fbank):
        """Take in the fbank (frames, bins) of a window that begins at `start` seconds."""
        column = (round(start * 1000 / FRAME_SHIFT_MS) + np.arange(len(fbank))) // self.frames_a_column
        column = column[column < len(self.highest)]
        first = np.flatnonzero(np.diff(column, prepend=-1))  # the first frame of each column
        if len(first):
            pooled = np.maximum.reduceat(fbank[:len(column)], first, axis=0)
            self.highest[column[first]] = np.maximum(self.highest[column[first]], pooled)

    def columns(self, seconds):
        """(columns, bins) float32 up to so many seconds, NaN where there was no window."""
        frames = max(1, count_frames(round(seconds * SAMPLE_RATE)))
        columns = math.ceil(frames / self.frames_a_column)
        return np.where(np.isfinite(self.highest[:columns]), self.highest[:columns], np.nan)
