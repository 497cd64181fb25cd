"""Evaluate checkpoints on one dataset, each alone and all together. ensemble.py starts it."""
import functools
import hashlib
import json
import logging
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dataloader import AudiosetDataset
from models import load_model
from models.weights import locate, sha256
from tagging.checkpoint_labels import labels_of
from tagging.tagger import to_scores
from training.devices import choose_device, choose_precision, parallelise
from training.errors import as_training_errors
from training.loaders import make_loader
from training.result_files import read_array, write_array, write_rows
from traintest import validate
from utilities.stats import Metrics, calculate_stats, is_single_label, summarise

logger = logging.getLogger(__name__)


def ensemble(args: Namespace) -> None:
    """Evaluate every checkpoint and the mean of their outputs.

    Prints a line as soon as it is known, and writes ensemble_result.csv.
    """
    device = choose_device(args.device)
    print(f'{"checkpoint":<44} {"mAP":<8} {"AUC":<8} {"d-prime":<8} (accuracy)')
    total, rows = 0.0, []
    for source in args.checkpoints:
        predictions, targets = evaluate(args, source, device)
        total = total + predictions.astype(np.float64)
        metrics = summarise(calculate_stats(predictions, targets))
        rows.append([metrics.mAP, metrics.mAUC, metrics.d_prime])
        print(metrics_line(source, metrics, targets), flush=True)
    metrics = summarise(calculate_stats(total / len(rows), targets))
    rows.append([metrics.mAP, metrics.mAUC, metrics.d_prime])
    write_rows(args.exp_dir / 'ensemble_result.csv', rows)
    if len(args.checkpoints) > 1:
        print(metrics_line(f'ensemble of {len(args.checkpoints)}', metrics, targets))
    if metrics.classes_without_positives:
        print(f'{metrics.classes_without_positives} of {metrics.classes} classes without positives '
              f'are left out')


def evaluate(args: Namespace, source: str, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """Return predictions and labels of one checkpoint, both (samples, classes).

    Predictions are kept in exp_dir, so that a job that was stopped does not compute them again.
    """
    path = locate(source)
    loss = args.loss or 'BCE'  # even if the checkpoint was trained with CE
    model, description = load_model(
        path, fstride=args.fstride, tstride=args.tstride, input_fdim=args.num_mel_bins,
        input_tdim=args.audio_length, mean=args.dataset_mean, std=args.dataset_std, loss=loss)
    model.autocast_dtype = choose_precision(args.amp, device)
    audio_conf = {'num_mel_bins': description['input_fdim'],
                  'target_length': description['input_tdim'], 'mean': description['mean'],
                  'std': description['std'], 'mode': 'evaluation'}
    audio_conf |= {name: description[name] for name in ('sample_rate', 'mask_padding')
                   if name in description}
    dataset = AudiosetDataset(args.data_eval, audio_conf, args.label_csv)
    labels_of(path, description, dataset.labels)  # raises if they are not the checkpoint's
    what = {**audio_conf, 'checkpoint': sha256(path), 'data_eval': sha256(args.data_eval),
            'precision': str(model.autocast_dtype),
            'strides': [model.config.fstride, model.config.tstride], 'loss': loss,
            'layer_norm_eps': description.get('layer_norm_eps')}
    kept = args.exp_dir / 'predictions' / file_name(path, what)
    if kept.exists():
        logger.info('%s: its predictions are in %s', source, kept)
    else:
        write_array(kept, predict(args, model, dataset, device, loss, title=source))
    advice = 'delete it, and the same command computes it again'
    return read_array(kept, advice), dataset.all_targets()


def file_name(path: Path, what: dict[str, Any]) -> str:
    """Return the name of the file of a checkpoint's predictions. what: all that they depend on."""
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    return f'{path.stem}-{digest[:16]}.npy'


def predict(args: Namespace, model: nn.Module, dataset: AudiosetDataset, device: torch.device,
            loss: str, title: str) -> np.ndarray:
    """Return the outputs of a model, (samples, classes): sigmoids, or softmax for the loss CE."""
    loader = make_loader(dataset, args.batch_size, args.num_workers,
                         pin_memory=device.type == 'cuda')
    with as_training_errors():
        model = parallelise(model.to(device), device)
        scores = functools.partial(to_scores, loss=loss)
        return validate(model, loader, device, loss, title, scores).predictions


def metrics_line(name: str, metrics: Metrics, targets: np.ndarray) -> str:
    """Return a line of the table that is printed, with the accuracy if samples have one label."""
    accuracy = f' {metrics.acc:.6f}' if is_single_label(targets) else ''
    return (f'{name:<44} {metrics.mAP:.6f} {metrics.mAUC:.6f} {metrics.d_prime:.6f}{accuracy}')
