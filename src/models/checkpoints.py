"""Checkpoints of trained ASTs: save with a description, load with or without a model, average."""
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from .assumptions import MODEL_SETTINGS, SCORES, SIZES, complete_description, describe, find_eps
from .ast_models import DEIT, ASTModel
from .atomic import atomic_write
from .descriptions import HEAD_EPS, LAYER_NORM_EPS, Description
from .errors import WeightsError
from .layouts import State
from .published import describe_name
from .published_data import SAMPLE_RATE
from .state_dicts import (
    UNUSED_HEADS,
    drop_entries,
    load_strictly,
    name_in_errors,
    read_state_dict,
    read_weights,
)
from .weights import locate

EPS = ('layer_norm_eps', 'head_layer_norm_eps')  # of the transformer; of the classifier
# What logits depend on, besides the weights and the settings of ModelConfig.
COMPUTATION = (*EPS, 'num_attention_heads', 'pooling')


def load_checkpoint(model: ASTModel, source: str | Path) -> None:
    """Load the weights of a trained AST into a model.

    Args:
        source: see locate. Any form that read_state_dict reads. Entries and shapes must be exactly
            the model's, except DeiT's two heads, which published files carry along.

    Raises:
        WeightsError: if it does not fit, or was made for another computation than the model's.
    """
    path = locate(source)
    weights = read_weights(path)
    description = describe(path, weights.is_transformers, COMPUTATION)
    _check_attention_heads(model, description, path)
    _check_pooling(model, description, path)
    load_strictly(model, drop_entries(weights.state, UNUSED_HEADS), path)
    _set_eps(model, description, path, weights.is_transformers)


def load_model(source: str | Path, *, model_size: str | None = None, fstride: int | None = None,
               tstride: int | None = None, input_fdim: int | None = None,
               input_tdim: int | None = None, mean: float | None = None, std: float | None = None,
               loss: str | None = None) -> tuple[ASTModel, Description]:
    """Build the ASTModel that a checkpoint belongs to, and load it.

    A checkpoint describes itself by the .json beside it, by the config.json of its folder, or by
    its name (audioset_12_12_0.4467.pth). If neither the checkpoint nor an argument says something,
    it is assumed, and a line of the log says what.

    Args:
        source: see locate.
        model_size, fstride, tstride, input_fdim, input_tdim: the kind of model (see ASTModel),
            strides and size of the input, used if the checkpoint does not say them.
        mean, std: statistics of the fbank, used instead of the checkpoint's own.
        loss: 'BCE' for sigmoid scores or 'CE' for softmax, used instead of the checkpoint's own.

    Returns:
        The model, in eval mode, and its description: a dict with the model's config, mean, std,
        loss, sample_rate, labels (mids, names) if they are known, and under `assumed` what was
        assumed.

    Raises:
        WeightsError: if the checkpoint cannot be used.
        ValueError: for another loss.
    """
    if loss not in (None, *SCORES):
        raise ValueError(f'loss must be {" or ".join(SCORES)}, got {loss!r}')
    path = locate(source)
    weights = read_weights(path)
    state = drop_entries(weights.state, UNUSED_HEADS)
    _, rows, dim = _shape(state, 'v.pos_embed', 3, path)
    label_dim, _ = _shape(state, 'mlp_head.1.weight', 2, path)
    description = complete_description(
        path, weights.is_transformers, label_dim, dim,
        settings={'model_size': model_size, 'fstride': fstride, 'tstride': tstride,
                  'input_fdim': input_fdim, 'input_tdim': input_tdim},
        given={'mean': mean, 'std': std, 'loss': loss})
    model = _build(description, label_dim, rows, dim, path)
    _check_attention_heads(model, description, path)
    load_strictly(model, state, path)
    _set_eps(model, description, path, weights.is_transformers)
    return model.eval(), {**description, **vars(model.config)}


def _shape(state: State, name: str, axes: int, path: Path) -> torch.Size:
    """Return the shape of an entry of a state dict. Raises WeightsError if it has other axes."""
    if name not in state:
        problem = f'is missing; its first entry is {next(iter(state))}'
    elif state[name].dim() != axes:
        problem = f'has shape {tuple(state[name].shape)}'
    else:
        return state[name].shape
    raise WeightsError(f'{path} is no AST: {name} {problem}. Weights to start training from, such '
                       f'as those of timm or AudioMAE, go to --start')


def _build(description: Description, label_dim: int, rows: int, dim: int,
           path: Path) -> ASTModel:
    """Build the ASTModel of a description, its weights not yet set.

    Raises WeightsError if the checkpoint's positional embedding (rows, dim) is of another model.
    """
    model_size = description.get('model_size')
    if model_size is None:
        raise WeightsError(f'{path} has embeddings of {dim} dimensions, but those of a DeiT have '
                           f'{", ".join(map(str, SIZES))}. If it is built on another ViT, write '
                           f'its model_size into {path.with_suffix(".json").name} beside it, such '
                           f'as {{"model_size": "vit_large_patch16_224"}}')
    settings = {name: description[name] for name in MODEL_SETTINGS}
    # On the meta device nothing is drawn or stored: the checkpoint brings every value.
    with name_in_errors(path), torch.device('meta'):
        model = ASTModel(label_dim, model_size=model_size, imagenet_pretrain=False, verbose=False,
                         **settings)
    _check_pooling(model, description, path)

    pos_embed = model.get_parameter('v.pos_embed')
    needed = pos_embed.shape[1]
    if rows != needed:
        by_name = bool(describe_name(path.name))
        rename = ' (its name says strides: rename it if they are others)' if by_name else ''
        raise WeightsError(
            f'{path} has a positional embedding of {rows} x {dim}, but strides '
            f'{[settings["fstride"], settings["tstride"]]} on {settings["input_fdim"]} mel bins x '
            f'{settings["input_tdim"]} frames need {needed} rows in {model_size}: give the '
            f'strides, mel bins and frames it was trained with{rename}. To give the file as start '
            f'(--start), write them into {path.with_suffix(".json").name} beside it, such as '
            f'{{"fstride": 10, "tstride": 10, "input_fdim": 128, "input_tdim": 1024}}')
    return model.to_empty(device='cpu')


def _check_attention_heads(model: ASTModel, description: Description, path: Path) -> None:
    """Raise WeightsError if a checkpoint was made with other attention heads than the model's."""
    heads = description.get('num_attention_heads')
    if heads is None:
        return
    attn: Any = model.v.blocks[0].get_submodule('attn')
    if heads != attn.num_heads:
        raise WeightsError(f'{path} was made with num_attention_heads {heads}, but an AST of '
                           f'{model.v.embed_dim} dimensions has {attn.num_heads}')


def _check_pooling(model: ASTModel, description: Description, path: Path) -> None:
    """Raise WeightsError if a checkpoint says that its head classifies something else."""
    theirs = description.get('pooling')
    if theirs is not None and theirs != model.config.backbone.pooling:
        raise WeightsError(f'{path} says that the head classifies {theirs}, but that of the model '
                           f'classifies {model.config.backbone.pooling}')


def _layer_norms(module: nn.Module) -> list[nn.LayerNorm]:
    """Return the LayerNorms of a module."""
    return [part for part in module.modules() if isinstance(part, nn.LayerNorm)]


def _set_eps(model: ASTModel, description: Description, path: Path, is_transformers: bool) -> None:
    """Set the eps of LayerNorms to that of a checkpoint.

    A ViT other than DeiT has values of its own, which stay if the checkpoint does not say them.
    """
    parts: tuple[nn.Module, nn.Module] = (model.v, model.mlp_head)
    found = find_eps(description, path, is_transformers)
    for name, part, eps in zip(EPS, parts, found, strict=True):
        if name in description or model.config.model_size in DEIT:
            for norm in _layer_norms(part):
                norm.eps = eps


def save_checkpoint(model: ASTModel, path: str | Path, /, **description: Any) -> None:
    """Write a model's weights in the published layout (prefix `module.`), and a .json beside them.

    Args:
        path: of the weights; if it ends in .safetensors, they are written in that format, else as
            torch.save writes them.
        description: what the .json says besides the model's settings (labels, mean, std, loss).
            Values that load_model only assumed are not written, unless you changed them.
    """
    path = Path(path)
    # On the CPU: saved as tensors of a GPU, they would not load on a machine without one.
    state = {f'module.{name}': value.cpu() for name, value in model.state_dict().items()}
    with atomic_write(path) as partial:
        if path.suffix == '.safetensors':
            state = {name: value.contiguous() for name, value in state.items()}
            partial.write_bytes(save(state, {'format': 'pt'}))
        else:
            torch.save(state, partial)

    text = json.dumps(_description_to_save(model, description), indent=1) + '\n'
    with atomic_write(path.with_suffix('.json')) as partial:
        partial.write_text(text, encoding='utf-8')


def _description_to_save(model: ASTModel, description: Description) -> Description:
    """Return a description without assumptions, and with what the model itself tells."""
    assumed = description.pop('assumed', {})
    known = {name: value for name, value in description.items()
             if not (name in assumed and assumed[name] == value)}
    # The eps are the model's own, below: the description may come from another checkpoint.
    known = {name: value for name, value in known.items() if name not in EPS}
    if known.get('sample_rate') == SAMPLE_RATE:  # load_model takes it by default
        del known['sample_rate']
    known |= vars(model.config)
    if model.config.model_size not in DEIT:
        backbone = model.config.backbone
        known |= {'timm_name': backbone.timm_name, 'pooling': backbone.pooling}
    for norm in _layer_norms(model.v):
        if norm.eps != LAYER_NORM_EPS:
            known['layer_norm_eps'] = norm.eps
    for norm in _layer_norms(model.mlp_head):
        if norm.eps != HEAD_EPS:
            known['head_layer_norm_eps'] = norm.eps
    return known


def mean_state_dict(paths: Iterable[str | Path]) -> State:
    """Return the mean of checkpoints, name by name and summed in float64, without prefix.

    Raises WeightsError if they are not checkpoints of one and the same model.
    """
    paths = list(paths)
    total: State = {}
    for path in paths:
        state = drop_entries(read_state_dict(path), UNUSED_HEADS)
        shapes = {name: value.shape for name, value in state.items()}
        if total and shapes != {name: value.shape for name, value in total.items()}:
            raise WeightsError(f'{path} and {paths[0]} are checkpoints of different models: '
                               f'they have no mean')
        for name, value in state.items():
            total[name] = total[name] + value.double() if name in total else value.double()
    return {name: (value / len(paths)).float() for name, value in total.items()}
