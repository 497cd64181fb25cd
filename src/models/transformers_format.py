"""ASTs of the library transformers: their names of weights, and the JSON files beside them."""
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .descriptions import HEAD_EPS, Description, check_description, quote, read_json
from .errors import WeightsError
from .layouts import TRANSFORMERS_PREFIX, State, collect_entries
from .published_data import AUDIOSET_INPUT

LAYER = f'{TRANSFORMERS_PREFIX}encoder.layer.#.'
# Names of an ASTModel, then those of ASTForAudioClassification; # is the number of a layer. If two
# of their names stand here, the first is the name in files (and in transformers 4), the second the
# name in memory in transformers 5.
NAMES = (
    ('v.cls_token', f'{TRANSFORMERS_PREFIX}embeddings.cls_token'),
    ('v.dist_token', f'{TRANSFORMERS_PREFIX}embeddings.distillation_token'),
    ('v.pos_embed', f'{TRANSFORMERS_PREFIX}embeddings.position_embeddings'),
    ('v.patch_embed.proj.', f'{TRANSFORMERS_PREFIX}embeddings.patch_embeddings.projection.'),
    ('v.blocks.#.norm1.', f'{LAYER}layernorm_before.'),
    ('v.blocks.#.attn.q.', f'{LAYER}attention.attention.query.', f'{LAYER}attention.q_proj.'),
    ('v.blocks.#.attn.k.', f'{LAYER}attention.attention.key.', f'{LAYER}attention.k_proj.'),
    ('v.blocks.#.attn.v.', f'{LAYER}attention.attention.value.', f'{LAYER}attention.v_proj.'),
    ('v.blocks.#.attn.proj.', f'{LAYER}attention.output.dense.', f'{LAYER}attention.o_proj.'),
    ('v.blocks.#.norm2.', f'{LAYER}layernorm_after.'),
    ('v.blocks.#.mlp.fc1.', f'{LAYER}intermediate.dense.', f'{LAYER}mlp.fc1.'),
    ('v.blocks.#.mlp.fc2.', f'{LAYER}output.dense.', f'{LAYER}mlp.fc2.'),
    ('v.norm.', f'{TRANSFORMERS_PREFIX}layernorm.'),
    ('mlp_head.0.', 'classifier.layernorm.'),
    ('mlp_head.1.', 'classifier.dense.'),
)
TO_OURS = [(theirs, ours) for ours, *both in NAMES for theirs in both]
TO_THEIRS = [(ours, on_disk) for ours, on_disk, *_ in NAMES]

# What transformers takes if a file of its own does not say it.
CONFIG_DEFAULTS: Description = {
    'hidden_act': 'gelu', 'num_attention_heads': 12, 'layer_norm_eps': 1e-12,
    'patch_size': 16, 'qkv_bias': True}
EXTRACTOR_DEFAULTS: Description = {
    'feature_extractor_type': 'ASTFeatureExtractor', 'do_normalize': True, 'sampling_rate': 16000,
    'mean': AUDIOSET_INPUT['mean'], 'std': AUDIOSET_INPUT['std']}
# The values that an ASTModel and its features support. With others, the logits would differ.
KNOWN_CONFIG = {'hidden_act': ('gelu',), 'patch_size': (16, [16, 16]), 'qkv_bias': (True,)}
KNOWN_EXTRACTOR = {'feature_extractor_type': ('ASTFeatureExtractor',),
                   'do_normalize': (True, False), 'sampling_rate': (16000,)}
CONFIG_SIZES = {'frequency_stride': 'fstride', 'time_stride': 'tstride',  # theirs -> ours
                'num_mel_bins': 'input_fdim', 'max_length': 'input_tdim'}
LOSSES = {'single_label_classification': 'CE', 'multi_label_classification': 'BCE'}
# The field of a config.json in which our own folders say what transformers has no field for.
OWN_FIELD = 'ast_description'
# What older folders do not say in this field: when they were written, every ASTModel had these.
OWN_DEFAULTS: Description = {'head_layer_norm_eps': HEAD_EPS}


def from_transformers(state: State) -> State:
    """Give the entries of an ASTForAudioClassification our names.

    Its query, key and value become one tensor, as timm has them.
    """
    state = collect_entries((_our_name(name), value) for name, value in state.items())
    joined: State = {}
    for name, value in state.items():
        if '.attn.q.' in name:
            parts = [state[name.replace('.attn.q.', f'.attn.{part}.')] for part in 'qkv']
            joined[name.replace('.attn.q.', '.attn.qkv.')] = torch.cat(parts)
        elif not re.search(r'\.attn\.[kv]\.', name):
            joined[name] = value
    return joined


def to_transformers(state: State) -> State:
    """Give the entries of an ASTModel the names that an ASTForAudioClassification has on disk.

    This is the inverse of from_transformers.

    Raises:
        ValueError: if an ASTForAudioClassification has no place for an entry.
    """
    split: State = {}
    for name, value in state.items():
        if '.attn.qkv.' in name:
            for part, third in zip('qkv', value.chunk(3)):
                split[name.replace('.attn.qkv.', f'.attn.{part}.')] = third
        else:
            split[name] = value
    return {_their_name(name): value for name, value in split.items()}


def _our_name(name: str) -> str:
    # Transformers 5 has `layers` in memory for `encoder.layer`.
    on_disk = name.replace(f'{TRANSFORMERS_PREFIX}layers.', f'{TRANSFORMERS_PREFIX}encoder.layer.')
    return _rename(on_disk, TO_OURS) or name


def _their_name(name: str) -> str:
    renamed = _rename(name, TO_THEIRS)
    if renamed is None:
        raise ValueError(f'the format has no place for {name}')
    return renamed


def _rename(name: str, table: list[tuple[str, str]]) -> str | None:
    """Replace the start of a name by a table of (old, new), or return None if none fits."""
    match = re.search(r'\d+', name)
    number = match[0] if match else '#'
    for old, new in table:
        start = old.replace('#', number)
        if name.startswith(start):
            return new.replace('#', number) + name.removeprefix(start)
    return None


def describe_transformers(folder: Path) -> Description:
    """Describe the AST in a folder of transformers by its config.json and its extractor's file.

    Returns:
        A description, without `loss` if config.json has no problem_type, without `mean` and `std`
        if there is no preprocessor_config.json, and with `dataset` only if our own code wrote it.

    Raises:
        WeightsError: if the files contradict each other, or ask for what an ASTModel does not do.
    """
    path = folder / 'config.json'
    config = CONFIG_DEFAULTS | read_json(path)
    if lacking := [name for name in CONFIG_SIZES if name not in config]:
        raise WeightsError(f'{path} describes no AST: {", ".join(lacking)} is missing')
    _refuse_others(config, KNOWN_CONFIG, path)
    names = _class_names(config.get('id2label', {}), path)
    description = check_description({
        'labels': {'mids': names, 'names': names},
        'head_layer_norm_eps': config['layer_norm_eps'],
        **_own_description(config, names, path),
        **{ours: config[theirs] for theirs, ours in CONFIG_SIZES.items()},
        'layer_norm_eps': config['layer_norm_eps'],
        'num_attention_heads': config['num_attention_heads']}, path)
    description |= _describe_extractor(folder / 'preprocessor_config.json', config)

    problem_type = config.get('problem_type')
    if problem_type is None:
        return description
    if problem_type not in list(LOSSES):
        raise WeightsError(f'{path} says problem_type {quote(problem_type)!r}, expected '
                           f'{" or ".join(LOSSES)}')
    return {**description, 'loss': LOSSES[problem_type]}


def _own_description(config: Mapping[str, Any], names: list[str], path: Path) -> Description:
    """Return what our own folders say in OWN_FIELD: the mids of the classes, the dataset, ...

    transformers keeps a field that it does not know, even if it trains the model for other classes.
    So the field counts only if it names the classes that id2label names.

    One case goes unnoticed. If transformers trained the model further for the same classes, it used
    an eps of its own in the classifier, but the field still says our head_layer_norm_eps. In models
    of ESC-10, the difference moved logits by 3e-5.
    """
    own = config.get(OWN_FIELD)
    if not isinstance(own, dict):
        return {}
    check_description(own, path)
    return {**OWN_DEFAULTS, **own} if own.get('labels', {}).get('names') == names else {}


def _describe_extractor(path: Path, config: Mapping[str, Any]) -> Description:
    """Return mean and std of a preprocessor_config.json, if it is there; the rest must fit."""
    if not path.is_file():
        return {}
    extractor = EXTRACTOR_DEFAULTS | read_json(path)
    _refuse_others(extractor, KNOWN_EXTRACTOR, path)
    statistics = check_description({name: extractor[name] for name in ('mean', 'std')}, path)
    for name in ('num_mel_bins', 'max_length'):
        if extractor.get(name, config[name]) != config[name]:
            raise WeightsError(f'{path} says {name} {quote(extractor[name])}, but config.json '
                               f'says {config[name]}')
    # (x - mean) / (2 * std) leaves x as it is.
    return statistics if extractor['do_normalize'] else {'mean': 0.0, 'std': 0.5}


def _refuse_others(values: Mapping[str, Any], known: Mapping[str, tuple], path: Path) -> None:
    """Raise WeightsError for the first field with a value that is not supported."""
    for name, choices in known.items():
        if values[name] not in choices:
            raise WeightsError(f'{path} says {name} {quote(values[name])}; only '
                               f'{" or ".join(map(str, choices))} works here')


def _class_names(id2label: Any, path: Path) -> list[str]:
    """Return the names of the classes, in order, of an id2label: {"0": name, ...}."""
    try:
        return [name for _, name in sorted(id2label.items(), key=lambda item: int(item[0]))]
    except (AttributeError, ValueError):
        raise WeightsError(f'{path} says id2label {quote(id2label)}, expected a name for each '
                           f'number of a class') from None
