"""Checkpoints of trained ASTs: save with a description, load with or without a model, average."""
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from .ast_models import ASTModel, patch_grid
from .atomic import atomic_write
from .descriptions import (
    CONFIG_DEFAULTS,
    FIELDS,
    Description,
    checked,
    describe_transformers,
    read_json,
)
from .errors import WeightsError
from .state_dicts import (
    UNUSED_HEADS,
    State,
    load_strictly,
    naming,
    read_state_dict,
    read_weights,
    shown,
    without,
)
from .weights import (
    TRANSFORMERS_FILES,
    describe_dataset,
    describe_name,
    describe_published,
    locate,
    published_file,
    published_on_hub,
)

COMPUTATION = ('layer_norm_eps', 'num_attention_heads')  # besides settings and weights
MODEL_SETTINGS = ('fstride', 'tstride', 'input_fdim', 'input_tdim')
# base224 and base384 are one and the same but for the images that DeiT saw.
SIZES = {192: 'tiny224', 384: 'small224', 768: 'base384'}
LAYER_NORM_EPS = 1e-6  # of an ASTModel's transformer
TRANSFORMERS_EPS = CONFIG_DEFAULTS['layer_norm_eps']
# What sets what a checkpoint may leave out, in the order of messages: options of programs.
OPTIONS = {'loss': '--loss', 'mean': '--dataset_mean', 'std': '--dataset_std',
           'fstride': '--fstride', 'tstride': '--tstride', 'input_fdim': '--num_mel_bins',
           'input_tdim': '--audio_length', 'layer_norm_eps': 'layer_norm_eps in a .json beside it'}
SCORES = {'BCE': 'BCE (sigmoid scores)', 'CE': 'CE (softmax scores)'}

logger = logging.getLogger(__name__)


def load_checkpoint(model: ASTModel, source: str | Path) -> None:
    """Load the weights of a trained AST into a model that is there.

    Args:
        source: see locate. Any form that read_state_dict reads. Entries and shapes must be exactly
            the model's, but for DeiT's two heads, which published files carry along.

    Raises:
        WeightsError: if it does not fit, or was made for another computation than the model's.
    """
    path = locate(source)
    weights = read_weights(path)
    description = describe(path, weights.is_transformers, COMPUTATION)
    _check_heads(model, description, path)
    load_strictly(model, without(weights.state, UNUSED_HEADS), path)
    _set_eps(model, {'layer_norm_eps': _default_eps(path, weights.is_transformers), **description})


def load_model(source: str | Path, *, fstride: int | None = None, tstride: int | None = None,
               input_fdim: int | None = None, input_tdim: int | None = None,
               mean: float | None = None, std: float | None = None, loss: str | None = None
               ) -> tuple[ASTModel, Description]:
    """Build the ASTModel that a checkpoint belongs to, and load it.

    A checkpoint describes itself by the .json beside it, by the config.json of its folder, or by
    its name (audioset_12_12_0.4467.pth). What it does not say and the arguments do not give is
    assumed; a line of the log then says what.

    Args:
        source: see locate.
        fstride, tstride, input_fdim, input_tdim: strides and size of the input of a checkpoint that
            does not say them.
        mean, std: statistics of the fbank, whatever the checkpoint says.
        loss: 'BCE' for sigmoid scores or 'CE' for softmax, whatever the checkpoint says.

    Returns:
        The model, in eval mode, and its description: a dict with the model's config, mean, std,
        loss, labels (mids, names) if they are known, and under `assumed` what was assumed.

    Raises:
        WeightsError: if the checkpoint cannot be used.
        ValueError: for another loss.
    """
    if loss not in (None, *SCORES):
        raise ValueError(f'loss must be {" or ".join(SCORES)}, got {loss!r}')
    path = locate(source)
    weights = read_weights(path)
    state = without(weights.state, UNUSED_HEADS)
    rows, dim = _shape(state, 'v.pos_embed', 3, path)[1:]
    label_dim, _ = _shape(state, 'mlp_head.1.weight', 2, path)
    settings = {'fstride': fstride, 'tstride': tstride, 'input_fdim': input_fdim,
                'input_tdim': input_tdim}
    given = {'mean': mean, 'std': std, 'loss': loss}
    description = _complete(path, weights.is_transformers, label_dim, settings, given)
    model = _build(description, label_dim, rows, dim, path)
    _check_heads(model, description, path)
    load_strictly(model, state, path)
    _set_eps(model, description)
    return model.eval(), {**description, **model.config}


def _complete(path, is_transformers, label_dim, settings, given):
    """Return the whole description of a checkpoint: what it says, what is given, what is assumed.

    Logs what was assumed, in one line. Raises WeightsError if strides are missing.
    """
    settings, given = ({name: value for name, value in values.items() if value is not None}
                       for values in (settings, given))
    said = describe(path, is_transformers)
    named = {} if said else describe_name(path.name)
    # What transformers makes of a missing problem_type; of one class, softmax is always 1.
    loss = 'CE' if is_transformers and label_dim > 1 else 'BCE'
    assumed = {**describe_dataset(named.get('dataset')), 'loss': loss}
    if _default_eps(path, is_transformers) != LAYER_NORM_EPS:
        assumed['layer_norm_eps'] = TRANSFORMERS_EPS
    description = {**assumed, **settings, **named, **said, **given}
    if missing := [name for name in MODEL_SETTINGS if name not in description]:
        options = ' and '.join(OPTIONS[name] for name in missing)
        raise WeightsError(f'{path} does not say its {" and ".join(missing)}, and no .json beside '
                           f'it does: give {options}')
    names = [name for name in OPTIONS if name in assumed
             and name not in {**settings, **said, **given}]
    if names:
        logger.warning('%s', _assumption(path, description, names, named))
    return {**description, 'assumed': {name: description[name] for name in names}}


def _assumption(path, description, names, named):
    """Return the sentence that says what was assumed of a checkpoint, and how to set it."""
    by_name = (f'; its name says {named["dataset"]}, strides {named["fstride"]} x '
               f'{named["tstride"]}' if named else '')
    what = [f'{name} {SCORES.get(description[name], description[name])} ({OPTIONS[name]})'
            for name in names]
    return f'{path} does not describe itself in full{by_name}; assumed: {", ".join(what)}'


def _build(description, label_dim, rows, dim, path):
    """Build the ASTModel of a description, its weights not yet set.

    Raises WeightsError if the positional embedding (rows, dim) of the checkpoint is of another.
    """
    strides_and_size = [description[name] for name in MODEL_SETTINGS]
    f, t = patch_grid(*strides_and_size)
    if rows != 2 + f * t or dim not in SIZES:
        rename = ' (its name says strides: rename it if they are others)'
        raise WeightsError(
            f'{path} has a positional embedding of {rows} x {dim}, but strides '
            f'{strides_and_size[:2]} on {description["input_fdim"]} mel bins x '
            f'{description["input_tdim"]} frames need {2 + f * t} rows of '
            f'{", ".join(map(str, SIZES))}: give the strides, mel bins and frames it was trained '
            f'with{rename if describe_name(path.name) else ""}')
    # On the meta device nothing is drawn or stored: the checkpoint brings every value.
    with naming(path), torch.device('meta'):
        model = ASTModel(label_dim, *strides_and_size, imagenet_pretrain=False,
                         model_size=description.get('model_size', SIZES[dim]), verbose=False)
    return model.to_empty(device='cpu')


def _check_heads(model, description, path):
    """Raise WeightsError if a checkpoint was made with other attention heads than the model's."""
    heads = description.get('num_attention_heads')
    if heads and heads != model.v.blocks[0].attn.num_heads:
        raise WeightsError(f'{path} was made with num_attention_heads {heads}, but an AST of '
                           f'{model.v.embed_dim} dimensions has {model.v.blocks[0].attn.num_heads}')


def _default_eps(path, is_transformers):
    """Return the eps of a checkpoint that does not say it. The published ones suit our own."""
    return TRANSFORMERS_EPS if is_transformers and not published_file(path) else LAYER_NORM_EPS


def _set_eps(model, description):
    """Give the LayerNorms of a model's transformer the eps of a description; the head keeps its."""
    for module in getattr(model, 'v', nn.Identity()).modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = description.get('layer_norm_eps', LAYER_NORM_EPS)


def _eps_of(model):
    """Return as part of a description what _set_eps has changed, if it has."""
    norm = getattr(getattr(model, 'v', None), 'norm', None)
    eps = getattr(norm, 'eps', LAYER_NORM_EPS)
    return {} if eps == LAYER_NORM_EPS else {'layer_norm_eps': eps}


def _shape(state, name, axes, path):
    """Return the shape of an entry of a state dict. Raises WeightsError if it has other axes."""
    if name not in state or state[name].dim() != axes:
        problem = (f'has shape {tuple(state[name].shape)}' if name in state
                   else f'is missing; its first entry is {shown(next(iter(state)))}')
        raise WeightsError(f'{path} is no AST: {name} {problem}')
    return state[name].shape


def describe(path: str | Path, is_transformers: bool = False,
             names: Iterable[str] = tuple(FIELDS)) -> Description:
    """Return what is known of a checkpoint besides its weights.

    It is known from the .json beside it that save_checkpoint writes, from its name if that is a
    published one, or from the config.json that transformers puts beside its weights.

    Args:
        is_transformers: whether the weights have the layout of transformers.
        names: of the fields that are used, of a .json that save_checkpoint writes.

    Raises:
        WeightsError: if a .json is none, says what cannot be, or asks for what AST does not do.
    """
    path = Path(path)
    beside = path.with_suffix('.json')
    if beside != path and beside.is_file():
        return checked(read_json(beside), beside, names)
    if file := published_file(path):
        return describe_published(file)
    is_transformers = is_transformers or path.name in TRANSFORMERS_FILES
    if is_transformers and (path.parent / 'config.json').is_file():
        # The configs of the published models have no problem_type; they were trained with BCE.
        file = published_on_hub(path.parent)
        return {**(describe_published(file) if file else {}), **describe_transformers(path.parent)}
    return {}


def save_checkpoint(model: ASTModel, path: str | Path, **description: Any) -> None:
    """Write a model's weights in the published layout (prefix `module.`), and a .json beside them.

    Args:
        path: of the weights; if it ends in .safetensors, they are written in that format, else as
            torch.save writes them.
        description: what the .json says besides the model's settings (labels, mean, std, loss).
            Of what load_model returned, it leaves out what was assumed and nobody changed.
    """
    path = Path(path)
    # As of the CPU: torch.load would fail without the GPU that they were trained on.
    state = {f'module.{name}': value.cpu() for name, value in model.state_dict().items()}
    with atomic_write(path) as partial:
        if path.suffix == '.safetensors':
            state = {name: value.contiguous() for name, value in state.items()}
            partial.write_bytes(save(state, {'format': 'pt'}))
        else:
            torch.save(state, partial)
    # What the model itself tells is not taken from a description, which may be of another model.
    assumed = description.pop('assumed', {})
    description = {name: value for name, value in description.items()
                   if name != 'layer_norm_eps' and not (name in assumed and assumed[name] == value)}
    description = {**description, **model.config, **_eps_of(model)}
    with atomic_write(path.with_suffix('.json')) as partial:
        partial.write_text(json.dumps(description, indent=1) + '\n', encoding='utf-8')


def mean_state_dict(paths: Iterable[str | Path]) -> State:
    """Return the mean of checkpoints, name by name and summed in float64, without prefix.

    Raises WeightsError if they are not checkpoints of one and the same model.
    """
    paths, total = list(paths), {}
    for path in paths:
        state = without(read_state_dict(path), UNUSED_HEADS)
        shapes = {name: value.shape for name, value in state.items()}
        if total and shapes != {name: value.shape for name, value in total.items()}:
            raise WeightsError(f'{path} and {paths[0]} are checkpoints of different models: '
                               f'they have no mean')
        total = {name: total.get(name, 0) + value.double() for name, value in state.items()}
    return {name: (value / len(paths)).float() for name, value in total.items()}
