"""Start from pretrained weights (AST paper, section 2.2): DeiT's of ImageNet, AST's of AudioSet."""
from collections.abc import Callable
from dataclasses import replace

import timm
import torch
from torch.nn import functional as F

from .ast_models import DEIT, PATCH_SIZE, ASTModel, ModelConfig
from .state_dicts import (
    DEIT_HEADS,
    drop_entries,
    load_strictly,
    name_in_errors,
    read_state_dict,
    transformer_part,
)
from .weights import AUDIOSET, deit_file, find_or_download

# Of the AudioSet checkpoint.
AUDIOSET_CONFIG = ModelConfig('base384', label_dim=527, fstride=10, tstride=10,
                              input_fdim=128, input_tdim=1024)

Grid = tuple[int, int]  # patches along (frequency, time)


def start_from_imagenet(model: ASTModel) -> None:
    """Load DeiT's ImageNet weights, adapted from images to spectrograms."""
    name = DEIT[model.config.model_size]
    path = find_or_download(deit_file(name))
    state = drop_entries(read_state_dict(path), DEIT_HEADS)
    with name_in_errors(path):
        # A spectrogram has one channel: the projection's weights are summed over the colours.
        colours = state['patch_embed.proj.weight']  # (dim, 3, 16, 16)
        state['patch_embed.proj.weight'] = colours.sum(dim=1, keepdim=True)  # (dim, 1, 16, 16)
        state['pos_embed'] = resample_pos_embed(
            state['pos_embed'], image_grid(name), model.grid,
            num_prefix_tokens=model.v.num_prefix_tokens)
    load_strictly(model.v, state, path)


def start_from_audioset(model: ASTModel) -> None:
    """Load the AudioSet checkpoint of 0.4593 mAP, but for its head."""
    path = find_or_download(AUDIOSET)
    state = transformer_part(read_state_dict(path))
    prefix = model.v.num_prefix_tokens
    # The grid that the model's strides have on the checkpoint's input. The published code leaves
    # out this step, and crashes for other strides than 10.
    strided = replace(AUDIOSET_CONFIG, fstride=model.config.fstride, tstride=model.config.tstride)
    with name_in_errors(path):
        pos_embed = resample_pos_embed(state['pos_embed'], AUDIOSET_CONFIG.grid, strided.grid,
                                       interpolate, prefix)
        state['pos_embed'] = resample_pos_embed(pos_embed, strided.grid, model.grid,
                                                num_prefix_tokens=prefix)
    load_strictly(model.v, state, path)


def image_grid(timm_name: str) -> Grid:
    """Return the patch grid of a timm model on the images that it was trained with."""
    published = timm.get_pretrained_cfg(timm_name)
    assert published is not None
    _, height, width = published.input_size
    return height // PATCH_SIZE, width // PATCH_SIZE


def interpolate(embeddings: torch.Tensor, size: Grid) -> torch.Tensor:
    """Resize embeddings (1, dim, f, t) to another (f, t), bilinearly."""
    return F.interpolate(embeddings, size=size, mode='bilinear', align_corners=False)


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
