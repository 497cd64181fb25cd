"""Between two steps: save checkpoints that are due, stop on a signal or on too much bad audio."""
from collections.abc import Callable, Iterator

from training import processes
from training.checkpoint import Checkpoint
from training.errors import TrainingError
from training.interrupt import Interrupt
from training.trainer import Trainer
from utilities.formatting import shortened

LISTED = 50  # recordings in a message


class Interrupted(Exception):
    """A run that was asked to stop. Its checkpoint holds all that it has trained."""


class Supervisor:
    """Looks after a run between its steps: writes checkpoints that are due, and stops the run.

    A run stops if a signal asks any of its processes to, and if too many samples of an epoch were
    replaced because their recordings cannot be read. All processes call the methods, equally often.

    Args:
        trainer: if its loss is not finite, no checkpoint is saved.
        train_loader: its bad_audio counts the samples that were replaced.
        checkpoint: the checkpoint of the run.
        interrupt: knows whether a signal has come.
    """

    def __init__(self, trainer: Trainer, train_loader, checkpoint: Checkpoint,
                 interrupt: Interrupt):
        self.trainer = trainer
        self.settings = trainer.settings
        self.train_loader = train_loader
        self.bad_audio = train_loader.bad_audio
        self.checkpoint = checkpoint
        self.interrupt = interrupt
        self.sums = processes.DelayedSum()

    def after_step(self) -> None:
        """Write a checkpoint if it is due, and stop the run if there is a reason.

        Raises:
            Interrupted: if a signal came.
            TrainingError: if too many samples were replaced.
        """
        is_due = processes.is_main() and self.checkpoint.is_due()
        stop, replaced, due = self.sums(self.interrupt.requested, self.bad_audio.count, is_due)
        self._limit_bad_audio(replaced)
        if stop or due:
            self._save()
        if stop:
            raise Interrupted

    def after_epoch(self) -> int:
        """Return how many samples of the epoch were replaced.

        Raises:
            TrainingError: if they are too many.
        """
        replaced = self.bad_audio.total()
        self._limit_bad_audio(replaced)
        return replaced

    def watch(self, loader, save_on_signal: bool) -> 'WatchedLoader':
        """Return a loader of the same batches that ends the evaluation if a stop signal comes.

        The next start then repeats the whole evaluation.

        Args:
            loader: a loader of the set to evaluate.
            save_on_signal: whether to write a checkpoint before the run stops. It must be False if
                the model holds other weights than those that are trained.
        """
        return WatchedLoader(loader, lambda: self._after_evaluated_batch(save_on_signal))

    def _after_evaluated_batch(self, save_on_signal):
        """Raise Interrupted if a signal came. If save_on_signal, write a checkpoint before."""
        # Three numbers, since the sums that come back may be those of the last after_step.
        stop, _, _ = self.sums(self.interrupt.requested, 0, False)
        if stop:
            if save_on_signal:
                self.checkpoint.save()
            self.sums.reset()
            raise Interrupted

    def _save(self):
        """Write a checkpoint. Raise TrainingError instead if the loss is not finite."""
        self.trainer.loss.mean()
        self.checkpoint.save()
        self.sums.reset()

    def _limit_bad_audio(self, replaced):
        """Write a checkpoint and raise TrainingError if more samples were replaced than allowed."""
        limit = self.settings.max_bad_audio
        if replaced <= limit * len(self.train_loader.dataset):
            return
        self._save()
        found = shortened(self.bad_audio.reasons, LISTED, separator='; ')
        found = found or 'other processes or starts have logged them'
        raise TrainingError(
            f'{replaced} samples of epoch {self.trainer.epoch} so far could not be read, more than '
            f'--max_bad_audio {limit:g} of an epoch; src/check_data.py finds all such '
            f'recordings, and with a higher --max_bad_audio the run continues; {found}')


class WatchedLoader:
    """A loader that calls a function after each batch, equally often in all processes."""

    def __init__(self, loader, after_batch: Callable[[], None]):
        self.loader = loader
        self.after_batch = after_batch

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator:
        most_batches = int(processes.gather_numbers(len(self.loader)).max())
        for batch in self.loader:
            yield batch
            self.after_batch()
        for _ in range(len(self.loader), most_batches):  # what a process with fewer batches lacks
            self.after_batch()
