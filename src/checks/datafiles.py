"""Check datafiles and everything that they list."""
import itertools
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from audio.fbank import SAMPLE_RATE
from checks.entries import (
    Entry,
    check_entries,
    check_weights,
    count_labels,
    excerpts_of,
    find_leaks,
    repeated,
    video_id,
)
from checks.problems import BAD_AUDIO, PROBLEMS, STOPS
from checks.recordings import (
    Excerpt,
    Finding,
    check_recordings,
    count_recordings,
    examine,
    group_by_recording,
    within,
)
from checks.segments import check_segments
from utilities.datafiles import read_entries
from utilities.errors import DataError
from utilities.labels import Labels
from utilities.parallel import available_cores, parallel_map
from utilities.segments import Segment

logger = logging.getLogger(__name__)


def check(datafiles: Iterable[Any], labels: Labels, audio_length: int,
          segments: list[Segment] | None = None, sample_rate: int = SAMPLE_RATE) -> dict[str, Any]:
    """Check datafiles and everything that they list.

    Args:
        datafiles: paths.
        labels: of the label file.
        audio_length: frames of the model's input.
        segments: a list to compare the entries with.
        sample_rate: of the model, in Hz.

    Returns:
        A dict for JSON. `would_train` says whether training would run. Bad audio does not count
        there: training replaces it, up to --max_bad_audio of an epoch, but validation and test stop
        at it. `stops` says what would stop training. `bad_audio` says which datafiles list
        recordings that cannot be used.
    """
    entries_of, reports, stops, bad_audio = {}, [], [], []
    for path in dict.fromkeys(map(str, datafiles)):
        try:
            entries_of[path] = read_entries(path)
        except DataError as error:
            stops.append(str(error))
    findings = examine_all(itertools.chain(*map(excerpts_of, entries_of.values())))
    for path, entries in entries_of.items():
        report = check_datafile(path, entries, findings, labels, audio_length, segments,
                                sample_rate)
        reports.append(report)
        stops += describe_problems(report, STOPS)
        bad_audio += describe_problems(report, BAD_AUDIO)
    return {'would_train': not stops, 'stops': stops, 'bad_audio': bad_audio,
            'audio_length': audio_length, 'datafiles': reports, 'leaks': find_leaks(entries_of)}


def examine_all(excerpts: Iterable[Excerpt]) -> dict[Excerpt, Finding]:
    """Read every recording once, on all cores. Return what was found of each excerpt."""
    groups = group_by_recording(dict.fromkeys(excerpts))
    logger.info('reading %d recordings with %d cores', len(groups), available_cores())
    found = parallel_map(examine, groups, 'reading recordings')
    return {excerpt: finding for group, its_findings in zip(groups, found)
            for excerpt, finding in zip(group, its_findings)}


def check_datafile(path: str, entries: list[Entry], findings: Mapping[Excerpt, Finding],
                   labels: Labels, audio_length: int, segments: list[Segment] | None,
                   sample_rate: int) -> dict[str, Any]:
    """Return everything about one datafile, for JSON. The arguments are those of `check`."""
    entry_problems, unknown_mids = check_entries(entries, labels.index())
    excerpts = excerpts_of(entries)
    heard = {excerpt: within(findings[excerpt], excerpt) for excerpt in excerpts}
    problems = {**entry_problems, **check_recordings(heard, sample_rate),
                'repeated_wavs': repeated(map(str, excerpts)),
                'repeated_video_ids': repeated(map(video_id, entries))}
    if segments is not None:
        problems |= check_segments(entries, segments, findings)
    return {'path': str(path), 'samples': len(entries),
            **count_recordings(heard.values(), audio_length, sample_rate),
            **count_labels(entries, labels),
            'unknown_mids': unknown_mids, 'weight_file': check_weights(path, len(entries)),
            'segments': len(segments) if segments is not None else None, 'problems': problems}


def describe_problems(report: Mapping[str, Any], severity: str) -> list[str]:
    """Return how many problems of a severity a datafile has: a list of one sentence, or empty."""
    counts = [f'{len(report["problems"][name])} {what}'
              for name, (its_severity, what) in PROBLEMS.items()
              if its_severity == severity and report['problems'].get(name)]
    return [f'{report["path"]} has {", ".join(counts)}'] if counts else []
