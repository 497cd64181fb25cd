"""Write a .pt2 file: the model for PyTorch alone, without the code of this repository."""
import json
import logging
from pathlib import Path

import torch

from exporting.agreement import make_example, require_agreement
from exporting.graph import FbankToScores, WaveformToScores, make_metadata, trace
from exporting.libraries import quiet_libraries
from exporting.trained import TrainedModel
from models.atomic import atomic_write
from utilities.folders import output_folders

METADATA = 'metadata.json'  # a file in the .pt2

logger = logging.getLogger(__name__)


def write_pt2(trained: TrainedModel, out: Path, waveform: bool = False) -> None:
    """Write a trained model for torch.export.load, once the file computes what the model does.

    Its extra file metadata.json says what a program must know: see exporting.graph.make_metadata.

    Args:
        trained: the model.
        out: the file.
        waveform: it takes waveforms (batch, samples) at its rate instead of fbanks.

    Raises:
        DataError: if the results differ too much. `out` is then as it was.
    """
    graph = (WaveformToScores if waveform else FbankToScores)(trained).eval()
    program = trace(graph, make_example(graph))
    metadata = json.dumps(make_metadata(trained, graph), ensure_ascii=False)
    with output_folders(out.parent), atomic_write(out) as partial:
        with open(partial, 'wb') as file:  # of a path, torch would want the suffix .pt2
            torch.export.save(program, file, extra_files={METADATA: metadata})
        with open(partial, 'rb') as content, quiet_libraries():
            written = torch.export.load(content).module()

        def run(inputs):
            with torch.inference_mode():
                return [result.numpy() for result in written(inputs)]

        difference = require_agreement(graph, run, 'the .pt2 file')
    logger.info('the file computes what the model does, the largest difference is %.1e',
                difference)
