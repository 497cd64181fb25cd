"""Prepare AudioSet: find the clips of the segment lists among your recordings; write a datafile.

A recording belongs to a video by the id in its name: ID, YID, id_ID, Title-ID or Title [ID]. A
start and an end may follow, in seconds or milliseconds: ID_30.000, ID_30000_40000. A recording
whose name has another start than the list is another clip, and is left out. Of the others, the
length tells what they hold:

(1) As long as the segment, up to a second: it is the segment.
(2) Longer, and it reaches to the segment's end: it is the whole video, and the segment is cut out
of it. But if it is as long as the start and the end in its name say, it begins with the segment.
(3) Longer, and it ends within the segment: it is the whole video, if its name has no start. What
there is of the segment is used.
(4) Shorter: it begins with the segment if its name has the start, or if the segment begins with
the video. It is used.
(5) Anything else is left out: it ends before the segment, or nobody can know where it begins. So
is a recording that may be the cut of several segments of the list, as its name has no start.

A cut is written to --flac_dir or --shards; without either, the datafile says start and seconds of
the segment. If a clip has several recordings, whole segments come before shorter ones, then names
with the start before others; files come before the rows of parquet files. Beside the datafile
OUT.json, OUT_missing.csv lists the clips that are left out and why, OUT_short.csv those of which
more than a second is missing.
"""
import csv
import io
import itertools
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'src'))
from audio.formats import AUDIO_SUFFIXES
from clips import Copies, Found, Problem, clip_name, find_clips, match_recordings, suffix
from packing import pack, packed_before
from parquet_rows import list_rows
from utilities.cli import OptionParser, exit_on, number, setup_logging
from utilities.errors import DataError
from utilities.folders import files_below, output_folders
from utilities.formatting import quoted
from utilities.labels import read_labels
from utilities.parallel import parallel_map
from utilities.places import TOLERANCE, is_short
from utilities.preparation import check_names
from utilities.segments import read_segment_lists
from utilities.texts import write_json, write_text

HERE = Path(__file__).resolve().parent
LABEL_FILE = HERE / 'data' / 'class_labels_indices.csv'
# What is left out before it is read, with examples.
OTHER_START = ('files of listed videos are left out, since their names have another start than '
               'the list')
UNLISTED = 'files match no clip of the list'
NO_AUDIO = 'files are not audio by their suffix'
EXAMPLES = 3
GB = 10 ** 9  # bytes


def list_recordings(audio_dir):
    """Return all recordings below a folder, and the other files there.

    A recording is a path, and a Row if it is in a parquet file.
    """
    files, parquet, others = [], [], []
    for path in files_below(audio_dir):
        if suffix(path) in AUDIO_SUFFIXES:
            files.append(path)
        else:
            (parquet if path.endswith('.parquet') else others).append(path)
    listed = parallel_map(list_rows, parquet, 'reading parquet files')
    rows = itertools.chain.from_iterable(listed)
    recordings = [(path, None) for path in files]
    return recordings + [(f'{row.path}/{row.name}', row) for row in rows], others


def missing_table(segments, results):
    """Return the clips that no datafile will have, and why, as CSV."""
    return _table('problem', ((segment, result.text if result else 'missing')
                              for clip, segment in enumerate(segments)
                              if not isinstance(result := results.get(clip), Found)))


def short_table(segments, found):
    """Return the clips of which more than a second is missing, and how much there is, as CSV."""
    return _table('seconds', ((segments[clip], f'{one.place.seconds:.3f}')
                              for clip, one in found.items()
                              if is_short(segments[clip], one.place.seconds)))


def _table(column, rows):
    """Return pairs of a Segment and what is to be said about it as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['video_id', 'start_seconds', column])
    for segment, said in rows:
        writer.writerow([segment.video_id, f'{segment.start_seconds:.3f}', said])
    return text.getvalue()


def check_paths(audio_dir, out, flac_dir):
    """Raise DataError if folders and datafile contradict each other, or what is there."""
    if not audio_dir.is_dir():
        raise DataError(f'--audio_dir {audio_dir} is not a folder')
    if flac_dir and flac_dir.resolve() == audio_dir.resolve():
        raise DataError('--flac_dir must be another folder than --audio_dir')
    if out.is_dir():
        raise DataError(f'--out {out} is a folder: give the datafile that is to be written')


def prepare(lists, audio_dir, out, flac_dir, label_csv, shards_dir=None, shard_bytes=GB):
    """Write the datafile `out` of the clips that are there, and beside it lists of the others."""
    segments = read_segment_lists(lists, read_labels(label_csv).index())
    check_paths(audio_dir, out, flac_dir)
    copies = Copies(flac_dir or (shards_dir and shards_dir / 'copies'), of_all=bool(flac_dir))
    with output_folders(out.parent, *filter(None, (copies.folder, shards_dir))):
        write_datafile(segments, audio_dir, out, copies, shards_dir, shard_bytes)


def write_datafile(segments, audio_dir, out, copies, shards_dir, shard_bytes):
    """Do what `prepare` does once the segments are read."""
    recordings, others = list_recordings(audio_dir)
    if copies.folder is None and any(row for _, row in recordings):
        raise DataError(f'{audio_dir} holds parquet files, which are to be unpacked: give '
                        '--flac_dir or --shards')
    matches = match_recordings(segments, recordings)
    candidates = itertools.chain.from_iterable(matches.candidates.values())
    check_names([*filter(None, (copies.folder, shards_dir)), *(one.path for one in candidates)])
    results = find_clips(segments, matches.candidates, packed_clips(shards_dir), copies)
    found = {clip: one for clip, one in results.items() if isinstance(one, Found)}
    stem = str(out).removesuffix('.json')
    write_text(Path(f'{stem}_missing.csv'), missing_table(segments, results))
    write_text(Path(f'{stem}_short.csv'), short_table(segments, found))
    report(segments, results, stem)
    for paths, what in ((matches.other_start, OTHER_START), (matches.unlisted, UNLISTED),
                        (others, NO_AUDIO)):
        if paths:
            print(f'{len(paths)} {what}, such as {", ".join(map(quoted, paths[:EXAMPLES]))}')
    if not found:
        raise DataError(nothing_found(audio_dir, segments, results))
    paths = {clip: one.path for clip, one in found.items()}
    if shards_dir:
        names = {clip: clip_name(segments[clip], suffix(path)) for clip, path in paths.items()}
        packed = pack({name: paths[clip] for clip, name in names.items()}, shards_dir, shard_bytes,
                      scratch=None if copies.of_all else copies.folder)
        paths = {clip: packed[name] for clip, name in names.items()}
    write_json(out, {'data': [entry(segments[clip], path, found[clip].place)
                              for clip, path in paths.items()]})
    print(f'the datafile is {out}')


def packed_clips(shards_dir):
    """Return what shards hold already: clip_name without suffix -> paths into the shards."""
    clips = {}
    for name, shard in (packed_before(shards_dir)[0] if shards_dir else {}).items():
        clips.setdefault(name.removesuffix(suffix(name)), []).append(f'{shard}/{name}')
    return clips


def entry(segment, path, place):
    """Return a clip's entry in the datafile."""
    window = {} if place.is_all else {'start': place.start, 'seconds': round(place.seconds, 3)}
    labels = ','.join(segment.labels)
    return {'video_id': segment.video_id, 'wav': path, 'labels': labels, **window}


def report(segments, results, stem):
    """Print how many of the listed clips can be used."""
    found = {clip: one for clip, one in results.items() if isinstance(one, Found)}
    problems = [one for one in results.values() if isinstance(one, Problem)]
    elsewhere = [one.text for one in problems if one.is_elsewhere]
    unreadable = [one.text for one in problems if not one.is_elsewhere]
    print(f'listed {len(segments)}, found {len(found)} ({len(found) / len(segments):.1%}), '
          f'missing {len(segments) - len(results)}, unreadable {len(unreadable)}, '
          f'of unknown place {len(elsewhere)}')
    if cuts := sum(one.is_cut for one in found.values()):
        print(f'{cuts} clips are cut out of longer recordings')
    if short := sum(is_short(segments[clip], one.place.seconds) for clip, one in found.items()):
        print(f'{short} clips are more than {TOLERANCE:g} s shorter than their segments; they are '
              f'listed in {stem}_short.csv')
    for title, texts in (('unreadable', unreadable), ('of unknown place', elsewhere)):
        if texts:
            print(f'the first {title}: {texts[0]}')
    if len(found) < len(segments):
        print(f'the clips that are left out are listed in {stem}_missing.csv')


def nothing_found(audio_dir, segments, results):
    """Return what to say if no clip can be used."""
    if results:
        first = next(iter(results.values()))
        return (f'none of the {len(results)} clips in {audio_dir} can be used; the first: '
                f'{first.text}')
    segment = segments[0]
    name, start, end = segment.video_id, segment.start_seconds, segment.end_seconds
    return (f'{audio_dir} holds no file of a listed clip: a file belongs to a clip by its name, '
            'which has the 11 characters of the video id, and perhaps the start (and end) in '
            f'seconds or milliseconds; for the first clip: {name}.wav, Y{name}.flac, Title '
            f'[{name}].m4a, Title-{name}.webm, {name}_{start:g}.mp3, '
            f'{name}_{start:.3f}_{end:.3f}.wav or {name}_{start * 1000:.0f}_{end * 1000:.0f}.flac')


def main(argv=None):
    """Entry point."""
    parser = OptionParser(prog='prep_audioset.py', description=__doc__)
    add = parser.add_argument
    add('--segments', nargs='+', required=True,
        help='segment lists, such as balanced_train_segments.csv')
    add('--audio_dir', type=Path, required=True,
        help='folder that has the recordings, at any depth: audio and video files, packed with '
             'gzip or not, and parquet files as those of agkphysics/AudioSet on Hugging Face')
    add('--out', type=Path, required=True,
        help='datafile to write, such as data/datafiles/balanced_train_data.json')
    add('--flac_dir', type=Path,
        help='write 16 kHz mono FLAC copies of the segments there, which load faster, and list '
             'those')
    add('--shards', type=Path,
        help='pack the files into uncompressed zip archives there, and list those, for file '
             'systems that are slow to open files; what was cut or unpacked is packed as 16 kHz '
             'mono FLAC; to pack changed files, delete the folder')
    add('--shard_gb', type=number(above=0), default=1, help='size of a shard in GB, about')
    add('--label_csv', default=LABEL_FILE, help='label file: index,mid,display_name')
    args = parser.parse_args(argv)
    setup_logging()
    with exit_on(BrokenProcessPool, DataError, OSError):
        prepare(args.segments, args.audio_dir.absolute(), args.out,
                args.flac_dir and args.flac_dir.absolute(), args.label_csv,
                args.shards and args.shards.absolute(), args.shard_gb * GB)


if __name__ == '__main__':
    main()
