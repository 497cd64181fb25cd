"""Prepare AudioSet: match the clips that you have with the official segment lists, and write a datafile of those found.

A file belongs to a clip by its name, [Y]ID[_START[_END]].suffix, with times in seconds (30, 30.0) or milliseconds.
"""
import collections
import csv
import functools
import io
import itertools
import logging
import math
import os
import re
import sys
import zipfile
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

import soundfile
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / 'src'))
from audio import AUDIO_SUFFIXES, AudioError, load_waveform  # noqa: E402
from features import SAMPLE_RATE  # noqa: E402
from models.files import atomic_write, remove_leftovers  # noqa: E402
from utilities.cli import OptionParser, exit_on, number, setup_logging  # noqa: E402
from utilities.folders import files_below, making  # noqa: E402
from utilities.labels import DataError, read_labels  # noqa: E402
from utilities.parallel import parallel_map  # noqa: E402
from utilities.preparation import check_names, only_one  # noqa: E402
from utilities.segments import VIDEO_ID, read_segment_lists  # noqa: E402
from utilities.texts import write_json, write_text  # noqa: E402

LABEL_FILE = HERE / 'data' / 'class_labels_indices.csv'
# Ids may begin with Y and contain _ and - themselves; at most one reading of a name fits, as an id is 11 characters.
NAME = re.compile(rf'Y?({VIDEO_ID})(?:[_-](\d+(?:\.\d+)?)(?:[_-]\d+(?:\.\d+)?)?)?')
TOLERANCE = 0.001  # seconds by which the start in a name may differ from the list's, which has three decimals
PROBE_SECONDS = 0.1  # of a file, decoded to see whether it can be
AMBIGUOUS = 'a file of this video has no start in its name, but several of its clips are listed: name files ID_START'
GB = 10 ** 9  # bytes

logger = logging.getLogger(__name__)


@dataclass
class Matches:
    """Which files may be which clips, by their names; clips are numbers in the list of segments.

    candidates: clip -> files, the best first; ambiguous: clips with a file that may be another clip of the same video;
    other_start: files of a listed video, but with another start than the list's.
    """
    candidates: dict[int, list[str]] = field(default_factory=dict)
    ambiguous: set[int] = field(default_factory=set)
    other_start: int = 0


def audio_files(folder):
    """Yield the paths of all audio files below a folder, links followed; raises DataError where it cannot be read."""
    return (path for path in files_below(folder) if _suffix(path) in AUDIO_SUFFIXES)


def _suffix(path):
    return os.path.splitext(path)[1].lower()


def starts_at(text, start_seconds):
    """Whether a start in a file name, in seconds or whole milliseconds, is that of the list."""
    seconds = [float(text)] + ([float(text) / 1000] if '.' not in text else [])
    return any(math.isclose(value, start_seconds, rel_tol=0, abs_tol=TOLERANCE) for value in seconds)


def match_files(segments, files):
    """Find the Matches of a list of Segments among the paths of audio files."""
    clips = {}
    for clip, segment in enumerate(segments):
        clips.setdefault(segment.video_id, []).append(clip)
    matches = Matches()
    ranked = {}
    for path in files:
        name = NAME.fullmatch(os.path.splitext(os.path.basename(path))[0])
        of_video = clips.get(name[1], ()) if name else ()
        start = name and name[2]
        fitting = [clip for clip in of_video if start is None or starts_at(start, segments[clip].start_seconds)]
        if start is None and len(fitting) > 1:
            matches.ambiguous.update(fitting)
            continue
        matches.other_start += bool(of_video) and not fitting
        for clip in fitting:
            ranked.setdefault(clip, []).append((start is None, path))
    matches.candidates = {clip: [path for *_, path in sorted(ranked[clip])] for clip in sorted(ranked)}
    return matches


def first_usable(use, candidates):
    """Try a clip's files in turn, until use(path) raises no AudioError.

    Returns what it returned, or None, and what is wrong with the first file.
    """
    problem = None
    for path in candidates:
        try:
            return use(path), None
        except AudioError as error:
            problem = problem or str(error)
    return None, problem


def probe(path):
    """Decode the beginning of a file and return its path; raises AudioError."""
    load_waveform(path, seconds=PROBE_SECONDS)
    return path


def to_flac(flac, path):
    """Write a file as 16 kHz mono 16-bit FLAC and return the FLAC's path; raises AudioError."""
    encoded = io.BytesIO()
    waveform = load_waveform(path).numpy()
    soundfile.write(encoded, waveform, SAMPLE_RATE, subtype='PCM_16', format='FLAC')
    with atomic_write(flac) as partial:
        partial.write_bytes(encoded.getvalue())
    return flac


def convert(work):
    """Write the first of a clip's files that can be decoded as FLAC, unless that is there already.

    work: the FLAC's path and the clip's files. Returns as `first_usable` does.
    """
    flac, candidates = work
    there, _ = first_usable(probe, [flac])
    return (there, None) if there else first_usable(functools.partial(to_flac, flac), candidates)


def read_files(segments, candidates, flac_dir):
    """Probe, or with a flac_dir convert, the files of every matched clip, with all cores.

    Returns clip -> path of those that can be used, and clip -> problem of the others.
    """
    if flac_dir is None:
        results = parallel_map(functools.partial(first_usable, probe), list(candidates.values()), 'reading headers',
                               unit='clip')
    else:
        flacs = (clip_name(segments[clip], '.flac') for clip in candidates)
        work = [(str(flac_dir / name), paths) for name, paths in zip(flacs, candidates.values())]
        results = parallel_map(convert, work, 'converting to 16 kHz FLAC', unit='clip')
    results = dict(zip(candidates, results))
    return ({clip: path for clip, (path, _) in results.items() if path},
            {clip: problem for clip, (path, problem) in results.items() if not path})


def clip_name(segment, suffix):
    """The name of a file that is this clip and no other."""
    return f'{segment.video_id}_{segment.start_seconds:.3f}{suffix}'


def pack(files, folder, shard_bytes):
    """Pack files into the shards folder/0001.zip, 0002.zip, ... of about so many bytes, but for those packed before.

    files: name in its shard -> path. Returns name -> path into the shard, for all of them. A shard appears when it is
    whole and was read back: after a broken-off run, the next packs what is in none.
    """
    with only_one(folder):
        remove_leftovers(folder, '*.zip')
        packed, count = packed_before(folder)
        left = collections.deque((name, path) for name, path in files.items() if name not in packed)
        with tqdm(total=len(left), desc='packing shards', unit='clip', disable=None) as bar:
            while left:
                count += 1
                shard = folder / f'{count:04d}.zip'
                with atomic_write(shard) as partial:
                    names = write_shard(partial, left, shard_bytes, bar)
                    check_shard(partial)
                packed.update(dict.fromkeys(names, shard))
                logger.info('%s: %d clips, %d left to pack', shard, len(names), len(left))
    return {name: f'{packed[name]}/{name}' for name in files}


def packed_before(folder):
    """What the shards of a folder hold, as name -> shard, and the highest number of a shard. Raises DataError."""
    packed, count = {}, 0
    for shard in sorted(folder.glob('*.zip')):
        try:
            with zipfile.ZipFile(shard) as archive:
                packed.update(dict.fromkeys(archive.namelist(), shard))
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(f'the shard {shard} cannot be read ({error}): delete it, and the same line packs its clips '
                            'again') from None
        count = max(count, int(shard.stem) if shard.stem.isdecimal() else 0)
    return packed, count


def write_shard(path, left, shard_bytes, bar):
    """Move files from the front of a deque of (name, path) into a new zip until it has so many bytes.

    Returns their names. Raises DataError for a file that cannot be read.
    """
    names, size = [], 0
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED) as archive:
        while left and size < shard_bytes:
            name, source = left.popleft()
            try:
                data = Path(source).read_bytes()
            except OSError as error:
                raise DataError(f'cannot read {source}: {error.strerror}') from None
            archive.writestr(zipfile.ZipInfo(name), data)
            names.append(name)
            size += len(data)
            bar.update()
    return names


def check_shard(path):
    """Read a shard back from the disk and hold every file in it against its checksum; raises OSError."""
    with open(path, 'rb+') as file:  # Windows syncs no file that is open for reading alone
        os.fsync(file.fileno())
        if hasattr(os, 'posix_fadvise'):  # what is still in memory says nothing of the disk
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            with zipfile.ZipFile(file) as archive:
                damaged = archive.testzip()
        except zipfile.BadZipFile:
            damaged = 'the list of its files'
        if damaged:
            raise OSError(f'{damaged} cannot be read back as it was written')


def missing_table(segments, found, problems, ambiguous):
    """The clips that no datafile will have, and why, as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['video_id', 'start_seconds', 'problem'])
    for clip, segment in enumerate(segments):
        if clip not in found:
            problem = problems.get(clip) or (AMBIGUOUS if clip in ambiguous else 'missing')
            writer.writerow([segment.video_id, f'{segment.start_seconds:.3f}', problem])
    return text.getvalue()


def check_paths(audio_dir, out, flac_dir):
    """Raise DataError where the folders and the datafile contradict each other, or what is there."""
    if not audio_dir.is_dir():
        raise DataError(f'--audio_dir {audio_dir} is not a folder')
    if flac_dir and flac_dir.resolve() == audio_dir.resolve():
        raise DataError('--flac_dir must be another folder than --audio_dir')
    if out.is_dir():
        raise DataError(f'--out {out} is a folder: give the datafile that is to be written')


def prepare(lists, audio_dir, out, flac_dir, label_csv, shards_dir=None, shard_bytes=GB):
    """Write the datafile `out` of the clips that are there, and beside it the list of the others; say how many."""
    segments = read_segment_lists(lists, read_labels(label_csv).index())
    check_paths(audio_dir, out, flac_dir)
    with making(out.parent, *filter(None, (flac_dir, shards_dir))):
        write_datafile(segments, audio_dir, out, flac_dir, shards_dir, shard_bytes)


def write_datafile(segments, audio_dir, out, flac_dir, shards_dir, shard_bytes):
    """What `prepare` does once the segments are read."""
    matches = match_files(segments, audio_files(audio_dir))
    check_names([*filter(None, (flac_dir, shards_dir)), *itertools.chain.from_iterable(matches.candidates.values())])
    found, problems = read_files(segments, matches.candidates, flac_dir)
    rest = Path(str(out).removesuffix('.json') + '_missing.csv')
    write_text(rest, missing_table(segments, found, problems, matches.ambiguous))
    report(segments, found, problems, matches.other_start, rest)
    if not found:
        raise DataError(nothing_found(audio_dir, segments, problems))
    if shards_dir:
        names = {clip: clip_name(segments[clip], _suffix(path)) for clip, path in found.items()}
        packed = pack({names[clip]: path for clip, path in found.items()}, shards_dir, shard_bytes)
        found = {clip: packed[name] for clip, name in names.items()}
    chosen = ((segments[clip], path) for clip, path in found.items())
    write_json(out, {'data': [{'video_id': segment.video_id, 'wav': path, 'labels': ','.join(segment.labels)}
                              for segment, path in chosen]})
    print(f'the datafile is {out}')


def report(segments, found, problems, other_start, rest):
    """Print how many of the listed clips can be used."""
    missing = len(segments) - len(found) - len(problems)
    print(f'listed {len(segments)}, found {len(found)} ({len(found) / len(segments):.1%}), missing {missing}, '
          f'unreadable {len(problems)}')
    if other_start:
        print(f'{other_start} files of listed videos are left out, since their names have another start than the list')
    if problems:
        print(f'the first unreadable: {next(iter(problems.values()))}')
    if missing or problems:
        print(f'the missing and unreadable are listed in {rest}')


def nothing_found(audio_dir, segments, problems):
    """What to say where no clip can be used."""
    if problems:
        first = next(iter(problems.values()))
        return f'none of the {len(problems)} clips in {audio_dir} can be used; the first: {first}'
    segment = segments[0]
    name, start, end = segment.video_id, segment.start_seconds, segment.end_seconds
    return (f'{audio_dir} holds no file of a listed clip: a file belongs to a clip by its name, which is the 11 '
            'characters of the video id, after a Y if you like, and the start (and end) in seconds or milliseconds, '
            f'where it has them; for the first clip: {name}.wav, Y{name}.flac, {name}_{start:g}.mp3, '
            f'{name}_{start:.3f}_{end:.3f}.wav or {name}_{start * 1000:.0f}_{end * 1000:.0f}.flac')


def main(argv=None):
    """Entry point."""
    parser = OptionParser(prog='prep_audioset.py', description=__doc__)
    add = parser.add_argument
    add('--segments', nargs='+', required=True, help='segment lists, such as balanced_train_segments.csv')
    add('--audio_dir', type=Path, required=True, help='folder that has the audio files, at any depth')
    add('--out', type=Path, required=True, help='datafile to write, such as data/datafiles/balanced_train_data.json')
    add('--flac_dir', type=Path, help='write 16 kHz mono FLAC copies there, which load faster, and list those')
    add('--shards', type=Path, help='pack the files into uncompressed zip archives there, and list those, for file '
                                    'systems that are slow to open files; to pack changed files, delete the folder')
    add('--shard_gb', type=number(above=0), default=1, help='size of a shard in GB, about')
    add('--label_csv', default=LABEL_FILE, help='label file: index,mid,display_name')
    args = parser.parse_args(argv)
    setup_logging()
    with exit_on(BrokenProcessPool, DataError, OSError):
        prepare(args.segments, args.audio_dir.absolute(), args.out, args.flac_dir and args.flac_dir.absolute(),
                args.label_csv, args.shards and args.shards.absolute(), args.shard_gb * GB)


if __name__ == '__main__':
    main()
