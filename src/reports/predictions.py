"""Sections of a report about predictions: confusions, classes, and the most confident mistakes."""
import itertools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.special import logit, softmax

from audio.fbank import SAMPLE_RATE, frames_to_seconds
from reports.experiments import Settings
from reports.html import Html, as_html, table
from reports.players import Clip
from training.result_files import read_array
from utilities.datafiles import read_datafile, split_labels
from utilities.errors import DataError
from utilities.stats import calculate_stats, classes_of, further_metrics, is_single_label
from utilities.texts import read_json

PAGE_MATRIX_CLASSES = 60  # a larger confusion matrix does not fit on a page
LISTED = 20  # classes, or mistakes
SMALLEST = 1e-9  # sigmoids are kept this far from 0 and 1, whose logits are infinite

Show = Callable[[Clip], Html]  # returns a clip's name with its player

logger = logging.getLogger(__name__)


class Evaluated(NamedTuple):
    """Clips and their predictions.

    Attributes:
        names: of the classes.
        clips: the recordings, or the parts of them that the model heard.
        predictions: (clips, classes) of sigmoids, by which all metrics are computed, as published.
        targets: labels (clips, classes).
        loss: 'BCE' or 'CE', with which the model was trained.
    """
    names: list[str]
    clips: list[Clip]
    predictions: np.ndarray
    targets: np.ndarray
    loss: str

    @property
    def scores(self) -> np.ndarray:
        """The scores (clips, classes) that inference.py shows: softmax for CE."""
        if self.loss != 'CE':
            return self.predictions
        return softmax(logit(self.predictions.astype(np.float64).clip(SMALLEST, 1 - SMALLEST)),
                       axis=1)

    def only(self, chosen: np.ndarray) -> 'Evaluated':
        """Return the clips for which `chosen` (clips,) is true."""
        clips = list(itertools.compress(self.clips, chosen))
        return self._replace(clips=clips, predictions=self.predictions[chosen],
                             targets=self.targets[chosen])


def read_evaluated(exp_dir: Path, settings: Settings, datafile: str, predictions: str,
                   targets: str) -> Evaluated:
    """Read predictions of an experiment.

    Args:
        exp_dir: its directory.
        settings: its settings.
        datafile: name of the setting that has the datafile: data_val or data_eval.
        predictions, targets: names of the files in exp_dir/predictions, without .npy.
    """
    labels = read_json(exp_dir / 'models' / 'best_audio_model.json')['labels']
    sigmoids, truth = (read_array(exp_dir / 'predictions' / f'{name}.npy')
                       for name in (predictions, targets))
    # Several windows (--eval_windows) are spread over the whole clip.
    hears_all = settings.get('eval_windows', 1) > 1
    seconds = math.inf if hears_all else frames_to_seconds(
        settings['audio_length'], settings.get('sample_rate', SAMPLE_RATE))
    try:
        clips = read_clips(settings[datafile], labels['mids'], truth, seconds)
    except DataError as error:
        logger.warning('the report has numbers in place of paths: %s', error)
        clips = [Clip(f'entry {i} of {settings[datafile]} (not found from here, or changed)')
                 for i in range(len(truth))]
    return Evaluated(labels['names'], clips, sigmoids, truth, settings.get('loss', 'BCE'))


def read_clips(datafile: str | Path, mids: Sequence[str], targets: np.ndarray, seconds: float
               ) -> list[Clip]:
    """Return the entries of a datafile as clips, each as long as the model hears it.

    Args:
        datafile: its path.
        mids: of all classes.
        targets: labels (clips, classes).
        seconds: how much of a clip the model hears at most.

    Raises:
        DataError: the datafile is not the one that the targets came from.
    """
    index = {mid: k for k, mid in enumerate(mids)}
    data = read_datafile(datafile, index)
    if len(data) != len(targets) or any(
            {index[mid] for mid in split_labels(labels)} != set(np.flatnonzero(row))
            for labels, row in zip(data.labels, targets)):
        raise DataError(f'the datafile {datafile} is not the one that was evaluated: its samples '
                        f'differ')
    clips = []
    for i, wav in enumerate(data.wavs):
        start, greatest = data.part(i)
        name = wav if data.parts is None else f'{wav} from {start:.10g} s'
        clips.append(Clip(name, wav, start, min(seconds, greatest)))
    return clips


def predictions_section(evaluated: Evaluated, show: Show) -> str:
    """Return how good predictions are, class by class, and the worst mistakes, as HTML.

    Args:
        evaluated: the predictions.
        show: returns a clip as HTML.
    """
    if not is_single_label(evaluated.targets):
        return class_tables(evaluated) + absent_labels(evaluated, show)
    labelled = evaluated.only(np.any(evaluated.targets, axis=1))
    truth, predicted = classes_of(evaluated.predictions, evaluated.targets)
    metrics = {'accuracy': float(np.mean(truth == predicted)),
               **further_metrics(evaluated.predictions, evaluated.targets)}
    listed = ', '.join(f'{name} {as_html(value)}' for name, value in metrics.items())
    text = f'<p>{len(truth)} clips: {listed}.</p>\n'
    classes = np.union1d(truth, predicted)
    if len(classes) <= PAGE_MATRIX_CLASSES:
        text += confusions(evaluated.names, classes, truth, predicted)
    else:
        text += class_tables(evaluated)
    return text + mistakes(labelled, truth, predicted, show) + negatives(evaluated, show)


def negatives(evaluated: Evaluated, show: Show) -> str:
    """Return a section about clips without a label, which the accuracy leaves out, if any."""
    negative = ~np.any(evaluated.targets, axis=1)
    if not negative.any():
        return ''
    return (f'<p>{negative.sum()} more clips are negatives: none of the classes is heard. They '
            'count in loss, AP and AUC, not in the accuracy and the confusions.</p>\n'
            + absent_labels(evaluated.only(negative), show))


def confusions(names: Sequence[str], classes: np.ndarray, truth: np.ndarray, predicted: np.ndarray
               ) -> str:
    """Return the confusion matrix as HTML, coloured by share of the row.

    Args:
        names: of all classes.
        classes: the ones to show.
        truth, predicted: classes (clips,).
    """
    from sklearn.metrics import confusion_matrix
    matrix = confusion_matrix(truth, predicted, labels=classes)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    shown = [escape(names[k]) for k in classes]
    letter_size = max(0.6, min(0.85, 30 / len(classes)))  # rem; 50 classes fit the page

    def cell(i, j):
        if not matrix[i, j]:
            return '<td></td>'
        colour = '#fff' if share[i, j] > 0.5 else '#000'
        return (f'<td title="{shown[i]} taken for {shown[j]}" style="background:rgba(var(--blue), '
                f'{share[i, j]:.2f});color:{colour}">{matrix[i, j]}</td>')

    def row(i):
        accuracy = as_html(float(share[i, i])) if matrix[i].any() else '–'
        cells = ''.join(cell(i, j) for j in range(len(classes)))
        return f'<tr><th>{shown[i]}</th>{cells}<th>{accuracy}</th></tr>\n'

    head = ''.join(f'<th>{name}</th>' for name in (*shown, 'accuracy'))
    rows = ''.join(map(row, range(len(classes))))
    return ('<p class="soft">Rows: the true class. Columns: the class with the highest score.</p>\n'
            f'<div class="wide"><table class="matrix" style="font-size: {letter_size:.2f}rem">\n'
            f'<tr><th></th>{head}</tr>\n{rows}</table></div>\n')


def class_tables(evaluated: Evaluated) -> str:
    """Return the average precision of the best and the worst classes as HTML tables."""
    names, targets = evaluated.names, evaluated.targets
    stats, positives = calculate_stats(evaluated.predictions, targets), targets.sum(axis=0)
    rows = [(names[k], int(positives[k]), stats[k]['AP'], stats[k]['auc'])
            for k in np.flatnonzero(positives)]
    rows.sort(key=lambda row: -row[2])
    lists: Mapping[str, Sequence] = {'all': rows}
    if len(rows) > 2 * LISTED:
        lists = {'best': rows[:LISTED], 'worst': rows[:-LISTED - 1:-1]}
    tables = ''.join(f'<div><h3>{title.capitalize()} classes</h3>'
                     f'{table(["class", "positives", "AP", "AUC"], part)}</div>\n'
                     for title, part in lists.items())
    negative = int((~targets.any(axis=1)).sum())
    text = f'{len(targets)} clips' + (f', {negative} of them negatives' if negative else '')
    return (f'<p>{text}; {len(names) - len(rows)} of {len(names)} classes have no positives.</p>\n'
            f'<div class="beside">{tables}</div>\n')


def mistakes(evaluated: Evaluated, truth: np.ndarray, predicted: np.ndarray, show: Show) -> str:
    """Return the clips with the highest scores of a wrong class as an HTML table.

    truth, predicted: classes (clips,).
    """
    wrong = np.flatnonzero(truth != predicted)
    names, clips, scores = evaluated.names, evaluated.clips, evaluated.scores
    confidence = scores[wrong, predicted[wrong]]
    worst = wrong[np.argsort(-confidence, kind='stable')][:LISTED]
    rows = [(show(clips[i]), names[predicted[i]], float(scores[i, predicted[i]]),
             names[truth[i]], float(scores[i, truth[i]])) for i in worst]
    if not rows:
        return '<h3>Mistakes</h3>\n<p>There are none.</p>\n'
    return (f'<h3>Most confident mistakes, of {len(wrong)}</h3>\n'
            + table(['clip', 'predicted class', 'its score', 'true class', 'its score'], rows))


def absent_labels(evaluated: Evaluated, show: Show) -> str:
    """Return an HTML table of the highest scores for labels that the clips do not have."""
    names = evaluated.names
    shown = evaluated.scores
    scores = np.where(evaluated.targets == 0, shown, -1).ravel()  # (clips * classes,)
    highest = np.argpartition(-scores, min(LISTED, scores.size) - 1)[:LISTED]
    highest = highest[np.argsort(-scores[highest], kind='stable')]
    rows = []
    for clip, k in (divmod(i, len(names)) for i in highest if scores[i] >= 0):
        labels = ', '.join(names[j] for j in np.flatnonzero(evaluated.targets[clip]))
        rows.append((show(evaluated.clips[clip]), names[k], float(shown[clip, k]), labels))
    return ('<h3>Most confident mistakes: absent labels with the highest scores</h3>\n'
            + table(['clip', 'absent label', 'its score', 'the labels it has'], rows))
