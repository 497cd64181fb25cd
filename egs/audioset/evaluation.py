"""Evaluation of checkpoints on one dataset, each alone and all together. ensemble.py starts it."""
import functools
import hashlib
import json
import logging

import numpy as np
import torch

from dataloader import AudiosetDataset
from models import load_model
from models.weights import locate, sha256
from tagging.tagger import labels_of
from training.devices import choose_device, choose_precision, parallelise
from training.errors import explained
from training.loaders import make_loader
from training.results import write_array, write_rows
from traintest import validate
from utilities.stats import calculate_stats, is_single_label, summarise

SCORES = {'BCE': torch.sigmoid, 'CE': functools.partial(torch.softmax, dim=1)}

logger = logging.getLogger(__name__)


def evaluate(args, source, device, folder):
    """Predictions and labels of one checkpoint, both (samples, classes): kept in folder, or computed and kept there."""
    path = locate(source)
    precision = choose_precision(args.amp, device)
    loss = args.loss or 'BCE'  # whatever it was trained with
    model, description = load_model(
        path, fstride=args.fstride, tstride=args.tstride, input_fdim=args.num_mel_bins,
        input_tdim=args.audio_length, mean=args.dataset_mean, std=args.dataset_std, loss=loss)
    audio_conf = {'num_mel_bins': description['input_fdim'],
                  'target_length': description['input_tdim'], 'mean': description['mean'],
                  'std': description['std'], 'mode': 'evaluation'}
    dataset = AudiosetDataset(args.data_eval, audio_conf, args.label_csv)
    labels_of(path, description, dataset.labels)  # raises where they are not the checkpoint's
    targets = np.stack([dataset.make_targets(i).numpy() for i in range(len(dataset))])
    what = {**audio_conf, 'checkpoint': sha256(path), 'data_eval': sha256(args.data_eval), 'precision': str(precision),
            'strides': [model.config.fstride, model.config.tstride], 'loss': loss,
            'layer_norm_eps': description.get('layer_norm_eps')}
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    kept = folder / f'{path.stem}-{key[:16]}.npy'
    if kept.exists():
        logger.info('%s: its predictions are in %s', source, kept)
        return np.load(kept), targets
    model.autocast_dtype = precision
    loader = make_loader(dataset, args.batch_size, args.num_workers, pin_memory=device.type == 'cuda')
    with explained():
        evaluation = validate(parallelise(model.to(device), device), loader, device, loss,
                              str(source), scores=SCORES[loss])
    write_array(kept, evaluation.predictions)
    return evaluation.predictions, targets


def report(name, metrics, targets):
    """A line of the table that is printed; accuracy only if every sample has one label."""
    accuracy = f' {metrics.acc:.6f}' if is_single_label(targets) else ''
    return f'{name:<44} {metrics.mAP:.6f} {metrics.mAUC:.6f} {metrics.d_prime:.6f}{accuracy}'


def ensemble(args):
    """Evaluate every checkpoint and their mean; write ensemble_result.csv, and print a line as soon as it is known."""
    device = choose_device(args.device)
    folder = args.exp_dir / 'predictions'
    print(f'{"checkpoint":<44} {"mAP":<8} {"AUC":<8} {"d-prime":<8} (accuracy)')
    total, rows = 0.0, []
    for source in args.checkpoints:
        predictions, targets = evaluate(args, source, device, folder)
        total = total + predictions.astype(np.float64)
        metrics = summarise(calculate_stats(predictions, targets))
        rows.append([metrics.mAP, metrics.mAUC, metrics.d_prime])
        print(report(source, metrics, targets), flush=True)
    metrics = summarise(calculate_stats(total / len(rows), targets))
    rows.append([metrics.mAP, metrics.mAUC, metrics.d_prime])
    write_rows(args.exp_dir / 'ensemble_result.csv', rows)
    if len(args.checkpoints) > 1:
        print(report(f'ensemble of {len(args.checkpoints)}', metrics, targets))
    if metrics.classes_without_positives:
        print(f'{metrics.classes_without_positives} of {metrics.classes} classes without positives are left out')
