"""Signals that ask a run to stop: before training at once, in training after the current step."""
import contextlib
import logging
import signal
import sys
from typing import Self

# Slurm sends SIGTERM at the end of a job and SIGUSR1 some time before; SIGINT is Ctrl-C. Windows
# has no SIGUSR1.
STOP_SIGNALS = tuple(getattr(signal, name) for name in ('SIGTERM', 'SIGINT', 'SIGUSR1')
                     if hasattr(signal, name))
EXIT_CODE = 75  # EX_TEMPFAIL: not done, to be tried again

logger = logging.getLogger(__name__)


class Interrupt:
    """Obeys the signals that ask a run to stop.

    Before training there is nothing to lose, so a signal ends the program, with EXIT_CODE. After
    `let_steps_finish`, it is only noted in `requested`, and training stops after its current step.
    A second Ctrl-C always ends the process.
    """

    def __init__(self) -> None:
        self.requested = False
        self._ends_program = False

    def listen(self) -> Self:
        """Obey the stop signals from now on. Only the main thread may call this."""
        self._ends_program = True
        for number in STOP_SIGNALS:
            signal.signal(number, self._note)
        return self

    def let_steps_finish(self) -> None:
        """Only note the stop signals from now on: training has begun, and looks at `requested`."""
        self._ends_program = False

    def _note(self, number, _):
        is_first = not self.requested
        self.requested = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        when = '' if self._ends_program else ' after this step'
        # The signal may come while another line is being logged. Logging then raises an error here,
        # which must not reach the code that was interrupted.
        with contextlib.suppress(Exception):
            logger.info('%s: stopping%s', signal.Signals(number).name, when)
        # Launchers often send a signal twice. The second one must not disturb the cleaning up.
        if self._ends_program and is_first:
            sys.exit(EXIT_CODE)
