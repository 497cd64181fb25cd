"""Check recordings: read each from the first to the last sample, and say what is wrong or odd."""
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from audio import shards
from audio.fbank import count_frames
from audio.info import AudioInfo, inspect_parts
from audio.reading import TOO_LOUD, AudioError
from checks.problems import SILENCE, no_problems
from utilities.datafiles import WHOLE_RECORDING

LATE_SECONDS = 0.1  # by which an entry may end after its recording: rounding


class Excerpt(NamedTuple):
    """The part of a recording that an entry lists: at most `seconds` from `start` on."""
    wav: str  # an absolute path
    start: float = WHOLE_RECORDING[0]
    seconds: float = WHOLE_RECORDING[1]

    def __str__(self) -> str:
        return f'{self.wav} from {self.start:.10g} s' if self.start else self.wav


class Unusable(NamedTuple):
    """A recording that cannot be used.

    Attributes:
        problem: why not, a key of PROBLEMS that is BAD_AUDIO.
        reason: more about it.
    """
    problem: str
    reason: str = ''


Finding = AudioInfo | Unusable  # what reading a recording has shown


def group_by_recording(excerpts: Iterable[Excerpt]) -> list[list[Excerpt]]:
    """Return excerpts in groups of one recording each, in the order of their first ones."""
    groups: dict[str, list[Excerpt]] = {}
    for excerpt in excerpts:
        groups.setdefault(excerpt.wav, []).append(excerpt)
    return list(groups.values())


def examine(excerpts: Sequence[Excerpt]) -> list[Finding]:
    """Read a whole recording once. Measure its loudness in each of some excerpts of it."""
    wav = excerpts[0].wav
    try:
        if not shards.is_file(wav):
            return [Unusable('missing')] * len(excerpts)
    except shards.ShardError as error:
        return [Unusable('shards', str(error))] * len(excerpts)
    try:
        if place := shards.split_path(wav):
            shards.verify_checksum(*place)
        found = inspect_parts(wav, [(excerpt.start, excerpt.seconds) for excerpt in excerpts])
    except (AudioError, shards.ShardError) as error:
        return [Unusable('unreadable', str(error))] * len(excerpts)
    return list(map(_judge, found))


def _judge(found: AudioInfo) -> Finding:
    """Return what was found of an excerpt, or why it cannot be used."""
    if not found.samples:
        return Unusable('empty')
    if not math.isfinite(found.mono_peak):
        return Unusable('non_finite')
    return found


def within(finding: Finding, excerpt: Excerpt) -> Finding:
    """Return a finding whose length and damage are those of the excerpt, not of the recording.

    The peaks are those of the excerpt already: see examine.
    """
    if isinstance(finding, Unusable) or (excerpt.start, excerpt.seconds) == WHOLE_RECORDING:
        return finding
    end = excerpt.start + excerpt.seconds
    samples = math.ceil((min(finding.seconds, end) - excerpt.start) * finding.sample_rate)
    if samples <= 0:
        return Unusable('past_end')
    ends_early = finding.incomplete_from is not None and finding.incomplete_from < end
    incomplete_from = finding.incomplete_from if ends_early else None
    return finding._replace(samples=samples, incomplete_from=incomplete_from)


def frames_of(found: AudioInfo, sample_rate: int) -> int:
    """Return how many frames the fbank of a recording has, resampled to sample_rate (Hz)."""
    return count_frames(math.ceil(found.samples * sample_rate / found.sample_rate), sample_rate)


def check_recordings(findings: Mapping[Excerpt, Finding], sample_rate: int
                     ) -> dict[str, list[str]]:
    """Return the paths of recordings by what is wrong with them, a key of PROBLEMS."""
    problems = no_problems('shards', 'missing', 'unreadable', 'empty', 'non_finite', 'past_end',
                           'shortened', 'incomplete', 'too_loud', 'cancelling', 'silent',
                           'too_short')
    for excerpt, finding in findings.items():
        if isinstance(finding, Unusable):
            problems[finding.problem].append(finding.reason or str(excerpt))
        else:
            for problem, text in _oddities(excerpt, finding, sample_rate):
                problems[problem].append(text)
    # A shard is listed once, however many recordings it has.
    problems['shards'] = [f'{reason} ({count} recordings)'
                          for reason, count in Counter(problems['shards']).items()]
    return problems


def _oddities(excerpt, found, sample_rate):
    """Yield what is odd about a recording that can be used: a key of PROBLEMS and a text."""
    path = str(excerpt)
    if math.isfinite(excerpt.seconds) and found.seconds < excerpt.seconds - LATE_SECONDS:
        yield 'shortened', f'{path} ({found.seconds:.2f} s are there)'
    if found.incomplete_from is not None:
        yield 'incomplete', f'{path} (from {found.incomplete_from:.2f} s on)'
    if found.mono_peak > TOO_LOUD:
        yield 'too_loud', path
    if found.mono_peak < SILENCE:
        yield ('silent' if found.peak < SILENCE else 'cancelling'), path
    if not frames_of(found, sample_rate):
        yield 'too_short', path


def count_recordings(findings: Iterable[Finding], audio_length: int, sample_rate: int
                     ) -> dict[str, Any]:
    """Count recordings by rate, channels and length.

    Args:
        audio_length: frames of the model's input.
        sample_rate: of the model, in Hz.
    """
    listed = list(findings)
    usable = [finding for finding in listed if not isinstance(finding, Unusable)]
    rates = Counter(found.sample_rate for found in usable)
    channels = Counter(found.channels for found in usable)
    seconds = [found.seconds for found in usable]
    frames = [frames_of(found, sample_rate) for found in usable]
    return {
        'recordings': len(listed),
        'sample_rate': sample_rate,
        'sample_rates': dict(sorted(rates.items())),
        'channels': dict(sorted(channels.items())),
        'seconds': {'min': min(seconds), 'median': statistics.median(seconds),
                    'max': max(seconds)} if seconds else None,
        'shorter_than_window': sum(count < audio_length for count in frames),
        'longer_than_window': sum(count > audio_length for count in frames)}
