"""Make the inputs of exported files, and compute what this repository returns for them."""

import numpy as np
import torch

from audio.fbank import normalise, window_samples
from models import load_model
from small_tagger import FRAMES, MEAN, MEL_BINS, RATE, STD, make_noise, tag_here

WINDOW = window_samples(FRAMES)
# Samples: shorter than a frame, a frame, shorter than a window, a window, longer.
LENGTHS = (300, 400, 1234, WINDOW - 1, WINDOW, WINDOW + 1, 4 * WINDOW)


def make_fbanks(batch):
    """Return fbanks (batch, FRAMES, MEL_BINS) that are not normalised."""
    generator = torch.Generator().manual_seed(batch)
    return MEAN + STD * torch.randn(batch, FRAMES, MEL_BINS, generator=generator)


def make_waveforms(batch, samples):
    """Return waveforms of noise (batch, samples), each louder than the one before."""
    noise = make_noise(samples / RATE)[:, 0]
    return np.float32([noise * (i + 1) / batch for i in range(batch)])


def compute_logits(checkpoint, fbanks):
    """Return the logits of a checkpoint."""
    model, _ = load_model(checkpoint)
    with torch.inference_mode():
        return model(normalise(fbanks, MEAN, STD)).numpy()


def tag_first_windows(tagger, sounds):
    """Return the scores (sounds, classes) of arrays or files, as inference.py computes them."""
    return np.stack([tagging.scores[0]
                     for tagging in tag_here(tagger, sounds, rate=RATE, window='first')])
