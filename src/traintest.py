"""The course of one experiment (AST paper, section 3): train, validate, average, evaluate."""
import argparse
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models import ASTModel
from models.atomic import remove_leftovers
from training import processes
from training.checkpoint import Checkpoint, CheckpointError
from training.devices import move
from training.eval_windows import mean_of_windows, split_windows
from training.evaluation import Evaluation, join_batches
from training.gpu_fbanks import inputs_on
from training.interrupt import Interrupt
from training.losses import LOSSES, balance_classes
from training.results import Results
from training.saved_models import AVERAGED, BEST, MOVING_AVERAGE, SavedModels, name_of_epoch
from training.supervisor import Supervisor
from training.tensorboard_log import TensorBoardLog
from training.trainer import Trainer
from utilities.progress import Progress

logger = logging.getLogger(__name__)


@torch.inference_mode()
def validate(model: nn.Module, loader, device: torch.device, loss: str, title: str = 'validation',
             scores: Callable[[torch.Tensor], torch.Tensor] = torch.sigmoid) -> Evaluation:
    """Evaluate a model on every sample of a loader.

    Args:
        model: returns logits (B, classes).
        loader: its batches are (inputs, labels (B, classes)). With --mask_padding, a third item has
            the real frames (B,). The inputs are fbanks (B, frames, bins) or a WaveformBatch; with
            --cache_embeddings, they are embeddings (B, dim). With --eval_windows, the loader yields
            WindowedBatches of such batches. The prediction of a clip is then the mean over its
            windows, and its loss is that of the first window.
        device: where the model is.
        loss: 'BCE' or 'CE'.
        title: for the progress bar.
        scores: turns logits into predictions. As published, it is the sigmoid for CE, too.
    """
    model.eval()
    loss_function = LOSSES[loss]()
    total: torch.Tensor | float = 0.0
    predictions, targets = [], []
    with Progress(title, len(loader)) as progress:
        for batch in loader:
            first, further = split_windows(batch)
            logits = classify(model, first, device)
            labels = first[1]
            total = total + loss_function(logits, move(labels, device)) * len(labels)
            others = [(scores(classify(model, window, device)), rows) for window, rows in further]
            predictions.append(mean_of_windows(scores(logits), others))
            targets.append(labels)
            progress.advance(len(labels))

    samples = sum(map(len, targets))
    return Evaluation(join_batches(predictions), join_batches(targets),
                      float(total) / max(samples, 1))


def classify(model: nn.Module, batch: Sequence, device: torch.device) -> torch.Tensor:
    """Return the logits (B, classes) of a batch of a loader; see validate."""
    inputs, _, *lengths = batch
    return model(inputs_on(inputs, device), *(move(length, device) for length in lengths))


class Run:
    """One experiment under way. Call `resume`, then `train`, then what else is wanted.

    Args:
        model: an ASTModel on `device`.
        device: see devices.choose_device.
        train_loader: a TrainingLoader (make_loader of a ReplaceUnreadable, with an EpochSampler).
        val_loader: a loader of the validation set.
        settings: the options of run.py.
        description: what the .json beside each model says. Its `dataset` is the title of the plots.
        interrupt: knows whether a stop signal has come. The run then stops after a training step,
            or after a batch of an evaluation.
    """

    def __init__(self, model: ASTModel, device: torch.device, train_loader, val_loader,
                 settings: argparse.Namespace, description: dict[str, Any], interrupt: Interrupt):
        self.model = model
        self.device = device
        self.train_loader = train_loader
        self.val_loader = val_loader
        self.settings = settings
        self.exp_dir = Path(settings.exp_dir)

        weights = None
        if settings.class_weights:
            weights = balance_classes(train_loader.recordings.count_labels())
        self.trainer = Trainer(model, device, settings, len(train_loader), weights,
                               samples_per_epoch=len(train_loader.dataset))
        self.results = Results(self.exp_dir, settings.metrics, description['dataset'])
        self.tensorboard = TensorBoardLog(self.exp_dir) if settings.tensorboard else None
        self.models = SavedModels(self.exp_dir, description)
        self.bad_audio = train_loader.bad_audio
        self.checkpoint = Checkpoint(self.exp_dir, settings.checkpoint_minutes,
                                     trainer=self.trainer, results=self.results,
                                     bad_audio=self.bad_audio)
        self.supervisor = Supervisor(self.trainer, train_loader, self.checkpoint, interrupt)

    def resume(self) -> None:
        """Load the checkpoint, if there is one, and write what a killed run had not written yet.

        Raises:
            CheckpointError: if it cannot be used, or belongs to other data.
        """
        if processes.is_main():
            for folder in ('.', 'models', 'predictions'):  # of a run that was killed
                remove_leftovers(self.exp_dir / folder)
        if not self.checkpoint.restore():
            return
        self.results.require_same_samples(self.val_loader.dataset)
        done, samples = self.trainer.loss.samples, len(self.train_loader.dataset)
        if done > samples:
            raise CheckpointError(f'{self.checkpoint.path} has trained on {done} samples of epoch '
                                  f'{self.trainer.epoch}, but the training set has {samples}: '
                                  f'choose another --exp_dir, or --resume none')
        self._require_averaged_models()
        logger.info('continuing in epoch %d after %d steps', self.trainer.epoch,
                    self.trainer.loss.steps)
        if self.results.rows:
            self._write_epoch()

    def _require_averaged_models(self):
        """Raise CheckpointError if a model that --wa averages was not kept."""
        if not self.settings.wa:
            return
        # The model of the last epoch may still have to be written.
        kept = len(self.results.rows) - self.trainer.is_between_epochs
        for epoch in range(self.settings.wa_start, min(kept, self.settings.wa_end) + 1):
            if not self.models.has(name_of_epoch(epoch)):
                raise CheckpointError(f'--wa averages epochs {self.settings.wa_start} to '
                                      f'{self.settings.wa_end}, but the model of epoch {epoch} was '
                                      f'not kept: set --wa False, or --resume none')

    def train(self) -> None:
        """Train to the last epoch, or until --patience stops it.

        Raises:
            TrainingError: if the loss is no longer finite, or too many recordings are unreadable.
            Interrupted: if a signal came. The checkpoint holds all that was trained.
        """
        while self.trainer.epoch <= self.settings.n_epochs and not self._has_stalled():
            self._run_epoch(f'epoch {self.trainer.epoch} of {self.settings.n_epochs}')
        self.results.finish_curves()

    def _has_stalled(self):
        """Return whether the metric has not risen for --patience epochs, and log it."""
        patience, done = self.settings.patience, self.trainer.epoch - 1
        if not patience or not done:
            return False
        best = self.results.best_epoch
        if done - best < patience:
            return False
        logger.info('stopping after epoch %d: %s has not risen since epoch %d (--patience %d)',
                    done, self.settings.metrics, best, patience)
        return True

    def _run_epoch(self, title):
        """Train one epoch, or the rest of an interrupted one; validate; save everything."""
        start = time.monotonic()
        self.train_loader.epoch_sampler.set_epoch(self.trainer.epoch,
                                                  start=self.trainer.loss.samples)
        train_loss = self.trainer.train_epoch(self.train_loader, title, self.supervisor.after_step)
        replaced = self.supervisor.after_epoch()
        evaluation = self.evaluate(self.val_loader, f'{title}, validation', save_on_signal=True)

        row = self.results.add(train_loss, evaluation, self.trainer.schedule.last_rate)
        self.trainer.end_epoch(row.metric)
        self.bad_audio.count = 0
        self.checkpoint.save()
        self._write_epoch()
        self.results.log_epoch(title, time.monotonic() - start, replaced)

    def evaluate(self, loader, title: str, save_on_signal: bool = False) -> Evaluation:
        """Evaluate the current weights. The main process gets the result of all processes.

        Args:
            loader: batches of the set to evaluate.
            title: for the progress bar.
            save_on_signal: save a checkpoint before stopping if a stop signal comes meanwhile.
        """
        watched = self.supervisor.watch(loader, save_on_signal)
        evaluation = validate(self.trainer.evaluation_model, watched, self.device,
                              self.settings.loss, title)
        return evaluation.gather()

    def average_weights(self) -> None:
        """Average the weights of the epochs wa_start to wa_end, and evaluate the average.

        The average stays in the model and is saved as audio_model_wa.pth, its metrics as
        wa_result.csv.
        """
        epochs = range(self.settings.wa_start, self.settings.wa_end + 1)
        self.models.load_mean(self.trainer.model_to_save, epochs)
        evaluation = self.evaluate(self.val_loader, 'averaged model')
        self.models.save(self.trainer.model_to_save, AVERAGED)
        self.results.write_average(evaluation, epochs)

    def evaluate_best(self, test_loader) -> None:
        """Evaluate the best epoch's model on the validation set and on the test set (--data_eval).

        Write four numbers to eval_result.csv: main metric and mAUC on the validation set, then on
        the test set.
        """
        self.models.load(self.trainer.model_to_save, BEST)
        evaluations = {}
        for name, loader in (('validation', self.val_loader), ('test', test_loader)):
            evaluations[name] = self.evaluate(loader, f'best model, {name} set')
        self.results.write_best(evaluations, self.models.description['labels']['names'])

    def _write_epoch(self):
        """Write the results of the epochs so far and the models of the last epoch.

        The checkpoint is saved before. So if the run is killed here, the next start repeats this.
        """
        self.results.write()
        if self.tensorboard:
            self.tensorboard.write(self.results, self.trainer.speed)
        if not self.trainer.is_between_epochs:
            return  # the next epoch has changed the weights; the models were written before that
        epoch = len(self.results.rows)
        model = self.trainer.model_to_save
        if self.results.best_epoch == epoch:
            self.models.save(model, BEST)
        if self.settings.ema:
            self.models.save(model, MOVING_AVERAGE)
        is_averaged = self.settings.wa and self.settings.wa_start <= epoch <= self.settings.wa_end
        if self.settings.save_model or is_averaged:
            self.models.save(model, name_of_epoch(epoch))
