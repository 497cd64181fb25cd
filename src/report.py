"""Write report.html of an experiment, or of its folds, again."""
from pathlib import Path

from utilities.cli import OptionParser, exit_on, setup_logging


def main(argv=None):
    """Entry point."""
    parser = OptionParser(prog='report.py', description=__doc__)
    parser.add_argument('--exp_dir', type=Path, required=True, help='of an experiment, or of fold1, fold2, ...')
    exp_dir = parser.parse_args(argv).exp_dir
    # After the options: see utilities/cli.py.
    from reports.pages import finished_folds, fold_page, run_page
    from utilities.errors import DataError
    from utilities.texts import write_text
    setup_logging()
    with exit_on(DataError, OSError):
        is_run = (exp_dir / 'args.json').exists()
        write_text(exp_dir / 'report.html',
                   run_page(exp_dir) if is_run else fold_page(exp_dir, finished_folds(exp_dir)[0]))
    print(exp_dir / 'report.html')


if __name__ == '__main__':
    main()
