"""Segment lists, the form in which AudioSet is published, and where a recording holds a segment.

A line of a list is `YTID, start_seconds, end_seconds, "mid,mid"`.
"""
import csv
import logging
import math
import os
import re
from collections.abc import Container
from dataclasses import dataclass
from typing import NamedTuple

from utilities.errors import DataError, error_reason
from utilities.formatting import quoted
from utilities.tables import SEPARATORS, read_text

VIDEO_ID = '[A-Za-z0-9_-]{11}'  # what YouTube's ids look like, as a regular expression
FORM = 'YTID, start_seconds, end_seconds, "mid,mid"'
MAX_WARNINGS = 10  # repeated segments that are logged one by one
TOLERANCE = 1.0  # seconds by which the length of a cut may differ from its segment's
START_TOLERANCE = 0.001  # seconds by which a start may differ; the lists have three decimals
# How downloaders name a recording, before its suffix: ID, YID, id_ID, Title-ID, Title [ID], with a
# start and an end, and a part or a format of yt-dlp. An id may itself contain - and _, so that a
# name can have several readings (hence the lookahead): the one whose id is listed counts.
_ID_AND_TIMES = re.compile(
    rf'(?:^|(?<=^Y)|(?<=^id_)|(?<=\[)|(?<=-))(?=(?P<id>{VIDEO_ID})\]?'
    r'(?:[_-](?P<start>\d+(?:\.\d+)?)(?:[_-](?P<end>\d+(?:\.\d+)?))?)?(?:\.p0|\.f\d+)?\Z)')

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a YouTube video, and the mids of its labels in the order of the list, each once.

    A negative, on which none of the classes is heard, has no labels.
    """
    video_id: str
    start_seconds: float
    end_seconds: float
    labels: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """The segment's length."""
        return self.end_seconds - self.start_seconds


class RecordingName(NamedTuple):
    """What the name of a recording says."""
    video_id: str
    start: str | None = None  # where the recording begins in the video, as written
    end: str | None = None

    def begins_at(self, seconds: float) -> bool:
        """Return whether the start in the name, in seconds or whole milliseconds, is this one."""
        return self.start is not None and any(
            math.isclose(start, seconds, rel_tol=0, abs_tol=START_TOLERANCE)
            for start in _in_seconds(self.start))

    def is_long(self, seconds: float) -> bool:
        """Return whether the start and the end in the name are about so many seconds apart."""
        return self.end is not None and any(
            abs(end - start - seconds) <= TOLERANCE
            for start, end in zip(_in_seconds(self.start), _in_seconds(self.end)))


class Place(NamedTuple):
    """Where a recording holds a segment."""
    start: float
    seconds: float
    is_all: bool  # it holds nothing else


def parse_name(path: str, video_ids: Container[str]) -> RecordingName | None:
    """Return what the name of a recording says, or None if it has none of these video ids."""
    stem = os.path.splitext(os.path.basename(path).removesuffix('.gz'))[0]
    for match in _ID_AND_TIMES.finditer(stem):
        if match['id'] in video_ids:
            return RecordingName(match['id'], match['start'], match['end'])
    return None


class PlaceError(ValueError):
    """A recording of which nobody can know where it holds a segment; the message says why."""


def find_place(segment: Segment, seconds: float, name: RecordingName, of_several: bool) -> Place:
    """Return where a recording of so many seconds holds a segment.

    The rules are in egs/audioset/prep_audioset.py. A Place that is shorter than the segment holds
    what there is of it.

    Args:
        segment: one of the video.
        seconds: the recording's length.
        name: of the recording; its start, if it has one, is the segment's.
        of_several: whether the name may mean other segments of the list, too.

    Raises:
        PlaceError: it may begin anywhere, or ends before the segment begins.
    """
    has_start = name.start is not None
    if seconds <= segment.seconds + TOLERANCE:
        # A cut from the beginning of a video and a video that is shorter than the cut are the same.
        begins_there = has_start or segment.start_seconds <= TOLERANCE
        if of_several:
            raise PlaceError(f'it has {seconds:.1f} s and no start in its name, but several of its '
                             'clips are listed: name it ID_START')
        if begins_there or not is_short(segment, seconds):
            return Place(0.0, seconds, is_all=True)
    elif name.is_long(seconds):
        return Place(0.0, segment.seconds, is_all=False)
    else:
        in_video = min(seconds, segment.end_seconds) - segment.start_seconds
        if not is_short(segment, in_video) or (in_video > TOLERANCE and not has_start):
            return Place(segment.start_seconds, in_video, is_all=False)
    remedy = f'; name it {segment.video_id}_{segment.start_seconds:.3f} if it begins there'
    raise PlaceError(f'it has {seconds:.1f} s: neither the segment from {segment.start_seconds:g} '
                     f'to {segment.end_seconds:g} s nor a video that reaches so far'
                     + (remedy if is_short(segment, seconds) else ''))


def is_short(segment: Segment, seconds: float) -> bool:
    """Return whether so many seconds of a segment are clearly not all of it."""
    return seconds < max(segment.seconds - TOLERANCE, segment.seconds / 2)


def _in_seconds(text):
    """Return the readings of a time in a name: as seconds, and as milliseconds if it is whole."""
    return [float(text)] + ([float(text) / 1000] if '.' not in text else [])


def read_segments(path, known_mids):
    """Read a segment list, in which lines that begin with # are comments. Returns a list of Segments.

    A segment (video id and start) that is repeated is kept once, as it came first, with a warning in the log.
    Raises DataError for a file that cannot be read or lists nothing, and for a line that is malformed or has a label
    that is not among known_mids.
    """
    segments, lines, repeated = [], {}, 0
    tuples = {}  # from a line's labels as text; two million lines share some hundred thousand
    try:
        texts = read_text(path).split('\n')
    except (OSError, ValueError) as error:
        raise DataError(f'cannot read the segment list {path}: {error_reason(error)}') from None
    for line, text in enumerate(map(str.strip, texts), start=1):
        if not text or text.startswith(('#', '"#')):
            continue
        segment = _parse(text, tuples, known_mids, f'{path}, line {line}')
        first = lines.setdefault((segment.video_id, segment.start_seconds), line)
        if first == line:
            segments.append(segment)
            continue
        repeated += 1
        if repeated <= MAX_WARNINGS:
            logger.warning('%s, line %d: %s from %g s was listed in line %d already, which counts',
                           path, line, segment.video_id, segment.start_seconds, first)
    if repeated > MAX_WARNINGS:
        logger.warning('%s: %d lines repeat an earlier one', path, repeated)
    if not segments:
        raise DataError(f'the segment list {path} lists no segments; each line is to be {FORM}')
    return segments


def read_segment_lists(paths, known_mids):
    """Read several segment lists as one, in their order; what an earlier list has is not taken again."""
    segments = {}
    for path in paths:
        listed = read_segments(path, known_mids)
        before = len(segments)
        for segment in listed:
            segments.setdefault((segment.video_id, segment.start_seconds), segment)
        if repeated := before + len(listed) - len(segments):
            logger.warning('%s: %d of its segments are in an earlier list too, which counts', path, repeated)
    return list(segments.values())


def _parse(text, tuples, known_mids, where):
    """The Segment of a line. tuples: labels as text -> mids, filled on the way; where: file and line, for messages."""
    first = _find_separator(text)  # an id has none in it
    separator = first[0] if first else ','
    try:
        columns = next(csv.reader([text], delimiter=separator, skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise DataError(f'{where}: expected {FORM}, got {quoted(text)} ({error})') from None
    if len(columns) < 4:
        raise DataError(f'{where}: expected four columns, {FORM}, got {quoted(text)}')
    video_id, start, end = (column.rstrip() for column in columns[:3])
    if not _is_video_id(video_id):
        raise DataError(f'{where}: a YTID is 11 letters, digits, - or _, got {quoted(video_id)}')
    try:
        start_seconds, end_seconds = float(start), float(end)
    except ValueError:
        start_seconds = end_seconds = math.nan
    if not 0 <= start_seconds < end_seconds < math.inf:
        raise DataError(f'{where}: expected a start and a later end in seconds, got {quoted(start)} and {quoted(end)}')
    labels = ','.join(columns[3:])  # without quotes, every label is a column
    if labels not in tuples:
        tuples[labels] = _mids(labels, known_mids, where)
    return Segment(video_id, start_seconds, end_seconds, tuples[labels])


_find_separator = re.compile(f'[{SEPARATORS}]').search
_is_video_id = re.compile(VIDEO_ID).fullmatch


def _mids(labels, known_mids, where):
    mids = tuple(dict.fromkeys(mid for mid in map(str.strip, labels.split(',')) if mid))
    if labels.strip() and not mids:
        raise DataError(f'{where}: there are no labels; expected {FORM}')
    for mid in mids:
        if mid not in known_mids:
            raise DataError(f'{where}: the label {quoted(mid)} is not in the label file')
    return mids
