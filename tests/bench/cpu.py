"""Measure what a CPU does: features, samples, inference, tagging, training.

Each function in ROWS takes a Scale and an empty folder, and yields Rows.
"""
import itertools
import json
from functools import partial

import onnxruntime
import soundfile
import torch
from transformers import ASTFeatureExtractor, pipeline

from audio.fbank import SAMPLE_RATE, fbank, normalise
from dataloader import AudiosetDataset, SampleKey
from exporting.int8 import BOUND as INT8_BOUND
from exporting.onnx_file import write_onnx
from exporting.trained import load_trained
from finetuning import TINY
from measure import (
    alternate,
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
    make_recordings,
    make_trainer,
    make_waveforms,
    save_peer,
)
from published import PublishedDataset, PublishedTrainer
from published import fbank as published_fbank
from published import make_model as published_model
from tagging import load_tagger, tag
from training.gpu_fbanks import WaveformDataset
from training.losses import LOSSES

# The settings of the AudioSet recipe.
AUDIOSET_CONF = {'num_mel_bins': MEL_BINS, 'target_length': 1024, 'mode': 'train', 'freqm': 48,
                 'timem': 192, 'mixup': 0.5}
# The run of egs/esc50/README.md on ESC-10: the tiny model, and what its recipe sets.
ESC10 = f'{TINY} --audio_length 512 --n_class 50 --metrics acc --loss CE'.split()
# How often slow things are timed, whatever the Scale says.
TAGGING_ROUNDS = 2  # a minute each; the files are divided among them
PATCHOUT_ROUNDS = 3  # half a minute each
PATCHOUT_CLIPS = 4  # a batch that a CPU can take
FBANKS_PER_TIMING = 30
RECORDINGS = 64  # of the dataset


def features(scale, folder):
    """Measure the fbank of 10 s and of 1 s on one thread."""
    for seconds, bar in ((10, 2.0), (1, 1.0)):
        waveform = torch.from_numpy(make_waveforms(1, seconds)[0])
        with threads(1):
            expected = published_fbank(waveform - waveform.mean(), MEL_BINS)
            require_close('fbank', fbank(waveform, MEL_BINS), expected, 1e-3)
            times = alternate(
                {name: partial(repeat, function, waveform, MEL_BINS, times=FBANKS_PER_TIMING)
                 for name, function in (('ours', fbank), ('torchaudio', published_fbank))},
                4 * scale.rounds)
        yield faster(f'fbank of {seconds} s, one thread, against torchaudio',
                     times['ours'] / FBANKS_PER_TIMING, times['torchaudio'] / FBANKS_PER_TIMING,
                     bar)


def dataset(scale, folder):
    """Measure the training samples of the AudioSet recipe, read and augmented on one core."""
    for suffix, bar in (('.flac', 1.5), ('.wav', 1.8)):
        entries = make_entries(folder, suffix)
        ours, waveforms = (kind(folder / 'data.json', AUDIOSET_CONF, folder / 'labels.csv')
                           for kind in (AudiosetDataset, WaveformDataset))
        published = PublishedDataset(entries, ours.labels.index(), ours.conf)
        epochs = itertools.count()
        with threads(1):
            times = alternate(
                {'ours': lambda: draw_ours(ours, next(epochs), scale.samples),
                 'waveforms': lambda: draw_ours(waveforms, next(epochs), scale.samples),
                 'published': lambda: draw(published, scale.samples),
                 'decoding': lambda: [soundfile.read(path, dtype='float32')
                                      for path, _ in entries]}, scale.rounds)
        per_sample = {name: times[name] / scale.samples
                      for name in ('ours', 'waveforms', 'published')}
        files = 1 + AUDIOSET_CONF['mixup']  # that a sample is made of, on average
        kind = suffix[1:].upper()
        yield faster(f'dataset, a sample of 10 s {kind}, mixup 0.5, one core, against published',
                     per_sample['ours'], per_sample['published'], bar)
        yield faster('the same, the fbank left to a GPU (--features gpu)',
                     per_sample['waveforms'], per_sample['published'])
        yield share(f'the same, against decoding its {files} {kind} files alone',
                    1 / per_sample['ours'], len(entries) / times['decoding'] / files, '/s')


def make_entries(folder, suffix):
    """Write recordings with a datafile and a label file; return their (path, labels)."""
    paths = make_recordings(folder, RECORDINGS, suffix)
    entries = [(str(path), f'/m/{i},/m/{i + 1}') for i, path in enumerate(paths)]
    data = [{'wav': wav, 'labels': mids} for wav, mids in entries]
    (folder / 'data.json').write_text(json.dumps({'data': data}))
    classes = ''.join(f'{i},/m/{i},class {i}\n' for i in range(CLASSES))
    (folder / 'labels.csv').write_text(f'index,mid,display_name\n{classes}')
    return entries


def draw_ours(dataset, epoch, samples):
    """Make the first samples of an epoch."""
    for position in range(samples):
        dataset[SampleKey(position % len(dataset), seed=0, epoch=epoch, position=position)]


def draw(dataset, samples):
    """Make this number of samples."""
    for position in range(samples):
        dataset[position % len(dataset)]


def inference(scale, folder):
    """Measure one clip through the model, with all cores."""
    save_peer(folder, scale)
    taggers = {amp: load_tagger(folder, 'cpu', amp) for amp in ('off', 'bf16')}
    fbanks = torch.randn(1, scale.frames, MEL_BINS)
    peers = make_peers(folder, fbanks, taggers['off'].classifiers[0])
    for peer in peers.values():
        for amp, tolerance in (('off', 1e-4), ('bf16', 1e-2)):
            require_close(f'scores, {amp}', taggers[amp](fbanks)[0], peer(), tolerance)
    products = {amp: matrix_product(scale.matrix, dtype)
                for amp, dtype in (('off', torch.float32), ('bf16', torch.bfloat16))}
    with torch.inference_mode():
        times = alternate(
            {**{amp: partial(tagger, fbanks) for amp, tagger in taggers.items()}, **peers,
             **{f'{amp} limit': product for amp, (product, _) in products.items()}}, scale.rounds)

    plain = published_model(model_size=scale.model_size, input_tdim=scale.frames)
    work = forward_operations(plain, scale.frames, MEL_BINS) / 1e9
    limits = {amp: operations / times[f'{amp} limit'] / 1e9
              for amp, (_, operations) in products.items()}
    what = f'inference, {scale.model_size}, {scale.frames} frames'
    yield faster(f'{what}, fp32, against transformers sdpa', times['off'], times['sdpa'], 1.0)
    yield faster(f'{what}, fp32, against transformers eager', times['off'], times['eager'], 1.6)
    yield share(f'{what}, fp32, against the matrix limit', work / times['off'], limits['off'],
                'GFLOP/s', 0.9)
    yield faster(f'{what}, bf16, against transformers sdpa fp32', times['bf16'], times['sdpa'],
                 1.8)
    yield share(f'{what}, bf16, against the matrix limit', work / times['bf16'], limits['bf16'],
                'GFLOP/s', 0.7, is_goal=True)


def make_peers(folder, fbanks, classifier):
    """Return functions that compute the scores of fbanks with transformers, by its attention.

    Args:
        folder: of the model.
        classifier: has the mean and the standard deviation of the training data.
    """
    normalised = normalise(fbanks, classifier.mean, classifier.std)

    @torch.inference_mode()
    def compute(model):
        return model(normalised).logits.sigmoid().numpy()

    return {attention: partial(compute, load_peer(folder, attention))
            for attention in ('sdpa', 'eager')}


def exports(scale, folder):
    """Measure one clip through the model and through its ONNX files, on one thread and on two."""
    save_peer(folder, scale)
    taggers = {amp: load_tagger(folder, 'cpu', amp) for amp in ('off', 'bf16')}
    trained = load_trained(str(folder))
    for name in ('fp32', 'int8'):
        write_onnx(trained, folder / f'{name}.onnx', int8=name == 'int8')
    fbanks = torch.randn(1, scale.frames, MEL_BINS)
    for count in (1, 2):
        files = {name: open_onnx(folder / f'{name}.onnx', count) for name in ('fp32', 'int8')}
        functions = {**{amp: partial(tagger, fbanks) for amp, tagger in taggers.items()},
                     **{name: partial(run, fbanks.numpy()) for name, run in files.items()}}
        with threads(count):
            expected = functions['off']()[0]
            for name, tolerance in (('fp32', 1e-4), ('int8', INT8_BOUND)):
                require_close(f'scores, ONNX Runtime {name}', functions[name]()[0], expected,
                              tolerance)
            times = alternate(functions, scale.rounds)
        for name, what in (('fp32', 'ONNX Runtime fp32'), ('int8', 'ONNX Runtime int8'),
                           ('bf16', 'PyTorch bf16')):
            yield faster(f'inference, {scale.model_size}, {what}, threads: {count}, against '
                         f'PyTorch fp32', times[name], times['off'])


def open_onnx(path, count):
    """Return a function that runs an ONNX file on `count` threads: fbanks to scores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = count
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    return lambda fbanks: session.run(['scores'], {'fbank': fbanks})


def tagging(scale, folder):
    """Measure the way from files to tags, in the precision of --amp auto.

    Both sides have the same weights.
    """
    save_peer(folder, scale)
    paths = make_recordings(folder, scale.files // TAGGING_ROUNDS, '.flac')
    tagger = load_tagger(folder, 'cpu')
    classify = pipeline('audio-classification', model=load_peer(folder), device='cpu',
                        feature_extractor=ASTFeatureExtractor.from_pretrained(folder))

    def ours(files=paths):
        return [one.mean for one in tag(tagger, files, window='first')]

    def peer(files=paths):  # decoded here: given a path, it would start ffmpeg for each file
        waveforms = (soundfile.read(path, dtype='float32')[0] for path in files)
        return [classify({'raw': waveform, 'sampling_rate': SAMPLE_RATE}, top_k=CLASSES)
                for waveform in waveforms]

    expected = {score['label']: score['score'] for score in peer(paths[:1])[0]}
    require_close('scores', ours(paths[:1])[0],
                  [expected[f'LABEL_{k}'] for k in range(CLASSES)], 1e-2)
    times = alternate({'ours': ours, 'pipeline': peer}, TAGGING_ROUNDS, settle=False)
    yield faster(f'{scale.files} files of 10 s tagged, {scale.model_size}, against the '
                 'transformers pipeline', TAGGING_ROUNDS * times['ours'],
                 TAGGING_ROUNDS * times['pipeline'], 1.6)


def training(scale, folder):
    """Measure a training step of the ESC-10 run, in the precision of --amp auto."""
    device = torch.device('cpu')
    trainer, args = make_trainer(ESC10, device)
    model = published_model(label_dim=args.n_class, fstride=args.fstride, tstride=args.tstride,
                            input_tdim=args.audio_length, model_size=args.model_size)
    published = PublishedTrainer(model, device, LOSSES[args.loss], args.lr)
    batch = make_batch(args.batch_size, args.audio_length, args.n_class)
    times = alternate({'ours': partial(trainer.step, *batch),
                       'published': partial(published.step, *batch)}, 4 * scale.rounds)
    yield faster(f'training step, ESC-10 run ({args.model_size}, batch {args.batch_size}), '
                 'against published', times['ours'], times['published'], 1.2)


def patchout(scale, folder):
    """Measure a training step that leaves out some of the patches."""
    trainers = {name: make_trainer(audioset_options(scale, *options), torch.device('cpu'))[0]
                for name, options in (('none', ()), ('Patchout', PATCHOUT))}
    batch = make_batch(PATCHOUT_CLIPS, scale.frames, CLASSES)
    times = alternate({name: partial(trainer.step, *batch) for name, trainer in trainers.items()},
                      PATCHOUT_ROUNDS)
    yield faster(f'training step, {scale.model_size}, batch {PATCHOUT_CLIPS}, Patchout of 4 x 40, '
                 'against none', times['Patchout'], times['none'], 1.8)


ROWS = {function.__name__: function
        for function in (features, dataset, inference, exports, tagging, training, patchout)}
