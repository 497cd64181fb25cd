"""Prepare AudioSet: find the clips of the segment lists among your recordings; write a datafile.

A recording belongs to a video by the id in its name: ID, YID, id_ID, Title-ID or Title [ID]. A
start and an end may follow, in seconds or milliseconds: ID_30.000, ID_30000_40000. A recording
whose name has another start than the list is another clip, and is left out. The length of the
others tells what they hold:

(1) As long as the segment, or up to a second shorter or longer: it is the segment.
(2) Longer, and it reaches to the segment's end: it is the whole video, and the segment is cut out
of it. But if it is as long as the start and the end in its name say, it begins with the segment.
(3) Longer, and it ends within the segment: it is the whole video, if its name has no start. What
there is of the segment is used.
(4) Shorter: it begins with the segment if its name has the start, or if the segment begins with
the video. It is used.
(5) Anything else is left out: it ends before the segment, or nobody can know where it begins. A
recording whose name has no start is left out, too, if it could be the cut of several segments of
the list.

A cut is written to --flac_dir or --shards; without either, the datafile says start and seconds of
the segment. If a clip has several recordings, whole segments come before shorter ones, then names
with the start before others; files come before the rows of parquet files. Beside the datafile
OUT.json, OUT_missing.csv lists the clips that are left out and why, OUT_short.csv those of which
more than a second is missing.
"""
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'src'))
from utilities.cli import OptionParser, exit_on, number, run_program, setup_logging

HERE = Path(__file__).resolve().parent
LABEL_FILE = HERE / 'data' / 'class_labels_indices.csv'
GB = 10 ** 9  # bytes


def make_parser() -> OptionParser:
    """Return the parser of all options."""
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
             'those; copies that are there stay: to copy changed recordings, delete the folder')
    add('--shards', type=Path,
        help='pack the files into uncompressed zip archives there, and list those, for file '
             'systems that are slow to open files; what was cut or unpacked is packed as 16 kHz '
             'mono FLAC; to pack changed files, delete the folder')
    add('--shard_gb', type=number(above=0), default=1, help='size of a shard in GB, about')
    add('--label_csv', default=LABEL_FILE, help='label file: index,mid,display_name')
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Read the options and make the datafile."""
    args = make_parser().parse_args(argv)
    # After the options: see src/utilities/cli.py.
    from concurrent.futures.process import BrokenProcessPool

    from audioset import prepare
    from utilities.errors import DataError
    setup_logging()
    with exit_on(BrokenProcessPool, DataError, OSError):
        prepare(args.segments, args.audio_dir.absolute(), args.out,
                args.flac_dir and args.flac_dir.absolute(), args.label_csv,
                args.shards and args.shards.absolute(), args.shard_gb * GB)


if __name__ == '__main__':
    run_program(main)
