"""Tag recordings with trained models: what is heard in each, window by window. `load_tagger` and `tag` are the door."""
import functools
import itertools
import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from audio import AudioError, WindowReader, measure, survey, window_seconds
from dataloader import count_workers, make_loader, one_thread
from features import FRAME_SHIFT_MS, SAMPLE_RATE, count_frames, fbank, fit_frames, normalise
from hardware import choose_device, choose_precision, move, parallelise
from models import load_model
from traintest import explained
from utilities.labels import DataError, Labels, read_labels
from utilities.progress import Progress

EGS = Path(__file__).resolve().parents[1] / 'egs'
# Datasets whose checkpoints may come without names of their classes: how many there are, and the label file.
KNOWN_LABELS = {
    'audioset': (527, EGS / 'audioset' / 'data' / 'class_labels_indices.csv'),
    'speechcommands': (35, EGS / 'speechcommands' / 'data' / 'speechcommands_class_labels_indices.csv'),
}
MIN_WINDOW_SHARE = 0.1  # a last window that holds less audio than this share of a window is left out
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
    """(frames, mel bins) of all checkpoints; raises DataError where they differ."""
    sizes = [(description['input_tdim'], description['input_fdim']) for _, description in described]
    for (source, _), size in zip(described, sizes):
        if size != sizes[0]:
            raise DataError(f'{described[0][0]} wants {sizes[0][0]} frames x {sizes[0][1]} mel bins, but {source} '
                            f'{size[0]} x {size[1]}: checkpoints that are averaged must have one size of input')
    return sizes[0]


def _shared_labels(described, label_csv):
    """The Labels of all checkpoints: label_csv's, else their own; raises DataError where they differ or do not fit."""
    given = read_labels(label_csv) if label_csv else None
    shared = [labels_of(source, description, given) for source, description in described]
    for (source, _), labels in zip(described, shared):
        if labels.names != shared[0].names:
            raise DataError(f'{source} has other classes than {described[0][0]}: they cannot be averaged')
    return shared[0]


def labels_of(source, description, given):
    """The Labels of one checkpoint; `given`: those of --label_csv, or None.

    Raises DataError where they do not fit it, or it does not name its classes.
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

    @property
    def mean(self):
        """The mean over the windows (classes,), weighted by the seconds of audio in each."""
        return np.average(self.scores, axis=0, weights=self.ends - self.starts).astype(np.float32)

    @property
    def max(self):
        """The highest score of each class (classes,)."""
        return self.scores.max(axis=0)

    def top(self, scores, k):
        """The k classes with the highest of these scores (classes,), the best first: a list of (class index, score)."""
        return [(int(i), scores[i]) for i in np.argsort(-scores, kind='stable')[:k]]


def tag(tagger, files, window='all', hop_seconds=None, *, batch_size=None, num_workers=-1, embeddings=False,
        spectrograms=False):
    """Tag audio files. Returns an iterator over a Tagging a file, in order; of a long recording, only scores are kept.

    files: a path or a list of paths, in any format, rate and number of channels. window: 'all' cuts a recording into
    windows of the model's input that begin every hop_seconds (by default one after the other); the last one is padded
    as in training, and left out where it would hold less than a tenth of a window. 'first' takes the first one alone,
    which is what training and validation see. embeddings: keep those too, of a tagger of one checkpoint.
    spectrograms: keep log mel spectrograms for pictures, max-pooled in time to at most 1500 columns.
    batch_size: windows in a batch, by default 16, or 4 on a CPU, whose caches larger ones overflow.
    num_workers: processes that read recordings, -1 for one a core. None are started in a daemonic
    process (of Celery, of multiprocessing.Pool), or if they would run a script without a main
    guard again.
    A file that cannot be read gives a Tagging with an error. Raises DataError for settings that contradict each other.

        tagger = load_tagger('audioset_10_10_0.4593.pth')
        for tagging in tag(tagger, ['recording.flac']):
            print([tagger.labels.names[i] for i, score in tagging.top(tagging.mean, 5)])
    """
    if window not in ('all', 'first') or (window == 'first' and hop_seconds):
        raise DataError(f"window is 'all', or 'first' without hop_seconds, got {window!r} and {hop_seconds}")
    if embeddings and len(tagger.classifiers) > 1:
        raise DataError('embeddings of several checkpoints have no mean: give one checkpoint')
    paths = [str(file) for file in ([files] if isinstance(files, (str, os.PathLike)) else files)]
    recordings = [_examine(path, window, tagger.seconds, hop_seconds or tagger.seconds) for path in paths]
    rows = _rows(tagger, recordings, batch_size or (4 if tagger.device.type == 'cpu' else 16), num_workers, embeddings)
    return (_collect(tagger, recording, rows, spectrograms) for recording in recordings)


class Recording(NamedTuple):
    """A file to be tagged: its duration and the beginnings of its windows, or why it has none."""
    path: str
    seconds: float = 0.0
    starts: np.ndarray = np.zeros(0)
    error: str | None = None
    incomplete_from: float | None = None


def _examine(path, window, window_seconds, hop_seconds):
    """Plan the windows of a file; what is wrong with it goes into the Recording's error."""
    try:
        seconds, incomplete_from = measure(path)
    except AudioError as error:
        return Recording(path, error=str(error))
    starts = window_starts(seconds, window_seconds, hop_seconds)
    starts = starts[:1] if window == 'first' else starts
    return Recording(path, seconds, starts, incomplete_from=incomplete_from)


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

    A sample is (fbank (frames, bins), how many frames are real, seconds, error or '').
    windows: a list of (path, start, seconds of the whole recording). The fbank is not normalised.
    The seconds in a sample are fewer if reading it has met damage. A broken file must not end the
    worker that reads it: its error travels with the sample.
    """

    def __init__(self, windows, frames, mel_bins):
        self.windows, self.frames, self.mel_bins = windows, frames, mel_bins

    def __len__(self):
        return len(self.windows)

    def __getitem__(self, index):
        path, start, seconds = self.windows[index]
        try:
            with one_thread():
                waveform, end = self.reader.load(path, start=start,
                                                 seconds=window_seconds(self.frames))
                features = fbank(waveform, self.mel_bins)
            if end is not None and end < seconds - ROUNDING_SECONDS:
                seconds = survey(path).seconds
                if not seconds:
                    raise AudioError(f'the audio file {path} holds no samples')
        except AudioError as error:
            return torch.zeros(self.frames, self.mel_bins), 0, seconds, str(error)
        return fit_frames(features, self.frames), min(len(features), self.frames), seconds, ''

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


def _rows(tagger, recordings, batch_size, num_workers, embeddings):
    """Yield a Row for every window of all recordings, in order."""
    windows = [(recording.path, float(start), recording.seconds)
               for recording in recordings for start in recording.starts]
    dataset = Windows(windows, tagger.frames, tagger.mel_bins)
    batches = math.ceil(len(dataset) / batch_size)
    # Starting processes takes longer than one batch.
    workers = min(count_workers(num_workers), batches) if batches > 1 else 0
    loader = make_loader(dataset, batch_size, workers, pin_memory=tagger.device.type == 'cuda')
    with Progress('tagging', batches) as progress, explained():
        for fbanks, frames, seconds, errors in loader:
            scores, embedded = tagger(fbanks, embeddings)
            for i, error in enumerate(errors):
                yield Row(fbanks[i, :frames[i]].numpy(), float(seconds[i]), error, scores[i],
                          None if embedded is None else embedded[i])
            progress.advance(len(fbanks))


def _collect(tagger, recording, rows, spectrogram):
    """The Tagging of a recording, from the next of the rows."""
    ends = np.minimum(recording.starts + tagger.seconds, recording.seconds)
    picture = Spectrogram(ends[-1], tagger.mel_bins) if spectrogram and len(ends) else None
    scores, embeddings, error = [], [], recording.error
    for start, row in zip(recording.starts, itertools.islice(rows, len(recording.starts))):
        recording = _cut(recording, row.seconds, tagger.seconds)
        error = error or row.error or None
        scores.append(row.scores)
        embeddings.append(row.embedding)
        if picture:
            picture.add(start, row.fbank)
    if error:
        return Tagging(recording.path, recording.seconds, np.zeros(0), np.zeros(0),
                       np.zeros((0, len(tagger.labels)), np.float32), tagger.labels, error=error)
    count = len(recording.starts)
    ends = np.minimum(recording.starts + tagger.seconds, recording.seconds)
    return Tagging(recording.path, recording.seconds, recording.starts, ends,
                   np.stack(scores[:count]), tagger.labels,
                   None if embeddings[0] is None else np.stack(embeddings[:count]),
                   picture and picture.columns(ends[-1]), incomplete_from=recording.incomplete_from)


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
