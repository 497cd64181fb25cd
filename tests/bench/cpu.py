"""The rows that a CPU fills. Each function takes a Scale and an empty folder, and yields Rows."""
import itertools
import json
from functools import partial

import numpy as np
import onnxruntime
import soundfile
import torch
from transformers import ASTFeatureExtractor, pipeline

from audio.fbank import SAMPLE_RATE, fbank, normalise
from dataloader import AudiosetDataset, SampleKey
from exporting.int8 import BOUND as INT8_BOUND
from exporting.onnx_file import write_onnx
from exporting.trained import load_trained
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
    make_recordings,
    make_trainer,
    make_waveforms,
    save_peer,
)
from published import PublishedDataset, PublishedEpochs, PublishedTrainer
from published import calculate_stats as published_stats
from published import fbank as published_fbank
from published import make_model as published_model
from tagging import load_tagger, tag
from training.gpu_fbanks import WaveformDataset
from training.losses import LOSSES
from training.result_files import write_array
from training.results import Results
from traintest import Evaluation
from utilities.stats import calculate_stats

AUDIOSET_CONF = {'num_mel_bins': MEL_BINS, 'target_length': 1024, 'mode': 'train', 'freqm': 48, 'timem': 192,
                 'mixup': 0.5}
# The run of egs/esc50/README.md on ESC-10.
ESC10 = ('--model_size tiny224 --fstride 16 --tstride 16 --audio_length 512 --lr 3e-4 --batch_size 16 --n_class 50 '
         '--metrics acc --loss CE').split()
TURNS_OF_TAGGING = 2  # of minutes: the files are divided among them
TURNS_OF_METRICS = 1  # of a minute, after a first epoch that has no ensemble to read
TURNS_OF_PATCHOUT = 3  # of half a minute
TRAINED_CLIPS = 4  # a batch that a CPU can take
FBANKS_A_TURN = 30
RECORDINGS = 64  # of the dataset


def features(scale, folder):
    """fbank of 10 s and of 1 s on one thread."""
    for seconds, bar in ((10, 2.0), (1, 1.0)):
        waveform = torch.from_numpy(make_waveforms(1, seconds)[0])
        with threads(1):
            expected = published_fbank(waveform - waveform.mean(), MEL_BINS)
            require_close('fbank', fbank(waveform, MEL_BINS), expected, 1e-3)
            times = alternate({name: partial(repeat, function, waveform, MEL_BINS, times=FBANKS_A_TURN)
                               for name, function in (('ours', fbank), ('torchaudio', published_fbank))},
                              4 * scale.rounds)
        yield faster(f'fbank of {seconds} s, one thread, against torchaudio', times['ours'] / FBANKS_A_TURN,
                     times['torchaudio'] / FBANKS_A_TURN, bar)


def dataset(scale, folder):
    """Training samples of the AudioSet recipe, read and augmented on one core."""
    classes = ''.join(f'{i},/m/{i},class {i}\n' for i in range(CLASSES))
    (folder / 'labels.csv').write_text(f'index,mid,display_name\n{classes}')
    for suffix, bar in (('.flac', 1.5), ('.wav', 1.8)):
        paths = make_recordings(folder, RECORDINGS, suffix)
        entries = [(str(path), f'/m/{i},/m/{i + 1}') for i, path in enumerate(paths)]
        (folder / 'data.json').write_text(json.dumps({'data': [{'wav': w, 'labels': mids} for w, mids in entries]}))
        ours, waveforms = (kind(folder / 'data.json', AUDIOSET_CONF, folder / 'labels.csv')
                           for kind in (AudiosetDataset, WaveformDataset))
        published = PublishedDataset(entries, ours.labels.index(), ours.conf)
        epochs = itertools.count()
        with threads(1):
            times = alternate({'ours': lambda: draw_ours(ours, next(epochs), scale.samples),
                               'waveforms': lambda: draw_ours(waveforms, next(epochs), scale.samples),
                               'published': lambda: draw(published, scale.samples),
                               'decoding': lambda: [soundfile.read(path, dtype='float32') for path in paths]},
                              scale.rounds)
        a_sample = {name: times[name] / scale.samples for name in ('ours', 'waveforms', 'published')}
        kind = suffix[1:].upper()
        yield faster(f'dataset, a sample of 10 s {kind}, mixup 0.5, one core, against published', a_sample['ours'],
                     a_sample['published'], bar)
        yield faster('the same, the fbank left to a GPU (--features gpu)', a_sample['waveforms'], a_sample['published'])
        reading = (1 + AUDIOSET_CONF['mixup']) * times['decoding'] / len(entries)
        yield share(f'the same, against decoding its 1.5 {kind} files alone', 1 / a_sample['ours'], 1 / reading, '/s')


def draw_ours(dataset, epoch, samples):
    """Make the first samples of an epoch."""
    for position in range(samples):
        dataset[SampleKey(position % len(dataset), seed=0, epoch=epoch, position=position)]


def draw(dataset, samples):
    """Make so many samples."""
    for position in range(samples):
        dataset[position % len(dataset)]


def inference(scale, folder):
    """One clip through the model, all cores."""
    save_peer(folder, scale)
    taggers = {amp: load_tagger(folder, 'cpu', amp) for amp in ('off', 'bf16')}
    classifier = taggers['off'].classifiers[0]
    fbanks = torch.randn(1, scale.frames, MEL_BINS)
    normalised = normalise(fbanks, classifier.mean, classifier.std)
    peers = {attention: load_peer(folder, attention) for attention in ('sdpa', 'eager')}

    @torch.inference_mode()
    def peer(attention):
        return peers[attention](normalised).logits.sigmoid().numpy()

    for attention in peers:
        for amp, tolerance in (('off', 1e-4), ('bf16', 1e-2)):
            require_close(f'scores, {amp}', taggers[amp](fbanks)[0], peer(attention), tolerance)
    products = {amp: matrix_product(scale.matrix, dtype)
                for amp, dtype in (('off', torch.float32), ('bf16', torch.bfloat16))}
    with torch.inference_mode():
        times = alternate({**{amp: partial(tagger, fbanks) for amp, tagger in taggers.items()},
                           **{attention: partial(peer, attention) for attention in peers},
                           **{f'{amp} limit': product for amp, (product, _) in products.items()}}, scale.rounds)
    model = f'{scale.model_size}, {scale.frames} frames'
    work = forward_operations(published_model(model_size=scale.model_size, input_tdim=scale.frames), scale.frames,
                              MEL_BINS) / 1e9
    limits = {amp: operations / times[f'{amp} limit'] / 1e9 for amp, (_, operations) in products.items()}
    yield faster(f'inference, {model}, fp32, against transformers sdpa', times['off'], times['sdpa'], 1.0)
    yield faster(f'inference, {model}, fp32, against transformers eager', times['off'], times['eager'], 1.6)
    yield share(f'inference, {model}, fp32, against the matrix limit', work / times['off'], limits['off'], 'GFLOP/s',
                0.9)
    yield faster(f'inference, {model}, bf16, against transformers sdpa fp32', times['bf16'], times['sdpa'], 1.8)
    yield share(f'inference, {model}, bf16, against the matrix limit', work / times['bf16'], limits['bf16'], 'GFLOP/s',
                0.7, towards=True)


def exports(scale, folder):
    """One clip through the model and through its ONNX files, on one thread and on two."""
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
    """A function that runs an ONNX file on so many threads: fbanks to scores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = count
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    return lambda fbanks: session.run(['scores'], {'fbank': fbanks})


def tagging(scale, folder):
    """Files to tags end to end, in the precision that `auto` takes, with the weights that the pipeline has."""
    save_peer(folder, scale)
    paths = make_recordings(folder, scale.files // TURNS_OF_TAGGING, '.flac')
    tagger = load_tagger(folder, 'cpu')
    classify = pipeline('audio-classification', model=load_peer(folder), device='cpu',
                        feature_extractor=ASTFeatureExtractor.from_pretrained(folder))

    def ours(files=paths):
        return [tagging.mean for tagging in tag(tagger, files, window='first')]

    def peer(files=paths):  # decoded here: from a path it would start an ffmpeg
        return [classify({'raw': soundfile.read(path, dtype='float32')[0], 'sampling_rate': SAMPLE_RATE},
                         top_k=CLASSES) for path in files]

    expected = {score['label']: score['score'] for score in peer(paths[:1])[0]}
    require_close('scores', ours(paths[:1])[0], [expected[f'LABEL_{k}'] for k in range(CLASSES)], 1e-2)
    times = alternate({'ours': ours, 'pipeline': peer}, TURNS_OF_TAGGING, settle=False)
    yield faster(f'{scale.files} files of 10 s tagged, {scale.model_size}, against the transformers pipeline',
                 TURNS_OF_TAGGING * times['ours'], TURNS_OF_TAGGING * times['pipeline'], 1.6)


def metrics(scale, folder):
    """What an epoch does with its predictions: metrics, files, the ensemble of the epochs and its metrics."""
    rng = np.random.default_rng(0)
    samples, classes = scale.predictions
    targets = (rng.random((samples, classes)) < np.geomspace(0.3, 0.002, classes)).astype(np.float32)
    targets[0], targets[1] = 1, 0  # every class occurs
    predictions = 1 / (1 + np.exp(-(2 * targets - 3 + rng.standard_normal(targets.shape, dtype=np.float32))))
    evaluation = Evaluation(predictions.astype(np.float32), targets, 0.5)
    results, published = Results(folder / 'ours', 'mAP', 'benchmark'), PublishedEpochs(folder, targets)

    def ours():
        row = results.add(0.5, evaluation, 1e-5)
        results.write()
        return row.cum_metric, row.cum_mAUC

    def reference():
        _, mean = published.add(evaluation.predictions, targets)
        return [np.mean([statistics[name] for statistics in mean]) for name in ('AP', 'auc')]

    every_class = [[(one['AP'], one['auc']) for one in function(evaluation.predictions, targets)]
                   for function in (calculate_stats, published_stats)]
    require_close('AP and AUC of every class', *every_class, 1e-9)
    times = alternate({'ours': partial(calculate_stats, evaluation.predictions, targets),
                       'scikit-learn': partial(published_stats, evaluation.predictions, targets)}, 1, settle=False)
    yield faster(f'calculate_stats of {samples} x {classes}, against four calls a class of scikit-learn',
                 times['ours'], times['scikit-learn'], 3)

    def files():
        write_array(folder / 'predictions.npy', evaluation.predictions)
        return (np.load(folder / 'predictions.npy').astype(np.float64) + evaluation.predictions) / 2

    seconds = alternate({'files': files}, scale.rounds)['files']
    yield at_most("an epoch's predictions saved, loaded, averaged, against 1 s", seconds, 1.0, 's')
    require_close('mAP and mAUC', ours(), reference(), 1e-6)
    times = alternate({'ours': ours, 'published': reference}, TURNS_OF_METRICS, settle=False)
    yield faster(f'metrics and epoch ensemble of {samples} x {classes}, against published', times['ours'],
                 times['published'], 10)


def training(scale, folder):
    """A training step of the ESC-10 run, in the precision that `auto` takes."""
    device = torch.device('cpu')
    trainer, args = make_trainer(ESC10, device)
    model = published_model(label_dim=args.n_class, fstride=args.fstride, tstride=args.tstride,
                            input_tdim=args.audio_length, model_size=args.model_size)
    published = PublishedTrainer(model, device, LOSSES[args.loss], args.lr)
    batch = make_batch(args.batch_size, args.audio_length, args.n_class)
    times = alternate({'ours': lambda: trainer.step(*batch), 'published': lambda: published.step(*batch)},
                      4 * scale.rounds)
    yield faster(f'training step, ESC-10 run ({args.model_size}, batch {args.batch_size}), against published',
                 times['ours'], times['published'], 1.2)


def patchout(scale, folder):
    """A training step that leaves out a part of the patches."""
    trainers = {name: make_trainer(audioset(scale, *options), torch.device('cpu'))[0]
                for name, options in (('none', ()), ('Patchout', PATCHOUT))}
    batch = make_batch(TRAINED_CLIPS, scale.frames, CLASSES)
    times = alternate({name: partial(trainer.step, *batch) for name, trainer in trainers.items()},
                      TURNS_OF_PATCHOUT)
    yield faster(f'training step, {scale.model_size}, batch {TRAINED_CLIPS}, Patchout of 4 x 40, against none',
                 times['Patchout'], times['none'], 1.8)


ROWS = {'features': features, 'dataset': dataset, 'inference': inference, 'exports': exports, 'tagging': tagging,
        'metrics': metrics, 'training': training, 'patchout': patchout}
