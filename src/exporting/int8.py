"""8-bit linear layers in an ONNX file: smaller, faster on CPUs, a little less exact."""
import logging
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from exporting.agreement import Runner, make_inputs
from exporting.graph import FbankToScores
from exporting.libraries import quiet_libraries
from utilities.errors import DataError
from utilities.parallel import available_cores

BOUND = 0.1  # how much a score may differ from that of float32
ROUNDS = 3  # of measuring the time

logger = logging.getLogger(__name__)


def quantise(content: bytes) -> bytes:
    """Return an ONNX file whose transformer has 8-bit linear layers, each channel with its scale.

    The fbank, the projection of patches, attention and the classifying layer stay in float32.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic
    with tempfile.TemporaryDirectory() as folder, quiet_libraries():
        before, after = Path(folder) / 'float32.onnx', Path(folder) / 'int8.onnx'
        before.write_bytes(content)  # from a file, this takes less memory
        quantize_dynamic(before, after, op_types_to_quantize=['MatMul'],
                         nodes_to_quantize=find_matrix_products(content),
                         per_channel=True, weight_type=QuantType.QInt8)
        return after.read_bytes()


def find_matrix_products(content: bytes) -> list[str]:
    """Return the names of the nodes of the transformer that multiply matrices."""
    import onnx
    nodes = list(onnx.load_from_string(content).graph.node)
    # The projection of patches is the only convolution. Before it comes the fbank: 8 bits of its
    # mel filters would not do.
    projection = [node.op_type for node in nodes].index('Conv')
    return [node.name for node in nodes[projection:] if node.op_type == 'MatMul']


def compare_int8(graph: FbankToScores, run_float: Runner, run_int8: Runner) -> None:
    """Log how far the scores of int8 are from those of float32, and how long both take.

    Raises:
        DataError: if a score differs by more than BOUND.
    """
    inputs = make_inputs(graph)[1].split(1)  # one by one, as that takes less memory
    differences = np.abs([run_int8(one)[1] - run_float(one)[1] for one in inputs])
    largest = float(differences.max())
    logger.info('int8: scores differ from those of float32 by at most %.4f, on average by %.4f',
                largest, differences.mean())
    if not largest <= BOUND:
        raise DataError(f'int8 changes scores of this model by up to {largest:.2g}, expected at '
                        f'most {BOUND:g}; nothing was written. Export it without --int8')
    times: dict[str, list[float]] = {'int8': [], 'float32': []}
    for _ in range(ROUNDS):
        for name, run in (('int8', run_int8), ('float32', run_float)):
            # Not timed: at first, the threads of the other session still wait for work in a loop.
            run(inputs[0])
            start = time.perf_counter()
            run(inputs[0])
            times[name].append(time.perf_counter() - start)
    seconds = {name: statistics.median(its_times) for name, its_times in times.items()}
    logger.info('int8: a recording takes %.3f s, in float32 %.3f s, on %d CPU cores here',
                seconds['int8'], seconds['float32'], available_cores())
