"""The JSON that describes a checkpoint: which fields are read, and what they may say."""
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .ast_models import MINIMUMS, POOLINGS
from .errors import WeightsError

MIN_MODEL_RATE = 1000  # Hz; below, a frame of 25 ms has too few samples
# eps of LayerNorms that a description does not say: that of ASTModel and of the published models.
LAYER_NORM_EPS = 1e-6  # in the transformer
HEAD_EPS = 1e-5  # in the classifier
MAX_QUOTED = 100  # characters of a wrong value in a message

Description = dict[str, Any]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_whole(minimum: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and value >= minimum


def _is_labels(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    lists = [value.get(key, []) for key in ('mids', 'names')]
    return all(isinstance(texts, list) and all(map(_is_text, texts)) for texts in lists)


# The fields of a description, all of them optional: name -> (a test of its value, the expected
# value in words for messages). Other fields have no effect.
FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    'model_size': (_is_text, 'text'),
    'timm_name': (_is_text, 'text'),
    'pooling': (lambda value: value in POOLINGS, ' or '.join(POOLINGS)),
    **{name: (_is_whole(minimum), f'a whole number of at least {minimum}')
       for name, minimum in MINIMUMS.items()},
    'layer_norm_eps': (_is_positive, 'a finite number above 0'),
    'head_layer_norm_eps': (_is_positive, 'a finite number above 0'),
    'num_attention_heads': (_is_whole(1), 'a whole number of at least 1'),
    'mean': (_is_number, 'a finite number'),
    'std': (_is_positive, 'a finite number above 0'),
    'sample_rate': (_is_whole(MIN_MODEL_RATE), f'a whole number of Hz, at least {MIN_MODEL_RATE}'),
    'mask_padding': (lambda value: type(value) is bool, 'true or false'),
    'loss': (lambda value: value in ('BCE', 'CE'), 'BCE or CE'),
    'dataset': (_is_text, 'text'),
    'start': (_is_text, 'text'),
    'labels': (_is_labels, 'lists of texts under mids and names'),
}


def quote(value: Any) -> str:
    """Return a value from a JSON file, shortened for an error message."""
    return str(value)[:MAX_QUOTED]


# utilities/texts.py has one that raises the errors of datasets; this folder imports nothing of
# ours.
def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that stands beside a checkpoint. Raises WeightsError if it is none."""
    try:
        value = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise WeightsError(f'{path} does not exist') from None
    except ValueError as error:
        raise WeightsError(f'{path} describes a checkpoint, but is no JSON: {error}') from None
    if not isinstance(value, dict):
        raise WeightsError(f'{path} describes a checkpoint, but is no JSON object: {quote(value)}')
    return value


def check_description(description: Description, path: Path,
                      fields: Iterable[str] = tuple(FIELDS)) -> Description:
    """Return a description that was read from path, if its fields can be used.

    Raises WeightsError that names the first field that cannot.
    """
    for name in fields:
        fits, expected = FIELDS[name]
        if name in description and not fits(description[name]):
            raise WeightsError(f'{path} says {name} {quote(description[name])!r}, '
                               f'expected {expected}')
    return description
