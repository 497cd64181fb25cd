"""Checkpoints of trained ASTs: saved with a description, found, loaded with or without a model at hand, averaged."""
import json
import re
from pathlib import Path

import torch

from .ast_models import ASTModel, patch_grid
from .descriptions import checked, read_json
from .files import atomic_write
from .state_dicts import UNUSED_HEADS, WeightsError, load_strictly, naming, read_state_dict, without
from .weights import AUDIOSET_INPUT, SPEECHCOMMANDS_INPUT, TRANSFORMERS_FILES, locate

MODEL_SETTINGS = ('fstride', 'tstride', 'input_fdim', 'input_tdim')
# base224 and base384 are one and the same but for the images that DeiT saw.
SIZES = {192: 'tiny224', 384: 'small224', 768: 'base384'}


def load_checkpoint(model, source):
    """Load a trained AST (this project's, the published .pth, or transformers' .safetensors) into an ASTModel.

    source: see locate. Strict but for the two DeiT heads of the published files. Raises WeightsError where it does not
    fit.
    """
    path = locate(source)
    load_strictly(model, without(read_state_dict(path), UNUSED_HEADS), path)


def load_model(source, **settings):
    """Build the ASTModel that a checkpoint belongs to, and load it.

    source: see locate. settings: fstride, tstride, input_fdim, input_tdim, for what the checkpoint does not say itself:
    by the .json beside it, by the config.json of its folder, or by its name (audioset_12_12_0.4467.pth).
    Returns the model, in eval mode, and its description: a dict with the model's config and, where they are known,
    labels (mids, names), mean, std, loss. Raises WeightsError where the checkpoint and these settings do not agree.
    """
    path = locate(source)
    state = without(read_state_dict(path), UNUSED_HEADS)
    description = {**AUDIOSET_INPUT, **{name: value for name, value in settings.items() if value is not None},
                   **describe(path)}
    missing = [name for name in MODEL_SETTINGS if name not in description]
    if missing:
        raise WeightsError(f'{path} does not say its {" and ".join(missing)}, and no .json beside it does: give '
                           f'{" and ".join(f"--{name}" for name in missing)}')
    rows, dim = _shape(state, 'v.pos_embed', 3, path)[1:]
    label_dim, _ = _shape(state, 'mlp_head.1.weight', 2, path)
    strides_and_size = [description[name] for name in MODEL_SETTINGS]
    f, t = patch_grid(*strides_and_size)
    if rows != 2 + f * t or dim not in SIZES:
        raise WeightsError(f'{path} has a positional embedding of {rows} x {dim}, but strides '
                           f'{strides_and_size[:2]} on {description["input_fdim"]} mel bins x '
                           f'{description["input_tdim"]} frames need {2 + f * t} rows of '
                           f'{", ".join(map(str, SIZES))}: give the strides, mel bins and frames it was trained with')
    with naming(path):
        model = ASTModel(label_dim, *strides_and_size, imagenet_pretrain=False,
                         model_size=description.get('model_size', SIZES[dim]), verbose=False)
    load_strictly(model, state, path)
    return model.eval(), {**description, **model.config}


def _shape(state, name, axes, path):
    """The shape of an entry of a state dict, which must have so many axes; raises WeightsError."""
    if name not in state or state[name].dim() != axes:
        problem = f'has shape {tuple(state[name].shape)}' if name in state else 'is missing'
        raise WeightsError(f'{path} is no AST: {name} {problem}')
    return state[name].shape


def describe(path):
    """What is known of a checkpoint besides its weights, a dict with the keys of the .json that save_checkpoint writes.

    From that .json, else from the config.json that transformers puts beside its weights, else from a published name.
    Raises WeightsError for a .json that is none, or says what cannot be.
    """
    path = Path(path)
    if path.with_suffix('.json').is_file():
        return checked(read_json(path.with_suffix('.json')), path.with_suffix('.json'))
    if path.name in TRANSFORMERS_FILES and (path.parent / 'config.json').is_file():
        return _describe_transformers(path.parent)
    match = re.match(r'(audioset|speechcommands)(?:_bal)?_([1-9]\d*)_([1-9]\d*)_', path.name)
    if not match:
        return {}
    size = AUDIOSET_INPUT if match[1] == 'audioset' else SPEECHCOMMANDS_INPUT
    return {**size, 'fstride': int(match[2]), 'tstride': int(match[3]), 'dataset': match[1], 'loss': 'BCE'}


def _describe_transformers(folder):
    """The description of a folder of transformers' ASTForAudioClassification and, where it is there, its extractor."""
    path, extractor = folder / 'config.json', folder / 'preprocessor_config.json'
    config, statistics = read_json(path), read_json(extractor) if extractor.is_file() else {}
    names = _names(config.get('id2label', {}), path)
    lacking = [name for name in ('frequency_stride', 'time_stride', 'num_mel_bins', 'max_length') if name not in config]
    if lacking:
        raise WeightsError(f'{path} describes no AST: {", ".join(lacking)} is missing')
    statistics = checked({name: statistics[name] for name in ('mean', 'std') if name in statistics}, extractor)
    return checked({'fstride': config['frequency_stride'], 'tstride': config['time_stride'],
                    'input_fdim': config['num_mel_bins'], 'input_tdim': config['max_length'],
                    'labels': {'mids': names, 'names': names}, 'dataset': folder.name,
                    'loss': 'CE' if config.get('problem_type') == 'single_label_classification' else 'BCE',
                    **statistics}, path)


def _names(id2label, path):
    """The names of the classes, in order, of a config.json's id2label: {"0": name, ...}."""
    try:
        return [name for _, name in sorted(id2label.items(), key=lambda item: int(item[0]))]
    except (AttributeError, ValueError):
        raise WeightsError(f'{path} says id2label {str(id2label)[:100]}, expected a name for each number of a '
                           f'class') from None


def save_checkpoint(model, path, **description):
    """Write an ASTModel's weights in the published layout (prefix `module.`), and a .json that describes them.

    They are written as of the CPU: torch.load would fail without the GPU that they were trained on. The description holds the model's own settings and what the caller adds (labels, mean, std, loss).
    """
    path = Path(path)
    with atomic_write(path) as partial:
        torch.save({f'module.{name}': value.cpu() for name, value in model.state_dict().items()}, partial)
    with atomic_write(path.with_suffix('.json')) as partial:
        partial.write_text(json.dumps({**model.config, **description}, indent=1) + '\n')


def mean_state_dict(paths):
    """The mean of checkpoints, name by name, summed in float64. Returns a state dict without prefix.

    Raises WeightsError where they are not checkpoints of one and the same model.
    """
    total = {}
    for path in paths:
        state = without(read_state_dict(path), UNUSED_HEADS)
        shapes = {name: value.shape for name, value in state.items()}
        if total and shapes != {name: value.shape for name, value in total.items()}:
            raise WeightsError(f'{path} and {paths[0]} are checkpoints of different models: they have no mean')
        total = {name: total.get(name, 0) + value.double() for name, value in state.items()}
    return {name: (value / len(paths)).float() for name, value in total.items()}
