"""How far a loop is: a bar on a terminal, plain lines in a log file."""
import logging
import time
from datetime import timedelta

from tqdm import tqdm

LONG = 100  # parts of a batch, from which on they are shown

logger = logging.getLogger(__name__)


class Waiting:
    """Iterate over batches, and note how long the loop waits for them; not for the first one, for which workers start.

    seconds: waited so far; share: of the time since the first batch.
    """

    def __init__(self, batches):
        self.batches, self.seconds, self.start = batches, 0.0, None

    def __iter__(self):
        iterator = iter(self.batches)
        asked = time.monotonic()
        for batch in iterator:
            now = time.monotonic()
            if self.start is None:
                self.start = now
            else:
                self.seconds += now - asked
            yield batch
            asked = time.monotonic()

    @property
    def share(self):
        """From 0 to 1."""
        return self.seconds / (time.monotonic() - self.start) if self.seconds else 0.0


class Progress:
    """Count batches and the samples in them; `report` shows values, samples per second and the time left.

    title: what is under way; batches: how many there are; done: how many of them an earlier start has done; unit:
    what they are called. Use as a context manager.
    """

    def __init__(self, title, batches, done=0, unit='batch'):
        self.title, self.batches, self.before = title, batches, done
        self.done, self.samples = done, 0
        self.start = time.monotonic()
        quiet = not logger.isEnabledFor(logging.INFO)  # of several processes, one shows a bar
        self.bar = tqdm(total=batches, desc=title, unit=unit, initial=done, leave=False,
                        disable=quiet or None)  # None: only on a terminal

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()

    def advance(self, samples):
        """Note that a batch of so many samples is done."""
        self.done += 1
        self.samples += samples
        self.bar.update()

    def within(self, items, count, name):
        """Yield items, and show how many of `count` are done if the batch under way is long."""
        for index, item in enumerate(items, 1):
            if count >= LONG and not self.bar.disable:
                self.bar.set_postfix_str(f'{name} {index} of {count}' if index < count else '')
            yield item

    def report(self, **values):
        """Show values (name -> text) beside the speed."""
        seconds = time.monotonic() - self.start
        text = ', '.join(f'{name} {value}' for name, value in values.items())
        speed = f'{self.samples / max(seconds, 1e-9):.1f} samples/s'
        if not self.bar.disable:
            self.bar.set_postfix_str(f'{text}, {speed}')
            return
        left = timedelta(seconds=round(seconds / (self.done - self.before) * (self.batches - self.done)))
        logger.info('%s, step %d of %d: %s, %s, %s left', self.title, self.done, self.batches, text, speed, left)
