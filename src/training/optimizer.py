"""The optimizer, its parameter groups, frozen parts and stochastic depth (--drop_path)."""
import argparse
from typing import Any

import torch
from timm.layers import DropPath
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from models import ASTModel
from training.errors import TrainingError
from training.options import DECAYS_ONLY_MATRICES

ADAM_BETAS = (0.95, 0.999)  # published
ADAMW_BETAS = (0.9, 0.999)
SGD_MOMENTUM = 0.9

Groups = list[dict[str, Any]]


def make_optimizer(model: Any, settings: argparse.Namespace) -> torch.optim.Optimizer:
    """Build the optimizer that --optim names."""
    return OPTIMIZERS[settings.optim](group_parameters(model, settings), settings)


def freeze(model: ASTModel, what: str) -> None:
    """Keep the weights of a part of a model as they are (--freeze).

    Args:
        model: its parameters are changed in place.
        what: 'none'; 'backbone', all but the head; or how many blocks, with all that comes before
            them (patches, tokens, positions).

    Raises:
        TrainingError: if the model has fewer blocks.
    """
    if what == 'none':
        return
    v = model.v
    if what == 'backbone':
        v.requires_grad_(False)
        return
    if int(what) > len(v.blocks):
        raise TrainingError(f'--freeze {what}: the model has {len(v.blocks)} blocks')
    for value in v.parameters(recurse=False):  # tokens and positions
        value.requires_grad_(False)
    for part in (v.patch_embed, v.norm_pre, v.blocks[:int(what)]):
        part.requires_grad_(False)


def set_drop_path(model: ASTModel, rate: float) -> None:
    """Let training samples skip branches of the blocks at random: stochastic depth (--drop_path).

    Huang et al., arXiv:1603.09382. The probability rises linearly from 0 in the first block to
    `rate` in the last, as in timm.
    """
    blocks = list(model.v.blocks)
    for block, probability in zip(blocks, torch.linspace(0, rate, len(blocks)).tolist()):
        for name in ('drop_path1', 'drop_path2'):
            setattr(block, name, DropPath(probability) if probability else nn.Identity())


def group_parameters(model: Any, settings: argparse.Namespace) -> Groups:
    """Return the parameter groups of the optimizer, without the parameters that are frozen.

    The rate of a group is that of the schedule times the group's `lr_scale`. In the published
    training, all parameters have the same rate and the same weight decay. With --layer_decay, a
    layer has the rate of the layer above it times this factor (BEiT, arXiv:2106.08254). With it or
    with an optimizer of DECAYS_ONLY_MATRICES, biases, normalisations, position embeddings and
    learned tokens have no weight decay. --head_lr is a factor of the rate of the head.
    """
    decay = settings.weight_decay
    if settings.layer_decay < 1:
        groups = param_groups_layer_decay(
            model, decay, no_weight_decay_list=model.no_weight_decay(),
            layer_decay=settings.layer_decay)
    elif settings.optim in DECAYS_ONLY_MATRICES:
        groups = param_groups_weight_decay(
            model, decay, no_weight_decay_list=model.no_weight_decay())
    else:
        groups = [{'params': [value for value in model.parameters() if value.requires_grad]}]
    groups = [{'lr_scale': 1.0, **group} for group in groups]
    return groups if settings.head_lr == 1 else split_head(groups, model, settings.head_lr)


def split_head(groups: Groups, model: Any, factor: float) -> Groups:
    """Return the groups with the parameters of the head apart, their rate times a factor."""
    head = set(map(id, model.mlp_head.parameters()))
    split: Groups = []
    for group in groups:
        for is_head, scale in ((False, 1.0), (True, factor)):
            params = [value for value in group['params'] if (id(value) in head) == is_head]
            if params:
                split.append({**group, 'params': params, 'lr_scale': group['lr_scale'] * scale})
    return split


def make_adam(groups: Groups, settings: argparse.Namespace) -> torch.optim.Optimizer:
    """Build the published Adam."""
    return torch.optim.Adam(groups, settings.lr, betas=ADAM_BETAS,
                            weight_decay=settings.weight_decay, fused=True)


def make_adamw(groups: Groups, settings: argparse.Namespace) -> torch.optim.Optimizer:
    """Build an AdamW (arXiv:1711.05101), as MAE and its successors fine-tune with."""
    return torch.optim.AdamW(groups, settings.lr, betas=ADAMW_BETAS,
                             weight_decay=settings.weight_decay, fused=True)


def make_sgd(groups: Groups, settings: argparse.Namespace) -> torch.optim.Optimizer:
    """Build an SGD with momentum."""
    optimizer = torch.optim.SGD(groups, settings.lr, momentum=SGD_MOMENTUM,
                                weight_decay=settings.weight_decay, fused=True)
    init_momentum_buffers(optimizer)
    return optimizer


def init_momentum_buffers(optimizer: torch.optim.SGD) -> None:
    """Create the momentum buffers, filled with 0.

    Without this, the fused SGD allocates each buffer in its first step, and fills it in the same
    step. In float16, the gradient scaler often skips that step. The next one would then start from
    whatever was in that memory.
    """
    for group in optimizer.param_groups:
        for parameter in group['params']:
            optimizer.state[parameter]['momentum_buffer'] = torch.zeros_like(parameter)


OPTIMIZERS = {'adam': make_adam, 'adamw': make_adamw, 'sgd': make_sgd}  # --optim
