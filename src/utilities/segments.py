"""Segment lists, the form in which AudioSet is published.

A line of a list is `YTID, start_seconds, end_seconds, "mid,mid"`.
"""
import csv
import logging
import math
import re
from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path

from utilities.errors import DataError, error_reason
from utilities.formatting import quoted
from utilities.tables import SEPARATORS
from utilities.texts import read_text

VIDEO_ID = '[A-Za-z0-9_-]{11}'  # what YouTube's ids look like, as a regular expression
FORM = 'YTID, start_seconds, end_seconds, "mid,mid"'
MAX_WARNINGS = 10  # repeated segments that are logged one by one

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a YouTube video.

    Attributes:
        labels: mids in the order of the list, each once. A negative, on which none of the classes
            is heard, has none.
    """
    video_id: str
    start_seconds: float
    end_seconds: float
    labels: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """The segment's length."""
        return self.end_seconds - self.start_seconds


def read_segment_lists(paths: Iterable[str | Path], known_mids: Container[str]) -> list[Segment]:
    """Read several segment lists as one, in their order.

    A segment that an earlier list has is not taken again.
    """
    segments: dict[tuple[str, float], Segment] = {}
    for path in paths:
        listed = read_segments(path, known_mids)
        before = len(segments)
        for segment in listed:
            segments.setdefault((segment.video_id, segment.start_seconds), segment)
        if repeated := before + len(listed) - len(segments):
            logger.warning('%s: %d of its segments are in an earlier list, too; the earlier list '
                           'counts', path, repeated)
    return list(segments.values())


def read_segments(path: str | Path, known_mids: Container[str]) -> list[Segment]:
    """Read a segment list, in which lines that begin with # are comments.

    If a segment (video id and start) is repeated, its first line counts, and the log warns.

    Raises:
        DataError: if the file cannot be read or lists nothing, or if a line is malformed or has a
            label that is not among known_mids.
    """
    try:
        texts = read_text(path).split('\n')
    except (OSError, ValueError) as error:
        raise DataError(f'cannot read the segment list {path}: {error_reason(error)}') from None

    segments, repeated = [], 0
    first_lines: dict[tuple[str, float], int] = {}
    mids_of: dict[str, tuple[str, ...]] = {}
    for line, text in enumerate(map(str.strip, texts), start=1):
        if not text or text.startswith(('#', '"#')):
            continue
        segment = _parse_line(text, mids_of, known_mids, f'{path}, line {line}')
        first = first_lines.setdefault((segment.video_id, segment.start_seconds), line)
        if first == line:
            segments.append(segment)
            continue
        repeated += 1
        if repeated <= MAX_WARNINGS:
            logger.warning('%s, line %d: %s from %g s was listed in line %d already; that line '
                           'counts', path, line, segment.video_id, segment.start_seconds, first)
    if repeated > MAX_WARNINGS:
        logger.warning('%s: %d lines repeat an earlier one', path, repeated)
    if not segments:
        raise DataError(f'the segment list {path} lists no segments; each line is to be {FORM}')
    return segments


def _parse_line(text, mids_of, known_mids, where):
    """Return the Segment of a line.

    Args:
        mids_of: labels as they are written -> mids, filled on the way: two million lines share
            some hundred thousand.
        where: file and line, for messages.
    """
    first_separator = re.search(f'[{SEPARATORS}]', text)  # an id has none in it
    separator = first_separator[0] if first_separator else ','
    try:
        columns = next(csv.reader([text], delimiter=separator, skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise DataError(f'{where}: expected {FORM}, got {quoted(text)} ({error})') from None
    if len(columns) < 4:
        raise DataError(f'{where}: expected four columns, {FORM}, got {quoted(text)}')

    video_id, start, end = (column.rstrip() for column in columns[:3])
    if not re.fullmatch(VIDEO_ID, video_id):
        raise DataError(f'{where}: a YTID is 11 letters, digits, - or _, got {quoted(video_id)}')
    try:
        start_seconds, end_seconds = float(start), float(end)
    except ValueError:
        start_seconds = end_seconds = math.nan
    if not 0 <= start_seconds < end_seconds < math.inf:
        raise DataError(f'{where}: expected a start and a later end in seconds, '
                        f'got {quoted(start)} and {quoted(end)}')

    labels = ','.join(columns[3:])  # without quotes, every label is a column
    if labels not in mids_of:
        mids_of[labels] = _split_mids(labels, known_mids, where)
    return Segment(video_id, start_seconds, end_seconds, mids_of[labels])


def _split_mids(labels, known_mids, where):
    """Return the mids of a line's labels, each once."""
    mids = tuple(dict.fromkeys(mid for mid in map(str.strip, labels.split(',')) if mid))
    if labels.strip() and not mids:
        raise DataError(f'{where}: there are no labels; expected {FORM}')
    for mid in mids:
        if mid not in known_mids:
            raise DataError(f'{where}: the label {quoted(mid)} is not in the label file')
    return mids
