"""The optimizer, with the published constants."""
import argparse
from typing import Any

import torch
from torch import nn

ADAM_BETAS = (0.95, 0.999)
SGD_MOMENTUM = 0.9
WEIGHT_DECAY = 5e-7


def make_optimizer(model: nn.Module, settings: argparse.Namespace) -> torch.optim.Optimizer:
    """Build the optimizer that --optim names."""
    return OPTIMIZERS[settings.optim](group_parameters(model, settings), settings)


def group_parameters(model: nn.Module, settings: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the parameter groups of the optimizer.

    The rate of a group is that of the schedule times the group's `lr_scale`. In the published
    training, all parameters have the same rate. For layer decay, return what timm makes:

        param_groups_layer_decay(model, WEIGHT_DECAY, layer_decay=0.75)
    """
    return [{'params': list(model.parameters()), 'lr_scale': 1.0}]


def make_adam(groups: list[dict[str, Any]], settings: argparse.Namespace) -> torch.optim.Optimizer:
    """Build the published Adam."""
    return torch.optim.Adam(groups, settings.lr, betas=ADAM_BETAS, weight_decay=WEIGHT_DECAY,
                            fused=True)


def make_sgd(groups: list[dict[str, Any]], settings: argparse.Namespace) -> torch.optim.Optimizer:
    """Build an SGD with momentum."""
    optimizer = torch.optim.SGD(groups, settings.lr, momentum=SGD_MOMENTUM,
                                weight_decay=WEIGHT_DECAY, fused=True)
    init_momentum_buffers(optimizer)
    return optimizer


def init_momentum_buffers(optimizer: torch.optim.SGD) -> None:
    """Create the momentum buffers, filled with 0.

    The fused SGD allocates it in the first step and fills it in the same step. In float16, the
    gradient scaler often skips that step, and the next one would start from whatever was in that
    memory.
    """
    for group in optimizer.param_groups:
        for parameter in group['params']:
            optimizer.state[parameter]['momentum_buffer'] = torch.zeros_like(parameter)


OPTIMIZERS = {'adam': make_adam, 'sgd': make_sgd}  # --optim
