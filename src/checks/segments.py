"""Check a datafile against a segment list: its clips, their labels, and where they begin."""
from collections.abc import Mapping, Sequence

from checks.entries import Entry, excerpt_of, part_of, video_id, wav_path
from checks.problems import no_problems
from checks.recordings import Excerpt, Finding, Unusable
from utilities.datafiles import split_labels
from utilities.places import (
    START_TOLERANCE,
    PlaceError,
    RecordingName,
    find_place,
    is_short,
    parse_name,
)
from utilities.segments import Segment


def check_segments(entries: Sequence[Entry], segments: Sequence[Segment],
                   findings: Mapping[Excerpt, Finding]) -> dict[str, list[str]]:
    """Compare entries with segments of the same video_id.

    Args:
        entries: of a datafile.
        segments: of the list.
        findings: about the recordings of the entries.

    Returns:
        Texts, by key of PROBLEMS.
    """
    problems = no_problems('segments_missing', 'segments_not_listed', 'segments_other_labels',
                           'segments_elsewhere', 'segments_short')
    of_video: dict[str, list[Segment]] = {}
    for segment in segments:
        of_video.setdefault(segment.video_id, []).append(segment)
    present = find_present(entries, of_video)
    problems['segments_missing'] = [
        f'{segment.video_id} from {segment.start_seconds:g} s'
        for segment in segments if segment not in present]
    for i, entry in enumerate(entries):
        text = f'entry {i}: {video_id(entry) or wav_path(entry) or "no video_id"}'
        listed = of_video.get(video_id(entry) or '')
        if listed is None:
            problems['segments_not_listed'].append(text)
            continue
        labels = set(split_labels(str(entry.get('labels'))))
        if labels not in [set(segment.labels) for segment in listed]:
            problems['segments_other_labels'].append(f'{text} has {entry.get("labels")}')
        excerpt = excerpt_of(entry)
        finding = findings.get(excerpt) if excerpt else None
        if finding and not isinstance(finding, Unusable):
            problem, reason = check_place(entry, listed, finding.seconds)
            if problem:
                problems[problem].append(f'{text}: {reason}')
    return problems


def find_present(entries: Sequence[Entry], of_video: Mapping[str, Sequence[Segment]]
                 ) -> set[Segment]:
    """Return the segments that a datafile has. Each entry counts as one segment of its video.

    An entry that fits none of them (check_place reports it) counts as any one that is missing yet.

    Args:
        entries: of the datafile.
        of_video: video_id -> its segments in the list.
    """
    candidates = []
    for entry in entries:
        if listed := of_video.get(video_id(entry) or ''):
            name = _recording_name(entry)
            candidates.append(_fitting_segments(listed, name, part_of(entry)[0]) or listed)
    present: set[Segment] = set()
    for fitting in sorted(candidates, key=len):  # first the entries that can be one segment only
        present.add(next((segment for segment in fitting if segment not in present), fitting[0]))
    return present


def check_place(entry: Entry, segments: Sequence[Segment], seconds: float
                ) -> tuple[str | None, str | None]:
    """Check whether an entry is heard from where its segment begins, and for as long.

    Args:
        entry: of a datafile.
        segments: those of its video.
        seconds: the length of its recording.

    Returns:
        A key of PROBLEMS and the reason; (None, None) if there is no problem.
    """
    start, length = part_of(entry)
    name = _recording_name(entry)
    fitting = _fitting_segments(segments, name, start)
    if not fitting:
        return 'segments_elsewhere', 'its name has another start than the list'
    segment = fitting[0]
    try:
        place = find_place(segment, seconds, name, len(fitting) > 1)
    except PlaceError as error:
        return 'segments_elsewhere', str(error)
    if abs(place.start - start) > START_TOLERANCE:
        return 'segments_elsewhere', (f'its segment begins after {place.start:g} s, and training '
                                      f'hears it from {start:g} s on: prepare it again')
    heard = min(seconds - start, length)
    if is_short(segment, heard):
        return 'segments_short', f'{heard:.1f} of {segment.seconds:g} s'
    return None, None


def _recording_name(entry):
    """Return what the name of an entry's recording says about the entry's video."""
    video = entry['video_id']
    return parse_name(wav_path(entry) or '', {video}) or RecordingName(video)


def _fitting_segments(segments, name, start):
    """Return the segments that a recording's name and the start of its entry may mean.

    The first one begins nearest to the start.
    """
    fitting = [segment for segment in segments
               if name.start is None or name.begins_at(segment.start_seconds)]
    fitting.sort(key=lambda segment: abs(segment.start_seconds - start))
    if not start:
        return fitting
    # The start says which segment it is, if there are several.
    return [segment for segment in fitting
            if abs(segment.start_seconds - start) <= START_TOLERANCE] or fitting
