"""report.html: an experiment, or the folds of one, on a page that needs no network."""
import base64
import itertools
import logging
import re
from html import escape

import numpy as np
from scipy.special import logit, softmax

from reports.html import Html, markup, page, section, table
from training.environment import now
from training.options import FREE_OPTIONS, make_parser
from training.results import best_of, read_rows, result_columns
from utilities.errors import DataError
from utilities.labels import read_datafile, split_labels
from utilities.stats import calculate_stats, classes_of, further_metrics, is_single_label
from utilities.texts import read_json
from utilities.times import clock

MATRIX_CLASSES = 60  # a larger confusion matrix does not fit on a page
LISTED = 20  # classes, or mistakes
SMALLEST = 1e-9  # distance of a sigmoid from 0 and 1, of which the logits are infinite
NEEDED = ('dataset', 'metrics', 'model_size', 'n_epochs')  # settings that no page can do without

logger = logging.getLogger(__name__)


def read_settings(exp_dir):
    """The settings of an experiment, by name. Raises DataError if they cannot be read or lack what pages need."""
    path = exp_dir / 'args.json'
    settings = read_json(path)
    for name in NEEDED:
        if name not in settings:
            raise DataError(f'cannot read {path}: there is no {name!r} among the settings of the experiment')
    return settings


def scores_table(exp_dir, settings):
    """The numbers that the experiment is about: best and last epoch, ensemble, averaged model, evaluation set."""
    metric, rows = settings['metrics'], read_rows(exp_dir / 'result.csv')
    columns, epochs = result_columns(metric), [row.tolist() for row in rows]
    scores = {f'best epoch ({best_of(rows) + 1})': dict(zip(columns[:5], epochs[best_of(rows)])),
              f'last epoch ({len(rows)})': dict(zip(columns[:5], epochs[-1])),
              f'ensemble of the {len(rows)} epochs': {metric: epochs[-1][7], 'mAUC': epochs[-1][8]}}
    if (exp_dir / 'wa_result.csv').exists():
        average = np.loadtxt(exp_dir / 'wa_result.csv').tolist()
        scores[f'average of epochs {settings["wa_start"]} to {settings["wa_end"]}'] = dict(
            zip(('mAP', 'mAUC', 'precision', 'recall', 'd_prime'), average))
    if (exp_dir / 'eval_result.csv').exists():
        numbers = np.loadtxt(exp_dir / 'eval_result.csv').tolist()
        scores['best epoch, evaluation set'] = {metric: numbers[2], 'mAUC': numbers[3]}
    names = [name for name in ('acc', 'mAP', *columns[1:5]) if any(name in row for row in scores.values())]
    return table(['', *names], [[title, *(row.get(name) for name in names)] for title, row in scores.items()], [0])


def epochs_table(exp_dir, settings):
    """result.csv with the names of its columns."""
    rows = read_rows(exp_dir / 'result.csv')
    return table(['epoch', *result_columns(settings['metrics'])],
                 [[epoch, *row.tolist()] for epoch, row in enumerate(rows, 1)], [best_of(rows)])


def curves(exp_dir):
    """curves.png, inside the page."""
    data = base64.b64encode((exp_dir / 'curves.png').read_bytes()).decode()
    return f'<img alt="loss, metric and learning rate over the epochs" src="data:image/png;base64,{data}">\n'


def read_evaluated(exp_dir, settings, option, predictions, targets):
    """What two files in exp_dir/predictions hold; option: which of the settings names their datafile.

    Returns names of the classes, a text for each clip (its path), scores and targets, both (clips, classes). Scores
    are what inference.py shows: sigmoids, or softmax after training with cross entropy.
    """
    labels = read_json(exp_dir / 'models' / 'best_audio_model.json')['labels']
    predictions, targets = (np.load(exp_dir / 'predictions' / f'{name}.npy') for name in (predictions, targets))
    if settings.get('loss') == 'CE':  # sigmoids are what is kept, as the published code keeps them
        logits = logit(predictions.astype(np.float64).clip(SMALLEST, 1 - SMALLEST))
        predictions = softmax(logits, axis=1)
    try:
        clips = read_wavs(settings[option], labels['mids'], targets)
    except DataError as error:
        logger.warning('the report has numbers in place of paths: %s', error)
        clips = [f'entry {i} of {settings[option]} (not found from here, or changed)' for i in range(len(targets))]
    return labels['names'], clips, predictions, targets


def read_wavs(datafile, mids, targets):
    """The paths in a datafile, with the start if an entry has one.

    Raises DataError if it is not the one that targets (clips, classes) came from.
    """
    index = {mid: k for k, mid in enumerate(mids)}
    data = read_datafile(datafile, index)
    if len(data) != len(targets) or any(
            {index[mid] for mid in split_labels(labels)} != set(np.flatnonzero(row))
            for labels, row in zip(data.labels, targets)):
        raise DataError(f'the datafile {datafile} is not the one that was evaluated: its samples differ')
    if data.windows is None:
        return data.wavs.tolist()
    return [f'{wav} from {start:.10g} s' for wav, start in zip(data.wavs, data.windows[:, 0])]


def evaluated(names, clips, predictions, targets):
    """Confusions or classes, and the worst mistakes: what read_evaluated returns, as HTML."""
    if not is_single_label(targets):
        return class_tables(names, predictions, targets) + absent_labels(names, clips, predictions, targets)
    truth, predicted = classes_of(predictions, targets)
    classes = np.union1d(truth, predicted)
    numbers = {'accuracy': float(np.mean(truth == predicted)), **further_metrics(predictions, targets)}
    listed = ', '.join(f'{name} {markup(value)}' for name, value in numbers.items())
    return (f'<p>{len(truth)} clips: {listed}.</p>\n'
            + (confusions(names, classes, truth, predicted) if len(classes) <= MATRIX_CLASSES else
               class_tables(names, predictions, targets))
            + mistakes(names, *only(targets.any(axis=1), clips, predictions), truth, predicted)
            + negatives(names, clips, predictions, targets))


def only(chosen, clips, *arrays):
    """Return the clips, and the rows of arrays, for which `chosen` (clips,) is true."""
    return list(itertools.compress(clips, chosen)), *(array[chosen] for array in arrays)


def negatives(names, clips, predictions, targets):
    """Describe the clips without a label, which the accuracy leaves out; '' if there are none."""
    negative = ~targets.any(axis=1)
    if not negative.any():
        return ''
    return (f'<p>{negative.sum()} more clips are negatives: none of the classes is heard. They '
            'count in loss, AP and AUC, not in the accuracy and the confusions.</p>\n'
            + absent_labels(names, *only(negative, clips, predictions, targets)))


def confusions(names, classes, truth, predicted):
    """The confusion matrix over the classes given, coloured by share of the row; truth, predicted: classes (clips,)."""
    from sklearn.metrics import confusion_matrix
    matrix = confusion_matrix(truth, predicted, labels=classes)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    shown = [escape(names[k]) for k in classes]
    size = max(0.6, min(0.85, 30 / len(classes)))  # of the letters: 50 classes fit the page

    def cell(i, j):
        if not matrix[i, j]:
            return '<td></td>'
        return (f'<td title="{shown[i]} taken for {shown[j]}" style="background:rgba(var(--blue), {share[i, j]:.2f});'
                f'color:{"#fff" if share[i, j] > 0.5 else "#000"}">{matrix[i, j]}</td>')
    head = ''.join(f'<th>{name}</th>' for name in (*shown, 'accuracy'))
    rows = [f'<tr><th>{name}</th>{"".join(cell(i, j) for j in range(len(classes)))}'
            f'<th>{markup(float(share[i, i])) if matrix[i].any() else "–"}</th></tr>\n' for i, name in enumerate(shown)]
    return ('<p class="soft">Rows: the true class. Columns: the class with the highest score.</p>\n'
            f'<div class="wide"><table class="matrix" style="font-size: {size:.2f}rem">\n'
            f'<tr><th></th>{head}</tr>\n{"".join(rows)}</table></div>\n')


def class_tables(names, predictions, targets):
    """Average precision of the best and the worst classes."""
    stats, positives = calculate_stats(predictions, targets), targets.sum(axis=0)
    rows = [(names[k], int(positives[k]), stats[k]['AP'], stats[k]['auc']) for k in np.flatnonzero(positives)]
    rows.sort(key=lambda row: -row[2])
    lists = {'best': rows[:LISTED], 'worst': rows[:-LISTED - 1:-1]} if len(rows) > 2 * LISTED else {'all': rows}
    tables = (f'<div><h3>{title.capitalize()} classes</h3>{table(["class", "positives", "AP", "AUC"], part)}</div>\n'
              for title, part in lists.items())
    without = int((~targets.any(axis=1)).sum())
    return (f'<p>{len(targets)} clips{f", {without} of them negatives" if without else ""}; '
            f'{len(names) - len(rows)} of {len(names)} classes have no positives.</p>\n'
            f'<div class="beside">{"".join(tables)}</div>\n')


def mistakes(names, clips, predictions, truth, predicted):
    """The clips of a wrong class with the highest scores; truth, predicted: classes (clips,)."""
    wrong = np.flatnonzero(truth != predicted)
    worst = wrong[np.argsort(-predictions[wrong, predicted[wrong]], kind='stable')][:LISTED]
    rows = [(clips[i], names[predicted[i]], float(predictions[i, predicted[i]]), names[truth[i]],
             float(predictions[i, truth[i]])) for i in worst]
    return (f'<h3>Most confident mistakes, of {len(wrong)}</h3>\n'
            + table(['clip', 'predicted class', 'its score', 'true class', 'its score'], rows))


def absent_labels(names, clips, predictions, targets):
    """The labels with the highest scores among those that a clip does not have."""
    scores = np.where(targets == 0, predictions, -1).ravel()
    first = np.argpartition(-scores, min(LISTED, scores.size) - 1)[:LISTED]
    worst = [divmod(i, len(names)) for i in first[np.argsort(-scores[first], kind='stable')] if scores[i] >= 0]
    rows = [(clips[i], names[k], float(predictions[i, k]), ', '.join(names[j] for j in np.flatnonzero(targets[i])))
            for i, k in worst]
    return ('<h3>Most confident mistakes: absent labels with the highest scores</h3>\n'
            + table(['clip', 'absent label', 'its score', 'the labels it has'], rows))


def machine_tables(exp_dir):
    """Time, devices, versions of the last start; if there were several, what changed from one to the next."""
    seconds = read_seconds(exp_dir)
    facts = {'training and evaluation': f'{clock(seconds)}, all starts together'} if seconds else {}
    if not (exp_dir / 'environment.json').exists():
        return (table(['', ''], list(facts.items()))
                + '<p class="soft">Machine and versions are not known: there is no environment.json.</p>\n')
    starts = read_json(exp_dir / 'environment.json')['starts']
    last = starts[-1]
    if seconds and len({start['devices'] for start in starts}) == 1:  # the seconds of each start are not known
        facts['device-hours'] = f'{seconds / 3600 * last["devices"]:.2f} ({last["devices"]} × {last["device"]})'
    facts |= {'starts': str(len(starts)), **{{'time': 'last start'}.get(name, name): str(value)
                                             for name, value in last.items() if value is not None}}
    changes = [', '.join(f'{name} {before.get(name)} → {value}' for name, value in start.items()
                         if name != 'time' and before.get(name) != value) for before, start in zip(starts, starts[1:])]
    history = [(str(i), start['time'], change) for i, (start, change) in enumerate(zip(starts, ['', *changes]), 1)]
    starts_table = '<h3>Starts</h3>\n' + table(['', 'time', 'what is different from the start before'], history)
    return table(['', ''], list(facts.items())) + (starts_table if changes else '')


def read_seconds(exp_dir):
    """The time that a finished experiment took, or None."""
    return read_json(exp_dir / 'finished')['seconds'] if (exp_dir / 'finished').exists() else None


def settings_tables(settings):
    """First the settings that differ from the defaults of run.py, then the others."""
    default_of = make_parser().get_default
    changed = [(f'--{name}', str(value), default_of(name) if default_of(name) is None else str(default_of(name)))
               for name, value in settings.items() if value != default_of(name)]
    same = [(f'--{name}', str(value)) for name, value in settings.items() if value == default_of(name)]
    return ('<h3>Given</h3>' + table(['', '', 'default'], changed)
            + f'<h3>As run.py has them by default</h3>\n<div class="settings">{table(["", ""], same)}</div>\n')


def state_of(exp_dir, settings):
    """How far an experiment has come, as a sentence."""
    epochs = len(read_rows(exp_dir / 'result.csv')) if (exp_dir / 'result.csv').exists() else 0
    state = 'Finished' if (exp_dir / 'finished').exists() else 'Not finished, under way or broken off'
    return f'{state}: {epochs} of {settings["n_epochs"]} epochs.'


def run_page(exp_dir):
    """The report of one experiment, finished or not."""
    settings = read_settings(exp_dir)

    def validation_set():
        epoch = best_of(read_rows(exp_dir / 'result.csv')) + 1
        return evaluated(*read_evaluated(exp_dir, settings, 'data_val', f'predictions_{epoch}', 'target'))

    def evaluation_set():
        return evaluated(*read_evaluated(exp_dir, settings, 'data_eval', 'eval_predictions', 'eval_targets'))
    return page(f'{settings["dataset"]}: AST {settings["model_size"]}', state_of(exp_dir, settings), [
        section('Results', scores_table, exp_dir, settings),
        section('Curves', curves, exp_dir),
        section('Epochs', epochs_table, exp_dir, settings),
        section('Validation set, best epoch', validation_set),
        section('Evaluation set, best epoch', evaluation_set) if (exp_dir / 'eval_result.csv').exists() else '',
        section('Time and machine', machine_tables, exp_dir),
        section('Settings', settings_tables, settings)], now())


def finished_folds(exp_dir):
    """The directories fold1, fold2, ... of exp_dir whose runs are finished, and their common settings.

    Raises DataError if there is none, or if their settings differ in more than the data and its statistics.
    """
    folds = sorted((path for path in exp_dir.glob('fold*') if re.fullmatch(r'fold\d+', path.name)),
                   key=lambda path: int(path.name.removeprefix('fold')))
    finished = [fold for fold in folds if (fold / 'finished').exists()]
    if not finished:
        raise DataError(f'there is no finished fold in {exp_dir}')
    for fold in folds:
        if fold not in finished:
            logger.warning('%s is not finished and is left out', fold)
    settings = [read_settings(fold) for fold in finished]
    for name in settings[0].keys() - {'data_train', 'data_val', 'data_eval', 'exp_dir', 'dataset_mean', 'dataset_std',
                                      *FREE_OPTIONS}:
        if any(one.get(name) != settings[0][name] for one in settings):
            raise DataError(f'the folds in {exp_dir} differ in --{name}: they do not belong together')
    return finished, settings[0]


def fold_page(exp_dir, folds):
    """The report over folds, directories in exp_dir, when exp_dir has its result.csv and curves.png."""
    settings = [read_settings(fold) for fold in folds]
    common = {name: value for name, value in settings[0].items() if all(one.get(name) == value for one in settings)}
    epoch = best_of(read_rows(exp_dir / 'result.csv')) + 1

    def all_clips():
        names, clips, predictions, targets = zip(*(
            read_evaluated(fold, one, 'data_val', f'predictions_{epoch}', 'target')
            for fold, one in zip(folds, settings)))
        return evaluated(names[0], sum(clips, []), np.concatenate(predictions), np.concatenate(targets))
    return page(f'{common["dataset"]}: AST {common["model_size"]}, {len(folds)} folds',
                f'Best epoch of the mean: {epoch}.', [
        section('Folds', folds_table, exp_dir, folds, common['metrics'], epoch),
        section('Curves, mean of the folds', curves, exp_dir),
        section('Epochs, mean of the folds', epochs_table, exp_dir, common),
        section(f'All clips, epoch {epoch}', all_clips),
        section('Settings of all folds', settings_tables, common)], now())


def folds_table(exp_dir, folds, metric, epoch):
    """The main metric of every fold, mean and standard deviation, time; links to the folds' own reports."""
    rows = [read_rows(fold / 'result.csv')[:, 0] for fold in folds]
    scores = np.array([(row[epoch - 1], row[-1], row.max()) for row in rows])
    seconds = [read_seconds(fold) for fold in folds]
    links = [Html(f'<a href="{fold.name}/report.html">{fold.name}</a>') if (fold / 'report.html').exists()
             else fold.name for fold in folds]
    lines = [[link, *row, clock(time)] for link, row, time in zip(links, scores.tolist(), seconds)]
    lines += [['mean', *scores.mean(axis=0).tolist(), f'{clock(sum(seconds))} in all'],
              ['standard deviation', *scores.std(axis=0).tolist(), '']]
    return table(['fold', f'{metric}, epoch {epoch}', 'last epoch', "fold's own best", 'time'], lines, [len(folds)])
