"""Split clips into training, validation and test parts or into folds: seeded, stratified, groups kept whole."""
import logging
import math
import re
import warnings
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from utilities.errors import DataError

FINEST_SHARE = 10  # shares are met in tenths, or finer where they are smaller than one
MAX_NAMED = 10  # names in a message
MAX_DIGITS = 20  # of the number of a fold; longer ones are names

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clip:
    """A recording and its labels. part ('train', 'val', 'test'), fold and group are '' where the source gives none."""
    wav: str
    labels: tuple[str, ...]  # names at first, then mids; of a negative, none
    part: str = ''
    fold: str = ''
    group: str = ''


@dataclass(frozen=True)
class SplitConf:
    """How to split clips that come without a split: into n_folds folds, or where it is 0, by shares."""
    val_share: float = 0.2
    test_share: float = 0.0
    n_folds: int = 0
    seed: int = 0


def split_clips(clips, conf):
    """The clips of each datafile, by its name: those of the split that the source gives, or of one that conf describes.

    Raises DataError if the source's split and conf contradict each other, and where a part would be empty.
    """
    first = clips[0]
    if (first.part or first.fold) and (conf.n_folds or conf.test_share):
        raise DataError('the dataset brings its own split (a column fold or split, or folders): leave that out, '
                        'or --n_folds and --test_share')
    if first.fold:
        values = sorted({clip.fold for clip in clips}, key=fold_order)
        order = {value: k for k, value in enumerate(values)}
        logger.info('folds: %s', shortened(f'{k + 1} evaluates {value!r}' for value, k in order.items()))
        files = fold_files(clips, [order[clip.fold] for clip in clips], len(values))
    elif first.part:
        files = {f'{part}_data': [clip for clip in clips if clip.part == part] for part in ('train', 'val', 'test')}
    elif conf.n_folds:
        if conf.n_folds > most_folds(clips):
            raise DataError(f'--n_folds {conf.n_folds}: the clips of the largest class, or the groups, make at most '
                            f'{most_folds(clips)} folds')
        files = fold_files(clips, assign_folds(clips, conf.n_folds, conf.seed), conf.n_folds)
    else:
        files = share_files(clips, conf)
    files = {name: chosen for name, chosen in files.items() if chosen or name != 'test_data'}
    if empty := [name for name, chosen in files.items() if not chosen]:
        raise DataError(f'there is nothing for {shortened(empty)}: too few clips, groups or folds for the split')
    return files


def fold_order(value):
    """How folds are sorted: whole numbers by size, before other names."""
    return (0, int(value), value) if value.isdecimal() and len(value) < MAX_DIGITS else (1, 0, value)


def fold_files(clips, folds, n_folds):
    """The clips of the datafiles of each fold, which evaluates its own clips and trains on the others.

    folds: of each clip, from 0; the datafiles count from 1.
    """
    files = {}
    for fold in range(n_folds):
        files[f'train_data_{fold + 1}'] = [clip for clip, its_fold in zip(clips, folds) if its_fold != fold]
        files[f'val_data_{fold + 1}'] = [clip for clip, its_fold in zip(clips, folds) if its_fold == fold]
    return files


def share_files(clips, conf):
    """The clips of train_data, val_data and test_data, of about the shares that conf wants."""
    test = []
    if conf.test_share:
        clips, test = hold_out(clips, conf.test_share, conf.seed)
    train, val = hold_out(clips, conf.val_share / (1 - conf.test_share), conf.seed)
    return {'train_data': train, 'val_data': val, 'test_data': test}


def hold_out(clips, share, seed):
    """Divide clips into the others and about `share` of them, stratified, groups kept whole. Returns two lists."""
    fraction = Fraction(share).limit_denominator(max(FINEST_SHARE, math.ceil(1 / share)))
    n_folds = min(fraction.denominator, most_folds(clips))
    if n_folds < 2:
        raise DataError('the clips cannot be split: no class has two, or there is only one group')
    chosen = min(max(1, round(share * n_folds)), n_folds - 1)
    # The clips of a class too small for all folds are in neighbouring ones: take folds that are spread evenly.
    held_out = np.isin(assign_folds(clips, n_folds, seed), np.arange(chosen) * n_folds // chosen)
    return [[clip for clip, out in zip(clips, held_out) if out == side] for side in (False, True)]


def assign_folds(clips, n_folds, seed):
    """Return the fold of each clip, from 0: (clips,).

    The folds are stratified by the clips' rarest labels, with the negatives as a class of their
    own. Groups are kept whole.
    """
    keys, groups = rarest_labels(clips), [clip.group for clip in clips]
    kind = StratifiedGroupKFold if any(groups) else StratifiedKFold
    folds = np.zeros(len(clips), dtype=int)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)  # of rare classes: warn_of_rare names them
        parts = kind(n_folds, shuffle=True, random_state=seed).split(keys, keys, groups)
        for fold, (_, held_out) in enumerate(parts):
            folds[held_out] = fold
    return folds


def most_folds(clips):
    """The most folds that scikit-learn makes: as many as the most frequent class has clips, or as there are groups."""
    frequent = Counter(rarest_labels(clips)).most_common(1)[0][1]
    groups = {clip.group for clip in clips}
    return frequent if groups == {''} else min(frequent, len(groups))


def rarest_labels(clips):
    """Return each clip's rarest label, of one label the label itself, of a negative ''."""
    counts = Counter(label for clip in clips for label in clip.labels)
    return [min(clip.labels, key=lambda label: (counts[label], label), default='')
            for clip in clips]


def warn_of_rare(files, labels):
    """Log which classes have clips, but not in every datafile, and how many of a given label file have none."""
    present = {name: {mid for clip in chosen for mid in clip.labels} for name, chosen in files.items()}
    used = set().union(*present.values())
    absent = {name: [file for file in files if mid not in present[file]]
              for mid, name in zip(labels.mids, labels.names) if mid in used}
    if rare := [f'{name} (not in {shortened(where, 2)})' for name, where in absent.items() if where]:
        logger.warning('classes too rare to be in every part of the split: %s', shortened(rare))
    if len(used) < len(labels):
        logger.warning('classes of the label file without clips: %d of %d', len(labels) - len(used), len(labels))


def warn_of_shared_groups(files):
    """Log groups that a given split has on both sides of it."""
    for name in files:
        groups = {clip.group for clip in files[name]} - {''}
        trained = {clip.group for clip in files[re.sub('^(val|test)', 'train', name)]}
        if not name.startswith('train') and (shared := sorted(groups & trained)):
            logger.warning('groups in both %s and its training data: %s', name, shortened(shared))


def shortened(names, most=MAX_NAMED):
    """Names separated by commas, the first of them where there are many."""
    names = list(names)
    return ', '.join(names[:most]) + (f' and {len(names) - most} more' if len(names) > most else '')
