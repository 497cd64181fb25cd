"""The models that an experiment keeps."""
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from models import ASTModel, load_checkpoint, mean_state_dict, save_checkpoint
from training.processes import main_process_only

BEST = 'best_audio_model'
AVERAGED = 'audio_model_wa'
MOVING_AVERAGE = 'audio_model_ema'


def name_of_epoch(epoch: int) -> str:
    """Return the name of the model of an epoch."""
    return f'audio_model.{epoch}'


class SavedModels:
    """The folder `models` of an experiment. Its files have the published layout.

    Args:
        exp_dir: folder of the experiment.
        description: what the .json beside each model says, besides the model's own settings.
    """

    def __init__(self, exp_dir: str | Path, description: dict[str, Any]):
        self.folder = Path(exp_dir) / 'models'
        self.folder.mkdir(parents=True, exist_ok=True)
        self.description = description

    @main_process_only
    def save(self, model: ASTModel, name: str) -> None:
        """Write a model and its description."""
        save_checkpoint(model, self.folder / f'{name}.pth', **self.description)

    def has(self, name: str) -> bool:
        """Return whether a model was kept."""
        return (self.folder / f'{name}.pth').exists()

    def load(self, model: ASTModel, name: str) -> None:
        """Load a model's weights. All processes call this."""
        load_checkpoint(model, self.folder / f'{name}.pth')

    def load_mean(self, model: ASTModel, epochs: Iterable[int]) -> None:
        """Load the mean of the weights of some epochs. All processes call this."""
        paths = [self.folder / f'{name_of_epoch(epoch)}.pth' for epoch in epochs]
        model.load_state_dict(mean_state_dict(paths))
