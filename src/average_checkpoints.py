"""Average the weights of several checkpoints of one model, as --wa does at the end of a run."""
from pathlib import Path

from models import WeightsError, load_model, mean_state_dict, save_checkpoint
from models.weights import locate
from utilities.cli import OptionParser, exit_on, setup_logging
from utilities.folders import making
from utilities.labels import DataError


def average(sources, out):
    """Write the mean of checkpoints, and the description of the first, to `out`."""
    paths = [locate(source) for source in sources]
    model, description = load_model(paths[0])
    model.load_state_dict(mean_state_dict(paths))
    with making(out.parent):
        save_checkpoint(model, out, **description)


def main(argv=None):
    """Entry point."""
    parser = OptionParser(prog='average_checkpoints.py', description=__doc__)
    parser.add_argument('--checkpoints', required=True, nargs='+', help='checkpoints of one model')
    parser.add_argument('--out', required=True, type=Path, help='the averaged checkpoint, .pth or .safetensors')
    args = parser.parse_args(argv)
    setup_logging()
    if args.out.suffix not in ('.pth', '.safetensors'):
        parser.error(f'--out must end in .pth or .safetensors, got {args.out}')
    with exit_on(DataError, WeightsError, OSError):
        average(args.checkpoints, args.out)
    print(f'mean of {len(args.checkpoints)} checkpoints: {args.out}')


if __name__ == '__main__':
    main()
