"""The computation that ONNX and .pt2 files hold: from fbanks or waveforms to scores."""
from typing import Any

import torch
from torch import nn

from audio.fbank import FbankTables, compute_fbank, fbank_tables, normalise
from exporting.trained import TrainedModel
from tagging.tagger import to_scores
from utilities.errors import DataError

MAX_LENGTH = 2 ** 31 - 1  # of an axis; without a bound, torch 2.6 fails


class FbankToScores(nn.Module):
    """A trained model that turns fbanks into scores.

    Attributes:
        input_name: what a file calls the input.
        frames, mel_bins: size of an fbank.
        sample_rate: of the recordings, in Hz.
    """
    input_name = 'fbank'

    def __init__(self, trained: TrainedModel) -> None:
        super().__init__()
        self.model = trained.model
        self.mean, self.std = trained.description['mean'], trained.description['std']
        self.loss = trained.description['loss']
        self.frames, self.mel_bins = self.model.config.input_tdim, self.model.config.input_fdim
        self.sample_rate = trained.description['sample_rate']
        self.tables = fbank_tables(self.mel_bins, torch.device('cpu'), self.sample_rate)

    def forward(self, fbank: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits and scores (batch, classes) of fbanks (batch, frames, bins).

        The fbanks must not be normalised: forward does it.
        """
        logits = self.model(normalise(fbank, self.mean, self.std))
        return logits, to_scores(logits, self.loss)

    def convert_sounds(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Return waveforms (batch, samples) as this graph's input."""
        return waveforms_to_fbanks(waveforms, self.frames, self.tables)

    def dynamic_shapes(self) -> dict[int, Any]:
        """Return the axes of the input that may have any length, with their names."""
        return {0: torch.export.Dim('batch', max=MAX_LENGTH)}


class WaveformToScores(FbankToScores):
    """A trained model that turns recordings (mono, full scale 1) into scores."""
    input_name = 'waveform'

    def forward(self, waveform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits and scores (batch, classes) of waveforms (batch, samples) of any length."""
        return super().forward(waveforms_to_fbanks(waveform, self.frames, self.tables))

    def convert_sounds(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Return waveforms (batch, samples) as this graph's input."""
        return waveforms

    def dynamic_shapes(self) -> dict[int, Any]:
        """Return the axes of the input that may have any length, with their names."""
        return {**super().dynamic_shapes(), 1: torch.export.Dim('samples', max=MAX_LENGTH)}


def waveforms_to_fbanks(waveforms: torch.Tensor, frames: int, tables: FbankTables
                        ) -> torch.Tensor:
    """Return the fbanks of waveforms, cut or padded with zeros as fit_frames does.

    An exported computation cannot branch on the length of its input. So every waveform is padded
    to a whole window first, and the frames that reach into the padding become zeros. It does not
    matter that compute_fbank then subtracts the mean of the padded waveform, since it also
    subtracts the mean of each frame.

    Args:
        waveforms: (batch, samples), any number of samples.
        frames: of the result.
        tables: what fbank_tables returns.

    Returns:
        (batch, frames, mel bins).
    """
    batch, samples = waveforms.shape
    size = tables.size
    window = (frames - 1) * size.shift + size.length
    padded = torch.cat([waveforms, waveforms.new_zeros(batch, window)], dim=1)[:, :window]
    fbanks = compute_fbank(padded, tables)
    ends = torch.arange(frames) * size.shift + size.length
    return torch.where((ends <= samples)[:, None], fbanks, 0.0)


def trace(graph: FbankToScores, example: torch.Tensor) -> torch.export.ExportedProgram:
    """Return a graph as a program of torch.export, for batches of any size.

    Args:
        graph: in eval mode.
        example: an input. Its batch is not 1, which torch.export would take for a constant.

    Raises:
        DataError: if this PyTorch cannot do that.
    """
    try:
        with torch.no_grad():
            # strict=True would be another way to trace, in which torch 2.6 fails. It is the default
            # there. It has nothing to do with loading weights strictly.
            return torch.export.export(graph, (example,), strict=False,
                                       dynamic_shapes=(graph.dynamic_shapes(),))
    except RuntimeError as error:
        if '_fft_r2c' not in str(error):
            raise
        raise DataError(f'PyTorch {torch.__version__} cannot export the FFT of an fbank: leave out '
                        f'--waveform, or update PyTorch (2.11 can)') from error


def make_metadata(trained: TrainedModel, graph: FbankToScores) -> dict[str, Any]:
    """Return what a program must know to use an exported file."""
    return {
        'names': list(trained.labels.names),
        'mids': list(trained.labels.mids),
        'input': graph.input_name,
        'sample_rate': graph.sample_rate,
        'frames': graph.frames,
        'mel_bins': graph.mel_bins,
        'mean': graph.mean,
        'std': graph.std,
        'loss': graph.loss,
    }
