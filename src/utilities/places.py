"""Where a recording holds a segment of AudioSet, by the recording's name and length."""
import math
import os
import re
from collections.abc import Container
from typing import NamedTuple

from utilities.segments import VIDEO_ID, Segment

TOLERANCE = 1.0  # seconds by which the length of a cut may differ from its segment's
START_TOLERANCE = 0.001  # seconds by which a start may differ; the lists have three decimals
# How downloaders name a recording, before its suffix: ID, YID, id_ID, Title-ID or Title [ID],
# perhaps with a start and an end, and with a part or a format of yt-dlp. An id may itself contain
# - and _, so a name can have several readings (hence the lookahead): the one whose id is listed
# counts.
ID_AND_TIMES = re.compile(
    rf'(?:^|(?<=^Y)|(?<=^id_)|(?<=\[)|(?<=-))(?=(?P<id>{VIDEO_ID})\]?'
    r'(?:[_-](?P<start>\d+(?:\.\d+)?)(?:[_-](?P<end>\d+(?:\.\d+)?))?)?(?:\.p0|\.f\d+)?\Z)')


class RecordingName(NamedTuple):
    """What the name of a recording says: the video, and the times of a cut as they are written."""
    video_id: str
    start: str | None = None
    end: str | None = None

    def begins_at(self, seconds: float) -> bool:
        """Return whether the start in the name, in seconds or whole milliseconds, is this one."""
        return self.start is not None and any(
            math.isclose(start, seconds, rel_tol=0, abs_tol=START_TOLERANCE)
            for start in _in_seconds(self.start))

    def lasts(self, seconds: float) -> bool:
        """Return whether the start and the end in the name are about `seconds` apart."""
        if self.start is None or self.end is None:
            return False
        pairs = zip(_in_seconds(self.start), _in_seconds(self.end))
        return any(abs(end - start - seconds) <= TOLERANCE for start, end in pairs)


def _in_seconds(text):
    """Return the readings of a time in a name: as seconds, and as milliseconds if it is whole."""
    return [float(text)] + ([float(text) / 1000] if '.' not in text else [])


class Place(NamedTuple):
    """Where a recording holds a segment.

    Attributes:
        start: in the recording, in seconds.
        seconds: how much there is of the segment.
        is_all: whether the recording holds nothing else.
    """
    start: float
    seconds: float
    is_all: bool


class PlaceError(ValueError):
    """The recording does not hold the segment, or its position is unknown. The message says why."""


def parse_name(path: str, video_ids: Container[str]) -> RecordingName | None:
    """Return what the name of a recording says, or None if it has none of these video ids."""
    stem = os.path.splitext(os.path.basename(path).removesuffix('.gz'))[0]
    for match in ID_AND_TIMES.finditer(stem):
        if match['id'] in video_ids:
            return RecordingName(match['id'], match['start'], match['end'])
    return None


def find_place(segment: Segment, seconds: float, name: RecordingName, of_several: bool) -> Place:
    """Return where a recording that is `seconds` long holds a segment.

    A Place that is shorter than the segment holds what there is of it. The numbers (1) to (5) are
    those of the rules in egs/audioset/prep_audioset.py.

    Args:
        segment: one of the video.
        seconds: the recording's length.
        name: name of the recording; its start, if it has one, is the segment's.
        of_several: whether the name may mean other segments of the list, too.

    Raises:
        PlaceError: the recording does not hold the segment, or may hold it anywhere.
    """
    has_start = name.start is not None
    if seconds <= segment.seconds + TOLERANCE:
        # If the segment begins with the video, a cut and the whole video begin alike.
        begins_there = has_start or segment.start_seconds <= TOLERANCE
        if of_several:
            raise PlaceError(f'it has {seconds:.1f} s and no start in its name, but several of its '
                             'clips are listed: name it ID_START')
        # (1) It is as long as the segment. (4) It is shorter, and begins with the segment.
        if begins_there or not is_short(segment, seconds):
            return Place(0.0, seconds, is_all=True)
    elif name.lasts(seconds):
        # (2) It is longer, and as long as its name says: it begins with the segment.
        return Place(0.0, segment.seconds, is_all=False)
    else:
        # (2) It is the whole video. (3) The same, but it ends within the segment: only if its name
        # has no start.
        in_video = min(seconds, segment.end_seconds) - segment.start_seconds
        if not is_short(segment, in_video) or (in_video > TOLERANCE and not has_start):
            return Place(segment.start_seconds, in_video, is_all=False)
    raise PlaceError(_why_nowhere(segment, seconds))  # (5)


def is_short(segment: Segment, seconds: float) -> bool:
    """Return whether `seconds` of a segment are clearly not all of it."""
    return seconds < max(segment.seconds - TOLERANCE, segment.seconds / 2)


def _why_nowhere(segment, seconds):
    """Say why a recording that is `seconds` long does not hold a segment."""
    start, end = segment.start_seconds, segment.end_seconds
    remedy = f'; name it {segment.video_id}_{start:.3f} if it begins there'
    return (f'it has {seconds:.1f} s: neither the segment from {start:g} to {end:g} s nor a video '
            f'that reaches so far{remedy if is_short(segment, seconds) else ""}')
