"""Check the entries of a datafile: form, labels, weights, and what is listed more than once."""
import itertools
import os
from collections import Counter
from collections.abc import Callable, Container, Hashable, Iterable, Mapping
from typing import Any

from checks.problems import no_problems
from checks.recordings import Excerpt
from utilities.datafiles import (
    WHOLE_RECORDING,
    entry_part,
    entry_problem,
    is_text,
    part_problem,
    split_labels,
)
from utilities.errors import DataError
from utilities.labels import Labels
from utilities.weight_files import read_sample_weights, weight_file

Entry = Any  # of a datafile: a dict, if it is well formed


def wav_path(entry: Entry) -> str | None:
    """Return the absolute path of an entry's recording, or None if it names none."""
    wav: Any = entry.get('wav') if isinstance(entry, dict) else None
    return os.path.abspath(wav) if is_text(wav) else None


def video_id(entry: Entry) -> str | None:
    """Return the video_id of an entry, or None if it has none."""
    value = entry.get('video_id') if isinstance(entry, dict) else None
    return value if isinstance(value, str) else None


def part_of(entry: Entry) -> tuple[float, float]:
    """Return the entry_part of an entry, or WHOLE_RECORDING if the entry is malformed."""
    is_malformed = wav_path(entry) is None or part_problem(entry)
    return WHOLE_RECORDING if is_malformed else entry_part(entry)


def excerpt_of(entry: Entry) -> Excerpt | None:
    """Return the excerpt that an entry lists, or None if it names no recording."""
    wav = wav_path(entry)
    return Excerpt(wav, *part_of(entry)) if wav else None


def excerpts_of(entries: Iterable[Entry]) -> list[Excerpt]:
    """Return the excerpts that entries list."""
    return [excerpt for excerpt in map(excerpt_of, entries) if excerpt]


def check_entries(entries: Iterable[Entry], known_mids: Container[str]
                  ) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Find the entries that training would refuse.

    Returns:
        Texts about them, by key of PROBLEMS; and how often each unknown label occurs.
    """
    problems = no_problems('malformed', 'unknown_labels')
    unknown: Counter[str] = Counter()
    for i, entry in enumerate(entries):
        problem = entry_problem(entry, known_mids)
        if not problem:
            continue
        kind = 'unknown_labels' if _is_well_formed(entry) else 'malformed'
        problems[kind].append(f'entry {i}: {problem}')
        if kind == 'unknown_labels':
            unknown.update(mid for mid in split_labels(entry['labels']) if mid not in known_mids)
    return problems, dict(unknown.most_common())


def _is_well_formed(entry):
    """Return whether an entry would be right if all its labels were known."""
    labels = entry.get('labels') if isinstance(entry, dict) else None
    return isinstance(labels, str) and entry_problem(entry, split_labels(labels)) is None


def count_labels(entries: Iterable[Entry], labels: Labels) -> dict[str, Any]:
    """Count the entries with each label, with several labels and with no label.

    Entries that training would refuse are left out.
    """
    index = labels.index()
    label_lists = [split_labels(entry['labels']) for entry in entries
                   if entry_problem(entry, index) is None]
    counts = Counter(itertools.chain.from_iterable(label_lists))
    return {'labels': dict(counts.most_common()),
            'empty_classes': [mid for mid in labels.mids if not counts[mid]],
            'entries_with_several_labels': sum(len(mids) > 1 for mids in label_lists),
            'negatives': sum(not mids for mids in label_lists)}


def check_weights(datafile: str, samples: int) -> dict[str, Any] | None:
    """Return the path of a datafile's weight file, and why --bal bal would stop at it.

    None if there is no weight file.
    """
    path = weight_file(datafile)
    if not path.exists():
        return None
    try:
        read_sample_weights(path, samples)
    except DataError as error:
        return {'path': str(path), 'problem': str(error)}
    return {'path': str(path), 'problem': None}


def repeated(values: Iterable[Hashable]) -> list:
    """Return the values that come more than once. None does not count."""
    return [value for value, count in Counter(values).items() if count > 1 and value is not None]


def find_leaks(entries_of: Mapping[str, list[Entry]]) -> list[dict[str, Any]]:
    """Return which recordings and videos two datafiles share. entries_of: path -> entries."""
    leaks = []
    for first, second in itertools.combinations(entries_of, 2):
        shared = {name: _shared(key, entries_of[first], entries_of[second])
                  for name, key in (('wavs', wav_path), ('video_ids', video_id))}
        if any(shared.values()):
            leaks.append({'datafiles': [first, second], **shared})
    return leaks


def _shared(key: Callable, first: list[Entry], second: list[Entry]) -> list[str]:
    """Return what two lists of entries have in common, sorted."""
    return sorted((set(map(key, first)) & set(map(key, second))) - {None})
