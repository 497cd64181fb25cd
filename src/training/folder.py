"""The folder of an experiment: who may write to it, what it was made with, how far it has come."""
import argparse
import contextlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from models.locks import LockedError, hold_lock
from training import processes
from training.environment import record_start
from training.options import CHECKPOINT_OPTIONS, RESUMABLE_OPTIONS, make_parser
from utilities.errors import DataError, warn_only
from utilities.folders import output_folders
from utilities.texts import read_json, write_json

FINISHED = 'finished'  # the file that marks an experiment that has come to its end
# The file that marks an experiment to be removed and begun again (--resume none). egs/common.sh
# makes it in every fold before the first one starts. So if the recipe is stopped, the next start
# knows which folds still hold the earlier run.
BEGIN_AGAIN = 'begin_again'
# What a training leaves in its folder, for --resume none to remove. If a run writes a file that is
# not named here, a test fails (tests/training/test_resume.py).
FILES = ('args.json', 'checkpoint.pth', FINISHED, 'interrupted', 'result.csv', 'metrics.csv',
         'wa_result.csv', 'eval_result.csv', 'curves.png', 'confusion_matrix.png',
         'class_accuracy.csv', 'environment.json', 'report.html')
FOLDERS = ('models', 'predictions', 'tensorboard')

logger = logging.getLogger(__name__)


def is_finished(exp_dir: Path) -> bool:
    """Return whether an experiment has come to its end, and is not to begin again."""
    return (exp_dir / FINISHED).exists() and not is_to_begin_again(exp_dir)


def is_to_begin_again(exp_dir: Path) -> bool:
    """Return whether --resume none has marked an experiment to be removed and begun again."""
    return (exp_dir / BEGIN_AGAIN).exists()


class ExperimentFolder:
    """The folder --exp_dir, with the settings of the run that is to write to it.

    Its files: `args.json`, the settings; `finished`, if the run has come to its end;
    `interrupted`, if a signal stopped it and it can continue; `begin_again`, if it is to be removed
    and begun again; `checkpoint.pth`.
    """

    def __init__(self, args: argparse.Namespace):
        self.path = Path(args.exp_dir)
        self.args = args

    @contextlib.contextmanager
    def lock(self) -> Iterator[bool]:
        """Make the folder, keep other experiments out of it, and yield whether it has work left.

        The main process holds the lock; all processes call this. A folder in which nothing was
        written is removed again.

        Raises:
            DataError: if another process runs in it, it cannot be written to, or it holds another
                experiment.
        """
        with contextlib.ExitStack() as held:
            def lock_and_look():
                held.enter_context(self._lock())
                return self.has_work_left()

            yield processes.on_main(lock_and_look)

    @contextlib.contextmanager
    def _lock(self):
        with output_folders(self.path), contextlib.ExitStack() as held:
            # An ExitStack, so that errors of the block are not taken for errors of the lock.
            try:
                held.enter_context(hold_lock(self.path / 'lock', wait=False))
            except LockedError:
                raise DataError(f'another process runs in {self.path}: wait for it, or choose '
                                f'another --exp_dir') from None
            except OSError as error:
                raise DataError(f'{self.path} cannot be locked: {error.strerror}') from None
            yield

    def has_work_left(self) -> bool:
        """Return whether there is something to train, and log it if there is nothing.

        Raises:
            DataError: if the folder holds an experiment with other settings, or a finished one
                that is to train for more epochs, but has kept no checkpoint.
        """
        if self.args.resume == 'none' or not (self.path / 'args.json').exists():
            return True
        before = read_json(self.path / 'args.json')
        if not isinstance(before.get('n_epochs'), int):
            raise DataError(f'cannot read {self.path / "args.json"}: it does not say how many '
                            f'epochs there were')
        is_at_its_end = is_finished(self.path) and self.args.n_epochs <= before['n_epochs']
        self._check_settings(before, is_at_its_end)
        if not is_finished(self.path):
            return True

        if is_at_its_end:
            logger.info('%s is finished already', self.path)
            return False
        if not (self.path / 'checkpoint.pth').exists():
            raise DataError(f'{self.path} is finished with --n_epochs {before["n_epochs"]} and '
                            f'kept no checkpoint to continue from (--save_model True keeps it): '
                            f'choose another --exp_dir, or begin again there with --resume none')
        return True

    def _check_settings(self, before, is_at_its_end):
        """Raise DataError if the settings `before` are others, unless --force allows it.

        A run at its end is not trained further, so --force leaves it as it is and says so.
        """
        changed = self._changed_settings(before)
        if not changed:
            return
        listed = ', '.join(f'--{name} {old} -> {new}' for name, (old, new) in changed.items())
        if self.args.force and is_at_its_end:
            logger.warning('%s is finished with other settings (%s) and stays as it is; --resume '
                           'none begins again there', self.path, listed)
            return

        fixed = [f'--{name}' for name in changed if name in CHECKPOINT_OPTIONS]
        if self.args.force and not fixed:
            return
        advice = '--force continues with the new ones'
        if is_at_its_end:
            advice = 'it is finished: --resume none begins again there'
        elif fixed:
            advice = (f'a run that continues cannot change {", ".join(fixed)}, even with --force; '
                      f'--resume none begins again there')
        raise DataError(f'{self.path} holds an experiment with other settings ({listed}); choose '
                        f'another --exp_dir; {advice}')

    def _changed_settings(self, before):
        """Return {name: (old value, new value)} of the settings that change what is computed.

        More epochs are no change: the run continues. DecayToEnd.finish_at then stretches a cosine.
        """
        default = make_parser().get_default  # of an option that is newer than the experiment
        changed = {}
        for name, value in vars(self.args).items():
            old = before.get(name, default(name))
            is_longer = name == 'n_epochs' and value > old
            if name not in RESUMABLE_OPTIONS and old != value and not is_longer:
                changed[name] = old, value
        return changed

    @processes.main_process_only
    def clear_if_asked(self) -> None:
        """With --resume none, remove what an earlier run left."""
        if self.args.resume == 'none':
            self.clear()

    @processes.main_process_only
    def note_start(self, device: torch.device) -> None:
        """Write the settings and the machine of the run that begins, or has resumed.

        Remove the marks of an earlier start (finished, interrupted), its report and the scores of
        its end (wa_result.csv, eval_result.csv), which this run computes again.

        Call it after the checkpoint was accepted: the settings must stay those of the checkpoint.
        """
        write_json(self.path / 'args.json', vars(self.args))
        for name in (FINISHED, 'interrupted', 'report.html', 'wa_result.csv', 'eval_result.csv'):
            (self.path / name).unlink(missing_ok=True)
        with warn_only('environment.json'):
            record_start(self.path, device, processes.size())

    def clear(self) -> None:
        """Remove what an earlier run left. If this is killed, the next start does it again."""
        (self.path / BEGIN_AGAIN).touch()
        for name in FILES:
            (self.path / name).unlink(missing_ok=True)
        for name in FOLDERS:
            shutil.rmtree(self.path / name, ignore_errors=True)
        (self.path / BEGIN_AGAIN).unlink()

    @processes.main_process_only
    def mark_finished(self, seconds: float) -> None:
        """Make the file `finished`, which says how many seconds all starts took together."""
        # report.py may have written one while the run was under way; tidy_up writes the last one.
        (self.path / 'report.html').unlink(missing_ok=True)
        write_json(self.path / FINISHED, {'seconds': round(seconds, 1)})
        self._remove_mark()

    def remove_intermediate(self) -> None:
        """Remove the checkpoint and the models of single epochs, unless --save_model kept them."""
        if not read_json(self.path / 'args.json').get('save_model'):
            (self.path / 'checkpoint.pth').unlink(missing_ok=True)
            for path in (self.path / 'models').glob('audio_model.[0-9]*'):
                path.unlink()

    def mark_interrupted(self) -> None:
        """Make the file `interrupted`: it tells the recipe and people that the run can continue.

        Processes need not wait for each other here: some may be gone.
        """
        if processes.is_main():
            (self.path / 'interrupted').touch()
            self._remove_mark()

    def _remove_mark(self):
        """Remove the mark begin_again, so that the next start does not remove this run.

        A start with --resume none may have made the mark while this run trained.
        """
        (self.path / BEGIN_AGAIN).unlink(missing_ok=True)
