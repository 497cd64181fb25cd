"""Download published checkpoints to $TORCH_HOME, if it is set, else to pretrained_models/.

A checkpoint that is there already is not downloaded again.
"""
from __future__ import annotations  # --help works with any Python from 3.8 on

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'src'))
from utilities.cli import OptionParser, run_program, setup_logging

SOURCES = {'auto': ('url', 'hub'), 'dropbox': ('url',), 'huggingface': ('hub',)}

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> None:
    """Download the checkpoints that the command line names. Print their paths."""
    parser = OptionParser(prog='download_models.sh', description=__doc__)
    parser.add_argument('names', nargs='*', metavar='NAME', help='checkpoints to download; without '
                        'a NAME, all; pretrained_models/README.md lists them')
    parser.add_argument('--source', choices=list(SOURCES), default='auto',
                        help='auto: Dropbox first, and if that fails, Hugging Face')
    args = parser.parse_args(argv)
    # After the options: see src/utilities/cli.py.
    from models import WeightsError
    from models.published import PUBLISHED, published_file
    from models.weights import find_or_download
    setup_logging()
    unknown = [name for name in args.names if not published_file(name)]
    if unknown:
        names = ', '.join(Path(file.name).stem for file in PUBLISHED)
        parser.error(f'there is no published checkpoint {", ".join(unknown)}; there are {names}')
    failed = 0
    for file in map(published_file, args.names) if args.names else PUBLISHED:
        try:
            print(find_or_download(file, SOURCES[args.source]))
        except WeightsError as error:
            logger.error('%s', error)
            failed += 1
    if failed:
        sys.exit(f'{failed} could not be downloaded; the same command tries again')


if __name__ == '__main__':
    run_program(main)
