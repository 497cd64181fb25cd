"""The checkpoint of a run that is under way: everything it needs to go on as if it had never stopped."""
import time
from pathlib import Path

import torch

from models.files import atomic_write


class Checkpoint:
    """One file in exp_dir, whole or not there, that holds the state of several objects.

    exp_dir: directory of the experiment. minutes: how often it is due. parts: name -> object with state_dict() and
    load_state_dict(), made of tensors, numbers, texts, lists and dicts.
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
        """Write the state of all parts; the checkpoint before stays until the new one is whole."""
        with atomic_write(self.path) as partial:
            torch.save({name: part.state_dict() for name, part in self.parts.items()}, partial)
        self.written = time.monotonic()

    def restore(self):
        """Load the state of all parts where there is a checkpoint. Returns whether there is one."""
        if not self.path.exists():
            return False
        state = torch.load(self.path, map_location='cpu', weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        return True

    def remove(self):
        """Delete the file."""
        self.path.unlink(missing_ok=True)
