"""Make a datafile of AudioSet: find the clips of the segment lists among recordings.

The rules by which a recording holds a clip are in prep_audioset.py.
"""
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from audio.formats import AUDIO_SUFFIXES
from clip_report import found_clips, nothing_found, report_left_out
from clips import Found, Matches, Problem, collect_clips, match_recordings
from copies import CopyConf, clip_name, suffix_of
from packing import pack, packed_before
from parquet_rows import Row, list_rows
from utilities.errors import DataError
from utilities.folders import files_below, output_folders
from utilities.labels import read_labels
from utilities.parallel import parallel_map
from utilities.preparation import check_names
from utilities.segments import Segment, read_segment_lists
from utilities.texts import write_json

# A path, and its Row if it is inside a parquet file, else None.
Recording = tuple[str, Row | None]
Paths = Mapping[int, str]  # the number of a clip in the list -> path


def prepare(lists: Sequence[str | Path], audio_dir: Path, out: Path,
            flac_dir: Path | None, label_csv: str | Path,
            shards_dir: Path | None = None, shard_bytes: float = 10 ** 9) -> None:
    """Write the datafile of the clips that are there; beside it, tables of missing and short clips.

    Args:
        lists: segment lists.
        audio_dir: folder that has the recordings.
        out: the datafile.
        flac_dir: where 16 kHz FLAC copies of all clips go, or None.
        label_csv: label file.
        shards_dir: where the recordings are packed, or None.
        shard_bytes: size of a shard, about.

    Raises:
        DataError: no clip can be used, or a path or a file that an argument names is wrong.
    """
    segments = read_segment_lists(lists, read_labels(label_csv).index())
    check_paths(audio_dir, out, flac_dir)
    copy_conf = CopyConf(flac_dir or (shards_dir and shards_dir / 'copies'), of_all=bool(flac_dir))
    with output_folders(out.parent, *filter(None, (copy_conf.folder, shards_dir))):
        recordings, others = list_recordings(audio_dir)
        matches = match_recordings(segments, recordings)
        results = collect_listed(segments, recordings, matches, copy_conf, shards_dir)
        report_left_out(segments, results, matches, others, out)
        found = found_clips(results)
        if not found:
            raise DataError(nothing_found(audio_dir, segments, results))

        paths = {number: one.path for number, one in found.items()}
        if shards_dir:
            # Without --flac_dir, the only use of the copies is to be packed.
            scratch = None if flac_dir else copy_conf.folder
            paths = pack_clips(segments, paths, shards_dir, shard_bytes, scratch)
        entries = [make_entry(segments[number], path, found[number])
                   for number, path in paths.items()]
        write_json(out, {'data': entries})
        print(f'the datafile is {out}')


def check_paths(audio_dir: Path, out: Path, flac_dir: Path | None) -> None:
    """Raise DataError if audio_dir is no folder, if out is one, or if flac_dir is audio_dir."""
    if not audio_dir.is_dir():
        raise DataError(f'--audio_dir {audio_dir} is not a folder')
    if flac_dir and flac_dir.resolve() == audio_dir.resolve():
        raise DataError('--flac_dir must be another folder than --audio_dir')
    if out.is_dir():
        raise DataError(f'--out {out} is a folder: give the datafile that is to be written')


def collect_listed(segments: list[Segment], recordings: Sequence[Recording], matches: Matches,
                   copy_conf: CopyConf, shards_dir: Path | None) -> dict[int, Found | Problem]:
    """Find and copy each listed clip. Return what became of it, in the order of the list.

    Raises:
        DataError: recordings are in parquet files, and there is no folder to unpack them to; or a
            path is not UTF-8.
    """
    row = next((row for _, row in recordings if row), None)
    if copy_conf.folder is None and row:
        raise DataError(f'parquet files such as {row.path} are to be unpacked: give --flac_dir or '
                        f'--shards')
    candidates = itertools.chain.from_iterable(matches.candidates.values())
    check_names([*filter(None, (copy_conf.folder, shards_dir)), *(one.path for one in candidates)])
    return collect_clips(segments, matches.candidates, packed_clips(shards_dir), copy_conf)


def list_recordings(audio_dir: Path) -> tuple[list[Recording], list[str]]:
    """Return all recordings below a folder, and the paths of the other files there."""
    files, parquet, others = [], [], []
    for path in files_below(audio_dir):
        if suffix_of(path) in AUDIO_SUFFIXES:
            files.append(path)
        elif path.endswith('.parquet'):
            parquet.append(path)
        else:
            others.append(path)
    listed = parallel_map(list_rows, parquet, 'reading parquet files')
    rows = itertools.chain.from_iterable(listed)
    recordings: list[Recording] = [(path, None) for path in files]
    return recordings + [(f'{row.path}/{row.name}', row) for row in rows], others


def packed_clips(shards_dir: Path | None) -> dict[str, list[str]]:
    """Return what shards hold already: clip_name without suffix -> paths into the shards."""
    clips: dict[str, list[str]] = {}
    for name, shard in (packed_before(shards_dir)[0] if shards_dir else {}).items():
        clips.setdefault(name.removesuffix(suffix_of(name)), []).append(f'{shard}/{name}')
    return clips


def pack_clips(segments: Sequence[Segment], paths: Paths, shards_dir: Path, shard_bytes: float,
               scratch: Path | None) -> dict[int, str]:
    """Pack the files of clips into shards. Return their paths in the shards.

    scratch: a folder whose files are removed once they are packed, or None.
    """
    names = {number: clip_name(segments[number], suffix_of(path))
             for number, path in paths.items()}
    packed = pack({name: paths[number] for number, name in names.items()}, shards_dir,
                  shard_bytes, scratch=scratch)
    return {number: packed[name] for number, name in names.items()}


def make_entry(segment: Segment, path: str, found: Found) -> dict:
    """Return a clip's entry in the datafile."""
    place = found.place
    part = {} if place.is_all else {'start': place.start, 'seconds': round(place.seconds, 3)}
    return {'video_id': segment.video_id, 'wav': path, 'labels': ','.join(segment.labels), **part}
