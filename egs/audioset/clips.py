"""Find the clips of AudioSet's segment lists among recordings, and copy them if asked to.

prep_audioset.py says by which rules.
"""
import functools
import gzip
import io
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from audio.fbank import SAMPLE_RATE
from audio.info import read_duration
from audio.reading import AudioError, load_waveform
from copies import CopyConf, check_packed, clip_name, is_copy, suffix_of, write_flac
from parquet_rows import Row, read_rows
from utilities.parallel import parallel_map
from utilities.places import (
    TOLERANCE,
    Place,
    PlaceError,
    RecordingName,
    find_place,
    is_short,
    parse_name,
)
from utilities.segments import Segment

PROBE_SECONDS = 0.1  # of a recording, decoded to see whether it can be


class Candidate(NamedTuple):
    """A recording that may hold a clip.

    Attributes:
        path: of the file; FILE.parquet/NAME for a row of a parquet file.
        n_segments: how many segments of the list its name may mean.
        row: where it is in a parquet file; None if it is a file of its own.
        audio: bytes of a row, once it is read.
    """
    path: str
    name: RecordingName
    n_segments: int
    row: Row | None = None
    audio: bytes | None = None


@dataclass
class Matches:
    """Which recordings may hold which clips, by their names.

    Attributes:
        candidates: the number of a clip in the list -> recordings, the best first.
        other_start: paths of recordings of listed videos, but with another start.
        unlisted: paths of recordings of no listed video.
    """
    candidates: dict[int, list[Candidate]] = field(default_factory=dict)
    other_start: list[str] = field(default_factory=list)
    unlisted: list[str] = field(default_factory=list)


class Search(NamedTuple):
    """A clip and where to look for it.

    Attributes:
        number: of the clip in the list.
        packed: paths of its files that an earlier run has packed into shards.
    """
    number: int
    segment: Segment
    candidates: list[Candidate]
    packed: list[str]


class Found(NamedTuple):
    """A recording that holds a clip, and where. is_cut: out of a longer recording."""
    path: str
    place: Place
    is_cut: bool


class Problem(NamedTuple):
    """Why a clip cannot be used.

    Attributes:
        is_place_unknown: True if the recording can be read, but the clip is not in it or its
            position is unknown; False if the recording cannot be read.
    """
    text: str
    is_place_unknown: bool


class UnknownPlaceError(AudioError):
    """A recording does not hold a segment, or its place in the recording is not known."""


def match_recordings(segments: Sequence[Segment], recordings: Iterable[tuple[str, Row | None]]
                     ) -> Matches:
    """Match recordings with segments by name.

    Args:
        recordings: for each, a path, and its Row if it is inside a parquet file, else None.
    """
    numbers: dict[str, list[int]] = {}  # of the clips of each video
    for number, segment in enumerate(segments):
        numbers.setdefault(segment.video_id, []).append(number)
    matches = Matches()
    for path, row in recordings:
        name = parse_name(path, numbers)
        if name is None:
            matches.unlisted.append(path)
            continue
        fitting = [number for number in numbers[name.video_id]
                   if name.start is None or name.begins_at(segments[number].start_seconds)]
        if not fitting:
            matches.other_start.append(path)
        for number in fitting:
            candidate = Candidate(path, name, len(fitting), row)
            matches.candidates.setdefault(number, []).append(candidate)
    for candidates in matches.candidates.values():
        candidates.sort(key=lambda one: (one.row is not None, one.name.start is None, one.path))
    return matches


def collect_clips(segments: Sequence[Segment], candidates: Mapping[int, list[Candidate]],
                  packed: Mapping[str, list[str]], copy_conf: CopyConf
                  ) -> dict[int, Found | Problem]:
    """Find every clip among its candidates and copy those that are to be copied, with all cores.

    Args:
        segments: of the list.
        candidates: those of each clip.
        packed: clip_name without suffix -> paths of the clip's files that are in shards already.
        copy_conf: which clips are copied, and where to.

    Returns:
        What became of each clip, in the order of the list.
    """
    def make_search(number, chosen):
        segment = segments[number]
        return Search(number, segment, chosen, packed.get(clip_name(segment), []))

    files = {number: [one for one in listed if not one.row]
             for number, listed in candidates.items()}
    searches = [make_search(number, listed) for number, listed in files.items() if listed]
    title = 'converting to 16 kHz FLAC' if copy_conf.of_all else 'reading headers'
    find = functools.partial(collect_clip, copy_conf=copy_conf)
    results = dict(parallel_map(find, searches, title, unit='clip'))

    groups: dict[tuple[str, int], list[Search]] = {}  # of rows of parquet files, each read once
    for number, listed in candidates.items():
        rows = [(one, one.row) for one in listed if one.row]
        if rows and not isinstance(results.get(number), Found):
            candidate, row = rows[0]
            groups.setdefault((row.path, row.group), []).append(make_search(number, [candidate]))
    find_rows = functools.partial(collect_from_rows, copy_conf=copy_conf)
    for found in parallel_map(find_rows, list(groups.items()), 'unpacking parquet files',
                              unit='group', items_per_task=1):
        results.update(found)
    return dict(sorted(results.items()))


def collect_clip(search: Search, copy_conf: CopyConf) -> tuple[int, Found | Problem]:
    """Find a clip among its candidates, and copy it if copy_conf says so.

    Returns:
        The clip's number, and the recording that holds it or the first problem that came up.
    """
    places, problems = [], []
    for candidate in search.candidates:
        try:
            source = open_candidate(candidate, copy_conf)
            places.append((candidate, source, find_in(search.segment, candidate, source)))
        except AudioError as error:
            problems.append(Problem(str(error), isinstance(error, UnknownPlaceError)))
    places.sort(key=lambda one: is_short(search.segment, one[2].seconds))
    for candidate, source, place in places:
        try:
            return search.number, take_clip(search, candidate, source, place, copy_conf)
        except AudioError as error:
            problems.append(Problem(str(error), is_place_unknown=False))
    return search.number, problems[0]


def open_candidate(candidate: Candidate, copy_conf: CopyConf) -> str | bytes:
    """Return the path of a candidate, or its bytes if it is a row or packed with gzip."""
    if candidate.row:
        if candidate.audio is None:
            raise AudioError(f'{candidate.path} has no audio')
        return candidate.audio
    if not candidate.path.endswith('.gz'):
        return candidate.path
    if copy_conf.folder is None:
        raise AudioError(f'{candidate.path} is to be unpacked: give --flac_dir or --shards')
    try:
        with gzip.open(candidate.path) as file:
            return file.read()
    except (EOFError, OSError, zlib.error) as error:
        raise AudioError(f'{candidate.path} cannot be unpacked: {error}') from None


def find_in(segment: Segment, candidate: Candidate, source: str | bytes) -> Place:
    """Return where a candidate holds a segment.

    Args:
        source: the candidate's path or bytes, by open_candidate.

    Raises:
        AudioError: the candidate cannot be read, or it is not known where it holds the segment.
    """
    seconds = read_duration(_readable(source), candidate.path).seconds
    try:
        return find_place(segment, seconds, candidate.name, candidate.n_segments > 1)
    except PlaceError as error:
        raise UnknownPlaceError(f'{candidate.path}: {error}') from None


def _readable(source):
    return io.BytesIO(source) if isinstance(source, bytes) else source


def take_clip(search: Search, candidate: Candidate, source: str | bytes, place: Place,
              copy_conf: CopyConf) -> Found:
    """Return the file that holds a clip: the recording itself, or a copy of the clip.

    Args:
        source: the candidate's path or bytes, by open_candidate.
        place: where the candidate holds the clip.

    Raises:
        AudioError: the candidate cannot be read there.
    """
    needs_no_copy = isinstance(source, str) and (place.is_all or copy_conf.folder is None)
    to_copy = copy_conf.of_all or not needs_no_copy
    name = clip_name(search.segment, '.flac' if to_copy else suffix_of(candidate.path))
    packed = find_packed(search, name)
    if packed:
        return copy_clip(candidate, source, place, packed, is_packed=True)
    if to_copy:
        return copy_clip(candidate, source, place, str(copy_conf.folder / name), is_packed=False)
    load_waveform(source, start=place.start, seconds=PROBE_SECONDS)
    return Found(candidate.path, place, is_cut=not place.is_all)


def copy_clip(candidate: Candidate, source: str | bytes, place: Place, path: str, is_packed: bool
              ) -> Found:
    """Return the copy of a clip at a path. Make it if there is none.

    Args:
        is_packed: whether the path is in a shard, which is not written to.

    Raises:
        AudioError: the candidate cannot be read there.
        DataError: the shard holds something else under this name.
    """
    seconds = place.seconds
    if not is_copy(path, seconds):
        waveform = load_waveform(_readable(source), name=candidate.path, start=place.start,
                                 seconds=seconds)
        seconds = min(seconds, len(waveform) / SAMPLE_RATE)  # damage in the middle shows only now
        if is_packed:
            check_packed(path, seconds)
        else:
            write_flac(path, waveform)
    return Found(path, Place(0.0, seconds, is_all=True), is_cut=not place.is_all)


def find_packed(search: Search, name: str) -> str | None:
    """Return the path of a clip's file of this name in a shard, or None if no shard has it."""
    return next((path for path in search.packed if os.path.basename(path) == name), None)


def collect_from_rows(work: tuple[tuple[str, int], list[Search]], copy_conf: CopyConf
                      ) -> dict[int, Found | Problem]:
    """Find clips in a row group of a parquet file, and copy them.

    A clip that has a copy is not looked for.

    Args:
        work: the row group (path, group), and searches with one candidate each.
    """
    (path, group), searches = work
    results: dict[int, Found | Problem] = {}
    wanted: dict[int, list[Search]] = {}  # of each row
    for search in searches:
        if copy := find_copy(search, copy_conf):
            results[search.number] = copy
        else:
            wanted.setdefault(search.candidates[0].row.number, []).append(search)
    if not wanted:
        return results
    for row, audio in read_rows(path, group, wanted):
        for search in wanted[row]:
            candidate = search.candidates[0]._replace(audio=audio)
            number, found = collect_clip(search._replace(candidates=[candidate]), copy_conf)
            results[number] = found
    return results


def find_copy(search: Search, copy_conf: CopyConf) -> Found | None:
    """Return the copy of a whole segment that was made before, if there is one."""
    name = clip_name(search.segment, '.flac')
    packed = find_packed(search, name)
    for path in filter(None, (packed, str(copy_conf.folder / name))):
        if is_copy(path, search.segment.seconds, TOLERANCE):
            return Found(path, Place(0.0, search.segment.seconds, is_all=True), is_cut=False)
    return None
