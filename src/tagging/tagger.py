"""Trained models that score windows of sound: `load_tagger` makes a Tagger of checkpoints."""
import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from audio.fbank import SAMPLE_RATE, frames_to_seconds, normalise
from models import ASTModel, load_model
from tagging.checkpoint_labels import CheckpointSource, labels_of
from training.devices import choose_device, choose_precision, move, parallelise
from training.errors import as_training_errors
from utilities.errors import DataError
from utilities.labels import Labels, read_labels

Described = tuple[CheckpointSource, dict[str, Any]]  # a checkpoint and its description


def to_scores(logits: torch.Tensor, loss: str) -> torch.Tensor:
    """Return logits (B, classes) as scores: softmax of a model trained with CE, else sigmoids."""
    return logits.softmax(dim=1) if loss == 'CE' else logits.sigmoid()


@dataclass(frozen=True)
class Classifier:
    """One checkpoint of a Tagger.

    Attributes:
        model: the AST.
        evaluation_model: the model to call. It splits batches over the GPUs if there are several.
        mean, std: statistics of the fbank with which its input is normalised.
        loss: what it was trained with. 'BCE' gives sigmoid scores, 'CE' softmax.
        masks_padding: whether the model does not hear the padding of its input.
    """
    model: ASTModel
    evaluation_model: nn.Module
    mean: float
    std: float
    loss: str
    masks_padding: bool = False

    def __call__(self, fbanks: torch.Tensor, device: torch.device, embeddings: bool,
                 lengths: torch.Tensor | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """Score a batch of fbanks (B, frames, bins) that are not normalised.

        Args:
            lengths: how many frames of each are real (B,); None for all.

        Returns:
            Scores (B, classes) float64, and the embeddings (B, dim) or None.
        """
        inputs = [normalise(move(fbanks, device), self.mean, self.std)]
        if self.masks_padding and lengths is not None:
            inputs.append(move(lengths, device))
        if not embeddings:
            return self._score(self.evaluation_model(*inputs)), None
        # The embedding is what goes into the head: it comes from the same forward pass.
        seen: list[torch.Tensor] = []
        hook = self.model.mlp_head.register_forward_pre_hook(
            lambda _, head_inputs: seen.extend(head_inputs))
        try:
            scores = self._score(self.model(*inputs))
        finally:
            hook.remove()
        return scores, seen[0].float().cpu().numpy()

    def _score(self, logits):
        return to_scores(logits, self.loss).cpu().numpy().astype(np.float64)


@dataclass(frozen=True)
class Tagger:
    """Trained models with the same classes and the same size of input. See load_tagger.

    Attributes:
        classifiers: one for each checkpoint. Their scores are averaged.
        labels: the classes.
        frames, mel_bins: the size of the input.
        device: where the models are.
        sample_rate: of the sounds that they hear, in Hz.
    """
    classifiers: tuple[Classifier, ...]
    labels: Labels
    frames: int
    mel_bins: int
    device: torch.device
    sample_rate: int = SAMPLE_RATE

    @property
    def seconds(self) -> float:
        """The length of a window, which is also the default hop."""
        return frames_to_seconds(self.frames, self.sample_rate)

    @property
    def embedding_dim(self) -> int:
        """The size of the embedding of the first checkpoint."""
        return self.classifiers[0].model.v.embed_dim

    @property
    def default_batch_size(self) -> int:
        """The windows in a batch by default. More would overflow the caches of a CPU."""
        return 4 if self.device.type == 'cpu' else 16

    def digest(self) -> str:
        """Return a hash of all that the scores depend on: models, statistics, classes."""
        of_input = self.labels, self.frames, self.mel_bins, self.sample_rate
        digest = hashlib.sha256(repr(of_input).encode())
        for classifier in self.classifiers:
            model = classifier.model
            eps = {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)}
            digest.update(repr((model.config, sorted(eps), classifier.mean, classifier.std,
                                classifier.loss, classifier.masks_padding)).encode())
            for name, tensor in model.state_dict().items():
                digest.update(name.encode())
                digest.update(tensor.cpu().numpy())
        return digest.hexdigest()

    @torch.inference_mode()
    def __call__(self, fbanks: torch.Tensor, embeddings: bool = False,
                 lengths: torch.Tensor | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """Score a batch of fbanks (B, frames, bins) that are not normalised.

        Args:
            embeddings: return embeddings, too.
            lengths: how many frames of each are real (B,); None for all. Models that were trained
                with --mask_padding do not hear the others.

        Returns:
            Scores (B, classes) float32, the mean over the checkpoints. Then the embeddings (B, dim)
            of the first checkpoint, or None if nobody asked for them.
        """
        results = [classifier(fbanks, self.device, embeddings, lengths)
                   for classifier in self.classifiers]
        mean = np.mean([scores for scores, _ in results], axis=0)
        return mean.astype(np.float32), results[0][1]


def load_tagger(checkpoints: CheckpointSource | Iterable[CheckpointSource], device: str = 'auto',
                amp: str = 'auto', label_csv: str | os.PathLike[str] | None = None,
                mean: float | None = None, std: float | None = None, loss: str | None = None,
                **settings: Any) -> Tagger:
    """Load a checkpoint, or several whose scores are averaged, for `tag`.

    What a checkpoint does not say and the arguments do not give is assumed. A line of the log then
    says what.

    Args:
        checkpoints: a path, the name of a published checkpoint, a folder of transformers or an id
            on Hugging Face; or a list of such.
        device: auto, cpu, cuda, cuda:N or mps.
        amp: precision: auto, bf16, fp16 or off. auto takes bfloat16 on CPUs that compute in it,
            too, which moves scores by up to 0.005.
        label_csv: a label file, for checkpoints that do not name their classes.
        mean, std: statistics of the fbank, in place of the checkpoint's own.
        loss: 'BCE' for sigmoid scores or 'CE' for softmax, in place of the checkpoint's own.
        settings: model_size, fstride, tstride, input_fdim, input_tdim of checkpoints that do not
            say theirs.

    Raises:
        WeightsError: a checkpoint cannot be used.
        DataError: there is no checkpoint, labels are missing or do not fit, or the checkpoints do
            not go together.
        ValueError: the device is not there, or there is no such precision.
        TrainingError: the GPU has too little memory.
    """
    sources = [checkpoints] if isinstance(checkpoints, str | os.PathLike) else list(checkpoints)
    if not sources:
        raise DataError('there is no checkpoint: give load_tagger at least one')
    chosen = choose_device(device)
    dtype = choose_precision(amp, chosen)
    classifiers, described = [], []
    for source in sources:
        model, description = load_model(source, mean=mean, std=std, loss=loss, **settings)
        model.autocast_dtype = dtype
        with as_training_errors():
            model.to(chosen)
        classifiers.append(Classifier(model, parallelise(model, chosen), description['mean'],
                                      description['std'], description['loss'],
                                      description.get('mask_padding', False)))
        described.append((source, description))
    frames, mel_bins = _shared_input_size(described)
    sample_rate = _shared_sample_rate(described)
    labels = _shared_labels(described, label_csv)
    return Tagger(tuple(classifiers), labels, frames, mel_bins, chosen, sample_rate)


def _shared_input_size(described: Sequence[Described]) -> tuple[int, int]:
    """Return (frames, mel bins) of all checkpoints. Raises DataError if they differ."""
    sizes = [(description['input_tdim'], description['input_fdim']) for _, description in described]
    for (source, _), size in zip(described, sizes):
        if size != sizes[0]:
            raise DataError(f'{described[0][0]} wants {sizes[0][0]} frames x {sizes[0][1]} mel '
                            f'bins, but {source} {size[0]} x {size[1]}: checkpoints that are '
                            f'averaged must have one size of input')
    return sizes[0]


def _shared_sample_rate(described: Sequence[Described]) -> int:
    """Return the sample rate of all checkpoints in Hz. Raises DataError if they differ."""
    rates = [description['sample_rate'] for _, description in described]
    for (source, _), rate in zip(described, rates):
        if rate != rates[0]:
            raise DataError(f'{described[0][0]} hears {rates[0]} Hz, but {source} {rate}: '
                            f'checkpoints that are averaged must have one sample rate')
    return rates[0]


def _shared_labels(described: Sequence[Described], label_csv) -> Labels:
    """Return the Labels of all checkpoints. Raises DataError if they differ or do not fit."""
    given = read_labels(label_csv) if label_csv else None
    shared = [labels_of(source, description, given) for source, description in described]
    for (source, _), labels in zip(described, shared):
        if labels.names != shared[0].names:
            raise DataError(f'{source} has other classes than {described[0][0]}: they cannot be '
                            f'averaged')
    return shared[0]
