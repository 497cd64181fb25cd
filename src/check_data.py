"""Check datafiles before training: entries, recordings from the first to the last sample, labels, weights, leaks.

Exits with 0 where every entry could be used, in training, validation and evaluation, with 1 where not; the last line
says why.
"""
import itertools
import json
import logging
import math
import os
import statistics
import sys
from collections import Counter
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

from audio import shards
from audio.fbank import SAMPLE_RATE, count_frames
from audio.reading import TOO_LOUD, AudioError, Survey, survey
from utilities.cli import OptionParser, exit_on, frames, setup_logging, whole
from utilities.datafiles import (
    WHOLE_RECORDING,
    entry_problem,
    entry_window,
    is_text,
    read_entries,
    split_labels,
    window_problem,
)
from utilities.errors import DataError
from utilities.labels import read_labels
from utilities.parallel import available_cores, parallel_map
from utilities.places import (
    START_TOLERANCE,
    TOLERANCE,
    PlaceError,
    RecordingName,
    find_place,
    is_short,
    parse_name,
)
from utilities.segments import read_segments
from utilities.weight_files import read_sample_weights, weight_file

LATE_SECONDS = 0.1  # by which an entry may end after its recording: rounding
SILENCE = 1e-4  # of full scale; a recording whose peak is lower is called silent
STOPS, BAD_AUDIO, WARNING = 'STOPS TRAINING', 'BAD AUDIO', 'warning'
WHAT_BECOMES_OF_BAD_AUDIO = ('replaced by others in training, up to --max_bad_audio of an epoch; an error in '
                             'validation and evaluation')
# What is listed by name: how bad it is, and what it is.
PROBLEMS = {
    'malformed': (STOPS, 'malformed entries'),
    'unknown_labels': (STOPS, 'entries with labels that are not in the label file'),
    'shards': (BAD_AUDIO, 'shards that are missing or cannot be read'),
    'missing': (BAD_AUDIO, 'missing recordings'),
    'unreadable': (BAD_AUDIO, 'recordings that cannot be decoded'),
    'empty': (BAD_AUDIO, 'recordings without samples'),
    'non_finite': (BAD_AUDIO, 'recordings with NaN or infinite samples'),
    'past_end': (BAD_AUDIO, 'entries that begin after the end of their recordings'),
    'shortened': (WARNING, 'entries that end after their recordings, of which the rest would be used'),
    'incomplete': (WARNING, 'recordings that end before their header says or are damaged, of which '
                            'the beginning would be used'),
    'too_loud': (WARNING, f'recordings past full scale (peak above {TOO_LOUD:g} times it), as if '
                          f'16-bit numbers were stored as floats'),
    'cancelling': (WARNING, 'recordings whose channels cancel each other out (opposite phase): the '
                            'model hears their mean, which is silent'),
    'silent': (WARNING, f'silent recordings (peak below {SILENCE:g})'),
    'too_short': (WARNING, 'recordings shorter than one frame of 25 ms'),
    'repeated_wavs': (WARNING, 'recordings listed more than once'),
    'repeated_video_ids': (WARNING, 'video ids listed more than once'),
    'segments_missing': (WARNING, 'segments of the list that the datafile lacks'),
    'segments_not_listed': (WARNING, 'entries that are not in the segment list, by video_id'),
    'segments_other_labels': (WARNING, 'entries with other labels than in the segment list'),
    'segments_elsewhere': (WARNING, 'entries that do not begin with their segment, or may not'),
    'segments_short': (WARNING, f'entries more than {TOLERANCE:g} s shorter than their segment'),
}

logger = logging.getLogger(__name__)


class Sample(NamedTuple):
    """What an entry has of a recording: from `start` on, at most so many seconds."""
    wav: str  # an absolute path
    start: float
    seconds: float

    def __str__(self):
        return f'{self.wav} from {self.start:.10g} s' if self.start else self.wav


class Recording(NamedTuple):
    """What reading one file has shown.

    problem: a key of PROBLEMS that is BAD_AUDIO, or None; reason: more of it. found: a Survey of
    the file if there is no problem.
    """
    problem: str | None
    reason: str = ''
    found: Survey | None = None

    @property
    def frames(self):
        """Frames of its fbank."""
        return count_frames(math.ceil(self.found.samples * SAMPLE_RATE / self.found.sample_rate))

    def part(self, start, seconds):
        """Return the Recording of what is heard from `start` on, at most so many seconds of it."""
        if self.problem or (start, seconds) == WHOLE_RECORDING:
            return self
        whole, end = self.found, start + seconds
        samples = math.ceil((min(whole.seconds, end) - start) * whole.sample_rate)
        if samples <= 0:
            return Recording('past_end')
        ends_early = whole.incomplete_from is not None and whole.incomplete_from < end
        return self._replace(found=whole._replace(
            samples=samples, incomplete_from=whole.incomplete_from if ends_early else None))


def examine(path, start=WHOLE_RECORDING[0], seconds=WHOLE_RECORDING[1]):
    """Read an audio file whole. Returns a Recording, which is as loud as the part that is meant."""
    try:
        if not shards.is_file(path):
            return Recording('missing')
    except shards.ShardError as error:
        return Recording('shards', str(error))
    try:
        if place := shards.split(path):
            shards.verify(*place)
        found = survey(path, start=start, seconds=seconds)
    except (AudioError, shards.ShardError) as error:
        return Recording('unreadable', str(error))
    if not found.samples:
        return Recording('empty')
    return Recording(None, '', found) if math.isfinite(found.heard) else Recording('non_finite')


def wav_path(entry):
    """The recording of a datafile's entry as an absolute path, or None where it names none."""
    wav = entry.get('wav') if isinstance(entry, dict) else None
    return os.path.abspath(wav) if is_text(wav) else None


def window(entry):
    """Return where in its recording an entry begins, and its greatest length, in seconds."""
    return WHOLE_RECORDING if window_problem(entry) else entry_window(entry)


def sample_of(entry):
    """Return the Sample that an entry is, or None if it names no recording."""
    wav = wav_path(entry)
    return wav and Sample(wav, *window(entry))


def samples_of(entries):
    """Return the Samples of entries, those that name a recording."""
    return [sample for sample in map(sample_of, entries) if sample]


def examine_sample(sample):
    """Do what `examine` does for a Sample; parallel_map pickles it."""
    return examine(*sample)


def video_id(entry):
    """The video_id of a datafile's entry, or None."""
    return entry.get('video_id') if isinstance(entry, dict) and isinstance(entry.get('video_id'), str) else None


def check_entries(entries, known_mids):
    """Sort the entries that training would refuse by what is wrong, as text; and count the labels nobody knows."""
    problems = {'malformed': [], 'unknown_labels': []}
    unknown = Counter()
    for i, entry in enumerate(entries):
        if problem := entry_problem(entry, known_mids):
            kind = _kind(entry)
            problems[kind].append(f'entry {i}: {problem}')
            if kind == 'unknown_labels':
                unknown.update(mid for mid in split_labels(entry['labels'])
                               if mid not in known_mids)
    return problems, dict(unknown.most_common())


def _kind(entry):
    labels = entry.get('labels') if isinstance(entry, dict) else None
    well_formed = isinstance(labels, str) and entry_problem(entry, split_labels(labels)) is None
    return 'unknown_labels' if well_formed else 'malformed'


def check_recordings(recordings, audio_length):
    """What Sample -> Recording says: lists of problems, counts of rates, channels, lengths.

    audio_length: frames of the window.
    """
    problems = {name: [] for name in (
        'shards', 'missing', 'unreadable', 'empty', 'non_finite', 'past_end', 'shortened',
        'incomplete',        'too_loud', 'cancelling', 'silent', 'too_short')}
    for sample, recording in recordings.items():
        path = str(sample)
        if recording.problem:
            problems[recording.problem].append(recording.reason or path)
            continue
        found = recording.found
        if found.seconds < sample.seconds - LATE_SECONDS and math.isfinite(sample.seconds):
            problems['shortened'].append(f'{path} ({found.seconds:.2f} s are there)')
        if found.incomplete_from is not None:
            problems['incomplete'].append(f'{path} (from {found.incomplete_from:.2f} s on)')
        if found.heard > TOO_LOUD:
            problems['too_loud'].append(path)
        if found.heard < SILENCE:
            problems['silent' if found.peak < SILENCE else 'cancelling'].append(path)
        if not recording.frames:
            problems['too_short'].append(path)
    problems['shards'] = [f'{reason} ({count} recordings)' for reason, count in Counter(problems['shards']).items()]
    sound = [recording for recording in recordings.values() if recording.problem is None]
    seconds = [recording.found.seconds for recording in sound]
    return problems, {
        'recordings': len(recordings),
        'sample_rates': dict(sorted(Counter(one.found.sample_rate for one in sound).items())),
        'channels': dict(sorted(Counter(one.found.channels for one in sound).items())),
        'seconds': {'min': min(seconds), 'median': statistics.median(seconds), 'max': max(seconds)} if sound else None,
        'shorter_than_window': sum(recording.frames < audio_length for recording in sound),
        'longer_than_window': sum(recording.frames > audio_length for recording in sound)}


def check_labels(entries, labels):
    """Count the entries that have each label, several and none.

    Those that training would refuse do not count.
    """
    index = labels.index()
    label_sets = [set(split_labels(entry['labels'])) for entry in entries
                  if entry_problem(entry, index) is None]
    counts = Counter(itertools.chain.from_iterable(label_sets))
    return {'labels': dict(counts.most_common()), 'empty_classes': [mid for mid in labels.mids if not counts[mid]],
            'entries_with_several_labels': sum(len(mids) > 1 for mids in label_sets),
            'negatives': sum(not mids for mids in label_sets)}


def check_weights(datafile, samples):
    """The weight file beside a datafile, None where there is none, and why --bal bal would stop at it."""
    path = weight_file(datafile)
    if not path.exists():
        return None
    try:
        read_sample_weights(path, samples)
        return {'path': str(path), 'problem': None}
    except DataError as error:
        return {'path': str(path), 'problem': str(error)}


def check_segments(entries, segments, recordings):
    """Compare a datafile's entries with a list of Segments, by video_id.

    recordings: Sample -> Recording.
    """
    listed = {}
    for segment in segments:
        listed.setdefault(segment.video_id, []).append(segment)
    present = {video_id(entry) for entry in entries}
    problems = {'segments_missing': [f'{segment.video_id} from {segment.start_seconds:g} s' for segment in segments
                                     if segment.video_id not in present],
                'segments_not_listed': [], 'segments_other_labels': [], 'segments_elsewhere': [],
                'segments_short': []}
    for i, entry in enumerate(entries):
        text = f'entry {i}: {video_id(entry) or wav_path(entry) or "no video_id"}'
        if video_id(entry) not in listed:
            problems['segments_not_listed'].append(text)
            continue
        of_video = listed[video_id(entry)]
        labels = set(split_labels(str(entry.get('labels'))))
        if labels not in (set(segment.labels) for segment in of_video):
            problems['segments_other_labels'].append(f'{text} has {entry.get("labels")}')
        recording = recordings.get(sample_of(entry))
        if recording and not recording.problem:
            kind, reason = check_place(entry, of_video, recording.found.seconds)
            if kind:
                problems[kind].append(f'{text}: {reason}')
    return problems


def check_place(entry, segments, seconds):
    """Tell whether an entry is heard from where its segment begins, and as long.

    Args:
        entry: of a datafile.
        segments: those of its video.
        seconds: the length of its recording.

    Returns:
        The key of PROBLEMS and the reason; None, None if there is no problem.
    """
    start, length = window(entry)
    name = parse_name(entry['wav'], {video_id(entry)}) or RecordingName(video_id(entry))
    fitting = [segment for segment in segments
               if name.start is None or name.begins_at(segment.start_seconds)]
    if start:  # says which segment it is, if there are several
        fitting = [segment for segment in fitting
                   if abs(segment.start_seconds - start) <= START_TOLERANCE] or fitting
    if not fitting:
        return 'segments_elsewhere', 'its name has another start than the list'
    segment = fitting[0]
    try:
        place = find_place(segment, seconds, name, len(fitting) > 1)
    except PlaceError as error:
        return 'segments_elsewhere', str(error)
    if abs(place.start - start) > START_TOLERANCE:
        return 'segments_elsewhere', (f'its segment begins after {place.start:g} s, and training '
                                      f'hears it from {start:g} s on: prepare it anew')
    heard = min(seconds - start, length)
    if is_short(segment, heard):
        return 'segments_short', f'{heard:.1f} of {segment.seconds:g} s'
    return None, None


def repeated(values):
    """Those of some values that come more than once; None does not count."""
    return [value for value, count in Counter(values).items() if count > 1 and value is not None]


def check_datafile(path, entries, recordings, labels, audio_length, segments):
    """Everything about one datafile, for JSON. recordings: Sample -> Recording; segments: a list, or None."""
    entry_problems, unknown_mids = check_entries(entries, labels.index())
    samples = samples_of(entries)
    heard = {sample: recordings[sample].part(sample.start, sample.seconds) for sample in samples}
    audio_problems, facts = check_recordings(heard, audio_length)
    problems = {**entry_problems, **audio_problems,
                'repeated_wavs': repeated(map(str, samples)),
                'repeated_video_ids': repeated(map(video_id, entries)),
                **(check_segments(entries, segments, recordings) if segments is not None else {})}
    return {'path': str(path), 'samples': len(entries), **facts, **check_labels(entries, labels),
            'unknown_mids': unknown_mids, 'weight_file': check_weights(path, len(entries)),
            'segments': len(segments) if segments is not None else None, 'problems': problems}


def check_leaks(entries_of):
    """Which recordings and videos two datafiles share. entries_of: path -> entries."""
    leaks = []
    for first, second in itertools.combinations(entries_of, 2):
        shared = {name: sorted(_values(key, entries_of[first]) & _values(key, entries_of[second]))
                  for name, key in (('wavs', wav_path), ('video_ids', video_id))}
        if any(shared.values()):
            leaks.append({'datafiles': [first, second], **shared})
    return leaks


def _values(key, entries):
    return set(map(key, entries)) - {None}


def check(datafiles, labels, audio_length, segments=None):
    """Check datafiles and everything they list. Returns one dict for JSON.

    `would_train`: whether nothing stops training, as long as bad audio stays within --max_bad_audio of an epoch;
    `stops` and `bad_audio`: texts that say what would stop it, and which datafiles list recordings that cannot be used.
    """
    entries_of, reports, stops, bad_audio = {}, [], [], []
    for path in dict.fromkeys(map(str, datafiles)):
        try:
            entries_of[path] = read_entries(path)
        except DataError as error:
            stops.append(str(error))
    samples = list(dict.fromkeys(itertools.chain(*map(samples_of, entries_of.values()))))
    logger.info('reading %d recordings with %d cores', len(samples), available_cores())
    examined = parallel_map(examine_sample, samples, 'reading recordings')
    recordings = dict(zip(samples, examined))
    for path, entries in entries_of.items():
        report = check_datafile(path, entries, recordings, labels, audio_length, segments)
        reports.append(report)
        stops += count_problems(report, STOPS)
        bad_audio += count_problems(report, BAD_AUDIO)
    return {'would_train': not stops, 'stops': stops, 'bad_audio': bad_audio, 'audio_length': audio_length,
            'datafiles': reports, 'leaks': check_leaks(entries_of)}


def count_problems(report, kind):
    """How many problems of a kind (STOPS, ...) a datafile has, as a list of one text, or of none."""
    found = [f'{len(report["problems"][name])} {text}' for name, (its_kind, text) in PROBLEMS.items()
             if its_kind == kind and report['problems'].get(name)]
    return [f'{report["path"]} has {", ".join(found)}'] if found else []


def verdict(result):
    """What `check` has found, as a sentence."""
    parts = []
    if result['bad_audio']:
        parts.append(f'{"; ".join(result["bad_audio"])} ({WHAT_BECOMES_OF_BAD_AUDIO})')
    if result['stops']:
        parts.append(f'training would not run: {"; ".join(result["stops"])}')
    if result['leaks']:
        parts.append('datafiles share recordings or videos (LEAK, above): scores would be too good')
    return '; '.join(parts) or 'training would run with these datafiles'


def describe(report, labels, max_listed):
    """Yield the lines about one datafile."""
    names = dict(zip(labels.mids, labels.names))
    yield f'{report["path"]}: {report["samples"]} samples, {report["recordings"]} recordings'
    if seconds := report['seconds']:
        yield (f'  seconds: shortest {seconds["min"]:.2f}, median {seconds["median"]:.2f}, longest '
               f'{seconds["max"]:.2f}; {report["shorter_than_window"]} shorter than the window (padded), '
               f'{report["longer_than_window"]} longer (cut)')
        others = {rate: count for rate, count in report['sample_rates'].items() if rate != SAMPLE_RATE}
        yield '  sample rates: ' + (f'not {SAMPLE_RATE} Hz: {_counts(others)} (resampled whenever they are read)'
                                    if others else f'all {SAMPLE_RATE} Hz')
        several = {channels: count for channels, count in report['channels'].items() if channels > 1}
        yield '  channels: ' + (f'more than one: {_counts(several)} (averaged)' if several else 'all one')
    yield (f'  labels: {len(report["labels"])} of {len(labels)} classes; {report["entries_with_several_labels"]} '
           f'samples have several, {report["negatives"]} none (negatives); --loss CE needs one'
           + (', and would stop' if report['entries_with_several_labels'] + report['negatives']
              else ''))
    if report['negatives'] and not report['labels']:
        yield '  warning: only negatives: AP, AUC and accuracy on this datafile would be nan'
    yield from _listed('classes with samples, the most frequent first',
                       [f'{names[mid]} ({mid}): {n}' for mid, n in report['labels'].items()], max_listed)
    yield from _listed('classes without samples', [f'{names[mid]} ({mid})' for mid in report['empty_classes']],
                       max_listed)
    yield from _listed('labels that are not in the label file',
                       [f'{mid}: {n}' for mid, n in report['unknown_mids'].items()], max_listed)
    if weights := report['weight_file']:
        yield '  weight file: ' + (f'--bal bal would stop: {weights["problem"]}' if weights['problem'] else 'fits')
    if report['segments'] is not None:
        yield f'  segment list: {report["segments"]} segments'
    for name, items in report['problems'].items():
        yield from _listed(': '.join(PROBLEMS[name]), items, max_listed)


def _counts(counts):
    return ', '.join(f'{value}: {count}' for value, count in counts.items())


def _listed(title, items, max_listed):
    if items:
        yield f'  {title}: {len(items)}'
        yield from (f'    {item}' for item in items[:max_listed])
        if len(items) > max_listed:
            yield f'    ... and {len(items) - max_listed} more (--max_listed, --json)'


def describe_leak(leak, max_listed):
    """Yield the lines about what two datafiles share."""
    yield ' and '.join(leak['datafiles'])
    for name, text in (('wavs', 'recordings'), ('video_ids', 'video ids')):
        yield from _listed(f'warning: LEAK, {text} in both', leak[name], max_listed)


def main(argv=None):
    """Entry point."""
    parser = OptionParser(prog='check_data.py', description=__doc__)
    add = parser.add_argument
    add('datafiles', nargs='+', help='datafiles to check: training, validation, evaluation set')
    add('--label_csv', required=True, help='label file: index,mid,display_name')
    add('--audio_length', type=frames, default=1024, help='frames of 10 ms of the input')
    add('--segments', help='segment list to hold the datafiles against: clips, labels, and whether '
                           'recordings begin with their segments')
    add('--max_listed', type=whole(0), default=10, help='how many of each kind to list')
    add('--json', action='store_true', help='print everything as JSON')
    args = parser.parse_args(argv)
    setup_logging()
    with exit_on(BrokenProcessPool, DataError):
        labels = read_labels(args.label_csv)
        segments = read_segments(args.segments, labels.index()) if args.segments else None
        result = check(args.datafiles, labels, args.audio_length, segments)
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        for report in result['datafiles']:
            print('\n'.join(describe(report, labels, args.max_listed)))
        for leak in result['leaks']:
            print('\n'.join(describe_leak(leak, args.max_listed)))
        print(verdict(result))
    sys.exit(1 if result['stops'] or result['bad_audio'] else 0)


if __name__ == '__main__':
    main()
