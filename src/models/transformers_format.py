"""ASTs of the library transformers: their names of weights, and the JSON files beside them."""
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .descriptions import AUDIOSET_INPUT, Description, check_description, quote, read_json
from .errors import WeightsError
from .layouts import TRANSFORMERS_PREFIX, State, collect_entries

ENCODER = re.escape(TRANSFORMERS_PREFIX)
LAYER = ENCODER + r'(?:encoder\.layer|layers)\.(\d+)\.'
# Names of ASTForAudioClassification -> ours. Of two names, the first is the one on disk, which is
# that of transformers 4; the second is the one that transformers 5 has in memory.
TO_OURS = [(re.compile(theirs), ours) for theirs, ours in (
    (ENCODER + r'embeddings\.cls_token', 'v.cls_token'),
    (ENCODER + r'embeddings\.distillation_token', 'v.dist_token'),
    (ENCODER + r'embeddings\.position_embeddings', 'v.pos_embed'),
    (ENCODER + r'embeddings\.patch_embeddings\.projection\.', 'v.patch_embed.proj.'),
    (LAYER + r'attention\.(?:attention\.query|q_proj)\.', r'v.blocks.\1.attn.q.'),
    (LAYER + r'attention\.(?:attention\.key|k_proj)\.', r'v.blocks.\1.attn.k.'),
    (LAYER + r'attention\.(?:attention\.value|v_proj)\.', r'v.blocks.\1.attn.v.'),
    (LAYER + r'attention\.(?:output\.dense|o_proj)\.', r'v.blocks.\1.attn.proj.'),
    (LAYER + r'(?:intermediate\.dense|mlp\.fc1)\.', r'v.blocks.\1.mlp.fc1.'),
    (LAYER + r'(?:output\.dense|mlp\.fc2)\.', r'v.blocks.\1.mlp.fc2.'),
    (LAYER + r'layernorm_before\.', r'v.blocks.\1.norm1.'),
    (LAYER + r'layernorm_after\.', r'v.blocks.\1.norm2.'),
    (ENCODER + r'layernorm\.', 'v.norm.'),
    (r'classifier\.layernorm\.', 'mlp_head.0.'),
    (r'classifier\.dense\.', 'mlp_head.1.'),
)]

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


def _our_name(name: str) -> str:
    for theirs, ours in TO_OURS:
        if match := theirs.match(name):
            return match.expand(ours) + name[match.end():]
    return name


def describe_transformers(folder: Path) -> Description:
    """Describe the AST in a folder of transformers by its config.json and its extractor's file.

    Returns:
        A description, without `loss` if config.json has no problem_type, and without `mean` and
        `std` if there is no preprocessor_config.json.

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
        **{ours: config[theirs] for theirs, ours in CONFIG_SIZES.items()},
        'layer_norm_eps': config['layer_norm_eps'],
        'num_attention_heads': config['num_attention_heads'],
        'labels': {'mids': names, 'names': names},
        'dataset': folder.name}, path)
    description |= _describe_extractor(folder / 'preprocessor_config.json', config)

    problem_type = config.get('problem_type')
    if problem_type is None:
        return description
    if problem_type not in list(LOSSES):
        raise WeightsError(f'{path} says problem_type {quote(problem_type)!r}, expected '
                           f'{" or ".join(LOSSES)}')
    return {**description, 'loss': LOSSES[problem_type]}


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
