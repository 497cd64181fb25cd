"""The folder `tensorboard` of an experiment, for TensorBoard (--tensorboard True)."""
import contextlib
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from training.processes import main_process_only
from training.result_files import result_columns
from training.results import Results
from utilities.errors import warn_only

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardLog:
    """Writes the columns of result.csv and metrics.csv, and samples a second, as scalars.

    A step of TensorBoard is an epoch.

    An experiment may have been killed at any moment, and the log may be switched on late. So the
    first write of a start reads which epochs the log has already.

    Args:
        exp_dir: folder of the experiment.
    """

    def __init__(self, exp_dir: str | Path):
        self.folder = Path(exp_dir) / 'tensorboard'
        self.writer: SummaryWriter | None = None
        self.epochs_written = 0  # valid only while there is a writer

    @main_process_only
    def write(self, results: Results, speed: float | None = None) -> None:
        """Write the epochs that the log lacks. If that fails, warn; the next write tries again.

        Args:
            results: results of all epochs so far.
            speed: samples a second in the training of the last epoch, if it is known.
        """
        epochs = [{**dict(zip(result_columns(results.metric), row)), **further}
                  for row, further in zip(results.rows, results.further_rows)]
        for scalars in epochs:
            scalars.pop('epoch')
        with warn_only(str(self.folder)), no_tracebacks_of_threads():
            try:
                self._write(epochs, speed)
            except Exception:
                self._close()
                raise

    def _write(self, epochs, speed):
        """Write the epochs, each {name: value}, from the first one on that the log lacks."""
        from torch.utils.tensorboard import SummaryWriter
        if self.writer is None:
            self.epochs_written = count_epochs(self.folder, epochs)
            # purge_step: TensorBoard ignores older entries of this epoch and of those after it.
            self.writer = SummaryWriter(str(self.folder), purge_step=self.epochs_written + 1)
        for number in range(self.epochs_written + 1, len(epochs) + 1):
            scalars = epochs[number - 1]
            if speed is not None and number == len(epochs):
                scalars = {**scalars, 'samples per second': speed}
            for name, value in scalars.items():
                self.writer.add_scalar(name, value, number)
        self.writer.flush()
        self.epochs_written = len(epochs)

    def _close(self):
        """End the writer, which may be broken."""
        writer, self.writer = self.writer, None
        if writer is not None:
            with contextlib.suppress(OSError):
                writer.close()


def count_epochs(folder: Path, epochs: list[dict[str, float]]) -> int:
    """Return how many epochs, from the first on, a log holds with all their values.

    Args:
        folder: folder of the log. It may be missing.
        epochs: {name: value} of each.
    """
    if not folder.exists():
        return 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    log = EventAccumulator(str(folder), size_guidance={'scalars': 0}).Reload()
    logged: dict[int, dict[str, float]] = defaultdict(dict)
    for name in log.Tags()['scalars']:
        for event in log.Scalars(name):
            logged[event.step][name] = event.value

    for number, scalars in enumerate(epochs, 1):
        # If a value is missing, `values` is shorter than `expected`, so they are not equal.
        values = [logged[number][name] for name in scalars if name in logged[number]]
        expected = np.array([*scalars.values()], np.float32)  # as events keep them
        if not np.array_equal(values, expected, equal_nan=True):
            return number - 1
    return len(epochs)


@contextlib.contextmanager
def no_tracebacks_of_threads() -> Iterator[None]:
    """Keep threads from printing tracebacks: the writer's thread passes its errors on, too."""
    hook, threading.excepthook = threading.excepthook, lambda _: None
    try:
        yield
    finally:
        threading.excepthook = hook
