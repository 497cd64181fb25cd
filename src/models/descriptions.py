"""Read and check what stands in JSON beside a checkpoint, which may come from anywhere."""
import json
import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .errors import WeightsError

MAX_BYTES = 10 ** 7  # of a JSON file; AudioSet's 527 labels make 40,000
MAX_INPUT = 2 ** 27  # values of one input, half a gigabyte; AudioSet's ten seconds are 2 ** 17

# What the published checkpoints were trained on: size of the input, statistics of the fbank.
AUDIOSET_INPUT = {'input_fdim': 128, 'input_tdim': 1024, 'mean': -4.2677393, 'std': 4.5689974}
SPEECHCOMMANDS_INPUT = {'input_fdim': 128, 'input_tdim': 128, 'mean': -6.845978, 'std': 5.5654526}

Description = dict[str, Any]


def _is_whole(minimum):
    return lambda value: type(value) is int and value >= minimum


def _is_number(value):
    # A whole number may be too large for a float, whose functions then raise.
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _is_positive(value):
    return _is_number(value) and value > 0


def _is_text(value):
    return isinstance(value, str)


def _is_labels(value):
    lists = [value.get(key, []) for key in ('mids', 'names')] if isinstance(value, dict) else [None]
    return all(isinstance(texts, list) and all(map(_is_text, texts)) for texts in lists)


# What is read of a description, if it is there; anything else in it has no effect.
FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    'model_size': (_is_text, 'text'),
    'label_dim': (_is_whole(1), 'a whole number of at least 1'),
    'fstride': (_is_whole(1), 'a whole number of at least 1'),
    'tstride': (_is_whole(1), 'a whole number of at least 1'),
    'input_fdim': (_is_whole(16), 'a whole number of at least 16'),
    'input_tdim': (_is_whole(16), 'a whole number of at least 16'),
    'layer_norm_eps': (_is_positive, 'a finite number above 0'),
    'num_attention_heads': (_is_whole(1), 'a whole number of at least 1'),
    'mean': (_is_number, 'a finite number'),
    'std': (_is_positive, 'a finite number above 0'),
    'loss': (lambda value: value in ('BCE', 'CE'), 'BCE or CE'),
    'dataset': (_is_text, 'text'),
    'labels': (_is_labels, 'lists of texts under mids and names'),
}


def read_json(path: Path, what: str = 'describes a checkpoint') -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Args:
        what: what the file is for, as the errors say it.

    Raises:
        WeightsError: if the file is no JSON object, or large beyond reason.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise WeightsError(f'{path} does not exist') from None
    if size > MAX_BYTES:
        raise WeightsError(f'{path} {what}, but has more than {MAX_BYTES // 10 ** 6} MB: '
                           f'get it again')
    try:
        value = json.loads(path.read_text(encoding='utf-8'))
    except (ValueError, RecursionError) as error:
        raise WeightsError(f'{path} {what}, but is no JSON: {error}') from None
    if not isinstance(value, dict):
        raise WeightsError(f'{path} {what}, but is no JSON object: {str(value)[:100]}')
    return value


def checked(description: Description, path: Path | str, names: Iterable[str] = tuple(FIELDS)
            ) -> Description:
    """Return the description that was read from path.

    Args:
        names: of the fields that are used.

    Raises:
        WeightsError: if one of them cannot be used; names it.
    """
    for name in names:
        fits, expected = FIELDS[name]
        if name in description and not fits(description[name]):
            raise WeightsError(f'{path} says {name} {str(description[name])[:100]!r}, '
                               f'expected {expected}')
    sizes = [description.get(name, 1) for name in ('input_fdim', 'input_tdim') if name in names]
    if math.prod(sizes) > MAX_INPUT:
        raise WeightsError(f'{path} says input_fdim {description["input_fdim"]}, input_tdim '
                           f'{description["input_tdim"]}: no recording needs an input of that size')
    return description


# What transformers takes if a file of its own does not say it.
CONFIG_DEFAULTS = {'hidden_act': 'gelu', 'num_attention_heads': 12, 'layer_norm_eps': 1e-12,
                   'patch_size': 16, 'qkv_bias': True}
EXTRACTOR_DEFAULTS = {'feature_extractor_type': 'ASTFeatureExtractor', 'do_normalize': True,
                      'sampling_rate': 16000, 'mean': AUDIOSET_INPUT['mean'],
                      'std': AUDIOSET_INPUT['std']}
# What an ASTModel and its features have; with another value it would give other logits.
ONLY = {
    'config': {'hidden_act': ('gelu',), 'patch_size': (16, [16, 16]),
               'qkv_bias': (True,)},
    'extractor': {'feature_extractor_type': ('ASTFeatureExtractor',), 'do_normalize': (True, False),
                  'sampling_rate': (16000,)},
}
CONFIG_SIZES = {'frequency_stride': 'fstride', 'time_stride': 'tstride',  # of a config.json -> ours
         'num_mel_bins': 'input_fdim', 'max_length': 'input_tdim'}
LOSSES = {'single_label_classification': 'CE', 'multi_label_classification': 'BCE', None: None}


def describe_transformers(folder: Path) -> Description:
    """Describe the AST in a folder of transformers: by its config.json and its extractor's file.

    Returns:
        A description without `loss` if config.json has no problem_type, and without `mean` and
        `std` if there is no preprocessor_config.json.

    Raises:
        WeightsError: if the files contradict each other, or ask for what an ASTModel does not do.
    """
    path = folder / 'config.json'
    config = CONFIG_DEFAULTS | read_json(path)
    lacking = [name for name in CONFIG_SIZES if name not in config]
    if lacking:
        raise WeightsError(f'{path} describes no AST: {", ".join(lacking)} is missing')
    names = _names(config.get('id2label', {}), path)
    description = checked({ours: config[theirs] for theirs, ours in CONFIG_SIZES.items()} | {
        'layer_norm_eps': config['layer_norm_eps'],
        'num_attention_heads': config['num_attention_heads'],
        'labels': {'mids': names, 'names': names}, 'dataset': folder.name}, path)
    description |= _describe_extractor(folder / 'preprocessor_config.json', config)
    _refuse_others(config, ONLY['config'], path)
    problem = config.get('problem_type')
    if problem not in list(LOSSES):
        raise WeightsError(f'{path} says problem_type {str(problem)[:100]!r}, expected '
                           f'{" or ".join(filter(None, LOSSES))}')
    return description | ({'loss': LOSSES[problem]} if problem else {})


def _describe_extractor(path, config):
    """Read mean and std of a preprocessor_config.json, if it is there; the rest must fit."""
    if not path.is_file():
        return {}
    extractor = EXTRACTOR_DEFAULTS | read_json(path)
    statistics = checked({name: extractor[name] for name in ('mean', 'std')}, path)
    _refuse_others(extractor, ONLY['extractor'], path)
    for name in ('num_mel_bins', 'max_length'):
        if extractor.get(name, config[name]) != config[name]:
            raise WeightsError(f'{path} says {name} {str(extractor[name])[:100]}, but config.json '
                               f'says {config[name]}')
    # (x - mean) / (2 * std) leaves x as it is.
    return statistics if extractor['do_normalize'] else {'mean': 0.0, 'std': 0.5}


def _refuse_others(values, only, path):
    """Raise WeightsError for the first field with a value that is not among those of `only`."""
    for name, known in only.items():
        if values[name] not in known:
            raise WeightsError(f'{path} says {name} {str(values[name])[:100]}; only '
                               f'{" or ".join(map(str, known))} works here')


def _names(id2label, path):
    """Return the names of the classes, in order, of an id2label: {"0": name, ...}."""
    try:
        return [name for _, name in sorted(id2label.items(), key=lambda item: int(item[0]))]
    except (AttributeError, ValueError):
        raise WeightsError(f'{path} says id2label {str(id2label)[:100]}, expected a name for each '
                           f'number of a class') from None

