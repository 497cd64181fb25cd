"""Prepare Speech Commands V2 (Warden, 2018), 35 words: write a datafile for each official split."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'src'))
from utilities.cli import OptionParser, exit_on, run_program, setup_logging

HERE = Path(__file__).resolve().parent


def main(argv: list[str] | None = None) -> None:
    """Prepare the dataset as the command line says."""
    parser = OptionParser(prog='prep_sc.py', description=__doc__)
    parser.add_argument('--data_dir', help="folder or tar.gz in Speech Commands' layout; without "
                        'it, speech_commands_v0.02 in prep_dir if the published code left it '
                        'there, else a download')
    parser.add_argument('--prep_dir', type=Path, default=HERE / 'data',
                        help='where the prepared data go')
    args = parser.parse_args(argv)
    # After the options: see src/utilities/cli.py.
    from speech_commands import prepare
    from utilities.errors import DataError
    from utilities.preparation import locked_folder
    setup_logging()
    with exit_on(DataError, OSError):
        out_dir = args.prep_dir.resolve()
        with locked_folder(out_dir):
            prepare(args.data_dir, out_dir)


if __name__ == '__main__':
    run_program(main)
