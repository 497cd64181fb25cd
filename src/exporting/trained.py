"""A trained model and all that is known of it: what every export begins with."""
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models import ASTModel, load_model
from models.weights import locate
from tagging.checkpoint_labels import labels_of
from utilities.errors import DataError
from utilities.labels import Labels, read_labels


@dataclass(frozen=True)
class TrainedModel:
    """A trained model with what belongs to it.

    Attributes:
        path: of its weights.
        model: in eval mode, on the CPU.
        description: what load_model returned for it: mean, std, loss, dataset, ...
        labels: its classes.
    """
    path: Path
    model: ASTModel
    description: dict[str, Any]
    labels: Labels

    @property
    def dataset(self) -> str | None:
        """The name of the data that it was trained with, if it is known."""
        dataset = self.description.get('dataset')
        # For a folder that transformers wrote, load_model gives the folder's name as the dataset.
        return None if dataset == self.path.absolute().parent.name else dataset


def load_trained(checkpoint: str, label_csv: str | None = None, **given: Any) -> TrainedModel:
    """Load a checkpoint with its labels.

    Args:
        checkpoint: see models.load_model.
        label_csv: label file of a checkpoint that does not name its classes.
        given: further arguments of models.load_model.

    Raises:
        WeightsError: if the checkpoint cannot be used.
        DataError: if labels are missing or do not fit.
    """
    path = locate(checkpoint)
    model, description = load_model(path, **given)
    if description.get('mask_padding'):
        raise DataError(f'{path} was trained with --mask_padding True: it needs to know how long '
                        f'each sound is, which an exported file cannot tell it; inference.py and '
                        f'ASTModel.forward(x, lengths) can')
    labels = labels_of(checkpoint, description, read_labels(label_csv) if label_csv else None)
    return TrainedModel(path, model, description, labels)
