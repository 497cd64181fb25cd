"""report.html: an experiment, or the folds of one, on a page that needs no network."""
import functools
from pathlib import Path

import numpy as np

from audio.fbank import SAMPLE_RATE
from reports.experiments import (
    common_settings,
    epoch_or_last,
    finished_folds,
    read_results,
    read_settings,
    state_of,
)
from reports.html import page, picture, section
from reports.machine import machine_tables, settings_tables
from reports.players import with_player
from reports.predictions import Evaluated, predictions_section, read_evaluated
from reports.scores import epochs_table, folds_table, scores_table
from training.result_files import best_of, read_rows
from utilities.errors import DataError
from utilities.formatting import now
from utilities.texts import write_text


def write_report(exp_dir: Path, embed_audio: bool = False) -> None:
    """Write report.html of an experiment, finished or not, or of the folds in a folder.

    Args:
        exp_dir: the folder, which gets the page.
        embed_audio: put the sounds of the players into the page, in place of links to the files.

    Raises:
        DataError: the folder holds neither an experiment nor a finished fold, or its result.csv is
            not the mean of the folds that are finished.
    """
    if (exp_dir / 'args.json').exists():
        html = run_page(exp_dir, embed_audio)
    else:
        folds = finished_folds(exp_dir)[0]
        check_summary(exp_dir, folds)
        html = fold_page(exp_dir, folds, embed_audio)
    write_text(exp_dir / 'report.html', html)


def check_summary(exp_dir: Path, folds: list[Path]) -> None:
    """Raise DataError if result.csv in exp_dir is not the mean of these folds."""
    path = exp_dir / 'result.csv'
    mean = read_results(folds).mean(axis=0)
    summary = read_rows(path) if path.exists() else np.zeros((0, 0))
    if summary.shape != mean.shape or not np.allclose(summary, mean, equal_nan=True):
        raise DataError(f'{path} is not the mean of the {len(folds)} folds that are finished: run '
                        f'summarise_folds.py --exp_dir {exp_dir}, which writes the report, too')


def run_page(exp_dir: Path, embed_audio: bool = False) -> str:
    """Return the report of one experiment, finished or not, as HTML.

    The arguments are those of write_report.
    """
    settings = read_settings(exp_dir)
    show = functools.partial(with_player, folder=exp_dir, embed=embed_audio,
                             sample_rate=settings.get('sample_rate', SAMPLE_RATE))

    def validation_set():
        epoch = best_of(read_rows(exp_dir / 'result.csv')) + 1
        return predictions_section(read_evaluated(
            exp_dir, settings, 'data_val', f'predictions_{epoch}', 'target'), show)

    def test_set():
        return predictions_section(read_evaluated(
            exp_dir, settings, 'data_eval', 'eval_predictions', 'eval_targets'), show)

    sections = [section('Results', scores_table, exp_dir, settings),
                section('Curves', curves, exp_dir),
                section('Epochs', epochs_table, exp_dir, settings),
                section('Validation set, best epoch', validation_set)]
    if (exp_dir / 'eval_result.csv').exists():
        sections.append(section('Test set, best epoch', test_set))
    sections += [section('Time and machine', machine_tables, exp_dir),
                 section('Settings', settings_tables, settings)]
    return page(f'{settings["dataset"]}: AST {settings["model_size"]}',
                state_of(exp_dir, settings), sections, now())


def fold_page(exp_dir: Path, folds: list[Path], embed_audio: bool = False) -> str:
    """Return the report over folds as HTML.

    Args:
        exp_dir: it has result.csv and curves.png of the mean over the folds.
        folds: directories in exp_dir.
        embed_audio: as in write_report.
    """
    settings = [read_settings(fold) for fold in folds]
    common = common_settings(settings)
    show = functools.partial(with_player, folder=exp_dir, embed=embed_audio,
                             sample_rate=common.get('sample_rate', SAMPLE_RATE))
    epoch = best_of(read_rows(exp_dir / 'result.csv')) + 1

    def all_clips():
        parts = [read_evaluated(fold, one, 'data_val',
                                f'predictions_{epoch_or_last(fold, epoch)}', 'target')
                 for fold, one in zip(folds, settings)]
        return predictions_section(Evaluated(
            parts[0].names, [clip for part in parts for clip in part.clips],
            np.concatenate([part.predictions for part in parts]),
            np.concatenate([part.targets for part in parts]), parts[0].loss), show)

    return page(
        f'{common["dataset"]}: AST {common["model_size"]}, {len(folds)} folds',
        f'Best epoch of the mean: {epoch}.',
        [section('Folds', folds_table, folds, common['metrics'], epoch),
         section('Curves, mean of the folds', curves, exp_dir),
         section('Epochs, mean of the folds', epochs_table, exp_dir, common),
         section(f'All clips, epoch {epoch}', all_clips),
         section('Settings of all folds', settings_tables, common)], now())


def curves(exp_dir: Path) -> str:
    """Return curves.png as HTML that holds the picture itself."""
    png = (exp_dir / 'curves.png').read_bytes()
    return picture(png, 'loss, metric and learning rate over the epochs')
