"""The rows that a CUDA GPU fills. Each function takes a Scale and an empty folder, and yields Rows."""
import gc
from dataclasses import replace
from functools import partial

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
    audioset,
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
RECIPE_BATCH = 12  # of the AudioSet recipe
STEPS_A_TURN = 5


def gpu_features(scale, folder):
    """fbanks of a batch of waveforms in pinned memory, the copy to the GPU included."""
    waveforms = make_waveforms(CLIPS)
    pinned, clips = torch.from_numpy(waveforms).pin_memory(), list(waveforms)
    extractor = ASTFeatureExtractor(max_length=scale.frames, num_mel_bins=MEL_BINS)

    def ours():
        return fbank(pinned.to(CUDA, non_blocking=True), MEL_BINS)

    require_close('fbank on the GPU', ours()[0].cpu(), fbank(pinned[0], MEL_BINS), 1e-3)
    with threads(1):
        times = alternate({'ours': partial(repeat, ours, times=STEPS_A_TURN),
                           'extractor': lambda: extractor(clips, sampling_rate=SAMPLE_RATE, return_tensors='np')},
                          scale.rounds)
    yield faster(f'fbank of {CLIPS} x 10 s on the GPU, against ASTFeatureExtractor on one core',
                 times['ours'] / STEPS_A_TURN, times['extractor'], 100)


class PeerTrainer:
    """transformers' AST in bf16 autocast, with Adam, plain PyTorch; nothing fetched from the GPU."""

    def __init__(self, model, lr):
        self.model, self.loss_function = model.to(CUDA).train(), LOSSES['BCE']()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr)

    def step(self, fbanks, labels):
        """One update from a batch."""
        with torch.autocast('cuda', dtype=torch.bfloat16):
            loss = self.loss_function(self.model(fbanks).logits, labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def gpu_training(scale, folder):
    """Training steps at the recipe's batch and at the best one, each contender at its own best."""
    save_peer(folder, scale)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # as src/run.py does
    trainer, args = make_trainer(audioset(scale, '--compile', 'True'), CUDA)
    published = PublishedTrainer(published_model(model_size=scale.model_size, input_tdim=scale.frames), CUDA,
                                 LOSSES['BCE'], args.lr)
    trainers = {'ours': trainer, 'published': published, 'transformers': PeerTrainer(load_peer(folder), args.lr),
                'not compiled': make_trainer(audioset(scale), CUDA)[0],
                'Patchout': make_trainer(audioset(scale, *PATCHOUT, '--compile', 'True'), CUDA)[0]}
    product, operations = matrix_product(2 * scale.matrix, torch.bfloat16, CUDA)
    peak = operations * STEPS_A_TURN / alternate(
        {'peak': partial(repeat, product, times=STEPS_A_TURN)}, 4 * scale.rounds)['peak'] / 1e12
    rates = {batch: clips_per_second(trainers, batch, scale) for batch in scale.batches}
    best = {name: max(rates, key=lambda batch: rates[batch].get(name, 0)) for name in trainers}
    recipe = {name: scale.batches[0] for name in trainers}
    for batches in (recipe, best):
        for what, name, reference, bar in (('compiled, against published', 'ours', 'published', 3.0),
                                           ('compiled, against transformers sdpa bf16', 'ours', 'transformers', 1.3),
                                           ('compiled, against not compiled', 'ours', 'not compiled', None),
                                           ('Patchout 4 x 40, against none', 'Patchout', 'ours', 1.8)):
            what = f'GPU training, batches of {batches[name]} and {batches[reference]}, {what}'
            ours, theirs = (rates[batches[key]].get(key) for key in (name, reference))
            if ours and theirs:
                yield share(what, ours, theirs, 'clips/s', bar)
            else:
                print(f'{what}: left out, the GPU has not the memory')
    work = 3 * forward_operations(published_model(model_size=scale.model_size, input_tdim=scale.frames), scale.frames,
                                  MEL_BINS) / 1e12
    yield share(f'GPU training, batch of {best["ours"]}, compiled, against the bf16 matrix limit',
                rates[best['ours']]['ours'] * work, peak, 'TFLOP/s', 0.45)


def clips_per_second(trainers, batch, scale):
    """The clips that each trainer takes in a second, by name, without those whose memory does not do."""
    fbanks, labels = (part.to(CUDA) for part in make_batch(batch, scale.frames, CLASSES))
    turns = {name: partial(repeat, trainer.step, fbanks, labels, times=STEPS_A_TURN)
             for name, trainer in trainers.items() if fits(trainer, fbanks, labels)}
    return {name: batch * STEPS_A_TURN / seconds for name, seconds in alternate(turns, scale.rounds).items()}


def fits(trainer, fbanks, labels):
    """Whether the GPU has the memory for a step."""
    try:
        trainer.step(fbanks, labels)
    except torch.OutOfMemoryError:
        return False
    finally:
        torch.cuda.empty_cache()
    return True


def gpu_memory(scale, folder):
    """Peak memory of training the AudioSet recipe: model, optimizer, activations of a batch."""
    for what, options, limit in (('', (), 11), (' with gradient checkpointing', ('--grad_checkpointing', 'True'), 5)):
        gc.collect()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        trainer, _ = make_trainer(audioset(scale, *options), CUDA)
        torch.cuda.reset_peak_memory_stats()
        batch = make_batch(RECIPE_BATCH, scale.frames, CLASSES)
        for _ in range(3):
            trainer.step(*batch)
        used = (torch.cuda.max_memory_allocated() - before) / 2 ** 30
        del trainer
        yield at_most(f'peak GPU memory, AudioSet recipe, batch {RECIPE_BATCH}{what}', used, limit, 'GiB')


# Frames, classes, batch size and loss of the recipes.
RECIPES = {'AudioSet': (1024, 527, 12, 'BCE'), 'ESC-50': (512, 50, 48, 'CE'),
           'Speech Commands': (128, 35, 128, 'BCE')}
PUBLISHED_GPU = 12  # GB of the cards that the published results were made on


def gpu_recipes(scale, folder):
    """Peak memory and speed of training base384 with the settings of each recipe, data not counted."""
    for name, (frames, classes, batch_size, loss) in RECIPES.items():
        gc.collect()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        options = audioset(replace(scale, frames=frames), '--n_class', str(classes), '--loss', loss)
        trainer, _ = make_trainer(options, CUDA)
        torch.cuda.reset_peak_memory_stats()
        batch = [part.to(CUDA) for part in make_batch(batch_size, frames, classes)]
        seconds = alternate({'step': partial(repeat, trainer.step, *batch, times=STEPS_A_TURN)},
                            scale.rounds)['step']
        used = (torch.cuda.max_memory_allocated() - before) / 2 ** 30
        del trainer
        print(f'{name}: {batch_size * STEPS_A_TURN / seconds:.0f} clips/s')
        yield at_most(f'peak GPU memory, {name} recipe, batch {batch_size}', used, PUBLISHED_GPU, 'GiB')


ROWS = {'gpu_features': gpu_features, 'gpu_training': gpu_training, 'gpu_memory': gpu_memory,
        'gpu_recipes': gpu_recipes}
