"""The checkpoint of a run: everything it needs to continue as if it had never stopped."""
import time
from pathlib import Path
from typing import Any, Protocol

import torch

from models.atomic import atomic_write
from models.state_dicts import load_tensors, reason_of
from training.errors import out_of_memory
from training.processes import main_process_only, on_main, rank

OPTIONAL_PARTS = ('bad_audio',)  # missing in checkpoints of earlier versions


class CheckpointError(RuntimeError):
    """A checkpoint that a run cannot continue from. The message names the file and what to do."""


class Stateful(Protocol):
    """Something with a state of tensors, numbers, texts, lists and dicts."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state."""


class Checkpoint:
    """The file checkpoint.pth with the state of several objects. It is whole or not there.

    The main process writes it, all processes read it.

    Args:
        exp_dir: folder of the experiment.
        minutes: how often it is due.
        parts: the objects, by name. All processes have the same.
    """

    def __init__(self, exp_dir: str | Path, minutes: float, **parts: Stateful):
        self.path = Path(exp_dir) / 'checkpoint.pth'
        self.interval = 60 * minutes
        self.parts = parts
        self.written_at = time.monotonic()

    def is_due(self) -> bool:
        """Return whether the last one is older than the interval."""
        return time.monotonic() - self.written_at >= self.interval

    def save(self) -> None:
        """Write the state of all parts. The checkpoint before stays until the new one is whole.

        All processes call this, and continue when it is written.
        """
        self._write({name: part.state_dict() for name, part in self.parts.items()})
        self.written_at = time.monotonic()

    @main_process_only
    def _write(self, state):
        with atomic_write(self.path) as partial:
            torch.save(state, partial)

    def restore(self) -> bool:
        """Load the state of all parts, if there is a checkpoint. All processes call this.

        Returns:
            Whether there is one.

        Raises:
            CheckpointError: if the checkpoint is broken, or a file that it needs is broken or
                missing; if only the main process sees it; or if it holds code, which is not run.
        """
        if not on_main(self.path.exists):
            return False
        if not self.path.exists():
            raise CheckpointError(f'{self.path} is there for the main process, but not for number '
                                  f'{rank()}: --exp_dir must be in a folder that all machines '
                                  f'share')
        try:
            state = load_tensors(self.path)
            for name, part in self.parts.items():
                if name in state or name not in OPTIONAL_PARTS:
                    part.load_state_dict(state[name])
        except Exception as error:
            # A part may raise nearly any error if the state is that of something else.
            if out_of_memory(error):
                raise  # the checkpoint is not broken: starting again would not help
            raise CheckpointError(f'cannot continue from {self.path}: {reason_of(error)}; '
                                  f'--resume none starts again') from None
        return True
