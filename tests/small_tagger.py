"""A checkpoint that tags in a blink, for the tests of tagging."""
import numpy as np
import torch

from audio.fbank import fbank, fit_frames, normalise
from inference import tag
from models import ASTModel, save_checkpoint

FRAMES, MEL_BINS, CLASSES = 32, 32, 3  # windows of 0.32 s
MEAN, STD = -6.0, 3.0
RATE = 16000
LABELS = {'mids': ['/m/0', '/m/1', '/m/2'], 'names': ['dog', 'rain', 'sea, waves']}


def save_model(path, seed=0, classes=CLASSES, frames=FRAMES, **description):
    """Write a checkpoint of random weights that depend on the seed."""
    torch.manual_seed(seed)
    model = ASTModel(classes, 16, 16, MEL_BINS, frames, imagenet_pretrain=False,
                     model_size='tiny224', verbose=False)
    torch.nn.init.normal_(model.mlp_head[1].weight, std=0.1)
    save_checkpoint(model, path, **{'labels': LABELS, 'mean': MEAN, 'std': STD, 'loss': 'BCE',
                                    **description})


def first_window(waveform):
    """Return the first window of a waveform as the small model's input, (1, FRAMES, MEL_BINS)."""
    return normalise(fit_frames(fbank(waveform, MEL_BINS), FRAMES), MEAN, STD)[None]


def make_noise(seconds, rate=RATE, channels=1):
    """Return noise (samples, channels) that changes with time."""
    samples = np.random.default_rng(0).standard_normal((round(seconds * rate), channels))
    return 0.2 * samples * np.sin(np.arange(len(samples)) / rate)[:, None]


def tag_here(tagger, files, **options):
    """Tag without worker processes."""
    return list(tag(tagger, files, num_workers=0, **options))
