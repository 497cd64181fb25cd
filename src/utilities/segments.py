"""Segment lists, the form in which AudioSet is published: `YTID, start_seconds, end_seconds, "mid,mid"` a line."""
import csv
import logging
import math
import re
from dataclasses import dataclass

from utilities.labels import DataError, error_reason
from utilities.quotes import quoted
from utilities.tables import SEPARATORS, read_text

VIDEO_ID = '[A-Za-z0-9_-]{11}'  # what YouTube's ids look like, as a regular expression
FORM = 'YTID, start_seconds, end_seconds, "mid,mid"'
MAX_WARNINGS = 10  # repeated segments that are logged one by one

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
