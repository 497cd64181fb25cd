"""Start from pretrained weights (AST paper, section 2.2): fit positions to another patch grid."""
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from .ast_models import ASTModel, Grid, ModelConfig
from .layouts import State
from .state_dicts import load_strictly, name_in_errors

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """Weights that a model starts from.

    Args:
        name: what they are, for messages and descriptions.
        path: the file that they come from.
        model_size: of the ASTModel that they belong to.
        state: of its transformer `v`, with the positional embedding of `grid`.
        grid: patches along (frequency, time).
        head: of its classifier `mlp_head`, as far as it is there.
        config: the settings of the audio model the weights come from. None for a ViT for images and
            for SSAST, whose positions are fitted like a ViT's.
        sample_rate: in Hz, of the sounds that the weights were trained on. None for a ViT for
            images.
    """
    name: str
    path: Path
    model_size: str
    state: State
    grid: Grid
    head: Mapping[str, torch.Tensor] = field(default_factory=dict)
    config: ModelConfig | None = None
    sample_rate: int | None = None


def load_start(model: ASTModel, start: Start) -> None:
    """Load the transformer of a start, its positions fitted to the model's patches.

    If the start has a classifier, its normalisation is loaded, too. So is its linear layer if it is
    for as many classes as the model's.
    """
    with name_in_errors(start.path):
        state = {**start.state, 'pos_embed': fit_positions(model, start)}
    load_strictly(model.v, state, start.path)
    for number, layer in enumerate(model.mlp_head):
        part = {name.removeprefix(f'{number}.'): value for name, value in start.head.items()
                if name.startswith(f'{number}.')}
        if not part:
            continue
        if isinstance(layer, nn.Linear) and len(part['weight']) != layer.out_features:
            logger.info('%s has a classifier of %d classes: a new one for %d takes its place',
                        start.name, len(part['weight']), layer.out_features)
        else:
            load_strictly(layer, part, start.path)


def fit_positions(model: ASTModel, start: Start) -> torch.Tensor:
    """Return the positional embedding of a start for the patches of a model.

    Returns:
        (1, rows, dim).

    Raises:
        ValueError: if it has other rows than its grid.
    """
    config, resize = model.config, cut_or_interpolate
    if config.backbone.crops_to_beginning:
        resize = keep_beginning
    prefix = 0 if model.v.no_embed_class else model.v.num_prefix_tokens
    pos_embed, grid = start.state['pos_embed'], start.grid
    if start.config is not None:
        # First fit the positions to this model's strides on the start's input; then, below, to
        # this model's input. The published code leaves out the first step, and crashes for
        # strides other than 10.
        strided = replace(start.config, fstride=config.fstride, tstride=config.tstride).grid
        pos_embed = resample_pos_embed(pos_embed, grid, strided, interpolate, prefix)
        grid = strided
    return resample_pos_embed(pos_embed, grid, model.grid, resize, prefix)


def interpolate(embeddings: torch.Tensor, size: Grid) -> torch.Tensor:
    """Resize embeddings (1, dim, f, t) to another (f, t), bilinearly."""
    return F.interpolate(embeddings, size=size, mode='bilinear', align_corners=False)


def keep_beginning(embeddings: torch.Tensor, size: Grid) -> torch.Tensor:
    """Resize embeddings (1, dim, f, t) to another (f, t): cut the end off what shrinks."""
    kept = embeddings[:, :, :size[0], :size[1]]
    return kept if kept.shape[2:] == size else interpolate(kept, size)


def cut_or_interpolate(embeddings: torch.Tensor, size: Grid) -> torch.Tensor:
    """Resize embeddings (1, dim, f, t) to another (f, t): time first, then frequency.

    An axis that shrinks keeps its centre; one that grows is interpolated.
    """
    f, t = size
    old_f, old_t = embeddings.shape[2:]
    if t <= old_t:
        start = old_t // 2 - t // 2
        embeddings = embeddings[:, :, :, start:start + t]
    else:
        embeddings = interpolate(embeddings, (old_f, t))
    if f <= old_f:
        start = old_f // 2 - f // 2
        return embeddings[:, :, start:start + f]
    return interpolate(embeddings, (f, t))


def resample_pos_embed(pos_embed: torch.Tensor, old_grid: Grid, new_grid: Grid,
                       resize: Callable[[torch.Tensor, Grid], torch.Tensor] = cut_or_interpolate,
                       num_prefix_tokens: int = 2) -> torch.Tensor:
    """Fit a positional embedding to another patch grid: cut an axis that shrinks, else interpolate.

    Args:
        pos_embed: (1, prefix + old_f * old_t, dim).
        old_grid, new_grid: patches along (frequency, time).
        resize: called with (1, dim, old_f, old_t) and new_grid, returns (1, dim, new_f, new_t).
        num_prefix_tokens: how many rows come before the patches and stay as they are; DeiT has
            [CLS] and [DIST].

    Returns:
        (1, prefix + new_f * new_t, dim).

    Raises:
        ValueError: if pos_embed does not have the rows of old_grid.
    """
    old_f, old_t = old_grid
    rows = num_prefix_tokens + old_f * old_t
    if pos_embed.shape[1] != rows:
        raise ValueError(f'positional embedding has {pos_embed.shape[1]} rows, a grid of '
                         f'{old_f} x {old_t} patches and {num_prefix_tokens} tokens need {rows}')
    prefix, patches = pos_embed[:, :num_prefix_tokens], pos_embed[:, num_prefix_tokens:]
    grid = patches.transpose(1, 2).reshape(1, -1, old_f, old_t)  # (1, dim, f, t)
    grid = resize(grid, new_grid)
    patches = grid.flatten(2).transpose(1, 2)  # (1, f * t, dim)
    return torch.cat([prefix, patches], dim=1)
