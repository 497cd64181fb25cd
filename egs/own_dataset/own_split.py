"""Split clips into training, validation and test set or into folds.

The split is seeded and stratified, and clips of one group stay together.
"""
import itertools
import logging
import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np

from own_clips import LabelledClip, SplitConf
from utilities.errors import DataError
from utilities.formatting import shortened
from utilities.labels import Labels

MOST_PARTS = 10  # most folds that hold_out makes, unless a share below 0.1 needs more

Clips = Sequence[LabelledClip]

logger = logging.getLogger(__name__)


def split_clips(clips: Clips, conf: SplitConf) -> dict[str, Clips]:
    """Return {name of a datafile: its clips}, by the source's own split or as conf says.

    Raises:
        DataError: the source's split and conf contradict each other, or a part would be empty.
    """
    first = clips[0]
    if (first.part or first.fold) and (conf.n_folds or conf.test_share):
        raise DataError('the dataset brings its own split (a column fold or split, or folders): '
                        'leave that out, or --n_folds and --test_share')
    if first.fold:
        files = split_by_given_folds(clips)
    elif first.part:
        files = {f'{part}_data': [clip for clip in clips if clip.part == part]
                 for part in ('train', 'val', 'test')}
    elif conf.n_folds:
        most = count_possible_folds(clips)
        if conf.n_folds > most:
            raise DataError(f'--n_folds {conf.n_folds}: the clips of the largest class, or the '
                            f'groups, make at most {most} folds')
        files = make_fold_files(clips, assign_folds(clips, conf.n_folds, conf.seed), conf.n_folds)
    else:
        files = split_by_shares(clips, conf)
    files = {name: chosen for name, chosen in files.items() if chosen or name != 'test_data'}
    if empty := [name for name, chosen in files.items() if not chosen]:
        raise DataError(f'there is nothing for {shortened(empty)}: too few clips, groups or folds '
                        f'for the split')
    return files


def split_by_given_folds(clips: Clips) -> dict[str, Clips]:
    """Return the clips of the datafiles of the folds that the source names."""
    values = sorted({clip.fold for clip in clips}, key=fold_sort_key)
    logger.info('folds: %s', shortened(f'{k} evaluates {value!r}'
                                       for k, value in enumerate(values, 1)))
    index_of = {value: k for k, value in enumerate(values)}
    return make_fold_files(clips, [index_of[clip.fold] for clip in clips], len(values))


def fold_sort_key(value: str) -> tuple[int, int, str]:
    """Return the key by which folds are sorted: whole numbers by size, before other names."""
    return (0, int(value), value) if value.isdecimal() else (1, 0, value)


def make_fold_files(clips: Clips, folds: Sequence[int] | np.ndarray, n_folds: int
                    ) -> dict[str, Clips]:
    """Return the clips of the datafiles of each fold, numbered from 1.

    A fold evaluates its own clips and trains on the others. folds: of each clip, from 0.
    """
    files: dict[str, Clips] = {}
    for fold in range(n_folds):
        files[f'train_data_{fold + 1}'] = [clip for clip, own in zip(clips, folds) if own != fold]
        files[f'val_data_{fold + 1}'] = [clip for clip, own in zip(clips, folds) if own == fold]
    return files


def split_by_shares(clips: Clips, conf: SplitConf) -> dict[str, Clips]:
    """Return the clips of train_data, val_data and test_data, of about the shares of conf."""
    test: Clips = []
    if conf.test_share:
        clips, test = hold_out(clips, conf.test_share, conf.seed)
    train, val = hold_out(clips, conf.val_share / (1 - conf.test_share), conf.seed)
    return {'train_data': train, 'val_data': val, 'test_data': test}


def hold_out(clips: Clips, share: float, seed: int) -> tuple[Clips, Clips]:
    """Hold out about `share` of the clips, stratified, groups together.

    The clips are dealt into folds, and some whole folds are held out: for 0.2, 1 of 5; for 0.3, 3
    of 10.

    Returns:
        The clips that are left, and those that are held out.
    """
    fraction = Fraction(share).limit_denominator(max(MOST_PARTS, math.ceil(1 / share)))
    n_folds = min(fraction.denominator, count_possible_folds(clips))
    if n_folds < 2:
        raise DataError('the clips cannot be split: no class has two, or there is only one group')
    count = min(max(1, round(share * n_folds)), n_folds - 1)
    # If a class has fewer clips than there are folds, its clips are in neighbouring folds. So the
    # folds to hold out are spread evenly.
    chosen = np.arange(count) * n_folds // count
    held_out = np.isin(assign_folds(clips, n_folds, seed), chosen)  # (clips,) of bool
    return ([clip for clip, out in zip(clips, held_out) if not out],
            [clip for clip, out in zip(clips, held_out) if out])


def assign_folds(clips: Clips, n_folds: int, seed: int) -> np.ndarray:
    """Return the fold of each clip, from 0: (clips,).

    The folds are stratified by the clips' rarest labels, with the negatives as a class of their
    own. Groups stay together.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
    keys, groups = find_rarest_labels(clips), [clip.group for clip in clips]
    kind = StratifiedGroupKFold if any(groups) else StratifiedKFold
    folds = np.zeros(len(clips), dtype=int)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)  # of rare classes: warn_of_rare_classes
        parts = kind(n_folds, shuffle=True, random_state=seed).split(keys, keys, groups)
        for fold, (_, held_out) in enumerate(parts):
            folds[held_out] = fold
    return folds


def count_possible_folds(clips: Clips) -> int:
    """Return the largest number of folds that scikit-learn makes.

    That is how many clips the most frequent class has, or how many groups there are if that is
    less.
    """
    frequent = Counter(find_rarest_labels(clips)).most_common(1)[0][1]
    groups = {clip.group for clip in clips}
    return frequent if groups == {''} else min(frequent, len(groups))


def find_rarest_labels(clips: Clips) -> list[str]:
    """Return each clip's rarest label; '' for a negative."""
    counts = Counter(label for clip in clips for label in clip.labels)
    return [min(clip.labels, key=lambda label: (counts[label], label), default='')
            for clip in clips]


def warn_of_rare_classes(files: Mapping[str, Clips], labels: Labels) -> None:
    """Log which classes are not in every datafile, and how many of a label file have no clips."""
    present = {name: {mid for clip in chosen for mid in clip.labels}
               for name, chosen in files.items()}
    used = set().union(*present.values())
    absent = {name: [file for file in files if mid not in present[file]]
              for mid, name in zip(labels.mids, labels.names) if mid in used}
    rare = [f'{name} (not in {shortened(where, 2)})' for name, where in absent.items() if where]
    if rare:
        logger.warning('classes too rare to be in every part of the split: %s', shortened(rare))
    if len(used) < len(labels):
        logger.warning('classes of the label file without clips: %d of %d',
                       len(labels) - len(used), len(labels))


def warn_of_shared_groups(files: Mapping[str, Clips]) -> None:
    """Log which groups are in two datafiles of a given split, or of a fold."""
    groups = {name: {clip.group for clip in clips} - {''} for name, clips in files.items()}
    for first, second in itertools.combinations(files, 2):
        is_same_fold = first.partition('_data')[2] == second.partition('_data')[2]
        if is_same_fold and (shared := sorted(groups[first] & groups[second])):
            logger.warning('groups in both %s and %s: %s', first, second, shortened(shared))
