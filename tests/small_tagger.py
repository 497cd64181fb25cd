"""Write a checkpoint that tags at once, and noise to tag, for the tests of tagging."""
import numpy as np
import torch

from audio.fbank import fbank, fit_frames, normalise
from inference import tag
from models import ASTModel, save_checkpoint
from tagging.result import Tagging
from utilities.labels import Labels

FRAMES, MEL_BINS, CLASSES = 32, 32, 3  # windows of 0.32 s
MEAN, STD = -6.0, 3.0
RATE = 16000
LABELS = {'mids': ['/m/0', '/m/1', '/m/2'], 'names': ['dog', 'rain', 'sea, waves']}
LONG_SECONDS = 70  # a recording that is too long to be put into a page, as WAV or as FLAC


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
    """Return noise (samples, channels) whose loudness changes with time."""
    samples = np.random.default_rng(0).standard_normal((round(seconds * rate), channels))
    return 0.2 * samples * np.sin(np.arange(len(samples)) / rate)[:, None]


def tag_here(tagger, files, **options):
    """Tag without worker processes."""
    return list(tag(tagger, files, num_workers=0, **options))


def make_tagging(path, seconds, hop=1.0, window=1.0, names=LABELS['names']):
    """Return a Tagging of a recording with random scores."""
    rng = np.random.default_rng(0)
    starts = np.arange(0, seconds, hop)
    scores = rng.random((len(starts), len(names))).astype(np.float32)
    mids = tuple(f'/m/{k}' for k in range(len(names)))
    spectrogram = rng.normal(-6, 3, (round(min(1500, 100 * seconds)), 32)).astype(np.float32)
    return Tagging(str(path), seconds, starts, np.minimum(starts + window, seconds), scores,
                   Labels(mids, tuple(names)), spectrogram=spectrogram, planned=len(starts))
