"""Signals that ask a run to stop: noted at once, obeyed after the step that is under way."""
import contextlib
import logging
import signal

# Slurm's end, Ctrl-C, a batch system's early warning, which Windows does not know.
STOP_SIGNALS = tuple(getattr(signal, name) for name in ('SIGTERM', 'SIGINT', 'SIGUSR1')
                     if hasattr(signal, name))
EXIT_CODE = 75  # EX_TEMPFAIL: not done, to be tried again

logger = logging.getLogger(__name__)


class Interrupt:
    """Whether a stop signal has come: `requested`. A second SIGINT ends the process at once."""

    def __init__(self):
        self.requested = False

    def listen(self):
        """Handle the stop signals from now on. Only the main thread may call this."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._note)
        return self

    def _note(self, number, _):
        self.requested = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        # The signal may come while a line is being written: a second one at that place is an error, which what was
        # interrupted would take for its own, and nobody would learn of the signal.
        with contextlib.suppress(Exception):
            logger.info('%s: stopping after this step', signal.Signals(number).name)
