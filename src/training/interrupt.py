"""Signals that ask a run to stop. They are noted at once, and obeyed after the current step."""
import contextlib
import logging
import signal
from typing import Self

# Slurm sends SIGTERM at the end of a job and SIGUSR1 some time before; SIGINT is Ctrl-C. Windows
# has no SIGUSR1.
STOP_SIGNALS = tuple(getattr(signal, name) for name in ('SIGTERM', 'SIGINT', 'SIGUSR1')
                     if hasattr(signal, name))
EXIT_CODE = 75  # EX_TEMPFAIL: not done, to be tried again

logger = logging.getLogger(__name__)


class Interrupt:
    """Notes in `requested` that a stop signal has come. A second Ctrl-C ends the process."""

    def __init__(self) -> None:
        self.requested = False

    def listen(self) -> Self:
        """Note the stop signals from now on. Only the main thread may call this."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._note)
        return self

    def _note(self, number, _):
        self.requested = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        # The signal may come while another line is being logged. Logging then raises an error here,
        # which must not reach the code that was interrupted.
        with contextlib.suppress(Exception):
            logger.info('%s: stopping after this step', signal.Signals(number).name)
