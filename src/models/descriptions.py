"""What stands in JSON beside a checkpoint: read within limits and checked, as it may come from anywhere."""
import json
import sys

from .state_dicts import WeightsError

MAX_BYTES = 10 ** 7  # of a JSON file; AudioSet's 527 labels make 40,000
MAX_INPUT = 2 ** 27  # values of one input, half a gigabyte; AudioSet's ten seconds are 2 ** 17


def _is_whole(minimum):
    return lambda value: type(value) is int and value >= minimum


def _is_number(value):
    # A whole number may be too large for a float, whose functions then raise.
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _is_text(value):
    return isinstance(value, str)


def _is_labels(value):
    lists = [value.get(key, []) for key in ('mids', 'names')] if isinstance(value, dict) else [None]
    return all(isinstance(texts, list) and all(map(_is_text, texts)) for texts in lists)


# What is read of a description, where it is there; anything else in it has no effect.
FIELDS = {
    'model_size': (_is_text, 'text'),
    'label_dim': (_is_whole(1), 'a whole number of at least 1'),
    'fstride': (_is_whole(1), 'a whole number of at least 1'),
    'tstride': (_is_whole(1), 'a whole number of at least 1'),
    'input_fdim': (_is_whole(16), 'a whole number of at least 16'),
    'input_tdim': (_is_whole(16), 'a whole number of at least 16'),
    'mean': (_is_number, 'a finite number'),
    'std': (lambda value: _is_number(value) and value > 0, 'a finite number above 0'),
    'loss': (lambda value: value in ('BCE', 'CE'), 'BCE or CE'),
    'dataset': (_is_text, 'text'),
    'labels': (_is_labels, 'lists of texts under mids and names'),
}


def read_json(path):
    """Read a JSON file that holds an object. Raises WeightsError where it is none, or large beyond reason."""
    if path.stat().st_size > MAX_BYTES:
        raise WeightsError(f'{path} describes a checkpoint, but has more than {MAX_BYTES // 10 ** 6} MB: get it again')
    try:
        value = json.loads(path.read_text(encoding='utf-8'))
    except (ValueError, RecursionError) as error:
        raise WeightsError(f'{path} describes a checkpoint, but is no JSON: {error}') from None
    if not isinstance(value, dict):
        raise WeightsError(f'{path} describes a checkpoint, but is no JSON object: {str(value)[:100]}')
    return value


def checked(description, path):
    """The description that was read from path; raises WeightsError that names the field that cannot be used."""
    for name, (fits, expected) in FIELDS.items():
        if name in description and not fits(description[name]):
            raise WeightsError(f'{path} says {name} {str(description[name])[:100]!r}, expected {expected}')
    if description.get('input_fdim', 1) * description.get('input_tdim', 1) > MAX_INPUT:
        raise WeightsError(f'{path} says input_fdim {description["input_fdim"]}, input_tdim '
                           f'{description["input_tdim"]}: no recording needs an input of that size')
    return description
