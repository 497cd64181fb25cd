"""Estimate, on paper, what several GPUs reach in training, and where network, storage or cores become the limit.

Every GPU trains on a batch of its own, and a step ends with the sum of all gradients. A ring all-reduce over n members
moves 2 (n - 1) / n of the gradient's bytes through each of their links (Patarasuk and Yuan, J. Parallel Distrib.
Comput. 69, 2009). Here the GPUs of a node sum over the links between them, each a share of the gradient in the end, and
the nodes over the network, which the GPUs of a node divide among them. While the backward pass still computes, the
gradients that it has finished travel already (Li et al., PyTorch Distributed, VLDB 2020); what that does not hide
lengthens the step. Data workers read and decode the next batches meanwhile, so a step takes the longest of these three:
to compute and end the all-reduce, to decode a batch on the cores of a GPU, to read the batches of all GPUs from the
storage. Left out: latency, GPUs that wait for the slowest one, the samples' own way over the network, validation.
"""
import sys
from dataclasses import dataclass, fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'src'))
from utilities.cli import OptionParser, number, whole

BACKWARD_SHARE = 2 / 3  # of a step: two matrix products, of inputs and of weights, for each one of the forward pass
MOST = 1e9  # of what is measured in the units of the options; past it, and below its inverse, sums lose their terms
MOST_GPUS = 4096  # the estimate's reach: latency, which is left out, grows with them
COLUMNS = ('GPUs', 'batch', 'samples/s ideal', 'reached', 'efficiency', 'all-reduce ms', 'hidden', 'storage GB/s',
           'cores', 'hours an epoch', 'limit')


@dataclass(frozen=True)
class Setup:
    """The work of a step and what the machines can do: the options of the same names, in their units."""
    step_seconds: float
    batch_size: int
    sample_kb: float
    gradient_mb: float
    decode_ms: float
    overlap: float
    gpus_a_node: int
    node_link_gbyte: float
    network_gbit: float
    storage_gbyte: float
    cores_a_gpu: float


@dataclass(frozen=True)
class Estimate:
    """A step of `gpus` GPUs: seconds of its all-reduce and how many of them are hidden.

    waits: what each resource alone adds to the time (s) that the GPUs compute, by name.
    """
    gpus: int
    all_reduce: float
    hidden: float
    waits: dict[str, float]

    @property
    def wait(self):
        """Seconds that the step is longer than the GPUs compute."""
        return max(self.waits.values())

    @property
    def limit(self):
        """The name of what makes the step as long as it is."""
        return max(self.waits, key=self.waits.get) if self.wait else 'GPUs'


def ring_seconds(members, megabytes, gbyte_per_second):
    """Seconds of a ring all-reduce in which each member has one link of that speed."""
    return 2 * (members - 1) / members * megabytes / 1e3 / gbyte_per_second


def in_whole_nodes(setup, gpus):
    """Whether so many GPUs are at most a node's, or those of whole nodes."""
    return gpus <= setup.gpus_a_node or gpus % setup.gpus_a_node == 0


def estimate(setup, gpus):
    """The Estimate of a Setup on so many GPUs, which must be in_whole_nodes."""
    nodes = max(1, gpus // setup.gpus_a_node)
    inside = ring_seconds(gpus // nodes, setup.gradient_mb, setup.node_link_gbyte)
    between = ring_seconds(nodes, setup.gradient_mb, setup.network_gbit / 8)
    all_reduce = inside + between
    hidden = min(all_reduce, setup.overlap * BACKWARD_SHARE * setup.step_seconds)
    reading = gpus * setup.batch_size * setup.sample_kb / 1e6 / setup.storage_gbyte
    decoding = setup.batch_size * setup.decode_ms / 1e3 / setup.cores_a_gpu
    return Estimate(gpus, all_reduce, hidden, {
        'node links': all_reduce - hidden if inside >= between else 0.0,
        'network': all_reduce - hidden if inside < between else 0.0,
        'storage': max(0.0, reading - setup.step_seconds),
        'cores': max(0.0, decoding - setup.step_seconds)})


def first_waits(setup):
    """The number of GPUs from which a step waits for each resource, whatever the others do; None for never."""
    counts = (gpus for gpus in range(1, MOST_GPUS + 1) if in_whole_nodes(setup, gpus))
    estimates = [estimate(setup, gpus) for gpus in counts]
    return {name: next((one.gpus for one in estimates if one.waits[name]), None) for name in estimates[0].waits}


def table_row(setup, one, clips):
    """An Estimate as the texts of COLUMNS. Storage and cores are what keeps all GPUs busy."""
    batch = one.gpus * setup.batch_size
    step = setup.step_seconds + one.wait
    ideal = batch / setup.step_seconds
    hidden = f'{one.hidden / one.all_reduce:.0%}' if one.all_reduce else '-'
    return (str(one.gpus), str(batch), f'{ideal:.1f}', f'{batch / step:.1f}', f'{setup.step_seconds / step:.1%}',
            f'{1e3 * one.all_reduce:.1f}', hidden, f'{ideal * setup.sample_kb / 1e6:.3f}',
            f'{ideal * setup.decode_ms / 1e3:.1f}', f'{clips * step / batch / 3600:.2f}', one.limit)


def aligned(rows):
    """Lines of a table whose columns end below each other."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return '\n'.join('  '.join(text.rjust(width) for text, width in zip(row, widths)) for row in rows)


def make_parser():
    """All options, with their defaults."""
    parser = OptionParser(prog='scaling.py', description=__doc__)
    add, positive = parser.add_argument, number(1e-9, MOST)
    add('--step_seconds', type=positive, required=True,
        help='seconds of a training step of one GPU, to be measured on it: --batch_size divided by the samples/s that '
             'run.py --device cuda:0 reports where it does not wait for data')
    add('--batch_size', type=whole(1), default=12, help='samples of a step on one GPU')
    add('--gpus', type=whole(1), nargs='+', default=[1, 8, 64], help='numbers of GPUs')
    add('--gpus_a_node', type=whole(1), default=8, help='GPUs of a node')
    add('--clips', type=whole(1), default=2042985, help='samples of an epoch')
    add('--sample_kb', type=positive, default=300,
        help='kB read for a sample: with mixup 0.5, 1.5 times the mean size of a file, here assumed 200 kB for 10 s of '
             '16 kHz FLAC (WAV: 320 kB)')
    add('--gradient_mb', type=positive, default=346.4, help='MB of the gradient: 4 bytes a parameter; default: base384')
    add('--decode_ms', type=number(0, MOST), default=2.93,
        help='ms of one core for a sample, as tests/bench/run.py --only dataset measures it; default: measured on an '
             'AMD EPYC core with FLAC, mixup 0.5 and the fbank left to the GPU (on the core: 4.91)')
    add('--cores_a_gpu', type=positive, default=4, help='CPU cores for each GPU, by default as run.sh asks Slurm for')
    add('--node_link_gbyte', type=positive, default=25,
        help='GB/s that a GPU sends to others of its node, and receives as well; default: assumed, about PCIe 4.0 x16')
    add('--network_gbit', type=positive, default=100,
        help='Gbit/s that a node sends to others, and receives as well; default: assumed')
    add('--storage_gbyte', type=positive, default=2,
        help='GB/s that all nodes together read from the file system; default: assumed')
    add('--overlap', type=number(0, 1), default=0.9,
        help='share of the backward pass, itself 2/3 of a step, in which the all-reduce can hide; default: assumed')
    return parser


def main(argv=None):
    """Entry point."""
    parser = make_parser()
    args = parser.parse_args(argv)
    setup = Setup(**{field.name: getattr(args, field.name) for field in fields(Setup)})
    for gpus in args.gpus:
        if gpus > MOST_GPUS:
            parser.error(f'--gpus {gpus} is more than {MOST_GPUS}, the most that this looks at')
        if not in_whole_nodes(setup, gpus):
            parser.error(f'--gpus {gpus} is more than one node has and no whole number of nodes: take a multiple of '
                         f'--gpus_a_node {setup.gpus_a_node}')
    print(aligned([COLUMNS, *(table_row(setup, estimate(setup, gpus), args.clips) for gpus in args.gpus)]))
    print('\nGPUs from which a step waits for')
    print(aligned([(name, str(gpus or f'never, up to {MOST_GPUS}')) for name, gpus in first_waits(setup).items()]))


if __name__ == '__main__':
    main()
