"""Build what the benchmarks compare: transformers' AST, our Trainer, synthetic recordings."""
import numpy as np
import soundfile
import torch
from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification
from transformers.utils import logging as transformers_logging

from audio.fbank import SAMPLE_RATE
from experiment import make_model
from models.checkpoints import SIZES
from training.devices import choose_precision
from training.options import make_parser
from training.trainer import Trainer

MEL_BINS = 128
CLASSES = 527
HEAD_DIM = 64  # of every DeiT
PATCHOUT = '--freq_patchout', '4', '--time_patchout', '40'
CLIP_SECONDS = 10

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


def save_peer(folder, scale):
    """Write transformers' AST with random weights, and its feature extractor, into a folder.

    Args:
        scale: has the size of the model and the length of its input.
    """
    torch.manual_seed(0)
    dim = {name: dim for dim, name in SIZES.items()}[scale.model_size]
    config = ASTConfig(hidden_size=dim, num_attention_heads=dim // HEAD_DIM,
                       intermediate_size=4 * dim, layer_norm_eps=1e-6, max_length=scale.frames,
                       num_mel_bins=MEL_BINS, num_labels=CLASSES,
                       problem_type='multi_label_classification')
    ASTForAudioClassification(config).save_pretrained(folder)
    extractor = ASTFeatureExtractor(max_length=scale.frames, num_mel_bins=MEL_BINS)
    extractor.save_pretrained(folder)


def load_peer(folder, attention='sdpa'):
    """Load transformers' model from a folder. attention: 'sdpa', its default, or 'eager'."""
    model = ASTForAudioClassification.from_pretrained(folder, attn_implementation=attention)
    return model.eval()


def audioset_options(scale, *more):
    """Return options of run.py for the model and the loss of the AudioSet recipe.

    Args:
        scale: has the size of the model and the length of its input.
        more: further options; of an option that is given twice, the last value counts.
    """
    return ['--model_size', scale.model_size, '--audio_length', str(scale.frames),
            '--n_class', str(CLASSES), '--loss', 'BCE', '--lr', '1e-5', '--warmup', 'True', *more]


def make_trainer(options, device):
    """Return our Trainer of an experiment with random weights, and its parsed options.

    Args:
        options: of run.py, a list of words.
    """
    args = make_parser().parse_args(
        ['--data_train', '-', '--data_val', '-', '--label_csv', '-', '--exp_dir', '-',
         '--imagenet_pretrain', 'False', *options])
    model = make_model(args).to(device)
    model.autocast_dtype = choose_precision(args.amp, device)
    model.v.set_grad_checkpointing(args.grad_checkpointing)
    trainer = Trainer(model, device, args, 1)
    trainer.training_model.train()
    return trainer, args


def make_batch(samples, frames, classes):
    """Return random fbanks (samples, frames, bins) and labels (samples, classes).

    Each sample has one class.
    """
    rng = torch.Generator().manual_seed(0)
    indices = torch.randint(classes, (samples,), generator=rng)
    labels = torch.nn.functional.one_hot(indices, classes).float()
    return torch.randn(samples, frames, MEL_BINS, generator=rng), labels


def make_waveforms(count, seconds=CLIP_SECONDS):
    """Return waveforms (count, samples) of a tone in brown noise, float32.

    A codec compresses them about as well as it does real recordings.
    """
    rng = np.random.default_rng(0)
    samples = seconds * SAMPLE_RATE
    noise = rng.standard_normal((count, samples)).cumsum(axis=1)
    noise = noise - np.linspace(0, 1, samples) * noise[:, -1:]  # ends where it began, near 0
    hertz = rng.uniform(200, 2000, (count, 1))
    tone = np.sin(2 * np.pi * hertz * np.arange(samples) / SAMPLE_RATE)
    waveforms = 0.3 * noise / np.abs(noise).max(axis=1, keepdims=True) + 0.1 * tone
    return (waveforms + 0.01 * rng.standard_normal((count, samples))).astype(np.float32)


def make_recordings(folder, count, suffix):
    """Write clips of 10 s at 16 kHz with 16 bits into a folder; return their paths."""
    paths = [folder / f'{i}{suffix}' for i in range(count)]
    for path, waveform in zip(paths, make_waveforms(count)):
        soundfile.write(path, waveform, SAMPLE_RATE, subtype='PCM_16')
    return paths
