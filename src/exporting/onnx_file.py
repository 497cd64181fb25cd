"""Write an ONNX file: the model for ONNX Runtime and other programs that need no PyTorch."""
import json
import logging
from pathlib import Path
from typing import Any

import torch

from exporting.agreement import Runner, make_example, require_agreement
from exporting.graph import FbankToScores, WaveformToScores, make_metadata, trace
from exporting.int8 import compare_int8, quantise
from exporting.libraries import quiet_libraries
from exporting.trained import TrainedModel
from models.atomic import atomic_write
from utilities.folders import output_folders
from utilities.parallel import available_cores

logger = logging.getLogger(__name__)


def write_onnx(trained: TrainedModel, out: Path, waveform: bool = False, int8: bool = False
               ) -> None:
    """Write a trained model as one ONNX file, once ONNX Runtime agrees with PyTorch.

    Its metadata says what a program must know: see exporting.graph.make_metadata. Lists are JSON
    there.

    Args:
        trained: the model.
        out: the file.
        waveform: it takes waveforms (batch, samples) at its rate instead of fbanks.
        int8: its linear layers compute with 8-bit numbers.

    Raises:
        DataError: if the results differ too much. `out` is then as it was.
    """
    graph = (WaveformToScores if waveform else FbankToScores)(trained).eval()
    content = convert(graph, make_metadata(trained, graph))
    difference = require_agreement(graph, make_runner(content, graph.input_name), 'ONNX Runtime')
    logger.info('ONNX Runtime computes what PyTorch does, the largest difference is %.1e',
                difference)
    if int8:
        in_float, content = content, quantise(content)
        compare_int8(graph, make_runner(in_float, graph.input_name),
                     make_runner(content, graph.input_name))
        logger.info('the file has %.1f MB, in float32 %.1f MB', len(content) / 1e6,
                    len(in_float) / 1e6)
    with output_folders(out.parent), atomic_write(out) as partial:
        partial.write_bytes(content)


def convert(graph: FbankToScores, metadata: dict[str, Any]) -> bytes:
    """Return a graph as the content of an ONNX file."""
    traced = trace(graph, make_example(graph))
    with torch.no_grad(), quiet_libraries():
        program = torch.onnx.export(
            traced, dynamo=True, dynamic_shapes=(graph.dynamic_shapes(),),
            input_names=[graph.input_name], output_names=['logits', 'scores'], verbose=False)
    assert program is not None
    program.model.metadata_props.update(
        {name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
         for name, value in metadata.items()})
    return program.model_proto.SerializeToString()


def make_runner(content: bytes, input_name: str) -> Runner:
    """Return a function that runs an ONNX file in ONNX Runtime, on the cores of this process."""
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cores()
    session = onnxruntime.InferenceSession(content, options, providers=['CPUExecutionProvider'])
    return lambda inputs: session.run(['logits', 'scores'], {input_name: inputs.numpy()})
