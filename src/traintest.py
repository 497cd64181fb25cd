"""Train, validate, average checkpoints: the course of one experiment."""
import logging
import math
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch

from models import load_checkpoint, mean_state_dict, save_checkpoint
from models.atomic import remove_leftovers
from training import processes
from training.bad_audio import BadAudio
from training.checkpoint import Checkpoint, CheckpointError
from training.devices import move
from training.errors import TrainingError
from training.results import Results, write_array, write_confusion, write_rows
from training.trainer import LOSSES, NOT_FINITE_ADVICE, Trainer
from utilities.progress import Progress
from utilities.stats import (
    Metrics,
    calculate_stats,
    is_single_label,
    single_label_scores,
    summarise,
)
from utilities.texts import write_json

LISTED = 50  # recordings in a message

logger = logging.getLogger(__name__)


class Interrupted(Exception):
    """A run that was asked to stop, and whose checkpoint holds all that it has trained."""


@dataclass(frozen=True)
class Evaluation:
    """Sigmoid predictions and labels, both (samples, classes) float32, and the mean loss of the logits."""
    predictions: np.ndarray
    targets: np.ndarray
    loss: float


@torch.inference_mode()
def validate(model, loader, device, loss, title='validation', after_batch=lambda: None,
             scores=torch.sigmoid):
    """Evaluate a model on every sample of loader; call after_batch() after each batch.

    loss: 'BCE' or 'CE'. scores: makes predictions of logits (B, classes). Several processes evaluate
    a part each (make_loader) and call after_batch equally often.
    Returns an Evaluation; in processes other than the main one, None.
    """
    model.eval()
    loss_function = LOSSES[loss]()
    total, predictions, targets = 0.0, [], []
    rounds = int(processes.gather_numbers(len(loader)).max())  # of the process that has most batches
    with Progress(title, len(loader)) as progress:
        for fbanks, labels in loader:
            logits = model(move(fbanks, device))
            total = total + loss_function(logits, move(labels, device)) * len(labels)
            predictions.append(scores(logits))
            targets.append(labels)
            progress.advance(len(labels))
            after_batch()
    for _ in range(len(loader), rounds):
        after_batch()
    predictions, targets = (processes.gather_rows(torch.cat(batches).cpu() if batches else torch.zeros(0))
                            for batches in (predictions, targets))
    total = float(processes.gather_numbers(float(total)).sum())
    return Evaluation(predictions.numpy(), targets.numpy(), total / len(targets)) if processes.is_main() else None


class Run:
    """One experiment under way: it trains, evaluates and writes, and goes on from its checkpoint where there is one.

    train_loader has an EpochSampler. description: what save_checkpoint writes beside the weights; its `dataset` is the
    title of the plots. interrupt: an Interrupt, looked at after every step and every batch of an evaluation.
    """

    def __init__(self, model, device, train_loader, val_loader, settings, exp_dir, description, interrupt):
        self.model, self.device, self.settings = model, device, settings
        self.train_loader, self.val_loader = train_loader, val_loader
        self.exp_dir, self.description, self.interrupt = Path(exp_dir), description, interrupt
        (self.exp_dir / 'models').mkdir(parents=True, exist_ok=True)
        self.trainer = Trainer(model, device, settings)
        self.results = Results(exp_dir, settings.metrics, description['dataset'])
        self.asked = processes.DelayedSum()
        self.bad_audio = getattr(train_loader, 'bad_audio', None) or BadAudio()  # of a loader of anything, none
        kept = {'trainer': self.trainer, 'bad_audio': self.bad_audio}
        if processes.is_main():
            kept['results'] = self.results
            self.remove_leftovers()
        self.checkpoint = Checkpoint(exp_dir, settings.checkpoint_minutes, **kept)

    def remove_leftovers(self):
        """Remove what an earlier start was writing when it was killed."""
        for folder, name in (('.', 'checkpoint.pth'), ('models', '*audio_model*'), ('predictions', '*')):
            remove_leftovers(self.exp_dir / folder, name)

    def train(self):
        """Train to the last epoch. Raises TrainingError if the loss is no longer finite, Interrupted on a signal."""
        if self.checkpoint.restore():
            processes.on_main(self.take_up)
        while self.trainer.epoch <= self.settings.n_epochs:
            start = time.monotonic()
            title = f'epoch {self.trainer.epoch} of {self.settings.n_epochs}'
            self.train_loader.batch_sampler.sampler.set_epoch(self.trainer.epoch, start=self.trainer.loss.samples)
            train_loss = self.trainer.run_epoch(self.train_loader, title, self.after_step)
            replaced = self.bad_audio.total()
            self.stop_at_bad_audio(replaced)
            evaluation = self.evaluate(self.val_loader, f'{title}, validation', save=True)
            metrics = processes.on_main(lambda: self.take_in(title, train_loss, evaluation))
            self.trainer.end_epoch(getattr(metrics[0], self.settings.metrics))
            self.bad_audio.count = 0
            self.checkpoint.save()
            processes.on_main(lambda: self.conclude_epoch(title, *metrics, evaluation, time.monotonic() - start,
                                                           replaced))

    def take_up(self):
        """Look whether a checkpoint fits, and write what an earlier start did not come to after its last epoch."""
        self.check_validation_set()
        logger.info('going on in epoch %d after %d steps', self.trainer.epoch, self.trainer.loss.steps)
        if self.results.rows:
            self.write_epoch()

    def take_in(self, title, train_loss, evaluation):
        """Add an epoch to the results. Returns the Metrics of its predictions and of the ensemble."""
        if not math.isfinite(evaluation.loss):
            raise TrainingError(f'{title}: the validation loss is no longer a finite number; {NOT_FINITE_ADVICE}')
        return self.results.add(train_loss, evaluation, self.trainer.schedule.current)

    def conclude_epoch(self, title, single, ensemble, evaluation, seconds, replaced):
        """Write what follows from an epoch whose checkpoint is written, and log it."""
        self.write_epoch()
        log_epoch(title, self.results, single, ensemble, seconds, replaced)
        if self.settings.loss == 'CE':
            f1, top5 = single_label_scores(evaluation.predictions, evaluation.targets)
            more = '' if math.isnan(top5) else f', top-5 accuracy {top5:.4f}'
            logger.info('%s: macro F1 %.4f%s', title, f1, more)

    def check_validation_set(self):
        """Raise CheckpointError if the epochs so far were evaluated on another number of samples."""
        samples = len(self.val_loader.dataset)
        if self.results.rows and len(self.results.predictions_sum) != samples:
            raise CheckpointError(f'{self.exp_dir}: its epochs so far were evaluated on '
                                  f'{len(self.results.predictions_sum)} samples, but the validation set has {samples}: '
                                  f'choose another --exp_dir, or --resume none')

    def write_epoch(self):
        """Write what follows from the checkpoint at the end of an epoch; a run that broke off here writes it again."""
        epoch = len(self.results.rows)
        self.results.write()
        if self.trainer.loss.steps:
            return  # weights that have moved on; the epoch's own were written before they did
        models = self.exp_dir / 'models'
        if self.results.best_epoch == epoch:
            save_checkpoint(self.model, models / 'best_audio_model.pth', **self.description)
        if self.settings.save_model or self.settings.averages(epoch):
            save_checkpoint(self.model, models / f'audio_model.{epoch}.pth', **self.description)

    def after_step(self):
        """Write a checkpoint where one is due, and stop where that was asked for, of any process."""
        stop, replaced, due = self.asked(self.interrupt.requested, self.bad_audio.count,
                                             processes.is_main() and self.checkpoint.is_due())
        self.stop_at_bad_audio(replaced)
        if stop or due:
            self.trainer.loss.mean()  # raises where the weights are no longer worth keeping
            self.checkpoint.save()
            self.asked.reset()
        if stop:
            raise Interrupted

    def stop_if_asked(self, save=False):
        """Raise Interrupted where a signal asked any process for it; save: write a checkpoint before."""
        stop, _, _ = self.asked(self.interrupt.requested, 0, False)
        if stop:
            if save:
                self.checkpoint.save()
            self.asked.reset()
            raise Interrupted

    def stop_at_bad_audio(self, replaced):
        """Write a checkpoint and raise TrainingError if more samples were replaced than max_bad_audio allows."""
        if replaced <= self.settings.max_bad_audio * len(self.train_loader.dataset):
            return
        self.trainer.loss.mean()
        self.checkpoint.save()
        reasons = list(self.bad_audio.reasons)
        listed = '; '.join(reasons[:LISTED] + [f'and {len(reasons) - LISTED} more'] * (len(reasons) > LISTED))
        raise TrainingError(
            f'{replaced} samples of epoch {self.trainer.epoch} so far could not be read, more than --max_bad_audio '
            f'{self.settings.max_bad_audio:g} of an epoch; src/check_data.py finds all such recordings, and with a '
            f'higher --max_bad_audio the run goes on; {listed or "other processes or starts have logged them"}')

    def evaluate(self, loader, title, save=False):
        """The Evaluation of the model as it is. A signal stops it, and it is done again; save: as of stop_if_asked."""
        return validate(self.trainer.parallel, loader, self.device, self.settings.loss, title,
                        lambda: self.stop_if_asked(save))

    def average_weights(self):
        """Average the models of epochs wa_start to wa_end, evaluate the mean, write wa_result.csv, audio_model_wa.pth.

        Leaves the averaged weights in the model.
        """
        s = self.settings
        paths = [self.exp_dir / 'models' / f'audio_model.{epoch}.pth' for epoch in range(s.wa_start, s.wa_end + 1)]
        self.model.load_state_dict(mean_state_dict(paths))
        evaluation = self.evaluate(self.val_loader, 'averaged model')
        processes.on_main(lambda: self.write_average(evaluation))

    def write_average(self, evaluation):
        """Write the averaged model and its metrics."""
        s, result = self.settings, summarise(calculate_stats(evaluation.predictions, evaluation.targets))
        save_checkpoint(self.model, self.exp_dir / 'models' / 'audio_model_wa.pth', **self.description)
        write_rows(self.exp_dir / 'wa_result.csv',
                   [result.mAP, result.mAUC, result.precision, result.recall, result.d_prime])
        logger.info('average of epochs %d to %d: %s %.4f, mAUC %.4f, d-prime %.4f%s', s.wa_start,
                    s.wa_end, s.metrics, getattr(result, s.metrics), result.mAUC, result.d_prime,
                    left_out(result))

    def evaluate_best(self, eval_loader):
        """Evaluate the best epoch's model on the validation and the evaluation set and write eval_result.csv.

        The file holds the main metric and mAUC of the one, then of the other. The predictions of the evaluation set
        are kept; with one label a sample, its confusion matrix is drawn.
        """
        load_checkpoint(self.model, self.exp_dir / 'models' / 'best_audio_model.pth')
        evaluations = {name: self.evaluate(loader, f'best model, {name} set')
                       for name, loader in (('validation', self.val_loader), ('evaluation', eval_loader))}
        processes.on_main(lambda: self.write_best(evaluations))

    def write_best(self, evaluations):
        """Write and log what evaluate_best found. evaluations: by name of the set, in the file's order."""
        row = []
        for name, evaluation in evaluations.items():
            result = summarise(calculate_stats(evaluation.predictions, evaluation.targets))
            row += [getattr(result, self.settings.metrics), result.mAUC]
            logger.info('best model on the %s set: %s %.4f, mAUC %.4f%s', name,
                        self.settings.metrics, *row[-2:], left_out(result))
        write_rows(self.exp_dir / 'eval_result.csv', row)
        for name in ('predictions', 'targets'):
            write_array(self.exp_dir / 'predictions' / f'eval_{name}.npy', getattr(evaluation, name))
        if is_single_label(evaluation.targets):
            names = self.description['labels']['names']
            logger.info(write_confusion(self.exp_dir, names, evaluation.predictions, evaluation.targets))

    def finish(self):
        """Mark the experiment as finished, and remove what it needed only to go on; save_model keeps all of it."""
        write_json(self.exp_dir / 'finished', {'seconds': round(self.trainer.elapsed, 1)})
        if not self.settings.save_model:
            self.checkpoint.remove()
            for path in (self.exp_dir / 'models').glob('audio_model.[0-9]*'):
                path.unlink()


def left_out(metrics: Metrics) -> str:
    """Return what a line about metrics adds if they leave classes out: '' if they do not."""
    absent = metrics.classes_without_positives
    return (f', {absent} of {metrics.classes} classes without positives left out of the means'
            if absent else '')


def log_epoch(title, results, single, ensemble, seconds, replaced):
    """One line about an epoch. replaced: samples whose audio could not be read."""
    metric = results.metric
    *_, train_loss, valid_loss, _, _, lr = results.rows[-1]
    bad = f', {replaced} samples replaced whose audio could not be read' if replaced else ''
    logger.info('%s: %s %.4f (ensemble of epochs %.4f), mAUC %.4f, training loss %.4f, validation loss %.4f, '
                'lr %.3g, %s, best so far epoch %d%s%s', title, metric, getattr(single, metric),
                getattr(ensemble, metric), single.mAUC, train_loss, valid_loss, lr, timedelta(seconds=round(seconds)),
                results.best_epoch, left_out(single), bad)
