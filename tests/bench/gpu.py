"""Measure what a CUDA GPU does: features, training, its memory.

Each function in ROWS takes a Scale and an empty folder, and yields Rows.
"""
import gc
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from transformers import ASTFeatureExtractor

from audio.fbank import SAMPLE_RATE, fbank
from measure import (
    alternate,
    at_most,
    faster,
    forward_operations,
    matrix_product,
    repeat,
    require_close,
    share,
    threads,
)
from peers import (
    CLASSES,
    MEL_BINS,
    PATCHOUT,
    audioset_options,
    load_peer,
    make_batch,
    make_trainer,
    make_waveforms,
    save_peer,
)
from published import PublishedTrainer
from published import make_model as published_model
from training.losses import LOSSES

CUDA = torch.device('cuda', 0)
CLIPS = 64
STEPS_PER_TIMING = 5
PUBLISHED_GPU = 12  # GB of the cards that the published results were made on


class Recipe(NamedTuple):
    """The settings of a recipe in egs that decide its speed and its memory."""
    frames: int
    classes: int
    batch_size: int
    loss: str


RECIPES = {'AudioSet': Recipe(1024, 527, 12, 'BCE'), 'ESC-50': Recipe(512, 50, 48, 'CE'),
           'Speech Commands': Recipe(128, 35, 128, 'BCE')}
# What gpu_training compares: what, whose rate, with whose rate, the bar of the ratio.
COMPARISONS = (('compiled, against published', 'ours', 'published', 3.0),
               ('compiled, against transformers sdpa bf16', 'ours', 'transformers', 1.3),
               ('compiled, against not compiled', 'ours', 'not compiled', None),
               ('Patchout 4 x 40, against none', 'Patchout', 'ours', 1.8))


def gpu_features(scale, folder):
    """Measure the fbanks of a batch of waveforms in pinned memory, with the copy to the GPU."""
    waveforms = make_waveforms(CLIPS)
    pinned, clips = torch.from_numpy(waveforms).pin_memory(), list(waveforms)
    extractor = ASTFeatureExtractor(max_length=scale.frames, num_mel_bins=MEL_BINS)

    def ours():
        return fbank(pinned.to(CUDA, non_blocking=True), MEL_BINS)

    require_close('fbank on the GPU', ours()[0].cpu(), fbank(pinned[0], MEL_BINS), 1e-3)
    with threads(1):
        times = alternate({'ours': partial(repeat, ours, times=STEPS_PER_TIMING),
                           'extractor': partial(extractor, clips, sampling_rate=SAMPLE_RATE,
                                                return_tensors='np')}, scale.rounds)
    yield faster(f'fbank of {CLIPS} x 10 s on the GPU, against ASTFeatureExtractor on one core',
                 times['ours'] / STEPS_PER_TIMING, times['extractor'], 100)


class PeerTrainer:
    """Trains transformers' AST in plain PyTorch: bfloat16 by autocast, Adam.

    It does not wait for the loss of a step.
    """

    def __init__(self, model, lr):
        self.model, self.loss_function = model.to(CUDA).train(), LOSSES['BCE']()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr)

    def step(self, fbanks, labels):
        """Update the weights from a batch."""
        with torch.autocast('cuda', dtype=torch.bfloat16):
            loss = self.loss_function(self.model(fbanks).logits, labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def gpu_training(scale, folder):
    """Measure training steps at the recipe's batch size, and each contender at its best one."""
    torch.backends.cuda.matmul.allow_tf32 = True  # both as src/run.py does
    torch.backends.cudnn.allow_tf32 = True
    trainers = make_trainers(scale, folder)
    peak = measure_peak(scale)
    rates = {batch: clips_per_second(trainers, batch, scale) for batch in scale.batches}
    best = {name: max(rates, key=lambda batch: rates[batch].get(name, 0)) for name in trainers}
    recipe = dict.fromkeys(trainers, scale.batches[0])
    for batches in (recipe, best):
        yield from compare(rates, batches)

    # A backward pass has twice the operations of a forward pass.
    plain = published_model(model_size=scale.model_size, input_tdim=scale.frames)
    work = 3 * forward_operations(plain, scale.frames, MEL_BINS) / 1e12
    yield share(f'GPU training, batch of {best["ours"]}, compiled, against the bf16 matrix limit',
                rates[best['ours']]['ours'] * work, peak, 'TFLOP/s', 0.45)


def make_trainers(scale, folder):
    """Return the trainers that gpu_training compares, by name."""
    save_peer(folder, scale)
    ours, args = make_trainer(audioset_options(scale, '--compile', 'True'), CUDA)
    plain = published_model(model_size=scale.model_size, input_tdim=scale.frames)
    with_patchout = audioset_options(scale, *PATCHOUT, '--compile', 'True')
    return {'ours': ours,
            'published': PublishedTrainer(plain, CUDA, LOSSES['BCE'], args.lr),
            'transformers': PeerTrainer(load_peer(folder), args.lr),
            'not compiled': make_trainer(audioset_options(scale), CUDA)[0],
            'Patchout': make_trainer(with_patchout, CUDA)[0]}


def measure_peak(scale):
    """Return the TFLOP/s that a large matrix product reaches in bfloat16."""
    product, operations = matrix_product(2 * scale.matrix, torch.bfloat16, CUDA)
    turns = {'peak': partial(repeat, product, times=STEPS_PER_TIMING)}
    return operations * STEPS_PER_TIMING / alternate(turns, 4 * scale.rounds)['peak'] / 1e12


def compare(rates, batches):
    """Yield a Row for each of COMPARISONS whose two trainers fit into the memory.

    Args:
        rates: {batch size: {trainer: clips per second}}.
        batches: {trainer: the batch size to compare it at}.
    """
    for what, name, reference, bar in COMPARISONS:
        what = f'GPU training, batches of {batches[name]} and {batches[reference]}, {what}'
        ours, theirs = (rates[batches[key]].get(key) for key in (name, reference))
        if ours and theirs:
            yield share(what, ours, theirs, 'clips/s', bar)
        else:
            print(f'{what}: left out, the GPU has not enough memory')


def clips_per_second(trainers, batch, scale):
    """Return {name: clips per second} of the trainers for which the memory is enough."""
    fbanks, labels = (part.to(CUDA) for part in make_batch(batch, scale.frames, CLASSES))
    turns = {name: partial(repeat, trainer.step, fbanks, labels, times=STEPS_PER_TIMING)
             for name, trainer in trainers.items() if fits(trainer, fbanks, labels)}
    return {name: batch * STEPS_PER_TIMING / seconds
            for name, seconds in alternate(turns, scale.rounds).items()}


def fits(trainer, fbanks, labels):
    """Return whether the GPU has the memory for a step."""
    try:
        trainer.step(fbanks, labels)
    except torch.OutOfMemoryError:
        return False
    finally:
        torch.cuda.empty_cache()
    return True


def allocated_now():
    """Free what is no longer used; return the allocated bytes, and count the peak from here."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def peak_gib(before):
    """Return by how many GiB the peak of allocated memory exceeds the bytes `before`."""
    return (torch.cuda.max_memory_allocated() - before) / 2 ** 30


def gpu_memory(scale, folder):
    """Measure the peak memory of training the AudioSet recipe: weights, optimizer, activations."""
    batch_size = RECIPES['AudioSet'].batch_size
    for what, options, limit in (
            ('', (), 11),
            (' with gradient checkpointing', ('--grad_checkpointing', 'True'), 5)):
        before = allocated_now()
        trainer, _ = make_trainer(audioset_options(scale, *options), CUDA)
        batch = make_batch(batch_size, scale.frames, CLASSES)
        repeat(trainer.step, *batch, times=3)
        used = peak_gib(before)
        del trainer
        yield at_most(f'peak GPU memory, AudioSet recipe, batch {batch_size}{what}', used, limit,
                      'GiB')


def gpu_recipes(scale, folder):
    """Measure memory and speed of training with each recipe's settings, without loading data."""
    for name, recipe in RECIPES.items():
        before = allocated_now()
        options = audioset_options(replace(scale, frames=recipe.frames),
                                   '--n_class', str(recipe.classes), '--loss', recipe.loss)
        trainer, _ = make_trainer(options, CUDA)
        batch = [part.to(CUDA)
                 for part in make_batch(recipe.batch_size, recipe.frames, recipe.classes)]
        step = partial(repeat, trainer.step, *batch, times=STEPS_PER_TIMING)
        seconds = alternate({'step': step}, scale.rounds)['step']
        used = peak_gib(before)
        del trainer, step
        print(f'{name}: {recipe.batch_size * STEPS_PER_TIMING / seconds:.0f} clips/s')
        yield at_most(f'peak GPU memory, {name} recipe, batch {recipe.batch_size}', used,
                      PUBLISHED_GPU, 'GiB')


ROWS = {function.__name__: function
        for function in (gpu_features, gpu_training, gpu_memory, gpu_recipes)}
