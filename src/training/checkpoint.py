"""The checkpoint of a run that is under way: everything it needs to go on as if it had never stopped."""
import time
from pathlib import Path

import torch

from models.atomic import atomic_write
from models.state_dicts import load_tensors, reason_of
from training.devices import out_of_memory
from training.processes import on_main, rank

LATER_PARTS = ('bad_audio',)  # which checkpoints of earlier versions lack


class CheckpointError(RuntimeError):
    """A checkpoint that a run cannot go on from; the message names the file and what to do."""


class Checkpoint:
    """One file in exp_dir, whole or not there, that holds the state of several objects.

    exp_dir: directory of the experiment. minutes: how often it is due.The main process writes; all read.
    parts: name -> object with state_dict() and load_state_dict(), made of tensors, numbers, texts, lists and dicts;
    processes other than the main one may have fewer.
    """

    def __init__(self, exp_dir, minutes, **parts):
        self.path = Path(exp_dir) / 'checkpoint.pth'
        self.interval = 60 * minutes
        self.parts = parts
        self.written = time.monotonic()

    def is_due(self):
        """Whether the last one is older than the interval."""
        return time.monotonic() - self.written >= self.interval

    def save(self):
        """Write the state of all parts; the checkpoint before stays until the new one is whole.

        All processes call this, and go on when it is written.
        """
        state = {name: part.state_dict() for name, part in self.parts.items()}
        on_main(lambda: self._write(state))
        self.written = time.monotonic()

    def _write(self, state):
        with atomic_write(self.path) as partial:
            torch.save(state, partial)

    def restore(self):
        """Load the state of all parts where there is a checkpoint. Returns whether there is one.

        Raises CheckpointError if the file, or one that belongs to it, is broken, missing, seen by the main process
        alone, or holds code, which is not run.
        """
        if not on_main(self.path.exists):
            return False
        if not self.path.exists():
            raise CheckpointError(f'{self.path} is there for the main process, but not for number {rank()}: '
                                  f'--exp_dir must be in a folder that all machines share')
        try:
            state = load_tensors(self.path)
            for name, part in self.parts.items():
                if name in state or name not in LATER_PARTS:
                    part.load_state_dict(state[name])
        except Exception as error:  # torch.load, and parts that are given something else, raise nearly anything
            if out_of_memory(error):
                raise  # no reason to start again
            raise CheckpointError(f'cannot go on from {self.path}: {reason_of(error)}; '
                                  f'--resume none starts again') from None
        return True

    def remove(self):
        """Delete the file."""
        self.path.unlink(missing_ok=True)
