"""Recordings that cannot be read: in training, another sample takes the place of each."""
import logging

from torch.utils.data import Dataset

from audio.augmentation import Augmentation, draw_augmentation
from audio.reading import AudioError
from dataloader import AudiosetDataset, SampleKey
from training import processes

MOST_ATTEMPTS = 20  # at a sample, with another recording each time

logger = logging.getLogger(__name__)


class ReplaceUnreadable(Dataset):
    """A training set in which another sample takes the place of one that cannot be read.

    dataset[SampleKey] is (sample, reasons). The reasons are messages about the recordings that were
    tried before and could not be read, [] if there were none.
    """

    def __init__(self, dataset: AudiosetDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: SampleKey) -> tuple[tuple, list[str]]:
        try:
            return self.dataset[key], []
        except AudioError as error:
            return self._replace(key, str(error))

    def _replace(self, key, reason):
        """Return another sample, and the reasons why recordings were left out."""
        reasons = [reason]
        for attempt in range(1, MOST_ATTEMPTS):
            try:
                return self.dataset.make_sample(*self.draw_replacement(key, attempt)), reasons
            except AudioError as error:
                reasons.append(str(error))
        raise AudioError(f'{MOST_ATTEMPTS} recordings in a row could not be read, the last one: '
                         f'{reasons[-1]}; src/check_data.py checks all of them')

    def draw_replacement(self, key: SampleKey, attempt: int) -> tuple[int, Augmentation]:
        """Draw another recording, each as likely as the others, and its augmentation."""
        rng = key.make_generator(attempt)
        index = int(rng.integers(len(self)))
        return index, draw_augmentation(rng, self.dataset.conf, len(self))

    def collate(self, items):
        """Make (batch, replaced). replaced has the reasons of each sample that was replaced."""
        samples, reasons = zip(*items, strict=True)
        return self.dataset.collate(samples), [one for one in reasons if one]


class BadAudio:
    """Counts the samples that were replaced, and logs each reason once.

    Attributes:
        count: samples replaced in the epoch under way, in this process.
        reasons: one message for each recording that could not be read since this process started.
            They are the keys, in the order in which they came.
    """

    def __init__(self) -> None:
        self.count = 0
        self.reasons: dict[str, None] = {}

    def total(self) -> int:
        """Return the count of all processes. All of them call this."""
        return int(processes.gather_numbers(self.count).sum())

    def note(self, replaced: list[list[str]]) -> None:
        """Count the samples of a batch that were replaced, given the reasons of each."""
        self.count += len(replaced)
        for reason in (reason for reasons in replaced for reason in reasons):
            if reason not in self.reasons:
                self.reasons[reason] = None
                logger.warning('%s: another sample takes its place', reason)

    def state_dict(self) -> dict[str, int]:
        """Return what a checkpoint keeps. All processes call this."""
        return {'count': self.total()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go back to a state_dict, which any number of processes may have made."""
        self.count = state['count'] if processes.is_main() else 0
