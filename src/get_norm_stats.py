"""Print mean and standard deviation of the fbanks of a datafile: --dataset_mean, --dataset_std."""

from utilities.cli import (
    OptionParser,
    add_input_options,
    add_mel_bins,
    add_num_workers,
    exit_on,
    number,
    run_program,
    setup_logging,
)


def make_parser() -> OptionParser:
    """Return the parser of get_norm_stats.py."""
    parser = OptionParser(prog='get_norm_stats.py', description=__doc__)
    add = parser.add_argument
    add('--data_train', required=True, help='datafile of the training set')
    add_input_options(parser, length_help='use at most this many frames of 10 ms of each recording')
    add_mel_bins(parser)
    add('--mixup', type=number(0, 1), default=0,
        help='share of the recordings that are mixed with another, as in training')
    add_num_workers(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Read the options and print the statistics."""
    args = make_parser().parse_args(argv)
    # Imported after the options, because torch takes seconds: see utilities/cli.py.
    from audio.reading import AudioError
    from dataloader import AudiosetDataset
    from training.errors import TrainingError, as_training_errors
    from training.norm_stats import norm_stats
    from utilities.errors import DataError
    setup_logging()
    audio_conf = {'num_mel_bins': args.num_mel_bins, 'target_length': args.audio_length,
                  'sample_rate': args.sample_rate, 'mode': 'train', 'mixup': args.mixup}
    with exit_on(AudioError, DataError, TrainingError), as_training_errors():
        dataset = AudiosetDataset(args.data_train, audio_conf, args.label_csv)
        mean, std = norm_stats(dataset, args.num_workers)
    print(f'--dataset_mean {mean:.7f} --dataset_std {std:.7f}')


if __name__ == '__main__':
    run_program(main)
