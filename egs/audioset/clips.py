"""Find the clips of AudioSet's segment lists among recordings, by the rules of prep_audioset.py."""
import functools
import io
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import soundfile

from audio.fbank import SAMPLE_RATE
from audio.reading import AudioError, load_waveform, measure
from models.files import atomic_write
from parquet_rows import Row, read_rows
from utilities.archives import read_gzip
from utilities.errors import DataError
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
COPY_TOLERANCE = 0.1  # seconds by which a copy's length may differ


class Candidate(NamedTuple):
    """A recording that may hold a clip."""
    path: str  # of a row of a parquet file, FILE.parquet/NAME
    name: RecordingName
    segments: int  # how many segments of the list the name may mean
    row: Row | None = None
    audio: bytes | None = None  # of a row, once it is read


@dataclass
class Matches:
    """Which recordings may hold which clips, by their names; clips are numbers in the list."""
    candidates: dict[int, list[Candidate]] = field(default_factory=dict)  # the best first
    # Paths of the others: of a listed video, but with another start, and of no listed video.
    other_start: list[str] = field(default_factory=list)
    unlisted: list[str] = field(default_factory=list)


class Search(NamedTuple):
    """A clip and where to look for it."""
    clip: int
    segment: Segment
    candidates: list[Candidate]
    packed: list[str]  # paths of what shards hold of the clip already


class Copies(NamedTuple):
    """Where 16 kHz FLAC copies of clips go, if anywhere."""
    folder: Path | None
    of_all: bool  # otherwise, of the clips that are not files of their own


class Found(NamedTuple):
    """A recording that holds a clip, and where."""
    path: str
    place: Place
    is_cut: bool  # out of a longer recording


class Problem(NamedTuple):
    """Why a clip cannot be used."""
    text: str
    is_elsewhere: bool  # its recordings can be read, but it is not in them, or nobody knows where


class ElsewhereError(AudioError):
    """A recording that does not hold a segment, or of which nobody can know where it does."""


def match_recordings(segments: list[Segment], recordings: list[tuple[str, Row | None]]) -> Matches:
    """Match recordings, paths and the rows of those in parquet files, with segments by name."""
    clips = {}
    for clip, segment in enumerate(segments):
        clips.setdefault(segment.video_id, []).append(clip)
    matches = Matches()
    for path, row in recordings:
        name = parse_name(path, clips)
        if name is None:
            matches.unlisted.append(path)
            continue
        fitting = [clip for clip in clips[name.video_id]
                   if name.start is None or name.begins_at(segments[clip].start_seconds)]
        if not fitting:
            matches.other_start.append(path)
        for clip in fitting:
            candidate = Candidate(path, name, len(fitting), row)
            matches.candidates.setdefault(clip, []).append(candidate)
    for candidates in matches.candidates.values():
        candidates.sort(key=lambda one: (one.row is not None, one.name.start is None, one.path))
    return matches


def find_clips(segments: list[Segment], candidates: dict[int, list[Candidate]],
               packed: dict[str, list[str]], copies: Copies) -> dict[int, Found | Problem]:
    """Find every clip among its candidates, with all cores.

    Args:
        segments: of the list.
        candidates: those of each clip.
        packed: clip_name without suffix -> paths of what shards hold of the clip.
        copies: where copies go.

    Returns:
        What became of each clip, in the order of the list.
    """
    def search(clip, among):
        return Search(clip, segments[clip], among, packed.get(clip_name(segments[clip]), []))

    files = {clip: [one for one in among if not one.row] for clip, among in candidates.items()}
    searches = [search(clip, among) for clip, among in files.items() if among]
    title = 'converting to 16 kHz FLAC' if copies.of_all else 'reading headers'
    find = functools.partial(find_clip, copies=copies)
    results = dict(parallel_map(find, searches, title, unit='clip'))

    groups = {}  # of rows of parquet files, each read once
    for clip, among in candidates.items():
        rows = [one for one in among if one.row]
        if rows and not isinstance(results.get(clip), Found):
            group = rows[0].row.path, rows[0].row.group
            groups.setdefault(group, []).append(search(clip, rows[:1]))
    find = functools.partial(find_in_rows, copies=copies)
    for found in parallel_map(find, list(groups.items()), 'unpacking parquet files', unit='group',
                              items_per_task=1):
        results.update(found)
    return dict(sorted(results.items()))


def find_clip(search: Search, copies: Copies) -> tuple[int, Found | Problem]:
    """Find a clip among its candidates, and copy it if it is to be.

    Returns:
        The clip, and Found or the Problem of its first candidate.
    """
    places, problem = [], None
    for candidate in search.candidates:
        try:
            file = _open(candidate, copies)
            places.append((candidate, file, find_in(search.segment, candidate, file)))
        except AudioError as error:
            problem = problem or Problem(str(error), isinstance(error, ElsewhereError))
    places.sort(key=lambda one: is_short(search.segment, one[2].seconds))
    for candidate, file, place in places:
        try:
            return search.clip, _use(search, candidate, file, place, copies)
        except AudioError as error:
            problem = problem or Problem(str(error), is_elsewhere=False)
    return search.clip, problem


def _open(candidate, copies):
    """Return the path of a candidate, or its bytes if it is a row or packed with gzip."""
    if candidate.row:
        if candidate.audio is None:
            raise AudioError(f'{candidate.path} has no audio')
        return candidate.audio
    if not candidate.path.endswith('.gz'):
        return candidate.path
    if copies.folder is None:
        raise AudioError(f'{candidate.path} is to be unpacked: give --flac_dir or --shards')
    try:
        return read_gzip(candidate.path)
    except DataError as error:
        raise AudioError(str(error)) from None


def find_in(segment: Segment, candidate: Candidate, file: str | bytes) -> Place:
    """Return where a candidate holds a segment. Raises AudioError."""
    seconds = measure(_readable(file), candidate.path).seconds
    try:
        return find_place(segment, seconds, candidate.name, candidate.segments > 1)
    except PlaceError as error:
        raise ElsewhereError(f'{candidate.path}: {error}') from None


def _readable(file):
    return io.BytesIO(file) if isinstance(file, bytes) else file


def _use(search, candidate, file, place, copies):
    """Return Found for a clip whose place in a candidate is known, and copy it if it is to be."""
    is_file = isinstance(file, str) and (place.is_all or copies.folder is None)
    to_copy = copies.of_all or not is_file
    name = clip_name(search.segment, '.flac' if to_copy else suffix(candidate.path))
    packed = next((path for path in search.packed if os.path.basename(path) == name), None)
    if not to_copy and not packed:
        load_waveform(file, start=place.start, seconds=PROBE_SECONDS)
        return Found(file, place, is_cut=not place.is_all)
    path, seconds = packed or str(copies.folder / name), place.seconds
    if not is_copy(path, seconds):
        waveform = load_waveform(_readable(file), name=candidate.path, start=place.start,
                                 seconds=seconds)
        seconds = min(seconds, len(waveform) / SAMPLE_RATE)  # damage in the middle shows only now
        if packed:
            check_packed(path, seconds)
        else:
            write_flac(path, waveform)
    return Found(path, Place(0.0, seconds, is_all=True), is_cut=not place.is_all)


def is_copy(path: str, seconds: float, tolerance: float = COPY_TOLERANCE) -> bool:
    """Return whether there is a recording of about this length at a path."""
    try:
        return abs(measure(path).seconds - seconds) <= tolerance
    except AudioError:
        return False


def check_packed(path: str, seconds: float) -> None:
    """Raise DataError if what a shard holds under a clip's name is not as long as the clip."""
    if not is_copy(path, seconds):
        folder = os.path.dirname(os.path.dirname(path))
        raise DataError(f'{path} is not the clip of {seconds:.1f} s that is to have this name: '
                        f'delete the folder {folder}, and the same line packs its clips again')


def write_flac(path, waveform):
    """Write a waveform as 16 kHz mono 16-bit FLAC."""
    encoded = io.BytesIO()
    soundfile.write(encoded, waveform.numpy(), SAMPLE_RATE, subtype='PCM_16', format='FLAC')
    # A process that packs into the same shards removes their folder of copies once it is empty.
    Path(path).parent.mkdir(exist_ok=True)
    with atomic_write(path) as partial:
        partial.write_bytes(encoded.getvalue())


def find_in_rows(work: tuple[tuple[str, int], list[Search]], copies: Copies
                 ) -> dict[int, Found | Problem]:
    """Find clips in a row group of a parquet file, (path, group), with a candidate each.

    A clip that has a copy is not looked for.
    """
    (path, group), searches = work
    results, wanted = {}, {}  # wanted: row -> searches
    for search in searches:
        if copy := find_copy(search, copies):
            results[search.clip] = copy
        else:
            wanted.setdefault(search.candidates[0].row.row, []).append(search)
    if not wanted:
        return results
    for row, audio in read_rows(path, group, wanted):
        for search in wanted[row]:
            candidate = search.candidates[0]._replace(audio=audio)
            results.update([find_clip(search._replace(candidates=[candidate]), copies)])
    return results


def find_copy(search: Search, copies: Copies) -> Found | None:
    """Return the copy of a whole segment that was made before, if there is one."""
    name = clip_name(search.segment, '.flac')
    packed = [path for path in search.packed if os.path.basename(path) == name]
    for path in [*packed, str(copies.folder / name)]:
        if is_copy(path, search.segment.seconds, TOLERANCE):
            return Found(path, Place(0.0, search.segment.seconds, is_all=True), is_cut=False)
    return None


def clip_name(segment: Segment, suffix: str = '') -> str:
    """Return the name of a file that is this clip and no other."""
    return f'{segment.video_id}_{segment.start_seconds:.3f}{suffix}'


def suffix(path: str) -> str:
    """Return the suffix of a recording, without the .gz that may follow it."""
    return os.path.splitext(path.removesuffix('.gz'))[1].lower()
