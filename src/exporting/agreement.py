"""Compare what an exported file computes with what PyTorch computes, on artificial sounds."""
from collections.abc import Callable, Sequence

import numpy as np
import torch

from audio.fbank import window_samples
from exporting.graph import FbankToScores
from utilities.errors import DataError

# How much a logit may differ from PyTorch's. An fbank is a logarithm, which magnifies rounding.
BOUNDS = {'fbank': 1e-4, 'waveform': 1e-3}
HARMONICS = 8  # of a sound

Results = Sequence[np.ndarray]  # logits and scores, (batch, classes) each
Runner = Callable[[torch.Tensor], Results]  # takes an input of the graph


def make_sounds(count: int, samples: int, sample_rate: int) -> torch.Tensor:
    """Make different sounds of harmonics, a rhythm and noise. Return (count, samples)."""
    generator = torch.Generator().manual_seed(0)
    pitch, rhythm, noise = (10 ** torch.empty(count, 1).uniform_(low, high, generator=generator)
                            for low, high in ((2, 3), (-0.5, 1), (-4, -1)))  # Hz, Hz, amplitude
    seconds = torch.arange(samples) / sample_rate
    harmonics = sum(torch.sin(2 * torch.pi * k * pitch * seconds) / k
                    for k in range(1, HARMONICS + 1))
    loudness = 0.1 * (1 + torch.sin(2 * torch.pi * rhythm * seconds))
    return loudness * harmonics + noise * torch.randn(count, samples, generator=generator)


def make_example(graph: FbankToScores) -> torch.Tensor:
    """Make an input to trace a graph with, a batch of 2."""
    return _convert_sounds(graph, 2, share=1)


def make_inputs(graph: FbankToScores) -> list[torch.Tensor]:
    """Make inputs of a graph: a batch of 1, shorter than a window, and one of 5, longer."""
    return [_convert_sounds(graph, 1, share=0.5), _convert_sounds(graph, 5, share=1.5)]


def _convert_sounds(graph, count, share):
    """Make `count` sounds that last this share of a window, as an input of a graph."""
    rate = graph.sample_rate
    samples = int(share * window_samples(graph.frames, rate))
    return graph.convert_sounds(make_sounds(count, samples, rate))


def run_graph(graph: FbankToScores, inputs: torch.Tensor) -> Results:
    """Return the results of PyTorch."""
    with torch.inference_mode():
        return [result.numpy() for result in graph(inputs)]


def require_agreement(graph: FbankToScores, run: Runner, program: str) -> float:
    """Compare what a file computes with what PyTorch computes.

    Args:
        graph: what was exported.
        run: runs the file.
        program: what runs it, for the message.

    Returns:
        The largest difference of logits and scores.

    Raises:
        DataError: if it is above BOUNDS, or not a number.
    """
    differences = [np.abs(ours - theirs).max()
                   for inputs in make_inputs(graph)
                   for ours, theirs in zip(run_graph(graph, inputs), run(inputs), strict=True)]
    largest = float(np.max(differences))  # Python's max would lose a value that is not a number
    bound = BOUNDS[graph.input_name]
    if not largest <= bound:  # not a number is neither above nor below
        raise DataError(f'{program} computes other logits than PyTorch: they differ by '
                        f'{largest:.2g}, expected at most {bound:g}; nothing was written. Does '
                        f'inference.py give sensible scores with this checkpoint?')
    return largest
