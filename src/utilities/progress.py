"""How far a loop is: a progress bar on a terminal, plain lines in a log file."""
import logging
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, TypeVar

from tqdm import tqdm

LONG_BATCH = 100  # items; a batch of at least as many shows how many of them are done

logger = logging.getLogger(__name__)

Item = TypeVar('Item')


class TimedBatches:
    """Iterate over batches, and measure how long the loop waits for them.

    The first batch does not count: workers start for it.

    Attributes:
        seconds: waited so far.
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches = batches
        self.seconds = 0.0
        self.start: float | None = None  # when the first batch came

    def __iter__(self) -> Iterator[Any]:
        asked = time.monotonic()
        for batch in self.batches:
            now = time.monotonic()
            if self.start is None:
                self.start = now
            else:
                self.seconds += now - asked
            yield batch
            asked = time.monotonic()

    @property
    def share(self) -> float:
        """The share of the time since the first batch that was spent waiting, from 0 to 1."""
        if self.start is None or not self.seconds:
            return 0.0
        return self.seconds / (time.monotonic() - self.start)


class Progress:
    """Count batches and their samples; `report` shows values, speed and the time left.

    Use it as a context manager.

    Args:
        title: what is under way.
        batches: how many there are.
        done: how many of them an earlier start has done.
        unit: what they are called.
    """

    def __init__(self, title: str, batches: int, done: int = 0, unit: str = 'batch') -> None:
        self.title, self.batches = title, batches
        self.before = self.done = done
        self.samples = 0
        self.start = time.monotonic()
        # If there are several processes, only the main one logs at this level. It shows the bar.
        is_quiet = not logger.isEnabledFor(logging.INFO)
        self.bar = tqdm(total=batches, desc=title, unit=unit, initial=done, leave=False,
                        disable=is_quiet or None)  # None: show it on a terminal only

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self.bar.close()

    def advance(self, samples: int) -> None:
        """Note that a batch with this number of samples is done."""
        self.done += 1
        self.samples += samples
        self.bar.update()

    def within(self, items: Iterable[Item], count: int, name: str) -> Iterator[Item]:
        """Yield the items of a batch, and show how many of `count` are done if it is a long one."""
        for index, item in enumerate(items, 1):
            if count >= LONG_BATCH and not self.bar.disable:
                self.bar.set_postfix_str(f'{name} {index} of {count}' if index < count else '')
            yield item

    @property
    def speed(self) -> float:
        """Samples a second so far."""
        return self.samples / max(time.monotonic() - self.start, 1e-9)

    def report(self, **values: str) -> None:
        """Show values (name=text) and the speed: beside the bar, or as a line of the log."""
        seconds = time.monotonic() - self.start
        text = ', '.join(f'{name} {value}' for name, value in values.items())
        speed = f'{self.speed:.1f} samples/s'
        if not self.bar.disable:
            self.bar.set_postfix_str(f'{text}, {speed}')
            return
        per_batch = seconds / (self.done - self.before)
        left = timedelta(seconds=round(per_batch * (self.batches - self.done)))
        logger.info('%s, step %d of %d: %s, %s, %s left', self.title, self.done, self.batches,
                    text, speed, left)
